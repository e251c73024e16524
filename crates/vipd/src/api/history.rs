//! The recent changes of the agreed state, found by comparing each state with the one before.

use std::collections::VecDeque;
use std::sync::Arc;

use vip_core::{Cluster, VipName, VipRecord};

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The VIP is new or has changed.
    Put(VipRecord),
    /// The VIP is gone, by this revision or one that was merged with it.
    Delete(VipName, u64),
}

/// The changes between two states that followed each other here. Revisions in between may have been skipped.
#[derive(Clone, Debug)]
pub(super) struct Batch {
    /// The revision of the later state.
    pub(super) revision: u64,
    /// In order of their revisions.
    pub(super) changes: Arc<[Change]>,
}

/// What a watch at some revision has to be told.
#[derive(Debug)]
pub(super) enum Since {
    /// These batches bring it to this revision.
    Changes(Vec<Batch>, u64),
    /// Some changes are forgotten, or its revision is none of this history: only a snapshot helps.
    Lost,
}

/// A ring of changes. Holds at most `capacity` of them, whatever the number of watches.
#[derive(Debug)]
pub(super) struct History {
    batches: VecDeque<Batch>,
    /// Changes in `batches`.
    held: usize,
    capacity: usize,
    /// All changes after this revision are held.
    floor: u64,
    latest: Arc<Cluster>,
}

impl History {
    pub(super) fn new(start: Arc<Cluster>, capacity: usize) -> Self {
        Self { batches: VecDeque::new(), held: 0, capacity, floor: start.revision, latest: start }
    }

    /// Takes in a state, unless one as new is known.
    pub(super) fn absorb(&mut self, state: &Arc<Cluster>) {
        if state.revision <= self.latest.revision {
            return;
        }
        let changes = changes(&self.latest, state);
        self.latest = Arc::clone(state);
        if changes.is_empty() {
            return;
        }
        self.held += changes.len();
        self.batches.push_back(Batch { revision: state.revision, changes: changes.into() });
        while self.held > self.capacity
            && let Some(oldest) = self.batches.pop_front()
        {
            self.held -= oldest.changes.len();
            self.floor = oldest.revision;
        }
    }

    /// The newest state.
    pub(super) fn latest(&self) -> &Arc<Cluster> {
        &self.latest
    }

    /// What came after `revision`.
    pub(super) fn since(&self, revision: u64) -> Since {
        if revision < self.floor || revision > self.latest.revision {
            return Since::Lost;
        }
        // A revision inside a batch can come from another node, which merged differently. Repeating the whole batch does
        // no harm: its changes carry states, not steps.
        let first = self.batches.partition_point(|batch| batch.revision <= revision);
        Since::Changes(self.batches.range(first..).cloned().collect(), self.latest.revision)
    }
}

fn changes(old: &Cluster, new: &Cluster) -> Vec<Change> {
    let gone = old.vips.keys().filter(|name| !new.vips.contains_key(*name));
    let mut changes: Vec<_> = gone.map(|name| Change::Delete(name.clone(), new.revision)).collect();
    let mut puts: Vec<_> = new
        .vips
        .iter()
        .filter(|(name, vip)| old.vips.get(*name).is_none_or(|known| known.changed_at != vip.changed_at))
        .map(|(_, vip)| vip)
        .collect();
    // Deletions first: a merged batch may move an address from one name to another, and a client that indexes by address
    // must not see it twice.
    puts.sort_by_key(|vip| vip.changed_at);
    changes.extend(puts.into_iter().cloned().map(Change::Put));
    changes
}

#[cfg(test)]
mod tests {
    use vip_core::{Command, Leadership, NodeId};

    use super::*;
    use crate::api::tests::fake::spec;

    /// States after declaring (true) or deleting (false) the named VIPs at revisions 1, 2, ...
    fn states(steps: &[(bool, &str)]) -> Vec<Arc<Cluster>> {
        let mut cluster = Cluster::default();
        let mut states = vec![Arc::new(cluster.clone())];
        for (index, (declare, name)) in (1..).zip(steps) {
            let command = if *declare {
                Command::DeclareVip(spec(name, &format!("10.0.0.{index}")))
            } else {
                Command::DeleteVip(name.parse().unwrap())
            };
            cluster.apply(index, Leadership { term: 1, node: NodeId(1) }, command);
            states.push(Arc::new(cluster.clone()));
        }
        states
    }

    fn names(since: Since) -> Option<Vec<String>> {
        let Since::Changes(batches, _) = since else { return None };
        let name = |change: &Change| match change {
            Change::Put(vip) => format!("+{}", vip.spec.name),
            Change::Delete(name, revision) => format!("-{name}@{revision}"),
        };
        Some(batches.iter().flat_map(|batch| batch.changes.iter().map(name)).collect())
    }

    #[test]
    fn tells_what_came_after_a_revision() {
        let states = states(&[(true, "a"), (true, "b"), (false, "a")]);
        let mut history = History::new(Arc::clone(&states[0]), 10);
        states.iter().for_each(|state| history.absorb(state));
        assert_eq!(names(history.since(0)).unwrap(), ["+a", "+b", "-a@3"]);
        assert_eq!(names(history.since(2)).unwrap(), ["-a@3"]);
        assert!(names(history.since(3)).unwrap().is_empty());
        assert!(names(history.since(4)).is_none(), "the future is another history");
    }

    #[test]
    fn skipped_states_are_merged_and_old_ones_ignored() {
        let states = states(&[(true, "a"), (true, "b"), (false, "a"), (true, "a")]);
        let mut history = History::new(Arc::clone(&states[1]), 10);
        history.absorb(&states[3]);
        history.absorb(&states[2]);
        history.absorb(&states[4]);
        assert_eq!(names(history.since(1)).unwrap(), ["-a@3", "+b", "+a"]);
        assert_eq!(names(history.since(2)).unwrap(), ["-a@3", "+b", "+a"], "inside a batch: all of it");
        assert!(names(history.since(0)).is_none(), "before the start");
    }

    #[test]
    fn a_full_ring_forgets_the_oldest() {
        let states = states(&[(true, "a"), (true, "b"), (true, "c")]);
        let mut history = History::new(Arc::clone(&states[0]), 2);
        states.iter().for_each(|state| history.absorb(state));
        assert!(names(history.since(0)).is_none());
        assert_eq!(names(history.since(1)).unwrap(), ["+b", "+c"]);
    }

    #[test]
    fn a_batch_larger_than_the_ring_is_not_kept() {
        let states = states(&[(true, "a"), (true, "b"), (true, "c")]);
        let mut history = History::new(Arc::clone(&states[0]), 2);
        history.absorb(&states[3]);
        assert!(names(history.since(0)).is_none());
        assert!(names(history.since(3)).unwrap().is_empty());
        assert_eq!((history.held, history.batches.len()), (0, 0));
    }
}
