//! Who stands for election, and when.
//!
//! openraft's own timer would add a random time of up to one lease. Instead each voter asks for a pre-vote as soon as
//! the lease that it granted has run out on its own clock, plus a few milliseconds times its rank: the most preferred
//! node that can carry the VIPs asks first and wins the first round. None of this is about safety; the lease gate is.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use vip_core::{BootInstant, NodeId};

use crate::lease::Prospects;
use crate::node::Core;

/// When a voter stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElectionTiming {
    /// Between the first attempts of two neighbours in rank: longer than a round of pre-vote, vote and fsync.
    pub rank_delay: Duration,
    /// Between two attempts of one node.
    pub retry: Duration,
    /// The same after the first attempts, some twenty of them, came to nothing.
    pub slow_retry: Duration,
    /// How long the field is left to a candidate that got this node's vote, or to this node's own candidacy.
    pub patience: Duration,
    /// How much longer a node waits that could not carry every VIP.
    pub handicap: Duration,
}

impl ElectionTiming {
    /// What goes with a lease: the figures scale with it, so that a slow disk does not make neighbours collide.
    #[must_use]
    pub fn for_lease(lease: Duration) -> Self {
        Self {
            rank_delay: (lease / 20).clamp(Duration::from_millis(8), Duration::from_millis(25)),
            retry: Duration::from_millis(10),
            slow_retry: (lease / 4).max(Duration::from_millis(25)),
            patience: (lease / 4).clamp(Duration::from_millis(40), Duration::from_millis(250)),
            handicap: lease,
        }
    }
}

/// A node that nobody answers is patient after so many attempts.
const HASTY_ATTEMPTS: u32 = 20;

/// The place of `me` among the voters, the lost leader left out. Lower ids are preferred.
fn rank(voters: &BTreeSet<NodeId>, lost: Option<NodeId>, me: NodeId) -> u32 {
    let before = voters.iter().filter(|voter| **voter < me && Some(**voter) != lost).count();
    u32::try_from(before).unwrap_or(u32::MAX)
}

/// When to stand at the earliest.
fn stand_at(timing: &ElectionTiming, rank: u32, eligible: bool, prospects: Prospects) -> BootInstant {
    let handicap = if eligible { Duration::ZERO } else { timing.handicap };
    let mut at = prospects.open_from;
    if let Some(encouraged_at) = prospects.encouraged_at {
        at = at.max(encouraged_at + timing.rank_delay);
    }
    if let Some(voted_at) = prospects.voted_at {
        at = at.max(voted_at + timing.patience);
    }
    at + timing.rank_delay * rank + handicap
}

/// Stands for election whenever it is time. Never ends by itself.
pub(crate) async fn run(core: Arc<Core>, timing: ElectionTiming) {
    let mut changed = core.lease.changed();
    let mut attempts = 0;
    loop {
        let wait = next_wait(&core, &timing);
        if wait.is_zero() {
            if attempts == 0 {
                tracing::info!("no leader within the lease; standing for election");
            }
            attempt(&core).await;
            attempts += 1;
            let retry = if attempts < HASTY_ATTEMPTS { timing.retry } else { timing.slow_retry };
            tokio::time::sleep(retry).await;
            continue;
        }
        if core.leader().is_some() {
            attempts = 0;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = changed.changed() => {}
        }
    }
}

/// How long until this node may stand; zero is now.
fn next_wait(core: &Core, timing: &ElectionTiming) -> Duration {
    /// Looks again this often for what no event tells: that this node became a voter, or stopped to lead.
    const IDLE: Duration = Duration::from_millis(50);
    let me = core.identity.node;
    let voters: BTreeSet<_> = core.lease.voters().into_iter().flatten().collect();
    if !voters.contains(&me) || core.is_leader() || core.ending() {
        return IDLE;
    }
    let prospects = core.lease.prospects();
    if prospects.standing {
        // Standing again would throw away what the others answer. On a disk that stands still that is for the others to
        // see, who stand themselves before long.
        return IDLE;
    }
    let at = stand_at(timing, rank(&voters, core.leader(), me), core.lease.eligible(), prospects);
    // While appends come in, the time moves on; looking again when it is reached is soon enough.
    at.saturating_duration_since(core.lease.now())
}

async fn attempt(core: &Core) {
    if core.lease.check_campaign().is_err() {
        return;
    }
    if let Ok(raft) = core.raft()
        && let Err(error) = raft.trigger().elect(true).await
    {
        tracing::error!(%error, "cannot stand for election");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> BootInstant {
        BootInstant::from_nanos(ms * 1_000_000)
    }

    #[test]
    fn ranks_leave_the_lost_leader_out() {
        let voters = [1, 2, 3].map(NodeId).into();
        assert_eq!(rank(&voters, Some(NodeId(1)), NodeId(2)), 0);
        assert_eq!(rank(&voters, Some(NodeId(1)), NodeId(3)), 1);
        assert_eq!(rank(&voters, Some(NodeId(3)), NodeId(2)), 1);
        assert_eq!(rank(&voters, None, NodeId(3)), 2);
    }

    #[test]
    fn the_preferred_node_stands_at_once_and_the_others_give_it_time() {
        let timing = ElectionTiming::for_lease(Duration::from_millis(500));
        let open = Prospects { open_from: at(1000), voted_at: None, encouraged_at: None, standing: false };
        assert_eq!(stand_at(&timing, 0, true, open), at(1000));
        assert_eq!(stand_at(&timing, 1, true, open), at(1025));
        assert_eq!(stand_at(&timing, 0, false, open), at(1500));
        assert_eq!(stand_at(&timing, 0, true, Prospects { voted_at: Some(at(990)), ..open }), at(1115));
        assert_eq!(stand_at(&timing, 0, true, Prospects { voted_at: Some(at(10)), ..open }), at(1000));
        assert_eq!(stand_at(&timing, 1, true, Prospects { encouraged_at: Some(at(1001)), ..open }), at(1051));
    }
}
