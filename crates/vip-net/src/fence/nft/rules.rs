//! What the fence consists of in nf_tables: one table, its sets, its chains, and the rules that judge a frame.
//!
//! `nft list table netdev vipd` shows it in words.
//!
//! Every field is read by its offset from the link-layer header, and the type from the frame, behind its tags: a
//! packet socket writes what it likes into the socket buffer's protocol, and the neighbours read the frame. nf_tables
//! shows a tag that the card is to insert in its place in the frame.

use std::net::IpAddr;

use super::wire::{Attributes, Kind, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, Step};
use crate::fence::LeaseSlot;
use crate::fence::tc::Direction;

/// The table, in family `netdev`.
pub(super) const TABLE: &str = "vipd";
/// The addresses that are known, IPv4 and IPv6.
pub(super) const VIPS: [&str; 2] = ["vip4", "vip6"];
/// From the addresses of these that are held to their slots. Apart from what is known: where an address moves from one
/// element to another in one transaction, a frame that is being judged may find neither.
pub(super) const HELD: [&str; 2] = ["held4", "held6"];
/// The set of a lease: while it runs it has one element with a timeout, which renews every address that is held under
/// it. The element is what `meta nfproto` is for every frame here, `NFPROTO_NETDEV`: something to look up. A lookup of
/// the slot itself in one set for all leases would be shorter, and the kernel can do it; but the program `nft` aborts
/// when it lists such a rule.
pub(super) fn lease(slot: u32) -> String {
    format!("lease{slot}")
}
/// See [`lease`].
pub(super) const RUNNING: &[u8] = &[5];
/// The tokens of renewals that are under way, each with a timeout.
pub(super) const TOKENS: &str = "tokens";

/// Before everybody else: what others accept, redirect or duplicate before us would get around the fence.
const PRIORITY: i32 = i32::MIN;

/// Elements in one message, whose list is limited to 64 KiB. An IPv6 address with its slot takes 40 bytes.
const ELEMENTS: usize = 1000;

/// `NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST`: nobody but this socket changes the table, and it outlives the socket.
/// Never the first alone, with which the fence would fall with the daemon. Linux 6.9.
pub(super) const OWNED: u32 = 0x2 | 0x4;

const LIST_ELEM: u16 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;

pub(super) const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;

pub(super) const CHAIN_TABLE: u16 = 1;
pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUM: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
pub(super) const HOOK_DEVICE: u16 = 3;
pub(super) const HOOK_DEVICES: u16 = 4;
pub(super) const DEVICE_NAME: u16 = 1;

pub(super) const RULE_TABLE: u16 = 1;
pub(super) const RULE_CHAIN: u16 = 2;
pub(super) const RULE_EXPRESSIONS: u16 = 4;

pub(super) const ELEMENTS_TABLE: u16 = 1;
pub(super) const ELEMENTS_SET: u16 = 2;
pub(super) const ELEMENTS_LIST: u16 = 3;
pub(super) const ELEMENT_KEY: u16 = 1;
pub(super) const ELEMENT_DATA: u16 = 2;
const ELEMENT_TIMEOUT: u16 = 4;
pub(super) const ELEMENT_EXPIRATION: u16 = 5;

const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
/// `NFT_RETURN`, -5.
const RETURN: u32 = u32::MAX - 4;
/// `NFT_JUMP`, -3.
const JUMP: u32 = u32::MAX - 2;

/// A register of 16 bytes.
const REGISTER: u32 = 1;

const ETHERTYPE_AT: u32 = 12;
const TAG_LENGTH: u32 = 4;
const ETH_P_IP: [u8; 2] = [0x08, 0x00];
const ETH_P_ARP: [u8; 2] = [0x08, 0x06];
const ETH_P_IPV6: [u8; 2] = [0x86, 0xdd];
/// 802.1Q and 802.1ad.
const TAGS: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];
const NEXT_HEADER_ICMPV6: u8 = 58;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;
/// linux/if_packet.h: the frame is for another host's Ethernet address.
const PACKET_OTHERHOST: u8 = 3;

// ---- steps ----

const fn step(kind: Kind, flags: u16, attributes: Attributes) -> Step {
    Step { kind, flags, attributes }
}

pub(super) fn delete_table() -> Step {
    step(Kind::DelTable, 0, Attributes::new().text(TABLE_NAME, TABLE))
}

/// The table with its sets and the rules that all interfaces share, empty otherwise.
///
/// `carried`: frames that the host's routes send on through another interface come in; needs `nft_fib_netdev`.
pub(super) fn new_table(flags: u32, carried: bool) -> Vec<Step> {
    let table = Attributes::new().text(TABLE_NAME, TABLE).be32(TABLE_FLAGS, flags);
    let mut steps = vec![step(Kind::NewTable, NLM_F_CREATE | NLM_F_EXCL, table)];
    let addresses = [(IPV4_ADDR, 4), (IPV6_ADDR, 16)];
    for (family, (key_type, key_len)) in addresses.into_iter().enumerate() {
        steps.push(new_set(set(VIPS[family], 0, key_type, key_len)));
        steps.push(new_set(set(HELD[family], SET_MAP, key_type, key_len).be32(6, MARK).be32(7, 4)));
    }
    steps.push(new_set(set(TOKENS, SET_TIMEOUT, MARK, 4)));
    steps.extend(LeaseSlot::ALL.map(|slot| new_set(set(&lease(slot.0), SET_TIMEOUT, NF_PROTO, 1))));
    for direction in Direction::BOTH {
        // A chain must be there before another jumps to it.
        for tags in (0..=MAX_TAGS).rev() {
            steps.extend(judging(direction, tags, carried));
        }
    }
    steps
}

/// `nft`'s numbers for the types of keys; the kernel only keeps them.
const IPV4_ADDR: u32 = 7;
const IPV6_ADDR: u32 = 8;
const NF_PROTO: u32 = 2;
const MARK: u32 = 19;
const SET_MAP: u32 = 0x8;
const SET_TIMEOUT: u32 = 0x10;

fn set(name: &str, flags: u32, key_type: u32, key_len: u32) -> Attributes {
    // The number is for references within the transaction; names do, here.
    let set = Attributes::new().text(1, TABLE).text(2, name).be32(3, flags).be32(4, key_type).be32(5, key_len);
    set.be32(10, 1)
}

const fn new_set(set: Attributes) -> Step {
    step(Kind::NewSet, NLM_F_CREATE | NLM_F_EXCL, set)
}

fn new_chain(name: &str) -> Step {
    let attributes = Attributes::new().text(CHAIN_TABLE, TABLE).text(CHAIN_NAME, name);
    step(Kind::NewChain, NLM_F_CREATE | NLM_F_EXCL, attributes)
}

/// Our chain on one direction of an interface, with the rule that leads to the others.
pub(super) fn new_hook(direction: Direction, index: u32, device: &str) -> [Step; 2] {
    let number = match direction {
        Direction::Ingress => 0,
        Direction::Egress => 1,
    };
    let hook = Attributes::new()
        .be32(HOOK_NUM, number)
        .be32(HOOK_PRIORITY, PRIORITY.cast_unsigned())
        .text(HOOK_DEVICE, device);
    let name = hook_chain(direction, index);
    let chain = Attributes::new()
        .text(CHAIN_TABLE, TABLE)
        .text(CHAIN_NAME, &name)
        .nested(CHAIN_HOOK, &hook)
        .be32(CHAIN_POLICY, NF_ACCEPT)
        .text(CHAIN_TYPE, "filter");
    let jump = Rule::default().jump(&judging_chain(direction, 0));
    [step(Kind::NewChain, NLM_F_CREATE | NLM_F_EXCL, chain), new_rule(&name, &jump)]
}

/// Deletes a chain with its rules: `DelRule` without a rule takes all of them.
pub(super) fn delete_hook(chain: &str) -> [Step; 2] {
    [
        step(Kind::DelRule, 0, Attributes::new().text(RULE_TABLE, TABLE).text(RULE_CHAIN, chain)),
        step(Kind::DelChain, 0, Attributes::new().text(CHAIN_TABLE, TABLE).text(CHAIN_NAME, chain)),
    ]
}

/// The name of our chain on one direction of an interface.
pub(super) fn hook_chain(direction: Direction, index: u32) -> String {
    format!("{}-{index}", direction.name())
}

/// The interface in the name of one of our chains.
pub(super) fn hooked_index(chain: &str) -> Option<(Direction, u32)> {
    let (name, index) = chain.split_once('-')?;
    let direction = Direction::BOTH.into_iter().find(|direction| direction.name() == name)?;
    Some((direction, index.parse().ok()?))
}

fn elements(kind: Kind, flags: u16, set: &str, list: &Attributes) -> Step {
    let attributes = Attributes::new().text(ELEMENTS_TABLE, TABLE).text(ELEMENTS_SET, set).nested(ELEMENTS_LIST, list);
    step(kind, flags, attributes)
}

fn key(value: &[u8]) -> Attributes {
    Attributes::new().nested(ELEMENT_KEY, &Attributes::new().bytes(DATA_VALUE, value))
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// One step or more for each family, with so many elements as fit.
fn change(
    kind: Kind,
    flags: u16,
    sets: [&str; 2],
    addresses: &[IpAddr],
    element: impl Fn(Attributes) -> Attributes,
) -> Vec<Step> {
    let mut steps = Vec::new();
    for (set, is_ipv4) in sets.into_iter().zip([true, false]) {
        let family: Vec<IpAddr> = addresses.iter().copied().filter(|address| address.is_ipv4() == is_ipv4).collect();
        for chunk in family.chunks(ELEMENTS) {
            let add = |list: Attributes, address: &IpAddr| list.nested(LIST_ELEM, &element(key(&octets(*address))));
            steps.push(elements(kind, flags, set, &chunk.iter().fold(Attributes::new(), add)));
        }
    }
    steps
}

/// Makes addresses known that are not.
pub(super) fn know(addresses: &[IpAddr]) -> Vec<Step> {
    change(Kind::NewElement, NLM_F_CREATE | NLM_F_EXCL, VIPS, addresses, |key| key)
}

/// Forgets addresses that are known.
pub(super) fn forget(addresses: &[IpAddr]) -> Vec<Step> {
    change(Kind::DelElement, 0, VIPS, addresses, |key| key)
}

/// Holds addresses that are shut.
pub(super) fn hold(addresses: &[IpAddr], slot: u32) -> Vec<Step> {
    let data = Attributes::new().bytes(DATA_VALUE, &slot.to_ne_bytes());
    let element = |key: Attributes| key.nested(ELEMENT_DATA, &data);
    change(Kind::NewElement, NLM_F_CREATE | NLM_F_EXCL, HELD, addresses, element)
}

/// Shuts addresses that are held.
pub(super) fn shut(addresses: &[IpAddr]) -> Vec<Step> {
    change(Kind::DelElement, 0, HELD, addresses, |key| key)
}

/// Adds an element that ends by itself. `milliseconds` must be a tick at least: to the kernel 0 means for ever.
pub(super) fn add_timed(set: &str, value: &[u8], milliseconds: u64) -> Step {
    let element = key(value).be64(ELEMENT_TIMEOUT, milliseconds);
    elements(Kind::NewElement, NLM_F_CREATE | NLM_F_EXCL, set, &Attributes::new().nested(LIST_ELEM, &element))
}

/// Removes an element that is there, and has not ended.
pub(super) fn remove_timed(set: &str, value: &[u8]) -> Step {
    elements(Kind::DelElement, 0, set, &Attributes::new().nested(LIST_ELEM, &key(value)))
}

/// Removes all elements of a set; none is fine.
pub(super) fn flush(set: &str) -> Step {
    step(Kind::DelElement, 0, Attributes::new().text(ELEMENTS_TABLE, TABLE).text(ELEMENTS_SET, set))
}

/// Asks for the elements of a set.
pub(super) fn elements_of(set: &str) -> Attributes {
    Attributes::new().text(ELEMENTS_TABLE, TABLE).text(ELEMENTS_SET, set)
}

// ---- rules ----

/// Tags in a frame that are stepped over (802.1ad).
const MAX_TAGS: u32 = 2;

/// The chain that judges frames with this many tags before the type.
fn judging_chain(direction: Direction, tags: u32) -> String {
    match tags {
        0 => direction.name().to_owned(),
        tags => format!("{}_tags{tags}", direction.name()),
    }
}

/// One place in a frame that speaks for an address.
struct Place {
    /// For the name of its chain.
    name: &'static str,
    /// What the frame is.
    frame: Rule,
    /// 0 for IPv4, 1 for IPv6.
    family: usize,
    offset: u32,
    length: u32,
}

fn places(direction: Direction, ethertype: u32) -> Vec<Place> {
    let at = ethertype + 2;
    let of_type = |kind: [u8; 2]| Rule::default().is(ethertype, &kind);
    let place4 = |name, kind, offset| Place { name, frame: of_type(kind), family: 0, offset, length: 4 };
    let place6 = |name, frame, offset| Place { name, frame, family: 1, offset, length: 16 };
    let ipv6 = || of_type(ETH_P_IPV6);
    match direction {
        Direction::Egress => vec![
            // RFC 826: requests carry the sender's mapping just as replies do.
            place4("arp", ETH_P_ARP, at + 14),
            place4("ip", ETH_P_IP, at + 12),
            place6("ip6", ipv6(), at + 8),
            // RFC 4861 section 4.4: the target is the address that is advertised, whatever the source is.
            place6("na", ipv6().is(at + 6, &[NEXT_HEADER_ICMPV6]).is(at + 40, &[NEIGHBOR_ADVERTISEMENT]), at + 48),
        ],
        // ARP and neighbour discovery come in, so that this host learns of the next owner.
        Direction::Ingress => vec![place4("ip", ETH_P_IP, at + 16), place6("ip6", ipv6(), at + 24)],
    }
}

/// The chains that judge frames with this many tags: one for each place, where known addresses end up, and the one that
/// leads there.
///
/// A frame of a known address leaves its chain only by a look at its slot and at the lease of that slot. So whatever
/// changes meanwhile, it does not slip through between two rules.
fn judging(direction: Direction, tags: u32, carried: bool) -> Vec<Step> {
    let ethertype = ETHERTYPE_AT + tags * TAG_LENGTH;
    let chain = judging_chain(direction, tags);
    let mut steps = Vec::new();
    let mut rules = Vec::new();
    if direction == Direction::Ingress && tags == 0 {
        // Bridged: where a bridge, VLAN or macvlan of this host takes it, it is judged again there.
        rules.push(Rule::default().other_host().verdict(NF_ACCEPT));
    }
    for Place { name, frame, family, offset, length } in places(direction, ethertype) {
        let of_place = format!("{chain}_{name}");
        steps.push(new_chain(&of_place));
        for slot in LeaseSlot::ALL {
            let leased = Rule::default().slot(HELD[family], offset, length).compare(EQUAL, &slot.0.to_ne_bytes());
            steps.push(new_rule(&of_place, &leased.running(slot.0).verdict(RETURN)));
        }
        if carried && direction == Direction::Ingress {
            steps.push(new_rule(&of_place, &Rule::default().routed_on().verdict(NF_ACCEPT)));
        }
        steps.push(new_rule(&of_place, &Rule::default().verdict(NF_DROP)));
        rules.push(frame.known(VIPS[family], offset, length).jump(&of_place));
    }
    if tags < MAX_TAGS {
        let deeper = judging_chain(direction, tags + 1);
        rules.extend(TAGS.map(|tag| Rule::default().is(ethertype, &tag).jump(&deeper)));
    }
    steps.push(new_chain(&chain));
    steps.extend(rules.iter().map(|rule| new_rule(&chain, rule)));
    steps
}

/// The expressions of a rule: each goes on to the next one, or ends the rule.
#[derive(Clone, Debug, Default)]
struct Rule(Attributes);

impl Rule {
    fn expression(self, name: &str, data: &Attributes) -> Self {
        let expression = Attributes::new().text(1, name).nested(2, data);
        Self(self.0.nested(LIST_ELEM, &expression))
    }

    /// Reads from the link-layer header on (`NFT_PAYLOAD_LL_HEADER`).
    fn load(self, offset: u32, length: u32) -> Self {
        let data = Attributes::new().be32(1, REGISTER).be32(2, 0).be32(3, offset).be32(4, length);
        self.expression("payload", &data)
    }

    fn compare(self, operation: u32, value: &[u8]) -> Self {
        let value = Attributes::new().bytes(DATA_VALUE, value);
        self.expression("cmp", &Attributes::new().be32(1, REGISTER).be32(2, operation).nested(3, &value))
    }

    fn is(self, offset: u32, value: &[u8]) -> Self {
        self.load(offset, u32::try_from(value.len()).unwrap_or_default()).compare(EQUAL, value)
    }

    /// The address at `offset` is known.
    fn known(self, vips: &str, offset: u32, length: u32) -> Self {
        let lookup = Attributes::new().text(1, vips).be32(2, REGISTER);
        self.load(offset, length).expression("lookup", &lookup)
    }

    /// Loads the slot of the address at `offset`; ends the rule where the address is not held.
    fn slot(self, held: &str, offset: u32, length: u32) -> Self {
        let lookup = Attributes::new().text(1, held).be32(2, REGISTER).be32(3, REGISTER);
        self.load(offset, length).expression("lookup", &lookup)
    }

    /// The lease of the slot runs.
    fn running(self, slot: u32) -> Self {
        const META_NFPROTO: u32 = 15;
        let lookup = Attributes::new().text(1, &lease(slot)).be32(2, REGISTER);
        self.expression("meta", &Attributes::new().be32(1, REGISTER).be32(2, META_NFPROTO))
            .expression("lookup", &lookup)
    }

    /// `meta pkttype other`
    fn other_host(self) -> Self {
        const META_PKTTYPE: u32 = 19;
        self.expression("meta", &Attributes::new().be32(1, REGISTER).be32(2, META_PKTTYPE))
            .compare(EQUAL, &[PACKET_OTHERHOST])
    }

    /// This host's routes send the frame on, and not back where it came from. Its own addresses have no such route.
    fn routed_on(self) -> Self {
        const DESTINATION: u32 = 0x2;
        const INCOMING_INTERFACE: u32 = 0x8;
        self.route(DESTINATION)
            .compare(NOT_EQUAL, &[0; 4])
            .route(DESTINATION | INCOMING_INTERFACE)
            .compare(EQUAL, &[0; 4])
    }

    /// The interface that the route leaves through, 0 where there is none.
    fn route(self, by: u32) -> Self {
        const RESULT_INTERFACE: u32 = 1;
        self.expression("fib", &Attributes::new().be32(1, REGISTER).be32(2, RESULT_INTERFACE).be32(3, by))
    }

    fn verdict(self, code: u32) -> Self {
        self.immediate(&Attributes::new().be32(1, code))
    }

    fn jump(self, chain: &str) -> Self {
        self.immediate(&Attributes::new().be32(1, JUMP).text(2, chain))
    }

    fn immediate(self, verdict: &Attributes) -> Self {
        let data = Attributes::new().nested(DATA_VERDICT, verdict);
        self.expression("immediate", &Attributes::new().be32(1, 0).nested(2, &data))
    }
}

const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;

fn new_rule(chain: &str, rule: &Rule) -> Step {
    let attributes =
        Attributes::new().text(RULE_TABLE, TABLE).text(RULE_CHAIN, chain).nested(RULE_EXPRESSIONS, &rule.0);
    step(Kind::NewRule, NLM_F_CREATE | NLM_F_APPEND, attributes)
}
