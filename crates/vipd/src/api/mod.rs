//! The public gRPC API: VipService, ClusterService, health and reflection, over whatever implements [`Backend`].
//!
//! Requests are converted and checked at the door; nothing generated goes further in. What holds here: every request ends
//! within [`Limits::request_timeout`], and a client that stops reading costs a bounded amount of memory for a bounded time.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tonic::Status;
use tonic::metadata::MetadataValue;
use tonic::service::Routes;
use vip_api::v1::cluster_service_server::ClusterServiceServer;
use vip_api::v1::vip_service_server::VipServiceServer;
use vip_api::{Consistency, Fence, HolderState, NodeRole, Timing};
use vip_core::{Cluster, ClusterName, Command, NodeId, Outcome, VipName};

mod cluster_service;
mod door;
mod health;
mod history;
mod vip_service;
mod watch_stream;

#[cfg(test)]
pub(crate) mod tests;

/// What the API needs of the node that it stands in.
pub(crate) trait Backend: Send + Sync + 'static {
    /// Proposes a command to the leader, wherever that is, and returns what it came to once the leader has applied it.
    ///
    /// May be dropped at any time, when the client goes away or time is up; the command may then still be agreed on.
    fn propose(&self, command: Command) -> impl Future<Output = Result<Outcome, BackendError>> + Send;

    /// Returns once [`Self::state`] holds a state as new as `consistency` asks for; at once for [`Consistency::Local`].
    fn read_barrier(&self, consistency: Consistency) -> impl Future<Output = Result<(), BackendError>> + Send;

    /// The applied state, replaced whenever anything in it changes. Its cluster's revision never goes back.
    fn state(&self) -> watch::Receiver<Arc<StateView>>;

    /// What this node knows of itself and its peers, as of now. Called for each answer: it must not block.
    fn node_view(&self) -> NodeView;
}

/// Why a [`Backend`] could not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BackendError {
    /// There is no leader, or no quorum, or it cannot be reached.
    #[error("the cluster has no leader with a quorum, or this node cannot reach it")]
    NoLeader {
        /// The API endpoint of the leader, `host:port`, where one is known all the same.
        leader: Option<String>,
    },
    /// Not done in time.
    #[error("not done in time; if it was a change, it may or may not have been made, and repeating it is safe")]
    Timeout,
    /// The node cannot answer yet, or not any more: it starts, stops, or is not in the cluster.
    #[error("this node is not ready")]
    NotReady,
    /// A failure of this node; its text is for the log and the client.
    #[error("internal error: {0}")]
    Internal(String),
}

/// What the cluster has agreed on, as far as this node has applied it.
#[derive(Clone, Debug)]
pub(crate) struct StateView {
    /// The replicated state.
    pub(crate) cluster: Arc<Cluster>,
    /// Raft term of this node.
    pub(crate) term: u64,
    /// The leader that this node knows of.
    pub(crate) leader: Option<NodeId>,
    /// Last log entry known to be committed.
    pub(crate) commit_index: u64,
    /// Last log entry applied.
    pub(crate) applied_index: u64,
}

/// What one node knows by itself.
#[derive(Clone, Debug)]
pub(crate) struct NodeView {
    /// Name of the cluster.
    pub(crate) cluster: ClusterName,
    /// This node.
    pub(crate) node: NodeId,
    /// Version of the daemon.
    pub(crate) version: String,
    /// Time since the daemon started.
    pub(crate) uptime: Duration,
    /// What is left of this node's lease, if it holds one.
    pub(crate) lease_remaining: Option<Duration>,
    /// The VIPs that this node acts on. One that is missing is in standby where this node owns it, else unknown.
    pub(crate) holders: Arc<BTreeMap<VipName, HolderState>>,
    /// The kernel fence.
    pub(crate) fence: Fence,
    /// The timing in force.
    pub(crate) timing: Timing,
    /// What an operator should know, one sentence each.
    pub(crate) warnings: Vec<String>,
    /// The members of the cluster, this node among them, in order of their ids.
    pub(crate) members: Vec<MemberView>,
}

/// A member of the cluster, as this node knows it.
#[derive(Clone, Debug)]
pub(crate) struct MemberView {
    /// Its id.
    pub(crate) id: NodeId,
    /// Its name; empty where unknown.
    pub(crate) name: String,
    /// Where the other nodes reach it, `host:port`.
    pub(crate) peer_address: String,
    /// Voter or learner.
    pub(crate) role: NodeRole,
    /// On the leader: whether it answers.
    pub(crate) reachable: Option<bool>,
    /// On the leader: time since it acknowledged an append last.
    pub(crate) last_acknowledged_age: Option<Duration>,
}

/// What bounds the work that clients can cause.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The longest that a request may take; a watch: until its stream begins.
    pub(crate) request_timeout: Duration,
    /// How many changes are kept for watches to resume from and slow ones to catch up with.
    pub(crate) watch_history: usize,
    /// How many watches may be open at a time.
    pub(crate) watchers: usize,
    /// How many events one message of a watch carries at most.
    pub(crate) watch_batch: usize,
    /// How long a watcher may leave its stream unread before it is cut off.
    pub(crate) watch_stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_timeout: Duration::from_secs(5),
            watch_history: 4096,
            watchers: 256,
            watch_batch: 500,
            watch_stall: Duration::from_secs(60),
        }
    }
}

/// Everything that is served, to be put on as many listeners as wanted; they share one history and one set of limits.
///
/// To be called within a tokio runtime: it starts the tasks that keep history and health, which end when the sender of
/// [`Backend::state`] is dropped or no service is left.
///
/// # Errors
/// Only if the descriptors that are compiled in are broken.
pub(crate) fn router<B: Backend>(backend: Arc<B>, limits: Limits) -> Result<Routes, tonic_reflection::server::Error> {
    let door = Arc::new(door::Door::new(backend, limits));
    door.follow();
    let vips = VipServiceServer::new(vip_service::VipApi(Arc::clone(&door)))
        .max_decoding_message_size(vip_api::MAX_REQUEST_BYTES)
        .max_encoding_message_size(vip_api::MAX_ANSWER_BYTES);
    let cluster = ClusterServiceServer::new(cluster_service::ClusterApi(Arc::clone(&door)))
        .max_decoding_message_size(vip_api::MAX_REQUEST_BYTES)
        .max_encoding_message_size(vip_api::MAX_ANSWER_BYTES);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(vip_api::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(Routes::new(vips)
        .add_service(cluster)
        .add_service(health::service(door.backend().state()))
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?))
}

impl From<BackendError> for Status {
    fn from(error: BackendError) -> Self {
        let text = error.to_string();
        match error {
            BackendError::NoLeader { leader } => {
                let mut status = Self::unavailable(text);
                if let Some(value) = leader.and_then(|endpoint| MetadataValue::try_from(endpoint).ok()) {
                    status.metadata_mut().insert(vip_api::LEADER_METADATA, value);
                }
                status
            }
            BackendError::NotReady => Self::unavailable(text),
            BackendError::Timeout => Self::deadline_exceeded(text),
            BackendError::Internal(_) => {
                tracing::error!(%error, "api request failed");
                Self::internal(text)
            }
        }
    }
}
