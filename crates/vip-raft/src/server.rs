//! Answers the peers. The lease gate stands before openraft in every handler.

use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};
use vip_core::gate;
use vip_core::{KillPoint, NodeId};

use crate::convert::{from_json, proto, required, to_json, vote_response};
use crate::forming::Formation;
use crate::node::Core;
use crate::peer::Envelope;
use crate::types::{self, leadership_of};
use proto::raft_service_server::RaftService;

/// The service that a node offers to its peers.
pub(crate) struct PeerServer {
    core: Arc<Core>,
}

impl PeerServer {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }

    /// Lets the sender in, or refuses it, logged once per reason.
    #[allow(clippy::result_large_err, reason = "tonic's own error type")]
    fn admit<M: Envelope>(&self, message: &M) -> Result<NodeId, Status> {
        let cluster = Arc::clone(&self.core.applied.borrow().cluster);
        if let Some(why) = self.core.identity.disowned(message.sender()) {
            // The daemon ends with that reason.
            self.core.formation.send_replace(Formation::Refused(why.clone()));
            return Err(Status::failed_precondition(why));
        }
        self.core.identity.admit(message.sender(), &cluster).inspect_err(|status| {
            let peer = NodeId(message.sender().map_or(0, |sender| sender.node));
            if self.core.lease.peer_refused(peer, status.message()) {
                tracing::warn!(%peer, reason = status.message(), "refused a peer");
            }
        })
    }

    /// R3 exempts a store that never promised anything, but one that was wiped looks the same until somebody says how it
    /// was known. Whoever stands with entries of an elected leader stands in a cluster that has its members: there an
    /// empty log has no say until a leader has filled it. At a cluster's first election all entries are of term 0.
    #[allow(clippy::result_large_err, reason = "tonic's own error type")]
    fn check_pristine(&self, rpc: &types::VoteRequest) -> Result<(), Status> {
        let established = rpc.last_log_id.as_ref().is_some_and(|last| last.committed_leader_id().term > 0);
        if established && self.core.log_is_empty() {
            return Err(Status::aborted("this node's store is empty; it votes once a leader has filled it"));
        }
        Ok(())
    }

    /// The candidate's lease ran out a moment before this voter's, which took the last append a moment later: letting it
    /// wait here is faster than having it ask again. Who takes over by a transfer asks once only, so it waits for what this
    /// node has queued.
    async fn wait_at_the_gate(&self, asked: gate::VoteRequest) {
        const PATIENCE: Duration = Duration::from_millis(15);
        if let Err(shut) = self.core.lease.check_vote(asked)
            && (shut.remaining() <= PATIENCE || matches!(shut, gate::Shut::Queued { .. }))
        {
            tokio::time::sleep(shut.remaining()).await;
        }
    }

    fn sign<M: Envelope>(&self, mut message: M) -> Response<M> {
        message.sign(self.core.identity.to_wire(self.core.lease.eligible(), None));
        Response::new(message)
    }
}

/// openraft is shutting down, or its storage failed.
fn fatal(error: &dyn std::error::Error) -> Status {
    Status::unavailable(format!("this node's Raft has stopped: {error}"))
}

fn shut(why: gate::Shut) -> Status {
    Status::aborted(why.to_string())
}

/// A vote as the gate judges it: a transfer counts only in the name of the leader that asked for it.
#[allow(clippy::result_large_err, reason = "tonic's own error type")]
pub(crate) fn vote_requests(rpc: proto::VoteRequest) -> Result<(gate::VoteRequest, types::VoteRequest), Status> {
    let from = rpc.transfer_of.map(types::Vote::from).as_ref().map(leadership_of);
    let rpc = types::VoteRequest::try_from(rpc)?;
    let by_transfer_of = from.filter(|_| rpc.leadership_transfer);
    Ok((gate::VoteRequest { leadership: leadership_of(&rpc.vote), by_transfer_of }, rpc))
}

#[tonic::async_trait]
impl RaftService for PeerServer {
    async fn append_entries(
        &self,
        request: Request<proto::AppendEntriesRequest>,
    ) -> Result<Response<proto::AppendEntriesResponse>, Status> {
        let rpc = request.into_inner();
        self.admit(&rpc)?;
        let rpc = types::AppendEntriesRequest::try_from(rpc)?;
        let leader = leadership_of(&rpc.vote);
        let order = self.core.order.read().await;
        let response = self.core.raft()?.append_entries(rpc).await.map_err(|error| fatal(&error))?;
        // Before the answer goes out, so that the promise is at least as long as what the leader takes it for.
        let rejected = matches!(response, types::AppendEntriesResponse::HigherVote(_));
        if !rejected && !self.core.lease.append_acknowledged(leader) {
            return Err(Status::aborted("the vote has moved on since the append was taken"));
        }
        drop(order);
        KillPoint::AppendAcknowledged.reach();
        Ok(self.sign(proto::AppendEntriesResponse { sender: None, result: Some(response.into()) }))
    }

    async fn vote(&self, request: Request<proto::VoteRequest>) -> Result<Response<proto::VoteResponse>, Status> {
        let rpc = request.into_inner();
        self.admit(&rpc)?;
        let (asked, rpc) = vote_requests(rpc)?;
        self.check_pristine(&rpc)?;
        self.wait_at_the_gate(asked).await;
        let (core, order) = (Arc::clone(&self.core), Arc::clone(&self.core.order));
        // In a task of its own: a caller who hangs up ends this handler, but not the vote that openraft may grant yet.
        let handling = tokio::spawn(async move {
            let _order = order.write_owned().await;
            let _in_flight = core.lease.begin_vote(asked).map_err(shut)?;
            core.raft()?.vote(rpc).await.map_err(|error| fatal(&error))
        });
        let response = handling.await.map_err(|error| fatal(&error))??;
        if response.vote_granted {
            KillPoint::VoteGranted.reach();
        }
        Ok(self.sign(vote_response(&response)))
    }

    async fn pre_vote(&self, request: Request<proto::VoteRequest>) -> Result<Response<proto::VoteResponse>, Status> {
        let rpc = request.into_inner();
        self.admit(&rpc)?;
        let (asked, rpc) = vote_requests(rpc)?;
        self.check_pristine(&rpc)?;
        self.wait_at_the_gate(asked).await;
        self.core.lease.check_vote(asked).map_err(shut)?;
        let response = self.core.raft()?.pre_vote(rpc).await.map_err(|error| fatal(&error))?;
        if response.vote_granted {
            self.core.lease.encouraged();
        }
        Ok(self.sign(vote_response(&response)))
    }

    async fn transfer_leader(
        &self,
        request: Request<proto::TransferLeaderRequest>,
    ) -> Result<Response<proto::TransferLeaderResponse>, Status> {
        let rpc = request.into_inner();
        self.admit(&rpc)?;
        if NodeId(rpc.to_node) != self.core.identity.node {
            // openraft would end the lease that this voter has granted.
            return Err(Status::invalid_argument("a transfer to another node is none of this one's business"));
        }
        let from: types::Vote = required(rpc.from_leader, "from_leader")?.into();
        let answer = |refusal: String| Ok(self.sign(proto::TransferLeaderResponse { sender: None, refusal }));
        if !self.core.lease.eligible() {
            return answer("this node cannot carry the VIPs now".to_owned());
        }
        self.core.lease.accept_transfer(leadership_of(&from)).map_err(shut)?;
        KillPoint::TransferAccepted.reach();
        let transfer = types::TransferLeaderRequest::new(from, rpc.to_node, rpc.last_log_id.map(Into::into));
        match self.core.raft()?.handle_transfer_leader(transfer).await.map_err(|error| fatal(&error))? {
            Ok(()) => answer(String::new()),
            Err(refusal) => answer(refusal.to_string()),
        }
    }

    async fn install_snapshot(
        &self,
        request: Request<proto::InstallSnapshotRequest>,
    ) -> Result<Response<proto::InstallSnapshotResponse>, Status> {
        let rpc = request.into_inner();
        self.admit(&rpc)?;
        let vote: types::Vote = required(rpc.vote, "vote")?.into();
        let snapshot = types::Snapshot { meta: from_json(&rpc.meta, "a snapshot's meta")?, snapshot: rpc.data };
        let _order = self.core.order.read().await;
        let response = self.core.raft()?.install_full_snapshot(vote, snapshot).await.map_err(|error| fatal(&error))?;
        // A snapshot renews openraft's lease, so it counts here too; it does not count for the leader's.
        if leadership_of(&response.vote) == leadership_of(&vote)
            && !self.core.lease.append_acknowledged(leadership_of(&vote))
        {
            return Err(Status::aborted("the vote has moved on since the snapshot was taken"));
        }
        Ok(self.sign(proto::InstallSnapshotResponse { sender: None, vote: Some((&response.vote).into()) }))
    }

    async fn propose(
        &self,
        request: Request<proto::ProposeRequest>,
    ) -> Result<Response<proto::ProposeResponse>, Status> {
        let rpc = request.into_inner();
        self.admit(&rpc)?;
        let command = from_json(&rpc.command, "a command")?;
        let outcome = self.core.propose_here(command).await.map_err(|error| error.to_status())?;
        Ok(self.sign(proto::ProposeResponse { sender: None, outcome: to_json(&outcome) }))
    }

    async fn read_index(
        &self,
        request: Request<proto::ReadIndexRequest>,
    ) -> Result<Response<proto::ReadIndexResponse>, Status> {
        let rpc = request.into_inner();
        self.admit(&rpc)?;
        let index = self.core.read_index_here(rpc.by_lease).await.map_err(|error| error.to_status())?;
        Ok(self.sign(proto::ReadIndexResponse { sender: None, index }))
    }

    async fn hello(&self, request: Request<proto::HelloRequest>) -> Result<Response<proto::HelloResponse>, Status> {
        let rpc = request.into_inner();
        self.admit(&rpc)?;
        let initialized = self.core.raft()?.is_initialized().await.map_err(|error| fatal(&error))?;
        Ok(self.sign(proto::HelloResponse { sender: None, initialized, initial_cluster: self.core.initial_cluster() }))
    }
}
