//! The rules as switches, for the simulation that shows of each that something goes wrong without it.
//!
//! In everything that is shipped `holds` is `true`, known to the compiler. Only with the feature `removable-rules`, which
//! no manifest of the main workspace may enable (`tests/tests/tidy.rs`), can a thread take rules out for itself.

/// A rule of ARCHITECTURE.md, or one clause of it, that can be taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Rule {
    /// R1: the deadline gives up 2·r·L for clocks that drift.
    DriftMargin,
    /// R1: the deadline gives up q for frames that are queued.
    QueueMargin,
    /// R1: a voter counts its promise as L·(1 + r).
    VoterDrift,
    /// R1: only answers to appends of the present leadership count.
    OwnAnswersOnly,
    /// R1, R13: a deadline needs a quorum's answers.
    Quorum,
    /// R2: an entry of the own leadership is applied first.
    OwnEntryApplied,
    /// R2: an assignment is acquired only in the leadership that decided it.
    OwnAssignment,
    /// R2: who won by a vote that is durable leads, also before it is durable that it won.
    WonByDurableVote,
    /// R3: a restarted node is silent.
    RestartSilence,
    /// R3: a leadership of an earlier process does not come back.
    NoLeaderRestored,
    /// The voter's promise: no vote for a lease after an append.
    VoterPromise,
    /// R4: the same for its own candidacy.
    CandidatePromise,
    /// An append is not acknowledged once the vote has moved on.
    AcknowledgeInOrder,
    /// R4: a leader waits for the lease that it granted itself.
    Hold,
    /// R4: exempt is only a transfer by the leader acknowledged last.
    ExemptByLastOnly,
    /// R5: neither vote nor candidacy while the own lease runs.
    Used,
    /// R5: a vote voids the answers to older appends.
    VoteVoidsAnswers,
    /// R5: nothing is armed while a vote is being handled.
    VoteInFlight,
    /// R6: what is given up is never armed again.
    NeverAgain,
    /// R6: a transfer leaves only after the deadline is zeroed.
    TransferAfterRelease,
    /// R6: who takes over by a transfer waits until the frames of the leader before have left.
    TransferQueue,
    /// R6: also where it never followed the one who asked it.
    QueueOfAnyone,
    /// R6: nor does who gave up vote before they have.
    ReleasedQueue,
    /// R6: a transfer vote passes only in the name of the leader acknowledged last.
    TransferName,
    /// R8: the fence is opened before the address is added.
    OpenBeforeAdd,
    /// R8: the fence is shut before the address is removed.
    ShutBeforeRemove,
    /// R8: an epoch that was released is not acquired again.
    EpochOnce,
    /// R8, R10: a leadership is enabled only when nothing of an older one is held.
    DropBeforeEnable,
    /// R8: the agent drops what its lease, its assignment or its reign does not hold any more.
    DropWhatMustGo,
    /// R10: an assignment counts only if the leadership that decided it appended it.
    AssignByDecider,
    /// R10: an assignment counts only for the epoch that it replaces.
    AssignBase,
}

/// Whether `rule` is in force.
#[cfg(not(feature = "removable-rules"))]
#[inline]
pub(crate) const fn holds(_rule: Rule) -> bool {
    true
}

#[cfg(feature = "removable-rules")]
pub(crate) use removable::holds;
#[cfg(feature = "removable-rules")]
pub use removable::take_out;

#[cfg(feature = "removable-rules")]
mod removable {
    use std::cell::Cell;

    use super::Rule;

    thread_local! {
        static TAKEN_OUT: Cell<u64> = const { Cell::new(0) };
    }

    /// From here on exactly these rules are out of force in this thread.
    pub fn take_out(rules: &[Rule]) {
        TAKEN_OUT.set(rules.iter().fold(0, |set, rule| set | 1_u64 << *rule as u32));
    }

    pub(crate) fn holds(rule: Rule) -> bool {
        TAKEN_OUT.get() & (1_u64 << rule as u32) == 0
    }
}
