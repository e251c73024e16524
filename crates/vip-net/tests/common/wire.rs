//! Frames that the peer sends and looks for, written down by offset: nothing here comes from the code under test.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{HOST_MAC, PEER_MAC, PEER4, PEER6};

pub fn is_from_host(frame: &[u8]) -> bool {
    frame.get(6..12) == Some(&HOST_MAC)
}

fn ethernet(destination: [u8; 6], source: [u8; 6], kind: [u8; 2]) -> Vec<u8> {
    [&destination[..], &source, &kind].concat()
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}

/// Who has `target`? Tell the peer.
pub fn arp_request(target: Ipv4Addr) -> Vec<u8> {
    arp([0xff; 6], PEER_MAC, 1, PEER4, target)
}

/// An ARP packet with the host as its sender.
pub fn arp_from_host(operation: u8, sender: Ipv4Addr) -> Vec<u8> {
    arp(PEER_MAC, HOST_MAC, operation, sender, PEER4)
}

fn arp(destination: [u8; 6], source: [u8; 6], operation: u8, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(destination, source, [0x08, 0x06]);
    frame.extend([0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend(source);
    frame.extend(sender.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

/// The frame with an 802.1Q tag, or an 802.1ad one around it.
pub fn tagged(frame: &[u8], tag: [u8; 2]) -> Vec<u8> {
    [&frame[..12], &tag, &[0, 7], &frame[12..]].concat()
}

/// An ARP packet of the host, request or reply, whose sender is the address.
pub fn is_arp_of(frame: &[u8], sender: Ipv4Addr) -> bool {
    frame.get(12..14) == Some(&[0x08, 0x06]) && frame.get(28..32) == Some(&sender.octets())
}

pub fn echo4(target: Ipv4Addr) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 28, 0, 1, 0, 0, 64, 1, 0, 0];
    ip.extend(PEER4.octets());
    ip.extend(target.octets());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    let mut icmp = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1];
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum);
    [ethernet(HOST_MAC, PEER_MAC, [0x08, 0x00]), ip, icmp].concat()
}

pub fn is_echo_reply4(frame: &[u8], source: Ipv4Addr) -> bool {
    is_ip4(frame, 1, source) && frame[34] == 0
}

fn is_ip4(frame: &[u8], protocol: u8, source: Ipv4Addr) -> bool {
    frame.get(12..14) == Some(&[0x08, 0x00]) && frame[23] == protocol && frame.get(26..30) == Some(&source.octets())
}

/// A SYN to port 80.
pub fn syn4(target: Ipv4Addr) -> Vec<u8> {
    let mut ip = vec![0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0];
    ip.extend(PEER4.octets());
    ip.extend(target.octets());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    let pseudo = [&PEER4.octets()[..], &target.octets(), &[0, 6, 0, 20]].concat();
    [ethernet(HOST_MAC, PEER_MAC, [0x08, 0x00]), ip, syn(&pseudo)].concat()
}

pub fn syn6(target: Ipv6Addr) -> Vec<u8> {
    let addresses = [PEER6.octets(), target.octets()].concat();
    let segment = syn(&[&addresses[..], &[0, 0, 0, 20, 0, 0, 0, 6]].concat());
    let header = vec![0x60, 0, 0, 0, 0, 20, 6, 64];
    [ethernet(HOST_MAC, PEER_MAC, [0x86, 0xdd]), header, addresses, segment].concat()
}

fn syn(pseudo: &[u8]) -> Vec<u8> {
    let mut segment = vec![0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0];
    let sum = checksum(&[pseudo, &segment].concat());
    segment[16..18].copy_from_slice(&sum);
    segment
}

pub fn is_tcp4(frame: &[u8], source: Ipv4Addr) -> bool {
    is_ip4(frame, 6, source)
}

pub fn is_tcp6(frame: &[u8], source: Ipv6Addr) -> bool {
    frame.get(12..14) == Some(&[0x86, 0xdd]) && frame.get(22..38) == Some(&source.octets()) && frame[20] == 6
}

fn icmp6(mac: [u8; 6], destination: Ipv6Addr, mut message: Vec<u8>) -> Vec<u8> {
    let length = u8::try_from(message.len()).unwrap();
    let addresses = [PEER6.octets(), destination.octets()].concat();
    let pseudo = [&addresses[..], &[0, 0, 0, length, 0, 0, 0, 58], &message].concat();
    let sum = checksum(&pseudo);
    message[2..4].copy_from_slice(&sum);
    let header = vec![0x60, 0, 0, 0, 0, length, 58, 255];
    [ethernet(mac, PEER_MAC, [0x86, 0xdd]), header, addresses, message].concat()
}

/// A Neighbor Solicitation to the solicited-node group (RFC 4861 section 4.3).
pub fn solicitation(target: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = target.octets();
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    message.extend([1, 1]);
    message.extend(PEER_MAC);
    icmp6([0x33, 0x33, 0xff, a, b, c], group, message)
}

pub fn echo6(target: Ipv6Addr) -> Vec<u8> {
    icmp6(HOST_MAC, target, vec![128, 0, 0, 0, 0x12, 0x34, 0, 1])
}

pub fn is_echo_reply6(frame: &[u8], source: Ipv6Addr) -> bool {
    is_icmp6(frame, 129) && frame.get(22..38) == Some(&source.octets())
}

pub fn is_advertisement_of(frame: &[u8], target: Ipv6Addr) -> bool {
    is_icmp6(frame, 136) && frame.get(62..78) == Some(&target.octets())
}

fn is_icmp6(frame: &[u8], kind: u8) -> bool {
    frame.get(12..14) == Some(&[0x86, 0xdd]) && frame.get(20) == Some(&58) && frame.get(54) == Some(&kind)
}
