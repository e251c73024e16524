//! Named points of the daemon at which a test can have it killed or frozen: one beside each step whose effect outlives
//! the process, in the order of a daemon's life.
//!
//! In everything that is shipped [`KillPoint::reach`] is empty. Only with the feature `kill-points`, which nothing but the
//! tests of the whole enable (`tests/tests/tidy.rs`), does it call what was set as a hook. The list is here, where every
//! crate with such a step sees it; what happens at a point is the affair of vipd (`vipd/src/kill_points.rs`).

/// Whether this build has the points.
pub const BUILT_IN: bool = cfg!(feature = "kill-points");

macro_rules! kill_points {
    ($($(#[doc = $doc:literal])+ $point:ident = $name:literal,)+) => {
        /// A step of the daemon that is done, and whose effect outlives the process.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum KillPoint {
            $($(#[doc = $doc])+ $point,)+
        }

        impl KillPoint {
            /// Every point.
            pub const ALL: &[Self] = &[$(Self::$point,)+];

            /// By which name a test knows it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)+
                }
            }
        }
    };
}

kill_points! {
    /// The fence is taken over, its leases are ended and it is shut; addresses of the predecessor are there yet.
    StartFenceShut = "start.fence_shut",
    /// The predecessor's addresses are gone; its filters are in place, ours are not.
    StartSwept = "start.swept",
    /// Our filters are on every interface.
    StartFenced = "start.fenced",
    /// The store is open, and this node answers its peers from here on.
    StartJoined = "start.joined",

    /// Entries, votes or a snapshot are in a transaction that is not committed.
    StoreFilled = "store.filled",
    /// A vote is on the disk, and nobody knows.
    StoreVoteWritten = "store.vote_written",
    /// Entries are on the disk, and nobody knows.
    StoreEntriesWritten = "store.entries_written",

    /// A vote for another is granted and durable; the answer has not left.
    VoteGranted = "vote.granted",
    /// A candidate has another's vote, and its own is durable: it is about to have won.
    VoteCounted = "vote.counted",
    /// Entries are committed and applied.
    EntriesApplied = "entries.applied",

    /// A follower has made its promise to the leader; the answer has not left.
    AppendAcknowledged = "append.acknowledged",
    /// A follower's answer has come, and does not count for the lease yet.
    AppendAnswered = "append.answered",
    /// The lease's new deadline is computed, and counts as used; it is not in the kernel.
    LeaseComputed = "lease.computed",
    /// The lease's new deadline is in the kernel, and nobody else knows.
    LeaseWritten = "lease.written",

    /// VIPs that nobody knew here are in the fence, shut.
    VipKnown = "vip.known",
    /// This node's claim to VIPs is committed and applied; the agent does not know.
    VipAssigned = "vip.assigned",
    /// The lease of a new leadership may be armed; the agent has done nothing else.
    AcquireEnabled = "acquire.enabled",
    /// The fence is open for VIPs; their addresses are not there.
    AcquireFenceOpened = "acquire.fence_opened",
    /// The addresses are there; nobody was told.
    AcquireAddressAdded = "acquire.address_added",
    /// The first frames of an announcement have left, and others are to follow.
    AcquireFrameSent = "acquire.frame_sent",
    /// Every address is announced.
    AcquireAnnounced = "acquire.announced",
    /// The lifetime of the addresses is renewed.
    AddressRefreshed = "address.refreshed",

    /// The lease is ended in the kernel ahead of its deadline; the gate does not know.
    ReleaseLeaseEnded = "release.lease_ended",
    /// The fence is shut for VIPs; their addresses are there.
    ReleaseFenceShut = "release.fence_shut",
    /// The addresses are gone; the agent does not know.
    ReleaseAddressRemoved = "release.address_removed",
    /// Deleted VIPs are out of the fence.
    VipForgotten = "vip.forgotten",

    /// The leader is about to ask a successor to take over.
    TransferAsked = "transfer.asked",
    /// The successor has agreed to take over, and does not stand yet.
    TransferAccepted = "transfer.accepted",
    /// The leader knows that the successor has agreed.
    TransferAnswered = "transfer.answered",
    /// All is given back and handed over; this node still answers its peers.
    EndHandedOver = "end.handed_over",
    /// Raft has ended and the store is closed; the socket of the API is there.
    EndClosed = "end.closed",

    /// The filters that somebody took away are back.
    RepairFenced = "repair.fenced",
}

impl KillPoint {
    /// This point is reached.
    #[inline]
    pub fn reach(self) {
        #[cfg(feature = "kill-points")]
        hook::call(self);
    }
}

/// Sets what is called at every point from here on, by whichever thread reaches it; the first call counts.
#[cfg_attr(not(feature = "kill-points"), expect(unused_variables, reason = "nothing is called"))]
pub fn on_reach(hook: fn(KillPoint)) {
    #[cfg(feature = "kill-points")]
    hook::set(hook);
}

#[cfg(feature = "kill-points")]
mod hook {
    use std::sync::OnceLock;

    use super::KillPoint;

    static HOOK: OnceLock<fn(KillPoint)> = OnceLock::new();

    pub(super) fn set(hook: fn(KillPoint)) {
        let _ = HOOK.set(hook);
    }

    pub(super) fn call(point: KillPoint) {
        if let Some(hook) = HOOK.get() {
            hook(point);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_name_is_the_points_own_and_tells_its_phase() {
        let names: BTreeSet<&str> = KillPoint::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), KillPoint::ALL.len());
        assert!(names.iter().all(|name| name.split('.').count() == 2), "{names:?}");
    }
}
