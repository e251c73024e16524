//! A fake kernel, a fake lease gate and a fake cluster around one agent. Whatever the agent asks for is checked twice:
//! when it is decided, against what the agent has been told, and when it is done, against what the kernel holds.

use super::*;
use crate::cluster::Command;
use crate::spec::Placement;

pub(super) const ME: NodeId = NodeId(1);
pub(super) const OTHER: NodeId = NodeId(2);

pub(super) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(super) fn name(name: &str) -> VipName {
    name.parse().unwrap()
}

pub(super) fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

pub(super) fn my_reign(term: u64) -> Leadership {
    Leadership { term, node: ME }
}

pub(super) fn spec(name: &str, address: &str, interface: &str) -> VipSpec {
    let address = ip(address);
    VipSpec {
        name: name.parse().unwrap(),
        address,
        prefix_len: VipSpec::host_prefix_len(address),
        interface: interface.to_owned().try_into().unwrap(),
        placement: Placement::Leader,
    }
}

pub(super) fn config() -> AgentConfig {
    AgentConfig {
        me: ME,
        interface_map: [("front".to_owned(), "eth1".to_owned())].into(),
        announce_burst: [0, 5, 100, 1000].map(ms).into(),
        announce_refresh: ms(10_000),
        address_refresh: ms(20_000),
        acquire_retry: ms(1000),
        propose_retry: ms(50),
        blocked_for: Duration::from_secs(30),
        step_aside_interval: ms(2000),
    }
}

/// What this host really does, as far as it was told to.
#[derive(Debug, Default)]
pub(super) struct Kernel {
    pub(super) known: BTreeSet<IpAddr>,
    pub(super) open: BTreeMap<IpAddr, (VipName, Epoch)>,
    pub(super) deadline: Option<(Leadership, BootInstant)>,
    pub(super) present: BTreeMap<IpAddr, Holding>,
    pub(super) announced: Vec<(BootInstant, VipName)>,
    pub(super) refreshed: Vec<(BootInstant, VipName)>,
    /// Addresses that somebody else put on this host; they cannot be added.
    pub(super) foreign: BTreeSet<IpAddr>,
    /// Steps that fail, for these VIPs.
    pub(super) failing: Vec<(Step, VipName)>,
    /// The fence is still open because shutting failed, or the address still there because removing failed.
    stuck_open: BTreeSet<IpAddr>,
    pub(super) leftover: BTreeSet<IpAddr>,
    /// The address is gone, or was not added, without having been removed: the agent may not know, or not have known
    /// when it decided.
    astray: BTreeSet<IpAddr>,
    shut_epochs: BTreeSet<(VipName, Epoch)>,
}

impl Kernel {
    pub(super) fn set_foreign(&mut self, address: IpAddr, there: bool) {
        if there {
            self.foreign.insert(address);
        } else {
            self.foreign.remove(&address);
        }
    }
}

pub(super) type Answer = (Step, Vec<(VipName, Epoch, Result<(), String>)>);

pub(super) struct World {
    pub(super) agent: Agent,
    pub(super) now: BootInstant,
    started: BootInstant,
    pub(super) kernel: Kernel,
    /// What is agreed, and as of when the agent knows it.
    pub(super) cluster: Cluster,
    index: u64,
    told: Arc<Cluster>,
    pub(super) reign: Option<Reign>,
    links: BTreeMap<String, bool>,
    fence_ok: bool,
    /// The instant of the lease that the agent was told of.
    told_lease: Option<(Leadership, BootInstant)>,
    pub(super) enabled: Option<Leadership>,
    pub(super) resigned: BTreeSet<Leadership>,
    transferred: BTreeSet<Leadership>,
    shutdown: bool,
    pub(super) finished: bool,
    /// Given out by the agent, not yet done.
    pub(super) to_do: VecDeque<Action>,
    /// Done, not yet answered.
    pub(super) answers: VecDeque<Answer>,
    pub(super) proposals: VecDeque<(Leadership, Vec<Claim>)>,
    proposed_in: Option<Leadership>,
    /// Addresses that the agent knows to be gone, and has not asked to add again.
    told_gone: BTreeSet<IpAddr>,
    log: Vec<String>,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(config())
    }

    /// A world at an instant that is not round, with both interfaces up.
    pub(super) fn with(config: AgentConfig) -> Self {
        let now = BootInstant::from_nanos(77_000_000_123);
        let mut world = Self {
            agent: Agent::new(config, now),
            now,
            started: now,
            kernel: Kernel::default(),
            cluster: Cluster::default(),
            index: 0,
            told: Arc::default(),
            reign: None,
            links: BTreeMap::new(),
            fence_ok: true,
            told_lease: None,
            enabled: None,
            resigned: BTreeSet::new(),
            transferred: BTreeSet::new(),
            shutdown: false,
            finished: false,
            to_do: VecDeque::new(),
            answers: VecDeque::new(),
            proposals: VecDeque::new(),
            proposed_in: None,
            told_gone: BTreeSet::new(),
            log: Vec::new(),
        };
        world.link("eth0", true);
        world.link("eth1", true);
        world
    }

    /// A world whose agent leads term 1, ready and with a lease of 10 s, and holds these VIPs of `eth0`.
    pub(super) fn serving(names: &[&str]) -> Self {
        let mut world = Self::new();
        for (i, name) in names.iter().enumerate() {
            world.declare(&spec(name, &format!("10.0.0.{}", i + 1), "eth0"));
        }
        world.lead(1);
        world.settle();
        world.renew(ms(10_000));
        world.settle();
        for name in names {
            assert_eq!(world.state(name), HolderState::Active, "{name}");
        }
        world.take_log();
        world
    }

    // ---- what happens ----

    pub(super) fn apply(&mut self, by: Leadership, command: Command) {
        self.index += 1;
        self.cluster.apply(self.index, by, command);
    }

    pub(super) fn leader(&self) -> Leadership {
        self.reign.map_or(Leadership { term: 0, node: OTHER }, |reign| reign.leadership)
    }

    pub(super) fn declare(&mut self, spec: &VipSpec) {
        self.apply(self.leader(), Command::DeclareVip(spec.clone()));
        self.tell_state();
    }

    pub(super) fn delete(&mut self, vip: &str) {
        self.apply(self.leader(), Command::DeleteVip(name(vip)));
        self.tell_state();
    }

    /// Another node took over in `term` and assigned every VIP to itself.
    pub(super) fn taken_by_other(&mut self, term: u64) {
        let by = Leadership { term, node: OTHER };
        let claims = self
            .cluster
            .vips
            .values()
            .map(|vip| Claim { vip: vip.spec.name.clone(), base: vip.assignment.map(|assignment| assignment.epoch) })
            .collect();
        self.apply(by, Command::Assign { by, owner: OTHER, kind: LeaseKind::Leader, claims });
    }

    pub(super) fn tell_state(&mut self) {
        self.told = Arc::new(self.cluster.clone());
        self.input(Input::State(Arc::clone(&self.told)));
    }

    pub(super) fn lead(&mut self, term: u64) {
        self.set_reign(Some(Reign { leadership: my_reign(term), ready: true, successor: false }));
    }

    pub(super) fn set_reign(&mut self, reign: Option<Reign>) {
        if self.reign.map(|reign| reign.leadership) != reign.map(|reign| reign.leadership) {
            self.proposed_in = None;
        }
        self.reign = reign;
        self.input(Input::Reign(reign));
    }

    /// The gate arms the lease, if it may.
    pub(super) fn renew(&mut self, length: Duration) -> bool {
        let Some(reign) = self.reign else { return false };
        let leadership = reign.leadership;
        if self.enabled != Some(leadership) || self.resigned.contains(&leadership) {
            return false;
        }
        let deadline = self.now + length;
        self.kernel.deadline = Some((leadership, deadline));
        self.told_lease = self.kernel.deadline;
        self.input(Input::Lease(leadership, deadline));
        true
    }

    pub(super) fn link(&mut self, interface: &str, up: bool) {
        self.links.insert(interface.to_owned(), up);
        self.input(Input::Links(self.links.clone()));
    }

    pub(super) fn fence(&mut self, ok: bool) {
        self.fence_ok = ok;
        self.input(Input::Fence(ok));
    }

    pub(super) fn shutdown(&mut self) {
        self.shutdown = true;
        self.input(Input::Shutdown);
    }

    /// Somebody removes an address of ours; the agent hears of it with [`Self::tell_lost`].
    pub(super) fn lose(&mut self, address: IpAddr) -> bool {
        let lost = self.kernel.present.remove(&address).is_some();
        if lost {
            self.kernel.leftover.remove(&address);
            self.kernel.astray.insert(address);
        }
        lost
    }

    pub(super) fn tell_lost(&mut self, address: IpAddr) {
        self.told_gone.insert(address);
        self.input(Input::AddressLost(address));
    }

    /// Gives the agent an input, and the tick that it asks for; its actions are left to be done.
    pub(super) fn input(&mut self, input: Input) {
        self.agent.handle(input, self.now);
        self.collect();
        if self.agent.next_deadline().is_some_and(|at| at <= self.now) {
            self.agent.handle(Input::Tick, self.now);
            self.collect();
        }
        let next = self.agent.next_deadline();
        assert!(next.is_none_or(|at| at > self.now), "busy loop: next deadline {next:?} at {}", self.now);
    }

    fn collect(&mut self) {
        while let Some(action) = self.agent.poll_action() {
            self.check_decision(&action);
            self.to_do.push_back(action);
        }
    }

    /// Does everything that was given out and answers it, until nothing is left.
    pub(super) fn settle(&mut self) {
        for _ in 0..1000 {
            if self.do_next() {
                continue;
            }
            if !(self.answer(0) || self.accept_proposal()) {
                return;
            }
        }
        panic!("never settles");
    }

    /// Does all actions and leaves them unanswered.
    pub(super) fn do_all(&mut self) {
        while self.do_next() {}
    }

    pub(super) fn do_next(&mut self) -> bool {
        let Some(action) = self.to_do.pop_front() else { return false };
        self.log.push(describe(&action));
        self.perform(action);
        true
    }

    /// Delivers the answer number `n` of those outstanding.
    pub(super) fn answer(&mut self, n: usize) -> bool {
        let Some((step, results)) = self.answers.remove(n) else { return false };
        self.input(Input::Done(step, results));
        true
    }

    /// The cluster agrees to the oldest proposal, as far as it is still valid.
    pub(super) fn accept_proposal(&mut self) -> bool {
        let Some((by, claims)) = self.proposals.pop_front() else { return false };
        self.apply(self.leader(), Command::Assign { by, owner: ME, kind: LeaseKind::Leader, claims });
        self.tell_state();
        self.proposal_answered(Ok(()));
        true
    }

    pub(super) fn refuse_proposal(&mut self) -> bool {
        let Some(_) = self.proposals.pop_front() else { return false };
        self.proposal_answered(Err("no quorum".to_owned()));
        true
    }

    fn proposal_answered(&mut self, result: Result<(), String>) {
        self.proposed_in = None;
        self.input(Input::Proposed(result));
    }

    /// Lets time pass; the agent is called whenever it asked for that, and what it wants is done at once.
    pub(super) fn pass(&mut self, duration: Duration) {
        self.pass_with(duration, Self::settle);
    }

    /// As [`Self::pass`], with `each` after every tick.
    pub(super) fn pass_with(&mut self, duration: Duration, each: fn(&mut Self)) {
        let end = self.now + duration;
        each(self);
        while let Some(next) = self.agent.next_deadline().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.input(Input::Tick);
            each(self);
        }
        self.now = end;
        self.input(Input::Tick);
        each(self);
    }

    // ---- what can be seen ----

    pub(super) fn take_log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    pub(super) fn status(&self, vip: &str) -> VipStatus {
        let standby = VipStatus { state: HolderState::Standby, epoch: None, problem: None };
        self.agent.status().get(&name(vip)).cloned().unwrap_or(standby)
    }

    pub(super) fn state(&self, vip: &str) -> HolderState {
        self.status(vip).state
    }

    pub(super) fn since_start(&self, at: BootInstant) -> u128 {
        at.saturating_duration_since(self.started).as_millis()
    }

    pub(super) fn epoch_of(&self, vip: &VipName) -> Option<Epoch> {
        self.cluster.vips.get(vip)?.assignment.map(|assignment| assignment.epoch)
    }

    /// The addresses that this host would answer for now.
    pub(super) fn answered(&self) -> BTreeSet<IpAddr> {
        if self.kernel.deadline.is_none_or(|(_, deadline)| deadline <= self.now) {
            return BTreeSet::new();
        }
        self.kernel.present.keys().filter(|address| self.kernel.open.contains_key(address)).copied().collect()
    }

    // ---- the rules ----

    /// What must be true of an action when it is decided, by what the agent has been told until then.
    fn check_decision(&mut self, action: &Action) {
        match action {
            Action::Add(holdings) => holdings.iter().for_each(|holding| {
                self.told_gone.remove(&holding.address);
            }),
            Action::Announce(holdings) | Action::Refresh(holdings) => {
                let gone = holdings.iter().find(|holding| self.told_gone.contains(&holding.address));
                assert_eq!(gone, None, "{action:?}: the agent knows that it is gone");
            }
            Action::Know(_)
            | Action::Forget(_)
            | Action::Enable(_)
            | Action::Propose(..)
            | Action::Open(_)
            | Action::Shut(_)
            | Action::Remove(_)
            | Action::Resign(_)
            | Action::Transfer
            | Action::Finished => {}
        }
        match action {
            Action::Open(holdings) | Action::Add(holdings) | Action::Announce(holdings) => {
                let lease = self.told_lease.filter(|(_, deadline)| self.now < *deadline);
                let (by, _) = lease.unwrap_or_else(|| panic!("{action:?} without a running lease"));
                assert!(self.fence_ok, "{action:?} without a fence");
                assert!(!self.shutdown, "{action:?} while ending");
                assert!(!self.given_up(by), "{action:?} in a leadership that was given up");
                assert!(self.reign.is_none_or(|reign| reign.leadership == by), "{action:?} in another reign");
                for holding in holdings {
                    let vip = self.told.vips.get(&holding.vip).unwrap_or_else(|| panic!("{holding:?} is no VIP"));
                    let assignment = vip.assignment.unwrap_or_else(|| panic!("{holding:?} is not assigned"));
                    assert_eq!((assignment.owner, assignment.epoch, assignment.by), (ME, holding.epoch, by));
                    assert_eq!(vip.spec.address, holding.address);
                    assert_eq!(self.links.get(&holding.interface), Some(&true), "{action:?}: link down");
                }
            }
            Action::Propose(by, claims) => {
                assert!(
                    self.reign.is_some_and(|reign| reign.leadership == *by && reign.ready),
                    "{action:?} in reign {:?}",
                    self.reign
                );
                assert_ne!(self.proposed_in.replace(*by), Some(*by), "two proposals at a time");
                assert!(!claims.is_empty());
                for claim in claims {
                    let vip = self.told.vips.get(&claim.vip).unwrap_or_else(|| panic!("{claim:?}: no such VIP"));
                    assert_eq!(claim.base, vip.assignment.map(|assignment| assignment.epoch), "{claim:?}");
                }
            }
            Action::Resign(by) => assert_eq!(self.reign.map(|reign| reign.leadership), Some(*by)),
            Action::Enable(by) => {
                assert_eq!(self.reign.map(|reign| reign.leadership), Some(*by));
                assert!(!self.resigned.contains(by), "{action:?} after it was given up");
            }
            Action::Know(_)
            | Action::Forget(_)
            | Action::Refresh(_)
            | Action::Shut(_)
            | Action::Remove(_)
            | Action::Transfer
            | Action::Finished => {}
        }
        if let Action::Propose(..) | Action::Transfer = action {
            let resigned = self.reign.is_some_and(|reign| self.given_up(reign.leadership));
            assert_eq!(resigned, *action == Action::Transfer, "{action:?}");
        }
    }

    fn given_up(&self, leadership: Leadership) -> bool {
        self.resigned.contains(&leadership) || self.to_do.contains(&Action::Resign(leadership))
    }

    /// Does an action; what must be true of the kernel by then is checked first.
    fn perform(&mut self, action: Action) {
        let text = describe(&action);
        match action {
            Action::Know(addresses) => {
                for address in addresses {
                    assert!(self.kernel.known.insert(address), "{text}: known already");
                }
            }
            Action::Forget(addresses) => {
                for address in addresses {
                    assert!(!self.kernel.present.contains_key(&address), "{text}: still there, now without a fence");
                    if self.kernel.stuck_open.remove(&address) {
                        self.kernel.open.remove(&address);
                    }
                    assert!(!self.kernel.open.contains_key(&address), "{text}: open");
                    assert!(self.kernel.known.remove(&address), "{text}: not known");
                }
            }
            Action::Enable(by) => {
                self.assert_nothing_held(&text);
                self.enabled = Some(by);
            }
            Action::Resign(by) => {
                assert!(self.resigned.insert(by), "{text}: twice");
                if self.kernel.deadline.is_some_and(|(armed, _)| armed == by) {
                    self.kernel.deadline = None;
                }
            }
            Action::Transfer => {
                self.assert_nothing_held(&text);
                let last = *self.resigned.last().unwrap_or_else(|| panic!("{text}: nothing was given up"));
                assert!(self.transferred.insert(last), "{text}: twice");
            }
            Action::Finished => {
                self.assert_nothing_held(&text);
                assert!(self.shutdown && !self.finished, "{text}");
                self.finished = true;
            }
            Action::Propose(by, claims) => self.proposals.push_back((by, claims)),
            Action::Announce(holdings) => {
                for holding in &holdings {
                    self.assert_served(holding, &text);
                    self.kernel.announced.push((self.now, holding.vip.clone()));
                }
            }
            Action::Refresh(holdings) => {
                for holding in &holdings {
                    self.assert_served(holding, &text);
                    self.kernel.refreshed.push((self.now, holding.vip.clone()));
                }
            }
            Action::Open(holdings) => self.step(Step::Open, &holdings, Self::open),
            Action::Add(holdings) => self.step(Step::Add, &holdings, Self::add),
            Action::Shut(holdings) => self.step(Step::Shut, &holdings, Self::shut),
            Action::Remove(holdings) => self.step(Step::Remove, &holdings, Self::remove),
        }
    }

    fn step(&mut self, step: Step, holdings: &[Holding], work: fn(&mut Self, &Holding, bool) -> Result<(), String>) {
        assert!(!holdings.is_empty(), "{step:?} of nothing");
        let names: BTreeSet<_> = holdings.iter().map(|holding| &holding.vip).collect();
        assert_eq!(names.len(), holdings.len(), "{step:?}: a VIP twice in one action");
        let results = holdings
            .iter()
            .map(|holding| {
                let fails = self.kernel.failing.contains(&(step, holding.vip.clone()));
                (holding.vip.clone(), holding.epoch, work(self, holding, fails))
            })
            .collect();
        self.answers.push_back((step, results));
    }

    fn open(&mut self, holding: &Holding, fails: bool) -> Result<(), String> {
        let Kernel { known, open, stuck_open, leftover, present, shut_epochs, .. } = &mut self.kernel;
        assert!(known.contains(&holding.address), "open {holding:?}: not known");
        assert!(stuck_open.remove(&holding.address) || !open.contains_key(&holding.address), "open {holding:?}: twice");
        let there = present.contains_key(&holding.address) && !leftover.contains(&holding.address);
        assert!(!there, "open {holding:?}: the address is there before the fence is opened");
        let again = shut_epochs.contains(&(holding.vip.clone(), holding.epoch));
        assert!(!again, "open {holding:?}: was shut in this epoch");
        if fails {
            open.remove(&holding.address);
            return Err("the map is gone".to_owned());
        }
        open.insert(holding.address, (holding.vip.clone(), holding.epoch));
        Ok(())
    }

    fn add(&mut self, holding: &Holding, fails: bool) -> Result<(), String> {
        let opened = self.kernel.open.get(&holding.address);
        assert_eq!(opened, Some(&(holding.vip.clone(), holding.epoch)), "add {holding:?}: not opened");
        assert!(self.kernel.known.contains(&holding.address), "add {holding:?}: not known");
        if fails || self.kernel.foreign.contains(&holding.address) {
            if !self.kernel.present.contains_key(&holding.address) {
                self.kernel.astray.insert(holding.address);
            }
            return Err("the address is there already, and not ours".to_owned());
        }
        self.kernel.astray.remove(&holding.address);
        self.kernel.leftover.remove(&holding.address);
        self.kernel.present.insert(holding.address, holding.clone());
        Ok(())
    }

    fn shut(&mut self, holding: &Holding, fails: bool) -> Result<(), String> {
        self.kernel.shut_epochs.insert((holding.vip.clone(), holding.epoch));
        let opened = self.kernel.open.get(&holding.address);
        let own = (holding.vip.clone(), holding.epoch);
        assert!(opened.is_none_or(|opened| *opened == own), "shut {holding:?}: open for {opened:?}");
        if fails && opened.is_some() {
            self.kernel.stuck_open.insert(holding.address);
            return Err("the map is gone".to_owned());
        }
        self.kernel.open.remove(&holding.address);
        Ok(())
    }

    fn remove(&mut self, holding: &Holding, fails: bool) -> Result<(), String> {
        let Kernel { open, stuck_open, leftover, present, astray, shut_epochs, .. } = &mut self.kernel;
        let shut = stuck_open.contains(&holding.address) || !open.contains_key(&holding.address);
        assert!(shut, "remove {holding:?}: the fence is open");
        assert!(shut_epochs.contains(&(holding.vip.clone(), holding.epoch)), "remove {holding:?}: never shut");
        if fails && present.contains_key(&holding.address) {
            leftover.insert(holding.address);
            return Err("netlink is busy".to_owned());
        }
        present.remove(&holding.address);
        leftover.remove(&holding.address);
        astray.remove(&holding.address);
        Ok(())
    }

    /// The address is there for this very assignment, as far as the agent can know.
    fn assert_served(&self, holding: &Holding, text: &str) {
        let own = (holding.vip.clone(), holding.epoch);
        assert_eq!(self.kernel.open.get(&holding.address), Some(&own), "{text}: not opened");
        let there = self.kernel.present.get(&holding.address) == Some(holding);
        assert!(there || self.kernel.astray.contains(&holding.address), "{text}: {holding:?} is not there");
    }

    pub(super) fn assert_nothing_held(&self, text: &str) {
        let open: Vec<_> = self.kernel.open.keys().filter(|held| !self.kernel.stuck_open.contains(held)).collect();
        assert!(open.is_empty(), "{text} while {open:?} are open");
        let present: Vec<_> = self.kernel.present.keys().filter(|held| !self.kernel.leftover.contains(held)).collect();
        assert!(present.is_empty(), "{text} while {present:?} are there");
    }
}

/// An action in one line: `open a@3 b@3`.
fn describe(action: &Action) -> String {
    let held = |verb: &str, holdings: &[Holding]| {
        holdings.iter().fold(verb.to_owned(), |text, holding| format!("{text} {}@{}", holding.vip, holding.epoch))
    };
    let listed = |verb: &str, addresses: &[IpAddr]| {
        addresses.iter().fold(verb.to_owned(), |text, address| format!("{text} {address}"))
    };
    match action {
        Action::Know(addresses) => listed("know", addresses),
        Action::Forget(addresses) => listed("forget", addresses),
        Action::Enable(by) => format!("enable {}", by.term),
        Action::Propose(by, claims) => claims.iter().fold(format!("propose {}:", by.term), |text, claim| {
            let base = claim.base.map_or_else(|| "new".to_owned(), |base| base.to_string());
            format!("{text} {}<-{base}", claim.vip)
        }),
        Action::Open(holdings) => held("open", holdings),
        Action::Add(holdings) => held("add", holdings),
        Action::Announce(holdings) => held("announce", holdings),
        Action::Refresh(holdings) => held("refresh", holdings),
        Action::Shut(holdings) => held("shut", holdings),
        Action::Remove(holdings) => held("remove", holdings),
        Action::Resign(by) => format!("resign {}", by.term),
        Action::Transfer => "transfer".to_owned(),
        Action::Finished => "finished".to_owned(),
    }
}
