//! A node that is its own cluster, and a server for it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use vip_api::v1::cluster_service_client::ClusterServiceClient;
use vip_api::v1::vip_service_client::VipServiceClient;
use vip_api::{Consistency, Fence, HolderState, NodeRole, Timing};
use vip_core::{Claim, Cluster, Command, Leadership, LeaseKind, NodeId, Outcome, VipSpec};

use crate::api::{Backend, BackendError, Limits, MemberView, NodeView, StateView, router};

const LEADERSHIP: Leadership = Leadership { term: 7, node: NodeId(1) };

pub(crate) fn spec(name: &str, address: &str) -> VipSpec {
    VipSpec {
        name: name.parse().unwrap(),
        address: address.parse().unwrap(),
        prefix_len: 32,
        interface: "eth0".to_owned().try_into().unwrap(),
        placement: vip_core::Placement::Leader,
    }
}

pub(crate) struct Fake {
    state: watch::Sender<Arc<StateView>>,
    /// What proposals and barriers fail with, if anything.
    pub(crate) failure: Mutex<Option<BackendError>>,
    /// Proposals and barriers never return.
    pub(crate) hangs: AtomicBool,
    /// How often somebody asked how new the state is.
    pub(crate) barriers: AtomicU64,
    pub(crate) holders: Mutex<BTreeMap<vip_core::VipName, HolderState>>,
}

impl Fake {
    pub(crate) fn new() -> Arc<Self> {
        let state = StateView {
            cluster: Arc::new(Cluster::default()),
            term: LEADERSHIP.term,
            leader: Some(LEADERSHIP.node),
            commit_index: 0,
            applied_index: 0,
        };
        Arc::new(Self {
            state: watch::Sender::new(Arc::new(state)),
            failure: Mutex::default(),
            hangs: AtomicBool::new(false),
            barriers: AtomicU64::new(0),
            holders: Mutex::default(),
        })
    }

    /// Applies commands as one step, so that watches see only the last state.
    pub(crate) fn apply(&self, commands: impl IntoIterator<Item = Command>) -> Outcome {
        let mut state = StateView::clone(&self.state.borrow());
        let mut cluster = Cluster::clone(&state.cluster);
        let mut outcome = Outcome::Unchanged { revision: cluster.revision };
        for command in commands {
            state.applied_index += 1;
            state.commit_index = state.applied_index;
            outcome = cluster.apply(state.applied_index, LEADERSHIP, command);
        }
        state.cluster = Arc::new(cluster);
        self.state.send_replace(Arc::new(state));
        outcome
    }

    pub(crate) fn declare(&self, name: &str, address: &str) {
        assert!(matches!(self.apply([Command::DeclareVip(spec(name, address))]), Outcome::Changed { .. }));
    }

    pub(crate) fn assign(&self, name: &str, owner: u64) {
        let vip = name.parse().unwrap();
        let base = self.state.borrow().cluster.vips[&vip].assignment.map(|assignment| assignment.epoch);
        let claims = vec![Claim { vip, base }];
        let owner = NodeId(owner);
        self.apply([Command::Assign { by: LEADERSHIP, owner, kind: LeaseKind::Leader, claims }]);
    }

    pub(crate) fn set_leader(&self, leader: Option<NodeId>) {
        let state = StateView { leader, ..StateView::clone(&self.state.borrow()) };
        self.state.send_replace(Arc::new(state));
    }

    pub(crate) fn fail(&self, failure: Option<BackendError>) {
        *self.failure.lock().unwrap() = failure;
    }

    async fn obstacle(&self) -> Result<(), BackendError> {
        if self.hangs.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        self.failure.lock().unwrap().clone().map_or(Ok(()), Err)
    }
}

impl Backend for Fake {
    async fn propose(&self, command: Command) -> Result<Outcome, BackendError> {
        self.obstacle().await?;
        Ok(self.apply([command]))
    }

    async fn read_barrier(&self, consistency: Consistency) -> Result<(), BackendError> {
        self.barriers.fetch_add(1, Ordering::Relaxed);
        if consistency == Consistency::Local { Ok(()) } else { self.obstacle().await }
    }

    fn state(&self) -> watch::Receiver<Arc<StateView>> {
        self.state.subscribe()
    }

    fn node_view(&self) -> NodeView {
        let member = |id: u64, role| MemberView {
            id: NodeId(id),
            name: format!("n{id}"),
            peer_address: format!("192.0.2.{id}:7400"),
            role,
            reachable: Some(id != 3),
            last_acknowledged_age: Some(Duration::from_millis(20)),
        };
        NodeView {
            cluster: "test".parse().unwrap(),
            node: NodeId(1),
            version: "0.0.0".to_owned(),
            uptime: Duration::from_secs(60),
            lease_remaining: Some(Duration::from_millis(400)),
            holders: Arc::new(self.holders.lock().unwrap().clone()),
            fence: Fence { kind: "fake".to_owned(), state: "attached".to_owned(), healthy: true },
            timing: Timing { lease: Duration::from_millis(500), ..Timing::default() },
            warnings: vec!["the number of voters, 2, is even".to_owned()],
            members: vec![member(1, NodeRole::Voter), member(2, NodeRole::Voter), member(3, NodeRole::Learner)],
        }
    }
}

/// A client's way to the API of a fake node. The server lives as long as the test's runtime.
pub(crate) struct Api {
    pub(crate) channel: Channel,
    pub(crate) vips: VipServiceClient<Channel>,
    pub(crate) cluster: ClusterServiceClient<Channel>,
}

pub(crate) async fn serve(fake: &Arc<Fake>, limits: Limits) -> Api {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let routes = router(Arc::clone(fake), limits).unwrap();
    tokio::spawn(Server::builder().add_routes(routes).serve_with_incoming(TcpListenerStream::new(listener)));
    // Small windows, so that an unread stream fills up soon.
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let endpoint = endpoint.initial_stream_window_size(65_535).initial_connection_window_size(1 << 20);
    let channel = endpoint.connect().await.unwrap();
    Api { vips: VipServiceClient::new(channel.clone()), cluster: ClusterServiceClient::new(channel.clone()), channel }
}
