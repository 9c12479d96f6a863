//! What operators have taken out of service for a while: nodes, routes, the whole gateway. Orders are of this gateway or of
//! the whole fleet; both hold beside each other, so that neither is lost when the other ends.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest that is told of an order that is not understood.
const WHY_CHARS_MAX: usize = 200;
/// Most orders of one scope: a client of the admin API with a mistake in it must not fill the memory.
pub const ORDERS_MAX: usize = 10_000;

/// What is out of service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// Every route.
    Gateway,
    /// The route of this name.
    Route(String),
    /// A node that gets no new requests.
    Node {
        /// Its upstream's name.
        upstream: String,
        /// Its URL as configured, or its address.
        node: String,
    },
}

impl Target {
    /// The text that it is kept under: `gateway`, `route/NAME`, `node/UPSTREAM/NODE`.
    pub fn key(&self) -> String {
        match self {
            Target::Gateway => "gateway".to_owned(),
            Target::Route(route) => format!("route/{route}"),
            Target::Node { upstream, node } => format!("node/{upstream}/{node}"),
        }
    }

    /// Reads [`Self::key`]. None: a later version wrote it, or somebody else did; it must not make a line of the log's own.
    pub fn parse(key: &str) -> Option<Self> {
        if key.contains(char::is_control) {
            return None;
        }
        match key.split_once('/') {
            None => (key == "gateway").then_some(Target::Gateway),
            Some(("route", route)) => Some(Target::Route(route.to_owned())),
            Some(("node", rest)) => {
                let (upstream, node) = rest.split_once('/')?;
                Some(Target::Node { upstream: upstream.to_owned(), node: node.to_owned() })
            }
            Some(_) => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Gateway => f.write_str("the gateway"),
            Target::Route(route) => write!(f, "route {route}"),
            Target::Node { upstream, node } => write!(f, "upstream {upstream}: node {node}"),
        }
    }
}

/// Since when something is out of service, and what its clients are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Seconds since 1970.
    pub since: i64,
    /// `Retry-After`, seconds; none: as configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u32>,
    /// Where the nodes were that a drain names: they stay out if a configuration gives them another URL. Versions before
    /// have written none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<SocketAddr>,
    /// Whether it is kept across a restart. The fleet's all are, by Redis.
    #[serde(skip)]
    pub kept: bool,
}

/// Orders of one scope.
pub type Scope = BTreeMap<Target, Order>;

/// Orders as they were read back. One that is not understood keeps no other back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// Those that are understood.
    pub orders: Scope,
    /// Which ones are not, and why.
    pub unreadable: Vec<String>,
}

/// All that is out of service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Orders {
    /// This gateway's own.
    pub own: Scope,
    /// The fleet's.
    pub fleet: Scope,
}

impl Orders {
    /// What keeps a route out of service: an order of its own before one of the whole gateway.
    pub fn of_route(&self, route: &str) -> Option<&Order> {
        let route = Target::Route(route.to_owned());
        let of = |target| self.own.get(target).or_else(|| self.fleet.get(target));
        of(&route).or_else(|| of(&Target::Gateway))
    }

    /// Whether the whole gateway is out of service.
    pub fn of_gateway(&self) -> bool {
        self.of(&Target::Gateway)
    }

    /// Whether this is out of service by itself.
    pub fn of(&self, target: &Target) -> bool {
        self.own.contains_key(target) || self.fleet.contains_key(target)
    }

    /// Whether some route is out of service.
    pub fn stop_requests(&self) -> bool {
        self.all().any(|(target, ..)| !matches!(target, Target::Node { .. }))
    }

    /// The nodes of an upstream that are drained, as they were named, and where they were.
    pub fn drained<'o>(&'o self, upstream: &'o str) -> impl Iterator<Item = (&'o str, &'o [SocketAddr])> {
        self.all().filter_map(move |(target, order, _)| match target {
            Target::Node { upstream: of, node } if of == upstream => Some((node.as_str(), &*order.addresses)),
            _ => None,
        })
    }

    /// Each order, and whether it is the fleet's.
    pub fn all(&self) -> impl Iterator<Item = (&Target, &Order, bool)> {
        let own = self.own.iter().map(|(target, order)| (target, order, false));
        own.chain(self.fleet.iter().map(|(target, order)| (target, order, true)))
    }

    /// A line with every order, kept or not, for the process that takes over.
    pub fn to_line(&self) -> String {
        let each = self.all().map(|(target, order, fleet)| (target.key(), order, fleet, order.kept));
        serde_json::to_string(&each.collect::<Vec<_>>()).unwrap_or_default()
    }

    /// Reads [`Self::to_line`].
    ///
    /// # Errors
    /// It is something else.
    pub fn from_line(line: &str) -> Result<Self, String> {
        let each: Vec<(String, Order, bool, bool)> = serde_json::from_str(line).map_err(|e| e.to_string())?;
        let mut orders = Self::default();
        for (key, order, fleet, kept) in each {
            // One that this version does not know it could not follow either.
            if let Some(target) = Target::parse(&key) {
                let scope = if fleet { &mut orders.fleet } else { &mut orders.own };
                scope.insert(target, Order { kept, ..order });
            }
        }
        Ok(orders)
    }
}

/// The form in which orders are kept in a file: those that were asked to be.
pub fn to_json(own: &Scope) -> String {
    let kept: BTreeMap<String, &Order> = own.iter().filter(|(_, o)| o.kept).map(|(t, o)| (t.key(), o)).collect();
    serde_json::to_string(&kept).unwrap_or_default()
}

/// Reads [`to_json`].
///
/// # Errors
/// It is something else.
pub fn from_json(text: &[u8]) -> Result<Known, String> {
    let kept: BTreeMap<String, Value> = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    let mut known = Known::default();
    for (key, value) in kept {
        match (Target::parse(&key), serde_json::from_value::<Order>(value)) {
            (Some(target), Ok(order)) => _ = known.orders.insert(target, Order { kept: true, ..order }),
            (None, _) => known.unreadable.push(shortened(&format!("{key:?} is nothing that this version knows"))),
            (Some(_), Err(e)) => known.unreadable.push(shortened(&format!("{key:?}: {e}"))),
        }
    }
    Ok(known)
}

fn shortened(why: &str) -> String {
    why.chars().take(WHY_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(retry_after: Option<u32>, kept: bool) -> Order {
        Order { since: 7, retry_after, addresses: Vec::new(), kept }
    }

    fn node(upstream: &str, node: &str) -> Target {
        Target::Node { upstream: upstream.into(), node: node.into() }
    }

    #[test]
    fn a_target_is_read_as_it_was_written() {
        let targets = [Target::Gateway, Target::Route("a2a".into()), node("hive", "http://[::1]:3000")];
        for target in targets {
            assert_eq!(Target::parse(&target.key()), Some(target));
        }
        for unknown in ["", "gateways", "node/x", "peer/paris", "route/a\nforged"] {
            assert_eq!(Target::parse(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn only_what_was_asked_to_be_kept_is_kept() {
        let own = Scope::from([
            (Target::Gateway, order(None, false)),
            (Target::Route("a2a".into()), order(Some(30), true)),
            (node("hive", "http://a:1"), order(None, true)),
        ]);
        let back = from_json(to_json(&own).as_bytes()).unwrap();
        let kept: Scope = own.into_iter().filter(|(_, order)| order.kept).collect();
        assert_eq!(back, Known { orders: kept, unreadable: Vec::new() });
        assert!(from_json(b"[]").is_err());
    }

    #[test]
    fn an_order_that_is_not_understood_keeps_no_other_back() {
        let text = br#"{"peer/paris":{"since":1},"route/a2a":{"since":"x"},"gateway":{"since":2}}"#;
        let known = from_json(text).unwrap();
        assert_eq!(known.orders.keys().collect::<Vec<_>>(), [&Target::Gateway]);
        let [peer, route] = &known.unreadable[..] else { panic!("{known:?}") };
        assert_eq!(peer, "\"peer/paris\" is nothing that this version knows");
        assert!(route.starts_with("\"route/a2a\": invalid type"), "{route}");
    }

    #[test]
    fn a_drain_knows_where_its_node_was_and_one_of_an_older_version_is_read_without() {
        let addresses = vec!["127.0.0.1:1".parse().unwrap(), "[::1]:1".parse().unwrap()];
        let own = Scope::from([(node("hive", "http://a:1"), Order { addresses, ..order(None, true) })]);
        assert_eq!(from_json(to_json(&own).as_bytes()).map(|known| known.orders), Ok(own.clone()));
        let orders = Orders { own, fleet: Scope::new() };
        assert_eq!(Orders::from_line(&orders.to_line()), Ok(orders));
        let older = from_json(br#"{"node/hive/http://a:1":{"since":7}}"#).unwrap();
        assert_eq!(older.orders, Scope::from([(node("hive", "http://a:1"), order(None, true))]));
    }

    #[test]
    fn a_process_that_takes_over_knows_every_order() {
        let own =
            Scope::from([(Target::Gateway, order(Some(5), false)), (Target::Route("a2a".into()), order(None, true))]);
        let orders = Orders { own, fleet: Scope::from([(node("hive", "http://[::1]:1"), order(None, false))]) };
        let line = orders.to_line();
        assert_eq!((Orders::from_line(&line), line.contains('\n')), (Ok(orders), false));
        assert!(Orders::from_line("").is_err());
    }

    #[test]
    fn a_route_s_own_order_comes_before_the_gateway_s_and_either_scope_counts() {
        let mut orders = Orders::default();
        assert!(orders.of_route("a2a").is_none() && !orders.stop_requests());
        orders.own.insert(node("hive", "http://a:1"), order(None, false));
        assert!(!orders.stop_requests(), "a drained node stops no request");
        orders.fleet.insert(Target::Gateway, order(Some(5), false));
        assert_eq!(orders.of_route("a2a").unwrap().retry_after, Some(5));
        orders.own.insert(Target::Route("a2a".into()), order(Some(6), false));
        assert_eq!(orders.of_route("a2a").unwrap().retry_after, Some(6));
        assert_eq!(orders.of_route("other").unwrap().retry_after, Some(5));
        assert!(orders.stop_requests() && orders.of_gateway());
        orders.fleet.insert(node("hive", "http://b:1"), order(None, false));
        let drained: Vec<_> = orders.drained("hive").map(|(node, _)| node).collect();
        assert_eq!(drained, ["http://a:1", "http://b:1"]);
        assert_eq!(orders.drained("other").count(), 0);
    }
}
