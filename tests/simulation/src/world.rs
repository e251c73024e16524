//! All nodes, the network between them, true time, and the queue of what happens next.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

use vip_core::{BootInstant, Leadership, LeaseGate, NodeId, Reign};

use crate::dice::Dice;
use crate::driver::{Driver, Notice};
use crate::host::{Clock, Kernel};
use crate::message::{AppendResult, Body, Lane, Message};
use crate::omission::{Omission, Part};
use crate::oracle::Oracle;
use crate::plan::{MS, Nanos, Plan, US, nanos};
use crate::raft::{AppendIn, Raft};
use crate::stall::{Probe, Stall};
use crate::start::Stage;
use crate::store::{Disk, LogId, Store};
use crate::trace::Trace;

/// The interfaces of every host.
pub(crate) const LINKS: [&str; 2] = ["eth0", "eth1"];

/// A moment in a process.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// The renewing thread asks the gate for a deadline.
    RenewCompute,
    /// It writes that to the kernel; the gate is locked in between.
    RenewWrite { leadership: Leadership, deadline: BootInstant, computed_at: BootInstant },
    /// The agent's thread goes on.
    Agent,
    /// The agent asked to be woken.
    AgentTimer(u64),
    /// Elections are thought about.
    Election(u64),
    /// The next heartbeat.
    Beat,
    /// Whether this node leads is looked at.
    Reign(u64),
    /// A commit to disk is done.
    Disk,
    /// What was applied is noticed.
    Applied,
    /// The handler of an append goes on.
    Acknowledge(Box<AppendIn>, AppendResult),
    /// A proposal of the agent reaches the engine.
    Propose(Box<vip_core::Command>),
    /// A vote waited at the gate, or comes from the gate to the engine.
    Vote(Box<Message>, bool),
    /// The votes of others count.
    CountVotes,
    /// A call is not waited for any more.
    TimedOut { peer: NodeId, lane: Lane, rpc: u64 },
    /// A peer is tried again.
    Replicate(NodeId),
    /// Leaders hang up on appends that a disk holds back.
    HangUp(u64),
    /// Something about the host reaches the daemon.
    Notice(Notice),
    /// A request is not waited for any more.
    Unanswered(u64),
    /// Whether a daemon that ends in order has come to its end.
    End(u32),
}

/// What happens.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A message arrives.
    Deliver(Box<Message>),
    /// A moment in a process.
    Step { node: usize, life: u32, step: Step },
    /// A daemon is started.
    Start { node: usize },
    /// It prepares its host.
    Prepare { node: usize, life: u32, stage: Stage },
    /// Then it joins.
    Join { node: usize, life: u32 },
    /// Something goes wrong.
    Trouble,
    /// A disk is going to stand still.
    Stall,
    /// Something is right again.
    Repair(Repair),
    /// All is right again, for good.
    Heal,
    /// A script has something to do.
    Cue,
}

/// What ends by itself.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Repair {
    /// A process goes on.
    Thaw(usize),
    /// A host wakes.
    Wake(usize),
    /// A disk is as before.
    Disk(usize),
    /// A process is killed whose disk stands still.
    Kill(usize, u64),
    /// A disk does not stand still any more.
    Stall(usize, u64),
    /// An interface has its carrier again.
    Link(usize, usize),
    /// Kernel operations work again.
    Kernel(usize),
    /// The fence is whole again.
    Fence(usize),
    /// The network is as before.
    Network,
    /// A cut voter hears the others again, and they it.
    Mend,
    /// A host boots.
    Boot(usize),
}

/// Appends share it, a vote has it alone (`Core::order` of vip-raft). First come, first served.
#[derive(Debug, Default)]
pub(crate) struct Order {
    pub(crate) readers: u32,
    pub(crate) writer: bool,
    pub(crate) queue: VecDeque<Waiting>,
}

/// Who waits for it.
#[derive(Debug)]
pub(crate) enum Waiting {
    /// An append.
    Append(Box<AppendIn>),
    /// A vote.
    Vote(Box<Message>),
}

/// A running daemon.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) life: u32,
    pub(crate) gate: LeaseGate,
    pub(crate) locked: bool,
    pub(crate) at_lock: Vec<Event>,
    pub(crate) store: Store,
    pub(crate) raft: Raft,
    pub(crate) order: Order,
    pub(crate) acknowledging: Vec<(u64, Box<AppendIn>, Option<LogId>)>,
    pub(crate) flushing: Vec<(u64, Leadership, u64)>,
    pub(crate) peers: BTreeMap<NodeId, (BootInstant, bool)>,
    pub(crate) voted_at: Option<BootInstant>,
    pub(crate) encouraged_at: Option<BootInstant>,
    pub(crate) eligible: bool,
    pub(crate) ending: bool,
    pub(crate) renewing: bool,
    pub(crate) election: u64,
    pub(crate) attempts: u32,
    pub(crate) reign_turn: u64,
    pub(crate) reign: Option<Reign>,
    pub(crate) noticing: bool,
    pub(crate) driver: Driver,
}

/// A host and its daemon.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) clock: Clock,
    pub(crate) kernel: Kernel,
    pub(crate) disk: Disk,
    pub(crate) slow_disk: bool,
    pub(crate) stall: Stall,
    /// The host has power.
    pub(crate) power: bool,
    pub(crate) asleep: Option<BootInstant>,
    pub(crate) frozen: bool,
    pub(crate) backlog: Vec<Event>,
    pub(crate) life: u32,
    pub(crate) starting: bool,
    pub(crate) process: Option<Box<Process>>,
    /// For taking out R3's strictness: it once took an append of another leader.
    pub(crate) ever_followed: bool,
}

#[derive(Debug)]
struct Scheduled {
    at: Nanos,
    number: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// What a run counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events.
    pub events: u64,
    /// Deadlines written to a kernel.
    pub deadlines: u64,
    /// Leaderships won.
    pub elections: u64,
    /// Transfers that left a leader.
    pub transfers: u64,
    /// Times that an address was put on an interface.
    pub acquired: u64,
    /// Faults.
    pub faults: u64,
    /// Times that a disk stood still.
    pub stalls: u64,
}

/// Everything.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) dice: Dice,
    /// For disks that stand still.
    pub(crate) aside: Dice,
    pub(crate) now: Nanos,
    queue: BinaryHeap<Reverse<Scheduled>>,
    number: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) voters: Vec<BTreeSet<NodeId>>,
    pub(crate) cut: BTreeSet<(usize, usize)>,
    /// How much longer messages take on a link, for scripts.
    pub(crate) slower: BTreeMap<(usize, usize), Nanos>,
    pub(crate) bad_network: bool,
    pub(crate) oracle: Oracle,
    pub(crate) trace: Trace,
    missing: BTreeSet<Part>,
    /// R3 is taken out: openraft's `enable_leader_restore` is on, and the gate believes it.
    restores_leaders: bool,
    pub(crate) counts: Counts,
    pub(crate) healed: Option<Nanos>,
    /// What is made of I2.
    pub(crate) probe: Probe,
    /// Since when its budget counts.
    pub(crate) phase_from: Nanos,
    /// When it is over.
    pub(crate) due: Nanos,
    /// The longest that it took.
    pub(crate) back_in: Option<Nanos>,
    pub(crate) requests: u64,
    pub(crate) declared: u64,
}

impl World {
    /// A world in which nothing has happened yet. Takes the rules of `without` out for this thread.
    #[must_use]
    pub(crate) fn new(plan: Plan, dice: Dice, without: &[Omission], trace: Trace) -> Self {
        let rules: Vec<_> =
            without.iter().filter_map(|o| if let Omission::Core(r) = o { Some(*r) } else { None }).collect();
        vip_core::rules::take_out(&rules);
        let missing: BTreeSet<_> =
            without.iter().filter_map(|o| if let Omission::Model(part) = o { Some(*part) } else { None }).collect();
        let ids: BTreeSet<_> = (1..=plan.nodes as u64).map(NodeId).collect();
        let no_clock = missing.contains(&Part::KernelFence);
        let mut world = Self {
            aside: dice.aside(),
            dice,
            now: 0,
            queue: BinaryHeap::new(),
            number: 0,
            nodes: Vec::new(),
            voters: vec![ids.clone()],
            cut: BTreeSet::new(),
            slower: BTreeMap::new(),
            bad_network: false,
            oracle: Oracle::new(),
            trace,
            missing,
            restores_leaders: without.contains(&Omission::Core(vip_core::rules::Rule::NoLeaderRestored)),
            counts: Counts::default(),
            healed: None,
            probe: Probe::Over,
            phase_from: 0,
            due: plan.chaos.1 + plan.budget(),
            back_in: None,
            requests: 0,
            declared: 0,
            plan,
        };
        for id in ids {
            let clock = world.random_clock();
            world.nodes.push(Node {
                id,
                clock,
                kernel: Kernel::booted(&LINKS, no_clock),
                disk: Disk { vote: None, log: vec![crate::oracle::first_entry()], committed: Some(0) },
                slow_disk: false,
                stall: Stall::default(),
                power: true,
                asleep: None,
                frozen: false,
                backlog: Vec::new(),
                life: 0,
                starting: false,
                process: None,
                ever_followed: false,
            });
        }
        for node in 0..world.nodes.len() {
            let at = world.dice.below(20 * MS);
            world.at(at, Event::Start { node });
        }
        let (from, to) = world.plan.chaos;
        world.at(from, Event::Trouble);
        world.at(to, Event::Heal);
        world.begin_stalls();
        world
    }

    fn random_clock(&mut self) -> Clock {
        let local = self.dice.between(1_000_000_000, 1_000_000_000_000);
        let ppm = self.random_rate();
        Clock::new(self.now, local, ppm)
    }

    /// Off by r at most; more often than not by all of it.
    pub(crate) fn random_rate(&mut self) -> i64 {
        let most = i64::from(self.plan.timing.clock_drift_ppm);
        match self.dice.below(4) {
            0 => most,
            1 => -most,
            2 => 0,
            _ => i64::try_from(self.dice.below(2 * most.unsigned_abs() + 1)).unwrap_or(0) - most,
        }
    }

    /// Whether `part` is in force.
    pub(crate) fn has(&self, part: Part) -> bool {
        !self.missing.contains(&part)
    }

    // ---- what happens next ----

    /// Lets `event` happen at `at`.
    pub(crate) fn at(&mut self, at: Nanos, event: Event) {
        self.number += 1;
        self.queue.push(Reverse(Scheduled { at: at.max(self.now), number: self.number, event }));
    }

    /// Lets `step` happen in the present process of `node`, `after` from now.
    pub(crate) fn after(&mut self, node: usize, after: Nanos, step: Step) {
        let Some(process) = &self.nodes[node].process else { return };
        let life = process.life;
        self.at(self.now + after, Event::Step { node, life, step });
    }

    /// The same at an instant of the node's own clock.
    pub(crate) fn at_local(&mut self, node: usize, local: BootInstant, step: Step) {
        let when = self.nodes[node].clock.when(local);
        self.after(node, when.saturating_sub(self.now), step);
    }

    /// A while, as until a task has its turn: short but for now and then.
    pub(crate) fn turn(&mut self) -> Nanos {
        if self.healed.is_none() && self.plan.slow_votes && self.dice.percent(5) {
            self.dice.below(self.plan.lease() / 4)
        } else {
            self.moment()
        }
    }

    /// A short while, as between two steps of a thread.
    pub(crate) fn moment(&mut self) -> Nanos {
        self.dice.between(US, 30 * US)
    }

    /// The next thing happens. Returns whether there was one before `end`.
    pub(crate) fn step(&mut self, end: Nanos) -> bool {
        if self.oracle.violation.is_some() || self.queue.peek().is_none_or(|Reverse(next)| next.at > end) {
            return false;
        }
        let Some(Reverse(next)) = self.queue.pop() else { return false };
        self.now = next.at;
        self.counts.events += 1;
        self.trace.mix(next.at);
        self.trace.mix(next.number);
        self.happen(next.event);
        self.check();
        true
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Deliver(ref message) => {
                let node = index(message.to);
                if let Some(event) = self.hold_back(node, event) {
                    let Event::Deliver(message) = event else { return };
                    self.deliver(*message);
                }
            }
            Event::Step { node, life, .. } => {
                if self.nodes[node].process.as_ref().is_none_or(|process| process.life != life) {
                    return;
                }
                if let Some(Event::Step { step, .. }) = self.hold_back(node, event) {
                    self.trace.mix(node as u64);
                    self.process_step(node, step);
                }
            }
            Event::Start { node } => self.start(node),
            Event::Prepare { node, .. } | Event::Join { node, .. }
                if self.nodes[node].frozen || self.nodes[node].asleep.is_some() =>
            {
                self.nodes[node].backlog.push(event);
            }
            Event::Prepare { node, life, stage } => {
                if self.nodes[node].life == life && self.nodes[node].starting {
                    self.prepare(node, stage);
                }
            }
            Event::Join { node, life } => {
                if self.nodes[node].life != life || !self.nodes[node].starting {
                    // It is gone.
                } else if self.nodes[node].stall.stands {
                    // The store cannot be opened.
                    self.at(self.now + 5 * MS, event);
                } else {
                    self.join(node);
                }
            }
            Event::Trouble => self.trouble(),
            Event::Stall => self.next_stall(),
            Event::Repair(repair) => self.repair(repair),
            Event::Heal => self.heal(),
            Event::Cue => {}
        }
    }

    /// A process that is stopped, or waits for its gate, takes nothing in. Gives the event back if it may go on.
    fn hold_back(&mut self, node: usize, event: Event) -> Option<Event> {
        let host = &mut self.nodes[node];
        if !host.power {
            return None;
        }
        if host.frozen || host.asleep.is_some() {
            host.backlog.push(event);
            return None;
        }
        let process = host.process.as_mut()?;
        if process.locked && !matches!(event, Event::Step { step: Step::RenewWrite { .. }, .. }) {
            process.at_lock.push(event);
            return None;
        }
        Some(event)
    }

    /// What waited happens now, in any order.
    pub(crate) fn catch_up(&mut self, node: usize) {
        for event in std::mem::take(&mut self.nodes[node].backlog) {
            let at = self.now + self.dice.below(200 * US);
            self.at(at, event);
        }
    }

    fn process_step(&mut self, node: usize, step: Step) {
        match step {
            Step::RenewCompute => self.renew_compute(node),
            Step::RenewWrite { leadership, deadline, computed_at } => {
                self.renew_write(node, leadership, deadline, computed_at);
            }
            Step::Agent => self.agent_step(node),
            Step::AgentTimer(turn) => self.agent_timer(node, turn),
            Step::Election(turn) => self.election(node, turn),
            Step::Beat => self.beat(node),
            Step::Reign(turn) => self.follow_reign(node, turn),
            Step::Disk => self.disk_done(node),
            Step::Applied => self.notice_applied(node),
            Step::Acknowledge(append, result) => self.acknowledge_one(node, &append, result),
            Step::Propose(command) => self.propose_here(node, *command, crate::raft::Responder::Agent),
            Step::Vote(message, passed) => self.vote_goes_on(node, *message, passed),
            Step::TimedOut { peer, lane, rpc } => {
                self.engine(node, crate::raft::Input::TimedOut { peer, lane, rpc });
            }
            Step::Replicate(peer) => self.engine(node, crate::raft::Input::Replicate { peer }),
            Step::Notice(notice) => self.notice(node, notice),
            Step::CountVotes => self.count_votes(node),
            Step::HangUp(number) => self.hang_up(node, number),
            Step::Unanswered(index) => self.unanswered(node, index),
            Step::End(polls) => self.end_of_process(node, polls),
        }
    }

    // ---- the network ----

    /// Sends, unless the link is cut.
    pub(crate) fn send(&mut self, from: usize, to: NodeId, to_life: Option<u32>, body: Body) {
        let Some(process) = &self.nodes[from].process else { return };
        let message = Message {
            from: self.nodes[from].id,
            to,
            from_life: process.life,
            to_life,
            eligible: process.eligible,
            body,
        };
        let copies = 1 + u32::from(self.dice.percent(self.plan.twice));
        let loss = if self.bad_network { 25 } else { self.plan.loss };
        for _ in 0..copies {
            if self.cut.contains(&(from, index(to))) || self.dice.percent(loss) {
                continue;
            }
            let (least, most) = self.plan.delay;
            let more = self.slower.get(&(from, index(to))).copied().unwrap_or(0);
            let mut delay = self.dice.between(least, most) + more;
            let handing_over = matches!(message.body, Body::Transfer { .. });
            let slow = if self.bad_network || handing_over { 30 } else { 8 };
            if (self.plan.slow_network || self.bad_network) && self.healed.is_none() && self.dice.percent(slow) {
                delay += self.dice.below(self.plan.lease() * 5 / 2);
            }
            self.at(self.now + delay, Event::Deliver(Box::new(message.clone())));
        }
    }

    // ---- looking ----

    /// What the clock of `node` shows.
    pub(crate) fn local(&self, node: usize) -> BootInstant {
        self.nodes[node].clock.boot(self.now)
    }

    /// What openraft's clock shows there.
    pub(crate) fn mono(&self, node: usize) -> u64 {
        self.nodes[node].clock.mono(self.now)
    }

    /// The daemon of `node`, which runs.
    pub(crate) fn process(&mut self, node: usize) -> &mut Process {
        self.nodes[node].process.as_mut().expect("only called in a running process")
    }

    /// The node whose kernel has a running deadline; else one whose gate says that it leads.
    pub(crate) fn leading_node(&self) -> Option<usize> {
        let armed = (0..self.nodes.len())
            .find(|node| self.nodes[*node].power && self.local(*node) < self.nodes[*node].kernel.deadline);
        armed.or_else(|| {
            (0..self.nodes.len())
                .find(|node| self.nodes[*node].process.as_ref().is_some_and(|process| process.gate.leading().is_some()))
        })
    }

    // ---- starting and ending ----

    fn join(&mut self, node: usize) {
        let now = self.local(node);
        let timing = self.plan.timing;
        let strict = self.has(Part::StrictPristine);
        let restore = self.restores_leaders;
        let host = &mut self.nodes[node];
        host.starting = false;
        // All nodes begin with the entry that forms the cluster; whoever never voted has promised nothing.
        let untouched = host.disk.vote.is_none() && host.disk.log.len() == 1;
        let pristine = untouched || (!strict && !host.ever_followed);
        let vote = host.disk.vote.unwrap_or_default();
        let gate = LeaseGate::new(host.id, timing, vote, pristine, now);
        // `enable_leader_restore` is off: a leader is a follower after a restart.
        let mine = vote.leadership.node == host.id;
        let in_memory = if mine && !restore { vip_core::HeldVote { committed: false, ..vote } } else { vote };
        let driver = Driver::new(host.id, now);
        let process = Process {
            life: host.life,
            gate,
            locked: false,
            at_lock: Vec::new(),
            store: Store::open(&host.disk),
            raft: Raft::new(in_memory),
            order: Order::default(),
            acknowledging: Vec::new(),
            flushing: Vec::new(),
            peers: BTreeMap::new(),
            voted_at: None,
            encouraged_at: None,
            eligible: true,
            ending: false,
            renewing: false,
            election: 0,
            attempts: 0,
            reign_turn: 0,
            reign: None,
            noticing: false,
            driver,
        };
        let committed = host.disk.committed;
        host.process = Some(Box::new(process));
        self.trace.line(self.now, || format!("n{} joins with vote {vote:?}, pristine {pristine}", node + 1));
        self.commit_upto(node, committed);
        if !self.has(Part::WholeState) {
            let _ = std::sync::Arc::make_mut(&mut self.process(node).raft.cluster).vips.pop_first();
        }
        if restore {
            self.restore_leader(node);
        }
        self.tell_links(node, 0);
        self.notice_soon(node);
        self.changed(node);
        let heartbeat = nanos(self.plan.heartbeat);
        let after = self.dice.below(heartbeat);
        self.after(node, after, Step::Beat);
    }

    /// The process is gone; the kernel goes on.
    pub(crate) fn crash(&mut self, node: usize) {
        let written = self.dice.percent(50);
        self.kill(node, written);
    }

    /// The same, and what was being written is there or not.
    pub(crate) fn kill(&mut self, node: usize, written: bool) {
        let host = &mut self.nodes[node];
        if let Some(process) = host.process.take() {
            process.store.crash(&mut host.disk, written);
        }
        host.starting = false;
        host.frozen = false;
        host.backlog.clear();
        self.stall_outlives(node);
        self.trace.line(self.now, || format!("n{} is killed", node + 1));
    }

    /// The process ends in order.
    pub(crate) fn stop(&mut self, node: usize) {
        let host = &mut self.nodes[node];
        if let Some(process) = host.process.take() {
            process.store.close(&mut host.disk);
        }
        self.trace.line(self.now, || format!("n{} ended", node + 1));
    }
}

/// Where `node` stands in the list.
pub(crate) fn index(node: NodeId) -> usize {
    usize::try_from(node.0).unwrap_or(1) - 1
}
