//! Telling the neighbours that an address is here now: gratuitous ARP and unsolicited Neighbor Advertisements.
//!
//! Frames leave through a packet socket that keeps the traffic control of the interface in its way, so the fence
//! judges them like all others: an announcement of an address that is shut stays in.

pub mod frame;

use std::io;
use std::net::IpAddr;
use std::os::fd::IntoRawFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use pnet::datalink::{self, Channel, ChannelType, Config, DataLinkSender, NetworkInterface};
use thiserror::Error;
use vip_core::KillPoint;

use crate::link::{Interface, LinkError, MacAddress, ethernet_interface};
use crate::netlink::Netlink;

/// A frame waits this long for room in the socket before the announcement is given up; the next one is near.
const SEND_TIMEOUT: Duration = Duration::from_millis(50);

/// Why addresses could not be announced.
#[derive(Debug, Error)]
pub enum AnnounceError {
    /// The packet socket could not be opened.
    #[error("opening a packet socket on {interface} failed: {source}; vipd needs CAP_NET_RAW")]
    Open {
        /// The interface.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The interface, and with it the address to announce, could not be read.
    #[error(transparent)]
    Link(
        /// Why.
        #[from]
        LinkError,
    ),
    /// Sending stopped here; the addresses before this one were announced.
    #[error("announcing {address} on {interface} failed after {sent} frames: {source}")]
    Send {
        /// The address that was to be announced.
        address: IpAddr,
        /// The interface.
        interface: String,
        /// The frames that left before.
        sent: usize,
        /// What the kernel said (`ENETDOWN`: the interface is down).
        source: io::Error,
    },
}

/// What became of the frames of one announcement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// Frames that left.
    pub sent: usize,
    /// Frames that were stopped on the way out: by the fence, or by a full queue.
    pub stopped: usize,
}

/// Announces addresses on one interface of the network namespace it was opened in.
pub struct Announcer {
    index: u32,
    name: String,
    netlink: Netlink,
    sender: Box<dyn DataLinkSender>,
}

impl std::fmt::Debug for Announcer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Announcer").field("index", &self.index).field("name", &self.name).finish_non_exhaustive()
    }
}

impl Announcer {
    /// For a bond or a bridge give the bond or bridge itself, not its ports.
    ///
    /// # Errors
    ///
    /// [`AnnounceError::Open`].
    pub fn open(interface: &Interface) -> Result<Self, AnnounceError> {
        let failed = |source| AnnounceError::Open { interface: interface.name.clone(), source };
        let netlink = Netlink::open().map_err(failed)?;
        let sender = open_sender(interface).map_err(failed)?;
        Ok(Self { index: interface.index, name: interface.name.clone(), netlink, sender })
    }

    /// Announces every address once: an ARP request and a reply for IPv4, a Neighbor Advertisement for IPv6.
    ///
    /// The link-layer address is read anew each time, for it can change (bonds take that of another port).
    ///
    /// # Errors
    ///
    /// [`AnnounceError::Link`] when the interface is gone, [`AnnounceError::Send`] when it is down or broken. A
    /// frame that the fence stops is no error; it is counted.
    pub fn announce(&mut self, addresses: &[IpAddr]) -> Result<Announced, AnnounceError> {
        let MacAddress(mac) = ethernet_interface(&mut self.netlink, self.index)?.mac;
        let mut announced = Announced::default();
        for &address in addresses {
            match address {
                IpAddr::V4(ip) => {
                    for operation in [frame::ArpOperation::Request, frame::ArpOperation::Reply] {
                        let frame = frame::GratuitousArp { operation, mac, address: ip };
                        self.send(&frame.encode(), address, &mut announced)?;
                    }
                }
                IpAddr::V6(ip) => {
                    let frame = frame::NeighborAdvertisement { mac, address: ip };
                    self.send(&frame.encode(), address, &mut announced)?;
                }
            }
        }
        Ok(announced)
    }

    fn send(&mut self, frame: &[u8], address: IpAddr, announced: &mut Announced) -> Result<(), AnnounceError> {
        let result = self.sender.send_to(frame, None).unwrap_or_else(|| Err(Errno::EMSGSIZE.into()));
        match result {
            Ok(()) => {
                announced.sent += 1;
                KillPoint::AcquireFrameSent.reach();
            }
            // What traffic control drops comes back to a packet socket as ENOBUFS, as does a full queue.
            Err(error) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => announced.stopped += 1,
            Err(source) => {
                let (interface, sent) = (self.name.clone(), announced.sent);
                return Err(AnnounceError::Send { address, interface, sent, source });
            }
        }
        Ok(())
    }
}

/// A sender that never receives: the socket has no protocol. pnet's own would be given a copy of every frame of
/// the interface, and turn promiscuous mode on. pnet never sets `PACKET_QDISC_BYPASS`, which would go around the
/// fence, and neither must anything here.
fn open_sender(interface: &Interface) -> io::Result<Box<dyn DataLinkSender>> {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    let config = Config {
        // The protocol that pnet binds the socket to: 0 leaves it without one. The socket stays a raw one, and
        // the kernel reads the type of each frame from its header.
        channel_type: ChannelType::Layer3(0),
        write_timeout: Some(SEND_TIMEOUT),
        promiscuous: false,
        // pnet closes it, also when it fails.
        socket_fd: Some(socket.into_raw_fd()),
        ..Config::default()
    };
    let target = NetworkInterface {
        name: interface.name.clone(),
        description: String::new(),
        index: interface.index,
        mac: None,
        ips: Vec::new(),
        flags: 0,
    };
    match datalink::channel(&target, config)? {
        Channel::Ethernet(sender, _) => Ok(sender),
        _ => Err(Errno::EPROTONOSUPPORT.into()),
    }
}
