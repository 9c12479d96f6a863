use std::time::Duration;

use proptest::prelude::*;
use tokio::task::JoinHandle;

use super::*;
use crate::units::Percent;

fn limits(max: u32, max_pending: u32, wait_ms: u64) -> BreakerLimits {
    let pending_timeout = Duration::from_millis(wait_ms);
    BreakerLimits {
        connections: Some(ConnectionLimits { max, max_pending, pending_timeout }),
        max_requests: 1000,
        retry_budget: Percent(200),
        min_retry_concurrency: 2,
    }
}

fn breaker(limits: BreakerLimits) -> Arc<Breaker> {
    Arc::new(Breaker::new(limits, "hive", &Metrics::new(), None))
}

fn changed(limits: BreakerLimits, previous: &Breaker) -> Arc<Breaker> {
    let new = Arc::new(Breaker::new(limits, "hive", &Metrics::new(), Some(previous)));
    new.take_effect();
    new
}

fn now(breaker: &Breaker) -> Option<Permit> {
    breaker.enter().unwrap()
}

fn waiting(breaker: &Arc<Breaker>) -> JoinHandle<Result<Permit, Overflow>> {
    let breaker = breaker.clone();
    tokio::spawn(async move { breaker.wait().await })
}

async fn pending(breaker: &Breaker, count: u32) {
    super::super::fakes::until("so many wait", || breaker.status().pending == count).await;
}

#[tokio::test]
async fn who_waits_is_served_in_the_order_of_coming() {
    let breaker = breaker(limits(1, 10, 60_000));
    let first = now(&breaker).unwrap();
    let mut queue = Vec::new();
    for n in 1..=5 {
        queue.push(waiting(&breaker));
        pending(&breaker, n).await;
    }
    assert!(now(&breaker).is_none(), "nobody overtakes");
    drop(first);
    for (n, next) in (0u32..).zip(queue) {
        let permit = next.await.unwrap().unwrap();
        assert_eq!(breaker.status().pending, 4 - n);
        assert!(now(&breaker).is_none());
        drop(permit);
    }
    assert!(now(&breaker).is_some());
}

#[tokio::test]
async fn who_leaves_frees_the_place() {
    let breaker = breaker(limits(1, 1, 60_000));
    let first = now(&breaker).unwrap();
    let leaves = waiting(&breaker);
    pending(&breaker, 1).await;
    assert_eq!(breaker.wait().await.err(), Some(Overflow::Pending));
    leaves.abort();
    pending(&breaker, 0).await;
    let stays = waiting(&breaker);
    pending(&breaker, 1).await;
    drop(first);
    assert!(stays.await.unwrap().is_ok(), "the place of the one that left is not served");
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_longer_than_the_timeout() {
    let breaker = breaker(limits(1, 1, 1000));
    let _first = now(&breaker).unwrap();
    let start = tokio::time::Instant::now();
    assert_eq!(breaker.wait().await.err(), Some(Overflow::PendingTimeout));
    assert_eq!(start.elapsed(), Duration::from_secs(1));
    assert_eq!(breaker.status().pending, 0);
}

#[tokio::test]
async fn requests_beyond_the_limit_are_refused_and_give_their_connection_back() {
    let breaker = breaker(BreakerLimits { max_requests: 1, ..limits(2, 0, 1) });
    let first = now(&breaker).unwrap();
    assert_eq!(breaker.enter().err(), Some(Overflow::Requests));
    assert_eq!(breaker.status().requests, 1);
    drop(first);
    assert!(now(&breaker).is_some());
    let http2 = self::breaker(BreakerLimits { connections: None, max_requests: 1, ..limits(1, 0, 1) });
    let _first = now(&http2).unwrap();
    assert_eq!(http2.enter().err(), Some(Overflow::Requests));
    assert_eq!(http2.wait().await.err(), Some(Overflow::Requests));
}

#[test]
fn later_tries_are_a_share_of_the_requests_and_always_a_few() {
    let breaker = breaker(limits(100, 0, 1));
    let few: Vec<_> = (0..2).filter_map(|_| breaker.retry()).collect();
    assert_eq!(few.len(), 2);
    assert!(breaker.retry().is_none());
    drop(few);
    let _running: Vec<_> = (0..50).filter_map(|_| now(&breaker)).collect();
    let share: Vec<_> = (0..60).filter_map(|_| breaker.retry()).collect();
    assert_eq!(share.len(), 10);
    drop(share);
    assert_eq!(breaker.status().retries, 0);
}

#[tokio::test]
async fn a_reload_keeps_the_counts_and_changes_the_limits() {
    let old = breaker(limits(4, 10, 60_000));
    let mut running: Vec<_> = (0..4).filter_map(|_| now(&old)).collect();
    let fewer = changed(limits(2, 10, 60_000), &old);
    assert_eq!(fewer.status().requests, 4);
    running.truncate(2);
    assert!(now(&fewer).is_none(), "two still run, which is the new limit");
    running.truncate(1);
    running.extend(now(&fewer));
    assert!(now(&fewer).is_none());
    // One waits, and a higher limit lets it in.
    let waits = waiting(&fewer);
    pending(&fewer, 1).await;
    let more = changed(limits(3, 10, 60_000), &fewer);
    running.push(waits.await.unwrap().unwrap());
    assert!(now(&more).is_none());
    assert_eq!(running.len(), 3);
    drop(running);
    let all: Vec<_> = (0..9).filter_map(|_| now(&more)).collect();
    assert_eq!(all.len(), 3);
}

#[tokio::test]
async fn metrics_show_what_is_left() {
    let metrics = Metrics::new();
    let breaker = Arc::new(Breaker::new(limits(2, 1, 60_000), "hive", &metrics, None));
    let _running: Vec<_> = (0..2).filter_map(|_| now(&breaker)).collect();
    let waits = waiting(&breaker);
    pending(&breaker, 1).await;
    let text = metrics.encode();
    for line in [
        "circuit_breaker_open{limit=\"connections\",upstream=\"hive\"} 1",
        "circuit_breaker_open{limit=\"requests\",upstream=\"hive\"} 0",
        "circuit_breaker_remaining{limit=\"connections\",upstream=\"hive\"} 0",
        "circuit_breaker_remaining{limit=\"requests\",upstream=\"hive\"} 998",
        "circuit_breaker_overflow_total{limit=\"connections\",upstream=\"hive\"} 1",
        "upstream_pending{upstream=\"hive\"} 1",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    waits.abort();
    let _ = waits.await;
    drop((_running, breaker));
    assert!(!metrics.encode().contains("upstream=\"hive\""), "an upstream that is gone is not shown");
}

proptest! {
    /// Whatever comes, leaves, and changes: never more than the limit in force when a request came in, and in the end every
    /// permit is back.
    #[test]
    fn no_permit_is_lost_or_made(steps in prop::collection::vec((0u8..4, 1u32..8), 1..80)) {
        let mut breaker = breaker(limits(4, 10, 1));
        let mut max = 4;
        let mut running: Vec<Permit> = Vec::new();
        for (step, n) in steps {
            match step {
                0 | 1 => {
                    let entered = now(&breaker);
                    prop_assert_eq!(entered.is_some(), running.len() < max as usize);
                    running.extend(entered);
                }
                2 => drop(running.pop()),
                _ => {
                    breaker = changed(limits(n, 10, 1), &breaker);
                    max = n;
                }
            }
        }
        drop(running);
        let all: Vec<_> = (0..20).filter_map(|_| now(&breaker)).collect();
        prop_assert_eq!(all.len(), max as usize);
    }
}
