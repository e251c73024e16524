//! The agent's thread, its mailbox, and its effects on the kernel, as vipd has them.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use vip_core::{
    Action, Agent, AgentConfig, BootInstant, Claim, Cluster, Command, Epoch, Holding, Input, Leadership, LeaseKind,
    NodeId, Reign, Step as AgentStep, VipName,
};

use crate::host::Slot;
use crate::omission::Part;
use crate::plan::{MS, Nanos, US};
use crate::raft::Input as Engine;
use crate::world::{Step, World};

/// How long the successor gets to be elected.
const TRANSFER_PATIENCE: Nanos = 1000 * MS;

/// Something about the host that reaches the daemon a little later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// The carriers changed.
    Links,
    /// Somebody removed an address.
    Lost(IpAddr),
    /// The fence is whole, or not.
    Fence(bool),
    /// SIGTERM.
    Terminate,
    /// A transfer is not waited for any more.
    TransferOver(u64),
    /// A proposal of the agent came to something.
    Proposed(bool),
}

/// What waits for the agent: the newest value of what only has one, and the rest in order.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    pub(crate) state: Option<Arc<Cluster>>,
    pub(crate) reign: Option<Option<Reign>>,
    pub(crate) lease: Option<(Leadership, BootInstant)>,
    pub(crate) links: Option<BTreeMap<String, bool>>,
    pub(crate) others: VecDeque<Input>,
}

impl Mailbox {
    /// In the order of `mailbox.rs` of vipd.
    fn drain(&mut self) -> VecDeque<Input> {
        let mut inputs: VecDeque<_> = self.links.take().map(Input::Links).into_iter().collect();
        inputs.extend(self.state.take().map(Input::State));
        inputs.extend(self.others.drain(..));
        inputs.extend(self.reign.take().map(Input::Reign));
        inputs.extend(self.lease.take().map(|(leadership, deadline)| Input::Lease(leadership, deadline)));
        inputs
    }
}

/// A step that is taken for one VIP after the other.
#[derive(Debug)]
struct Batch {
    step: AgentStep,
    left: VecDeque<Holding>,
    results: Vec<(VipName, Epoch, Result<(), String>)>,
}

/// The agent and the thread around it.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) agent: Agent,
    pub(crate) mailbox: Mailbox,
    batch: VecDeque<Input>,
    /// The action whose effect comes next.
    action: Option<Action>,
    /// The rest of the action whose effects are under way.
    effects: Option<Batch>,
    /// The thread has something to do, and a step of it is under way.
    busy: bool,
    timer: u64,
    carries_changed: bool,
    pub(crate) resigned: Option<Leadership>,
    pub(crate) transferring: Option<u64>,
    transfers: u64,
    pub(crate) finished: bool,
}

impl Driver {
    /// For a daemon that starts at `now`.
    pub(crate) fn new(me: NodeId, now: BootInstant) -> Self {
        let config = AgentConfig {
            me,
            interface_map: BTreeMap::new(),
            announce_burst: [0, 5, 100, 1000].map(Duration::from_millis).into(),
            announce_refresh: Duration::from_secs(10),
            address_refresh: Duration::from_secs(20),
            acquire_retry: Duration::from_secs(1),
            propose_retry: Duration::from_millis(50),
            blocked_for: Duration::from_secs(2),
            step_aside_interval: Duration::from_millis(500),
        };
        Self {
            agent: Agent::new(config, now),
            mailbox: Mailbox::default(),
            batch: VecDeque::new(),
            action: None,
            effects: None,
            busy: false,
            timer: 0,
            carries_changed: false,
            resigned: None,
            transferring: None,
            transfers: 0,
            finished: false,
        }
    }
}

impl World {
    /// Puts something into the mailbox and wakes the thread.
    pub(crate) fn post(&mut self, node: usize, put: impl FnOnce(&mut Mailbox)) {
        let driver = &mut self.process(node).driver;
        put(&mut driver.mailbox);
        if !driver.busy && !driver.finished {
            driver.busy = true;
            let after = self.moment();
            self.after(node, after, Step::Agent);
        }
    }

    pub(crate) fn agent_timer(&mut self, node: usize, turn: u64) {
        let driver = &mut self.process(node).driver;
        if driver.timer == turn && !driver.busy && !driver.finished {
            driver.batch.push_back(Input::Tick);
            driver.busy = true;
            self.agent_step(node);
        }
    }

    /// One effect, or one input; then the thread may be stopped before it goes on.
    pub(crate) fn agent_step(&mut self, node: usize) {
        let now = self.local(node);
        if let Some(effects) = self.process(node).driver.effects.take() {
            self.next_effect(node, effects);
        } else if let Some(action) = self.process(node).driver.action.take() {
            self.perform(node, action);
        } else if let Some(input) = self.process(node).driver.batch.pop_front() {
            let driver = &mut self.process(node).driver;
            driver.carries_changed |= matches!(input, Input::State(_) | Input::Links(_) | Input::Fence(_));
            driver.agent.handle(input, now);
        }
        self.agent_goes_on(node);
    }

    fn agent_goes_on(&mut self, node: usize) {
        let now = self.local(node);
        let Some(process) = self.nodes[node].process.as_mut() else { return };
        let driver = &mut process.driver;
        if driver.finished {
            driver.busy = false;
            return;
        }
        if driver.effects.is_some() {
            let after = self.aside.between(US, 30 * US);
            return self.after(node, after, Step::Agent);
        }
        if let Some(action) = driver.agent.poll_action() {
            driver.action = Some(action);
        } else if driver.batch.is_empty() {
            if driver.carries_changed {
                driver.carries_changed = false;
                process.eligible = driver.agent.can_carry_all() && !process.ending;
            }
            driver.batch = driver.mailbox.drain();
            if driver.batch.is_empty() {
                match driver.agent.next_deadline() {
                    Some(at) if at <= now => driver.batch.push_back(Input::Tick),
                    next => {
                        driver.busy = false;
                        driver.timer += 1;
                        let turn = driver.timer;
                        if let Some(at) = next {
                            self.at_local(node, at, Step::AgentTimer(turn));
                        }
                        return;
                    }
                }
            }
        }
        let after = match &self.process(node).driver.action {
            // Netlink takes longer than a map.
            Some(Action::Add(_) | Action::Remove(_)) => self.dice.between(20 * US, 800 * US),
            _ => self.moment(),
        };
        self.after(node, after, Step::Agent);
    }

    fn perform(&mut self, node: usize, action: Action) {
        self.trace.line(self.now, || format!("n{} agent: {action:?}", node + 1));
        match action {
            Action::Know(addresses) => {
                if self.kernel_fails(node) {
                    // A part of them is in; the daemon drops everything until its watch over the host looks again.
                    self.post(node, |mailbox| mailbox.others.push_back(Input::Fence(false)));
                    let after = self.dice.between(MS, 100 * MS);
                    self.after(node, after, Step::Notice(Notice::Fence(true)));
                }
                let slots = &mut self.nodes[node].kernel.slots;
                for address in addresses {
                    slots.entry(address).or_insert(Slot::Shut);
                }
            }
            Action::Forget(addresses) => {
                for address in addresses {
                    self.nodes[node].kernel.slots.remove(&address);
                }
            }
            Action::Enable(leadership) => {
                self.process(node).gate.enable(leadership);
                self.want_renewal(node);
            }
            Action::Propose(leadership, claims) => self.propose_claims(node, leadership, claims),
            Action::Open(holdings) => self.each(node, AgentStep::Open, holdings),
            Action::Add(holdings) => self.each(node, AgentStep::Add, holdings),
            Action::Shut(holdings) => self.each(node, AgentStep::Shut, holdings),
            Action::Remove(holdings) => self.each(node, AgentStep::Remove, holdings),
            Action::Announce(holdings) => self.check_announced(node, &holdings),
            Action::Refresh(holdings) => self.refresh(node, &holdings),
            Action::Resign(leadership) => self.resign(node, leadership),
            Action::Transfer => self.transfer(node),
            Action::Finished => self.process(node).driver.finished = true,
        }
    }

    fn kernel_fails(&mut self, node: usize) -> bool {
        let chance = self.nodes[node].kernel.failing;
        chance > 0 && self.dice.percent(chance)
    }

    fn each(&mut self, node: usize, step: AgentStep, holdings: Vec<Holding>) {
        self.next_effect(node, Batch { step, left: holdings.into(), results: Vec::new() });
    }

    /// One VIP; the process may be stopped before the next.
    fn next_effect(&mut self, node: usize, mut batch: Batch) {
        let step = batch.step;
        if let Some(holding) = batch.left.pop_front() {
            self.check_order(node, step, &holding);
            let stuck = self.nodes[node].kernel.stuck.contains(&holding.address);
            // Not both: a host on which neither the fence nor netlink works is outside the promise.
            let fails = self.kernel_fails(node) && !(stuck && step == AgentStep::Remove);
            let result = if fails {
                if step == AgentStep::Shut {
                    self.nodes[node].kernel.stuck.insert(holding.address);
                }
                Err("the kernel said no".to_owned())
            } else {
                self.effect(node, step, &holding);
                Ok(())
            };
            batch.results.push((holding.vip, holding.epoch, result));
        }
        if !batch.left.is_empty() {
            self.process(node).driver.effects = Some(batch);
            return;
        }
        // The fence has one answer for all (`Vips::set`).
        let failed = batch.results.iter().find_map(|(.., result)| result.clone().err());
        if let (AgentStep::Open | AgentStep::Shut, Some(why)) = (step, failed) {
            batch.results.iter_mut().for_each(|(.., result)| *result = Err(why.clone()));
        }
        let now = self.local(node);
        self.process(node).driver.agent.handle(Input::Done(step, batch.results), now);
    }

    fn effect(&mut self, node: usize, step: AgentStep, holding: &Holding) {
        let kernel = &mut self.nodes[node].kernel;
        match step {
            AgentStep::Open => {
                let slot = Slot::Held { vip: holding.vip.clone(), epoch: holding.epoch };
                kernel.slots.insert(holding.address, slot);
            }
            AgentStep::Add => {
                kernel.addresses.insert(holding.address, holding.interface.clone());
                self.counts.acquired += 1;
            }
            AgentStep::Shut => {
                kernel.slots.insert(holding.address, Slot::Shut);
                kernel.stuck.remove(&holding.address);
                kernel.released.insert((holding.vip.clone(), holding.epoch));
            }
            AgentStep::Remove => {
                kernel.addresses.remove(&holding.address);
            }
        }
    }

    fn refresh(&mut self, node: usize, holdings: &[Holding]) {
        for holding in holdings {
            let on = holding.interface.clone();
            self.nodes[node].kernel.addresses.insert(holding.address, on);
        }
    }

    fn propose_claims(&mut self, node: usize, leadership: Leadership, claims: Vec<Claim>) {
        let command = Command::Assign { by: leadership, owner: leadership.node, kind: LeaseKind::Leader, claims };
        // It may wait for a disk that is slow while leadership is lost and won again.
        let late = self.healed.is_none() && self.dice.percent(4);
        let after = if late { self.dice.below(self.plan.lease() * 4) } else { self.turn() };
        self.after(node, after, Step::Propose(Box::new(command)));
    }

    pub(crate) fn resign(&mut self, node: usize, leadership: Leadership) {
        self.process(node).driver.resigned = Some(leadership);
        if !self.has(Part::ResignFirst) {
            // Taken out: leadership is handed over with the lease and the VIPs in place.
            self.transfer(node);
            return;
        }
        if !self.process(node).gate.resign(leadership) {
            return;
        }
        self.disarm(node);
        let now = self.local(node);
        self.process(node).gate.released(now);
        self.changed(node);
    }

    fn transfer(&mut self, node: usize) {
        let Some(from) = self.process(node).driver.resigned else { return };
        if !self.process(node).gate.may_transfer(from) {
            return;
        }
        let Some(to) = self.transfer_target(node) else { return };
        let driver = &mut self.process(node).driver;
        driver.transfers += 1;
        let turn = driver.transfers;
        driver.transferring = Some(turn);
        self.after(node, TRANSFER_PATIENCE, Step::Notice(Notice::TransferOver(turn)));
        self.engine(node, Engine::Transfer { to });
    }

    /// The successor with the longest log; of equals the most preferred.
    fn transfer_target(&mut self, node: usize) -> Option<NodeId> {
        let successors = self.successors(node);
        let leader = self.process(node).raft.leader.as_ref();
        let matched = |peer: &NodeId| leader.and_then(|leader| leader.followers.get(peer)?.matched.map(|id| id.index));
        successors.into_iter().max_by_key(|peer| (matched(peer), std::cmp::Reverse(*peer)))
    }

    /// What the daemon hears of its host.
    pub(crate) fn notice(&mut self, node: usize, notice: Notice) {
        match notice {
            Notice::Links => {
                let links = self.nodes[node].kernel.links.clone();
                self.post(node, |mailbox| mailbox.links = Some(links));
            }
            Notice::Lost(address) => self.post(node, |mailbox| mailbox.others.push_back(Input::AddressLost(address))),
            Notice::Fence(whole) => self.post(node, |mailbox| mailbox.others.push_back(Input::Fence(whole))),
            Notice::Terminate => {
                let process = self.process(node);
                if process.ending {
                    return;
                }
                process.ending = true;
                process.eligible = false;
                self.post(node, |mailbox| mailbox.others.push_back(Input::Shutdown));
                self.after(node, 5 * MS, Step::End(0));
            }
            Notice::TransferOver(turn) => {
                let driver = &mut self.process(node).driver;
                if driver.transferring == Some(turn) {
                    driver.transferring = None;
                }
            }
            Notice::Proposed(well) => {
                let cluster = Arc::clone(&self.process(node).raft.cluster);
                let result = if well { Ok(()) } else { Err("not agreed".to_owned()) };
                self.post(node, |mailbox| {
                    mailbox.state = Some(cluster);
                    mailbox.others.push_back(Input::Proposed(result));
                });
            }
        }
    }

    /// The daemon hears of its links a little later.
    pub(crate) fn tell_links(&mut self, node: usize, after: Nanos) {
        self.after(node, after, Step::Notice(Notice::Links));
    }

    /// All is given back, and leadership handed over: the process ends. Otherwise it is looked at again.
    pub(crate) fn end_of_process(&mut self, node: usize, polls: u32) {
        const PATIENCE: u32 = 1000;
        const DISK_PATIENCE: u32 = 240;
        let stands = self.nodes[node].stall.stands;
        let driver = &self.process(node).driver;
        // It does not wait for a disk for ever (`RaftNode::shutdown`).
        let finished = driver.finished && driver.transferring.is_none() && (!stands || polls >= DISK_PATIENCE);
        if finished || polls >= PATIENCE {
            if stands {
                // Who waits for it kills it in the end.
                self.crash(node);
                self.oracle.restarted(node);
            } else {
                self.stop(node);
            }
            let after = self.dice.between(MS, 2 * self.plan.lease());
            self.at(self.now + after, crate::world::Event::Start { node });
        } else {
            self.after(node, 5 * MS, Step::End(polls + 1));
        }
    }
}
