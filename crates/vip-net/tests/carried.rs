//! What a standby host carries for others and what it makes itself: frames of its containers and of the owner of
//! an address pass, its own never do.

#![allow(clippy::unwrap_used)] // tests: a panic is the verdict

#[macro_use]
mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

use common::{Answers, Elsewhere, SILENCE, World, between_two_fenced_hosts, ip, run, tell_skipped, wire};
use vip_net::clock::boot_now;
use vip_net::fence::{Fence, FenceKind, LeaseSlot};
use vip_net::link::ethernet_interfaces;

const VIP4: &str = "10.9.0.7";
const VIP6: &str = "2001:db8::7";
const MUTE: Answers = Answers { resolves: false, echoes: false, connects: false };

for_each_kind! {
    a_standby_host_with_the_address_is_silent_beside_the_owner,
    each_direction_keeps_the_host_silent_for_what_it_sees,
    an_answer_of_a_container_that_nat_gives_the_address_to_stays_in,
}

fn vips() -> [IpAddr; 2] {
    [VIP4.parse().unwrap(), VIP6.parse().unwrap()]
}

/// By the operator's hand, without vipd's tag or lifetime.
fn add_vips(name: &str) {
    ip(&format!("addr add {VIP4}/32 dev {name}"));
    ip(&format!("addr add {VIP6}/128 dev {name} nodad"));
}

fn sysctl(name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/{name}"), value).unwrap();
}

fn forward() {
    sysctl("net/ipv4/ip_forward", "1");
    sysctl("net/ipv6/conf/all/forwarding", "1");
}

/// A fence on every Ethernet interface, as the daemon keeps it.
fn fence_everything(world: &World) -> Fence {
    let fence = world.open_fence();
    fence.know(&vips()).unwrap();
    for interface in ethernet_interfaces().unwrap() {
        fence.attach(interface.index).unwrap();
    }
    fence
}

/// The fence without one of its directions on the cable. A table of nftables is the fence's own as long as there is one:
/// its rules stay, and everything in it is shut.
fn without(world: &World, fence: Fence, direction: &str) -> Option<Fence> {
    if world.kind == FenceKind::Bpf {
        run("tc", &format!("filter del dev vip0 {direction}"));
        return Some(fence);
    }
    drop(fence);
    run("nft", &format!("flush chain netdev vipd {direction}-{}", world.index));
    None
}

/// The fence after [`without`], whole again.
fn whole_again(world: &World, fence: Option<Fence>) -> Fence {
    let fence = fence.unwrap_or_else(|| world.open_fence());
    fence.attach(world.index).unwrap();
    assert!(fence.attached(world.index).unwrap());
    fence
}

fn dropped(fence: &Fence) -> [u64; 2] {
    vips().map(|vip| fence.counters(vip).unwrap().unwrap().dropped)
}

/// Another host on a cable of its own; `near` is the end here.
fn connect(near: &str, setup: &'static [&'static str]) -> Elsewhere {
    let elsewhere = Elsewhere::new();
    ip(&format!("link add {near} type veth peer name eth0 netns {}", elsewhere.tid));
    ip(&format!("link set {near} addrgenmode none"));
    ip(&format!("link set {near} up"));
    elsewhere.run(move || {
        for command in ["link set lo up", "link set eth0 addrgenmode none", "link set eth0 up"].iter().chain(setup) {
            ip(command);
        }
    });
    elsewhere
}

/// Listens on the VIPs here, so that a SYN is not answered with a mere reset.
fn listen() -> [TcpListener; 2] {
    vips().map(|vip| TcpListener::bind(SocketAddr::new(vip, 80)).unwrap())
}

/// Listens on the VIPs and greets.
fn serve(owner: &Elsewhere) {
    for vip in vips() {
        let listener = owner.run(move || TcpListener::bind(SocketAddr::new(vip, 80)).unwrap());
        thread::spawn(move || {
            // Whoever is gone again was not waiting.
            listener.incoming().for_each(|stream| drop(stream.and_then(|mut stream| stream.write_all(b"owner"))));
        });
    }
}

/// Whether a host gets the owner's greeting, with nothing learnt before.
fn reaches(from: &Elsewhere, vip: IpAddr) -> bool {
    from.run(move || {
        ip("neigh flush dev eth0");
        let patience = Duration::from_secs(2);
        let Ok(mut stream) = TcpStream::connect_timeout(&SocketAddr::new(vip, 80), patience) else { return false };
        stream.set_read_timeout(Some(patience)).unwrap();
        let mut greeting = String::new();
        stream.read_to_string(&mut greeting).is_ok() && greeting == "owner"
    })
}

/// The host with a LAN, on which the owner of the VIPs is, and two containers: one bridged to the LAN, one routed.
struct Standby {
    owner: Elsewhere,
    bridged: Elsewhere,
    routed: Elsewhere,
}

impl Standby {
    fn build() -> Self {
        forward();
        let owner = connect(
            "own0",
            &[
                "addr add 10.9.0.3/24 dev eth0",
                "addr add fd00:9::3/64 dev eth0 nodad",
                "addr add 10.9.0.7/24 dev eth0",
                "addr add 2001:db8::7/64 dev eth0 nodad",
                "route add 10.8.0.0/24 via 10.9.0.1",
                "route add fd00:8::/64 via fd00:9::1",
            ],
        );
        let bridged = connect("box0", &["addr add 10.9.0.4/24 dev eth0", "addr add 2001:db8::4/64 dev eth0 nodad"]);
        let routed = connect(
            "box1",
            &[
                "addr add 10.8.0.2/24 dev eth0",
                "addr add fd00:8::2/64 dev eth0 nodad",
                "route add default via 10.8.0.1",
                "route add default via fd00:8::1",
            ],
        );
        ip("addr add 10.8.0.1/24 dev box1");
        ip("addr add fd00:8::1/64 dev box1 nodad");
        // The host itself is on the bridge, with the address that the peer knows it by.
        ip("link add br0 address 02:00:00:00:00:01 type bridge forward_delay 0");
        ip("link set br0 addrgenmode none");
        ip("addr flush dev vip0");
        for port in ["vip0", "own0", "box0"] {
            ip(&format!("link set {port} master br0"));
        }
        ip("link set br0 up");
        ip("addr add 10.9.0.1/24 dev br0");
        ip("addr add fd00:9::1/64 dev br0 nodad");
        // A router asks its neighbours with link-local addresses.
        ip("addr add fe80::1/64 dev br0 nodad");
        ip("addr add fe80::1/64 dev box1 nodad");
        ip("route add 2001:db8::/64 dev br0");
        ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev br0 nud permanent");
        ip("neigh add fd00:9::2 lladdr 02:00:00:00:00:02 dev br0 nud permanent");
        serve(&owner);
        Self { owner, bridged, routed }
    }

    fn assert_reachable(&self, when: &str) {
        for vip in vips() {
            assert!(reaches(&self.bridged, vip), "{vip} from the bridged container {when}");
            assert!(reaches(&self.routed, vip), "{vip} from the routed container {when}");
        }
    }
}

#[test]
fn containers_reach_the_owner_through_a_standby_host() {
    between_two_fenced_hosts(FenceKind::Bpf, |world| {
        let standby = Standby::build();
        standby.assert_reachable("without a fence");
        let fence = fence_everything(world);
        standby.assert_reachable("while it is shut");
        // A lease that ran out is as good as none.
        fence.hold(&vips(), LeaseSlot::LEADER).unwrap();
        fence.arm(LeaseSlot::LEADER, boot_now()).unwrap();
        standby.assert_reachable("after the lease");
        assert_eq!(dropped(&fence), [0, 0]);
        let counted = fence.counters(vips()[0]).unwrap().unwrap();
        assert_eq!(counted.passed, 0, "what is carried says nothing about a lease");
    });
}

fn a_standby_host_with_the_address_is_silent_beside_the_owner(kind: FenceKind) {
    between_two_fenced_hosts(kind, move |world| {
        let standby = Standby::build();
        // The owner off the cable: whatever answers now is the host.
        ip("link set own0 nomaster");
        add_vips("br0");
        let _listeners = listen();
        world.assert_answers(VIP4);
        world.assert_answers(VIP6);
        let fence = fence_everything(world);
        world.assert_silent(VIP4);
        world.assert_silent(VIP6);
        world.assert_answers("10.9.0.1");

        // With the owner back, the bridged container finds it, and it alone. With nftables nobody is found.
        ip("link set own0 master br0");
        for vip in vips() {
            let found = reaches(&standby.bridged, vip);
            assert_eq!(found, kind == FenceKind::Bpf, "{vip} with the address on the host too");
        }
        world.assert_silent(VIP4);
        world.assert_silent(VIP6);
        drop((fence, standby.owner));
    });
}

fn each_direction_keeps_the_host_silent_for_what_it_sees(kind: FenceKind) {
    between_two_fenced_hosts(kind, move |world| {
        // With forwarding, and with the address: nothing here may look like carried.
        forward();
        add_vips("vip0");
        let listeners = listen();
        world.assert_answers(VIP4);
        world.assert_answers(VIP6);
        let fence = fence_everything(world);

        // Egress alone: requests come in and are answered, no answer leaves.
        let fence = without(world, fence, "ingress");
        let before = fence.as_ref().map(dropped);
        world.assert_silent(VIP4);
        world.assert_silent(VIP6);
        if let (Some(fence), Some(before)) = (&fence, before) {
            let now = dropped(fence);
            assert!(now.iter().zip(before).all(|(now, before)| *now >= before + 3), "three kinds of answers");
        }

        // Ingress alone: requests are not taken. Resolution comes in, as it must. The answers to the SYNs taken
        // above would be repeated now: they go with the listeners, and what answers a SYN then is a reset.
        drop(listeners);
        let fence = whole_again(world, fence);
        let fence = without(world, fence, "egress");
        let resolves = Answers { resolves: true, ..MUTE };
        assert_eq!(world.answers(vips()[0], SILENCE), resolves);
        assert_eq!(world.answers(vips()[1], SILENCE), resolves);
        drop(fence);
    });
}

#[test]
fn a_neighbour_that_still_takes_this_host_for_the_owner_is_not_served() {
    between_two_fenced_hosts(FenceKind::Bpf, |world| {
        // The address is gone and the host forwards: it would send the frame back where it came from.
        forward();
        ip("route add 2001:db8::/64 dev vip0");
        let fence = fence_everything(world);
        for frame in [wire::echo4(VIP4.parse().unwrap()), wire::echo6(VIP6.parse().unwrap())] {
            world.wire.send(&frame).unwrap();
        }
        common::wait_for(|| dropped(&fence) == [1, 1]);
    });
}

fn an_answer_of_a_container_that_nat_gives_the_address_to_stays_in(kind: FenceKind) {
    between_two_fenced_hosts(kind, |world| {
        forward();
        let container = connect("box1", &["addr add 10.8.0.2/24 dev eth0", "route add default via 10.8.0.1"]);
        ip("addr add 10.8.0.1/24 dev box1");
        let rules = [
            "add table ip t",
            "add chain ip t c { type nat hook prerouting priority -100; }",
            "add rule ip t c ip daddr 10.9.0.7 dnat to 10.8.0.2",
        ];
        if !rules.iter().all(|rule| Command::new("nft").arg(rule).status().is_ok_and(|status| status.success())) {
            tell_skipped("no NAT here (nft, CONFIG_NFT_NAT)");
            return;
        }
        let vip: std::net::Ipv4Addr = VIP4.parse().unwrap();
        let served = |world: &mut World, time| {
            let echoes = world.wire.ask(&wire::echo4(vip), |f| wire::is_echo_reply4(f, vip), time);
            let connects = world.wire.ask(&wire::syn4(vip), |f| wire::is_tcp4(f, vip), time);
            (echoes, connects)
        };
        assert_eq!(served(world, Duration::from_secs(2)), (true, true));
        let fence = fence_everything(world);
        assert_eq!(served(world, SILENCE), (false, false));
        // Each direction by itself.
        let fence = without(world, fence, "ingress");
        assert_eq!(served(world, SILENCE), (false, false), "on egress");
        let fence = whole_again(world, fence);
        let fence = without(world, fence, "egress");
        assert_eq!(served(world, SILENCE), (false, false), "on ingress");
        drop((container, fence));
    });
}

/// What differs from BPF: nftables cannot tell what this host only carries from what it makes, when it leaves.
#[test]
fn nftables_stops_what_is_carried_from_an_address_and_lets_in_what_is_carried_to_it() {
    between_two_fenced_hosts(FenceKind::Nftables, |world| {
        let bridged = connect("box0", &[]);
        ip("link add br0 type bridge forward_delay 0");
        ip("link set br0 addrgenmode none");
        for port in ["vip0", "box0"] {
            ip(&format!("link set {port} master br0"));
        }
        ip("link set br0 up");
        let vip: std::net::Ipv4Addr = VIP4.parse().unwrap();
        let mut from_vip = wire::arp_from_host(1, vip);
        from_vip[..6].fill(0xff);
        // On its way through the bridge a tag is beside the frame, and nf_tables must see it in its place.
        let tags = [vec![], vec![[0x81, 0x00]], vec![[0x81, 0x00], [0x88, 0xa8]]];
        let mut arrives = |frame: Vec<u8>, wanted: fn(&[u8]) -> bool| {
            let heard = bridged.run(move || common::Wire::open("eth0"));
            world.wire.send(&frame).unwrap();
            let mut heard = heard;
            !heard.hear(wanted, SILENCE).is_empty()
        };
        let any: fn(&[u8]) -> bool = |frame| frame.windows(4).any(|four| four == [10, 9, 0, 7]);
        let frames =
            tags.iter().map(|tags| tags.iter().fold(from_vip.clone(), |frame, tag| wire::tagged(&frame, *tag)));
        let frames: Vec<Vec<u8>> = frames.collect();
        for frame in &frames {
            assert!(arrives(frame.clone(), any), "without a fence");
        }
        let fence = Fence::open(world.kind, &world.pin_root).unwrap();
        fence.know(&vips()).unwrap();
        for interface in ethernet_interfaces().unwrap() {
            fence.attach(interface.index).unwrap();
        }
        for frame in &frames {
            assert!(!arrives(frame.clone(), any), "a frame from the address: {frame:x?}");
        }
        // A request to the owner, bridged: not for this host's Ethernet address.
        let mut to_vip = wire::echo4(vip);
        to_vip[..6].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        to_vip[6..12].copy_from_slice(&common::HOST_MAC);
        assert!(arrives(to_vip, any), "a frame to the address");
        fence.hold(&vips(), LeaseSlot::LEADER).unwrap();
        fence.arm(LeaseSlot::LEADER, boot_now() + Duration::from_secs(60)).unwrap();
        for frame in &frames {
            assert!(arrives(frame.clone(), any), "while the lease runs");
        }
    });
}

#[test]
fn nftables_does_not_serve_what_this_host_would_take_or_send_back() {
    between_two_fenced_hosts(FenceKind::Nftables, |world| {
        // Counts what the fence lets in; behind it, and of another table.
        for command in [
            "add table netdev probe",
            "add chain netdev probe c { type filter hook ingress device vip0 priority 0; }",
            "add rule netdev probe c ip daddr 10.9.0.7 counter",
        ] {
            assert!(Command::new("nft").arg(command).status().unwrap().success());
        }
        let let_in = || {
            let shown: serde_json::Value = serde_json::from_str(&run("nft", "-j list chain netdev probe c")).unwrap();
            let rule = shown["nftables"].as_array().unwrap().iter().find_map(|entry| entry.get("rule"));
            let parts = rule.unwrap()["expr"].as_array().unwrap().clone();
            parts.iter().find_map(|part| part["counter"]["packets"].as_u64()).unwrap()
        };
        let vip: std::net::Ipv4Addr = VIP4.parse().unwrap();
        let mut enters = |frame: &[u8]| {
            let before = let_in();
            world.wire.send(frame).unwrap();
            thread::sleep(Duration::from_millis(50));
            let_in() > before
        };
        let (plain, tagged) = (wire::echo4(vip), wire::tagged(&wire::echo4(vip), [0x81, 0x00]));
        assert!(enters(&plain) && enters(&tagged), "without a fence");

        let other = connect("box1", &["addr add 10.8.0.2/24 dev eth0"]);
        let fence = Fence::open(world.kind, &world.pin_root).unwrap();
        fence.know(&vips()).unwrap();
        for interface in ethernet_interfaces().unwrap() {
            fence.attach(interface.index).unwrap();
        }
        forward();
        assert!(!enters(&plain), "it would be sent back where it came from");
        assert!(!enters(&tagged), "in a tagged frame");
        ip("addr add 10.9.0.7/32 dev vip0");
        assert!(!enters(&plain), "it would be taken");
        ip("addr del 10.9.0.7/32 dev vip0");
        ip("addr add 10.8.0.1/24 dev box1");
        ip("route add 10.9.0.7/32 via 10.8.0.2");
        assert!(enters(&plain), "this host routes it on");
        drop(other);
    });
}
