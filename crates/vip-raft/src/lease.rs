//! The lease gate in the running process: one mutex, the thread that renews the kernel's deadline, and who is told.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use vip_core::gate::{HeldVote, LeaseGate, NotArmed, Shut, VoteRequest};
use vip_core::{BootInstant, KillPoint, Leadership, NodeId};

use crate::store::VoteWitness;
use crate::types;

/// Reads `CLOCK_BOOTTIME`. Passed in, so that whoever simulates the node brings the time.
pub type Clock = fn() -> BootInstant;

/// Where the lease's deadline takes effect: the kernel.
pub trait LeaseSink: Send + Sync {
    /// Lets the leader's lease run until `deadline`. Called with the gate locked: must not block, must not call back.
    ///
    /// # Errors
    /// What the kernel said; the lease then runs out at its old deadline.
    fn arm(&self, deadline: BootInstant) -> io::Result<()>;

    /// Ends the leader's lease now. Called with the gate locked.
    ///
    /// # Errors
    /// What the kernel said.
    fn disarm(&self) -> io::Result<()>;

    /// By how much the kernel may end a lease after the deadline that it was given; taken off every deadline.
    fn slack(&self) -> Duration {
        Duration::ZERO
    }

    /// The deadline was moved, or could not be. Called from the renewing thread with the gate unlocked.
    fn renewed(&self, leadership: Leadership, result: Result<BootInstant, io::Error>);
}

/// What a peer was last heard of as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerState {
    /// When it last answered anything.
    pub answered_at: Option<BootInstant>,
    /// Whether it said that it could carry every VIP.
    pub eligible: bool,
    /// Why this node refuses it, if so.
    pub refused: Option<String>,
    /// Why it refuses this node, if so.
    pub refuses: Option<String>,
}

struct Inner {
    gate: LeaseGate,
    voters: Vec<BTreeSet<NodeId>>,
    peers: BTreeMap<NodeId, PeerState>,
    /// When this node last gave its vote, to another or to itself.
    voted_at: Option<BootInstant>,
    /// When this node last said that it would give its vote.
    encouraged_at: Option<BootInstant>,
    /// For whom the newest vote is that became durable in this process.
    durable_vote: Option<Leadership>,
    /// This node's newest candidacy; its vote for itself may be on its way to the disk.
    candidacy: Option<Leadership>,
    /// The newest deadline in the kernel.
    deadline: Option<(Leadership, BootInstant)>,
}

/// What decides when a node stands for election.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prospects {
    /// When the gate opens.
    pub(crate) open_from: BootInstant,
    /// When this node last gave its vote, to another or to itself.
    pub(crate) voted_at: Option<BootInstant>,
    /// When it last said that it would.
    pub(crate) encouraged_at: Option<BootInstant>,
    /// It stands already, and its vote for itself is on its way to the disk.
    pub(crate) standing: bool,
}

/// The gate with its mutex. Shared by the votes' handlers, the peers' network, the store and the renewing thread.
pub struct Lease {
    inner: Mutex<Inner>,
    clock: Clock,
    sink: Arc<dyn LeaseSink>,
    renew: SyncSender<()>,
    /// Ticks whenever the answer to "does this node lead, and may it assign" can have changed.
    changed: watch::Sender<()>,
    eligible: AtomicBool,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("gate", &self.lock().gate).finish_non_exhaustive()
    }
}

impl Lease {
    /// Wraps `gate`; the second value drives [`Self::run_renewals`].
    pub(crate) fn new(gate: LeaseGate, clock: Clock, sink: Arc<dyn LeaseSink>) -> (Arc<Self>, Receiver<()>) {
        // Depth 1: a renewal that waits takes in everything that came before it runs.
        let (renew, wanted) = sync_channel(1);
        let inner = Inner {
            gate,
            voters: Vec::new(),
            peers: BTreeMap::new(),
            voted_at: None,
            encouraged_at: None,
            durable_vote: None,
            candidacy: None,
            deadline: None,
        };
        let (changed, _) = watch::channel(());
        let eligible = AtomicBool::new(true);
        (Arc::new(Self { inner: Mutex::new(inner), clock, sink, renew, changed, eligible }), wanted)
    }

    /// The body of the thread that renews the deadline; it does nothing else. Ends when the lease is dropped.
    pub(crate) fn run_renewals(lease: &std::sync::Weak<Self>, wanted: &Receiver<()>) {
        while wanted.recv().is_ok() {
            let Some(lease) = lease.upgrade() else { return };
            lease.renew_once();
        }
    }

    fn renew_once(&self) {
        let armed = {
            let mut inner = self.lock();
            let now = (self.clock)();
            let Inner { gate, voters, .. } = &mut *inner;
            match gate.arm(voters, now) {
                // Written before the gate is unlocked: a computed deadline is in the kernel, or void.
                Ok((leadership, deadline)) => {
                    let result = self.sink.arm(deadline).map(|()| deadline);
                    if result.is_ok() {
                        inner.deadline = Some((leadership, deadline));
                    }
                    Some((leadership, result))
                }
                Err(_) => None,
            }
        };
        if let Some((leadership, result)) = armed {
            self.sink.renewed(leadership, result);
        }
    }

    /// The time on this node's clock.
    pub(crate) fn now(&self) -> BootInstant {
        (self.clock)()
    }

    /// From here on the lease of `leadership` may be armed: nothing of an older one is held.
    pub fn enable(&self, leadership: Leadership) {
        self.lock().gate.enable(leadership);
        KillPoint::AcquireEnabled.reach();
        self.want_renewal();
    }

    /// Gives `leadership` up: no deadline is armed in it ever again, and the one in the kernel is zeroed (R6). Where
    /// another leadership is current by now, the kernel's deadline is none of this one's.
    ///
    /// # Errors
    /// What the kernel said when the deadline was to be zeroed; then the lease runs on to its deadline, and elections
    /// wait for that.
    pub fn resign(&self, leadership: Leadership) -> io::Result<()> {
        let mut inner = self.lock();
        if !inner.gate.resign(leadership) {
            return Ok(());
        }
        self.sink.disarm()?;
        inner.gate.released((self.clock)());
        inner.deadline = None;
        drop(inner);
        self.changed.send_replace(());
        Ok(())
    }

    /// The newest deadline in the kernel and whose it is.
    #[must_use]
    pub fn deadline(&self) -> Option<(Leadership, BootInstant)> {
        self.lock().deadline
    }

    /// Whether this node could carry every VIP; told to the peers, and weighed in elections.
    pub fn set_eligible(&self, eligible: bool) {
        self.eligible.store(eligible, Ordering::Relaxed);
    }

    /// What [`Self::set_eligible`] said last.
    #[must_use]
    pub fn eligible(&self) -> bool {
        self.eligible.load(Ordering::Relaxed)
    }

    /// The peers as they were last heard of.
    #[must_use]
    pub fn peers(&self) -> BTreeMap<NodeId, PeerState> {
        self.lock().peers.clone()
    }

    // ---- for the handlers and drivers of this crate ----

    pub(crate) fn set_voters(&self, voters: Vec<BTreeSet<NodeId>>) {
        self.lock().voters = voters;
        self.want_renewal();
    }

    pub(crate) fn voters(&self) -> Vec<BTreeSet<NodeId>> {
        self.lock().voters.clone()
    }

    /// Whether the append may be acknowledged; if so, the promise that goes with it begins now.
    pub(crate) fn append_acknowledged(&self, leader: Leadership) -> bool {
        let mut inner = self.lock();
        let now = (self.clock)();
        inner.gate.append_acknowledged(leader, now)
    }

    /// Who asked this node to stand for `leadership`.
    pub(crate) fn transfer_of(&self, leadership: Leadership) -> Option<Leadership> {
        self.lock().gate.transfer_of(leadership)
    }

    pub(crate) fn check_vote(&self, request: VoteRequest) -> Result<(), Shut> {
        self.lock().gate.check_vote(request, (self.clock)())
    }

    /// Lets a vote through and keeps anything from being armed until the guard is dropped.
    pub(crate) fn begin_vote(&self, request: VoteRequest) -> Result<VoteInFlight<'_>, Shut> {
        self.lock().gate.begin_vote(request, (self.clock)())?;
        Ok(VoteInFlight { lease: self })
    }

    /// Waits until the votes of others for this node's candidacy `leadership` count: its own vote is durable, and no older
    /// lease can run (R4). If the store failed, until openraft stops waiting.
    pub(crate) async fn votes_count(&self, leadership: Leadership) {
        let mut changed = self.changed();
        while self.lock().durable_vote < Some(leadership) {
            if changed.changed().await.is_err() {
                return;
            }
        }
        loop {
            let from = self.lock().gate.votes_count_from();
            let now = self.now();
            if now >= from {
                return;
            }
            tokio::time::sleep(from.saturating_duration_since(now)).await;
        }
    }

    pub(crate) fn accept_transfer(&self, from: Leadership) -> Result<(), Shut> {
        self.lock().gate.accept_transfer(from, (self.clock)())
    }

    /// A peer answered an append of `leadership` that was sent at `sent_at`.
    pub(crate) fn append_answered(&self, leadership: Leadership, peer: NodeId, sent_at: BootInstant) {
        if self.lock().gate.append_answered(leadership, peer, sent_at) {
            self.want_renewal();
        }
    }

    pub(crate) fn peer_answered(&self, peer: NodeId, eligible: bool) {
        let now = (self.clock)();
        let mut inner = self.lock();
        let state = inner.peers.entry(peer).or_default();
        state.answered_at = Some(now);
        state.eligible = eligible;
        state.refused = None;
        state.refuses = None;
    }

    /// This node refuses `peer`. Returns whether that is news, and so worth a line in the log.
    pub(crate) fn peer_refused(&self, peer: NodeId, why: &str) -> bool {
        self.note_refusal(peer, why, |state| &mut state.refused)
    }

    /// `peer` refuses this node. Returns whether that is news, and so worth a line in the log.
    pub(crate) fn refused_by(&self, peer: NodeId, why: &str) -> bool {
        self.note_refusal(peer, why, |state| &mut state.refuses)
    }

    fn note_refusal(&self, peer: NodeId, why: &str, field: fn(&mut PeerState) -> &mut Option<String>) -> bool {
        /// Strangers can claim any id; no more of them than this are remembered.
        const PEERS: usize = 64;
        let mut inner = self.lock();
        if inner.peers.len() >= PEERS && !inner.peers.contains_key(&peer) {
            return false;
        }
        let known = field(inner.peers.entry(peer).or_default());
        let news = known.as_deref() != Some(why);
        *known = Some(why.to_owned());
        news
    }

    pub(crate) fn entry_applied(&self, by: Leadership) {
        self.lock().gate.entry_applied(by);
        self.changed.send_replace(());
        self.want_renewal();
    }

    pub(crate) fn check_reign(&self) -> Result<Leadership, NotArmed> {
        self.lock().gate.check_reign((self.clock)())
    }

    pub(crate) fn leading(&self) -> Option<Leadership> {
        self.lock().gate.leading()
    }

    pub(crate) fn resigned(&self) -> bool {
        self.lock().gate.resigned()
    }

    pub(crate) fn may_transfer(&self, from: Leadership) -> bool {
        self.lock().gate.may_transfer(from)
    }

    pub(crate) fn check_campaign(&self) -> Result<(), Shut> {
        self.lock().gate.check_campaign((self.clock)())
    }

    /// This node said that it would give its vote, and leaves the field to the one who asked for a while.
    pub(crate) fn encouraged(&self) {
        let now = (self.clock)();
        self.lock().encouraged_at = Some(now);
    }

    pub(crate) fn prospects(&self) -> Prospects {
        let inner = self.lock();
        Prospects {
            open_from: inner.gate.campaign_from(),
            voted_at: inner.voted_at,
            encouraged_at: inner.encouraged_at,
            standing: inner.durable_vote < inner.candidacy,
        }
    }

    pub(crate) fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The other voters that are able to carry the VIPs and answered within the last lease.
    pub(crate) fn successors(&self) -> Vec<NodeId> {
        let now = (self.clock)();
        let inner = self.lock();
        let lease = inner.gate.timing().lease;
        let voters: BTreeSet<_> = inner.voters.iter().flatten().copied().collect();
        inner
            .peers
            .iter()
            .filter(|(peer, state)| {
                voters.contains(peer)
                    && state.eligible
                    && state.answered_at.is_some_and(|at| now.saturating_duration_since(at) < lease)
            })
            .map(|(peer, _)| *peer)
            .collect()
    }

    /// Has the renewing thread look again.
    pub(crate) fn want_renewal(&self) {
        // Full means that a renewal is about to run anyway.
        let _ = self.renew.try_send(());
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here can leave the gate half changed when it panics.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it lives, nothing is armed.
pub(crate) struct VoteInFlight<'a> {
    lease: &'a Lease,
}

impl Drop for VoteInFlight<'_> {
    fn drop(&mut self) {
        self.lease.lock().gate.end_vote();
        self.lease.want_renewal();
    }
}

/// A vote as the gate knows it.
pub(crate) fn held_vote(vote: &types::Vote) -> HeldVote {
    HeldVote { leadership: types::leadership_of(vote), committed: vote.committed }
}

/// Stands between the store, which is opened first, and the lease, which needs the store's vote to be made.
#[derive(Debug, Default)]
pub struct LateWitness(std::sync::OnceLock<Arc<Lease>>);

impl LateWitness {
    pub(crate) fn set(&self, lease: Arc<Lease>) {
        let _ = self.0.set(lease);
    }
}

impl VoteWitness for LateWitness {
    fn vote_changing(&self, vote: &types::Vote) {
        let Some(lease) = self.0.get() else { return };
        let vote = held_vote(vote);
        let mut inner = lease.lock();
        inner.gate.vote_changing(vote);
        if !vote.committed {
            inner.voted_at = Some((lease.clock)());
            if vote.leadership.node == inner.gate.me() {
                inner.candidacy = Some(vote.leadership);
            }
        }
    }

    fn vote_saved(&self, vote: &types::Vote) {
        let Some(lease) = self.0.get() else { return };
        let vote = held_vote(vote);
        let mut inner = lease.lock();
        inner.gate.vote_saved(vote);
        if !vote.committed {
            // The answers that waited for it count from now on: whoever stands, stands for a while.
            inner.voted_at = Some((lease.clock)());
        }
        inner.durable_vote = inner.durable_vote.max(Some(vote.leadership));
        drop(inner);
        lease.changed.send_replace(());
        lease.want_renewal();
    }
}
