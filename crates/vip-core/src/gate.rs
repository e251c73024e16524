//! The lease gate: the one place that decides when a node may vote, stand for election, and act on its lease.
//!
//! Raft elects at most one leader a term, but an old leader does not know when a new one is elected. The lease closes
//! that gap: a voter that acknowledged an append refuses its vote for one lease from then on, so a leader whose append
//! was *sent* at S and acknowledged by a quorum is the only one until S + L, as far as clocks can be trusted.
//! openraft has nearly this lease, with holes; the gate stands around openraft and closes them. The rules' names
//! (R1 to R14) are those of ARCHITECTURE.md.
//!
//! One gate a process, behind one mutex, which also covers the write of the deadline to the kernel: a deadline that was
//! computed is in the kernel, or void, before anything else can happen to the gate.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::{Leadership, NodeId};
use crate::rules::{Rule, holds};
use crate::time::BootInstant;

/// The figures of the lease. The same on all nodes of a cluster; a peer with others is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseTiming {
    /// L: how long a quorum's acknowledgement keeps others from being elected.
    pub lease: Duration,
    /// r: the most by which a node's clock rate is off, in parts per million.
    pub clock_drift_ppm: u32,
    /// q: how long a frame that passed the fence may still be queued on its way out.
    pub queue_time: Duration,
}

impl LeaseTiming {
    /// g ≥ 2·r·L + q: what a holder gives up of its lease for clock drift and queued frames.
    #[must_use]
    pub fn margin(&self) -> Duration {
        let drift = if holds(Rule::DriftMargin) { self.drift_over(self.lease) * 2 } else { Duration::ZERO };
        let queued = if holds(Rule::QueueMargin) { self.queue_time } else { Duration::ZERO };
        drift + queued
    }

    /// L·(1 + r): the lease as a slow clock of a voter must count it, so that it ends last.
    #[must_use]
    pub fn voter_lease(&self) -> Duration {
        if holds(Rule::VoterDrift) { self.lease + self.drift_over(self.lease) } else { self.lease }
    }

    /// q·(1 + r): how long a clock must count until what was sent before has left.
    fn queue_empties(&self) -> Duration {
        self.queue_time + self.drift_over(self.queue_time)
    }

    fn drift_over(&self, duration: Duration) -> Duration {
        // Rounded up: a margin is never a nanosecond short.
        let nanos = duration.as_nanos() * u128::from(self.clock_drift_ppm);
        Duration::from_nanos(u64::try_from(nanos.div_ceil(1_000_000)).unwrap_or(u64::MAX))
    }
}

/// A vote as the store holds it: for whom, and whether a quorum made it a leader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeldVote {
    /// For whom.
    pub leadership: Leadership,
    /// Whether that node is known to have won.
    pub committed: bool,
}

/// Somebody asks for this node's vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoteRequest {
    /// The leadership that it stands for.
    pub leadership: Leadership,
    /// The leader that asked it to stand, if one did.
    pub by_transfer_of: Option<Leadership>,
}

/// Why the gate stays shut, and until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Shut {
    /// R3: what this process promised before it was restarted is forgotten, so it waits until that has run out.
    #[error("this node was restarted; it takes no part in elections for another {}", Left(.remaining))]
    Restarted {
        /// How much longer.
        remaining: Duration,
    },
    /// An append of a leader was acknowledged; its lease must run out first.
    #[error("the lease that this node granted in {} runs for another {}", .leader, Left(.remaining))]
    LeaseGranted {
        /// Whose lease.
        leader: Leadership,
        /// How much longer.
        remaining: Duration,
    },
    /// R5: this node used its own lease; it must run out first.
    #[error("this node's own lease runs for another {}", Left(.remaining))]
    LeaseUsed {
        /// How much longer.
        remaining: Duration,
    },
    /// R6: this node gave its lease up a moment ago; what it sent before must have left first.
    #[error("what this node sent before it gave its lease up may be queued for another {}", Left(.remaining))]
    Queued {
        /// How much longer.
        remaining: Duration,
    },
}

impl Shut {
    /// How much longer the gate stays shut.
    #[must_use]
    pub const fn remaining(&self) -> Duration {
        match self {
            Self::Restarted { remaining }
            | Self::LeaseGranted { remaining, .. }
            | Self::LeaseUsed { remaining }
            | Self::Queued { remaining } => *remaining,
        }
    }
}

struct Left<'a>(&'a Duration);

impl std::fmt::Display for Left<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1} ms", self.0.as_secs_f64() * 1e3)
    }
}

/// Why no deadline came of a quorum's acknowledgements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotArmed {
    /// Another leadership is current, or this one is not won, or not yet durable.
    #[error("this node does not lead")]
    NotLeading,
    /// R2: no entry of the own term is committed and applied yet.
    #[error("no entry of this leadership is applied yet")]
    NothingApplied,
    /// The agent has not yet dropped what it held under an older leadership.
    #[error("the agent has not enabled this leadership")]
    NotEnabled,
    /// R4: another leader's lease may still run.
    #[error("an older lease may run for another {}", Left(.remaining))]
    OlderLease {
        /// How much longer.
        remaining: Duration,
    },
    /// R6: given up; this leadership never acts again.
    #[error("this leadership was given up")]
    Resigned,
    /// A vote is being handled; it may void the lease at any moment.
    #[error("a vote is being handled")]
    VoteInFlight,
    /// No quorum, or its acknowledgements are too old.
    #[error("no quorum acknowledged within the lease")]
    NoQuorum,
}

/// The gate. See the module's documentation.
#[derive(Clone, Debug)]
pub struct LeaseGate {
    me: NodeId,
    timing: LeaseTiming,
    /// How late this node's kernel may end a lease. Local: it shortens this node's own deadlines and nothing else.
    fence_slack: Duration,
    /// R3: until then this process votes for nobody and does not stand.
    silent_until: BootInstant,
    /// The vote: for whom, as of the newest change, and whether that one is known to have won by it.
    vote: HeldVote,
    /// For whom the newest vote is that became durable in this process.
    durable: Option<Leadership>,
    /// The newest append acknowledged to another leader, by this node's clock.
    acknowledged: Option<(Leadership, BootInstant)>,
    /// When the newest append that each peer acknowledged was sent; only for the leadership `vote`.
    sent: BTreeMap<NodeId, BootInstant>,
    /// R5: the newest S that armed a deadline which may still run.
    used: Option<BootInstant>,
    /// R6: until then frames may be queued that were sent under a lease that was given up.
    queued_until: BootInstant,
    /// Votes passed to openraft and not yet answered.
    votes_in_flight: u32,
    /// R4: this node's newest candidacy is not won before.
    votes_count_from: BootInstant,
    /// R4, R6: and holds nothing before.
    hold_from: BootInstant,
    /// R2: an entry of this leadership is committed and applied.
    applied: Option<Leadership>,
    /// The agent has cleared away what it held before this leadership.
    enabled: Option<Leadership>,
    /// R6: given up by its own leader, this node.
    resigned: Option<Leadership>,
    /// A transfer that this node accepted: from whom. Its next candidacy, and only that one, is exempt from R4's wait.
    transfer_from: Option<Leadership>,
    /// When that was.
    transfer_at: BootInstant,
    /// The candidacy that a transfer started, and who asked for it.
    candidacy_by_transfer: Option<(Leadership, Leadership)>,
}

impl LeaseGate {
    /// A gate for a process that starts at `now` with the durable `vote`.
    ///
    /// `pristine`: the store holds neither an entry nor a vote, so this node has never promised anything.
    #[must_use]
    pub fn new(me: NodeId, timing: LeaseTiming, vote: HeldVote, pristine: bool, now: BootInstant) -> Self {
        let exempt = pristine || !holds(Rule::RestartSilence);
        let restored = vote.leadership.node == me && !holds(Rule::NoLeaderRestored);
        Self {
            me,
            timing,
            fence_slack: Duration::ZERO,
            silent_until: if exempt { BootInstant::ZERO } else { now + timing.voter_lease() },
            // A leadership of an earlier process is over: what it held was dropped at start.
            vote: HeldVote { committed: vote.committed && (vote.leadership.node != me || restored), ..vote },
            durable: None,
            acknowledged: None,
            sent: BTreeMap::new(),
            used: None,
            queued_until: BootInstant::ZERO,
            votes_in_flight: 0,
            votes_count_from: BootInstant::ZERO,
            hold_from: BootInstant::ZERO,
            applied: None,
            enabled: None,
            resigned: None,
            transfer_from: None,
            transfer_at: BootInstant::ZERO,
            candidacy_by_transfer: None,
        }
    }

    /// The same with a fence that may end a lease this much after its deadline.
    #[must_use]
    pub const fn with_fence_slack(mut self, fence_slack: Duration) -> Self {
        self.fence_slack = fence_slack;
        self
    }

    /// This node.
    #[must_use]
    pub const fn me(&self) -> NodeId {
        self.me
    }

    /// The figures it works with.
    #[must_use]
    pub const fn timing(&self) -> &LeaseTiming {
        &self.timing
    }

    /// The leadership of this node that is won by a durable vote, if it is the current one.
    #[must_use]
    pub fn leading(&self) -> Option<Leadership> {
        (self.vote.committed && self.vote.leadership.node == self.me).then_some(self.vote.leadership)
    }

    // ---- as a voter ----

    /// This node is about to acknowledge an append of `leader`. To be called before the answer goes out.
    ///
    /// Returns whether it may: where the vote has moved on since openraft took the append, the leader must not count
    /// this node, whose promise would come too late. And not only that: openraft takes a node's vote for itself for
    /// durable at once, and with it the entries that were handed to the disk before, which may not be.
    #[must_use]
    pub fn append_acknowledged(&mut self, leader: Leadership, now: BootInstant) -> bool {
        let moved_on = self.vote.leadership > leader && holds(Rule::AcknowledgeInOrder);
        if leader.node == self.me || moved_on {
            return false;
        }
        self.acknowledged = Some((leader, now));
        true
    }

    /// Whether a vote or pre-vote may be passed to openraft at `now` (R3, R4, R5).
    ///
    /// # Errors
    /// What keeps the gate shut.
    pub fn check_vote(&self, request: VoteRequest, now: BootInstant) -> Result<(), Shut> {
        self.check_restart(now)?;
        self.check_used(now)?;
        if now < self.queued_until {
            return Err(Shut::Queued { remaining: self.queued_until.saturating_duration_since(now) });
        }
        if let Some((leader, _)) = self.acknowledged {
            // A transfer is a leader's own word that it holds nothing any more. It ends that leader's lease and no
            // other's: a transfer vote that was under way while another leader was elected must not pass, and two
            // leaders may stand in one term, so the term alone would not tell them apart.
            let named = request.by_transfer_of == Some(leader)
                || (request.by_transfer_of.is_some() && !holds(Rule::TransferName));
            if !named && holds(Rule::VoterPromise) {
                self.check_granted(now)?;
            }
        }
        Ok(())
    }

    /// As [`Self::check_vote`], and from here to [`Self::end_vote`] nothing is armed: openraft may grant the vote at any
    /// moment in between, which voids this node's own lease.
    ///
    /// # Errors
    /// What keeps the gate shut; then there is nothing to end.
    pub fn begin_vote(&mut self, request: VoteRequest, now: BootInstant) -> Result<(), Shut> {
        self.check_vote(request, now)?;
        self.votes_in_flight += 1;
        Ok(())
    }

    /// The vote that [`Self::begin_vote`] let through is answered.
    pub fn end_vote(&mut self) {
        self.votes_in_flight = self.votes_in_flight.saturating_sub(1);
    }

    /// Whether a transfer from `from` to this node may be passed to openraft at `now` (R3, R6).
    ///
    /// # Errors
    /// What keeps the gate shut.
    pub fn accept_transfer(&mut self, from: Leadership, now: BootInstant) -> Result<(), Shut> {
        self.check_restart(now)?;
        self.check_used(now)?;
        self.transfer_from = Some(from);
        self.transfer_at = now;
        Ok(())
    }

    // ---- as a candidate ----

    /// Whether this node may stand for election at `now` (R3, R4, R5).
    ///
    /// # Errors
    /// What keeps the gate shut.
    pub fn check_campaign(&self, now: BootInstant) -> Result<(), Shut> {
        self.check_restart(now)?;
        self.check_used(now)?;
        if holds(Rule::CandidatePromise) { self.check_granted(now) } else { Ok(()) }
    }

    /// The earliest instant at which [`Self::check_campaign`] can pass, as things stand.
    #[must_use]
    pub fn campaign_from(&self) -> BootInstant {
        let promise = self.acknowledged.filter(|_| holds(Rule::CandidatePromise));
        let granted = promise.map_or(BootInstant::ZERO, |(_, at)| at + self.timing.voter_lease());
        let used = self.used.filter(|_| holds(Rule::Used)).map_or(BootInstant::ZERO, |sent| sent + self.timing.lease);
        self.silent_until.max(granted).max(used)
    }

    /// A vote is about to be written: whatever rested on an older one ends now.
    pub fn vote_changing(&mut self, vote: HeldVote) {
        if vote.leadership == self.vote.leadership {
            // That it won promises nothing which its durable vote does not. A leader that waited until this is durable,
            // too, would keep its followers from electing another while its own disk stands still.
            let won = vote.committed && self.durable == Some(vote.leadership);
            self.vote.committed |= won && holds(Rule::WonByDurableVote);
            return;
        }
        // A granted vote or an own candidacy voids all older leases. What is armed in the kernel runs on to its
        // deadline, which `used` remembers.
        self.vote = HeldVote { committed: false, ..vote };
        if holds(Rule::VoteVoidsAnswers) {
            self.sent.clear();
        }
        self.votes_end_candidacy(vote);
    }

    fn votes_end_candidacy(&mut self, vote: HeldVote) {
        if vote.leadership.node != self.me {
            self.transfer_from = None;
            self.candidacy_by_transfer = None;
            return;
        }
        let from = self.transfer_from.take();
        let last = self.acknowledged.map(|(leader, _)| leader);
        // R4's exemption: asked to stand by the very leader whose append this node acknowledged last.
        self.candidacy_by_transfer =
            from.filter(|_| from == last || !holds(Rule::ExemptByLastOnly)).map(|from| (vote.leadership, from));
        // Asked to stand by a leader that gave up: what that one sent before may still be queued.
        let anyone = holds(Rule::QueueOfAnyone);
        let queued = match from {
            Some(_) if holds(Rule::TransferQueue) && (anyone || from == last) => {
                self.transfer_at + self.timing.queue_empties()
            }
            Some(_) | None => BootInstant::ZERO,
        };
        // Not asked, or not by the one whose append it acknowledged last: that one's lease may still run. It acknowledges
        // it no more.
        let granted = match self.acknowledged {
            Some((_, at)) if self.candidacy_by_transfer.is_none() && holds(Rule::Hold) => {
                at + self.timing.voter_lease()
            }
            Some(_) | None => BootInstant::ZERO,
        };
        self.votes_count_from = granted;
        self.hold_from = queued.max(granted);
    }

    /// R4: from when on this candidate may count the votes of others. It is not elected before, so nobody hears of a new
    /// owner while the lease of an older one runs.
    #[must_use]
    pub const fn votes_count_from(&self) -> BootInstant {
        self.votes_count_from
    }

    /// Who asked this node to stand for `leadership`, for the voters to compare.
    #[must_use]
    pub fn transfer_of(&self, leadership: Leadership) -> Option<Leadership> {
        self.candidacy_by_transfer.filter(|(candidacy, _)| *candidacy == leadership).map(|(_, from)| from)
    }

    /// A vote is durable.
    pub fn vote_saved(&mut self, vote: HeldVote) {
        if vote < self.vote {
            return;
        }
        self.vote = vote;
        self.durable = Some(vote.leadership);
    }

    // ---- as a leader ----

    /// An entry of `leadership` is committed and applied here (R2).
    pub fn entry_applied(&mut self, leadership: Leadership) {
        if self.applied < Some(leadership) {
            self.applied = Some(leadership);
        }
    }

    /// `peer` acknowledged an append of `leadership`, sent at `sent_at` by this node's clock.
    ///
    /// Returns whether that is news, so that a renewal is worth a try.
    pub fn append_answered(&mut self, leadership: Leadership, peer: NodeId, sent_at: BootInstant) -> bool {
        let stale = self.vote.leadership != leadership && holds(Rule::OwnAnswersOnly);
        if stale || peer == self.me {
            return false;
        }
        let known = self.sent.entry(peer).or_insert(BootInstant::ZERO);
        if sent_at <= *known {
            return false;
        }
        *known = sent_at;
        true
    }

    /// The agent holds nothing of an older leadership any more: from here on `leadership` may be armed.
    pub fn enable(&mut self, leadership: Leadership) {
        self.enabled = Some(leadership);
    }

    /// Whether this node may hold and assign VIPs as leader, but for the acknowledgements (R2, R4, R6).
    ///
    /// # Errors
    /// What is missing.
    pub fn check_reign(&self, now: BootInstant) -> Result<Leadership, NotArmed> {
        let leadership = self.leading().ok_or(NotArmed::NotLeading)?;
        if self.resigned >= Some(leadership) && holds(Rule::NeverAgain) {
            return Err(NotArmed::Resigned);
        }
        if self.applied != Some(leadership) && holds(Rule::OwnEntryApplied) {
            return Err(NotArmed::NothingApplied);
        }
        if now < self.hold_from {
            return Err(NotArmed::OlderLease { remaining: self.hold_from.saturating_duration_since(now) });
        }
        Ok(leadership)
    }

    /// The deadline to arm at `now` (R1), given the `voters` of each configuration in force (two in a joint one).
    ///
    /// The caller writes it to the kernel before it lets go of the gate.
    ///
    /// # Errors
    /// Why there is none.
    pub fn arm(
        &mut self,
        voters: &[BTreeSet<NodeId>],
        now: BootInstant,
    ) -> Result<(Leadership, BootInstant), NotArmed> {
        let leadership = self.check_reign(now)?;
        if self.enabled != Some(leadership) {
            return Err(NotArmed::NotEnabled);
        }
        if self.votes_in_flight > 0 && holds(Rule::VoteInFlight) {
            return Err(NotArmed::VoteInFlight);
        }
        let quorum = if holds(Rule::Quorum) { self.quorum_sent(voters, now) } else { Some(now) };
        let sent = quorum.ok_or(NotArmed::NoQuorum)?;
        let deadline = (sent + self.timing.lease) - self.timing.margin() - self.fence_slack;
        if deadline <= now {
            return Err(NotArmed::NoQuorum);
        }
        self.used = self.used.max(Some(sent));
        Ok((leadership, deadline))
    }

    /// S: the send time of the newest append that a quorum of every configuration acknowledged.
    #[must_use]
    pub fn quorum_sent(&self, voters: &[BTreeSet<NodeId>], now: BootInstant) -> Option<BootInstant> {
        if voters.is_empty() {
            return None;
        }
        voters
            .iter()
            .map(|config| {
                let mut sent: Vec<_> = config
                    .iter()
                    .filter_map(|voter| if *voter == self.me { Some(now) } else { self.sent.get(voter).copied() })
                    .collect();
                sent.sort_unstable_by(|a, b| b.cmp(a));
                sent.get(config.len() / 2).copied()
            })
            .collect::<Option<Vec<_>>>()?
            .into_iter()
            .min()
    }

    /// R6: this node gives `leadership` up and never arms again in it. Returns whether that is the current one.
    pub fn resign(&mut self, leadership: Leadership) -> bool {
        self.resigned = self.resigned.max(Some(leadership));
        self.leading() == Some(leadership)
    }

    /// Whether the current leadership of this node is given up: then it is silent, so that the others elect (R6).
    #[must_use]
    pub fn resigned(&self) -> bool {
        self.leading().is_some_and(|leadership| self.resigned >= Some(leadership))
    }

    /// Whether `from` may hand its leadership over: it is given up, and nothing that it armed can still run (R6).
    ///
    /// The last door before a transfer leaves: whoever asked for it may have been overtaken by another leadership.
    #[must_use]
    pub fn may_transfer(&self, from: Leadership) -> bool {
        self.leading() == Some(from) && ((self.resigned() && self.used.is_none()) || !holds(Rule::TransferAfterRelease))
    }

    /// Every deadline that this process armed is zeroed in the kernel since before `now`; none can be armed in this
    /// leadership any more.
    ///
    /// Only to be called after [`Self::resign`], by whoever zeroed them under the gate's mutex.
    pub fn released(&mut self, now: BootInstant) {
        if self.leading().is_none() || self.leading() <= self.resigned {
            self.used = None;
            if holds(Rule::ReleasedQueue) {
                self.queued_until = now + self.timing.queue_empties();
            }
        }
    }

    fn check_restart(&self, now: BootInstant) -> Result<(), Shut> {
        if now < self.silent_until {
            return Err(Shut::Restarted { remaining: self.silent_until.saturating_duration_since(now) });
        }
        Ok(())
    }

    fn check_granted(&self, now: BootInstant) -> Result<(), Shut> {
        if let Some((leader, at)) = self.acknowledged {
            let until = at + self.timing.voter_lease();
            if now < until {
                return Err(Shut::LeaseGranted { leader, remaining: until.saturating_duration_since(now) });
            }
        }
        Ok(())
    }

    fn check_used(&self, now: BootInstant) -> Result<(), Shut> {
        if let Some(sent) = self.used.filter(|_| holds(Rule::Used)) {
            let until = sent + self.timing.lease;
            if now < until {
                return Err(Shut::LeaseUsed { remaining: until.saturating_duration_since(now) });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
