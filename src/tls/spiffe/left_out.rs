//! In place of [`super::workload_api`] in a build without the feature `spiffe-workload-api`. No configuration gets here.

use std::convert::Infallible;

use super::{AgentFailure, Endpoint, Update};

/// There are none.
pub struct Updates(Infallible);

/// Fails.
///
/// # Errors
/// Always.
pub async fn connect(_: &Endpoint) -> Result<Updates, AgentFailure> {
    Err(AgentFailure::Failed("this build leaves SPIFFE agents out".into()))
}

impl Updates {
    /// Never called.
    ///
    /// # Errors
    /// None.
    pub async fn next(&mut self) -> Result<Update, AgentFailure> {
        match self.0 {}
    }
}
