//! The public API of vipd: the generated protocol, and the types that the rest of the code uses in its place.
//!
//! - [`v1`]: generated from `proto/vip/v1`. It stops at the door: servers and clients convert at once.
//! - [`model`]: what the messages mean, as types whose values are valid.
//! - [`convert`]: between the two; fallible where a message comes in.

pub mod convert;
pub mod model;

pub use convert::FieldError;
pub use model::{
    Assigned, Consistency, Fence, Header, HolderCount, HolderState, LocalStatus, NodeRef, NodeRole, NodeStatus, Status,
    Timing, Vip, WatchEvent,
};

/// The generated messages, clients and servers of package `vip.v1`.
pub mod v1 {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::pedantic,
        clippy::nursery,
        reason = "generated"
    )]
    #![allow(clippy::too_many_lines, clippy::use_self, clippy::or_fun_call, clippy::unwrap_used, reason = "generated")]

    tonic::include_proto!("vip.v1");
}

/// The descriptors of package `vip.v1` and what it imports, encoded, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("vip.v1");

/// Metadata key under which an `UNAVAILABLE` names the API endpoint of the leader, as `host:port`.
pub const LEADER_METADATA: &str = "vipd-leader";

/// The largest message that either side accepts. A list of [`vip_core::cluster::MAX_VIPS`] VIPs takes less than 4 MiB.
pub const MAX_ANSWER_BYTES: usize = 16 << 20;

/// The largest request that a server accepts: a watch may name [`vip_core::cluster::MAX_VIPS`] VIPs of 63 bytes each.
pub const MAX_REQUEST_BYTES: usize = 1 << 20;
