//! The judge. It sees true time, every kernel and every log, and believes nothing that a node says of itself.
//!
//! After every event:
//!
//! - **One lease**: when a deadline is written to a kernel, no other kernel has one that has not passed, nor one that
//!   passed less than q ago, whatever is open or present. This is what the arithmetic of R1 to R6 promises, and more than
//!   I1. A lease that was given up ends when it is zeroed.
//! - **I1**: for no address do two kernels answer.
//! - **Token**: a kernel that answers does so by an assignment that the very leadership made whose lease runs there, and no
//!   other leadership has assigned the address since. (A deletion may be agreed while the old owner's lease runs out.)
//! - **Order (R8)**: an address is added behind an entry of its own assignment, and removed behind a shut fence; an
//!   announcement leaves only where the address is; an epoch is opened once.
//! - **Log**: what one node applied at an index, all do; the state is what a second, plain machine makes of the same
//!   entries; an answer to an operator rests on an entry of it. Revision, owner and epoch never go back in a process.
//! - **Lost**: what was acknowledged, a declaration or a deletion, is in the state of every node that has applied that far,
//!   unless it was undone since; and who has a lease has applied all of it.
//!
//! After healing:
//!
//! - **I2**: within the budget every VIP is answered, by one host, and all nodes agree.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use vip_core::{Cluster, Command, Epoch, Holding, Leadership, NodeId, Outcome, Step, VipName, VipSpec};

use crate::host::Slot;
use crate::plan::{MS, Nanos, nanos};
use crate::store::{Entry, Log, LogId};
use crate::world::World;

/// The entry that forms the cluster.
#[must_use]
pub(crate) fn first_entry() -> Arc<Entry> {
    Arc::new(Entry { id: LogId::of(0, 0, 0), command: None })
}

impl LogId {
    const fn of(term: u64, node: u64, index: u64) -> Self {
        Self { by: Leadership { term, node: NodeId(node) }, index }
    }
}

#[derive(Clone, Debug)]
struct Vip {
    spec: VipSpec,
    /// Owner, epoch, and who decided it.
    assigned: Option<(NodeId, Epoch, Leadership)>,
}

/// What an entry did to the second machine's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Changed,
    /// The revision that stands.
    Unchanged(u64),
    Refused,
}

/// A state as a process has shown it: its revision, and of each VIP since when it is declared and its epoch.
#[derive(Clone, Debug, Default)]
struct Shown {
    revision: u64,
    epochs: BTreeMap<VipName, (u64, Epoch)>,
}

/// The judge's own account.
#[derive(Debug)]
pub(crate) struct Oracle {
    /// What was found first.
    pub(crate) violation: Option<String>,
    /// What is committed, from index 0.
    log: Log,
    vips: BTreeMap<VipName, Vip>,
    revision: u64,
    /// What operators asked for.
    pub(crate) asked: BTreeMap<u64, Command>,
    /// What came of each entry in the second machine.
    outcomes: Vec<Verdict>,
    /// Of each name the newest that was acknowledged, by the index of its entry: declared so, or deleted.
    acknowledged: BTreeMap<VipName, (u64, Option<VipSpec>)>,
    /// The newest state that each process has shown, by node.
    shown: BTreeMap<usize, Shown>,
    /// Since when every VIP is answered without a break.
    pub(crate) served_since: Option<Nanos>,
}

impl Oracle {
    pub(crate) const fn new() -> Self {
        Self {
            violation: None,
            log: Vec::new(),
            vips: BTreeMap::new(),
            revision: 0,
            asked: BTreeMap::new(),
            outcomes: Vec::new(),
            acknowledged: BTreeMap::new(),
            shown: BTreeMap::new(),
            served_since: None,
        }
    }

    pub(crate) fn found(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// The names of the VIPs that are committed, and their addresses.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        self.vips.values().map(|vip| vip.spec.address).collect()
    }

    pub(crate) fn names(&self) -> Vec<VipName> {
        self.vips.keys().cloned().collect()
    }

    /// How many entries are committed.
    #[must_use]
    pub(crate) fn committed(&self) -> usize {
        self.log.len()
    }

    /// A node applied `entry`.
    pub(crate) fn applied(&mut self, node: usize, entry: &Arc<Entry>) {
        let index = usize::try_from(entry.id.index).unwrap_or(usize::MAX);
        match self.log.get(index) {
            Some(known) if known == entry => {}
            Some(known) => {
                let known = known.id;
                self.found(format!("log: n{} applied {:?}, where {known:?} was committed", node + 1, entry.id));
            }
            None if index == self.log.len() => {
                self.log.push(Arc::clone(entry));
                match &entry.command {
                    Some(command) => self.apply(entry.id, command),
                    None => self.begin(entry.id),
                }
                let invented = entry.command.as_ref().filter(|command| {
                    !matches!(command, Command::Assign { .. }) && !self.asked.values().any(|asked| asked == *command)
                });
                if let Some(command) = invented {
                    self.found(format!("log: n{} applied {command:?}, which nobody asked for", node + 1));
                }
            }
            None => self.found(format!("log: n{} applied {index} after {} entries", node + 1, self.log.len())),
        }
    }

    /// A leader's first entry makes it the owner of all.
    fn begin(&mut self, id: LogId) {
        self.outcomes.push(Verdict::Changed);
        for vip in self.vips.values_mut() {
            vip.assigned = Some((id.by.node, Epoch(id.index), id.by));
            self.revision = id.index;
        }
    }

    /// The second machine: plain, and strict about who decided what.
    fn apply(&mut self, id: LogId, command: &Command) {
        let changed = match command {
            Command::DeclareVip(spec) => match self.vips.get(&spec.name) {
                Some(known) if known.spec == *spec => Ok(false),
                Some(_) => Err(()),
                None if self.vips.values().any(|vip| vip.spec.address == spec.address) => Err(()),
                None => {
                    self.vips.insert(spec.name.clone(), Vip { spec: spec.clone(), assigned: None });
                    Ok(true)
                }
            },
            Command::DeleteVip(name) => Ok(self.vips.remove(name).is_some()),
            Command::Assign { by, owner, claims, .. } => {
                let mut any = false;
                for claim in claims.iter().filter(|_| *by == id.by && *owner == by.node) {
                    let Some(vip) = self.vips.get_mut(&claim.vip) else { continue };
                    if vip.assigned.map(|(_, epoch, _)| epoch) == claim.base {
                        vip.assigned = Some((*owner, Epoch(id.index), *by));
                        any = true;
                    }
                }
                Ok(any)
            }
            Command::Form(_) | Command::RegisterNode { .. } => Ok(false),
        };
        if changed == Ok(true) {
            self.revision = id.index;
        }
        self.outcomes.push(match changed {
            Ok(true) => Verdict::Changed,
            Ok(false) => Verdict::Unchanged(self.revision),
            Err(()) => Verdict::Refused,
        });
    }

    /// A node's state against the second machine's, and against what it was.
    pub(crate) fn compare(&mut self, node: usize, applied: Option<LogId>, cluster: &Cluster) {
        self.check_nothing_lost(node, applied, cluster);
        let epochs: BTreeMap<_, _> = (cluster.vips.iter())
            .filter_map(|(name, vip)| Some((name.clone(), (vip.declared_at, vip.assignment?.epoch))))
            .collect();
        let known = self.shown.entry(node).or_default();
        let back = cluster.revision < known.revision
            || epochs.iter().any(|(name, (declared, epoch))| {
                known.epochs.get(name).is_some_and(|(before, newest)| before == declared && epoch < newest)
            });
        if back {
            let why =
                format!("state: n{} went back from revision {} to {}", node + 1, known.revision, cluster.revision);
            self.found(why);
            return;
        }
        known.revision = cluster.revision;
        known.epochs = epochs;
        if applied.map(|id| id.index + 1) != Some(self.log.len() as u64) {
            return;
        }
        let same = cluster.vips.len() == self.vips.len()
            && cluster.revision == self.revision
            && cluster.vips.iter().all(|(name, vip)| {
                self.vips.get(name).is_some_and(|mine| {
                    let assigned = vip.assignment.map(|at| (at.owner, at.epoch, at.by));
                    mine.spec == vip.spec && mine.assigned == assigned
                })
            });
        if !same {
            self.found(format!("state: n{} made of the log {cluster:?}, and not {:?}", node + 1, self.vips));
        }
    }

    /// A new process may have to apply again what an older one had.
    pub(crate) fn restarted(&mut self, node: usize) {
        self.shown.remove(&node);
    }

    /// An operator has an answer: it must rest on an entry that is committed, and of which the same came.
    pub(crate) fn answered(&mut self, request: u64, outcome: &Outcome) {
        let Some(command) = self.asked.get(&request) else { return };
        let same = |index: usize| {
            let verdict = match (outcome, self.outcomes.get(index)) {
                (Outcome::Changed { revision }, Some(Verdict::Changed)) => *revision == index as u64,
                (Outcome::Unchanged { revision }, Some(Verdict::Unchanged(stands))) => revision == stands,
                (Outcome::Refused(_), Some(Verdict::Refused)) => true,
                _ => false,
            };
            verdict && self.log[index].command.as_ref() == Some(command)
        };
        let Some(index) = (0..self.log.len()).rev().find(|index| same(*index)) else {
            return self.found(format!("log: request {request} was answered with {outcome:?}, which is not committed"));
        };
        let (name, spec) = match (command, outcome) {
            (Command::DeclareVip(spec), Outcome::Changed { .. } | Outcome::Unchanged { .. }) => {
                (spec.name.clone(), Some(spec.clone()))
            }
            (Command::DeleteVip(name), Outcome::Changed { .. } | Outcome::Unchanged { .. }) => (name.clone(), None),
            _ => return,
        };
        let index = index as u64;
        let newest = self.acknowledged.entry(name).or_insert_with(|| (index, spec.clone()));
        if newest.0 < index {
            *newest = (index, spec);
        }
    }

    /// What was acknowledged is in the state of a node that has applied that far, unless somebody undid it since.
    fn check_nothing_lost(&mut self, node: usize, applied: Option<LogId>, cluster: &Cluster) {
        let Some(applied) = applied.map(|id| id.index) else { return };
        let lost = self.acknowledged.iter().find(|(name, (index, spec))| {
            let there = cluster.vips.get(name).map(|vip| &vip.spec);
            let undone = || {
                let since = self.log.iter().filter(|entry| *index < entry.id.index && entry.id.index <= applied);
                since.filter_map(|entry| entry.command.as_ref()).any(|command| match command {
                    Command::DeclareVip(spec) => spec.name == **name,
                    Command::DeleteVip(other) => other == *name,
                    _ => false,
                })
            };
            *index <= applied && there != spec.as_ref() && !undone()
        });
        if let Some((name, (index, spec))) = lost {
            let was = if spec.is_some() { "declared" } else { "deleted" };
            let what =
                format!("lost: {name} was acknowledged as {was} at {index}, but not on n{} at {applied}", node + 1);
            self.found(what);
        }
    }

    /// Whoever may answer for VIPs has applied all that was acknowledged.
    fn check_nothing_missed(&mut self, node: usize, applied: Option<LogId>) {
        let newest = self.acknowledged.values().map(|(index, _)| *index).max();
        if newest > applied.map(|id| id.index) {
            let what = format!("lost: n{} has a lease, and not the entry {newest:?}, which was acknowledged", node + 1);
            self.found(what);
        }
    }

    /// Why a kernel with this lease must not answer by this entry, if so.
    fn token(&self, address: IpAddr, slot: Option<&Slot>, lease_of: Option<Leadership>) -> Option<String> {
        let Some(Slot::Held { vip, epoch }) = slot else {
            return Some("without a fence".to_owned());
        };
        let made = usize::try_from(epoch.0).ok().and_then(|at| self.log.get(at)).map(|entry| entry.id.by);
        if made != lease_of {
            return Some(format!("by epoch {epoch} of {made:?} under the lease of {lease_of:?}"));
        }
        // A VIP that was deleted, or declared again, may be answered for until the lease has run out: a new leader agrees to
        // that before its own hold is over (R4). Nobody else holds it yet.
        let newest = self.vips.values().find(|at| at.spec.address == address).and_then(|at| at.assigned);
        match newest {
            Some((_, newest, by)) if newest != *epoch && Some(by) != lease_of => {
                Some(format!("by epoch {epoch} of {vip} under {lease_of:?}, which {by:?} has assigned anew"))
            }
            Some(_) | None => None,
        }
    }
}

impl World {
    // ---- kernel operations that the judge watches ----

    /// A deadline is written to a kernel.
    pub(crate) fn arm(&mut self, node: usize, leadership: Leadership, deadline: vip_core::BootInstant) {
        self.counts.deadlines += 1;
        self.trace.mix(deadline.as_nanos());
        self.trace.line(self.now, || format!("n{} arms {leadership} until {deadline}", node + 1));
        let queued = nanos(self.plan.timing.queue_time);
        // A deadline that is written when it has passed, by a process that was stopped, opens nothing (R11).
        let opens = self.local(node) < deadline;
        for other in (0..self.nodes.len()).filter(|other| opens && *other != node && self.nodes[*other].power) {
            let Some(ends) = self.lease_ends(other) else { continue };
            let kernel = &self.nodes[other].kernel;
            if ends > self.now {
                let (more, of) = ((ends - self.now) / 1000, kernel.lease_of);
                self.oracle.found(format!(
                    "one lease: n{} armed {leadership} while n{} has that of {of:?} for another {more} us",
                    node + 1,
                    other + 1
                ));
            } else if ends + queued > self.now {
                let (passed, of) = ((self.now - ends) / 1000, kernel.lease_of);
                self.oracle.found(format!(
                    "one lease: n{} armed {leadership} {passed} us after n{}'s of {of:?} passed, with frames queued for {} us",
                    node + 1,
                    other + 1,
                    queued / 1000
                ));
            }
        }
        if opens && let Some(process) = &self.nodes[node].process {
            self.oracle.check_nothing_missed(node, process.raft.applied);
        }
        let lapsed = if opens { None } else { self.lease_ends(node) };
        let kernel = &mut self.nodes[node].kernel;
        kernel.deadline = deadline;
        kernel.lease_of = Some(leadership);
        kernel.lapsed = lapsed;
    }

    /// When in true time the newest lease of a kernel ends or ended, if it ever had one.
    pub(crate) fn lease_ends(&self, node: usize) -> Option<Nanos> {
        let (kernel, clock) = (&self.nodes[node].kernel, &self.nodes[node].clock);
        let told = || (kernel.deadline != vip_core::BootInstant::ZERO).then(|| clock.when(kernel.deadline));
        kernel.lapsed.or_else(told)
    }

    /// A deadline is zeroed.
    pub(crate) fn disarm(&mut self, node: usize) {
        self.trace.line(self.now, || format!("n{} zeroes its deadline", node + 1));
        // What passed until then may be queued still.
        let ended = self.lease_ends(node).map(|ends| ends.min(self.now));
        let kernel = &mut self.nodes[node].kernel;
        kernel.deadline = vip_core::BootInstant::ZERO;
        kernel.lapsed = ended;
    }

    /// R8, before an effect.
    pub(crate) fn check_order(&mut self, node: usize, step: Step, holding: &Holding) {
        let kernel = &self.nodes[node].kernel;
        let slot = kernel.slots.get(&holding.address);
        let own = Slot::Held { vip: holding.vip.clone(), epoch: holding.epoch };
        let wrong = match step {
            Step::Open if kernel.released.contains(&(holding.vip.clone(), holding.epoch)) => "opened again",
            Step::Add if slot != Some(&own) => "added before its fence is opened",
            Step::Remove if matches!(slot, Some(Slot::Held { .. })) && !kernel.stuck.contains(&holding.address) => {
                "removed before its fence is shut"
            }
            Step::Open | Step::Add | Step::Shut | Step::Remove => return,
        };
        let (vip, epoch) = (&holding.vip, holding.epoch);
        self.oracle.found(format!("order: {vip} epoch {epoch} is {wrong} on n{}", node + 1));
    }

    /// An announcement leaves.
    pub(crate) fn check_announced(&mut self, node: usize, holdings: &[Holding]) {
        // Where the address was taken away, or the lease passed, the fence or nobody sends it: no harm. Where another
        // host answers it is.
        for holding in holdings {
            let now = self.local(node);
            if !self.nodes[node].kernel.answers(holding.address, now) {
                continue;
            }
            let other = (0..self.nodes.len()).find(|at| *at != node && self.answers(*at, holding.address));
            if let Some(other) = other {
                let vip = &holding.vip;
                self.oracle.found(format!("I1: n{} announces {vip}, which n{} answers for", node + 1, other + 1));
            }
        }
    }

    fn answers(&self, node: usize, address: IpAddr) -> bool {
        let host = &self.nodes[node];
        host.power && host.asleep.is_none() && host.kernel.answers(address, self.local(node))
    }

    // ---- after every event ----

    pub(crate) fn check(&mut self) {
        let mut answering: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for node in 0..self.nodes.len() {
            let host = &self.nodes[node];
            if !host.power || host.asleep.is_some() || host.kernel.addresses.is_empty() {
                continue;
            }
            let now = self.local(node);
            for address in host.kernel.addresses.keys().filter(|address| host.kernel.answers(**address, now)) {
                let slot = host.kernel.slots.get(address);
                if let Some(why) = self.oracle.token(*address, slot, host.kernel.lease_of) {
                    self.oracle.found(format!("token: n{} answers for {address} {why}", node + 1));
                }
                if let Some(other) = answering.insert(*address, node) {
                    let what = format!("I1: n{} and n{} answer for {address}", other + 1, node + 1);
                    self.oracle.violation.get_or_insert(what);
                }
            }
        }
        if self.healed.is_some() {
            let all = self.oracle.addresses().iter().all(|address| answering.contains_key(address));
            self.oracle.served_since = if all { self.oracle.served_since.or(Some(self.now)) } else { None };
        }
    }

    // ---- after healing ----

    /// At the end of a run in which all went well.
    pub(crate) fn check_the_end(&mut self) {
        for node in 0..self.nodes.len() {
            if let Some(process) = &self.nodes[node].process {
                self.oracle.compare(node, process.raft.applied, &process.raft.cluster);
            }
        }
    }

    /// Whether all is well, and has been for a while.
    pub(crate) fn settled(&self) -> bool {
        let calm = self.oracle.served_since.is_some_and(|since| self.now - since > 4 * self.plan.lease());
        calm && self.nodes.iter().all(|node| {
            // A node whose disk stands still cannot be expected to keep up.
            node.stall.stands
                || node.process.as_ref().is_some_and(|process| {
                    process.raft.applied.map(|id| id.index + 1) == Some(self.oracle.committed() as u64)
                })
        })
    }

    /// I2 is missed.
    pub(crate) fn too_late(&mut self) {
        let served = self.oracle.served_since.is_some();
        let applied: Vec<_> = (self.nodes.iter())
            .map(|node| node.process.as_ref().and_then(|process| process.raft.applied).map(|id| id.index))
            .collect();
        let what = if served { "the nodes do not agree" } else { "not every VIP is answered" };
        let committed = self.oracle.committed();
        let budget = self.plan.budget() / MS;
        let since = self.phase_name();
        self.oracle.found(format!("I2: {budget} ms after {since} {what}; applied {applied:?} of {committed} entries"));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use vip_core::LeaseTiming;

    use super::*;
    use crate::dice::Dice;
    use crate::plan::Plan;
    use crate::start::Stage;
    use crate::trace::Trace;

    /// What the judge says of another lease `later` after one of 10 ms ended, and `end` was done 1 ms after its end. q = 20 ms.
    fn found(later: Nanos, end: impl Fn(&mut World)) -> Option<String> {
        let ms = Duration::from_millis;
        let timing = LeaseTiming { lease: ms(100), clock_drift_ppm: 0, queue_time: ms(20) };
        let mut world = World::new(Plan::quiet(timing), Dice::new(7), &[], Trace::new(false));
        let lease = |world: &mut World, node, term| {
            let deadline = world.local(node) + ms(10);
            world.arm(node, Leadership { term, node: NodeId(node as u64 + 1) }, deadline);
        };
        lease(&mut world, 0, 1);
        world.now += 11 * MS;
        end(&mut world);
        world.now += later - MS;
        lease(&mut world, 1, 2);
        world.oracle.violation
    }

    #[test]
    fn frames_count_that_are_queued_when_a_lease_is_zeroed_that_has_passed() {
        let ends: [fn(&mut World); 3] = [|_| {}, |world| world.disarm(0), |world| world.prepare(0, Stage::Zero)];
        for (number, end) in ends.into_iter().enumerate() {
            let soon = found(15 * MS, end);
            assert!(soon.is_some_and(|found| found.contains("15000 us after n1's")), "end {number}");
            assert_eq!(found(21 * MS, end), None, "end {number}");
        }
    }

    #[test]
    fn a_lease_ends_when_it_is_zeroed_before_its_deadline() {
        let early = |world: &mut World| {
            world.now -= 6 * MS;
            world.disarm(0);
        };
        assert!(found(15 * MS, early).is_some_and(|found| found.contains("14000 us after n1's")));
        assert_eq!(found(22 * MS, early), None);
    }
}
