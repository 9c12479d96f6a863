//! cli
pub mod check;
pub mod pki;
