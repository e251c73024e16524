//! Who a node is to its peers, and whom it lets in.

use std::time::Duration;

use tonic::Status;
use vip_core::{Cluster, ClusterName, LeaseTiming, NodeId};

use crate::convert::proto;

/// The version of the peers' protocol. Nodes of different versions refuse each other.
pub const PROTOCOL: u32 = 1;

/// What a node says of itself to its peers.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) cluster: ClusterName,
    pub(crate) node: NodeId,
    pub(crate) instance: String,
    pub(crate) timing: LeaseTiming,
}

impl Identity {
    /// `receiver`: the store as which this node knows the one it speaks to.
    pub(crate) fn to_wire(&self, eligible: bool, receiver: Option<&String>) -> proto::Peer {
        proto::Peer {
            cluster: self.cluster.to_string(),
            protocol: PROTOCOL,
            node: self.node.0,
            instance: self.instance.clone(),
            lease_nanos: nanos(self.timing.lease),
            clock_drift_ppm: self.timing.clock_drift_ppm,
            queue_time_nanos: nanos(self.timing.queue_time),
            eligible,
            knows_receiver_as: receiver.cloned().unwrap_or_default(),
        }
    }

    /// Why this node's store is not the one that the cluster knows it by, if `peer` says so.
    pub(crate) fn disowned(&self, peer: Option<&proto::Peer>) -> Option<String> {
        let peer = peer?;
        let other_cluster = peer.cluster != self.cluster.as_str();
        if other_cluster || peer.knows_receiver_as.is_empty() || peer.knows_receiver_as == self.instance {
            return None;
        }
        Some(wiped(self.node, &self.instance, &peer.knows_receiver_as))
    }

    /// Lets `peer` in, or says what differs. `cluster` is the agreed state, which knows the nodes' stores.
    #[allow(clippy::result_large_err, reason = "tonic's own error type")]
    pub(crate) fn admit(&self, peer: Option<&proto::Peer>, cluster: &Cluster) -> Result<NodeId, Status> {
        let Some(peer) = peer else {
            return Err(Status::invalid_argument("malformed message of a peer: sender is missing"));
        };
        let refuse = |why: String| Err(Status::failed_precondition(why));
        let (me, other) = (self.node, peer.node);
        if peer.cluster != self.cluster.as_str() {
            return refuse(format!(
                "node {other} is of cluster {:?}, node {me} is of cluster {:?}: give both the same [cluster] name, or take one out of the other's member list",
                peer.cluster,
                self.cluster.as_str()
            ));
        }
        if peer.protocol != PROTOCOL {
            return refuse(format!(
                "node {other} speaks version {} of the peers' protocol, node {me} speaks version {PROTOCOL}: run the same version of vipd on both",
                peer.protocol
            ));
        }
        for (what, theirs, mine) in [
            ("lease", peer.lease_nanos, nanos(self.timing.lease)),
            ("queue_time", peer.queue_time_nanos, nanos(self.timing.queue_time)),
        ] {
            if theirs != mine {
                return refuse(format!(
                    "node {other} runs with {what} = {:?}, node {me} with {what} = {:?}: the timing must be the same on all nodes",
                    Duration::from_nanos(theirs),
                    Duration::from_nanos(mine)
                ));
            }
        }
        if peer.clock_drift_ppm != self.timing.clock_drift_ppm {
            return refuse(format!(
                "node {other} runs with clock_drift_ppm = {}, node {me} with clock_drift_ppm = {}: the timing must be the same on all nodes",
                peer.clock_drift_ppm, self.timing.clock_drift_ppm
            ));
        }
        if NodeId(other) == me {
            return refuse(format!("two nodes have the id {me}: give each its own"));
        }
        match cluster.instances.get(&NodeId(other)) {
            Some(known) if *known != peer.instance => refuse(wiped(NodeId(other), &peer.instance, known)),
            Some(_) | None => Ok(NodeId(other)),
        }
    }
}

/// R12.
fn wiped(node: NodeId, found: &str, known: &str) -> String {
    format!(
        "node {node} comes with store {found}, but the cluster knows it with store {known}: a wiped disk is a new node, and an old copy of the disk forgets its votes; put the right disk back, or form the cluster anew under another name"
    )
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A message that says who sent it.
pub(crate) trait Envelope {
    fn sender(&self) -> Option<&proto::Peer>;
    fn sign(&mut self, peer: proto::Peer);
}

macro_rules! envelopes {
    ($($message:ident),* $(,)?) => {
        $(impl Envelope for proto::$message {
            fn sender(&self) -> Option<&proto::Peer> {
                self.sender.as_ref()
            }

            fn sign(&mut self, peer: proto::Peer) {
                self.sender = Some(peer);
            }
        })*
    };
}

envelopes!(
    AppendEntriesRequest,
    AppendEntriesResponse,
    VoteRequest,
    VoteResponse,
    TransferLeaderRequest,
    TransferLeaderResponse,
    InstallSnapshotRequest,
    InstallSnapshotResponse,
    ProposeRequest,
    ProposeResponse,
    ReadIndexRequest,
    ReadIndexResponse,
    HelloRequest,
    HelloResponse,
);

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(node: u64) -> Identity {
        Identity {
            cluster: "web".parse().unwrap(),
            node: NodeId(node),
            instance: format!("store-{node}"),
            timing: LeaseTiming {
                lease: Duration::from_millis(500),
                clock_drift_ppm: 1000,
                queue_time: Duration::from_millis(5),
            },
        }
    }

    #[test]
    fn a_stranger_is_refused_with_both_values() {
        let me = identity(1);
        let good = identity(2).to_wire(true, None);
        assert_eq!(me.admit(Some(&good), &Cluster::default()).unwrap(), NodeId(2));
        let mut known = Cluster::default();
        known.instances.insert(NodeId(2), "another".to_owned());
        for (peer, cluster, says) in [
            (proto::Peer { cluster: "db".into(), ..good.clone() }, Cluster::default(), ["\"db\"", "\"web\""]),
            (proto::Peer { protocol: 9, ..good.clone() }, Cluster::default(), ["version 9", "version 1"]),
            (proto::Peer { lease_nanos: 100_000_000, ..good.clone() }, Cluster::default(), ["100ms", "500ms"]),
            (proto::Peer { queue_time_nanos: 1, ..good.clone() }, Cluster::default(), ["1ns", "5ms"]),
            (proto::Peer { clock_drift_ppm: 7, ..good.clone() }, Cluster::default(), ["= 7", "= 1000"]),
            (proto::Peer { node: 1, ..good.clone() }, Cluster::default(), ["two nodes", "id 1"]),
            (good, known, ["store-2", "another"]),
        ] {
            let error = me.admit(Some(&peer), &cluster).unwrap_err();
            for part in says {
                assert!(error.message().contains(part), "{error}");
            }
        }
        assert!(me.admit(None, &Cluster::default()).is_err());
    }

    #[test]
    fn a_node_learns_that_its_own_disk_was_wiped() {
        let (me, other) = (identity(1), identity(2));
        assert_eq!(me.disowned(Some(&other.to_wire(true, None))), None);
        assert_eq!(me.disowned(Some(&other.to_wire(true, Some(&me.instance)))), None);
        let why = me.disowned(Some(&other.to_wire(true, Some(&"older".to_owned())))).unwrap();
        assert!(why.contains("store-1") && why.contains("older") && why.contains("wiped disk"), "{why}");
    }
}
