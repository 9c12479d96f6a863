//! cli
pub mod pki;
