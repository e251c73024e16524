//! Ethernet frames: what a received one claims, and the questions that the lab sends. Pure, and strict about lengths.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::clock::Stamp;
use crate::judge::AnswerKind;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ARP_REQUEST: u16 = 1;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_ICMPV6: u8 = 58;
const ICMP_ECHO_REQUEST: u8 = 8;
const ICMP_ECHO_REPLY: u8 = 0;
const ICMPV6_ECHO_REQUEST: u8 = 128;
const ICMPV6_ECHO_REPLY: u8 = 129;
const ICMPV6_SOLICITATION: u8 = 135;
const ICMPV6_ADVERTISEMENT: u8 = 136;
/// RFC 4861 4.4: the S flag, second bit of the flags byte.
const FLAG_SOLICITED: u8 = 0x40;
/// Marks the payload of our own probes; the send time follows.
const MAGIC: [u8; 8] = *b"vip-lab\x01";

/// What a frame says by the mere fact that it was sent: "`address` is at `mac`".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The Ethernet source.
    pub mac: [u8; 6],
    /// The address that the sender speaks for.
    pub address: IpAddr,
    /// In which way.
    pub kind: AnswerKind,
    /// Whether the frame went to everybody.
    pub to_group: bool,
    /// For the answer to one of our probes: when the probe was sent.
    pub echo_sent: Option<Stamp>,
}

/// Reads the claim of a frame: any ARP packet by its sender address, a neighbour advertisement by its target, any
/// other IP packet by its source. `None` for frames that claim nothing and for those that are cut short.
#[must_use]
pub fn decode(frame: &[u8]) -> Option<Claim> {
    let mac: [u8; 6] = array(frame, 6)?;
    let to_group = frame.first()? & 1 == 1;
    let body = frame.get(14..)?;
    let (address, kind, echo_sent) = match u16_at(frame, 12)? {
        ETHERTYPE_ARP => decode_arp(body)?,
        ETHERTYPE_IPV4 => decode_ipv4(body)?,
        ETHERTYPE_IPV6 => decode_ipv6(body)?,
        _ => return None,
    };
    Some(Claim { mac, address, kind, to_group, echo_sent })
}

type Spoken = (IpAddr, AnswerKind, Option<Stamp>);

/// RFC 826, for Ethernet and IPv4. A sender address of zero is a probe (RFC 5227) and claims nothing.
fn decode_arp(body: &[u8]) -> Option<Spoken> {
    if body.get(..6)? != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    let sender = Ipv4Addr::from(array::<4>(body, 14)?);
    let target = Ipv4Addr::from(array::<4>(body, 24)?);
    let request = u16_at(body, 6)? == ARP_REQUEST;
    let kind = match (sender == target, request) {
        (true, _) => AnswerKind::Announcement,
        (false, false) => AnswerKind::Arp,
        (false, true) => AnswerKind::Other,
    };
    (!sender.is_unspecified()).then_some((IpAddr::V4(sender), kind, None))
}

fn decode_ipv4(body: &[u8]) -> Option<Spoken> {
    let header_len = usize::from(body.first()? & 0x0f) * 4;
    let source = IpAddr::V4(Ipv4Addr::from(array::<4>(body, 12)?));
    let payload = body.get(header_len..)?;
    let echo = *body.get(9)? == PROTOCOL_ICMP && *payload.first()? == ICMP_ECHO_REPLY;
    Some(if echo { (source, AnswerKind::Echo, probe_sent(payload)) } else { (source, AnswerKind::Other, None) })
}

fn decode_ipv6(body: &[u8]) -> Option<Spoken> {
    let source = IpAddr::V6(Ipv6Addr::from(array::<16>(body, 8)?));
    let payload = body.get(40..)?;
    if *body.get(6)? != PROTOCOL_ICMPV6 {
        return Some((source, AnswerKind::Other, None));
    }
    match *payload.first()? {
        ICMPV6_ECHO_REPLY => Some((source, AnswerKind::Echo, probe_sent(payload))),
        ICMPV6_ADVERTISEMENT => {
            let target = IpAddr::V6(Ipv6Addr::from(array::<16>(payload, 8)?));
            let solicited = payload.get(4)? & FLAG_SOLICITED != 0;
            Some((target, if solicited { AnswerKind::Ndp } else { AnswerKind::Announcement }, None))
        }
        _ => Some((source, AnswerKind::Other, None)),
    }
}

fn probe_sent(icmp: &[u8]) -> Option<Stamp> {
    (array::<8>(icmp, 8)? == MAGIC).then_some(())?;
    Some(Stamp::from_nanos(u64::from_be_bytes(array(icmp, 16)?)))
}

/// An echo request for a datagram ICMP socket, which fills in identifier and checksum. It carries its send time.
#[must_use]
pub fn echo_request(to: IpAddr, sequence: u16, sent: Stamp) -> Vec<u8> {
    let kind = if to.is_ipv4() { ICMP_ECHO_REQUEST } else { ICMPV6_ECHO_REQUEST };
    let mut packet = vec![kind, 0, 0, 0, 0, 0];
    packet.extend(sequence.to_be_bytes());
    packet.extend(MAGIC);
    packet.extend(sent.nanos().to_be_bytes());
    packet
}

/// "Who has `target`?" as a broadcast: an ARP request, or a neighbour solicitation to the solicited-node group.
#[must_use]
pub fn question(mac: [u8; 6], own4: Ipv4Addr, own6: Ipv6Addr, target: IpAddr) -> Vec<u8> {
    match target {
        IpAddr::V4(target) => arp_request(mac, own4, target),
        IpAddr::V6(target) => neighbour_solicitation(mac, own6, target),
    }
}

fn arp_request(mac: [u8; 6], own: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet([0xff; 6], mac, ETHERTYPE_ARP);
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(own.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

/// RFC 4861 4.3, with the source link-layer address so that the answer needs no question back.
fn neighbour_solicitation(mac: [u8; 6], own: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = target.octets();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    let mut icmp = vec![ICMPV6_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    icmp.extend(target.octets());
    icmp.extend([1, 1]);
    icmp.extend(mac);
    let sum = icmpv6_checksum(own, group, &icmp).to_be_bytes();
    icmp[2..4].copy_from_slice(&sum);

    let mut frame = ethernet([0x33, 0x33, 0xff, a, b, c], mac, ETHERTYPE_IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(u16::try_from(icmp.len()).unwrap_or(u16::MAX).to_be_bytes());
    // Hop limit 255: a receiver discards anything less (RFC 4861 7.1.1).
    frame.extend([PROTOCOL_ICMPV6, 255]);
    frame.extend(own.octets());
    frame.extend(group.octets());
    frame.extend(icmp);
    frame
}

fn ethernet(to: [u8; 6], from: [u8; 6], ethertype: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(96);
    frame.extend(to);
    frame.extend(from);
    frame.extend(ethertype.to_be_bytes());
    frame
}

/// The Internet checksum over pseudo-header and message (RFC 8200 8.1).
fn icmpv6_checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let words = |bytes: &[u8]| -> u32 {
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum()
    };
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut sum = words(&from.octets()) + words(&to.octets()) + length + u32::from(PROTOCOL_ICMPV6) + words(message);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests;
