//! What waits for the agent: the newest value of what only has one, and a bounded list of the rest.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vip_core::{BootInstant, Cluster, Input, Leadership, Reign};

/// How many inputs wait at most that cannot be merged. They are answers to the agent's own few requests and reports of
/// addresses that others removed; beyond that the oldest report is dropped, and the next refresh puts the address back.
const DEPTH: usize = 4096;

#[derive(Debug, Default)]
struct Waiting {
    state: Option<Arc<Cluster>>,
    reign: Option<Option<Reign>>,
    lease: Option<(Leadership, BootInstant)>,
    links: Option<BTreeMap<String, bool>>,
    others: VecDeque<Input>,
    /// Somebody asks whether the agent still runs.
    pings: u64,
    pongs: u64,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.state.is_none()
            && self.reign.is_none()
            && self.lease.is_none()
            && self.links.is_none()
            && self.others.is_empty()
            && self.pings == self.pongs
    }

    /// In an order in which each can be acted on: what is agreed before answers to proposals and before who leads.
    fn drain(&mut self) -> Vec<Input> {
        self.pongs = self.pings;
        let mut inputs: Vec<_> = self.links.take().map(Input::Links).into_iter().collect();
        inputs.extend(self.state.take().map(Input::State));
        inputs.extend(self.others.drain(..));
        inputs.extend(self.reign.take().map(Input::Reign));
        inputs.extend(self.lease.take().map(|(leadership, deadline)| Input::Lease(leadership, deadline)));
        inputs
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

impl Mailbox {
    pub(crate) fn state(&self, cluster: Arc<Cluster>) {
        self.put(|waiting| waiting.state = Some(cluster));
    }

    pub(crate) fn reign(&self, reign: Option<Reign>) {
        self.put(|waiting| waiting.reign = Some(reign));
    }

    pub(crate) fn lease(&self, leadership: Leadership, deadline: BootInstant) {
        self.put(|waiting| waiting.lease = Some((leadership, deadline)));
    }

    pub(crate) fn links(&self, links: BTreeMap<String, bool>) {
        self.put(|waiting| waiting.links = Some(links));
    }

    pub(crate) fn other(&self, input: Input) {
        self.put(|waiting| {
            if waiting.others.len() >= DEPTH {
                let oldest_report = waiting.others.iter().position(|input| matches!(input, Input::AddressLost(_)));
                oldest_report.and_then(|index| waiting.others.remove(index));
            }
            waiting.others.push_back(input);
        });
    }

    /// Asks for a sign of life; returns the number of the question, for [`Self::answered`].
    pub(crate) fn ask(&self) -> u64 {
        let mut asked = 0;
        self.put(|waiting| {
            waiting.pings = waiting.pongs + 1;
            asked = waiting.pings;
        });
        asked
    }

    /// Whether a question was answered, whoever else has asked since.
    pub(crate) fn answered(&self, question: u64) -> bool {
        self.lock().pongs >= question
    }

    /// Asks for a sign of life and waits for it; returns whether it came within `patience`.
    pub(crate) async fn answers(&self, patience: Duration) -> bool {
        const PACE: Duration = Duration::from_millis(2);
        let deadline = tokio::time::Instant::now() + patience;
        let asked = self.ask();
        while !self.answered(asked) {
            if tokio::time::Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(PACE).await;
        }
        true
    }

    /// Waits until something is there, for `patience` at most; none waits for ever.
    pub(crate) fn take(&self, patience: Option<Duration>) -> Vec<Input> {
        let waiting = self.lock();
        let mut waiting = match patience {
            None => {
                self.arrived.wait_while(waiting, |waiting| waiting.is_empty()).unwrap_or_else(PoisonError::into_inner)
            }
            Some(patience) => {
                self.arrived
                    .wait_timeout_while(waiting, patience, |waiting| waiting.is_empty())
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        };
        waiting.drain()
    }

    fn put(&self, change: impl FnOnce(&mut Waiting)) {
        change(&mut self.lock());
        self.arrived.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_value_wins_and_nothing_waits_twice() {
        let mailbox = Mailbox::default();
        let reign = Leadership::default();
        mailbox.lease(reign, BootInstant::from_nanos(1));
        mailbox.lease(reign, BootInstant::from_nanos(2));
        mailbox.other(Input::Shutdown);
        let inputs = mailbox.take(Some(Duration::ZERO));
        assert!(matches!(
            inputs.as_slice(),
            [Input::Shutdown, Input::Lease(_, deadline)] if *deadline == BootInstant::from_nanos(2)
        ));
        assert!(mailbox.take(Some(Duration::ZERO)).is_empty());
    }

    #[test]
    fn a_question_is_answered_by_taking_and_stays_so() {
        let mailbox = Mailbox::default();
        let watchdog = mailbox.ask();
        assert!(!mailbox.answered(watchdog), "nobody took anything since");
        assert!(mailbox.take(Some(Duration::ZERO)).is_empty());
        assert!(mailbox.answered(watchdog));
        let probe = mailbox.ask();
        assert!(mailbox.answered(watchdog) && !mailbox.answered(probe), "another asks, and takes nothing back");
    }

    #[test]
    fn reports_never_pile_up() {
        let mailbox = Mailbox::default();
        for _ in 0..(2 * DEPTH) {
            mailbox.other(Input::AddressLost("10.0.0.1".parse().unwrap()));
        }
        assert_eq!(mailbox.take(Some(Duration::ZERO)).len(), DEPTH);
    }
}
