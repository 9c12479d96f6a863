//! The `ProxyHttp` that Pingora calls at each stage of a request.

use std::sync::Arc;

use async_trait::async_trait;
use pingora::modules::http::HttpModules;
use pingora::proxy::{FailToProxy, ProxyHttp, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};

use super::context::Context;
use super::{Shared, admit, exchange, record, refuse};

/// One listener's requests. All state is in [`Shared`] and in the request's context.
pub struct Gateway {
    shared: Arc<Shared>,
}

impl Gateway {
    /// A proxy over the shared state.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = Context;

    fn new_ctx(&self) -> Context {
        Context::default()
    }

    /// No modules: nothing compresses, nothing rewrites.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, ctx: &mut Context) -> Result<bool> {
        match admit::admit(&self.shared, session, ctx).await {
            Ok(body) => exchange::run(&self.shared, session, ctx, body).await.map(|()| true),
            Err(admit::Stop::Refused(refusal)) => {
                refuse::refuse(&self.shared, session, ctx, refusal).await;
                Ok(true)
            }
            Err(admit::Stop::Gone(error)) => Err(error.into_down()),
        }
    }

    /// Never called: every request has been answered by [`Gateway::request_filter`].
    async fn upstream_peer(&self, _session: &mut Session, _ctx: &mut Context) -> Result<Box<HttpPeer>> {
        Err(Error::new(ErrorType::InternalError))
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut Context) -> FailToProxy {
        refuse::failed(&self.shared, session, ctx, error).await
    }

    async fn logging(&self, session: &mut Session, _error: Option<&Error>, ctx: &mut Context) {
        record::record(&self.shared, session, ctx);
    }

    /// The access log tells what Pingora would.
    fn suppress_error_log(&self, _session: &Session, _ctx: &Context, _error: &Error) -> bool {
        true
    }
}
