//! How often something may be asked: rate limits in two stages (design, decision 6).
//!
//! A key (an address, a peer, a method, or several of them together) passes two structures of fixed size:
//!
//! ```text
//! key ─ bucket found ─────────────────────────── exact: GCRA
//!   └ none ─ sketch counts it ─ few ──────────── admitted: surely below the limit
//!               └ more ─ a bucket is free ────── exact from now on
//!                   └ none is ─ as often as the emptiest bucket holds calls ─ admitted, uncounted
//!                       └ then ─ that bucket makes room: exact from now on
//! ```
//!
//! Whatever is refused is refused for what its own key took: a neighbour in the sketch can bring a key an exact bucket
//! early, but never a refusal. A bucket that has drained is as good as none, so a place in [`buckets`] is needed only by a
//! key that has been busy a moment ago; an abuser's bucket is full, and so is never the one that makes room while there is
//! any other.
//!
//! There are seven places for each key that the table is made for. Keys do not spread evenly over its sets, so each one is cut
//! while those over their limit are up to three times as many as it is made for, and nearly all up to five times. Of more
//! than there are places as many are cut as there are, and the others pass: what tells so many abusers from honest keys
//! would take more memory.

mod buckets;
mod gcra;
mod key;
mod limit;
mod limiter;
mod shared;
mod window;

pub use gcra::{Exceeded, Quota};
pub use key::{Caller, Facts, KeyPart};
pub use limit::{Limit, Limits};
pub use limiter::RateLimiter;
pub use shared::{Answer, PROBE, SCRIPT, SharedRates};
pub use window::Sketch;
