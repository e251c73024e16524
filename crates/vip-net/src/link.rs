//! The interfaces of this network namespace.

use std::fmt;
use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use thiserror::Error;

use crate::netlink::Netlink;

/// Why interfaces could not be read.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The kernel could not be asked.
    #[error("listing the network interfaces failed: {source}")]
    List {
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no such interface, or it is no Ethernet interface.
    #[error("interface {index} could not be read: {source}; was it removed?")]
    Get {
        /// The index that was asked for.
        index: u32,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A 48-bit Ethernet address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MacAddress(
    /// In transmission order.
    pub [u8; 6],
);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// An Ethernet interface as it was when it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's index, never reused while the interface lives.
    pub index: u32,
    /// The name, which can change.
    pub name: String,
    /// The address, which can change too.
    pub mac: MacAddress,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// The link below is there (`IFF_LOWER_UP`).
    pub carrier: bool,
}

/// All Ethernet interfaces (`ARPHRD_ETHER`), up or down: physical ones, bonds, bridges, VLANs, veth. No loopback.
///
/// # Errors
///
/// [`LinkError::List`] when the kernel refuses.
pub fn ethernet_interfaces() -> Result<Vec<Interface>, LinkError> {
    let list = |source| LinkError::List { source };
    let objects = Netlink::open()
        .and_then(|mut netlink| netlink.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default())))
        .map_err(list)?;
    Ok(objects
        .iter()
        .filter_map(|object| match object {
            RouteNetlinkMessage::NewLink(link) => interface(link),
            _ => None,
        })
        .collect())
}

/// The Ethernet interface with this index, as it is now.
pub(crate) fn ethernet_interface(netlink: &mut Netlink, index: u32) -> Result<Interface, LinkError> {
    let get = |source| LinkError::Get { index, source };
    let mut request = LinkMessage::default();
    request.header.index = index;
    let answer = netlink.get(RouteNetlinkMessage::GetLink(request)).map_err(get)?;
    match &answer {
        RouteNetlinkMessage::NewLink(link) => interface(link),
        _ => None,
    }
    .ok_or_else(|| get(io::Error::new(io::ErrorKind::InvalidInput, "it is no Ethernet interface")))
}

/// `None` for a link of another kind.
pub(crate) fn interface(link: &LinkMessage) -> Option<Interface> {
    if link.header.link_layer_type != LinkLayerType::Ether {
        return None;
    }
    let mut name = None;
    let mut mac = None;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(value) => name = Some(value.clone()),
            LinkAttribute::Address(value) => mac = <[u8; 6]>::try_from(value.as_slice()).ok(),
            _ => {}
        }
    }
    Some(Interface {
        index: link.header.index,
        name: name?,
        mac: MacAddress(mac?),
        up: link.header.flags.contains(LinkFlags::Up),
        carrier: link.header.flags.contains(LinkFlags::LowerUp),
    })
}
