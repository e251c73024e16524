//! A node of the Raft group: openraft, the lease gate around it, and the tasks that drive both.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::raft::ReadPolicy;
use openraft::{Config, SnapshotPolicy};
use thiserror::Error;
use tokio::sync::{RwLock, watch};
use tokio::task::JoinSet;
use tonic::Status;
use vip_core::gate::{LeaseGate, NotArmed};
use vip_core::{ClusterName, Command, Leadership, LeaseTiming, NodeId, Outcome, agent};

use crate::convert::proto::raft_service_server::RaftServiceServer;
use crate::election::{self, ElectionTiming};
use crate::forming;
use crate::lease::{Clock, LateWitness, Lease, LeaseSink, PeerState, held_vote};
use crate::network::{Lane, MAX_MESSAGE_BYTES, NetworkFactory, Peers};
use crate::peer::Identity;
use crate::server::PeerServer;
use crate::store::{Applied, Closing, Hooks, OpenError, Store};
use crate::types::{PeerNode, Raft, RaftMetrics, Request, leadership_of_log};

/// What a node needs to know at start.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The cluster.
    pub cluster: ClusterName,
    /// This node.
    pub me: NodeId,
    /// How often the leader sends appends to renew its lease.
    pub heartbeat: Duration,
    /// The lease.
    pub lease: LeaseTiming,
    /// When to stand for election.
    pub election: ElectionTiming,
    /// The members with which the cluster is formed, if it is not formed yet.
    pub initial_members: BTreeMap<NodeId, PeerNode>,
    /// How long a proposal or a read may take.
    pub request_timeout: Duration,
}

/// Why a node did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The store.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// openraft's configuration.
    #[error("the timing does not suit Raft: {0}")]
    Config(#[from] openraft::ConfigError),
    /// openraft itself.
    #[error("Raft did not start: {0}")]
    Raft(String),
    /// A thread.
    #[error("cannot start the thread that renews the lease: {0}")]
    Thread(#[source] std::io::Error),
}

/// Why the cluster did not do what was asked.
#[derive(Debug, Error)]
pub enum RequestError {
    /// Nobody leads, or nobody that this node knows of.
    #[error("no leader is known{}", .0.as_ref().map(|leader| format!("; the last one was {leader}")).unwrap_or_default())]
    NoLeader(Option<PeerNode>),
    /// A quorum did not answer in time. What was asked may happen yet.
    #[error("no quorum agreed within {0:?}; it may happen yet")]
    Timeout(Duration),
    /// Raft has stopped here.
    #[error("Raft has stopped on this node: {0}")]
    Stopped(String),
    /// The leader refused to take it.
    #[error("the leader did not take it: {0}")]
    Forwarding(Status),
}

impl RequestError {
    pub(crate) fn to_status(&self) -> Status {
        match self {
            Self::NoLeader(_) | Self::Stopped(_) => Status::unavailable(self.to_string()),
            Self::Timeout(_) => Status::deadline_exceeded(self.to_string()),
            Self::Forwarding(status) => status.clone(),
        }
    }
}

/// What the tasks and the peers' server share.
pub(crate) struct Core {
    pub(crate) identity: Identity,
    pub(crate) lease: Arc<Lease>,
    pub(crate) applied: watch::Receiver<Applied>,
    pub(crate) config: NodeConfig,
    pub(crate) peers: Arc<Peers>,
    /// Appends share it, a vote has it alone: between the moment the gate lets a vote through and the moment openraft
    /// has answered it, no append is acknowledged, so neither can overtake the other.
    pub(crate) order: Arc<RwLock<()>>,
    pub(crate) formation: watch::Sender<forming::Formation>,
    raft: OnceLock<Raft>,
    ending: AtomicBool,
}

impl Core {
    #[allow(clippy::result_large_err, reason = "tonic's own error type")]
    pub(crate) fn raft(&self) -> Result<&Raft, Status> {
        self.raft.get().ok_or_else(|| Status::unavailable("this node is starting"))
    }

    fn metrics(&self) -> Option<RaftMetrics> {
        self.raft.get().map(|raft| raft.metrics().borrow_watched().clone())
    }

    /// The leader as far as this node knows.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        self.metrics().and_then(|metrics| metrics.current_leader).map(NodeId)
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.raft.get().is_some_and(Raft::is_leader)
    }

    /// Whether this node is on its way out and should not lead any more.
    pub(crate) fn ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    /// The configured initial members, written so that two nodes can compare them.
    pub(crate) fn initial_cluster(&self) -> String {
        let members: Vec<_> =
            self.config.initial_members.iter().map(|(id, node)| format!("{id}={}", node.address)).collect();
        members.join(",")
    }

    /// Whether the store holds no entry at all.
    pub(crate) fn log_is_empty(&self) -> bool {
        self.metrics().is_none_or(|metrics| metrics.last_log_index.is_none())
    }

    fn leader_node(&self) -> Option<(NodeId, PeerNode)> {
        let metrics = self.metrics()?;
        let leader = metrics.current_leader?;
        let node = metrics.membership_config.membership().get_node(&leader)?.clone();
        Some((NodeId(leader), node))
    }

    /// Proposes on this node, which must lead.
    pub(crate) async fn propose_here(&self, command: Command) -> Result<Outcome, RequestError> {
        let raft = self.raft().map_err(|status| RequestError::Stopped(status.message().to_owned()))?;
        if self.lease.resigned() {
            // R6: silent from here on. An entry would renew the promises that the others have to be free of.
            return Err(RequestError::NoLeader(None));
        }
        let deadline = self.config.request_timeout;
        match tokio::time::timeout(deadline, raft.client_write(Request(command))).await {
            Err(_) => Err(RequestError::Timeout(deadline)),
            Ok(Ok(response)) => Ok(response.data),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                Err(RequestError::NoLeader(forward.leader_node))
            }
            Ok(Err(RaftError::APIError(other))) => Err(RequestError::Stopped(other.to_string())),
            Ok(Err(RaftError::Fatal(fatal))) => Err(RequestError::Stopped(fatal.to_string())),
        }
    }

    /// Up to where a read has to wait; this node must lead.
    pub(crate) async fn read_index_here(&self, by_lease: bool) -> Result<u64, RequestError> {
        let raft = self.raft().map_err(|status| RequestError::Stopped(status.message().to_owned()))?;
        let policy = if by_lease { ReadPolicy::LeaseRead } else { ReadPolicy::ReadIndex };
        let deadline = self.config.request_timeout;
        match tokio::time::timeout(deadline, raft.ensure_linearizable(policy)).await {
            Err(_) => Err(RequestError::Timeout(deadline)),
            Ok(Ok(read)) => Ok(read.index()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)))) => {
                Err(RequestError::NoLeader(forward.leader_node))
            }
            // Not a timeout: nothing is on its way that may happen yet. Asked again, there may be another leader.
            Ok(Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)))) => {
                Err(RequestError::NoLeader(None))
            }
            Ok(Err(RaftError::Fatal(fatal))) => Err(RequestError::Stopped(fatal.to_string())),
        }
    }
}

/// How a peer looks from here.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// Its id.
    pub id: NodeId,
    /// Its name and address.
    pub node: PeerNode,
    /// Whether it votes.
    pub voter: bool,
    /// What it was last heard of as; default where it never was.
    pub state: PeerState,
    /// The last entry that the leader knows it to have; only on the leader.
    pub matched: Option<u64>,
}

/// How the Raft group looks from this node.
#[derive(Clone, Debug)]
pub struct RaftStatus {
    /// The newest term this node has seen.
    pub term: u64,
    /// The leader, if one is known.
    pub leader: Option<NodeId>,
    /// The last entry of the log.
    pub last_log: Option<u64>,
    /// The last entry that is known to be committed.
    pub committed: Option<u64>,
    /// The last entry that is applied here.
    pub applied: Option<u64>,
    /// All members, this node among them.
    pub members: Vec<PeerStatus>,
}

/// A running node.
pub struct RaftNode {
    core: Arc<Core>,
    reign: watch::Receiver<Option<agent::Reign>>,
    tasks: JoinSet<()>,
    closing: Closing,
}

impl std::fmt::Debug for RaftNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftNode").field("identity", &self.core.identity).finish_non_exhaustive()
    }
}

impl RaftNode {
    /// Opens the store in `dir` and starts. The peers' listener is the caller's: see [`Self::service`].
    ///
    /// # Errors
    /// The store does not open or is another node's, or the timing does not suit Raft.
    pub async fn start(
        dir: &std::path::Path,
        config: NodeConfig,
        clock: Clock,
        sink: Arc<dyn LeaseSink>,
        on_fatal: Arc<dyn Fn(std::io::Error) + Send + Sync>,
    ) -> Result<Self, StartError> {
        let witness = Arc::new(LateWitness::default());
        let hooks = Hooks { on_fatal, votes: Arc::clone(&witness) as _ };
        let raft_config = Arc::new(raft_config(&config)?);
        let store = Store::open(dir, config.cluster.clone(), config.me, hooks)?;
        let pristine = store.is_pristine();
        let vote = store.vote().as_ref().map(held_vote).unwrap_or_default();
        let gate = LeaseGate::new(config.me, config.lease, vote, pristine, clock()).with_fence_slack(sink.slack());
        let (lease, wanted) = Lease::new(gate, clock, sink);
        witness.set(Arc::clone(&lease));
        let weak = Arc::downgrade(&lease);
        std::thread::Builder::new()
            .name("vipd-lease".to_owned())
            .spawn(move || Lease::run_renewals(&weak, &wanted))
            .map_err(StartError::Thread)?;
        let identity = Identity {
            cluster: config.cluster.clone(),
            node: config.me,
            instance: store.instance().to_owned(),
            timing: config.lease,
        };
        let applied = store.applied();
        let peers = Peers::new(identity.clone(), Arc::clone(&lease), applied.clone());
        let (log, machine, closing) = store.into_parts();
        let core = Arc::new(Core {
            identity,
            lease,
            applied,
            peers: Arc::clone(&peers),
            order: Arc::default(),
            formation: watch::Sender::new(forming::Formation::Formed),
            raft: OnceLock::new(),
            ending: AtomicBool::new(false),
            config,
        });
        let raft = Raft::new(core.config.me.0, raft_config, NetworkFactory(peers), log, machine)
            .await
            .map_err(|error| StartError::Raft(error.to_string()))?;
        let _ = core.raft.set(raft);
        Ok(Self::drive(core, pristine, closing))
    }

    fn drive(core: Arc<Core>, pristine: bool, closing: Closing) -> Self {
        let (reign_tx, reign) = watch::channel(None);
        let mut tasks = JoinSet::new();
        if pristine && !core.config.initial_members.is_empty() {
            core.formation.send_replace(forming::Formation::Waiting);
            // The only one that ends by itself; dropped with the runtime otherwise.
            tokio::spawn(forming::run(Arc::clone(&core)));
        }
        if pristine && core.config.initial_members.is_empty() {
            tracing::warn!(
                "the store is empty and no initial members are configured; this node waits for a leader to reach it"
            );
        }
        tasks.spawn(keep_connections(Arc::clone(&core)));
        tasks.spawn(follow_membership(Arc::clone(&core)));
        tasks.spawn(follow_applied(Arc::clone(&core)));
        tasks.spawn(follow_reign(Arc::clone(&core), reign_tx));
        tasks.spawn(beat(Arc::clone(&core)));
        tasks.spawn(register_stores(Arc::clone(&core)));
        tasks.spawn(election::run(Arc::clone(&core), core.config.election));
        Self { core, reign, tasks, closing }
    }

    /// The service to be offered to the peers.
    #[must_use]
    pub fn service(
        &self,
    ) -> impl tonic::codegen::Service<
        http::Request<tonic::body::Body>,
        Response = http::Response<tonic::body::Body>,
        Error = std::convert::Infallible,
        Future: Send + 'static,
    > + tonic::server::NamedService
    + Clone
    + Send
    + Sync
    + 'static {
        RaftServiceServer::new(PeerServer::new(Arc::clone(&self.core)))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// A handle for requests that outlives moves of this value.
    #[must_use]
    pub fn handle(&self) -> RaftHandle {
        RaftHandle { core: Arc::clone(&self.core) }
    }

    /// This node's leadership, as the lease gate sees it.
    #[must_use]
    pub fn reign(&self) -> watch::Receiver<Option<agent::Reign>> {
        self.reign.clone()
    }

    /// How the forming of the cluster stands.
    #[must_use]
    pub fn formation(&self) -> watch::Receiver<forming::Formation> {
        self.core.formation.subscribe()
    }

    /// Resolves when Raft, or a task that drives it, has stopped by itself, with the reason. Cancel safe.
    pub async fn failed(&mut self) -> String {
        let Ok(raft) = self.core.raft() else { return "Raft did not start".to_owned() };
        let mut metrics = raft.metrics();
        let stopped = async {
            loop {
                if let Err(fatal) = &metrics.borrow_watched().running_state {
                    return fatal.to_string();
                }
                if metrics.changed().await.is_err() {
                    return "Raft is gone".to_owned();
                }
            }
        };
        tokio::select! {
            why = stopped => why,
            ended = self.tasks.join_next() => format!("a task of Raft ended: {ended:?}"),
        }
    }

    /// Stops Raft and closes the store. What is held must be released before. Takes a second at most: a disk that hangs
    /// must not keep the process.
    pub async fn shutdown(mut self) {
        const PATIENCE: Duration = Duration::from_secs(1);
        self.core.ending.store(true, Ordering::Relaxed);
        let ended = async {
            self.tasks.shutdown().await;
            if let Ok(raft) = self.core.raft()
                && let Err(error) = raft.shutdown().await
            {
                tracing::warn!(%error, "Raft did not end well");
            }
        };
        if tokio::time::timeout(PATIENCE, ended).await.is_err() {
            tracing::warn!("Raft did not end in time; the disk may hang");
            return;
        }
        // Who still holds a handle keeps the file open; the process is about to end anyway.
        let _ = tokio::time::timeout(PATIENCE / 5, async {
            drop(self.core);
            self.closing.wait().await;
        })
        .await;
    }
}

/// Requests to the group, from anywhere in the process.
#[derive(Clone)]
pub struct RaftHandle {
    core: Arc<Core>,
}

impl std::fmt::Debug for RaftHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftHandle").finish_non_exhaustive()
    }
}

impl RaftHandle {
    /// The agreed state, as it is applied here.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<Applied> {
        self.core.applied.clone()
    }

    /// The lease.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        &self.core.lease
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.core.identity.node
    }

    /// The time by which [`PeerState::answered_at`] is counted.
    #[must_use]
    pub fn now(&self) -> vip_core::BootInstant {
        self.core.lease.now()
    }

    /// This store's instance id.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.core.identity.instance
    }

    /// Has the cluster agree on `command`, wherever the leader is. Answers when it is applied there.
    ///
    /// # Errors
    /// No leader, no quorum in time, or Raft has stopped. After a timeout the command may take effect yet.
    pub async fn propose(&self, command: Command) -> Result<Outcome, RequestError> {
        match self.core.propose_here(command.clone()).await {
            Err(RequestError::NoLeader(_)) => {
                let (leader, node) = self.elsewhere()?;
                let deadline = self.core.config.request_timeout;
                self.core
                    .peers
                    .propose((leader, &node.address), &command, deadline)
                    .await
                    .map_err(RequestError::Forwarding)
            }
            result => result,
        }
    }

    /// Proposes on this node only, which must lead: what a leader decided must not be said by another.
    ///
    /// # Errors
    /// As [`Self::propose`].
    pub async fn propose_here(&self, command: Command) -> Result<Outcome, RequestError> {
        self.core.propose_here(command).await
    }

    /// Waits until what was agreed before this call is applied here, confirmed by a quorum or by the leader's lease.
    ///
    /// # Errors
    /// As [`Self::propose`].
    pub async fn read_barrier(&self, by_lease: bool) -> Result<(), RequestError> {
        let deadline = self.core.config.request_timeout;
        let index = match self.core.read_index_here(by_lease).await {
            Err(RequestError::NoLeader(_)) => {
                let (leader, node) = self.elsewhere()?;
                self.core
                    .peers
                    .read_index((leader, &node.address), by_lease, deadline)
                    .await
                    .map_err(RequestError::Forwarding)?
            }
            result => result?,
        };
        let mut applied = self.core.applied.clone();
        let reached = applied.wait_for(|applied| applied.last_applied.is_some_and(|last| last.index >= index));
        match tokio::time::timeout(deadline, reached).await {
            Err(_) => Err(RequestError::Timeout(deadline)),
            Ok(Err(_)) => Err(RequestError::Stopped("the state machine is gone".to_owned())),
            Ok(Ok(_)) => Ok(()),
        }
    }

    fn elsewhere(&self) -> Result<(NodeId, PeerNode), RequestError> {
        match self.core.leader_node() {
            Some((leader, node)) if leader != self.core.identity.node => Ok((leader, node)),
            Some(_) | None => Err(RequestError::NoLeader(None)),
        }
    }

    /// Says that this node is about to end: it stands for no election any more.
    pub fn end(&self) {
        self.core.ending.store(true, Ordering::Relaxed);
        self.core.lease.set_eligible(false);
    }

    /// Says whether this node could carry every VIP. One that is about to end cannot.
    pub fn set_eligible(&self, eligible: bool) {
        self.core.lease.set_eligible(eligible && !self.core.ending());
    }

    /// Hands the leadership `from` over, and waits until another node leads or `patience` is over. [`Lease::resign`] comes first.
    ///
    /// Returns whether another node leads.
    pub async fn transfer(&self, from: Leadership, patience: Duration) -> bool {
        let Ok(raft) = self.core.raft() else { return false };
        if !self.core.lease.may_transfer(from) {
            tracing::warn!(%from, "leadership is not handed over: it is over already, or its lease may still run");
            return false;
        }
        let Some(target) = self.transfer_target() else {
            tracing::warn!("nobody to hand leadership over to; the others elect when the lease has run out");
            return false;
        };
        tracing::info!(%target, "handing leadership over");
        if let Err(error) = raft.trigger().transfer_leader(target.0).await {
            tracing::error!(%error, %target, "cannot hand leadership over");
            return false;
        }
        let me = self.core.identity.node.0;
        let mut metrics = raft.metrics();
        let handed_over = async {
            while metrics.borrow_watched().current_leader.is_none_or(|leader| leader == me) {
                if metrics.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(patience, handed_over).await.is_ok()
    }

    /// The successor with the longest log; of equals the most preferred.
    fn transfer_target(&self) -> Option<NodeId> {
        let metrics = self.core.metrics()?;
        let replication = metrics.replication.unwrap_or_default();
        let matched = |node: &NodeId| replication.get(&node.0).and_then(|id| id.as_ref().map(|id| id.index));
        let successors = self.core.lease.successors();
        successors.into_iter().max_by_key(|node| (matched(node), std::cmp::Reverse(*node)))
    }

    /// How the group looks from here.
    #[must_use]
    pub fn status(&self) -> RaftStatus {
        let Some(metrics) = self.core.metrics() else {
            return RaftStatus {
                term: 0,
                leader: None,
                last_log: None,
                committed: None,
                applied: None,
                members: vec![],
            };
        };
        let peers = self.core.lease.peers();
        let voters: BTreeSet<u64> = metrics.membership_config.membership().voter_ids().collect();
        let members = metrics
            .membership_config
            .membership()
            .nodes()
            .map(|(id, node)| PeerStatus {
                id: NodeId(*id),
                node: node.clone(),
                voter: voters.contains(id),
                state: peers.get(&NodeId(*id)).cloned().unwrap_or_default(),
                matched: metrics
                    .replication
                    .as_ref()
                    .and_then(|replication| replication.get(id))
                    .and_then(|id| id.as_ref().map(|id| id.index)),
            })
            .collect();
        RaftStatus {
            term: metrics.current_term,
            leader: metrics.current_leader.map(NodeId),
            last_log: metrics.last_log_index,
            committed: metrics.local_committed.as_ref().map(|id| id.index),
            applied: metrics.last_applied.as_ref().map(|id| id.index),
            members,
        }
    }
}

fn raft_config(config: &NodeConfig) -> Result<Config, openraft::ConfigError> {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let lease = ms(config.lease.lease);
    Config {
        cluster_name: config.cluster.to_string(),
        heartbeat_interval: ms(config.heartbeat),
        // openraft's lease is `election_timeout_max`; its election timer is off.
        election_timeout_min: lease.saturating_sub(1),
        election_timeout_max: lease,
        enable_elect: false,
        // It would drive those two and nothing else, fifty times a second and more.
        enable_tick: false,
        // Heartbeats come from `beat`, at the configured pace and not at that of openraft's tick.
        enable_heartbeat: false,
        // The followers write an entry while the leader does.
        broadcast_submitted_on_append: Some(true),
        // Without a quorum it falls silent, but for a probe now and then: its heartbeats would keep those who hear it
        // from electing another, together with others whom it does not reach.
        quorum_loss_probe_interval: Some(2 * lease),
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(false),
        removed_leader_step_down: openraft::StepDownPolicy::Never,
        // A follower whose disk lost what it had acknowledged is sent it again. Refused that, it would never catch up with
        // this leader, and be no use to the next one; what it may do wrong by a vote that it lost, it does either way.
        allow_log_reversion: Some(true),
        // A restarted node is back within a heartbeat or two.
        backoff: format!("{0}ms {0}ms {0}ms", ms(config.heartbeat).clamp(5, 100)),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(2000),
        max_in_snapshot_log_to_keep: 500,
        ..Config::default()
    }
    .validate()
}

/// Tells the lease who votes.
async fn follow_membership(core: Arc<Core>) {
    let Ok(raft) = core.raft() else { return };
    let mut metrics = raft.server_metrics();
    loop {
        let voters: Vec<BTreeSet<NodeId>> = {
            let metrics = metrics.borrow_watched();
            let configs = metrics.membership_config.membership().get_joint_config();
            configs.iter().map(|config| config.iter().copied().map(NodeId).collect()).collect()
        };
        core.lease.set_voters(voters);
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

/// Tells the lease which leadership's entries are applied.
async fn follow_applied(core: Arc<Core>) {
    let mut applied = core.applied.clone();
    loop {
        let last = applied.borrow_and_update().last_applied;
        if let Some(last) = last {
            core.lease.entry_applied(leadership_of_log(&last));
        }
        if applied.changed().await.is_err() {
            return;
        }
    }
}

/// Publishes whether this node leads and may assign.
async fn follow_reign(core: Arc<Core>, reign: watch::Sender<Option<agent::Reign>>) {
    /// Looks again this often for what no event tells: that a successor came or went.
    const IDLE: Duration = Duration::from_millis(200);
    let mut changed = core.lease.changed();
    loop {
        let (ready, wait) = match core.lease.check_reign() {
            Ok(_) => (true, IDLE),
            Err(NotArmed::OlderLease { remaining }) => (false, remaining),
            Err(_) => (false, IDLE),
        };
        let now = core.lease.leading().map(|leadership| agent::Reign {
            leadership,
            ready,
            successor: !core.lease.successors().is_empty(),
        });
        let news = reign.send_if_modified(|known| {
            let news = *known != now;
            *known = now;
            news
        });
        if news && ready {
            // The answer that would have armed the lease may have come while an older one was waited for.
            core.lease.want_renewal();
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            ended = changed.changed() => if ended.is_err() { return },
        }
    }
}

/// The leader's heartbeats.
async fn beat(core: Arc<Core>) {
    let Ok(raft) = core.raft() else { return };
    let mut interval = tokio::time::interval(core.config.heartbeat);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        // R6: a leader that gave up is silent, so that the others can elect even where nobody took over.
        if raft.is_leader() && !core.lease.resigned() {
            if raft.trigger().heartbeat().await.is_err() {
                return;
            }
            // A single voter is its own quorum and gets no answer that would set off a renewal.
            core.lease.want_renewal();
        }
    }
}

/// Keeps a connection ready on every lane to every member: a voter that never led has sent nothing on them when it has
/// to win an election, and making them then would cost the clients milliseconds, or a timeout at a forgetful firewall.
async fn keep_connections(core: Arc<Core>) {
    const PACE: Duration = Duration::from_secs(2);
    const LANES: [Lane; 3] = [Lane::Control, Lane::Replication, Lane::Heartbeat];
    let mut interval = tokio::time::interval(PACE);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        if core.is_leader() {
            // Its lanes are in use.
            continue;
        }
        let members: Vec<(NodeId, String)> = core.metrics().map_or_else(Vec::new, |metrics| {
            let membership = metrics.membership_config.membership();
            membership.nodes().map(|(id, node)| (NodeId(*id), node.address.clone())).collect()
        });
        let hellos = members
            .iter()
            .filter(|(id, _)| *id != core.identity.node)
            .flat_map(|(id, address)| LANES.map(|lane| core.peers.hello((*id, address), lane, core.initial_cluster())));
        futures::future::join_all(hellos).await;
    }
}

/// As leader: makes known which store each member came with, so that a wiped disk is noticed (R12).
async fn register_stores(core: Arc<Core>) {
    let mut interval = tokio::time::interval(Duration::from_millis(500));
    loop {
        interval.tick().await;
        if core.lease.check_reign().is_err() {
            continue;
        }
        let known = Arc::clone(&core.applied.borrow().cluster);
        let mut seen = core.peers.instances();
        seen.insert(core.identity.node, core.identity.instance.clone());
        for (node, instance) in seen {
            if known.instances.contains_key(&node) {
                continue;
            }
            if let Err(error) = core.propose_here(Command::RegisterNode { node, instance }).await {
                tracing::debug!(%error, %node, "a member's store is not registered yet");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{LazyLock, Mutex};
    use std::time::Instant;

    use vip_core::BootInstant;

    use super::*;

    const LEASE: LeaseTiming =
        LeaseTiming { lease: Duration::from_millis(500), clock_drift_ppm: 1000, queue_time: Duration::from_millis(5) };

    fn now() -> BootInstant {
        static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
        BootInstant::ZERO + Duration::from_secs(1000) + BEGIN.elapsed()
    }

    /// A kernel that may end a lease late, and how much of a lease it was ever given.
    #[derive(Default)]
    struct LateKernel {
        left: Mutex<Vec<Duration>>,
    }

    const SLACK: Duration = Duration::from_millis(100);

    impl LeaseSink for LateKernel {
        fn arm(&self, deadline: BootInstant) -> std::io::Result<()> {
            self.left.lock().unwrap().push(deadline.saturating_duration_since(now()));
            Ok(())
        }

        fn disarm(&self) -> std::io::Result<()> {
            Ok(())
        }

        fn slack(&self) -> Duration {
            SLACK
        }

        fn renewed(&self, _: Leadership, _: Result<BootInstant, std::io::Error>) {}
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_kernel_that_ends_leases_late_is_given_that_much_less() {
        let dir = tempfile::tempdir().unwrap();
        let member = PeerNode { name: "n1".to_owned(), address: "127.0.0.1:9".to_owned() };
        let config = NodeConfig {
            cluster: "web".parse().unwrap(),
            me: NodeId(1),
            heartbeat: Duration::from_millis(50),
            lease: LEASE,
            election: ElectionTiming::for_lease(LEASE.lease),
            initial_members: BTreeMap::from([(NodeId(1), member)]),
            request_timeout: Duration::from_secs(5),
        };
        let kernel = Arc::new(LateKernel::default());
        let node =
            RaftNode::start(dir.path(), config, now, Arc::clone(&kernel) as _, Arc::new(|error| panic!("{error}")));
        let node = node.await.unwrap();
        let mut reign = node.reign();
        let reign = *reign.wait_for(|reign| reign.is_some_and(|reign| reign.ready)).await.unwrap();
        node.handle().lease().enable(reign.unwrap().leadership);
        let deadline = Instant::now() + Duration::from_secs(10);
        while kernel.left.lock().unwrap().len() < 5 {
            assert!(Instant::now() < deadline, "the lease is not renewed");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let longest = kernel.left.lock().unwrap().iter().max().copied().unwrap();
        let most = LEASE.lease - LEASE.margin() - SLACK;
        assert!(longest <= most, "{longest:?} of a lease, and no more than {most:?} are safe");
        node.shutdown().await;
    }
}
