//! The node as the API sees it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use vip_api::{Consistency, NodeRole};
use vip_core::{BootInstant, Command, HolderState, NodeId, Outcome};
use vip_net::fence::Fence;
use vip_raft::{RaftHandle, RaftStatus, RequestError};

use crate::api::{Backend, BackendError, MemberView, NodeView, StateView};
use crate::config::Config;
use crate::driver::Statuses;

/// See the module's documentation.
pub(crate) struct NodeBackend {
    pub(crate) config: Arc<Config>,
    pub(crate) config_warnings: Vec<String>,
    pub(crate) raft: RaftHandle,
    pub(crate) statuses: watch::Receiver<Statuses>,
    pub(crate) fence: Arc<Fence>,
    /// Why the fence is not of the kind that was tried before.
    pub(crate) fence_fallback: Option<String>,
    pub(crate) fence_trouble: watch::Receiver<Option<String>>,
    pub(crate) state: watch::Receiver<Arc<StateView>>,
    pub(crate) started: Instant,
    pub(crate) clock: fn() -> BootInstant,
}

impl Backend for NodeBackend {
    async fn propose(&self, command: Command) -> Result<Outcome, BackendError> {
        self.raft.propose(command).await.map_err(backend_error)
    }

    async fn read_barrier(&self, consistency: Consistency) -> Result<(), BackendError> {
        let by_lease = match consistency {
            Consistency::Local => return Ok(()),
            Consistency::Lease => true,
            Consistency::Linearizable => false,
        };
        self.raft.read_barrier(by_lease).await.map_err(backend_error)?;
        // The view is made from the state a moment later than the state is there.
        let wanted = self.raft.applied().borrow().last_applied.map_or(0, |last| last.index);
        let mut state = self.state.clone();
        let reached = state.wait_for(|state| state.applied_index >= wanted).await;
        reached.map(drop).map_err(|_| BackendError::NotReady)
    }

    fn state(&self) -> watch::Receiver<Arc<StateView>> {
        self.state.clone()
    }

    fn node_view(&self) -> NodeView {
        let now = (self.clock)();
        let remaining = self.raft.lease().deadline().map(|(_, deadline)| deadline.saturating_duration_since(now));
        let trouble = self.fence_trouble.borrow().clone();
        NodeView {
            cluster: self.config.cluster.clone(),
            node: self.config.node,
            version: crate::VERSION.to_owned(),
            uptime: self.started.elapsed(),
            lease_remaining: remaining.filter(|left| !left.is_zero()),
            holders: Arc::new(self.holders()),
            fence: vip_api::Fence {
                kind: self.fence.kind().name().to_owned(),
                healthy: trouble.is_none(),
                state: trouble.clone().unwrap_or_else(|| "in place on every interface".to_owned()),
            },
            timing: vip_api::Timing {
                heartbeat: self.config.heartbeat,
                lease: self.config.lease.lease,
                margin: self.config.lease.margin() + self.fence.slack(),
                clock_drift_ppm: self.config.lease.clock_drift_ppm,
            },
            warnings: self.warnings(trouble),
            members: self.members(now),
        }
    }
}

impl NodeBackend {
    /// What this node acts on; in standby it has nothing to say.
    fn holders(&self) -> BTreeMap<vip_core::VipName, vip_api::HolderState> {
        let statuses = Arc::clone(&self.statuses.borrow());
        statuses
            .iter()
            .filter_map(|(name, status)| {
                let state = match status.state {
                    HolderState::Standby => return None,
                    HolderState::Acquiring => vip_api::HolderState::Acquiring,
                    HolderState::Active => vip_api::HolderState::Active,
                    HolderState::Releasing => vip_api::HolderState::Releasing,
                    HolderState::Fenced => vip_api::HolderState::Fenced,
                };
                Some((name.clone(), state))
            })
            .collect()
    }

    fn warnings(&self, fence_trouble: Option<String>) -> Vec<String> {
        let mut warnings = self.config_warnings.clone();
        let kind = self.fence.kind();
        warnings
            .extend(self.fence_fallback.iter().map(|why| format!("the fence is {kind}, with a wider margin: {why}")));
        warnings.extend(fence_trouble.map(|why| format!("the fence is not whole: {why}")));
        let statuses = Arc::clone(&self.statuses.borrow());
        warnings.extend(
            statuses.iter().filter_map(|(name, status)| Some(format!("VIP {name}: {}", status.problem.as_ref()?))),
        );
        for (peer, state) in self.raft.lease().peers() {
            warnings.extend(state.refused.map(|why| format!("node {peer} is refused: {why}")));
            warnings.extend(state.refuses.map(|why| format!("node {peer} refuses this node: {why}")));
        }
        let now = (self.clock)();
        let leads = self.raft.lease().deadline().filter(|_| self.state.borrow().leader == Some(self.config.node));
        if leads.is_some_and(|(_, deadline)| deadline <= now) {
            warnings.push("this node leads, but no quorum has answered within the lease: it holds no VIP".to_owned());
        }
        if self.state.borrow().leader.is_none() {
            warnings.push("no leader is known: no VIP is held until a majority of voters is connected".to_owned());
        }
        warnings
    }

    fn members(&self, now: BootInstant) -> Vec<MemberView> {
        let status = self.raft.status();
        let leading = status.leader == Some(self.config.node);
        let lease = self.config.lease.lease;
        status
            .members
            .into_iter()
            .map(|peer| {
                let me = peer.id == self.config.node;
                let age = peer.state.answered_at.map(|at| now.saturating_duration_since(at));
                MemberView {
                    id: peer.id,
                    name: peer.node.name,
                    peer_address: peer.node.address,
                    role: if peer.voter { NodeRole::Voter } else { NodeRole::Learner },
                    reachable: (leading && !me).then(|| age.is_some_and(|age| age < lease)),
                    last_acknowledged_age: age.filter(|_| leading && !me),
                }
            })
            .collect()
    }
}

fn backend_error(error: RequestError) -> BackendError {
    match error {
        RequestError::NoLeader(_) => BackendError::NoLeader { leader: None },
        RequestError::Timeout(_) => BackendError::Timeout,
        RequestError::Stopped(_) => BackendError::NotReady,
        RequestError::Forwarding(status) => match status.code() {
            tonic::Code::DeadlineExceeded => BackendError::Timeout,
            // The last two are what a connection that breaks comes to: the leader died meanwhile.
            tonic::Code::Unavailable
            | tonic::Code::Aborted
            | tonic::Code::FailedPrecondition
            | tonic::Code::Unknown
            | tonic::Code::Cancelled => BackendError::NoLeader { leader: None },
            _ => BackendError::Internal(format!("the leader answered: {status}")),
        },
    }
}

/// What was logged of the group, so that each change is logged once.
#[derive(Default)]
struct Seen {
    leader: Option<NodeId>,
    /// Members that answered lately, as the leader sees them.
    answering: BTreeMap<NodeId, bool>,
}

impl Seen {
    fn log_changes(&mut self, raft: &RaftHandle, status: RaftStatus) {
        /// Longer than any timing's heartbeats, shorter than an operator's patience.
        const SILENCE: Duration = Duration::from_secs(2);
        if self.leader != status.leader {
            match status.leader {
                Some(leader) => tracing::info!(%leader, term = status.term, "leader"),
                None => tracing::warn!(term = status.term, "no leader is known"),
            }
            self.leader = status.leader;
            self.answering.clear();
        }
        if status.leader != Some(raft.node()) {
            return;
        }
        for member in status.members.into_iter().filter(|member| member.id != raft.node()) {
            let age = member.state.answered_at.map(|at| raft.now().saturating_duration_since(at));
            let answers = age.is_some_and(|age| age < SILENCE);
            match self.answering.insert(member.id, answers) {
                Some(true) if !answers => {
                    tracing::warn!(node = %member.id, name = member.node.name, "a member does not answer")
                }
                Some(false) if answers => {
                    tracing::info!(node = %member.id, name = member.node.name, "a member answers again")
                }
                Some(_) | None => {}
            }
        }
    }
}

/// Keeps the view of the agreed state.
pub(crate) async fn follow_state(raft: RaftHandle, view: watch::Sender<Arc<StateView>>) {
    /// Who leads is not told by an event here.
    const PACE: Duration = Duration::from_millis(100);
    let mut applied = raft.applied();
    let mut seen = Seen::default();
    loop {
        let status = raft.status();
        let now = view_of(&raft, &status);
        seen.log_changes(&raft, status);
        view.send_if_modified(|known| {
            let same = Arc::ptr_eq(&known.cluster, &now.cluster)
                && (known.term, known.leader) == (now.term, now.leader)
                && (known.commit_index, known.applied_index) == (now.commit_index, now.applied_index);
            *known = Arc::new(now);
            !same
        });
        tokio::select! {
            changed = applied.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(PACE) => {}
        }
    }
}

/// The agreed state as it is now.
pub(crate) fn state_view(raft: &RaftHandle) -> StateView {
    view_of(raft, &raft.status())
}

fn view_of(raft: &RaftHandle, status: &RaftStatus) -> StateView {
    let applied = raft.applied().borrow().clone();
    StateView {
        cluster: applied.cluster,
        term: status.term,
        leader: status.leader,
        commit_index: status.committed.unwrap_or(0),
        applied_index: applied.last_applied.map_or(0, |last| last.index),
    }
}
