//! Block `spiffe`, and what listeners and upstreams take from the agent that it names.

use serde::Deserialize;

/// `spiffe`
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spiffe {
    /// The agent's SPIFFE Workload API, `unix:///run/spire/agent.sock`. Default: the environment's
    /// `SPIFFE_ENDPOINT_SOCKET`. A change needs a restart.
    pub workload_api: Option<String>,
}

/// `listeners[].tls.spiffe`: certificate and trust from the agent.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerSpiffe {
    /// The SPIFFE ID of the SVID to show, if the agent issues several. Default: its first.
    pub id: Option<String>,
    /// The agent's hint of the SVID to show; with `id`, both must fit.
    pub hint: Option<String>,
    /// Whose clients come in; each must chain to the bundle of its own trust domain. Default: the SVID's own alone.
    pub trust_domains: Option<Vec<String>>,
}

/// `upstreams[].tls.spiffe`: client certificate and trust from the agent. Nodes are verified by the bundle of the trust
/// domain that `spiffe_id` names.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamSpiffe {
    /// As [`ListenerSpiffe::id`].
    pub id: Option<String>,
    /// As [`ListenerSpiffe::hint`].
    pub hint: Option<String>,
}
