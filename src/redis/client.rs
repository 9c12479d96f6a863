//! The connections to one Redis or to the nodes of a cluster, and a script that is run there.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use openssl::ssl::{SslConnector, SslMethod};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::cluster::{self, SLOTS};
use super::link::{self, Address, Link, command, leads_elsewhere};
use super::url::Target;
use super::wire::Reply;
use crate::clock::Clock;
use crate::observe::{RedisFallback, RedisMetrics};

/// Connections to a single Redis; a cluster has one to each node.
const CONNECTIONS: usize = 2;
/// Between two looks at a cluster's slots, and the least time between two that nodes ask for.
const LOOK_EVERY: Duration = Duration::from_secs(30);
const LOOK_LEAST: Duration = Duration::from_millis(200);

/// Longest wait for an answer that no request waits for.
const ASK_WAIT: Duration = Duration::from_secs(1);

/// Least time between two complaints in the log.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// What a client is made from.
pub struct Settings {
    /// Where Redis is.
    pub target: Target,
    /// PEM file of what its certificate chains to; needed with TLS.
    pub ca: Option<String>,
    /// Longest wait for an answer.
    pub timeout: Duration,
    /// The script, in Lua, with one key.
    pub script: &'static str,
    /// What the key begins with on which each connection begins with running the script.
    pub probe_key: String,
    /// The arguments for that. The script is to use all that it ever uses, and leave nothing.
    pub probe: [&'static str; 3],
}

/// The script was not run, or nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unavailable(pub RedisFallback);

/// Redis, as far as it can be reached.
pub struct Client {
    settings: Settings,
    connector: Option<SslConnector>,
    /// SHA-1 of the script, by which Redis knows it.
    sha: String,
    nodes: ArcSwap<Nodes>,
    look: Notify,
    clock: Clock,
    metrics: RedisMetrics,
    /// What was logged last.
    said: Mutex<Option<bool>>,
    /// When an error that Redis answered with was logged last.
    complained: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Nodes {
    links: Vec<Arc<Link>>,
    /// Of each node, its place in `links`; a cluster only.
    places: HashMap<(String, u16), usize>,
    /// Of each slot, the place of its node in `links`; a cluster only.
    slots: Vec<u16>,
}

impl Client {
    /// Longest wait for an answer.
    pub fn timeout(&self) -> Duration {
        self.settings.timeout
    }

    /// A client that is not connected yet: see [`Self::run`].
    ///
    /// # Errors
    /// The CA can't be read.
    pub fn new(settings: Settings, clock: Clock, metrics: RedisMetrics) -> Result<Arc<Self>, String> {
        let connector = settings.target.tls.then(|| {
            let mut builder = SslConnector::builder(SslMethod::tls_client()).map_err(|e| e.to_string())?;
            let ca = settings.ca.as_deref().ok_or("rediss:// needs redis.ca")?;
            builder.set_ca_file(ca).map_err(|e| format!("redis.ca: {ca}: {e}"))?;
            Ok::<_, String>(builder.build())
        });
        let sha = openssl::sha::sha1(settings.script.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
        Ok(Arc::new(Self {
            connector: connector.transpose()?,
            settings,
            sha,
            nodes: ArcSwap::default(),
            look: Notify::new(),
            clock,
            metrics,
            said: Mutex::new(None),
            complained: Mutex::new(None),
        }))
    }

    /// Connects and stays connected until the last reference is gone. What is read and written happens on the runtime that
    /// polls this.
    pub async fn run(self: Arc<Self>) {
        if !self.settings.target.cluster {
            let (host, port) = &self.settings.target.hosts[0];
            let links = (0..CONNECTIONS).map(|_| Arc::new(self.open(host, *port, None))).collect();
            self.nodes.store(Arc::new(Nodes { links, ..Nodes::default() }));
            // One may be up already.
            self.changed(Ok(()));
            return std::future::pending().await;
        }
        loop {
            let next = if self.look_at_cluster().await { LOOK_EVERY } else { LOOK_LEAST * 5 };
            // Nodes that say "moved" are heard, but not a thousand times a second.
            sleep(LOOK_LEAST).await;
            let _ = timeout(next, self.look.notified()).await;
        }
    }

    /// Runs the script on a key.
    ///
    /// # Errors
    /// There was no answer in time; it is counted why. The script may have run all the same.
    pub async fn eval(&self, key: &[u8], arguments: [&[u8]; 3]) -> Result<Reply, Unavailable> {
        let result = self.try_eval(key, arguments).await;
        if let Err(Unavailable(reason)) = result {
            self.metrics.fell_back(reason);
        }
        result
    }

    async fn try_eval(&self, key: &[u8], [a, b, c]: [&[u8]; 3]) -> Result<Reply, Unavailable> {
        let nodes = self.nodes.load();
        let link = nodes.link(key).cloned().ok_or(Unavailable(RedisFallback::Down))?;
        drop(nodes);
        let started = self.clock.now();
        let answered = link.send(command(&[b"EVALSHA", self.sha.as_bytes(), b"1", key, a, b, c]));
        let answered = answered.ok_or(Unavailable(RedisFallback::Down))?;
        let reply = match timeout(self.settings.timeout, answered).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(_)) => return Err(Unavailable(RedisFallback::Down)),
            Err(_) => return Err(Unavailable(RedisFallback::Timeout)),
        };
        self.metrics.answered(self.clock.now().saturating_duration_since(started));
        let Reply::Error(why) = &reply else { return Ok(reply) };
        if leads_elsewhere(why) || why.starts_with("CLUSTERDOWN") {
            self.look.notify_one();
        }
        self.complain(why);
        Err(Unavailable(RedisFallback::Error))
    }

    /// Logs an error of Redis', one of many.
    fn complain(&self, why: &str) {
        let now = self.clock.now();
        let mut last = self.complained.lock();
        if last.is_none_or(|last| now.saturating_duration_since(last) >= COMPLAIN_EVERY) {
            *last = Some(now);
            log::warn!("redis: {why}; this gateway counts the shared rate limit by itself");
        }
    }

    /// Sends another command, which is about this key. It is none of a request's, so it may take its time.
    ///
    /// # Errors
    /// Says why there is no answer, or what Redis has against it.
    pub async fn ask(&self, key: &[u8], words: &[&[u8]]) -> Result<Reply, String> {
        let link = self.nodes.load().link(key).cloned();
        let answered = link.and_then(|link| link.send(command(words))).ok_or("there is no connection to Redis")?;
        match timeout(ASK_WAIT, answered).await {
            Ok(Ok(Reply::Error(why))) => {
                if leads_elsewhere(&why) {
                    self.look.notify_one();
                }
                Err(why)
            }
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err("the connection to Redis broke".to_owned()),
            Err(_) => Err(format!("Redis has not answered within {ASK_WAIT:?}")),
        }
    }

    /// For an answer that is not the script's.
    pub fn not_understood(&self) -> Unavailable {
        self.metrics.fell_back(RedisFallback::Error);
        Unavailable(RedisFallback::Error)
    }

    /// `slot`: one that the node has, of a cluster.
    fn address(&self, host: &str, port: u16, slot: Option<u16>) -> Address {
        let target = &self.settings.target;
        let mut greeting = Vec::new();
        match (&target.user, &target.password) {
            (Some(user), Some(password)) => {
                greeting.push(command(&[b"AUTH", user.as_bytes(), password.expose().as_bytes()]));
            }
            (None, Some(password)) => greeting.push(command(&[b"AUTH", password.expose().as_bytes()])),
            (_, None) => {}
        }
        if target.database != 0 {
            greeting.push(command(&[b"SELECT", target.database.to_string().as_bytes()]));
        }
        greeting.push(command(&[b"SCRIPT", b"LOAD", self.settings.script.as_bytes()]));
        // A node that can't write, or does not let us, is of no use: better it is known before anybody asks.
        let key = cluster::key_in(slot, &self.settings.probe_key);
        let [a, b, c] = self.settings.probe.map(str::as_bytes);
        greeting.push(command(&[b"EVALSHA", self.sha.as_bytes(), b"1", key.as_bytes(), a, b, c]));
        Address {
            host: host.to_owned(),
            port,
            tls: self.connector.clone(),
            greeting,
            timeout: self.settings.timeout,
            clock: self.clock.clone(),
        }
    }

    fn open(self: &Arc<Self>, host: &str, port: u16, slot: Option<u16>) -> Link {
        // Weak: when a client is given up, its connections end.
        let client = Arc::downgrade(self);
        let node = format!("{host}:{port}");
        let was_up = Mutex::new(None);
        link::open(self.address(host, port, slot), move |now| {
            let Some(client) = client.upgrade() else { return };
            if client.settings.target.cluster && was_up.lock().replace(now.is_ok()) != Some(now.is_ok()) {
                match &now {
                    Ok(()) => log::info!("redis: {node}: connected"),
                    Err(why) => log::warn!("redis: {why}; until it is back, this gateway counts its keys by itself"),
                }
            }
            client.changed(now);
        })
    }

    /// Whether all that is shared is counted in Redis: a cluster's every node has keys that no other has.
    fn is_shared(&self) -> bool {
        let links = &self.nodes.load().links;
        if self.settings.target.cluster {
            !links.is_empty() && links.iter().all(|link| link.is_up())
        } else {
            links.iter().any(|link| link.is_up())
        }
    }

    /// Looks again whether limits are shared, and says so if that changed. `now`: what a link says of itself.
    fn changed(&self, now: Result<(), String>) {
        if now.is_err() {
            // The node may have gone for good.
            self.look.notify_one();
        }
        let mut said = self.said.lock();
        let shared = self.is_shared();
        if *said == Some(shared) || (said.is_none() && !shared && now.is_ok()) {
            return;
        }
        *said = Some(shared);
        self.metrics.set_up(shared);
        match now {
            // Of a cluster's nodes each has been told already.
            Ok(()) if !shared => {}
            Err(_) if !self.nodes.load().places.is_empty() => {}
            Ok(()) => log::info!("redis: connected; rate limits are shared"),
            Err(why) => log::warn!("redis: {why}; until it is back, this gateway counts shared rate limits by itself"),
        }
    }

    /// Learns which node has which slots. False: nobody could tell.
    async fn look_at_cluster(self: &Arc<Self>) -> bool {
        let before = self.nodes.load_full();
        let seeds = self.settings.target.hosts.iter().chain(before.places.keys());
        let mut why = None;
        for (host, port) in seeds {
            match link::ask(&self.address(host, *port, None), &[b"CLUSTER", b"SLOTS"]).await {
                Ok(reply) => {
                    let ranges = cluster::ranges(&reply);
                    if !ranges.is_empty() {
                        self.nodes.store(Arc::new(self.nodes_of(&before, ranges, host)));
                        self.changed(Ok(()));
                        return true;
                    }
                    why.get_or_insert_with(|| format!("{host}:{port}: CLUSTER SLOTS names no node"));
                }
                Err(e) => {
                    why.get_or_insert_with(|| format!("{host}:{port}: {e}"));
                }
            }
        }
        let said = self.said.lock().is_some();
        if !said {
            let why = why.unwrap_or_else(|| "none is known".to_owned());
            self.changed(Err(format!("no node of the cluster tells its slots: {why}")));
        }
        false
    }

    /// Links to the nodes of these slots: those that there are, and new ones.
    fn nodes_of(self: &Arc<Self>, before: &Nodes, ranges: Vec<cluster::Range>, asked: &str) -> Nodes {
        let mut nodes = Nodes { slots: vec![u16::MAX; usize::from(SLOTS)], ..Nodes::default() };
        for range in ranges {
            let host = if range.host.is_empty() { asked.to_owned() } else { range.host };
            let node = (host, range.port);
            let place = match nodes.places.get(&node) {
                Some(place) => *place,
                None => {
                    let known = before.places.get(&node).map(|place| before.links[*place].clone());
                    nodes.links.push(known.unwrap_or_else(|| Arc::new(self.open(&node.0, node.1, Some(range.first)))));
                    nodes.places.insert(node, nodes.links.len() - 1);
                    nodes.links.len() - 1
                }
            };
            let place = u16::try_from(place).unwrap_or(u16::MAX);
            nodes.slots[usize::from(range.first)..=usize::from(range.last)].fill(place);
        }
        nodes
    }
}

impl Nodes {
    fn link(&self, key: &[u8]) -> Option<&Arc<Link>> {
        if self.slots.is_empty() {
            // A key's last bytes are a hash; one key stays with one link unless that is down.
            let first = key.last().map_or(0, |b| usize::from(*b));
            let mut all = (0..self.links.len()).map(|i| &self.links[(first + i) % self.links.len()]);
            return all.find(|link| link.is_up());
        }
        self.links.get(usize::from(self.slots[usize::from(cluster::slot(key))]))
    }
}
