//! Schedules that are written by hand, where chance would take long to find them.

use vip_core::{Claim, Command, Leadership, LeaseKind};

use crate::dice::Dice;
use crate::faults::spec;
use crate::omission::Omission;
use crate::plan::{MS, Nanos, Plan};
use crate::raft::{Input, Responder};
use crate::stall::Moment;
use crate::trace::Trace;
use crate::world::{Event, World};

/// A cluster in which nothing goes wrong but what the script does.
#[derive(Debug)]
pub struct Script {
    world: World,
}

impl Script {
    /// A cluster with these figures and one VIP, which its leader answers for.
    #[must_use]
    pub fn serving(plan: Plan, without: &[Omission]) -> Self {
        let mut script = Self { world: World::new(plan, Dice::new(7), without, Trace::new(true)) };
        script.pass_ms(500);
        for node in 0..script.world.nodes.len() {
            script.world.request(node, Command::DeclareVip(spec("web", 1, "eth0")));
        }
        script.pass_ms(500);
        script
    }

    /// The same of three nodes: with the leader, and the others.
    ///
    /// # Panics
    /// When nobody serves.
    #[must_use]
    pub fn serving_three(plan: Plan, without: &[Omission]) -> (Self, usize, usize, usize) {
        let script = Self::serving(plan, without);
        let (leader, others) = (script.leader(), script.others());
        assert!(script.serves(leader), "nobody serves at first");
        (script, leader, others[0], others[1])
    }

    /// Lets time pass.
    pub fn pass_ms(&mut self, ms: u64) {
        let end = self.world.now + ms * MS;
        self.world.at(end, Event::Cue);
        while self.world.now < end && self.world.step(end) {}
    }

    /// The node whose kernel has the lease, or who leads.
    #[must_use]
    pub fn leader(&self) -> usize {
        self.world.leading_node().unwrap_or(0)
    }

    /// The others, in order.
    #[must_use]
    pub fn others(&self) -> Vec<usize> {
        let leader = self.leader();
        (0..self.world.nodes.len()).filter(|node| *node != leader).collect()
    }

    /// Whether the kernel of `node` answers for the VIP.
    #[must_use]
    pub fn serves(&self, node: usize) -> bool {
        let host = &self.world.nodes[node];
        self.world.oracle.addresses().iter().any(|address| host.kernel.answers(*address, self.world.local(node)))
    }

    /// Cuts both ways.
    pub fn cut(&mut self, a: usize, b: usize) {
        self.world.cut_both(a, b);
    }

    /// Cuts one way.
    pub fn cut_way(&mut self, from: usize, to: usize) {
        self.world.cut_way(from, to);
    }

    /// Makes both ways work again.
    pub fn mend(&mut self, a: usize, b: usize) {
        self.world.cut.remove(&(a, b));
        self.world.cut.remove(&(b, a));
    }

    /// Messages on this way take so much longer from now on.
    pub fn slow(&mut self, from: usize, to: usize, ms: Nanos) {
        self.world.slower.insert((from, to), ms * MS);
    }

    /// Kills the daemon and starts it again at once.
    pub fn restart(&mut self, node: usize) {
        self.world.crash(node);
        self.world.oracle.restarted(node);
        let now = self.world.now;
        self.world.at(now, Event::Start { node });
    }

    /// The same, and nothing of what was being written is there.
    pub fn restart_with_nothing_written(&mut self, node: usize) {
        self.world.kill(node, false);
        self.world.oracle.restarted(node);
        let now = self.world.now;
        self.world.at(now, Event::Start { node });
    }

    /// Stops the daemon for a while.
    pub fn freeze(&mut self, node: usize, ms: u64) {
        self.world.freeze(node, ms * MS);
    }

    /// The disk of `node` stands still, until the daemon is killed, from its next sync on that has a vote in it; else from
    /// the next with an entry.
    pub fn disk_stands_still(&mut self, node: usize, with_a_vote: bool) {
        self.world.stall(node, if with_a_vote { Moment::Vote } else { Moment::Entry }, None);
    }

    /// Whether the disk of `node` stands still.
    #[must_use]
    pub fn disk_stands(&self, node: usize) -> bool {
        self.world.nodes[node].stall.stands
    }

    /// Ends the daemon in order.
    pub fn terminate(&mut self, node: usize) {
        self.world.terminate(node);
    }

    /// The leader appends an assignment of the VIP to itself that says to have been decided in another leadership.
    pub fn assign_in_another_name(&mut self) {
        let leader = self.leader();
        let process = self.world.process(leader);
        let Some(by) = process.gate.leading() else { return };
        let decided = Leadership { term: by.term - 1, ..by };
        let claims = (process.raft.cluster.vips.values())
            .map(|vip| Claim { vip: vip.spec.name.clone(), base: vip.assignment.map(|at| at.epoch) })
            .collect();
        let command = Command::Assign { by: decided, owner: by.node, kind: LeaseKind::Leader, claims };
        self.world.propose_here(leader, command, Responder::Agent);
    }

    /// A cluster whose nodes are started and have not heard of each other yet.
    #[must_use]
    pub fn beginning(plan: Plan, without: &[Omission]) -> Self {
        let mut script = Self { world: World::new(plan, Dice::new(7), without, Trace::new(true)) };
        let nodes = script.world.nodes.len();
        for (a, b) in (0..nodes).flat_map(|a| (0..a).map(move |b| (a, b))) {
            script.cut(a, b);
        }
        script.pass_ms(40);
        script
    }

    /// Lets time pass until something is so, for at most this long. Whether it came to be.
    pub fn pass_until(&mut self, ms: u64, so: impl Fn(&Self) -> bool) -> bool {
        let end = self.world.now + ms * MS;
        self.world.at(end, Event::Cue);
        loop {
            if so(self) {
                return true;
            }
            if self.world.now >= end || !self.world.step(end) {
                return false;
            }
        }
    }

    /// Whether the engine of `node` leads.
    #[must_use]
    pub fn leads(&self, node: usize) -> bool {
        self.world.nodes[node].process.as_ref().is_some_and(|process| process.raft.leader.is_some())
    }

    /// Whether `node` stands for election.
    #[must_use]
    pub fn stands(&self, node: usize) -> bool {
        self.world.nodes[node].process.as_ref().is_some_and(|process| process.raft.candidate.is_some())
    }

    /// Whether the kernel of `node` has a lease that runs.
    #[must_use]
    pub fn armed(&self, node: usize) -> bool {
        self.world.local(node) < self.world.nodes[node].kernel.deadline
    }

    /// Whether `node` hands its leadership over.
    #[must_use]
    pub fn hands_over(&self, node: usize) -> bool {
        self.world.nodes[node].process.as_ref().is_some_and(|process| process.driver.transferring.is_some())
    }

    /// Asks through the API of `node` for a VIP more.
    pub fn declare(&mut self, node: usize, name: &str, last: u8) {
        self.world.request(node, Command::DeclareVip(spec(name, last, "eth0")));
    }

    /// The interface of the VIP has a carrier on `node`, or not.
    pub fn carrier(&mut self, node: usize, there: bool) {
        self.world.nodes[node].kernel.links.insert("eth0".to_owned(), there);
        self.world.tell_links(node, 0);
    }

    /// Asks the others whether to stand, if the gate lets it.
    pub fn ask(&mut self, node: usize) -> bool {
        let now = self.world.local(node);
        let open = self.world.process(node).gate.check_campaign(now).is_ok();
        if open {
            self.world.engine(node, Input::PreElect);
        }
        open
    }

    /// Stands as openraft does without a pre-vote, if the gate lets it.
    pub fn stand(&mut self, node: usize) -> bool {
        let now = self.world.local(node);
        let open = self.world.process(node).gate.check_campaign(now).is_ok();
        if open {
            self.world.engine(node, Input::Stand);
        }
        open
    }

    /// Stops the daemon for a while when its renewing thread has a deadline and has not written it yet.
    pub fn freeze_while_renewing(&mut self, node: usize, ms: u64) {
        let end = self.world.now + 100 * MS;
        while self.world.step(end) {
            if self.world.nodes[node].process.as_ref().is_some_and(|process| process.locked) {
                self.freeze(node, ms);
                return;
            }
        }
    }

    /// What was found.
    #[must_use]
    pub fn violation(&self) -> Option<&str> {
        self.world.oracle.violation.as_deref()
    }

    /// What happened.
    pub fn lines(&mut self) -> Vec<String> {
        self.world.trace.take_lines()
    }
}
