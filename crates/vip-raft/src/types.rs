//! The types that openraft is instantiated with, and short names for what it makes of them.
//!
//! openraft's node ids are plain `u64`; the rest of vipd speaks of [`vip_core::NodeId`]. The border is here.

use std::fmt;

use serde::{Deserialize, Serialize};
use vip_core::{Command, Leadership, NodeId, Outcome};

/// How a peer is called and where it listens; part of the replicated membership.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerNode {
    /// The node's name, for people.
    pub name: String,
    /// `host:port` of its peer listener.
    pub address: String,
}

impl fmt::Display for PeerNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name, self.address)
    }
}

/// A [`Command`] as the log holds it.
///
/// openraft wants to print its payload and a foreign trait cannot be given to a foreign type; hence the wrapper,
/// which leaves no trace in the encoding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Request(pub Command);

impl From<Command> for Request {
    fn from(command: Command) -> Self {
        Self(command)
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Command::Form(specs) => write!(f, "form the cluster with {} VIPs", specs.len()),
            Command::RegisterNode { node, instance } => write!(f, "register node {node} with store {instance}"),
            Command::DeclareVip(spec) => write!(f, "declare {}", spec.name),
            Command::DeleteVip(name) => write!(f, "delete {name}"),
            Command::Assign { by, owner, claims, .. } => {
                write!(f, "assign {} VIPs to node {owner} in {by}", claims.len())
            }
        }
    }
}

// The runtime is openraft's default. Its re-export is marked deprecated in favour of a crate that would have to be
// pinned beside this one for nothing else.
#[allow(deprecated)]
mod config {
    use super::{Outcome, PeerNode, Request};

    openraft::declare_raft_types!(
        /// What this project fills into openraft.
        ///
        /// The leader id is the (term, node) one, which [`vip_core::Leadership`] mirrors.
        pub TypeConfig:
            D = Request,
            R = Outcome,
            NodeId = u64,
            Node = PeerNode,
            Term = u64,
            LeaderId = openraft::impls::leader_id_adv::LeaderId<Self::Term, Self::NodeId>,
            Vote = openraft::impls::Vote<Self::LeaderId>,
            Entry = openraft::Entry<<Self::LeaderId as openraft::vote::RaftLeaderId>::Committed, Self::Payload>,
    );
}
pub use config::TypeConfig;

/// The Raft node.
pub type Raft = openraft::Raft<TypeConfig, crate::store::StateMachine>;
/// A (term, node) that leads, or stands.
pub type LeaderId = openraft::alias::LeaderIdOf<TypeConfig>;
/// A vote: a leader id, and whether a quorum granted it.
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
/// Names an entry: who appended it, and where.
pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
/// A log entry.
pub type Entry = openraft::alias::EntryOf<TypeConfig>;
/// What an entry holds: nothing, a [`Request`], or a membership.
pub type EntryPayload = openraft::alias::PayloadOf<TypeConfig>;
/// Who votes and who listens.
pub type Membership = openraft::Membership<u64, PeerNode>;
/// A membership and the entry that set it.
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
/// What a snapshot covers.
pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
/// A snapshot with the encoded state.
pub type Snapshot = openraft::alias::SnapshotOf<TypeConfig, Vec<u8>>;
/// Where the log begins and ends.
pub type LogState = openraft::LogState<TypeConfig>;
/// To be told once an append is durable.
pub type IOFlushed = openraft::storage::IOFlushed<TypeConfig>;
/// The clock reading that openraft's metrics carry.
pub type Instant = openraft::alias::InstantOf<TypeConfig>;
/// What a node reports about itself.
pub type RaftMetrics = openraft::RaftMetrics<TypeConfig>;
/// A request for entries to be appended; a heartbeat has none.
pub type AppendEntriesRequest = openraft::raft::AppendEntriesRequest<TypeConfig>;
/// Its answer.
pub type AppendEntriesResponse = openraft::raft::AppendEntriesResponse<TypeConfig>;
/// A request for a vote, or a pre-vote.
pub type VoteRequest = openraft::raft::VoteRequest<TypeConfig>;
/// Its answer.
pub type VoteResponse = openraft::raft::VoteResponse<TypeConfig>;
/// The answer to a whole snapshot.
pub type SnapshotResponse = openraft::raft::SnapshotResponse<TypeConfig>;
/// Asks a node to stand for election at once.
pub type TransferLeaderRequest = openraft::raft::TransferLeaderRequest<TypeConfig>;

/// The leadership that a vote is for.
#[must_use]
pub fn leadership_of(vote: &Vote) -> Leadership {
    leadership(vote.leader_id())
}

/// The leadership that appended an entry.
#[must_use]
pub fn leadership_of_log(log_id: &LogId) -> Leadership {
    leadership(log_id.committed_leader_id())
}

fn leadership(leader: &LeaderId) -> Leadership {
    Leadership { term: leader.term, node: NodeId(leader.node_id) }
}
