//! The JSON-RPC scanner on its own: what it takes from the allocator, and what it makes of damaged bodies. The seeds are
//! those of the fuzz target (`tests/fuzz`).
// Functions outside of #[test] ones fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use hive_gateway::json_rpc::agreement::agrees_with_serde_json;
use hive_gateway::json_rpc::{DEPTH_MAX, Limits, MethodPolicy, scan};
use hive_gateway::policy::json_rpc::JsonRpcPolicy;

/// The system's allocator, counting for each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that ends may allocate after its counter is gone.
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often `work` asks for memory.
fn allocations<T>(work: impl FnOnce() -> T) -> (u64, T) {
    let before = ALLOCATIONS.get();
    let done = work();
    (ALLOCATIONS.get() - before, done)
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| std::hint::black_box(Vec::<u8>::with_capacity(100))).0, 1);
    assert_eq!(allocations(|| std::hint::black_box(7)).0, 0);
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds/scan");
    let mut seeds: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap()))
        .collect();
    seeds.sort();
    assert!(seeds.len() >= 20, "{} seeds", seeds.len());
    seeds
}

#[test]
fn a_valid_request_takes_nothing_from_the_allocator() {
    let limits = Limits { max_depth: DEPTH_MAX, batch: Some(1000), any_version: false };
    let policy = JsonRpcPolicy {
        limits,
        methods: MethodPolicy::new(Some(&["message/*".into(), "tasks/get".into(), "a".into()])).unwrap(),
        notifications: true,
        params_max: 1 << 20,
        schemas: Default::default(),
    };
    let large = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"a","params":["{}"]}}"#, "x\\n\u{e9}".repeat(200_000));
    let deep = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"a","x":{}{}}}"#, "[".repeat(500), "]".repeat(500));
    let batch = format!("[{}]", vec![r#"{"jsonrpc":"2.0","id":1,"m\u0065thod":"tasks\/get"}"#; 1000].join(","));
    let made = [large, deep, batch].map(|text| ("made".to_owned(), text.into_bytes()));
    let mut valid = 0;
    for (name, body) in seeds().into_iter().chain(made) {
        let (count, scanned) = allocations(|| scan(&body, &limits, |_| ControlFlow::<()>::Continue(())).is_ok());
        assert_eq!(count, 0, "{name}: the scanner, valid or not");
        let (count, passed) = allocations(|| policy.check(&body, |_| {}).is_ok());
        if scanned && passed {
            assert_eq!(count, 0, "{name}: the whole policy");
            valid += 1;
        }
    }
    assert!(valid >= 8, "{valid} valid ones");
}

/// A generator of numbers that is the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % end.max(1) as u64).unwrap()
    }
}

/// What a fuzzer does to a seed: bytes and pieces inserted, changed, cut, doubled, taken from another seed.
fn damaged(seed: &[u8], other: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    const PIECES: [&[u8]; 22] = [
        b"\"",
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b"\0",
        b"\xef\xbb\xbf",
        b"\xff",
        b"\xed\xa0\x80",
        b"\\u0000",
        b"\\ud800",
        b"\\udc1d",
        b"\\u0069d",
        b"\"method\":",
        b"\"id\":",
        b"1e400",
        b"-0.0",
        b"null",
        b"\r\n ",
    ];
    let mut body = seed.to_vec();
    for _ in 0..1 + numbers.below(4) {
        let at = numbers.below(body.len() + 1);
        let end = at + numbers.below((body.len() - at).min(16) + 1);
        match numbers.below(6) {
            0 => drop(body.splice(at..at, PIECES[numbers.below(PIECES.len())].iter().copied())),
            1 => drop(body.splice(at..end, PIECES[numbers.below(PIECES.len())].iter().copied())),
            2 => drop(body.drain(at..end)),
            3 => body.truncate(at),
            4 => {
                let piece = body[at..end].to_vec();
                drop(body.splice(at..at, piece));
            }
            _ => {
                let from = numbers.below(other.len());
                let piece = other[from..(from + 16).min(other.len())].to_vec();
                drop(body.splice(at..at, piece));
            }
        }
    }
    body
}

#[test]
fn damaged_seeds_are_judged_as_serde_json_does() {
    const ROUNDS: usize = 1500;
    let seeds = seeds();
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    for (i, (name, seed)) in seeds.iter().enumerate() {
        agrees_with_serde_json(seed);
        for round in 0..ROUNDS {
            let body = damaged(seed, &seeds[(i + round) % seeds.len()].1, &mut numbers);
            let agreed = std::panic::catch_unwind(|| agrees_with_serde_json(&body));
            assert!(agreed.is_ok(), "{name}, round {round}: {:?}", String::from_utf8_lossy(&body));
        }
    }
}
