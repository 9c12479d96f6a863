//! observe
pub mod handshake;
