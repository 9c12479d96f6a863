//! Another set of nodes in the place of the one that there is, while requests run.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::node::{Health, Joins, Node, NodeId, State};
use super::settings::{NodeSettings, Settings, SettingsError};
use super::view::{NodeSet, View};
use super::{Upstream, file};
use crate::observe::Metrics;

/// How long nodes that are no longer named go on while none of the new ones has been found well.
const HANDOVER_MAX: Duration = Duration::from_secs(30);

/// What it takes to make nodes while the upstream is in use.
pub(super) struct Following {
    /// Without nodes.
    settings: Settings,
    metrics: Arc<Metrics>,
    /// Told when the nodes are others.
    pub(super) changed: Notify,
    /// Nodes that are no longer named are kept.
    hands_over: AtomicBool,
    /// Since when they are. Held while nodes are exchanged.
    since: Mutex<Option<Instant>>,
}

impl Following {
    pub(super) fn new(settings: Settings, metrics: Arc<Metrics>) -> Self {
        let settings = Settings { nodes: Vec::new(), ..settings };
        let hands_over = AtomicBool::new(false);
        Self { settings, metrics, changed: Notify::new(), hands_over, since: Mutex::default() }
    }
}

/// What the nodes were made from, as far as they are of this kind.
pub(super) fn settings_of(nodes: &[Arc<Node>], tls: bool) -> Vec<NodeSettings> {
    nodes.iter().map(|node| node.settings()).filter(|node| node.tls == tls).collect()
}

/// Makes nodes; those that have been there `before` keep their state: by URL and address, and one that only has another name
/// now by its address.
pub(super) fn nodes(
    wanted: &[NodeSettings],
    before: &[Arc<Node>],
    settings: &Settings,
    metrics: &Arc<Metrics>,
    joins: Joins,
) -> Result<Vec<Arc<Node>>, SettingsError> {
    settings.check_nodes(wanted)?;
    let name = settings.name.as_str();
    let known: HashMap<(SocketAddr, &str), &Arc<Node>> = before.iter().map(|n| (key(n), n)).collect();
    let find = |node: &NodeSettings| known.get(&(node.address, node.url.as_str())).copied();
    let named: HashSet<NodeId> = wanted.iter().filter_map(find).map(|n| n.id()).collect();
    let others = before.iter().filter(|n| !named.contains(&n.id()));
    let mut renamed: HashMap<SocketAddr, &Arc<Node>> = others.map(|n| (n.address, n)).collect();
    let nodes = (0u16..).zip(wanted).map(|(index, node)| {
        let kept = find(node).or_else(|| renamed.remove(&node.address));
        let state = kept.map_or_else(|| State::new(joins), |n| n.state.clone());
        Node::new(index, node, settings, metrics.upstream_node(name, &node.url), state).map(Arc::new)
    });
    nodes.collect()
}

fn key(node: &Node) -> (SocketAddr, &str) {
    (node.address, &node.url)
}

impl Upstream {
    /// Takes these nodes into use, from the next pick on. Those that are no longer among them drain. While none of them is
    /// known to be well, those that have been there and are well stay beside them, for [`HANDOVER_MAX`] at most.
    /// `elsewhere`: nodes of other configurations, whose state counts too.
    pub(super) fn follow(
        &self,
        wanted: &[NodeSettings],
        elsewhere: &[Arc<Node>],
        now: Instant,
    ) -> Result<(), SettingsError> {
        let Following { settings, metrics, changed, hands_over, since } = &self.following;
        let mut since = since.lock();
        let before = self.view.load_full();
        let named: HashSet<(SocketAddr, &str)> = wanted.iter().map(|n| (n.address, n.url.as_str())).collect();
        let (stay, go): (Vec<_>, Vec<_>) = before.nodes.iter().partition(|node| named.contains(&key(node)));
        let well = |node: &Arc<Node>| node.health() == Health::Up && node.is_usable();
        let late = since.is_some_and(|since| now.saturating_duration_since(since) >= HANDOVER_MAX);
        let keeps =
            settings.health_check.enabled && !late && !stay.iter().any(|n| well(n)) && go.iter().any(|n| well(n));
        let mut all = wanted.to_vec();
        if keeps {
            since.get_or_insert(now);
            all.extend(
                go.iter()
                    .filter(|n| well(n))
                    .map(|n| n.settings())
                    .take(super::settings::NODES_MAX.saturating_sub(all.len())),
            );
        } else {
            *since = None;
        }
        hands_over.store(keeps, Ordering::Relaxed);
        if all.len() == before.nodes.len()
            && all.iter().zip(before.nodes.iter()).all(|(new, old)| *new == old.settings())
        {
            return Ok(());
        }
        let joins = match (settings.health_check.enabled, before.nodes.is_empty()) {
            (false, _) => Joins::AtOnce,
            (true, true) => Joins::Probed,
            (true, false) => Joins::Slowly,
        };
        let nodes = nodes(&all, &[elsewhere, &before.nodes].concat(), settings, metrics, joins)?;
        let set = NodeSet::new(nodes, settings.balance == file::Balance::ConsistentHash);
        self.view.store(Arc::new(View::new(Arc::new(set), self.panic_threshold, self.slow_start)));
        // What a probe or a request has found out of a node meanwhile.
        self.refresh();
        let after = self.nodes();
        let ids: HashSet<_> = after.iter().map(|n| n.id()).collect();
        before.nodes.iter().filter(|n| !ids.contains(&n.id())).for_each(|n| n.retire());
        self.tell_mode(before.mode);
        changed.notify_one();
        Ok(())
    }

    /// To be called now and then: whether nodes that are kept although they are no longer named may go by now.
    pub(super) fn settle(&self, now: Instant) {
        if let Some(source) = self.source.as_ref().filter(|_| self.following.hands_over.load(Ordering::Relaxed)) {
            source.again(self, now);
        }
    }

    /// To be called when `next`, the upstream of this name in the configuration that is in use now, has taken its place, or
    /// none has: connections that rest at nodes which it has not are closed.
    pub fn succeeded_by(&self, next: Option<&Upstream>) {
        // Its nodes stay as they are meanwhile, or one that it gets now would be taken for gone.
        let _since = next.map(|next| next.following.since.lock());
        let stay: HashSet<NodeId> = next.iter().flat_map(|next| next.nodes().to_vec()).map(|node| node.id()).collect();
        self.nodes().iter().filter(|node| !stay.contains(&node.id())).for_each(|node| node.retire());
    }

    /// Waits until the nodes are others.
    pub(super) async fn nodes_changed(&self) {
        self.following.changed.notified().await;
    }
}

#[cfg(test)]
mod tests;
