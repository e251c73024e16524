//! Disks that stand still: a sync that does not return for a while, or not before its process is killed. The thread of
//! the store waits in it, and the rest of the daemon goes on. Whether what it wrote had reached the disk by then is as
//! open as with every crash.
//!
//! All of it falls from dice of its own ([`Dice::aside`](crate::dice::Dice::aside)), so a run without it is the run that
//! its seed always was.
//!
//! Safety holds whatever stands still. I2 promises more: after healing one disk alone may stand still, for ever, and
//! another leader be lost meanwhile; the VIPs are answered all the same. Then it goes on, and all must agree.

use crate::plan::{MS, Nanos};
use crate::raft::{AppendIn, Input};
use crate::world::{Event, Repair, Step, Waiting, World};

/// When a disk begins to stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// At once: a sync that is under way does not return, nor does the next.
    Now,
    /// With the next sync that has a vote in it.
    Vote,
    /// With the next sync that has entries in it.
    Entry,
    /// When something is written, and more waits behind it.
    Two,
}

/// How a disk stands.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stall {
    /// It will stand still then, and for so long; without an end until its process is killed.
    waits: Option<(Moment, Option<Nanos>)>,
    /// It stands still.
    pub(crate) stands: bool,
    /// It does until its process is killed.
    until_killed: bool,
    /// A sync that was under way returns as soon as it goes on.
    held: bool,
    /// How often it has; the end of an older one ends nothing.
    number: u64,
}

/// What is made of I2 after healing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    /// All disks work.
    Over,
    /// This node's disk will stand still.
    Waits(usize),
    /// It does.
    Stands(usize),
    /// And the leader was lost since.
    Leaderless(usize),
}

impl World {
    /// The first one, where the run has any.
    pub(crate) fn begin_stalls(&mut self) {
        if self.plan.stalls {
            let after = self.aside.below(4 * self.plan.lease());
            self.at(self.plan.chaos.0 + after, Event::Stall);
        }
    }

    /// A disk is going to stand still.
    pub(crate) fn next_stall(&mut self) {
        if self.healed.is_some() {
            return;
        }
        let lease = self.plan.lease();
        let node = self.some_node();
        let moment = self.some_moment();
        let while_ = if self.aside.percent(20) { None } else { Some(self.aside.between(50 * MS, 50 * MS + 5 * lease)) };
        self.stall(node, moment, while_);
        let after = self.aside.between(lease / 2, 5 * lease);
        self.at(self.now + after, Event::Stall);
    }

    fn some_node(&mut self) -> usize {
        let any = self.aside.index(self.nodes.len());
        self.leading_node().filter(|_| self.aside.percent(40)).unwrap_or(any)
    }

    fn some_moment(&mut self) -> Moment {
        self.aside.pick(&[Moment::Now, Moment::Vote, Moment::Vote, Moment::Entry, Moment::Entry, Moment::Two])
    }

    /// The disk of `node` will stand still for `while_`, or until its process is killed.
    pub(crate) fn stall(&mut self, node: usize, moment: Moment, while_: Option<Nanos>) {
        let stall = &mut self.nodes[node].stall;
        if !stall.stands && stall.waits.is_none() {
            stall.waits = Some((moment, while_));
            self.stall_comes(node, Moment::Now);
        }
    }

    /// The `moment` is there: the disk stands still if it was waited for.
    pub(crate) fn stall_comes(&mut self, node: usize, moment: Moment) {
        let stall = &mut self.nodes[node].stall;
        let Some((_, while_)) = stall.waits.take_if(|(waits_for, _)| *waits_for == moment) else { return };
        stall.stands = true;
        stall.until_killed = while_.is_none();
        stall.number += 1;
        let number = stall.number;
        self.counts.stalls += 1;
        self.trace.line(self.now, || format!("** the disk of n{} stands still ({moment:?}, {while_:?})", node + 1));
        if let Some(while_) = while_ {
            self.at(self.now + while_, Event::Repair(Repair::Stall(node, number)));
        }
        let kill = if while_.is_some() { 20 } else { 70 };
        if self.plan.stalls && self.healed.is_none() && self.aside.percent(kill) {
            let most = while_.unwrap_or_else(|| 3 * self.plan.lease());
            let after = self.aside.below(most);
            self.at(self.now + after, Event::Repair(Repair::Kill(node, number)));
        }
        self.after(node, self.plan.lease() / 2, Step::HangUp(number));
        if self.probe == Probe::Waits(node) {
            self.phase(Probe::Stands(node));
        }
    }

    /// A sync is done. Whether nobody hears of it yet.
    pub(crate) fn stall_holds(&mut self, node: usize) -> bool {
        let stall = &mut self.nodes[node].stall;
        stall.held |= stall.stands;
        stall.stands
    }

    pub(crate) fn stall_is_over(&mut self, node: usize, number: u64) {
        if self.nodes[node].stall.number == number {
            self.disk_goes_on(node);
        }
    }

    /// Somebody loses patience.
    pub(crate) fn kill_while_it_stands(&mut self, node: usize, number: u64) {
        let stall = self.nodes[node].stall;
        if stall.stands && stall.number == number {
            self.crash_and_start(node);
        }
    }

    /// How much longer a sync takes, so that something comes to wait behind it.
    pub(crate) fn time_for_two(&mut self, node: usize) -> Nanos {
        match self.nodes[node].stall.waits {
            Some((Moment::Two, _)) => self.aside.below(self.plan.lease() / 2),
            Some(_) | None => 0,
        }
    }

    /// The disk of `node` works again.
    pub(crate) fn disk_goes_on(&mut self, node: usize) {
        let stall = &mut self.nodes[node].stall;
        stall.waits = None;
        let held = std::mem::take(&mut stall.held);
        if std::mem::take(&mut stall.stands) {
            self.trace.line(self.now, || format!("** the disk of n{} goes on", node + 1));
        }
        if held {
            let after = self.aside.below(MS);
            self.after(node, after, Step::Disk);
        }
    }

    /// The process of `node` is killed. Its disk may stand still beyond that: then no other can open the store.
    pub(crate) fn stall_outlives(&mut self, node: usize) {
        let stall = &mut self.nodes[node].stall;
        stall.held = false;
        if stall.stands && (stall.until_killed || self.aside.percent(50)) {
            self.disk_goes_on(node);
        }
    }

    // ---- callers that do not wait any longer ----

    /// A leader hangs up on an append that is not answered within a lease: that ends its handler, but not what openraft
    /// does with it.
    pub(crate) fn hang_up(&mut self, node: usize, number: u64) {
        let stall = self.nodes[node].stall;
        if !stall.stands || stall.number != number {
            return;
        }
        let now = self.local(node);
        let lease = self.plan.timing.lease;
        let aside = &mut self.aside;
        // Where the leader is not there any more nobody hangs up.
        let mut ends = |append: &AppendIn| append.came_at + lease < now && aside.percent(70);
        let process = self.nodes[node].process.as_mut().expect("only called in a running process");
        let before = process.acknowledging.len();
        process.acknowledging.retain(|(_, append, _)| !ends(append));
        let mut ended = before - process.acknowledging.len();
        for input in &mut process.raft.queue {
            if let Input::Append(append) | Input::AppendLog(append) = input
                && !append.hung_up
                && ends(append)
            {
                append.hung_up = true;
                ended += 1;
            }
        }
        process.order.queue.retain(|waiting| !matches!(waiting, Waiting::Append(append) if ends(append)));
        process.order.readers = process.order.readers.saturating_sub(u32::try_from(ended).unwrap_or(u32::MAX));
        self.order_moves(node);
        self.after(node, self.plan.lease() / 2, Step::HangUp(number));
    }

    // ---- I2 ----

    /// After healing at most one disk stands still.
    pub(crate) fn heal_disks(&mut self) {
        let standing: Vec<_> = (0..self.nodes.len()).filter(|node| self.nodes[*node].stall.stands).collect();
        let kept = if !self.plan.stalls || self.aside.percent(40) {
            None
        } else if standing.is_empty() || self.aside.percent(30) {
            Some(self.some_node())
        } else {
            Some(self.aside.pick(&standing))
        };
        (0..self.nodes.len()).filter(|node| Some(*node) != kept).for_each(|node| self.disk_goes_on(node));
        let Some(node) = kept else { return };
        // As long as it takes: an end that is set already comes to nothing.
        self.nodes[node].stall.number += 1;
        self.nodes[node].stall.waits = None;
        if self.nodes[node].stall.stands {
            self.after(node, self.plan.lease() / 2, Step::HangUp(self.nodes[node].stall.number));
            self.probe = Probe::Stands(node);
        } else {
            self.probe = Probe::Waits(node);
            let moment = self.some_moment();
            self.stall(node, moment, None);
        }
    }

    /// From now on the budget counts anew.
    fn phase(&mut self, probe: Probe) {
        self.probe = probe;
        self.begin_phase();
    }

    pub(crate) fn begin_phase(&mut self) {
        self.phase_from = self.now;
        self.due = self.now + self.plan.budget();
        self.oracle.served_since = None;
    }

    /// All is well. Returns whether something else is tried.
    pub(crate) fn probe_on(&mut self) -> bool {
        let took = self.oracle.served_since.map(|served| served - self.phase_from);
        self.back_in = self.back_in.max(took);
        match self.probe {
            Probe::Over => return false,
            Probe::Waits(node) => {
                self.nodes[node].stall.waits = None;
                self.stall(node, Moment::Now, None);
            }
            Probe::Stands(node) if self.aside.percent(60) => {
                let leader = self.leading_node().unwrap_or(node);
                self.trace.line(self.now, || format!("** the leader n{} is lost", leader + 1));
                if self.aside.percent(50) {
                    self.crash_and_start(leader);
                } else {
                    self.terminate(leader);
                }
                self.phase(Probe::Leaderless(node));
            }
            Probe::Stands(node) | Probe::Leaderless(node) => {
                self.disk_goes_on(node);
                self.phase(Probe::Over);
            }
        }
        true
    }

    /// What the budget counts from.
    pub(crate) fn phase_name(&self) -> String {
        match self.probe {
            Probe::Over if self.phase_from > self.healed.unwrap_or(0) => "the last disk went on".to_owned(),
            Probe::Over | Probe::Waits(_) => "healing".to_owned(),
            Probe::Stands(node) => format!("healing with the disk of n{} standing still", node + 1),
            Probe::Leaderless(node) => format!("the loss of a leader with the disk of n{} standing still", node + 1),
        }
    }
}
