//! What can be taken out, to see whether it is missed.

use std::fmt;
use std::str::FromStr;

use vip_core::rules::Rule;

/// A rule that is kept outside vip-core, by vip-raft, vipd, the store or the kernel; here by the model of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// R1: S is stamped before an append is sent, not when its answer comes.
    SendTime,
    /// R2: a vote is durable before anybody hears of it.
    DurableVote,
    /// R2: a candidate counts no vote of another before its own is durable.
    OwnVoteFirst,
    /// R2: the first vote of a node's life is durable before anybody else is asked.
    FirstVoteAwaited,
    /// R4: a candidate counts no vote before the lease that itself granted is over.
    CountAfterGrant,
    /// A candidate does not stand again while its own vote is on its way to the disk.
    StandOnce,
    /// R3: only an empty store is exempt from silence, not one whose node never took an append of another leader.
    StrictPristine,
    /// Votes and appends do not overtake each other in a voter (`Core::order`).
    VoteAlone,
    /// openraft: a transfer counts only from the leader of the present vote.
    TransferOfPresentVote,
    /// R6: the lease is given up, and everything dropped, before leadership is handed over.
    ResignFirst,
    /// R6: only the node that shall take over is told of a transfer.
    TellTargetOnly,
    /// R6: a leader that gave up sends nothing.
    SilentAfterResign,
    /// R7: a start waits for the end of a lease that a killed process left.
    AwaitPredecessor,
    /// R7: the deadline is zeroed at start.
    ZeroAtStart,
    /// R7: the fence is shut at start.
    ShutAtStart,
    /// R7: left-over addresses are removed at start.
    SweepAtStart,
    /// R11: the kernel compares the clock by itself.
    KernelFence,
    /// R11: the deadline is an instant, not a time from now on.
    AbsoluteDeadline,
    /// openraft's own lease of voters and leaders. Not a rule: the gate must do without.
    RaftLease,
    /// Raft: a vote goes only to a candidate whose log is as new as the voter's. Not ours.
    LogRule,
    /// Not a rule, but a sound model, for the judge's own tests: an operator is answered when the entry is applied. Taken
    /// out: when it is appended.
    AnswerApplied,
    /// The same: what is there already is answered by an entry, too. Taken out: out of the state at hand.
    AnswerFromLog,
    /// The same: a node that is started again makes its state of its whole log. Taken out: without one VIP.
    WholeState,
    /// The same: no run panics. Taken out: each second start of a daemon does.
    NoPanic,
}

/// One thing that is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Omission {
    /// Of vip-core.
    Core(Rule),
    /// Of what is modelled around it.
    Model(Part),
}

impl Omission {
    /// Everything that can be taken out.
    pub const ALL: &[Self] = &[
        Self::Core(Rule::DriftMargin),
        Self::Core(Rule::QueueMargin),
        Self::Core(Rule::VoterDrift),
        Self::Core(Rule::OwnAnswersOnly),
        Self::Core(Rule::Quorum),
        Self::Core(Rule::OwnEntryApplied),
        Self::Core(Rule::OwnAssignment),
        Self::Core(Rule::WonByDurableVote),
        Self::Core(Rule::RestartSilence),
        Self::Core(Rule::NoLeaderRestored),
        Self::Core(Rule::VoterPromise),
        Self::Core(Rule::CandidatePromise),
        Self::Core(Rule::AcknowledgeInOrder),
        Self::Core(Rule::Hold),
        Self::Core(Rule::ExemptByLastOnly),
        Self::Core(Rule::Used),
        Self::Core(Rule::VoteVoidsAnswers),
        Self::Core(Rule::VoteInFlight),
        Self::Core(Rule::NeverAgain),
        Self::Core(Rule::TransferAfterRelease),
        Self::Core(Rule::TransferQueue),
        Self::Core(Rule::QueueOfAnyone),
        Self::Core(Rule::ReleasedQueue),
        Self::Core(Rule::TransferName),
        Self::Core(Rule::OpenBeforeAdd),
        Self::Core(Rule::ShutBeforeRemove),
        Self::Core(Rule::EpochOnce),
        Self::Core(Rule::DropBeforeEnable),
        Self::Core(Rule::DropWhatMustGo),
        Self::Core(Rule::AssignByDecider),
        Self::Core(Rule::AssignBase),
        Self::Model(Part::SendTime),
        Self::Model(Part::DurableVote),
        Self::Model(Part::OwnVoteFirst),
        Self::Model(Part::FirstVoteAwaited),
        Self::Model(Part::CountAfterGrant),
        Self::Model(Part::StandOnce),
        Self::Model(Part::StrictPristine),
        Self::Model(Part::VoteAlone),
        Self::Model(Part::TransferOfPresentVote),
        Self::Model(Part::ResignFirst),
        Self::Model(Part::TellTargetOnly),
        Self::Model(Part::SilentAfterResign),
        Self::Model(Part::AwaitPredecessor),
        Self::Model(Part::ZeroAtStart),
        Self::Model(Part::ShutAtStart),
        Self::Model(Part::SweepAtStart),
        Self::Model(Part::KernelFence),
        Self::Model(Part::AbsoluteDeadline),
        Self::Model(Part::RaftLease),
        Self::Model(Part::LogRule),
        Self::Model(Part::AnswerApplied),
        Self::Model(Part::AnswerFromLog),
        Self::Model(Part::WholeState),
        Self::Model(Part::NoPanic),
    ];
}

impl fmt::Display for Omission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Core(rule) => write!(f, "{rule:?}"),
            Self::Model(part) => write!(f, "{part:?}"),
        }
    }
}

impl FromStr for Omission {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.iter().copied().find(|omission| omission.to_string().eq_ignore_ascii_case(name)).ok_or_else(|| {
            let all: Vec<_> = Self::ALL.iter().map(ToString::to_string).collect();
            format!("there is no {name} to take out; there are {}", all.join(", "))
        })
    }
}
