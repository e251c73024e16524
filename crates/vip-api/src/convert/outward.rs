//! To the wire. Nothing can fail here.

use super::*;

impl From<Consistency> for v1::Consistency {
    fn from(value: Consistency) -> Self {
        match value {
            Consistency::Linearizable => Self::Linearizable,
            Consistency::Lease => Self::Lease,
            Consistency::Local => Self::Local,
        }
    }
}

impl From<HolderState> for v1::HolderState {
    fn from(value: HolderState) -> Self {
        match value {
            HolderState::Standby => Self::Standby,
            HolderState::Acquiring => Self::Acquiring,
            HolderState::Active => Self::Active,
            HolderState::Releasing => Self::Releasing,
            HolderState::Fenced => Self::Fenced,
            HolderState::Unknown => Self::Unknown,
        }
    }
}

impl From<NodeRole> for v1::NodeRole {
    fn from(value: NodeRole) -> Self {
        match value {
            NodeRole::Voter => Self::Voter,
            NodeRole::Learner => Self::Learner,
        }
    }
}

impl From<Header> for v1::ResponseHeader {
    fn from(value: Header) -> Self {
        Self {
            cluster: value.cluster,
            node_id: value.node_id.0,
            term: value.term,
            leader_id: value.leader_id.map(|id| id.0),
            revision: value.revision,
            consistency: v1::Consistency::from(value.consistency).into(),
        }
    }
}

impl From<NodeRef> for v1::NodeRef {
    fn from(value: NodeRef) -> Self {
        Self { id: value.id.0, name: value.name }
    }
}

impl From<VipSpec> for v1::VipSpec {
    fn from(value: VipSpec) -> Self {
        let placement = match value.placement {
            Placement::Leader => v1::Placement::Leader,
        };
        Self {
            name: value.name.into(),
            address: value.address.to_string(),
            prefix_len: value.prefix_len.into(),
            interface: value.interface.into(),
            placement: placement.into(),
        }
    }
}

impl From<Assigned> for v1::Assignment {
    fn from(value: Assigned) -> Self {
        Self { owner: Some(value.owner.into()), epoch: value.epoch.0, term: value.term }
    }
}

impl From<Vip> for v1::Vip {
    fn from(value: Vip) -> Self {
        Self {
            spec: Some(value.spec.into()),
            assignment: value.assignment.map(Into::into),
            revision: value.revision,
            declared_revision: value.declared_revision,
            lease_remaining: value.lease_remaining.map(proto_duration),
            holder_state: v1::HolderState::from(value.holder_state).into(),
        }
    }
}

impl From<NodeStatus> for v1::NodeStatus {
    fn from(value: NodeStatus) -> Self {
        Self {
            node: Some(value.node.into()),
            peer_address: value.peer_address,
            role: v1::NodeRole::from(value.role).into(),
            reachable: value.reachable,
            last_acknowledged_age: value.last_acknowledged_age.map(proto_duration),
            instance: value.instance.unwrap_or_default(),
            vips_owned: value.vips_owned,
        }
    }
}

impl From<Timing> for v1::Timing {
    fn from(value: Timing) -> Self {
        Self {
            heartbeat: Some(proto_duration(value.heartbeat)),
            lease: Some(proto_duration(value.lease)),
            margin: Some(proto_duration(value.margin)),
            clock_drift_ppm: value.clock_drift_ppm,
        }
    }
}

impl From<LocalStatus> for v1::LocalStatus {
    fn from(value: LocalStatus) -> Self {
        let Fence { kind, state, healthy } = value.fence;
        let count = |HolderCount { state, vips }| v1::HolderCount { state: v1::HolderState::from(state).into(), vips };
        Self {
            node: Some(value.node.into()),
            version: value.version,
            uptime: Some(proto_duration(value.uptime)),
            lease_remaining: value.lease_remaining.map(proto_duration),
            fence: Some(v1::FenceStatus { kind, state, healthy }),
            warnings: value.warnings,
            holders: value.holders.into_iter().map(count).collect(),
        }
    }
}

impl From<Status> for v1::StatusResponse {
    fn from(value: Status) -> Self {
        Self {
            header: Some(value.header.into()),
            leader: value.leader.map(Into::into),
            commit_index: value.commit_index,
            applied_index: value.applied_index,
            nodes: value.nodes.into_iter().map(Into::into).collect(),
            timing: Some(value.timing.into()),
            local: Some(value.local.into()),
            vips_declared: value.vips_declared,
            vips_assigned: value.vips_assigned,
        }
    }
}

impl From<WatchEvent> for v1::WatchEvent {
    fn from(value: WatchEvent) -> Self {
        use v1::watch_event::{Event, Progress, Removed, SnapshotStart, Synced};
        let event = match value {
            WatchEvent::SnapshotStart { reset } => Event::SnapshotStart(SnapshotStart { reset }),
            WatchEvent::Put(vip) => Event::Put(vip.into()),
            WatchEvent::Delete { name, revision } => Event::Delete(Removed { name: name.into(), revision }),
            WatchEvent::Synced => Event::Synced(Synced {}),
            WatchEvent::Progress => Event::Progress(Progress {}),
        };
        Self { event: Some(event) }
    }
}
