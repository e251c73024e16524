//! The classifier's place on an interface, through tc netlink.
//!
//! tc and not tcx, so that kernels before 6.6 have the fence too, and because a tc filter outlives its process
//! and is replaced in one step: a filter request without `NLM_F_EXCL` for a priority and handle that exist swaps
//! the program under RCU (`cls_bpf_change` in the kernel).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption, TcU32OptionFlags,
};
use nix::errno::Errno;

use super::FenceError;
use super::bpf::Program;
use crate::netlink::Netlink;

/// The qdisc that gives an interface its two places for filters.
const CLSACT: &str = "clsact";

/// First of all filters: what others redirect or accept before us would get around the fence.
const PRIORITY: u16 = 1;

/// "vipd". A handle of our own lets us replace our filter and nobody else's, also at the same priority.
const HANDLE: u32 = 0x7669_7064;

/// `ETH_P_ALL`: the filter sees frames of every type.
const ALL_PROTOCOLS: u16 = 0x0003;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Egress,
    Ingress,
}

impl Direction {
    pub(super) const BOTH: [Self; 2] = [Self::Egress, Self::Ingress];

    /// In words.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }

    pub(super) const fn program_name(self) -> &'static str {
        match self {
            Self::Egress => "vip_egress",
            Self::Ingress => "vip_ingress",
        }
    }

    const fn filter_name(self) -> &'static str {
        match self {
            Self::Egress => "vipd-egress",
            Self::Ingress => "vipd-ingress",
        }
    }

    const fn parent(self) -> TcHandle {
        let minor = match self {
            Self::Egress => TcHandle::MIN_EGRESS,
            Self::Ingress => TcHandle::MIN_INGRESS,
        };
        TcHandle { major: u16::MAX, minor }
    }
}

/// A filter as the kernel shows it.
#[derive(Debug)]
pub(super) struct Attached {
    priority: u16,
    handle: u32,
    name: Option<String>,
    pub(super) program_id: Option<u32>,
}

impl Attached {
    /// Put there by a fence, this one or a predecessor.
    pub(super) fn is_fence(&self) -> bool {
        let ours = |name: &str| Direction::BOTH.iter().any(|direction| direction.filter_name() == name);
        self.priority == PRIORITY && self.handle == HANDLE && self.name.as_deref().is_some_and(ours)
    }
}

/// Whether the removal that this notice tells of may have taken a fence filter. A flush names a priority or
/// nothing, so this can be a false alarm; [`super::Fence::attached`] knows.
pub(crate) fn may_remove_fence(filter: &TcMessage) -> bool {
    let handle = u32::from(filter.header.handle);
    let priority = priority(filter.header.info);
    Direction::BOTH.iter().any(|direction| direction.parent() == filter.header.parent)
        && (handle == HANDLE || handle == 0)
        && (priority == PRIORITY || priority == 0)
}

/// Whether the removal of this qdisc takes all filters with it.
pub(crate) fn removes_clsact(qdisc: &TcMessage) -> bool {
    kind(qdisc) == Some(CLSACT)
}

/// Gives the interface its clsact qdisc, where it has none.
pub(super) fn ensure_clsact(netlink: &mut Netlink, index: u32) -> Result<(), FenceError> {
    let attempted = "adding the clsact qdisc";
    let mut message = TcMessage::with_index(signed(index));
    message.header.handle = TcHandle { major: u16::MAX, minor: 0 };
    message.header.parent = TcHandle::CLSACT;
    message.attributes.push(TcAttribute::Kind(CLSACT.to_owned()));
    match netlink.execute_one(RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_EXCL) {
        Ok(()) => Ok(()),
        Err(Errno::EEXIST) if has_clsact(netlink, index)? => Ok(()),
        // An ingress qdisc sits in the same place, and would take the egress filter for an ingress one.
        Err(source @ Errno::EEXIST) => {
            let hint = "; there is an ingress qdisc in its place, replace it (tc qdisc del dev ... ingress)";
            Err(FenceError::Attach { attempted, index, source, hint })
        }
        Err(source) => Err(FenceError::Attach { attempted, index, source, hint: hint(source) }),
    }
}

fn has_clsact(netlink: &mut Netlink, index: u32) -> Result<bool, FenceError> {
    let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::with_index(signed(index)));
    let objects = netlink.dump(&request).map_err(|source| FenceError::Inspect { index, source })?;
    Ok(objects.iter().any(|object| match object {
        // The kernel may list the qdiscs of all interfaces.
        RouteNetlinkMessage::NewQueueDiscipline(qdisc) => {
            qdisc.header.index == signed(index) && kind(qdisc) == Some(CLSACT)
        }
        _ => false,
    }))
}

/// Creates our filter, or replaces the one that is there, in one step.
pub(super) fn put_filter(
    netlink: &mut Netlink,
    index: u32,
    direction: Direction,
    program: &Program,
) -> Result<(), FenceError> {
    let mut message = filter(index, direction);
    message.attributes.push(TcAttribute::Options(vec![
        TcOption::Bpf(TcFilterBpfOption::ProgFd(program.fd.as_fd().as_raw_fd().cast_unsigned())),
        TcOption::Bpf(TcFilterBpfOption::ProgName(direction.filter_name().to_owned())),
        TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        // A card that ran it would not share our maps.
        TcOption::Bpf(TcFilterBpfOption::FlagsGeneric(TcU32OptionFlags::SkipHw)),
    ]));
    let attempted = match direction {
        Direction::Egress => "putting the fence on egress",
        Direction::Ingress => "putting the fence on ingress",
    };
    netlink
        .execute_one(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE | NLM_F_REPLACE)
        .map_err(|source| FenceError::Attach { attempted, index, source, hint: hint(source) })
}

/// Deletes our filter; one that is gone is done.
pub(super) fn delete_filter(netlink: &mut Netlink, index: u32, direction: Direction) -> Result<(), FenceError> {
    match netlink.execute_one(RouteNetlinkMessage::DelTrafficFilter(filter(index, direction)), 0) {
        Ok(()) | Err(Errno::ENOENT | Errno::ENODEV) => Ok(()),
        Err(source) => Err(FenceError::Detach { index, source }),
    }
}

/// All BPF filters on one direction of an interface; none where it has no clsact qdisc or does not exist.
pub(super) fn filters(netlink: &mut Netlink, index: u32, direction: Direction) -> Result<Vec<Attached>, FenceError> {
    let mut request = TcMessage::with_index(signed(index));
    request.header.parent = direction.parent();
    let objects = match netlink.dump(&RouteNetlinkMessage::GetTrafficFilter(request)) {
        Ok(objects) => objects,
        Err(error) if is_gone(&error) => Vec::new(),
        Err(source) => return Err(FenceError::Inspect { index, source }),
    };
    Ok(objects
        .iter()
        .filter_map(|object| match object {
            RouteNetlinkMessage::NewTrafficFilter(message) => attached(message),
            _ => None,
        })
        .collect())
}

/// `None` for a filter of another kind.
fn attached(message: &TcMessage) -> Option<Attached> {
    if kind(message) != Some(TcFilterBpf::KIND) {
        return None;
    }
    let (mut name, mut program_id) = (None, None);
    for attribute in &message.attributes {
        let TcAttribute::Options(options) = attribute else { continue };
        for option in options {
            match option {
                TcOption::Bpf(TcFilterBpfOption::ProgName(value)) => name = Some(value.clone()),
                TcOption::Bpf(TcFilterBpfOption::ProgId(value)) => program_id = Some(*value),
                _ => {}
            }
        }
    }
    let TcHeader { handle, info, .. } = message.header;
    Some(Attached { priority: priority(info), handle: handle.into(), name, program_id })
}

fn filter(index: u32, direction: Direction) -> TcMessage {
    let mut message = TcMessage::with_index(signed(index));
    message.header.handle = TcHandle::from(HANDLE);
    message.header.parent = direction.parent();
    message.header.info = (u32::from(PRIORITY) << 16) | u32::from(ALL_PROTOCOLS.to_be());
    message.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
    message
}

fn kind(message: &TcMessage) -> Option<&str> {
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })
}

/// The upper half of `tcm_info`; the lower one is the protocol.
fn priority(info: u32) -> u16 {
    u16::try_from(info >> 16).unwrap_or_default()
}

/// Indices are positive `int`s in the kernel.
fn signed(index: u32) -> i32 {
    i32::try_from(index).unwrap_or(i32::MAX)
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::ENODEV | Errno::ENOENT | Errno::EINVAL))
}

const fn hint(source: Errno) -> &'static str {
    match source {
        Errno::EPERM => "; vipd needs CAP_NET_ADMIN",
        Errno::ENODEV => "; the interface is gone",
        Errno::ENOENT => {
            "; is the kernel built with CONFIG_NET_CLS_ACT, CONFIG_NET_CLS_BPF and CONFIG_NET_SCH_INGRESS?"
        }
        Errno::EINVAL => "; another kind of tc filter may sit at priority 1 (tc filter show dev ... egress)",
        _ => "",
    }
}
