//! The two announcements, byte for byte.

use std::net::{Ipv4Addr, Ipv6Addr};

use pnet::packet::arp::{ArpHardwareTypes, ArpOperations, MutableArpPacket};
use pnet::packet::ethernet::{EtherType, EtherTypes, MutableEthernetPacket};
use pnet::packet::icmpv6::ndp::{
    MutableNdpOptionPacket, MutableNeighborAdvertPacket, NdpOptionTypes, NeighborAdvertFlags,
};
use pnet::packet::icmpv6::{Icmpv6Packet, Icmpv6Types, checksum};
use pnet::packet::ip::IpNextHeaderProtocols;
use pnet::packet::ipv6::MutableIpv6Packet;
use pnet::util::MacAddr;

const ETHERNET: usize = 14;
const ARP: usize = 28;
const IPV6: usize = 40;
/// A Neighbor Advertisement with one link-layer address option (RFC 4861 sections 4.4 and 4.6.1).
const ADVERTISEMENT: usize = 32;
const OPTION_AT: usize = 24;

/// The length of a gratuitous ARP frame, without padding.
pub const ARP_FRAME: usize = ETHERNET + ARP;
/// The length of a Neighbor Advertisement frame.
pub const ADVERTISEMENT_FRAME: usize = ETHERNET + IPV6 + ADVERTISEMENT;

const BROADCAST: [u8; 6] = [0xff; 6];
/// The Ethernet group of [`ALL_NODES`] (RFC 2464 section 7).
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Which kind of ARP packet. Some hosts learn only from one of them, so both are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArpOperation {
    /// The announcement of RFC 5227 section 2.3.
    Request,
    /// An answer that nobody asked for (RFC 5944 section 4.6).
    Reply,
}

/// A gratuitous ARP packet: sender and target are the address itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GratuitousArp {
    /// Request or reply.
    pub operation: ArpOperation,
    /// The link-layer address that answers for it.
    pub mac: [u8; 6],
    /// The address that is announced.
    pub address: Ipv4Addr,
}

impl GratuitousArp {
    /// The frame, from the Ethernet header on, to the broadcast address.
    #[must_use]
    pub fn encode(&self) -> [u8; ARP_FRAME] {
        let mut bytes = [0; ARP_FRAME];
        let (header, payload) = bytes.split_at_mut(ETHERNET);
        ethernet(header, BROADCAST, self.mac, EtherTypes::Arp);
        let (operation, target) = match self.operation {
            // RFC 5227 section 1.1: ignored in a request, and zero.
            ArpOperation::Request => (ArpOperations::Request, [0; 6]),
            // RFC 5944 section 4.6: the address that the cache entry should get.
            ArpOperation::Reply => (ArpOperations::Reply, self.mac),
        };
        if let Some(mut arp) = MutableArpPacket::new(payload) {
            arp.set_hardware_type(ArpHardwareTypes::Ethernet);
            arp.set_protocol_type(EtherTypes::Ipv4);
            arp.set_hw_addr_len(6);
            arp.set_proto_addr_len(4);
            arp.set_operation(operation);
            arp.set_sender_hw_addr(mac_addr(self.mac));
            arp.set_sender_proto_addr(self.address);
            arp.set_target_hw_addr(mac_addr(target));
            arp.set_target_proto_addr(self.address);
        }
        bytes
    }
}

/// An unsolicited Neighbor Advertisement for all nodes (RFC 4861 section 7.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighborAdvertisement {
    /// The link-layer address that answers for it.
    pub mac: [u8; 6],
    /// The address that is announced, also the source of the packet.
    pub address: Ipv6Addr,
}

impl NeighborAdvertisement {
    /// The frame, from the Ethernet header on.
    #[must_use]
    pub fn encode(&self) -> [u8; ADVERTISEMENT_FRAME] {
        let mut bytes = [0; ADVERTISEMENT_FRAME];
        let (header, packet) = bytes.split_at_mut(ETHERNET);
        let (ip, icmp) = packet.split_at_mut(IPV6);
        ethernet(header, ALL_NODES_MAC, self.mac, EtherTypes::Ipv6);
        if let Some(mut ip) = MutableIpv6Packet::new(ip) {
            ip.set_version(6);
            #[allow(clippy::cast_possible_truncation)] // 32
            ip.set_payload_length(ADVERTISEMENT as u16);
            ip.set_next_header(IpNextHeaderProtocols::Icmpv6);
            // RFC 4861 section 7.1.2: receivers discard any other.
            ip.set_hop_limit(255);
            ip.set_source(self.address);
            ip.set_destination(ALL_NODES);
        }
        self.advertise(icmp);
        bytes
    }

    fn advertise(&self, bytes: &mut [u8]) {
        if let Some(mut advertisement) = MutableNeighborAdvertPacket::new(bytes) {
            advertisement.set_icmpv6_type(Icmpv6Types::NeighborAdvert);
            // Nobody asked, so not solicited; override, so that caches take the new link-layer address.
            advertisement.set_flags(NeighborAdvertFlags::Override);
            advertisement.set_target_addr(self.address);
        }
        if let Some(mut option) = MutableNdpOptionPacket::new(&mut bytes[OPTION_AT..]) {
            option.set_option_type(NdpOptionTypes::TargetLLAddr);
            option.set_length(1); // in units of 8 octets
            option.set_data(&self.mac);
        }
        let sum = Icmpv6Packet::new(bytes).map(|packet| checksum(&packet, &self.address, &ALL_NODES));
        bytes[2..4].copy_from_slice(&sum.unwrap_or_default().to_be_bytes());
    }
}

fn ethernet(header: &mut [u8], destination: [u8; 6], source: [u8; 6], kind: EtherType) {
    if let Some(mut frame) = MutableEthernetPacket::new(header) {
        frame.set_destination(mac_addr(destination));
        frame.set_source(mac_addr(source));
        frame.set_ethertype(kind);
    }
}

fn mac_addr(octets: [u8; 6]) -> MacAddr {
    octets.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x02, 0x00, 0x5e, 0x10, 0x20, 0x30];

    /// RFC 826, "Packet format", over the frame of RFC 894.
    #[test]
    fn a_gratuitous_request_is_the_announcement_of_rfc_5227() {
        let frame = GratuitousArp { operation: ArpOperation::Request, mac: MAC, address: Ipv4Addr::new(192, 0, 2, 7) };
        #[rustfmt::skip]
        let expected = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, // to all
            0x02, 0x00, 0x5e, 0x10, 0x20, 0x30, // from us
            0x08, 0x06,                         // ARP
            0x00, 0x01, 0x08, 0x00, 6, 4,       // Ethernet, IPv4, lengths
            0x00, 0x01,                         // request
            0x02, 0x00, 0x5e, 0x10, 0x20, 0x30, 192, 0, 2, 7,
            0, 0, 0, 0, 0, 0,                   192, 0, 2, 7,
        ];
        assert_eq!(frame.encode(), expected);
    }

    #[test]
    fn a_gratuitous_reply_names_its_own_link_layer_address_twice() {
        let frame = GratuitousArp { operation: ArpOperation::Reply, mac: MAC, address: Ipv4Addr::new(192, 0, 2, 7) };
        #[rustfmt::skip]
        let expected = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
            0x02, 0x00, 0x5e, 0x10, 0x20, 0x30,
            0x08, 0x06,
            0x00, 0x01, 0x08, 0x00, 6, 4,
            0x00, 0x02,                         // reply
            0x02, 0x00, 0x5e, 0x10, 0x20, 0x30, 192, 0, 2, 7,
            0x02, 0x00, 0x5e, 0x10, 0x20, 0x30, 192, 0, 2, 7,
        ];
        assert_eq!(frame.encode(), expected);
    }

    /// RFC 4861 section 4.4.
    #[test]
    fn an_advertisement_is_that_of_rfc_4861() {
        let address = "2001:db8::7".parse().unwrap();
        let frame = NeighborAdvertisement { mac: MAC, address }.encode();
        #[rustfmt::skip]
        let expected = [
            0x33, 0x33, 0, 0, 0, 1,             // all nodes
            0x02, 0x00, 0x5e, 0x10, 0x20, 0x30,
            0x86, 0xdd,
            0x60, 0, 0, 0, 0, 32, 58, 255,      // version, length, ICMPv6, hop limit
            0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7,
            0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
            136, 0, frame[56], frame[57],       // the checksum is checked below
            0x20, 0, 0, 0,                      // override, neither router nor solicited
            0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7,
            2, 1, 0x02, 0x00, 0x5e, 0x10, 0x20, 0x30,
        ];
        assert_eq!(frame, expected);
    }

    /// RFC 4443 section 2.3, summed here by hand: over the pseudo-header and the message it is all ones.
    #[test]
    fn the_checksum_of_an_advertisement_holds() {
        let frame = NeighborAdvertisement { mac: MAC, address: "fe80::1:2".parse().unwrap() }.encode();
        let mut covered = frame[22..54].to_vec();
        covered.extend([0, 0, 0, 32, 0, 0, 0, 58]);
        covered.extend(&frame[54..]);
        let mut sum: u32 = covered.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        assert_eq!(sum, 0xffff);
    }
}
