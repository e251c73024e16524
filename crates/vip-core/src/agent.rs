//! The node-local machine: turns what the cluster agreed on, and this node's lease, into effects on this host.
//!
//! ```text
//!              assigned to me, lease runs            opened             address is there
//!   Standby ────────────────────────────▶ Opening ──────────▶ Adding ──────────────────▶ Active
//!      ▲                                     │                  │                          │ announce: burst, then refresh
//!      │  address gone          fence shut   │   deadline past, other owner, link down, …  │
//!      └─────────────── Removing ◀────── Shutting ◀─────────────┴──────────────────────────┘
//! ```
//!
//! Inputs come in through [`Agent::handle`] with the present instant; effects are pulled as data with
//! [`Agent::poll_action`] and done by the caller *in that order, one at a time*, each followed by its
//! [`Input::Done`] where [`Action`] says so; [`Agent::next_deadline`] says when to call again at the latest.
//!
//! What must hold: acquiring goes fence shut → deadline → opened → address → announce; releasing goes fence shut →
//! address gone → only then something else (R8). An epoch that was released is never acquired again. The machine never
//! extends a deadline: it opens the fence for a VIP, the kernel compares the clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::cluster::{Assignment, Claim, Cluster, LeaseKind, VipRecord};
use crate::ids::{Epoch, Leadership, NodeId, VipName};
use crate::rules::{Rule, holds};
use crate::spec::VipSpec;
use crate::time::BootInstant;

/// How the agent behaves.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// This node.
    pub me: NodeId,
    /// The kernel's name for the interface selectors that differ from it.
    pub interface_map: BTreeMap<String, String>,
    /// When to announce after a takeover, counted from it. Sorted.
    pub announce_burst: Vec<Duration>,
    /// How often to announce afterwards.
    pub announce_refresh: Duration,
    /// How often to renew the finite lifetime of the addresses in the kernel.
    pub address_refresh: Duration,
    /// How long to wait before a VIP that could not be acquired is tried again; a tenth of it after the first failures.
    pub acquire_retry: Duration,
    /// How long a refused proposal waits.
    pub propose_retry: Duration,
    /// For how long a node that failed to acquire a VIP again and again leaves the lead to others.
    pub blocked_for: Duration,
    /// The least time between two attempts to hand leadership over because an interface is down.
    pub step_aside_interval: Duration,
}

/// This node's leadership, as the lease gate sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reign {
    /// Term and node.
    pub leadership: Leadership,
    /// R2 and R4 are met: VIPs may be assigned.
    pub ready: bool,
    /// Another voter, able to carry the VIPs, acknowledged within the last lease.
    pub successor: bool,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// The agreed state after an entry was applied.
    State(Arc<Cluster>),
    /// This node leads, or not.
    Reign(Option<Reign>),
    /// The kernel deadline of the leader's lease was moved to this instant.
    Lease(Leadership, BootInstant),
    /// The interfaces of this host, and whether each can carry traffic.
    Links(BTreeMap<String, bool>),
    /// An action was done; the results by VIP, in the action's order.
    Done(Step, Vec<(VipName, Epoch, Result<(), String>)>),
    /// A proposal was answered.
    Proposed(Result<(), String>),
    /// An address of ours is gone from the kernel, by somebody else's hand.
    AddressLost(IpAddr),
    /// This interface has another hardware address, or is another one by its name: the neighbours know it no more.
    Renewed(String),
    /// Whether the kernel fence is in place everywhere.
    Fence(bool),
    /// Give everything back and hand over leadership: the daemon ends.
    Shutdown,
    /// Nothing but time.
    Tick,
}

/// The steps that are answered by [`Input::Done`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// [`Action::Open`].
    Open,
    /// [`Action::Add`].
    Add,
    /// [`Action::Shut`].
    Shut,
    /// [`Action::Remove`].
    Remove,
}

/// A VIP as this node holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// Its name.
    pub vip: VipName,
    /// The fencing token.
    pub epoch: Epoch,
    /// The address.
    pub address: IpAddr,
    /// Its prefix length.
    pub prefix_len: u8,
    /// The kernel's name of the interface.
    pub interface: String,
}

/// An effect on this host or on the cluster. To be done in the order in which they are given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Enter these addresses into the fence, shut, unless they are in it.
    Know(Vec<IpAddr>),
    /// Take these addresses out of the fence: they are no VIPs any more.
    Forget(Vec<IpAddr>),
    /// From here on the lease of this leadership may be armed.
    Enable(Leadership),
    /// Ask the cluster to make this node the owner. Answered by [`Input::Proposed`].
    Propose(Leadership, Vec<Claim>),
    /// Let the lease's deadline decide for these. Answered by [`Input::Done`].
    Open(Vec<Holding>),
    /// Put the addresses on their interfaces. Answered by [`Input::Done`].
    Add(Vec<Holding>),
    /// Announce the addresses.
    Announce(Vec<Holding>),
    /// Renew the lifetime of the addresses.
    Refresh(Vec<Holding>),
    /// Close the fence. Answered by [`Input::Done`].
    Shut(Vec<Holding>),
    /// Take the addresses off their interfaces. Answered by [`Input::Done`].
    Remove(Vec<Holding>),
    /// Never arm again in this leadership, and zero its deadline.
    Resign(Leadership),
    /// Nothing is held any more: hand leadership over.
    Transfer,
    /// Nothing is held any more and the daemon may end.
    Finished,
}

/// What a VIP is doing on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HolderState {
    /// Not held here.
    Standby,
    /// On its way in.
    Acquiring,
    /// Held and announced.
    Active,
    /// On its way out.
    Releasing,
    /// The lease ran out; the kernel is silent for it and the address is being removed.
    Fenced,
}

/// A VIP as this node reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VipStatus {
    /// What it is doing here.
    pub state: HolderState,
    /// The assignment it is held by.
    pub epoch: Option<Epoch>,
    /// Why it could not be acquired the last time, if so.
    pub problem: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Standby,
    Opening,
    /// To be added in the same step, unless something speaks against it by now.
    Opened,
    /// `lost`: the address went away again meanwhile, so that the answer to come says nothing.
    Adding {
        lost: bool,
    },
    Active {
        since: BootInstant,
        announced: usize,
        next: BootInstant,
    },
    Shutting {
        fenced: bool,
    },
    Removing {
        fenced: bool,
    },
}

impl Phase {
    const fn held(self) -> bool {
        matches!(self, Self::Opening | Self::Opened | Self::Adding { .. } | Self::Active { .. })
    }
}

#[derive(Clone, Debug)]
struct Life {
    holding: Holding,
    by: Leadership,
    phase: Phase,
    released: Option<Epoch>,
    problem: Option<String>,
    /// Removing the address failed: it may still be there, behind the shut fence.
    leftover: bool,
    retry_at: BootInstant,
    /// How many times in a row it could not be acquired.
    failures: u32,
}

/// After how many failures in a row to acquire one VIP a node leaves the lead to others.
const FAILURES_TO_BLOCK: u32 = 3;

/// The machine. See the module's documentation.
#[derive(Debug)]
pub struct Agent {
    config: AgentConfig,
    cluster: Arc<Cluster>,
    lives: BTreeMap<VipName, Life>,
    known: BTreeSet<IpAddr>,
    links: BTreeMap<String, bool>,
    fence_ok: bool,
    reign: Option<Reign>,
    enabled: Option<Leadership>,
    lease: Option<(Leadership, BootInstant)>,
    proposing: bool,
    propose_at: BootInstant,
    refresh_at: BootInstant,
    /// The leadership that is being given up.
    resigned: Option<Leadership>,
    transferred: bool,
    step_aside_at: BootInstant,
    /// Until when this node counts as one that cannot carry every VIP, since it failed to.
    blocked_until: BootInstant,
    /// When [`Self::handle`] was last called.
    now: BootInstant,
    shutdown: bool,
    finished: bool,
    actions: VecDeque<Action>,
}

impl Agent {
    /// An agent that holds nothing; the fence is in place and shut.
    #[must_use]
    pub fn new(config: AgentConfig, now: BootInstant) -> Self {
        let step_aside_at = now + config.step_aside_interval;
        Self {
            config,
            cluster: Arc::default(),
            lives: BTreeMap::new(),
            known: BTreeSet::new(),
            links: BTreeMap::new(),
            fence_ok: true,
            reign: None,
            enabled: None,
            lease: None,
            proposing: false,
            propose_at: now,
            refresh_at: now,
            resigned: None,
            transferred: false,
            step_aside_at,
            blocked_until: BootInstant::ZERO,
            now,
            shutdown: false,
            finished: false,
            actions: VecDeque::new(),
        }
    }

    /// Takes in what happened at `now`.
    pub fn handle(&mut self, input: Input, now: BootInstant) {
        self.now = now;
        match input {
            Input::State(cluster) => self.on_state(cluster),
            Input::Reign(reign) => self.on_reign(reign),
            Input::Lease(leadership, deadline) => {
                let renewal = self.lease.is_some_and(|(known, until)| known == leadership && now < until);
                self.lease = Some((leadership, deadline));
                if renewal {
                    // The usual case, many times a second: nothing else can have changed.
                    return;
                }
            }
            Input::Links(links) => self.links = links,
            Input::Done(step, results) => self.on_done(step, results, now),
            Input::Proposed(result) => {
                self.proposing = false;
                if result.is_err() {
                    self.propose_at = now + self.config.propose_retry;
                }
            }
            Input::AddressLost(address) => self.on_address_lost(address),
            Input::Renewed(interface) => self.on_renewed(&interface, now),
            Input::Fence(ok) => self.fence_ok = ok,
            Input::Shutdown => self.shutdown = true,
            Input::Tick => {}
        }
        self.reconcile(now);
    }

    /// The next effect to do. To be called until it gives none, after every [`Self::handle`].
    #[must_use]
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call [`Self::handle`] with [`Input::Tick`] at the latest; none while there is nothing to wait for.
    #[must_use]
    pub fn next_deadline(&self) -> Option<BootInstant> {
        let mut next: Option<BootInstant> = None;
        let mut at = |instant: BootInstant| next = Some(next.map_or(instant, |known| known.min(instant)));
        let mut any_active = false;
        for life in self.lives.values() {
            match life.phase {
                Phase::Active { next: announce, .. } => {
                    any_active = true;
                    at(announce);
                }
                Phase::Standby if life.retry_at > BootInstant::ZERO => at(life.retry_at),
                Phase::Standby
                | Phase::Opening
                | Phase::Opened
                | Phase::Adding { .. }
                | Phase::Shutting { .. }
                | Phase::Removing { .. } => {}
            }
        }
        if any_active {
            at(self.refresh_at);
        }
        if self.lives.values().any(|life| life.phase.held()) {
            at(self.lease.map_or(BootInstant::ZERO, |(_, deadline)| deadline));
        }
        if self.reign.is_some_and(|reign| reign.ready) {
            if !self.proposing && self.propose_at > BootInstant::ZERO && !self.claims(self.propose_at).is_empty() {
                at(self.propose_at);
            }
            if self.wants_to_step_aside() {
                at(self.step_aside_at);
            }
        }
        next
    }

    /// What each VIP is doing here.
    #[must_use]
    pub fn status(&self) -> BTreeMap<VipName, VipStatus> {
        self.lives
            .iter()
            .map(|(name, life)| {
                let state = match life.phase {
                    Phase::Standby => HolderState::Standby,
                    Phase::Opening | Phase::Opened | Phase::Adding { .. } => HolderState::Acquiring,
                    Phase::Active { .. } => HolderState::Active,
                    Phase::Shutting { fenced: true } | Phase::Removing { fenced: true } => HolderState::Fenced,
                    Phase::Shutting { fenced: false } | Phase::Removing { fenced: false } => HolderState::Releasing,
                };
                let epoch = (state != HolderState::Standby).then_some(life.holding.epoch);
                (name.clone(), VipStatus { state, epoch, problem: life.problem.clone() })
            })
            .collect()
    }

    /// Whether this node can hold every VIP, as far as it knows, so that it may lead: the fence is in place, the
    /// interfaces carry traffic, and no VIP failed here again and again.
    #[must_use]
    pub fn can_carry_all(&self) -> bool {
        self.fence_ok && self.now >= self.blocked_until && self.cluster.vips.values().all(|vip| self.link_up(&vip.spec))
    }

    // ---- inputs ----

    fn on_state(&mut self, cluster: Arc<Cluster>) {
        let known: BTreeSet<_> = cluster.vips.values().map(|vip| vip.spec.address).collect();
        let new: Vec<_> = known.difference(&self.known).copied().collect();
        if !new.is_empty() {
            self.known.extend(&new);
            self.actions.push_back(Action::Know(new));
        }
        self.cluster = cluster;
    }

    fn on_reign(&mut self, reign: Option<Reign>) {
        let leadership = reign.map(|reign| reign.leadership);
        if leadership != self.reign.map(|reign| reign.leadership) {
            self.proposing = false;
            self.propose_at = BootInstant::ZERO;
        }
        // What was enabled or given up stays so: the same leadership may be reported again.
        self.reign = reign;
    }

    /// Whether this node is giving up the leadership that it has.
    fn resigning(&self) -> bool {
        self.reign.is_some_and(|reign| self.resigned == Some(reign.leadership))
    }

    fn on_done(&mut self, step: Step, results: Vec<(VipName, Epoch, Result<(), String>)>, now: BootInstant) {
        // The step that follows, for all VIPs that take it, as one action.
        let mut shut = Vec::new();
        let mut remove = Vec::new();
        let mut failed = Vec::new();
        for (vip, epoch, result) in results {
            let Some(life) = self.lives.get_mut(&vip) else { continue };
            if life.holding.epoch != epoch {
                continue;
            }
            match (step, life.phase, result) {
                (Step::Open, Phase::Opening, Ok(())) | (Step::Add, Phase::Adding { lost: true }, Ok(())) => {
                    life.phase = Phase::Opened;
                }
                (Step::Add, Phase::Adding { lost: false }, Ok(())) => {
                    life.problem = None;
                    life.failures = 0;
                    life.phase = Phase::Active { since: now, announced: 0, next: now };
                }
                (Step::Open, Phase::Opening, Err(why))
                | (Step::Add, Phase::Adding { .. } | Phase::Active { .. }, Err(why)) => {
                    life.problem = Some(why);
                    failed.push(vip.clone());
                    life.released = Some(epoch);
                    life.phase = Phase::Shutting { fenced: false };
                    shut.push(life.holding.clone());
                }
                // A fence that cannot be shut leaves the deadline to end it; the address goes all the same.
                (Step::Shut, Phase::Shutting { fenced }, _) => {
                    life.phase = Phase::Removing { fenced };
                    remove.push(life.holding.clone());
                }
                (Step::Remove, Phase::Removing { .. }, result) => {
                    // Where removing failed the fence is shut, and the address's lifetime ends it if nothing else does.
                    // It is tried again, and the address stays in the fence until then.
                    let was_in_the_way = std::mem::replace(&mut life.leftover, result.is_err());
                    match result {
                        Err(why) => {
                            life.problem = Some(why);
                            failed.push(vip.clone());
                        }
                        // What stood in the way of acquiring it is gone.
                        Ok(()) if was_in_the_way => life.failures = 0,
                        Ok(()) => {}
                    }
                    life.phase = Phase::Standby;
                }
                // Overtaken: the step was given out before the VIP had to be dropped.
                (Step::Open | Step::Add | Step::Shut | Step::Remove, _, _) => {}
            }
        }
        self.push(Action::Shut, shut);
        self.push(Action::Remove, remove);
        self.count_failures(&failed, now);
        if self.lives.values().all(|life| life.failures == 0) {
            self.blocked_until = BootInstant::ZERO;
        }
    }

    /// Somebody else's address in the way, an interface without IPv6: what fails here again and again another node may do.
    /// That it will is soon known: the first attempts come quickly.
    fn count_failures(&mut self, failed: &[VipName], now: BootInstant) {
        for name in failed {
            let Some(life) = self.lives.get_mut(name) else { continue };
            life.failures = life.failures.saturating_add(1);
            if life.failures < FAILURES_TO_BLOCK {
                life.retry_at = now + self.config.acquire_retry / 10;
            } else {
                life.retry_at = now + self.config.acquire_retry;
                self.blocked_until = now + self.config.blocked_for;
            }
        }
    }

    fn push(&mut self, action: fn(Vec<Holding>) -> Action, holdings: Vec<Holding>) {
        if !holdings.is_empty() {
            self.actions.push_back(action(holdings));
        }
    }

    fn on_address_lost(&mut self, address: IpAddr) {
        for life in self.lives.values_mut() {
            if life.holding.address == address {
                match life.phase {
                    Phase::Active { .. } => life.phase = Phase::Opened,
                    Phase::Adding { .. } => life.phase = Phase::Adding { lost: true },
                    Phase::Standby
                    | Phase::Opening
                    | Phase::Opened
                    | Phase::Shutting { .. }
                    | Phase::Removing { .. } => {}
                }
            }
        }
    }

    /// Announces what is on the interface as after a takeover.
    fn on_renewed(&mut self, interface: &str, now: BootInstant) {
        for life in self.lives.values_mut().filter(|life| life.holding.interface == interface) {
            if let Phase::Active { since, announced, next } = &mut life.phase {
                (*since, *announced, *next) = (now, 0, now);
            }
        }
    }

    // ---- towards what should be ----

    fn reconcile(&mut self, now: BootInstant) {
        for life in self.lives.values_mut().filter(|life| life.retry_at <= now) {
            life.retry_at = BootInstant::ZERO;
        }
        self.resign_if_asked(now);
        self.drop_what_must_go(now);
        self.add_what_is_opened();
        self.remove_leftovers();
        self.forget_deleted();
        self.after_all_is_dropped();
        self.acquire(now);
        self.propose(now);
        self.announce(now);
        self.refresh(now);
    }

    fn resign_if_asked(&mut self, now: BootInstant) {
        let Some(reign) = self.reign else { return };
        if self.resigning() {
            return;
        }
        let step_aside = self.wants_to_step_aside() && now >= self.step_aside_at;
        if self.shutdown || step_aside {
            self.step_aside_at = now + self.config.step_aside_interval;
            self.resigned = Some(reign.leadership);
            self.transferred = false;
            self.actions.push_back(Action::Resign(reign.leadership));
        }
    }

    fn wants_to_step_aside(&self) -> bool {
        self.reign.is_some_and(|reign| reign.ready && reign.successor) && !self.resigning() && !self.can_carry_all()
    }

    fn drop_what_must_go(&mut self, now: BootInstant) {
        let mut shut = Vec::new();
        let mut remove = Vec::new();
        let dropping: Vec<_> = self
            .lives
            .iter()
            .filter(|(_, life)| life.phase.held())
            .filter_map(|(name, life)| Some((name.clone(), self.must_drop(life, now)?)))
            .collect();
        for (name, fenced) in dropping {
            if let Some(life) = self.lives.get_mut(&name) {
                life.released = Some(life.holding.epoch);
                if holds(Rule::ShutBeforeRemove) {
                    life.phase = Phase::Shutting { fenced };
                    shut.push(life.holding.clone());
                } else {
                    life.phase = Phase::Removing { fenced };
                    remove.push(life.holding.clone());
                }
            }
        }
        self.push(Action::Shut, shut);
        self.push(Action::Remove, remove);
    }

    fn add_what_is_opened(&mut self) {
        let mut add = Vec::new();
        for life in self.lives.values_mut().filter(|life| life.phase == Phase::Opened) {
            life.phase = Phase::Adding { lost: false };
            add.push(life.holding.clone());
        }
        self.push(Action::Add, add);
    }

    /// Tries again to remove what could not be removed.
    fn remove_leftovers(&mut self) {
        let mut remove = Vec::new();
        for life in self.lives.values_mut() {
            if life.leftover && life.phase == Phase::Standby && life.retry_at == BootInstant::ZERO {
                life.phase = Phase::Removing { fenced: false };
                remove.push(life.holding.clone());
            }
        }
        self.push(Action::Remove, remove);
    }

    /// Whether a held VIP must go, and if so whether because its lease ran out.
    fn must_drop(&self, life: &Life, now: BootInstant) -> Option<bool> {
        if !holds(Rule::DropWhatMustGo) {
            return None;
        }
        let lapsed = self.lease.is_none_or(|(by, deadline)| by != life.by || deadline <= now);
        if lapsed {
            return Some(true);
        }
        let vip = self.cluster.vips.get(&life.holding.vip);
        let still_mine = vip.is_some_and(|vip| {
            vip.spec.address == life.holding.address
                && vip.assignment.is_some_and(|assignment| self.holds(&assignment) == Some(life.holding.epoch))
        });
        let other_reign = self.reign.is_some_and(|reign| reign.leadership != life.by);
        let link_down = vip.is_some_and(|vip| !self.link_up(&vip.spec));
        let must = !still_mine || other_reign || link_down || !self.fence_ok || self.shutdown || self.resigning();
        must.then_some(false)
    }

    /// The epoch of `assignment` if it makes this node the owner by its leader's lease.
    fn holds(&self, assignment: &Assignment) -> Option<Epoch> {
        match assignment.kind {
            LeaseKind::Leader => (assignment.owner == self.config.me).then_some(assignment.epoch),
        }
    }

    fn forget_deleted(&mut self) {
        self.lives.retain(|name, life| {
            life.phase != Phase::Standby
                || life.leftover
                || self.cluster.vips.get(name).is_some_and(|vip| vip.spec.address == life.holding.address)
        });
        let in_use: BTreeSet<IpAddr> = (self.cluster.vips.values().map(|vip| vip.spec.address))
            .chain(self.lives.values().map(|life| life.holding.address))
            .collect();
        let gone: Vec<_> = self.known.difference(&in_use).copied().collect();
        if !gone.is_empty() {
            self.known.retain(|address| in_use.contains(address));
            self.actions.push_back(Action::Forget(gone));
        }
    }

    /// What has to wait until nothing is held: handing over, ending, and enabling a new leadership.
    fn after_all_is_dropped(&mut self) {
        if self.lives.values().any(|life| life.phase != Phase::Standby) && holds(Rule::DropBeforeEnable) {
            return;
        }
        if self.resigning() && !self.transferred {
            self.transferred = true;
            self.actions.push_back(Action::Transfer);
        }
        if self.shutdown && !self.finished {
            self.finished = true;
            self.actions.push_back(Action::Finished);
        }
        if let Some(reign) = self.reign
            && self.enabled != Some(reign.leadership)
            && !self.resigning()
        {
            self.enabled = Some(reign.leadership);
            self.actions.push_back(Action::Enable(reign.leadership));
        }
    }

    fn acquire(&mut self, now: BootInstant) {
        let Some((leadership, deadline)) = self.lease else { return };
        let may = self.fence_ok
            && !self.shutdown
            && !self.resigning()
            && self.reign.is_some_and(|reign| reign.leadership == leadership)
            && self.enabled == Some(leadership)
            && now < deadline;
        if !may {
            return;
        }
        let mut open = Vec::new();
        for vip in self.cluster.vips.values() {
            let Some(assignment) = vip.assignment else { continue };
            let Some(epoch) = self.holds(&assignment) else { continue };
            let of_another = assignment.by != leadership && holds(Rule::OwnAssignment);
            if of_another || !self.link_up(&vip.spec) {
                continue;
            }
            let known = self.lives.get(&vip.spec.name);
            if known.is_some_and(|life| {
                life.phase != Phase::Standby || (life.released >= Some(epoch) && holds(Rule::EpochOnce))
            }) {
                continue;
            }
            let (problem, failures) = known.map_or((None, 0), |life| (life.problem.clone(), life.failures));
            open.push((self.holding(&vip.spec, epoch), problem, failures));
        }
        if open.is_empty() {
            return;
        }
        // An address that is on its way out under another name, or under another declaration of this one, goes first.
        let leaving: BTreeMap<_, _> = (self.lives.values())
            .filter(|life| life.phase != Phase::Standby || life.leftover)
            .map(|life| (life.holding.address, &life.holding.vip))
            .collect();
        open.retain(|(holding, ..)| {
            leaving.get(&holding.address).is_none_or(|name| **name == holding.vip)
                && self
                    .lives
                    .get(&holding.vip)
                    .is_none_or(|life| !life.leftover || life.holding.address == holding.address)
        });
        if open.is_empty() {
            return;
        }
        for (holding, problem, failures) in &open {
            let life = Life {
                holding: holding.clone(),
                by: leadership,
                phase: if holds(Rule::OpenBeforeAdd) { Phase::Opening } else { Phase::Adding { lost: false } },
                released: None,
                problem: problem.clone(),
                leftover: false,
                retry_at: BootInstant::ZERO,
                failures: *failures,
            };
            self.lives.insert(holding.vip.clone(), life);
        }
        let first_step = if holds(Rule::OpenBeforeAdd) { Action::Open } else { Action::Add };
        self.actions.push_back(first_step(open.into_iter().map(|(holding, ..)| holding).collect()));
    }

    fn propose(&mut self, now: BootInstant) {
        let Some(reign) = self.reign else { return };
        if !reign.ready || self.proposing || now < self.propose_at {
            return;
        }
        let claims = self.claims(now);
        if !claims.is_empty() {
            self.proposing = true;
            self.actions.push_back(Action::Propose(reign.leadership, claims));
        }
    }

    /// The VIPs that this leader should claim at `now`.
    fn claims(&self, now: BootInstant) -> Vec<Claim> {
        let Some(reign) = self.reign else { return Vec::new() };
        if self.shutdown || self.resigning() || !self.fence_ok {
            return Vec::new();
        }
        self.cluster
            .vips
            .values()
            .filter(|vip| self.should_claim(vip, reign.leadership, now))
            .map(|vip| Claim { vip: vip.spec.name.clone(), base: vip.assignment.map(|assignment| assignment.epoch) })
            .collect()
    }

    fn should_claim(&self, vip: &VipRecord, leadership: Leadership, now: BootInstant) -> bool {
        if !self.link_up(&vip.spec) {
            return false;
        }
        let life = self.lives.get(&vip.spec.name);
        if life.is_some_and(|life| life.phase != Phase::Standby || now < life.retry_at) {
            return false;
        }
        // Mine already, and not given back: acquiring it is all that is left to do.
        !vip.assignment.is_some_and(|assignment| {
            assignment.by == leadership
                && life.is_none_or(|life| life.released < Some(assignment.epoch) || !holds(Rule::EpochOnce))
        })
    }

    fn announce(&mut self, now: BootInstant) {
        let mut due = Vec::new();
        for life in self.lives.values_mut() {
            let Phase::Active { since, announced, next } = &mut life.phase else { continue };
            if now < *next {
                continue;
            }
            // Those that a stall made late are not made up for one by one.
            while self.config.announce_burst.get(*announced).is_some_and(|after| *since + *after <= now) {
                *announced += 1;
            }
            *next = match self.config.announce_burst.get(*announced) {
                Some(after) => *since + *after,
                None => now + self.config.announce_refresh,
            };
            due.push(life.holding.clone());
        }
        self.push(Action::Announce, due);
    }

    fn refresh(&mut self, now: BootInstant) {
        if now < self.refresh_at {
            return;
        }
        self.refresh_at = now + self.config.address_refresh;
        let active: Vec<_> = self
            .lives
            .values()
            .filter(|life| matches!(life.phase, Phase::Active { .. }))
            .map(|life| life.holding.clone())
            .collect();
        self.push(Action::Refresh, active);
    }

    fn holding(&self, spec: &VipSpec, epoch: Epoch) -> Holding {
        Holding {
            vip: spec.name.clone(),
            epoch,
            address: spec.address,
            prefix_len: spec.prefix_len,
            interface: self.interface(spec).to_owned(),
        }
    }

    fn interface<'a>(&'a self, spec: &'a VipSpec) -> &'a str {
        let selector = spec.interface.as_str();
        self.config.interface_map.get(selector).map_or(selector, String::as_str)
    }

    fn link_up(&self, spec: &VipSpec) -> bool {
        self.links.get(self.interface(spec)).copied().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests;
