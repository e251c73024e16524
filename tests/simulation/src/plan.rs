//! What a run is made of, drawn from its seed before anything happens.

use std::time::Duration;

use vip_core::LeaseTiming;

use crate::dice::Dice;

/// True time, in nanoseconds since the beginning of the run. No node can read it.
pub type Nanos = u64;

/// A microsecond.
pub const US: Nanos = 1_000;
/// A millisecond.
pub const MS: Nanos = 1_000_000;

/// What goes wrong, or what an operator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A link in one direction.
    CutOneWay,
    /// A link in both.
    CutBoth,
    /// A node from all others.
    Isolate,
    /// The leader from all others but one.
    LeaveOne,
    /// All links work again.
    Mend,
    /// A process stops for a while and goes on.
    Freeze,
    /// The leader's process does.
    FreezeLeader,
    /// A process dies and is started again.
    Crash,
    /// The leader's process dies.
    CrashLeader,
    /// A host dies with its kernel and boots.
    HostDies,
    /// A host sleeps; its clock counts on.
    Suspend,
    /// A disk takes long.
    SlowDisk,
    /// A clock changes its rate.
    Rate,
    /// An interface loses its carrier.
    LinkDown,
    /// The leader's interface does.
    LeaderLinkDown,
    /// A daemon is ended in order and started again.
    Terminate,
    /// The leader's daemon is.
    TerminateLeader,
    /// Somebody removes an address.
    LoseAddress,
    /// Kernel operations fail for a while.
    FailKernel,
    /// The fence's filter is found missing and repaired.
    FenceVanishes,
    /// Messages are slow or lost for a while.
    BadNetwork,
    /// An operator declares or deletes a VIP.
    Operate,
    /// The leader is cut off, a voter restarts, and another stands.
    CutLeaderRestartVoter,
    /// A leader hears of a higher vote while cut off from all but one.
    CutVoterThenMend,
}

const FAULTS: [(Fault, u64); 24] = [
    (Fault::CutOneWay, 8),
    (Fault::CutBoth, 5),
    (Fault::Isolate, 5),
    (Fault::LeaveOne, 5),
    (Fault::Mend, 12),
    (Fault::Freeze, 7),
    (Fault::FreezeLeader, 7),
    (Fault::Crash, 6),
    (Fault::CrashLeader, 4),
    (Fault::HostDies, 2),
    (Fault::Suspend, 3),
    (Fault::SlowDisk, 5),
    (Fault::Rate, 3),
    (Fault::LinkDown, 3),
    (Fault::LeaderLinkDown, 4),
    (Fault::Terminate, 3),
    (Fault::TerminateLeader, 6),
    (Fault::LoseAddress, 2),
    (Fault::FailKernel, 2),
    (Fault::FenceVanishes, 2),
    (Fault::BadNetwork, 6),
    (Fault::Operate, 8),
    (Fault::CutLeaderRestartVoter, 6),
    (Fault::CutVoterThenMend, 5),
];

/// A run's figures.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How many nodes.
    pub nodes: usize,
    /// The lease's figures, the same on all nodes.
    pub timing: LeaseTiming,
    /// Between two heartbeats.
    pub heartbeat: Duration,
    /// Whether openraft keeps its own lease, too. Without it the gate stands alone.
    pub raft_lease: bool,
    /// Whether some messages are very slow.
    pub slow_network: bool,
    /// Whether a vote takes a while between gate and engine.
    pub slow_votes: bool,
    /// The least and the most that a message takes.
    pub delay: (Nanos, Nanos),
    /// The least and the most that a commit to disk takes.
    pub disk: (Nanos, Nanos),
    /// How many in a hundred messages are lost.
    pub loss: u64,
    /// How many in a hundred messages come twice.
    pub twice: u64,
    /// Whether disks stand still.
    pub stalls: bool,
    /// The least and the most between two faults.
    pub pace: (Nanos, Nanos),
    /// When faults begin, and when they end.
    pub chaos: (Nanos, Nanos),
    /// What goes wrong, with its weight.
    pub faults: Vec<(Fault, u64)>,
}

impl Plan {
    /// The figures that go with `dice`.
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        let nodes = if dice.percent(70) { 3 } else { 5 };
        let lease_ms = dice.pick(&[100, 100, 100, 200, 500]);
        let lease = Duration::from_millis(lease_ms);
        let timing = LeaseTiming {
            lease,
            clock_drift_ppm: dice.pick(&[1000, 1000, 20_000, 100_000]),
            queue_time: Duration::from_millis(dice.pick(&[5, 20, 1, 10])),
        };
        let unit = lease_ms * MS;
        let end = unit * dice.between(10, 24);
        // Each run has some faults and not others, so that rare ones meet often in some runs.
        let faults = FAULTS.into_iter().filter(|_| dice.percent(60)).collect();
        Self {
            nodes,
            timing,
            heartbeat: lease / 5,
            raft_lease: dice.percent(50),
            slow_network: dice.percent(40),
            slow_votes: dice.percent(40),
            delay: if dice.percent(50) { (20 * US, 300 * US) } else { (50 * US, 2 * MS) },
            disk: if dice.percent(50) { (100 * US, 800 * US) } else { (300 * US, 5 * MS) },
            loss: dice.pick(&[0, 1, 3]),
            twice: dice.pick(&[0, 2]),
            stalls: dice.aside().percent(50),
            pace: (unit / 20, unit * dice.between(4, 14) / 10),
            chaos: (unit * 2, end),
            faults,
        }
    }

    /// Nothing goes wrong but what a script does: three nodes, L = 100 ms, swift and even messages.
    #[must_use]
    pub fn quiet(timing: LeaseTiming) -> Self {
        Self {
            nodes: 3,
            timing,
            heartbeat: timing.lease / 5,
            raft_lease: false,
            slow_network: false,
            slow_votes: false,
            delay: (100 * US, 100 * US),
            disk: (100 * US, 100 * US),
            loss: 0,
            twice: 0,
            stalls: false,
            pace: (u64::MAX / 4, u64::MAX / 4),
            chaos: (u64::MAX / 4, u64::MAX / 2),
            faults: Vec::new(),
        }
    }

    /// L in true time.
    #[must_use]
    pub fn lease(&self) -> Nanos {
        nanos(self.timing.lease)
    }

    /// How long after healing every VIP is answered again at the latest.
    ///
    /// A node that was restarted is silent for L·(1+r), one that could not carry everything stands L later than others,
    /// one that voted leaves the field to its candidate for L/4, and with few voters left a round may have to be repeated
    /// with those pauses: 12 L hold all of it. A VIP that could not be acquired is tried again after 1 s, and a fence
    /// that was found missing is looked at again within 2 s.
    #[must_use]
    pub fn budget(&self) -> Nanos {
        12 * self.lease() + 3_500 * MS
    }
}

/// As a number.
#[must_use]
pub fn nanos(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
