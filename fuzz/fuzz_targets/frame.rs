//! Announcements that vip-net builds say to vip-lab's decoder, which shares no code with them, what they were asked to
//! say; and that decoder takes any bytes.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libfuzzer_sys::fuzz_target;

#[rustfmt::skip] // formatted where it belongs
#[path = "../../crates/vip-net/src/announce/frame.rs"]
mod announce;
#[rustfmt::skip] // formatted where it belongs
#[path = "../../crates/vip-lab/src/clock.rs"]
#[allow(dead_code, reason = "only the stamps of probes are needed")]
mod clock;
#[rustfmt::skip] // formatted where it belongs
#[path = "../../crates/vip-lab/src/frame.rs"]
mod frame;

/// What the decoder needs of crates/vip-lab/src/judge.rs.
mod judge {
    /// As there.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum AnswerKind {
        Arp,
        Ndp,
        Echo,
        Announcement,
        Other,
    }
}

use announce::{ArpOperation, GratuitousArp, NeighborAdvertisement};
use clock::Stamp;
use frame::{Claim, decode, echo_request, question};
use judge::AnswerKind;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else { return };
    match kind {
        b'q' => arp(rest, ArpOperation::Request),
        b'r' => arp(rest, ArpOperation::Reply),
        b'n' => advertisement(rest),
        b'?' => questions(rest),
        b'e' => echo(rest),
        _ => any(rest),
    }
});

fn arp(bytes: &[u8], operation: ArpOperation) {
    let Some((mac, rest)) = array::<6>(bytes) else { return };
    let Some((address, _)) = array::<4>(rest) else { return };
    let address = Ipv4Addr::from(address);
    let frame = GratuitousArp { operation, mac, address }.encode();
    announces(&frame, mac, address.into(), address.is_unspecified());
}

fn advertisement(bytes: &[u8]) {
    let Some((mac, rest)) = array::<6>(bytes) else { return };
    let Some((address, _)) = array::<16>(rest) else { return };
    let address = Ipv6Addr::from(address);
    let frame = NeighborAdvertisement { mac, address }.encode();
    announces(&frame, mac, address.into(), false);
    assert!(checksum_holds(&frame), "the checksum of {frame:?}");
}

/// Also with something behind it, as short frames come from the wire; cut anywhere, it is no claim to anything else.
fn announces(frame: &[u8], mac: [u8; 6], address: IpAddr, is_probe: bool) {
    let asked = Claim { mac, address, kind: AnswerKind::Announcement, to_group: true, echo_sent: None };
    let expected = (!is_probe).then_some(asked);
    assert_eq!(decode(frame), expected);
    assert_eq!(decode(&[frame, &[0; 18]].concat()), expected);
    for end in 0..frame.len() {
        if let Some(claim) = decode(&frame[..end]) {
            assert_eq!(Some(claim), expected, "cut to {end}");
        }
    }
}

/// The lab's own questions claim the asker's address, and nothing else.
fn questions(bytes: &[u8]) {
    let Some((mac, rest)) = array::<6>(bytes) else { return };
    let Some((own, rest)) = array::<16>(rest) else { return };
    let Some((target, _)) = array::<16>(rest) else { return };
    let (own6, target6) = (Ipv6Addr::from(own), Ipv6Addr::from(target));
    let frame = question(mac, Ipv4Addr::UNSPECIFIED, own6, target6.into());
    let asked = Claim { mac, address: own6.into(), kind: AnswerKind::Other, to_group: true, echo_sent: None };
    assert_eq!(decode(&frame), Some(asked));
    assert!(checksum_holds(&frame), "the checksum of {frame:?}");
    let short = |octets: [u8; 16]| Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]);
    let (own4, target4) = (short(own), short(target));
    let claim = decode(&question(mac, own4, own6, target4.into()));
    assert_eq!(claim.map(|claim| claim.address), (!own4.is_unspecified()).then_some(own4.into()));
}

/// An echo request, turned into its reply, brings its time back.
fn echo(bytes: &[u8]) {
    let Some((source, rest)) = array::<16>(bytes) else { return };
    let Some((sent, options)) = array::<8>(rest) else { return };
    let sent = Stamp::from_nanos(u64::from_be_bytes(sent));
    let source6 = Ipv6Addr::from(source);
    let mut icmp = echo_request(source6.into(), 7, sent);
    icmp[0] = 129;
    let mut frame = [&[2; 12][..], &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 58, 64], &source, &[0; 16]].concat();
    frame.extend(&icmp);
    let claim = decode(&frame).map(|claim| (claim.address, claim.kind, claim.echo_sent));
    assert_eq!(claim, Some((source6.into(), AnswerKind::Echo, Some(sent))));

    let source4 = Ipv4Addr::new(source[0], source[1], source[2], source[3]);
    let mut icmp = echo_request(source4.into(), 7, sent);
    icmp[0] = 0;
    // With options in the header, in whole words.
    let words = (options.len() / 4).min(10);
    let mut frame = [&[2; 12][..], &[8, 0, 0x45 + words as u8, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0]].concat();
    frame.extend([&source[..4], &[0; 4], &options[..words * 4], &icmp].concat());
    let claim = decode(&frame).map(|claim| (claim.address, claim.kind, claim.echo_sent));
    assert_eq!(claim, Some((source4.into(), AnswerKind::Echo, Some(sent))));
}

/// A claim comes from the frame: its address stands in there.
fn any(bytes: &[u8]) {
    let Some(claim) = decode(bytes) else { return };
    assert_eq!(claim.mac[..], bytes[6..12]);
    assert_eq!(claim.to_group, bytes[0] & 1 == 1);
    let stands = match claim.address {
        IpAddr::V4(address) => bytes.windows(4).any(|window| window == address.octets()),
        IpAddr::V6(address) => bytes.windows(16).any(|window| window == address.octets()),
    };
    assert!(stands, "{claim:?}");
    assert!(claim.echo_sent.is_none() || claim.kind == AnswerKind::Echo);
}

/// RFC 4443 section 2.3, for an IPv6 frame without extension headers: the ones' complement sum is all ones.
fn checksum_holds(frame: &[u8]) -> bool {
    let length = u16::from_be_bytes([frame[18], frame[19]]);
    let message = &frame[54..];
    let covered = [&frame[22..54], &u32::from(length).to_be_bytes(), &[0, 0, 0, 58], message].concat();
    let mut sum: u32 = covered.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    usize::from(length) == message.len() && sum == 0xffff
}

fn array<const N: usize>(bytes: &[u8]) -> Option<([u8; N], &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    Some((*head, rest))
}
