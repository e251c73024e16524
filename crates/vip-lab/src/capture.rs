//! Packet sockets: every frame that reaches a host, with the kernel's time of arrival, and frames sent as they are.

use std::io::IoSliceMut;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use nix::cmsg_space;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{ControlMessageOwned, LinkAddr, MsgFlags, recvmsg, sendto, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use socket2::{Domain, Protocol, Socket, Type};

use crate::clock::{Stamp, WallClock};
use crate::frame::{Claim, decode};
use crate::netns::Netns;
use crate::topology::INTERFACE;

/// ARP, IPv4, IPv6. One socket for each instead of one for "all": those for one protocol do not see outgoing frames.
const ETHERTYPES: [u16; 3] = [0x0806, 0x0800, 0x86dd];
/// Room for an announcement of thousands of addresses at once.
const RECEIVE_BUFFER: usize = 16 << 20;

/// The incoming side of one host.
#[derive(Debug)]
pub struct Capture {
    sockets: Vec<Socket>,
    control: Vec<u8>,
}

impl Capture {
    /// Opens the sockets in a host's namespace.
    ///
    /// # Errors
    /// Without CAP_NET_RAW, or when the namespace cannot be entered.
    pub fn open(netns: &Netns) -> Result<Self> {
        let sockets = netns.enter(|| ETHERTYPES.into_iter().map(open_incoming).collect::<Result<Vec<_>>>())?;
        Ok(Self { sockets, control: cmsg_space!(TimeSpec) })
    }

    /// Takes everything that has arrived and hands each claim with its time of arrival to `each`. Does not wait.
    ///
    /// # Errors
    /// When a socket fails for another reason than being empty.
    pub fn drain(&mut self, mut each: impl FnMut(Stamp, Claim)) -> Result<()> {
        let mut buffer = [0; 256];
        for socket in &self.sockets {
            let clock = WallClock::read();
            loop {
                let mut parts = [IoSliceMut::new(&mut buffer)];
                let control = Some(self.control.as_mut_slice());
                let message = match recvmsg::<()>(socket.as_raw_fd(), &mut parts, control, MsgFlags::MSG_DONTWAIT) {
                    Ok(message) => message,
                    Err(nix::Error::EAGAIN) => break,
                    // The interface went down; the socket works again when it is back.
                    Err(nix::Error::EINTR | nix::Error::ENETDOWN) => continue,
                    Err(error) => return Err(error).context("receive from the packet socket"),
                };
                let arrived = message.cmsgs()?.find_map(|control| match control {
                    ControlMessageOwned::ScmTimestampns(time) => Some(clock.stamp(time)),
                    _ => None,
                });
                let length = message.bytes;
                if let Some(claim) = decode(&buffer[..length.min(buffer.len())]) {
                    each(arrived.unwrap_or_else(Stamp::now), claim);
                }
            }
        }
        Ok(())
    }
}

fn open_incoming(ethertype: u16) -> Result<Socket> {
    let protocol = Protocol::from(i32::from(ethertype.to_be()));
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).context("open a packet socket")?;
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true).context("ask for times of arrival")?;
    // Beyond the host's limit, which root of a user namespace may not pass: there the buffer is what the limit allows.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER).context("enlarge the receive buffer")?;
    }
    Ok(socket)
}

/// Sends raw Ethernet frames out of a host's interface.
#[derive(Debug)]
pub struct FrameSender {
    socket: Socket,
    interface: LinkAddr,
}

impl FrameSender {
    /// Opens the socket in a host's namespace.
    ///
    /// # Errors
    /// Without CAP_NET_RAW, or when the host has no such interface.
    pub fn open(netns: &Netns) -> Result<Self> {
        netns.enter(|| {
            // Protocol 0: this socket receives nothing.
            let socket = Socket::new(Domain::PACKET, Type::RAW, None).context("open a packet socket")?;
            let interface = getifaddrs()
                .context("list interfaces")?
                .filter(|entry| entry.interface_name == INTERFACE)
                .find_map(|entry| entry.address?.as_link_addr().copied())
                .with_context(|| format!("no interface {INTERFACE}"))?;
            Ok(Self { socket, interface })
        })
    }

    /// Sends one frame; a failure is not told, as a lost frame would not be either.
    pub fn send(&self, frame: &[u8]) {
        let _ = sendto(self.socket.as_raw_fd(), frame, &self.interface, MsgFlags::MSG_DONTWAIT);
    }
}
