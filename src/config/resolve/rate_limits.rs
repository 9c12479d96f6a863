//! `rate_limits` of routes and listeners.

use super::Resolver;
use crate::config::file::RateLimit;
use crate::policy::rate_limit::KeyPart;

/// Ranges, keys that say the same twice, and keys that no request has. `calls`: whether JSON-RPC may come.
pub(super) fn check(r: &mut Resolver<'_>, at: &str, limits: &[RateLimit], calls: bool) {
    for (i, limit) in limits.iter().enumerate() {
        let at = format!("{at}[{i}]");
        let per = format!("{at}.per");
        if let Some(burst) = &limit.burst {
            r.range(&format!("{at}.burst"), burst, &(1..=1_000_000));
        }
        let parts = &limit.per.0;
        if parts.is_empty() {
            r.error(&per, "the list is empty; write what is counted by, such as address, or route for all together");
        }
        if !r.has_guess(&per) {
            r.once(&per, &parts.iter().map(ToString::to_string).collect::<Vec<_>>());
        }
        if !calls && parts.contains(&KeyPart::Method) {
            r.error(
                &per,
                "method is that of JSON-RPC, which this route does not speak; write json_rpc: {}, or leave it out",
            );
        }
    }
}
