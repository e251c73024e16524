//! The tag of an address, read and written by hand: `ip` knows `IFA_PROTO` only since 6.3. Every offset is that of
//! linux/if_addr.h and linux/netlink.h; nothing here comes from the code under test.

use std::net::{IpAddr, Ipv4Addr};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const REQUEST_ACK_CREATE: u16 = 0x1 | 0x4 | 0x400;
const REQUEST_DUMP: u16 = 0x1 | 0x300;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_PROTO: u16 = 11;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = [&u16::try_from(4 + value.len()).unwrap().to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn ask(kind: u16, flags: u16, body: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut socket = Socket::new(NETLINK_ROUTE).unwrap();
    socket.bind_auto().unwrap();
    socket.connect(&SocketAddr::new(0, 0)).unwrap();
    let length = u32::try_from(16 + body.len()).unwrap();
    let header = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &flags.to_ne_bytes(), &[1, 0, 0, 0, 0, 0, 0, 0]];
    socket.send(&[&header.concat()[..], body].concat(), 0).unwrap();
    let mut messages = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full().unwrap();
        let mut rest = datagram.as_slice();
        while rest.len() >= 16 {
            let length = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
            let kind = u16::from_ne_bytes(rest[4..6].try_into().unwrap());
            messages.push((kind, rest[16..length].to_vec()));
            if kind == NLMSG_ERROR || kind == NLMSG_DONE {
                return messages;
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// Adds an IPv4 address with a /24 and a tag, for ever.
pub fn add4(index: u32, address: &str, tag: u8) {
    let address: Ipv4Addr = address.parse().unwrap();
    let header = [&[2, 24, 0, 0][..], &index.to_ne_bytes()].concat();
    let octets = address.octets();
    let attributes =
        [attribute(IFA_LOCAL, &octets), attribute(IFA_ADDRESS, &octets), attribute(IFA_PROTO, &[tag])].concat();
    let answers = ask(RTM_NEWADDR, REQUEST_ACK_CREATE, &[header, attributes].concat());
    assert_eq!(answers[0].1[..4], [0; 4], "the kernel refused the address");
}

/// The tag of an address, `None` where it has none; panics where there is no such address.
pub fn tag_of(address: &str) -> Option<u8> {
    let address: IpAddr = address.parse().unwrap();
    let octets = match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    for (kind, message) in ask(RTM_GETADDR, REQUEST_DUMP, &[0; 8]) {
        if kind != RTM_NEWADDR {
            continue;
        }
        let (mut tag, mut found) = (None, false);
        let mut rest = &message[8..];
        while rest.len() >= 4 {
            let length = usize::from(u16::from_ne_bytes(rest[..2].try_into().unwrap()));
            let value = &rest[4..length];
            match u16::from_ne_bytes(rest[2..4].try_into().unwrap()) {
                IFA_ADDRESS => found |= value == octets,
                IFA_PROTO => tag = Some(value[0]),
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        if found {
            return tag;
        }
    }
    panic!("no address {address}");
}
