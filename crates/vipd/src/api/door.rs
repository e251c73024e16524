//! What all services share: the way in (consistency, time limit) and the way out (headers, VIPs as the API shows them).

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tonic::{Request, Status};
use vip_api::{Assigned, Consistency, Header, HolderState, NodeRef, Vip, convert};
use vip_core::{NodeId, VipRecord};

use super::history::History;
use super::{Backend, BackendError, Limits, NodeView, StateView};

/// The backend with what the API keeps for itself.
pub(super) struct Door<B> {
    backend: Arc<B>,
    pub(super) limits: Limits,
    history: Mutex<History>,
    /// One permit for each watch that may be open.
    pub(super) watchers: Arc<Semaphore>,
}

impl<B: Backend> Door<B> {
    pub(super) fn new(backend: Arc<B>, limits: Limits) -> Self {
        let start = Arc::clone(&backend.state().borrow().cluster);
        Self {
            history: Mutex::new(History::new(start, limits.watch_history)),
            watchers: Arc::new(Semaphore::new(limits.watchers)),
            backend,
            limits,
        }
    }

    pub(super) fn backend(&self) -> &B {
        &self.backend
    }

    /// The history, with everything in it that `state` knows.
    ///
    /// Whoever sees a state first puts it in, so a watch never waits for the task of [`Self::follow`].
    pub(super) fn history(&self, state: &StateView) -> MutexGuard<'_, History> {
        // The history is whole after every statement that could panic: a poisoned lock is no reason to stop.
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.absorb(&state.cluster);
        history
    }

    /// Keeps the history going while nobody watches, so that later ones can resume.
    pub(super) fn follow(self: &Arc<Self>) {
        let door = Arc::downgrade(self);
        let mut states = self.backend.state();
        tokio::spawn(async move {
            while states.changed().await.is_ok() {
                let Some(door) = door.upgrade() else { return };
                let state = Arc::clone(&states.borrow_and_update());
                drop(door.history(&state));
            }
        });
    }

    /// How long this request may take: the client's deadline counts where it comes first.
    pub(super) fn time_for<T>(&self, request: &Request<T>) -> Duration {
        /// So much before the transport notices: it would answer `CANCELLED`, which is not what happened.
        const AHEAD: Duration = Duration::from_millis(2);
        let asked = request.metadata().get("grpc-timeout").and_then(|value| client_timeout(value.to_str().ok()?));
        let most = self.limits.request_timeout;
        asked.map_or(most, |asked| asked.saturating_sub(AHEAD).min(most))
    }

    /// Runs `work` within the time that it has.
    pub(super) async fn in_time<T>(
        time: Duration,
        work: impl Future<Output = Result<T, BackendError>> + Send,
    ) -> Result<T, BackendError> {
        tokio::time::timeout(time, work).await.unwrap_or(Err(BackendError::Timeout))
    }

    /// Opens a read: the state is as new as asked for when this returns.
    pub(super) async fn read(&self, time: Duration, consistency: i32) -> Result<Answer, Status> {
        let consistency = convert::consistency(consistency)?;
        Self::in_time(time, self.backend.read_barrier(consistency)).await?;
        Ok(self.answer(consistency))
    }

    /// An answer from the state of now.
    pub(super) fn answer(&self, consistency: Consistency) -> Answer {
        let state = Arc::clone(&self.backend.state().borrow());
        Answer { node: self.backend.node_view(), state, consistency }
    }
}

/// A timeout as gRPC writes it: at most eight digits and a unit.
fn client_timeout(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number = number.parse().ok().filter(|_| number.len() <= 8)?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// What an answer is made from.
pub(super) struct Answer {
    pub(super) node: NodeView,
    pub(super) state: Arc<StateView>,
    pub(super) consistency: Consistency,
}

impl Answer {
    /// The header, for an answer from the state at `revision`.
    pub(super) fn header_at(&self, revision: u64) -> Header {
        Header {
            cluster: self.node.cluster.to_string(),
            node_id: self.node.node,
            term: self.state.term,
            leader_id: self.state.leader,
            revision,
            consistency: self.consistency,
        }
    }

    /// The header, for an answer from the state that was read.
    pub(super) fn header(&self) -> Header {
        self.header_at(self.state.cluster.revision)
    }

    pub(super) fn node_ref(&self, id: NodeId) -> NodeRef {
        let name = self.node.members.iter().find(|member| member.id == id).map(|member| member.name.clone());
        NodeRef { id, name: name.unwrap_or_default() }
    }

    pub(super) fn vip(&self, record: &VipRecord) -> Vip {
        let mine = record.assignment.is_some_and(|assignment| assignment.owner == self.node.node);
        let unlisted = if mine { HolderState::Standby } else { HolderState::Unknown };
        Vip {
            spec: record.spec.clone(),
            assignment: record.assignment.map(|assignment| Assigned {
                owner: self.node_ref(assignment.owner),
                epoch: assignment.epoch,
                term: assignment.by.term,
            }),
            revision: record.changed_at,
            declared_revision: record.declared_at,
            lease_remaining: self.node.lease_remaining.filter(|_| mine),
            holder_state: self.node.holders.get(&record.spec.name).copied().unwrap_or(unlisted),
        }
    }

    /// The member whose own address `address` is. A peer address given by name cannot be compared.
    pub(super) fn member_at(&self, address: IpAddr) -> Option<NodeRef> {
        let member = self.node.members.iter().find(|member| {
            let own = member.peer_address.parse::<SocketAddr>().map(|socket| socket.ip());
            own.or_else(|_| member.peer_address.parse()).is_ok_and(|ip: IpAddr| ip.to_canonical() == address)
        })?;
        Some(self.node_ref(member.id))
    }
}
