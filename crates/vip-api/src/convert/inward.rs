//! From the wire. What a newer version may add without harm is taken as unknown; all else that does not fit is an error.

use super::*;

impl TryFrom<v1::VipSpec> for VipSpec {
    type Error = FieldError;

    /// Checks each field for itself; whether they fit together is [`VipSpec::validate`]'s to say.
    fn try_from(value: v1::VipSpec) -> Result<Self, FieldError> {
        let name = vip_name("spec.name", value.name)?;
        let address = value.address.parse().map_err(|_| {
            let shown: String = value.address.chars().take(80).collect();
            FieldError::new("spec.address", format!("{shown:?} is not an IP address"))
        })?;
        let prefix_len = match value.prefix_len {
            0 => Self::host_prefix_len(address),
            bits => u8::try_from(bits)
                .map_err(|_| FieldError::new("spec.prefix_len", format!("{bits} is too long; at most 128")))?,
        };
        let interface =
            InterfaceSelector::try_from(value.interface).map_err(|error| FieldError::new("spec.interface", error))?;
        let placement = match v1::Placement::try_from(value.placement) {
            Ok(v1::Placement::Unspecified | v1::Placement::Leader) => Placement::Leader,
            Err(_) => return Err(FieldError::new("spec.placement", format!("{} is not known", value.placement))),
        };
        Ok(Self { name, address, prefix_len, interface, placement })
    }
}

impl From<v1::HolderState> for HolderState {
    fn from(value: v1::HolderState) -> Self {
        match value {
            v1::HolderState::Standby => Self::Standby,
            v1::HolderState::Acquiring => Self::Acquiring,
            v1::HolderState::Active => Self::Active,
            v1::HolderState::Releasing => Self::Releasing,
            v1::HolderState::Fenced => Self::Fenced,
            v1::HolderState::Unspecified | v1::HolderState::Unknown => Self::Unknown,
        }
    }
}

/// A number that this version does not know reads as unknown.
fn holder_state(value: i32) -> HolderState {
    v1::HolderState::try_from(value).unwrap_or_default().into()
}

impl TryFrom<v1::ResponseHeader> for Header {
    type Error = FieldError;

    fn try_from(value: v1::ResponseHeader) -> Result<Self, FieldError> {
        Ok(Self {
            cluster: value.cluster,
            node_id: NodeId(value.node_id),
            term: value.term,
            leader_id: value.leader_id.map(NodeId),
            revision: value.revision,
            consistency: consistency(value.consistency)?,
        })
    }
}

/// The header of an answer.
///
/// # Errors
/// Where there is none.
pub fn header(value: Option<v1::ResponseHeader>) -> Result<Header, FieldError> {
    value.ok_or_else(|| FieldError::missing("header"))?.try_into()
}

impl From<v1::NodeRef> for NodeRef {
    fn from(value: v1::NodeRef) -> Self {
        Self { id: NodeId(value.id), name: value.name }
    }
}

impl TryFrom<v1::Assignment> for Assigned {
    type Error = FieldError;

    fn try_from(value: v1::Assignment) -> Result<Self, FieldError> {
        let owner = value.owner.ok_or_else(|| FieldError::missing("assignment.owner"))?.into();
        Ok(Self { owner, epoch: Epoch(value.epoch), term: value.term })
    }
}

impl TryFrom<v1::Vip> for Vip {
    type Error = FieldError;

    fn try_from(value: v1::Vip) -> Result<Self, FieldError> {
        Ok(Self {
            spec: value.spec.ok_or_else(|| FieldError::missing("spec"))?.try_into()?,
            assignment: value.assignment.map(TryInto::try_into).transpose()?,
            revision: value.revision,
            declared_revision: value.declared_revision,
            lease_remaining: value.lease_remaining.map(|left| duration("lease_remaining", left)).transpose()?,
            holder_state: holder_state(value.holder_state),
        })
    }
}

impl TryFrom<v1::NodeStatus> for NodeStatus {
    type Error = FieldError;

    fn try_from(value: v1::NodeStatus) -> Result<Self, FieldError> {
        let role = match v1::NodeRole::try_from(value.role) {
            Ok(v1::NodeRole::Voter) => NodeRole::Voter,
            Ok(v1::NodeRole::Learner) => NodeRole::Learner,
            Ok(v1::NodeRole::Unspecified) | Err(_) => {
                return Err(FieldError::new("nodes.role", format!("{} is not known", value.role)));
            }
        };
        Ok(Self {
            node: value.node.ok_or_else(|| FieldError::missing("nodes.node"))?.into(),
            peer_address: value.peer_address,
            role,
            reachable: value.reachable,
            last_acknowledged_age: value
                .last_acknowledged_age
                .map(|age| duration("nodes.last_acknowledged_age", age))
                .transpose()?,
            instance: Some(value.instance).filter(|instance| !instance.is_empty()),
            vips_owned: value.vips_owned,
        })
    }
}

impl TryFrom<v1::Timing> for Timing {
    type Error = FieldError;

    fn try_from(value: v1::Timing) -> Result<Self, FieldError> {
        Ok(Self {
            heartbeat: duration("timing.heartbeat", value.heartbeat.unwrap_or_default())?,
            lease: duration("timing.lease", value.lease.unwrap_or_default())?,
            margin: duration("timing.margin", value.margin.unwrap_or_default())?,
            clock_drift_ppm: value.clock_drift_ppm,
        })
    }
}

impl TryFrom<v1::LocalStatus> for LocalStatus {
    type Error = FieldError;

    fn try_from(value: v1::LocalStatus) -> Result<Self, FieldError> {
        let v1::FenceStatus { kind, state, healthy } = value.fence.unwrap_or_default();
        let count = |value: v1::HolderCount| HolderCount { state: holder_state(value.state), vips: value.vips };
        Ok(Self {
            node: value.node.ok_or_else(|| FieldError::missing("local.node"))?.into(),
            version: value.version,
            uptime: duration("local.uptime", value.uptime.unwrap_or_default())?,
            lease_remaining: value.lease_remaining.map(|left| duration("local.lease_remaining", left)).transpose()?,
            fence: Fence { kind, state, healthy },
            warnings: value.warnings,
            holders: value.holders.into_iter().map(count).collect(),
        })
    }
}

impl TryFrom<v1::StatusResponse> for Status {
    type Error = FieldError;

    fn try_from(value: v1::StatusResponse) -> Result<Self, FieldError> {
        Ok(Self {
            header: header(value.header)?,
            leader: value.leader.map(Into::into),
            commit_index: value.commit_index,
            applied_index: value.applied_index,
            nodes: value.nodes.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            timing: value.timing.unwrap_or_default().try_into()?,
            local: value.local.ok_or_else(|| FieldError::missing("local"))?.try_into()?,
            vips_declared: value.vips_declared,
            vips_assigned: value.vips_assigned,
        })
    }
}

/// An event of a watch; `None` for one that only a newer version knows.
///
/// # Errors
/// Where a known event is malformed.
pub fn watch_event(value: v1::WatchEvent) -> Result<Option<WatchEvent>, FieldError> {
    use v1::watch_event::Event;
    Ok(match value.event {
        Some(Event::SnapshotStart(start)) => Some(WatchEvent::SnapshotStart { reset: start.reset }),
        Some(Event::Put(vip)) => Some(WatchEvent::Put(vip.try_into()?)),
        Some(Event::Delete(removed)) => {
            Some(WatchEvent::Delete { name: vip_name("events.delete.name", removed.name)?, revision: removed.revision })
        }
        Some(Event::Synced(_)) => Some(WatchEvent::Synced),
        Some(Event::Progress(_)) => Some(WatchEvent::Progress),
        None => None,
    })
}
