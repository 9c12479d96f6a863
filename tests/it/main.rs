//! The whole gateway on real sockets: the real binary, certificates made in the test, nodes that record what reaches them.
// Helpers outside of #[test] functions fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;
