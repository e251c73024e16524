//! Agreement for vipd: openraft with a durable store, a peer network, and the lease gate around both.
//!
//! - [`types`]: what openraft is instantiated with.
//! - [`store`]: log, vote, membership and snapshots, durable before the answer.
//! - [`lease`]: the gate of `vip-core` in the running process, and the thread that renews the kernel's deadline.
//! - [`node`]: a running node and requests to the group.
//!
//! No effect on this host happens here: the deadline goes to a [`lease::LeaseSink`], everything else is read from the
//! applied state by whoever acts on it.

mod convert;
mod election;
mod forming;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod lease;
mod network;
pub mod node;
mod peer;
mod server;
mod socket;
pub mod store;
pub mod types;

pub use election::ElectionTiming;
pub use forming::Formation;
pub use lease::{Clock, Lease, LeaseSink, PeerState};
pub use node::{NodeConfig, PeerStatus, RaftHandle, RaftNode, RaftStatus, RequestError, StartError};
pub use peer::PROTOCOL;
pub use socket::repeat_within;
pub use store::Applied;
