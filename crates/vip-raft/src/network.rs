//! Speaks to the peers: one cached connection per peer and lane, a deadline on every call.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use vip_core::{KillPoint, NodeId};

use crate::convert::{self, from_json, proto, required, to_json};
use crate::lease::Lease;
use crate::peer::{Envelope, Identity};
use crate::socket;
use crate::store::Applied;
use crate::types::{self, PeerNode, TypeConfig, leadership_of};
use proto::raft_service_client::RaftServiceClient;

/// The largest message between peers: a snapshot of 10,000 VIPs is about 4 MiB.
pub(crate) const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// Lanes do not wait for each other: neither a snapshot nor a stalled append may hold up a heartbeat or a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Heartbeats, and nothing else.
    Heartbeat,
    /// Votes, transfers, forwarded requests.
    Control,
    /// Entries.
    Replication,
    /// Snapshots.
    Snapshot,
}

/// The connections to all peers.
pub(crate) struct Peers {
    identity: Identity,
    lease: Arc<Lease>,
    applied: watch::Receiver<Applied>,
    links: Mutex<BTreeMap<NodeId, Arc<Link>>>,
    /// The store that each peer came with, as of its last answer.
    instances: Mutex<BTreeMap<NodeId, String>>,
}

struct Link {
    address: String,
    lanes: [LaneChannel; 4],
}

/// One connection, made anew when it has gone silent: after a partition TCP waits longer and longer before it tries
/// again, which would add seconds to the return of a node.
struct LaneChannel {
    channel: Mutex<Channel>,
    generation: AtomicU64,
    silent: AtomicU32,
}

/// How many calls in a row may run into their deadline before the connection is given up.
const SILENT_CALLS: u32 = 2;

impl Peers {
    pub(crate) fn new(identity: Identity, lease: Arc<Lease>, applied: watch::Receiver<Applied>) -> Arc<Self> {
        Arc::new(Self { identity, lease, applied, links: Mutex::default(), instances: Mutex::default() })
    }

    /// The stores of the peers that are not registered yet.
    pub(crate) fn instances(&self) -> BTreeMap<NodeId, String> {
        self.instances.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn link(&self, peer: NodeId, address: &str) -> Result<Arc<Link>, Status> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get(&peer)
            && link.address == address
        {
            return Ok(Arc::clone(link));
        }
        let link = Arc::new(Link::new(address, self.identity.timing.lease)?);
        links.insert(peer, Arc::clone(&link));
        Ok(link)
    }

    /// Calls `peer`, signs the request, and checks who answered.
    pub(crate) async fn call<Req, Resp, Call, Answer>(
        &self,
        (peer, address): (NodeId, &str),
        lane: Lane,
        deadline: Duration,
        mut request: Req,
        call: Call,
    ) -> Result<Resp, Status>
    where
        Req: Envelope,
        Resp: Envelope,
        Call: FnOnce(RaftServiceClient<Channel>, Request<Req>) -> Answer,
        Answer: Future<Output = Result<Response<Resp>, Status>>,
    {
        let link = self.link(peer, address)?;
        let lane = link.lane(lane);
        let (channel, generation) = lane.get();
        let client = RaftServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let cluster = Arc::clone(&self.applied.borrow().cluster);
        request.sign(self.identity.to_wire(self.lease.eligible(), cluster.instances.get(&peer)));
        let answer = tokio::time::timeout(deadline, call(client, Request::new(request))).await;
        let response = match answer {
            Err(_) => {
                lane.went_silent(generation, address, self.identity.timing.lease)?;
                return Err(Status::unavailable(format!("no answer from {address} within {deadline:?}")));
            }
            Ok(Err(status)) => {
                lane.spoke();
                if status.code() == Code::FailedPrecondition && self.lease.refused_by(peer, status.message()) {
                    tracing::warn!(%peer, address, reason = status.message(), "a peer refuses this node");
                }
                return Err(status);
            }
            Ok(Ok(response)) => response.into_inner(),
        };
        lane.spoke();
        self.admit(peer, address, &response)?;
        Ok(response)
    }

    fn admit<Resp: Envelope>(&self, peer: NodeId, address: &str, response: &Resp) -> Result<(), Status> {
        let cluster = Arc::clone(&self.applied.borrow().cluster);
        let admitted = self.identity.admit(response.sender(), &cluster).and_then(|found| {
            if found == peer {
                return Ok(());
            }
            Err(Status::failed_precondition(format!(
                "{address} is configured as node {peer}, but node {found} answers there"
            )))
        });
        match &admitted {
            Ok(()) => {
                let Some(sender) = response.sender() else { return admitted };
                self.lease.peer_answered(peer, sender.eligible);
                if !cluster.instances.contains_key(&peer) {
                    let mut instances = self.instances.lock().unwrap_or_else(PoisonError::into_inner);
                    instances.insert(peer, sender.instance.clone());
                }
            }
            Err(status) => {
                if self.lease.peer_refused(peer, status.message()) {
                    tracing::warn!(%peer, address, reason = status.message(), "refused a peer");
                }
            }
        }
        admitted
    }
}

impl Link {
    #[allow(clippy::result_large_err, reason = "tonic's own error type")]
    fn new(address: &str, lease: Duration) -> Result<Self, Status> {
        let lane = || {
            Ok::<_, Status>(LaneChannel {
                channel: Mutex::new(connect(address, lease)?),
                generation: AtomicU64::new(0),
                silent: AtomicU32::new(0),
            })
        };
        Ok(Self { address: address.to_owned(), lanes: [lane()?, lane()?, lane()?, lane()?] })
    }

    fn lane(&self, lane: Lane) -> &LaneChannel {
        &self.lanes[lane as usize]
    }
}

impl LaneChannel {
    fn get(&self) -> (Channel, u64) {
        let channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        (channel.clone(), self.generation.load(Ordering::Relaxed))
    }

    fn spoke(&self) {
        self.silent.store(0, Ordering::Relaxed);
    }

    #[allow(clippy::result_large_err, reason = "tonic's own error type")]
    fn went_silent(&self, generation: u64, address: &str, lease: Duration) -> Result<(), Status> {
        if self.generation.load(Ordering::Relaxed) != generation {
            // Of a connection that is given up already.
            return Ok(());
        }
        if self.silent.fetch_add(1, Ordering::Relaxed) + 1 < SILENT_CALLS {
            return Ok(());
        }
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        if self.generation.load(Ordering::Relaxed) == generation {
            *channel = connect(address, lease)?;
            self.generation.fetch_add(1, Ordering::Relaxed);
            self.spoke();
        }
        Ok(())
    }
}

/// A connection that is made when it is first used, and again when it broke.
#[allow(clippy::result_large_err, reason = "tonic's own error type")]
fn connect(address: &str, lease: Duration) -> Result<Channel, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| Status::invalid_argument(format!("{address} is no peer address: {error}")))?;
    Ok(endpoint
        // A peer that vanished without a word is noticed, and its connection freed, even where nothing is being sent.
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(tower::service_fn(move |uri| socket::connect(uri, lease))))
}

/// Makes openraft's clients; the connections behind them are shared.
pub(crate) struct NetworkFactory(pub(crate) Arc<Peers>);

impl RaftNetworkFactory<TypeConfig> for NetworkFactory {
    type Network = PeerClient;

    async fn new_client(&mut self, target: u64, node: &PeerNode) -> PeerClient {
        PeerClient::new(&self.0, target, node, Lane::Replication)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &PeerNode) -> PeerClient {
        PeerClient::new(&self.0, target, node, Lane::Heartbeat)
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &PeerNode) -> PeerClient {
        PeerClient::new(&self.0, target, node, Lane::Snapshot)
    }
}

/// openraft's client of one peer.
pub(crate) struct PeerClient {
    peers: Arc<Peers>,
    target: NodeId,
    address: String,
    lane: Lane,
}

impl PeerClient {
    fn new(peers: &Arc<Peers>, target: u64, node: &PeerNode, lane: Lane) -> Self {
        Self { peers: Arc::clone(peers), target: NodeId(target), address: node.address.clone(), lane }
    }

    fn to(&self) -> (NodeId, &str) {
        (self.target, &self.address)
    }
}

impl RaftNetworkV2<TypeConfig> for PeerClient {
    type SnapshotData = Vec<u8>;

    /// The send time is read before the first byte goes out; the answer counts for the lease even where openraft has
    /// stopped waiting for it, so that a slow disk behind an append does not cost the lease.
    async fn append_entries(
        &mut self,
        rpc: types::AppendEntriesRequest,
        option: RPCOption,
    ) -> Result<types::AppendEntriesResponse, RPCError<TypeConfig>> {
        let leadership = leadership_of(&rpc.vote);
        let peers = Arc::clone(&self.peers);
        let (target, address, lane) = (self.target, self.address.clone(), self.lane);
        let patience = option.soft_ttl().max(peers.identity.timing.lease);
        let request = convert::append_request(&rpc);
        let call = tokio::spawn(async move {
            let sent_at = peers.lease.now();
            let response: proto::AppendEntriesResponse = peers
                .call((target, &address), lane, patience, request, |mut client, request| async move {
                    client.append_entries(request).await
                })
                .await?;
            let response: types::AppendEntriesResponse = required(response.result, "result")?.into();
            if !matches!(response, types::AppendEntriesResponse::HigherVote(_)) {
                KillPoint::AppendAnswered.reach();
                peers.lease.append_answered(leadership, target, sent_at);
            }
            Ok::<_, Status>(response)
        });
        match call.await {
            Ok(result) => result.map_err(|status| rpc_error(&status)),
            Err(error) => Err(RPCError::Network(NetworkError::new(&error))),
        }
    }

    /// The store writes this node's own vote meanwhile (`LogStore::save_vote`); an answer counts when that is durable, and
    /// no sooner than the gate says.
    async fn vote(
        &mut self,
        rpc: types::VoteRequest,
        option: RPCOption,
    ) -> Result<types::VoteResponse, RPCError<TypeConfig>> {
        let mut request = convert::vote_request(&rpc);
        let from = self.peers.lease.transfer_of(leadership_of(&rpc.vote));
        request.transfer_of = from.map(|from| proto::Vote { term: from.term, node: from.node.0, committed: true });
        let response: proto::VoteResponse = self
            .peers
            .call(self.to(), Lane::Control, option.hard_ttl(), request, |mut client, request| async move {
                client.vote(request).await
            })
            .await
            .map_err(|status| rpc_error(&status))?;
        self.peers.lease.votes_count(leadership_of(&rpc.vote)).await;
        if response.granted {
            KillPoint::VoteCounted.reach();
        }
        response.try_into().map_err(|status| rpc_error(&status))
    }

    async fn pre_vote(
        &mut self,
        rpc: types::VoteRequest,
        option: RPCOption,
    ) -> Result<types::VoteResponse, RPCError<TypeConfig>> {
        let request = convert::vote_request(&rpc);
        let response: proto::VoteResponse = self
            .peers
            .call(self.to(), Lane::Control, option.hard_ttl(), request, |mut client, request| async move {
                client.pre_vote(request).await
            })
            .await
            .map_err(|status| rpc_error(&status))?;
        response.try_into().map_err(|status| rpc_error(&status))
    }

    async fn full_snapshot(
        &mut self,
        vote: types::Vote,
        snapshot: types::Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<types::SnapshotResponse, StreamingError<TypeConfig>> {
        let request = proto::InstallSnapshotRequest {
            sender: None,
            vote: Some((&vote).into()),
            meta: to_json(&snapshot.meta),
            data: snapshot.snapshot,
        };
        let call =
            self.peers.call(self.to(), Lane::Snapshot, option.hard_ttl(), request, |mut client, request| async move {
                client.install_snapshot(request).await
            });
        let response: proto::InstallSnapshotResponse = tokio::select! {
            closed = cancel => return Err(closed.into()),
            answer = call => answer.map_err(|status| streaming_error(&status))?,
        };
        let vote = required(response.vote, "vote").map_err(|status| streaming_error(&status))?;
        Ok(types::SnapshotResponse::new(vote.into()))
    }

    async fn transfer_leader(
        &mut self,
        req: types::TransferLeaderRequest,
        option: RPCOption,
    ) -> Result<openraft::raft::TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        // openraft tells every voter, which would end the lease that the others still have to honour.
        if *req.to_node_id() != self.target.0 {
            return Ok(Ok(()));
        }
        // Of the leadership that was given up, and no other that this node may have won since.
        if !self.peers.lease.may_transfer(leadership_of(req.from_leader())) {
            return Err(rpc_error(&Status::aborted("this leadership is not given up, or its lease may still run")));
        }
        KillPoint::TransferAsked.reach();
        let request = proto::TransferLeaderRequest {
            sender: None,
            from_leader: Some(req.from_leader().into()),
            to_node: *req.to_node_id(),
            last_log_id: req.last_log_id().map(Into::into),
        };
        let response: proto::TransferLeaderResponse = self
            .peers
            .call(self.to(), Lane::Control, option.hard_ttl(), request, |mut client, request| async move {
                client.transfer_leader(request).await
            })
            .await
            .map_err(|status| rpc_error(&status))?;
        if response.refusal.is_empty() {
            KillPoint::TransferAnswered.reach();
            return Ok(Ok(()));
        }
        Err(rpc_error(&Status::aborted(response.refusal)))
    }
}

/// Unreachable makes openraft wait before it tries again, a network error does not.
fn rpc_error(status: &Status) -> RPCError<TypeConfig> {
    match status.code() {
        Code::Unavailable | Code::FailedPrecondition => RPCError::Unreachable(Unreachable::new(status)),
        _ => RPCError::Network(NetworkError::new(status)),
    }
}

fn streaming_error(status: &Status) -> StreamingError<TypeConfig> {
    StreamingError::Unreachable(Unreachable::new(status))
}

impl Peers {
    /// Who answers at `address`: before there is a cluster, and later to keep a connection ready.
    pub(crate) async fn hello(
        &self,
        peer: (NodeId, &str),
        lane: Lane,
        initial_cluster: String,
    ) -> Result<proto::HelloResponse, Status> {
        let request = proto::HelloRequest { sender: None, initial_cluster };
        self.call(peer, lane, Duration::from_secs(1), request, |mut client, request| async move {
            client.hello(request).await
        })
        .await
    }

    /// Has the leader propose `command`.
    pub(crate) async fn propose(
        &self,
        leader: (NodeId, &str),
        command: &vip_core::Command,
        deadline: Duration,
    ) -> Result<vip_core::Outcome, Status> {
        let request = proto::ProposeRequest { sender: None, command: to_json(command) };
        let response: proto::ProposeResponse = self
            .call(leader, Lane::Control, deadline, request, |mut client, request| async move {
                client.propose(request).await
            })
            .await?;
        from_json(&response.outcome, "outcome")
    }

    /// Up to where a linearizable read has to wait, by the leader's word.
    pub(crate) async fn read_index(
        &self,
        leader: (NodeId, &str),
        by_lease: bool,
        deadline: Duration,
    ) -> Result<u64, Status> {
        let request = proto::ReadIndexRequest { sender: None, by_lease };
        let response: proto::ReadIndexResponse = self
            .call(leader, Lane::Control, deadline, request, |mut client, request| async move {
                client.read_index(request).await
            })
            .await?;
        Ok(response.index)
    }
}
