//! What orders name, as a snapshot has it.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::admin::Denied;
use crate::admin::status::OrderStatus;
use crate::policy::maintenance::{Order, Orders, Scope, Target};
use crate::snapshot::Snapshot;
use crate::upstream::{Drained, Node, Upstream, named_address};

fn upstream<'s>(snapshot: &'s Snapshot, name: &str) -> Option<&'s Upstream> {
    let built = snapshot.upstreams.iter().find(|u| u.upstream.name().as_str() == name)?;
    Some(&*built.upstream)
}

/// The nodes that are meant; `addresses`: where they were when that was said.
pub(super) fn nodes(snapshot: &Snapshot, target: &Target, addresses: &[SocketAddr]) -> Vec<Arc<Node>> {
    let Target::Node { upstream: name, node } = target else { return Vec::new() };
    let drained = Drained { name: node.as_str().into(), addresses: addresses.into() };
    upstream(snapshot, name).map(|u| u.meant(&drained)).unwrap_or_default()
}

/// Where the nodes of this name are.
pub(super) fn addresses(snapshot: &Snapshot, target: &Target) -> Vec<SocketAddr> {
    in_order(nodes(snapshot, target, &[]).iter().map(|node| node.address()).collect())
}

/// The same places are the same order, however a discovery lists them.
fn in_order(mut addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Learns where the nodes are that these orders name. Of a name that is gone, what was `known` before holds as well.
pub(super) fn locate(snapshot: &Snapshot, scope: &mut Scope, known: &Scope) {
    for (target, order) in scope {
        let found = addresses(snapshot, target);
        if !found.is_empty() {
            order.addresses = found;
        } else if let Some(known) = known.get(target) {
            order.addresses = in_order([&order.addresses[..], &known.addresses].concat());
        }
    }
}

/// What is shown of orders.
pub(super) fn shown(snapshot: &Snapshot, orders: &Orders) -> Vec<OrderStatus> {
    OrderStatus::of(orders, |target, order| {
        let mut urls: Vec<_> = nodes(snapshot, target, &order.addresses).iter().map(|n| n.url().to_string()).collect();
        urls.dedup();
        urls
    })
}

/// What ends with an order for this target: also one in which its node has another of its names. Nothing is unknown that
/// an order names, though a reload may have taken it away.
pub(super) fn named_alike(snapshot: &Snapshot, before: &Scope, target: &Target) -> Result<Vec<Target>, Denied> {
    let own = before.get(target).map_or(&[][..], |order| &order.addresses);
    let meant: Vec<_> = nodes(snapshot, target, own).iter().map(|node| node.id()).collect();
    let is_same = |other: &Target, order: &Order| match (target, other) {
        (Target::Node { upstream, node }, Target::Node { upstream: of, .. }) if upstream == of => match &meant[..] {
            // A node that is gone is known by where it was.
            [] => named_address(node).is_some_and(|address| order.addresses.contains(&address)),
            meant => nodes(snapshot, other, &order.addresses).iter().any(|node| meant.contains(&node.id())),
        },
        _ => false,
    };
    let others = before.iter().filter(|(other, order)| *other != target && is_same(other, order));
    // It may be another gateway's that is not known here yet, so it is always among them.
    let alike: Vec<_> = std::iter::once(target).chain(others.map(|(other, _)| other)).cloned().collect();
    if alike.len() == 1 && !before.contains_key(target) {
        check(snapshot, target)?;
    }
    Ok(alike)
}

/// Whether there is such a thing.
pub(super) fn check(snapshot: &Snapshot, target: &Target) -> Result<(), Denied> {
    let unknown = |code, message| Err(Denied { status: 404, code, message });
    match target {
        Target::Gateway => Ok(()),
        Target::Route(name) if snapshot.config.routes.iter().any(|r| r.name.as_str() == name) => Ok(()),
        Target::Route(name) => unknown("unknown_route", format!("No route is named {name:?}.")),
        Target::Node { upstream: name, .. } if upstream(snapshot, name).is_none() => {
            unknown("unknown_upstream", format!("No upstream is named {name:?}."))
        }
        Target::Node { upstream, node } => match nodes(snapshot, target, &[]).is_empty() {
            false => Ok(()),
            true => unknown("unknown_node", format!("Upstream {upstream} has no node {node:?}.")),
        },
    }
}

/// Whether an order changes nothing in this snapshot. Of an upstream whose nodes are still to be discovered nobody knows.
fn is_idle(snapshot: &Snapshot, target: &Target, order: &Order) -> bool {
    match target {
        Target::Gateway => false,
        Target::Route(_) => check(snapshot, target).is_err(),
        Target::Node { upstream: name, .. } => {
            let awaited = upstream(snapshot, name).is_some_and(|u| u.why_empty().is_some());
            !awaited && nodes(snapshot, target, &order.addresses).is_empty()
        }
    }
}

/// A sentence for each order that changes nothing. One of the fleet's may be about other gateways: it counts if it did
/// change something `before`.
pub(super) fn idle(snapshot: &Snapshot, before: &Snapshot, orders: &Orders) -> Vec<String> {
    let idle = orders.all().filter(|(target, order, fleet)| {
        is_idle(snapshot, target, order) && !(*fleet && is_idle(before, target, order))
    });
    let tell = idle.map(|(target, _, fleet)| {
        let (what, path, why) = match target {
            Target::Node { .. } => ("drain", "drain", "no node has this name, or is where it was"),
            Target::Route(_) | Target::Gateway => ("maintenance", "maintenance", "there is no such route"),
        };
        let whose = if fleet { "the fleet's" } else { "its" };
        format!("{target}: {whose} {what} has no effect: {why}; DELETE /v1/{path} ends it")
    });
    tell.collect()
}
