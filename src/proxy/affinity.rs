//! What a request's node is looked up by, where its upstream balances by `consistent_hash`.

use std::net::IpAddr;

use pingora::proxy::Session;

use super::context::Context;
use crate::config::file::HashKey;
use crate::json_rpc::{Call, Text, a2a_ids};
use crate::policy::rate_limit::Caller;
use crate::upstream::hash_key;

/// The ids of a body's first call that has some, hashed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ids {
    context: Option<u64>,
    task: Option<u64>,
}

impl Ids {
    /// Reads a call's params, unless an earlier call had ids.
    pub fn learn(&mut self, call: &Call<'_>) {
        if self.context.is_none() && self.task.is_none() {
            let found = a2a_ids(call);
            let hashed = |text: Text<'_>| hash_key(text.decode().as_bytes());
            *self = Self { context: found.context.map(hashed), task: found.task.map(hashed) };
        }
    }
}

/// Whether any key stands in the params.
pub fn reads_params(keys: &[HashKey]) -> bool {
    keys.iter().any(|key| matches!(key, HashKey::ContextId | HashKey::TaskId))
}

/// The first of the upstream's keys that the request has.
pub fn key(keys: &[HashKey], session: &Session, ctx: &Context) -> Option<u64> {
    keys.iter().find_map(|key| match key {
        HashKey::ContextId => ctx.upstream.ids.context,
        HashKey::TaskId => ctx.upstream.ids.task,
        HashKey::Header(name) => session.req_header().headers.get(name).map(|value| hash_key(value.as_bytes())),
        HashKey::Peer => {
            let begun = ctx.begun.as_ref()?;
            Some(
                match Caller::of(ctx.peer.as_ref().map(|peer| peer.name.as_str()), begun.connection.identity.as_deref())
                {
                    Caller::Peer(name) => hash_key(name.as_bytes()),
                    Caller::Stranger(id) => hash_key(id),
                    Caller::Nobody => match ctx.client.as_ref().map_or_else(|| begun.remote_ip(), |c| c.address) {
                        IpAddr::V4(v4) => hash_key(&v4.octets()),
                        IpAddr::V6(v6) => hash_key(&v6.octets()),
                    },
                },
            )
        }
    })
}
