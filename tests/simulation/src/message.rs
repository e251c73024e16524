//! What nodes say to each other.

use std::sync::Arc;

use vip_core::{BootInstant, Command, HeldVote, Leadership, NodeId, Outcome};

use crate::store::{Entry, LogId};

/// The connection of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Heartbeats.
    Heartbeat,
    /// Entries.
    Replication,
}

/// How an append was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AppendResult {
    /// All of it; up to here the logs are the same.
    Success(Option<LogId>),
    /// What goes before is not there.
    Conflict(u64),
    /// The receiver has a higher vote.
    HigherVote(HeldVote),
}

/// What is said.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    /// Entries, or a heartbeat.
    Append {
        /// By whom.
        leader: Leadership,
        /// Read before sending; comes back with the answer.
        sent_at: BootInstant,
        /// The same on the clock that openraft reads.
        sent_mono: u64,
        /// The connection.
        lane: Lane,
        /// Which call.
        rpc: u64,
        /// What goes before.
        prev: Option<LogId>,
        /// What follows.
        entries: Vec<Arc<Entry>>,
        /// How far the leader has committed.
        committed: Option<LogId>,
    },
    /// Its answer.
    Appended {
        /// To whom.
        leader: Leadership,
        /// As it was sent.
        sent_at: BootInstant,
        /// As it was sent.
        sent_mono: u64,
        /// The connection.
        lane: Lane,
        /// Which call.
        rpc: u64,
        /// How it was taken.
        result: AppendResult,
    },
    /// Somebody stands.
    Vote {
        /// For what.
        leadership: Leadership,
        /// Its last entry.
        last: Option<LogId>,
        /// Whether a leader asked it to.
        transfer: bool,
        /// Which one.
        by_transfer_of: Option<Leadership>,
    },
    /// The answer.
    Voted {
        /// For what.
        leadership: Leadership,
        /// Whether it was granted.
        granted: bool,
        /// The voter's vote.
        vote: HeldVote,
    },
    /// Somebody asks whether to stand.
    PreVote {
        /// For what.
        leadership: Leadership,
        /// Its last entry.
        last: Option<LogId>,
    },
    /// The answer.
    PreVoted {
        /// Whether it would be granted.
        granted: bool,
        /// The voter's vote.
        vote: HeldVote,
    },
    /// A leader asks to be followed.
    Transfer {
        /// The leadership that is given up.
        from: Leadership,
        /// Who shall stand.
        to: NodeId,
        /// Its last entry.
        last: Option<LogId>,
    },
    /// A forwarded request.
    Propose {
        /// Which.
        request: u64,
        /// What is asked for.
        command: Command,
    },
    /// Its answer.
    Proposed {
        /// Which.
        request: u64,
        /// What came of it.
        result: Result<Outcome, ()>,
    },
}

/// A message on its way.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// From whom.
    pub(crate) from: NodeId,
    /// To whom.
    pub(crate) to: NodeId,
    /// The sending process.
    pub(crate) from_life: u32,
    /// For an answer: the process that asked. Another one has no use for it.
    pub(crate) to_life: Option<u32>,
    /// Whether the sender could carry every VIP.
    pub(crate) eligible: bool,
    /// What is said.
    pub(crate) body: Body,
}
