//! How a daemon starts: before it joins, its host is prepared in steps, and it may be killed or stopped between any two (R7;
//! `Host::prepare` of vipd and `Fence::open`). How long they take falls from the dice aside.

use vip_core::BootInstant;

use crate::host::Slot;
use crate::omission::Part;
use crate::plan::US;
use crate::world::{Event, World};

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Every deadline is zeroed.
    Zero,
    /// The fence is shut, address after address.
    Shut,
    /// Addresses of an earlier run are removed, one after the other.
    Sweep,
}

impl World {
    /// A process begins. A lease that one before it left is not cut short: the kernel answers by it with every right.
    pub(crate) fn start(&mut self, node: usize) {
        let now = self.local(node);
        let waits = self.has(Part::AwaitPredecessor);
        let calm = self.has(Part::NoPanic);
        let host = &mut self.nodes[node];
        if !host.power || host.process.is_some() || host.starting {
            return;
        }
        host.kernel.released.clear();
        host.life += 1;
        host.starting = true;
        let life = host.life;
        assert!(calm || life == 1, "the {life}. start of n{} panics, as was asked for", node + 1);
        let left = host.kernel.deadline.saturating_duration_since(now).min(self.plan.timing.lease);
        let until = if waits { now + left } else { now };
        self.trace.line(self.now, || format!("n{} starts (process {life})", node + 1));
        self.prepare_at(node, until, Stage::Zero);
    }

    fn prepare_at(&mut self, node: usize, at: BootInstant, stage: Stage) {
        let moment = self.aside.between(US, 300 * US);
        let (at, life) = (self.nodes[node].clock.when(at).max(self.now), self.nodes[node].life);
        self.at(at + moment, Event::Prepare { node, life, stage });
    }

    /// One step of it.
    pub(crate) fn prepare(&mut self, node: usize, stage: Stage) {
        let now = self.local(node);
        self.trace.line(self.now, || format!("n{} prepares its host: {stage:?}", node + 1));
        match stage {
            Stage::Zero => {
                if self.has(Part::ZeroAtStart) {
                    self.disarm(node);
                }
                self.prepare_at(node, now, Stage::Shut);
            }
            Stage::Shut => {
                let shuts = self.has(Part::ShutAtStart);
                let kernel = &mut self.nodes[node].kernel;
                match kernel.slots.iter_mut().find(|(_, slot)| shuts && **slot != Slot::Shut) {
                    Some((address, slot)) => {
                        *slot = Slot::Shut;
                        kernel.stuck.remove(address);
                        self.prepare_at(node, now, Stage::Shut);
                    }
                    None => self.prepare_at(node, now, Stage::Sweep),
                }
            }
            Stage::Sweep => {
                if self.has(Part::SweepAtStart) && self.nodes[node].kernel.addresses.pop_first().is_some() {
                    return self.prepare_at(node, now, Stage::Sweep);
                }
                // The filters, the listeners, the store.
                let after = self.dice.between(500 * US, 10_000 * US);
                let life = self.nodes[node].life;
                self.at(self.now + after, Event::Join { node, life });
            }
        }
    }
}
