//! The JSON-RPC scanner against `serde_json`'s `IgnoredAny` pass, which builds nothing either.
//!
//! `cargo bench --bench functions -- json_rpc`

use std::hint::black_box;
use std::ops::ControlFlow;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use hive_gateway::json_rpc::{Limits, MethodPolicy, scan};
use serde::de::IgnoredAny;

/// `message/send` as the A2A SDKs write it, with a text of so many bytes.
fn call(text: &str) -> Vec<u8> {
    let body = serde_json::json!({
        "jsonrpc": "2.0",
        "id": "5f0a6ad2-2b0c-4f6a-9c59-4c9a2f8b7a10",
        "method": "message/send",
        "params": {
            "message": {
                "kind": "message",
                "role": "user",
                "messageId": "0192f0c1-7e57-7c10-8b1a-6d1a2a1f9a11",
                "parts": [{ "kind": "text", "text": text }],
            },
            "configuration": { "blocking": true, "historyLength": 10 },
        },
    });
    serde_json::to_vec(&body).unwrap()
}

fn repeat(text: &str, bytes: usize) -> String {
    text.repeat(bytes / text.len())
}

fn bench(c: &mut Criterion) {
    let ascii = "The quick brown fox jumps over the lazy dog. ";
    let japanese = "素早い茶色の狐がのろまな犬を飛び越える。";
    let mixed = "Le renard brun rapide saute par-dessus le chien paresseux, été comme hiver. ";
    let bodies = [
        ("call_300B", call("What is the weather in Paris")),
        ("ascii_16KiB", call(&repeat(ascii, 16 << 10))),
        ("utf8_16KiB", call(&repeat(japanese, 16 << 10))),
        ("french_16KiB", call(&repeat(mixed, 16 << 10))),
        ("ascii_1MiB", call(&repeat(ascii, 1 << 20))),
        ("utf8_1MiB", call(&repeat(japanese, 1 << 20))),
        ("escapes_16KiB", call(&repeat("a line of a program;\n\t\"and\" the next\n", 16 << 10))),
    ];
    let limits = Limits { max_depth: 64, batch: None, any_version: false };
    let policy = MethodPolicy::new(Some(&["message/send".into(), "message/stream".into(), "tasks/*".into()])).unwrap();
    let mut group = c.benchmark_group("json_rpc");
    for (name, body) in &bodies {
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_with_input(BenchmarkId::new("scan", name), body, |b, body| {
            b.iter(|| {
                scan(black_box(body), &limits, |call| {
                    if policy.allows_text(&call.method) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                })
                .is_ok_and(|envelope| envelope.stopped.is_none())
            });
        });
        group.bench_with_input(BenchmarkId::new("ignored_any", name), body, |b, body| {
            b.iter(|| serde_json::from_slice::<IgnoredAny>(black_box(body)).is_ok());
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
