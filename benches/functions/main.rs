//! What single functions cost, by criterion: one program, as each takes minutes to link with everything optimised.
//!
//! `cargo bench --bench functions`, or with a part of a name behind `--`: `policy`, `json_rpc`, `route`, `peer`, `rate_limit`,
//! `revocation`, `pick`, `deny`.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)] // A bench that can't be set up has nothing to measure.

// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod sample;

mod balance;
mod defense;
mod json_rpc;
mod observe;
mod policy;
mod rate_limit;
mod revocation;
mod route;

criterion::criterion_main!(
    balance::benches,
    defense::benches,
    json_rpc::benches,
    observe::benches,
    policy::benches,
    rate_limit::benches,
    revocation::benches,
    route::benches,
);
