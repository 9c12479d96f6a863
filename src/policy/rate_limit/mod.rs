//! How often something may be asked: rate limits in two stages (design, decision 6).
//!
//! A key (an address, a peer, a method, or several of them together) passes two structures of fixed size:
//!
//! ```text
//! key ─ bucket found ─────────────────────────── exact: GCRA
//!   └ none ─ sketch counts it ─ few ──────────── admitted: surely below the limit
//!               └ more ─ a bucket is free ────── exact from now on
//!                   └ none is ─ below the limit ─ admitted: the sketch never counts too little
//!                       └ above ─ the bucket that is nearest to empty makes room, and the sketch counts what it owed
//! ```
//!
//! A bucket that has drained is as good as none, so a place in [`buckets`] is needed only by a key that has been busy a
//! moment ago; an abuser's bucket is full, and so is never the one that makes room. A neighbour in the sketch can bring
//! a key an exact bucket early, but never a refusal while the table has room: those come from exact buckets alone.
//!
//! With more busy keys than places, keys push one another out. The sketch remembers what they owed, so a key that comes
//! again begins with what it surely owes and not with a new burst: in the long run it has at most twice its rate, for the
//! sketch looks back over at least the time in which a burst drains. One that has kept to its quota owes nothing there.

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
