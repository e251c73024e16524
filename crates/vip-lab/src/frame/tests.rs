use super::*;

const HOST: [u8; 6] = [2, 0, 0, 0, 0, 1];
const VIP4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x100);
const ASKER6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x201);

fn arp(operation: u8, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = arp_request(HOST, sender, target);
    frame[21] = operation;
    frame
}

fn ipv6(source: Ipv6Addr, icmp: &[u8]) -> Vec<u8> {
    let mut frame = ethernet([2; 6], HOST, ETHERTYPE_IPV6);
    frame.extend([0x60, 0, 0, 0, 0, 0, PROTOCOL_ICMPV6, 255]);
    frame.extend(source.octets());
    frame.extend(ASKER6.octets());
    frame.extend(icmp);
    frame
}

fn advertisement(flags: u8) -> Vec<u8> {
    let mut icmp = vec![ICMPV6_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
    icmp.extend(VIP6.octets());
    ipv6(HOST_LINK_LOCAL, &icmp)
}

const HOST_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

fn claim(frame: &[u8]) -> Option<(IpAddr, AnswerKind)> {
    decode(frame).map(|claim| (claim.address, claim.kind))
}

#[test]
fn an_arp_packet_claims_its_sender_address() {
    let asker = Ipv4Addr::new(10, 77, 0, 201);
    assert_eq!(claim(&arp(2, VIP4, asker)), Some((VIP4.into(), AnswerKind::Arp)));
    assert_eq!(claim(&arp(1, VIP4, asker)), Some((VIP4.into(), AnswerKind::Other)));
    assert_eq!(claim(&arp(1, VIP4, VIP4)), Some((VIP4.into(), AnswerKind::Announcement)));
    assert_eq!(claim(&arp(2, VIP4, VIP4)), Some((VIP4.into(), AnswerKind::Announcement)));
}

#[test]
fn an_arp_probe_claims_nothing() {
    assert_eq!(claim(&arp(1, Ipv4Addr::UNSPECIFIED, VIP4)), None);
}

#[test]
fn an_advertisement_claims_its_target_and_not_its_source() {
    assert_eq!(claim(&advertisement(FLAG_SOLICITED)), Some((VIP6.into(), AnswerKind::Ndp)));
    assert_eq!(claim(&advertisement(0x20)), Some((VIP6.into(), AnswerKind::Announcement)));
}

#[test]
fn an_echo_reply_brings_the_send_time_back() {
    let sent = Stamp::from_millis(1234);
    let mut icmp = echo_request(VIP6.into(), 7, sent);
    icmp[0] = ICMPV6_ECHO_REPLY;
    let claim = decode(&ipv6(VIP6, &icmp)).expect("a claim");
    assert_eq!((claim.address, claim.kind, claim.echo_sent), (VIP6.into(), AnswerKind::Echo, Some(sent)));

    let mut frame = ethernet([2; 6], HOST, ETHERTYPE_IPV4);
    frame.extend([0x45, 0, 0, 0, 0, 0, 0, 0, 64, PROTOCOL_ICMP, 0, 0]);
    frame.extend(VIP4.octets());
    frame.extend([10, 77, 0, 200]);
    let mut icmp = echo_request(VIP4.into(), 7, sent);
    icmp[0] = ICMP_ECHO_REPLY;
    frame.extend(icmp);
    assert_eq!(decode(&frame).expect("a claim").echo_sent, Some(sent));
}

#[test]
fn any_packet_from_an_address_claims_it() {
    assert_eq!(claim(&ipv6(VIP6, &[1, 2, 3, 4])), Some((VIP6.into(), AnswerKind::Other)));
}

#[test]
fn a_frame_cut_short_anywhere_is_no_panic() {
    for frame in [arp(2, VIP4, VIP4), advertisement(0), neighbour_solicitation(HOST, ASKER6, VIP6)] {
        for end in 0..frame.len() {
            let _ = decode(&frame[..end]);
        }
    }
}

#[test]
fn a_solicitation_goes_to_the_group_of_its_target_with_a_valid_checksum() {
    let frame = neighbour_solicitation(HOST, ASKER6, VIP6);
    assert_eq!(frame[..6], [0x33, 0x33, 0xff, 0, 1, 0]);
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0x100);
    assert_eq!(frame[38..54], group.octets());
    assert_eq!(icmpv6_checksum(ASKER6, group, &frame[54..]), 0, "a message with its sum in place sums to zero");
}
