use super::*;
use crate::observe::Metrics;

const MS: Duration = Duration::from_millis(1);

fn settings() -> Settings {
    Settings {
        min: 3,
        max: 500,
        window: 100 * MS,
        min_rtt_interval: Duration::from_secs(60),
        min_rtt_requests: 20,
        buffer: 0.25,
    }
}

fn new(settings: Settings) -> Arc<AdaptiveConcurrency> {
    AdaptiveConcurrency::new(settings, Metrics::new().upstream_concurrency("hive"))
}

/// A node that serves `workers` requests at once, each in 10 ms; what is more waits. `demand` clients ask it for
/// `seconds`, again at once after each answer and after each refusal. Returns the time after.
fn run(limit: &Arc<AdaptiveConcurrency>, workers: usize, demand: usize, seconds: u64, start: Instant) -> Instant {
    let mut waiting: Vec<(Permit, u64)> = Vec::new();
    for tick in 0..seconds * 100 {
        let now = start + 10 * MS * u32::try_from(tick).unwrap();
        while waiting.len() < demand {
            match limit.acquire(false, now) {
                Some(permit) => waiting.push((permit, tick)),
                None => break,
            }
        }
        // The oldest first.
        let done = workers.min(waiting.len());
        for (permit, _) in waiting.drain(..done) {
            permit.answered(now + 10 * MS);
        }
    }
    start + 10 * MS * u32::try_from(seconds * 100).unwrap()
}

#[test]
fn the_limit_follows_what_the_nodes_can_do() {
    let start = Instant::now();
    let limit = new(settings());
    let now = run(&limit, 40, 400, 20, start);
    let found = limit.limit();
    assert!((40..=90).contains(&found), "40 at once are served without a wait: {found}");
    let now = run(&limit, 10, 400, 20, now);
    let less = limit.limit();
    assert!((8..=30).contains(&less), "10 at once: {less}");
    run(&limit, 40, 400, 20, now);
    assert!((40..=90).contains(&limit.limit()), "and it comes back: {}", limit.limit());
}

#[test]
fn measuring_again_forgets_a_queue() {
    let start = Instant::now();
    let limit = new(Settings { min_rtt_interval: Duration::from_secs(5), ..settings() });
    run(&limit, 40, 400, 300, start);
    assert!((20..=90).contains(&limit.limit()), "not more with each measurement: {}", limit.limit());
}

#[test]
fn a_limit_that_nobody_comes_near_does_not_grow() {
    let start = Instant::now();
    let limit = new(settings());
    run(&limit, 40, 2, 30, start);
    assert_eq!(limit.limit(), FIRST_LIMIT);
}

#[test]
fn a_permit_that_is_dropped_gives_its_place_back_and_says_nothing() {
    let now = Instant::now();
    let limit = new(settings());
    for _ in 0..1000 {
        let held: Vec<_> = (0..3).map(|_| limit.acquire(false, now).unwrap()).collect();
        assert!(limit.acquire(false, now).is_none());
        assert!(limit.acquire(true, now).is_some(), "a critical one may");
        drop(held);
    }
    assert_eq!(limit.phase.load(Ordering::Relaxed), 1, "no answer came, so nothing was measured");
}

#[test]
fn answers_from_before_a_measurement_are_not_measured() {
    let now = Instant::now();
    let limit = new(settings());
    let old = limit.acquire(false, now).unwrap();
    for _ in 0..20 {
        limit.acquire(false, now).unwrap().answered(now + 10 * MS);
    }
    assert_eq!(limit.limit(), FIRST_LIMIT);
    old.answered(now + Duration::from_secs(100));
    assert!(limit.state.lock().samples.is_empty());
}
