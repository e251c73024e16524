//! ClusterService.

use std::collections::BTreeMap;
use std::sync::Arc;

use tonic::{Request, Response, Status};
use vip_api::v1::{self, cluster_service_server::ClusterService};
use vip_api::{HolderCount, LocalStatus, NodeStatus};
use vip_core::NodeId;

use super::door::{Answer, Door};
use super::{Backend, MemberView};

pub(super) struct ClusterApi<B>(pub(super) Arc<Door<B>>);

#[tonic::async_trait]
impl<B: Backend> ClusterService for ClusterApi<B> {
    async fn status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        let answer = self.0.read(self.0.time_for(&request), request.into_inner().consistency).await?;
        Ok(Response::new(status(&answer).into()))
    }
}

fn status(answer: &Answer) -> vip_api::Status {
    let cluster = &answer.state.cluster;
    let mut owned = BTreeMap::<NodeId, u32>::new();
    for assignment in cluster.vips.values().filter_map(|vip| vip.assignment) {
        *owned.entry(assignment.owner).or_default() += 1;
    }
    let member = |member: &MemberView| NodeStatus {
        node: answer.node_ref(member.id),
        peer_address: member.peer_address.clone(),
        role: member.role,
        reachable: member.reachable,
        last_acknowledged_age: member.last_acknowledged_age,
        instance: cluster.instances.get(&member.id).cloned(),
        vips_owned: owned.get(&member.id).copied().unwrap_or(0),
    };
    vip_api::Status {
        header: answer.header(),
        leader: answer.state.leader.map(|id| answer.node_ref(id)),
        commit_index: answer.state.commit_index,
        applied_index: answer.state.applied_index,
        nodes: answer.node.members.iter().map(member).collect(),
        timing: answer.node.timing,
        local: local(answer),
        vips_declared: u32::try_from(cluster.vips.len()).unwrap_or(u32::MAX),
        vips_assigned: owned.values().sum(),
    }
}

fn local(answer: &Answer) -> LocalStatus {
    let node = &answer.node;
    let mut holders = BTreeMap::<_, u32>::new();
    for state in node.holders.values() {
        *holders.entry(*state).or_default() += 1;
    }
    LocalStatus {
        node: answer.node_ref(node.node),
        version: node.version.clone(),
        uptime: node.uptime,
        lease_remaining: node.lease_remaining,
        fence: node.fence.clone(),
        warnings: node.warnings.clone(),
        holders: holders.into_iter().map(|(state, vips)| HolderCount { state, vips }).collect(),
    }
}
