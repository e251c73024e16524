//! Changes to links, addresses and filters, as the kernel tells of them: also those that others make.

use std::io;
use std::net::IpAddr;

use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::SocketAddr;
use rtnetlink::{MulticastGroup, new_multicast_connection};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::address::{KernelAddress, kernel_address};
use crate::fence::{may_remove_fence, removes_clsact};
use crate::link::{Interface, interface};

/// Events that wait for the reader. A thousand addresses fit; beyond that the kernel's own buffer fills, and
/// [`NetEvent::Overrun`] tells the reader to look for itself.
const DEPTH: usize = 2048;

/// Why changes cannot be watched.
#[derive(Debug, Error)]
pub enum MonitorError {
    /// The netlink socket could not be opened or subscribed.
    #[error("subscribing to changes of links, addresses and filters failed: {source}")]
    Subscribe {
        /// What the kernel said.
        source: io::Error,
    },
}

/// One change, after it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetEvent {
    /// An Ethernet interface appeared or changed. The kernel repeats itself: it may be as it was.
    LinkChanged(Interface),
    /// An Ethernet interface is gone, and its addresses and filters with it.
    LinkRemoved {
        /// Its index.
        index: u32,
        /// Its last name.
        name: String,
    },
    /// An address was added, refreshed, or came out of duplicate address detection.
    AddressAdded(KernelAddress),
    /// An address is gone: removed, or its lifetime ended.
    AddressRemoved {
        /// The interface that it was on.
        index: u32,
        /// The address.
        address: IpAddr,
        /// Who had put it there (`IFA_PROTO`), where that is known.
        tag: Option<u8>,
    },
    /// A fence filter may be gone from the interface; [`crate::fence::Fence::attached`] knows.
    FilterRemoved {
        /// The interface.
        index: u32,
    },
    /// Changes were lost: everything must be read again.
    Overrun,
}

/// A subscription to the changes in one network namespace. Dropping it ends it.
#[derive(Debug)]
pub struct Monitor {
    events: mpsc::Receiver<NetEvent>,
    reader: JoinHandle<()>,
}

impl Monitor {
    /// Subscribes in the network namespace of the calling thread; must be called inside a tokio runtime.
    ///
    /// Changes from here on are told; read what is there after this returned, so that nothing falls between.
    ///
    /// # Errors
    ///
    /// [`MonitorError::Subscribe`].
    pub fn open() -> Result<Self, MonitorError> {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr, MulticastGroup::Tc];
        let (connection, _, messages) =
            new_multicast_connection(&groups).map_err(|source| MonitorError::Subscribe { source })?;
        let (sender, events) = mpsc::channel(DEPTH);
        let reader = tokio::spawn(read(connection, messages, sender));
        Ok(Self { events, reader })
    }

    /// The next change; `None` once the socket failed, after which a new monitor must be opened and everything
    /// read again. Cancel safe.
    pub async fn next(&mut self) -> Option<NetEvent> {
        self.events.recv().await
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

type Message = (NetlinkMessage<RouteNetlinkMessage>, SocketAddr);

/// Ends when the connection or the reader of the events does.
async fn read(
    connection: impl Future<Output = ()>,
    mut messages: UnboundedReceiver<Message>,
    events: mpsc::Sender<NetEvent>,
) {
    // Without a budget, so that one poll of the connection empties the kernel's buffer; see below.
    let connection = tokio::task::unconstrained(connection);
    tokio::pin!(connection);
    let mut overrun = false;
    loop {
        let message = tokio::select! {
            // What has arrived goes first: the connection is polled, and so fills the queue between, only when
            // that is empty. A slow reader is thus felt by the kernel's buffer, which is bounded.
            biased;
            message = messages.next() => message,
            () = &mut connection => None,
            // The kernel reports the first loss only, ahead of what it still has, and goes on losing in silence
            // until its buffer was emptied. Only now, after the connection found it empty, is a new reading of
            // everything sure to be followed by every change.
            () = std::future::ready(()), if overrun => {
                overrun = false;
                if events.send(NetEvent::Overrun).await.is_err() {
                    return;
                }
                continue;
            }
        };
        let Some((message, _)) = message else {
            tracing::warn!("the netlink subscription ended");
            return;
        };
        if let NetlinkPayload::Overrun(_) = message.payload {
            overrun = true;
        } else if let Some(event) = event(message.payload)
            && events.send(event).await.is_err()
        {
            return;
        }
    }
}

fn event(payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<NetEvent> {
    match payload {
        NetlinkPayload::InnerMessage(message) => match message {
            RouteNetlinkMessage::NewLink(link) if !is_bridge_port(&link) => interface(&link).map(NetEvent::LinkChanged),
            RouteNetlinkMessage::DelLink(link) if !is_bridge_port(&link) => removed_link(&link),
            RouteNetlinkMessage::NewAddress(address) => kernel_address(&address).map(NetEvent::AddressAdded),
            RouteNetlinkMessage::DelAddress(address) => removed_address(&address),
            RouteNetlinkMessage::DelTrafficFilter(filter) if may_remove_fence(&filter) => {
                filter_removed(filter.header.index)
            }
            RouteNetlinkMessage::DelQueueDiscipline(qdisc) if removes_clsact(&qdisc) => {
                filter_removed(qdisc.header.index)
            }
            _ => None,
        },
        _ => None,
    }
}

/// Notices of the bridge about its ports look like those of links; a port that leaves its bridge is not gone.
fn is_bridge_port(link: &LinkMessage) -> bool {
    link.header.interface_family == AddressFamily::Bridge
}

fn removed_link(link: &LinkMessage) -> Option<NetEvent> {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    Some(NetEvent::LinkRemoved { index: link.header.index, name })
}

fn removed_address(message: &AddressMessage) -> Option<NetEvent> {
    let KernelAddress { index, address, proto, .. } = kernel_address(message)?;
    Some(NetEvent::AddressRemoved { index, address, tag: proto })
}

fn filter_removed(index: i32) -> Option<NetEvent> {
    u32::try_from(index).ok().map(|index| NetEvent::FilterRemoved { index })
}
