//! Whatever comes in, the scanner neither panics nor disagrees with `serde_json` on what is JSON and what is a request.
#![no_main]
#![allow(dead_code, unused_imports)]

#[path = "../../../src/files.rs"]
mod files;
#[path = "../../../src/json_rpc/mod.rs"]
mod json_rpc;

libfuzzer_sys::fuzz_target!(|body: &[u8]| json_rpc::agreement::agrees_with_serde_json(body));
