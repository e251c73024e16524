//! Client of vipd's API.
//!
//! A [`Client`] knows some nodes of one cluster, finds one that answers, and prefers the leader once it knows it. Every call
//! ends within [`Options::timeout`]; until then what may be repeated is repeated, at other nodes too. Every call may be:
//! declaring and deleting are idempotent. A [watch](Client::watch) goes on across the death of nodes and changes of leader.

mod client;
mod endpoint;
mod error;
mod pool;
mod watch;

#[cfg(test)]
mod tests;

pub use client::{Changed, Client, Options};
pub use endpoint::{BadEndpoint, Endpoint};
pub use error::{Error, Refusal};
pub use vip_api::model::{
    Assigned, Consistency, Fence, Header, HolderCount, HolderState, LocalStatus, NodeRef, NodeRole, NodeStatus, Status,
    Timing, UnknownConsistency, Vip, WatchEvent,
};
pub use vip_core::{Epoch, InterfaceSelector, NodeId, Placement, VipName, VipSpec};
pub use watch::{Update, WatchOptions};
