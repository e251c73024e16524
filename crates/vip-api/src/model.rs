//! What the messages of the API mean. `Serialize` gives the JSON that `vipctl --json` prints; units stand in its keys.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Serialize, Serializer};
use thiserror::Error;
use vip_core::{Epoch, NodeId, VipName, VipSpec};

/// How new the state that a read sees must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// At least as new as every change acknowledged before; asks a quorum.
    #[default]
    Linearizable,
    /// The same, but the leader trusts its lease.
    Lease,
    /// What the answering node has, however old.
    Local,
}

/// Not a consistency.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no consistency: use linearizable, lease or local")]
pub struct UnknownConsistency(String);

impl FromStr for Consistency {
    type Err = UnknownConsistency;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "linearizable" => Ok(Self::Linearizable),
            "lease" => Ok(Self::Lease),
            "local" => Ok(Self::Local),
            other => Err(UnknownConsistency(other.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for Consistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Linearizable => "linearizable",
            Self::Lease => "lease",
            Self::Local => "local",
        })
    }
}

/// What the answering node itself does with a VIP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HolderState {
    /// Owner without a lease to act on yet, or standing by.
    Standby,
    /// Being put on the interface and announced.
    Acquiring,
    /// On the interface, announced, fence open.
    Active,
    /// Fence shut, address being removed.
    Releasing,
    /// Fence shut because the lease ran out or something failed.
    Fenced,
    /// The answering node is not the owner.
    #[default]
    Unknown,
}

impl fmt::Display for HolderState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Standby => "standby",
            Self::Acquiring => "acquiring",
            Self::Active => "active",
            Self::Releasing => "releasing",
            Self::Fenced => "fenced",
            Self::Unknown => "unknown",
        })
    }
}

/// What a node is in the Raft group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeRole {
    /// Votes, and may own VIPs.
    Voter,
    /// Receives the log, does not vote.
    Learner,
}

impl fmt::Display for NodeRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Voter => "voter",
            Self::Learner => "learner",
        })
    }
}

/// A node, named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeRef {
    /// Its id.
    pub id: NodeId,
    /// Its name; empty where the answering node does not know it.
    pub name: String,
}

impl fmt::Display for NodeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.is_empty() { write!(f, "node {}", self.id) } else { f.pad(&self.name) }
    }
}

/// Who answers, and from which state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Header {
    /// Name of the cluster.
    pub cluster: String,
    /// The answering node.
    pub node_id: NodeId,
    /// Its Raft term.
    pub term: u64,
    /// The leader that it knows of.
    pub leader_id: Option<NodeId>,
    /// Revision of the state that was read.
    pub revision: u64,
    /// The consistency that the answer has.
    pub consistency: Consistency,
}

/// Who owns a VIP, as agreed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Assigned {
    /// The owner.
    pub owner: NodeRef,
    /// The fencing token.
    pub epoch: Epoch,
    /// Raft term of the leader that decided it.
    pub term: u64,
}

/// A VIP as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Vip {
    /// As declared.
    #[serde(flatten)]
    pub spec: VipSpec,
    /// The newest assignment.
    pub assignment: Option<Assigned>,
    /// Revision that changed it last.
    pub revision: u64,
    /// Revision that declared it.
    pub declared_revision: u64,
    /// What is left of the lease, where the answering node is the owner.
    #[serde(rename = "lease_remaining_ms", serialize_with = "optional_millis")]
    pub lease_remaining: Option<Duration>,
    /// What the answering node does with it.
    pub holder_state: HolderState,
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    /// Id and name.
    #[serde(flatten)]
    pub node: NodeRef,
    /// Where the other nodes reach it, host:port.
    pub peer_address: String,
    /// Voter or learner.
    pub role: NodeRole,
    /// Whether it answers the leader; known on the leader only.
    pub reachable: Option<bool>,
    /// Time since it acknowledged the leader last; known on the leader only.
    #[serde(rename = "last_acknowledged_age_ms", serialize_with = "optional_millis")]
    pub last_acknowledged_age: Option<Duration>,
    /// The id of its store; none where it has not registered yet.
    pub instance: Option<String>,
    /// How many VIPs it owns, as agreed.
    pub vips_owned: u32,
}

/// The timing that all nodes share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Timing {
    /// Time between two heartbeats.
    #[serde(rename = "heartbeat_ms", serialize_with = "millis")]
    pub heartbeat: Duration,
    /// How long a lease lasts.
    #[serde(rename = "lease_ms", serialize_with = "millis")]
    pub lease: Duration,
    /// How much earlier a holder stops.
    #[serde(rename = "margin_ms", serialize_with = "millis")]
    pub margin: Duration,
    /// By how much a clock's rate may be wrong, in parts per million.
    pub clock_drift_ppm: u32,
}

/// The kernel fence of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Fence {
    /// Which fence it is.
    pub kind: String,
    /// How it does, in words.
    pub state: String,
    /// False where VIPs are not fenced as they should be.
    pub healthy: bool,
}

/// How many VIPs are in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HolderCount {
    /// The state.
    pub state: HolderState,
    /// How many VIPs are in it.
    pub vips: u32,
}

/// What the answering node knows of itself only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LocalStatus {
    /// Id and name.
    #[serde(flatten)]
    pub node: NodeRef,
    /// Version of vipd.
    pub version: String,
    /// Time since the daemon started.
    #[serde(rename = "uptime_ms", serialize_with = "millis")]
    pub uptime: Duration,
    /// What is left of its own lease.
    #[serde(rename = "lease_remaining_ms", serialize_with = "optional_millis")]
    pub lease_remaining: Option<Duration>,
    /// The kernel fence.
    pub fence: Fence,
    /// What an operator should know.
    pub warnings: Vec<String>,
    /// VIPs by what this node does with them.
    pub holders: Vec<HolderCount>,
}

/// The cluster as the answering node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Who answered.
    #[serde(flatten)]
    pub header: Header,
    /// The leader.
    pub leader: Option<NodeRef>,
    /// Last log entry known to be committed.
    pub commit_index: u64,
    /// Last log entry applied.
    pub applied_index: u64,
    /// The members in order of their ids.
    pub nodes: Vec<NodeStatus>,
    /// The timing in force.
    pub timing: Timing,
    /// The answering node itself.
    pub local: LocalStatus,
    /// How many VIPs are declared.
    pub vips_declared: u32,
    /// How many of them have an owner.
    pub vips_assigned: u32,
}

/// One thing that a watch tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum WatchEvent {
    /// A full snapshot begins: what was known before counts no more.
    SnapshotStart {
        /// Changes since the last synced state were lost.
        reset: bool,
    },
    /// A VIP is new or has changed.
    Put(Vip),
    /// A VIP was removed.
    Delete {
        /// Its name.
        name: VipName,
        /// The revision that removed it, or a later one merged with it.
        revision: u64,
    },
    /// All that there is has been sent.
    Synced,
    /// The stream lives.
    Progress,
}

fn millis<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64() * 1e3)
}

// serde asks for this shape.
#[allow(clippy::ref_option)]
fn optional_millis<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => serializer.serialize_some(&(duration.as_secs_f64() * 1e3)),
        None => serializer.serialize_none(),
    }
}
