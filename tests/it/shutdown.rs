//! SIGTERM: what is sent here until everyone has learnt of it is served.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::gateway::{Gateway, Setup};
use crate::support::node::Node;
use crate::support::wait_until;

const CARD: &str = "/.well-known/agent-card.json";

fn start(node: &Node, delay: &str) -> Gateway {
    let mut setup = Setup::new(&[node.address]);
    setup.server = format!("shutdown_delay: {delay}");
    setup.start()
}

#[test]
fn new_connections_are_served_for_the_delay_while_the_gateway_says_that_it_is_not_ready() {
    let node = Node::start();
    let mut gateway = start(&node, "10m");
    gateway.signal(Signal::SIGTERM);
    wait_until("it is not ready", || gateway.admin_get("/v1/ready").unwrap().status == 503);
    assert_eq!(gateway.admin_get("/v1/ready").unwrap().json()["draining"], true);
    assert_eq!(
        (gateway.admin_get("/v1/health").unwrap().status, gateway.status()["draining"].clone()),
        (200, true.into())
    );
    for _ in 0..5 {
        assert_eq!(gateway.client("bob").get(gateway.address, CARD).unwrap().status, 200);
    }
    // Whoever asks twice does not want to wait.
    gateway.signal(Signal::SIGTERM);
    assert!(gateway.wait_exit().success());
    assert!(std::net::TcpStream::connect(gateway.address).is_err());
}

#[test]
fn the_delay_ends_by_itself() {
    let node = Node::start();
    let mut gateway = start(&node, "700ms");
    let begun = Instant::now();
    gateway.signal(Signal::SIGTERM);
    assert!(gateway.wait_exit().success());
    assert!(begun.elapsed() >= Duration::from_millis(700), "{:?}", begun.elapsed());
}
