//! config
pub mod file;
