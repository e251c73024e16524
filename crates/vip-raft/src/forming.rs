//! How a cluster comes to be: once, out of nodes with empty stores that agree on the initial members.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tonic::Code;
use vip_core::NodeId;

use crate::convert::proto;
use crate::network::Lane;
use crate::node::Core;
use crate::types::PeerNode;

/// How the forming of the cluster stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Formation {
    /// Not enough initial members are there yet.
    Waiting,
    /// There is a cluster; this node is in it, or is about to be reached by its leader.
    Formed,
    /// This node must not take part; the reason says what to do.
    Refused(String),
}

/// How often the others are asked.
const PACE: Duration = Duration::from_millis(200);

enum Step {
    Wait(String),
    Join,
    Initialize,
    Refuse(String),
}

/// Asks the initial members until there is a cluster, and makes it if that is up to this node.
pub(crate) async fn run(core: Arc<Core>) {
    let formation = &core.formation;
    let mut said = String::new();
    loop {
        let Ok(raft) = core.raft() else { return };
        if matches!(*formation.borrow(), Formation::Refused(_)) {
            return;
        }
        if raft.is_initialized().await.unwrap_or(false) {
            formation.send_replace(Formation::Formed);
            return;
        }
        match next_step(&core).await {
            Step::Wait(why) => {
                if said != why {
                    tracing::info!(reason = why, "waiting for the cluster to form");
                    said = why;
                }
            }
            Step::Join => {
                tracing::info!("there is a cluster; waiting for its leader");
                formation.send_replace(Formation::Formed);
                return;
            }
            Step::Refuse(why) => {
                formation.send_replace(Formation::Refused(why));
                return;
            }
            Step::Initialize => {
                let members: BTreeMap<u64, PeerNode> =
                    core.config.initial_members.iter().map(|(id, node)| (id.0, node.clone())).collect();
                tracing::info!(members = core.initial_cluster(), "forming the cluster");
                if let Err(error) = raft.initialize(members).await {
                    tracing::warn!(%error, "the cluster was not formed");
                }
            }
        }
        tokio::time::sleep(PACE).await;
    }
}

async fn next_step(core: &Core) -> Step {
    let me = core.identity.node;
    let members = &core.config.initial_members;
    let mine = core.initial_cluster();
    let asked = members
        .iter()
        .filter(|(id, _)| **id != me)
        .map(|(id, node)| async { (*id, core.peers.hello((*id, &node.address), Lane::Control, mine.clone()).await) });
    let mut present = vec![me];
    for (id, answer) in futures::future::join_all(asked).await {
        match answer {
            Ok(proto::HelloResponse { initialized: true, .. }) => return Step::Join,
            Ok(proto::HelloResponse { initial_cluster, .. }) if initial_cluster != mine => {
                return Step::Wait(format!(
                    "node {id} was configured with the initial members {initial_cluster}, node {me} with {mine}: they must be the same"
                ));
            }
            Ok(_) => present.push(id),
            Err(status) if status.code() == Code::FailedPrecondition && status.message().contains("wiped disk") => {
                return Step::Refuse(status.message().to_owned());
            }
            Err(status) if status.code() == Code::FailedPrecondition => {
                return Step::Wait(status.message().to_owned());
            }
            Err(_) => {}
        }
    }
    decide(&present, members.len(), me)
}

/// A majority must be there, and the first of those that are makes the cluster: two that did so at once would still end
/// up in one, since both know the same members, but it would take them an election more.
fn decide(present: &[NodeId], members: usize, me: NodeId) -> Step {
    let majority = members / 2 + 1;
    if present.len() < majority {
        return Step::Wait(format!("{} of {members} initial members are there, {majority} are needed", present.len()));
    }
    if present.iter().min() == Some(&me) {
        return Step::Initialize;
    }
    Step::Wait("another member forms it".to_owned())
}
