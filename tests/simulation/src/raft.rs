//! openraft 0.10.0-alpha.37 as vip-raft drives it, as far as votes, the log and its own lease go.
//!
//! The names in parentheses are those of openraft's source. Its engine is one task that takes one message after the other
//! and waits for a vote to be durable before it goes on (`RaftCore::run_save_vote`). vip-raft does not wait where it only
//! learns that a candidate won, nor for a node's own vote for itself: there the others' answers wait
//! (`LogStore::save_vote`, `PeerClient::vote`). Entries become durable behind its back.
//!
//! Not modelled: membership changes, snapshots, learners, linearizable reads.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use vip_core::{Cluster, Command, HeldVote, Leadership, NodeId};

use crate::message::{AppendResult, Lane};
use crate::store::LogId;

/// Who waits for a command to be applied.
#[derive(Clone, Debug)]
pub(crate) enum Responder {
    /// The agent.
    Agent,
    /// An operator, through the API of this node; the number names the request.
    Operator(u64),
    /// Another node, which forwarded an operator's request.
    Peer(NodeId, u32, u64),
}

/// What the engine takes in.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// Entries, or a heartbeat (`handle_append_entries`).
    Append(Box<AppendIn>),
    /// The second half of it, after the vote is durable.
    AppendLog(Box<AppendIn>),
    /// Somebody stands (`handle_vote_req`).
    Vote { from: NodeId, to_life: u32, leadership: Leadership, last: Option<LogId>, transfer: bool },
    /// Its answer, after the vote is durable.
    AnswerVote { from: NodeId, to_life: u32, leadership: Leadership, granted: bool },
    /// Somebody asks whether to stand (`handle_pre_vote_req`).
    PreVote { from: NodeId, to_life: u32, leadership: Leadership, last: Option<LogId> },
    /// An answer (`handle_vote_resp`).
    VoteAnswered { from: NodeId, leadership: Leadership, granted: bool, vote: HeldVote },
    /// An answer (`handle_pre_vote_resp`).
    PreVoteAnswered { from: NodeId, granted: bool, vote: HeldVote },
    /// An answer to an append.
    Appended { from: NodeId, leader: Leadership, lane: Lane, rpc: u64, sent_mono: u64, result: AppendResult },
    /// Own entries are durable up to here.
    Flushed { by: Leadership, index: u64 },
    /// `trigger().elect(true)`.
    PreElect,
    /// `trigger().elect(false)`, which vip-raft never calls; for scripts.
    Stand,
    /// The own vote is on its way to the disk: ask the others.
    AskForVotes { leadership: Leadership, transfer: bool },
    /// `handle_transfer_leader`.
    TransferTo { from: Leadership, last: Option<LogId> },
    /// `trigger().transfer_leader(to)`.
    Transfer { to: NodeId },
    /// `client_write`.
    Write { command: Command, responder: Responder },
    /// `trigger().heartbeat()`.
    Beat,
    /// The time to try a peer again, or to stop waiting for it.
    Replicate { peer: NodeId },
    /// An append was not answered in time.
    TimedOut { peer: NodeId, lane: Lane, rpc: u64 },
}

/// An append on its way through a follower.
#[derive(Clone, Debug)]
pub(crate) struct AppendIn {
    /// The leader's node.
    pub(crate) from: NodeId,
    /// The process there.
    pub(crate) to_life: u32,
    /// Its leadership.
    pub(crate) leader: Leadership,
    /// When it was sent, by the leader's clock.
    pub(crate) sent_at: vip_core::BootInstant,
    /// The same on the clock that openraft reads.
    pub(crate) sent_mono: u64,
    /// The connection.
    pub(crate) lane: Lane,
    /// Which call.
    pub(crate) rpc: u64,
    /// What goes before.
    pub(crate) prev: Option<LogId>,
    /// What follows.
    pub(crate) entries: Vec<Arc<crate::store::Entry>>,
    /// How far the leader has committed.
    pub(crate) committed: Option<LogId>,
    /// When it came, by the own clock.
    pub(crate) came_at: vip_core::BootInstant,
    /// The leader has hung up: its handler is gone.
    pub(crate) hung_up: bool,
}

/// A follower as its leader sees it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Follower {
    /// What it has for sure.
    pub(crate) matched: Option<LogId>,
    /// What it gets next.
    pub(crate) next: u64,
    /// The append with entries that is not answered yet.
    pub(crate) data: Option<u64>,
    /// The heartbeat that is not answered yet.
    pub(crate) beat: Option<u64>,
    /// When the newest append that it answered was sent, on the monotonic clock.
    pub(crate) acked: Option<u64>,
}

/// openraft's `Leader`.
#[derive(Clone, Debug)]
pub(crate) struct Leader {
    /// The leadership.
    pub(crate) by: Leadership,
    /// Handing over: takes no entries and sends nothing by itself.
    pub(crate) transfer_to: Option<NodeId>,
    /// The others.
    pub(crate) followers: BTreeMap<NodeId, Follower>,
    /// Its own entries are durable up to here.
    pub(crate) flushed: Option<u64>,
    /// When it was elected, on the monotonic clock.
    pub(crate) since: u64,
}

/// openraft's `Candidate`.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    /// What it stands for.
    pub(crate) leadership: Leadership,
    /// Who gave it a vote.
    pub(crate) grants: BTreeSet<NodeId>,
}

/// openraft's engine and state machine.
#[derive(Debug)]
pub(crate) struct Raft {
    /// The vote, durable or not yet.
    pub(crate) vote: HeldVote,
    /// When the vote was last heard of, and for how long that is a lease; nothing after a restart.
    pub(crate) touched: Option<(u64, u64)>,
    /// `disable_lease` until the next vote.
    pub(crate) lease_off: bool,
    /// Leading.
    pub(crate) leader: Option<Leader>,
    /// Standing.
    pub(crate) candidate: Option<Candidate>,
    /// Asking whether to stand.
    pub(crate) pre_candidate: Option<Candidate>,
    /// How far it is committed, as far as this node knows.
    pub(crate) committed: Option<u64>,
    /// How far its log is known to be that of this leader.
    pub(crate) verified: Option<(Leadership, Option<u64>)>,
    /// The last entry that is applied.
    pub(crate) applied: Option<LogId>,
    /// The state.
    pub(crate) cluster: Arc<Cluster>,
    /// Waits until a vote is durable.
    pub(crate) blocked: Option<u64>,
    /// The own vote for itself, until it is durable.
    pub(crate) standing: Option<u64>,
    /// Votes that came before they count.
    pub(crate) early: Vec<Input>,
    /// What came meanwhile.
    pub(crate) queue: VecDeque<Input>,
    /// Who waits for which entry.
    pub(crate) responders: BTreeMap<u64, (Leadership, Responder)>,
    /// Numbers of calls.
    pub(crate) calls: u64,
}

impl Raft {
    /// As it starts with what is durable.
    #[must_use]
    pub(crate) fn new(vote: HeldVote) -> Self {
        Self {
            vote,
            touched: None,
            lease_off: false,
            leader: None,
            candidate: None,
            pre_candidate: None,
            committed: None,
            verified: None,
            applied: None,
            cluster: Arc::default(),
            blocked: None,
            standing: None,
            early: Vec::new(),
            queue: VecDeque::new(),
            responders: BTreeMap::new(),
            calls: 0,
        }
    }

    /// Whether the lease of a leader that this node follows runs (`Leased::is_expired`).
    #[must_use]
    pub(crate) fn lease_runs(&self, mono: u64) -> bool {
        self.vote.committed && self.touched.is_some_and(|(at, lease)| mono <= at.saturating_add(lease))
    }

    /// The leader as far as this node knows (`metrics().current_leader`).
    #[must_use]
    pub(crate) fn current_leader(&self) -> Option<NodeId> {
        self.vote.committed.then_some(self.vote.leadership.node)
    }

    /// The next number of a call.
    pub(crate) const fn call(&mut self) -> u64 {
        self.calls += 1;
        self.calls
    }
}

impl Leader {
    /// The send time of the newest append that a quorum answered (`last_quorum_acked_time`), of `voters` in all.
    #[must_use]
    pub(crate) fn quorum_acked(&self, voters: usize) -> Option<u64> {
        let mut acked: Vec<_> = self.followers.values().filter_map(|follower| follower.acked).collect();
        acked.sort_unstable_by(|a, b| b.cmp(a));
        // Itself is one of the quorum.
        acked.get(voters / 2 - 1).copied()
    }
}
