//! Nodes that operators have taken out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use log::info;

use super::Upstream;
use super::node::Node;

/// Nodes that are out, as an operator has named them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drained {
    /// By URL as configured, or by address.
    pub name: Box<str>,
    /// Where the nodes of that name were.
    pub addresses: Box<[SocketAddr]>,
}

impl Drained {
    /// Those of this name; if there are none any more, those that are where they were: with its URL alone a node does not
    /// come back into service. The name comes first, for another node may have got the address.
    fn among<'n>(&'n self, nodes: &'n [Arc<Node>]) -> impl Iterator<Item = &'n Arc<Node>> {
        let is_known = nodes.iter().any(|node| node.is_named(&self.name));
        nodes.iter().filter(move |node| match is_known {
            true => node.is_named(&self.name),
            false => self.addresses.contains(&node.address),
        })
    }
}

impl Upstream {
    /// Drains these nodes, and returns all others. A node that returns gets its share back step by step, as one does that
    /// was down.
    pub fn drain_only(&self, drained: Vec<Drained>, now: Instant) {
        let nodes = self.nodes();
        let out: Vec<_> = drained.iter().flat_map(|drained| drained.among(&nodes)).map(|node| node.id()).collect();
        *self.drained.lock() = drained.into();
        for node in nodes.iter() {
            let drained = out.contains(&node.id());
            if !node.set_drained(drained) {
                continue;
            }
            let (name, url) = (&self.name, node.url());
            if drained {
                info!("upstream {name}: node {url} is drained: it gets no new requests");
            } else {
                node.state.ejection.recovered(now);
                info!("upstream {name}: node {url} is returned");
            }
        }
        self.refresh();
    }

    /// The nodes that are meant.
    pub fn meant(&self, drained: &Drained) -> Vec<Arc<Node>> {
        drained.among(&self.nodes()).cloned().collect()
    }

    /// Drains new nodes that are meant.
    pub(super) fn drain_again(&self) {
        let drained = self.drained.lock();
        if !drained.is_empty() {
            let nodes = self.nodes();
            drained.iter().flat_map(|drained| drained.among(&nodes)).for_each(|node| _ = node.set_drained(true));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fakes::{build, node, settings};
    use super::*;

    #[test]
    fn a_node_is_meant_by_its_name_and_without_one_of_that_name_by_where_it_was() {
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let upstream = build(settings(vec![node(at(1), 1), node(at(2), 1)]));
        let (first, second) = (upstream.nodes()[0].url().clone(), upstream.nodes()[1].url().clone());
        for (name, addresses, meant) in [
            (&*first, &[][..], Some(&first)),
            // Another node has got the address of this one.
            (&first, &[at(2)], Some(&first)),
            ("http://gone:1", &[at(2)], Some(&second)),
            ("127.0.0.1:2", &[], Some(&second)),
            ("http://gone:1", &[], None),
            ("http://gone:1", &[at(3)], None),
        ] {
            let drained = Drained { name: name.into(), addresses: addresses.into() };
            let found = upstream.meant(&drained);
            assert_eq!(found.iter().map(|node| node.url()).collect::<Vec<_>>(), Vec::from_iter(meant), "{drained:?}");
            upstream.drain_only(vec![drained], Instant::now());
            let out: Vec<_> = upstream.nodes().iter().filter(|node| node.is_drained()).map(|n| n.id()).collect();
            assert_eq!(out, found.iter().map(|node| node.id()).collect::<Vec<_>>());
        }
    }
}
