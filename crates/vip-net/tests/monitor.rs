//! Events for changes that `ip` and `tc` make.

#![allow(clippy::unwrap_used)] // tests: a panic is the verdict

mod common;

use std::time::Duration;

use common::{World, between_two_fenced_hosts, between_two_hosts, ip, run};
use vip_net::address::{AddressBook, OwnedAddress, VIPD_PROTO};
use vip_net::fence::FenceKind;
use vip_net::monitor::{Monitor, NetEvent};

fn watching(test: impl AsyncFnOnce(&mut World, &mut Monitor) + Send + 'static) {
    between_two_hosts(|world| watch(world, test));
}

fn watch(world: &mut World, test: impl AsyncFnOnce(&mut World, &mut Monitor)) {
    // Sockets belong to the namespace of the thread that opens them, so the runtime must stay on this one.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut monitor = Monitor::open().unwrap();
        test(world, &mut monitor).await;
    });
}

async fn expect(monitor: &mut Monitor, what: &str, wanted: impl Fn(&NetEvent) -> bool) {
    let search = async {
        loop {
            let event = monitor.next().await.expect("the subscription ended");
            if wanted(&event) {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(3), search).await.unwrap_or_else(|_| panic!("no event: {what}"));
}

#[test]
fn links_and_addresses_are_told_of() {
    watching(async |world, monitor| {
        let index = world.index;
        ip("link add new0 type veth peer name new0p");
        expect(monitor, "new link", |e| matches!(e, NetEvent::LinkChanged(i) if i.name == "new0" && !i.up)).await;
        ip("link del new0");
        expect(monitor, "link gone", |e| matches!(e, NetEvent::LinkRemoved { name, .. } if name == "new0")).await;
        ip("link set vip0 down");
        let down = |e: &NetEvent| matches!(e, NetEvent::LinkChanged(i) if i.index == index && !i.up && !i.carrier);
        expect(monitor, "link down", down).await;
        ip("link set vip0 up");
        let up = |e: &NetEvent| matches!(e, NetEvent::LinkChanged(i) if i.index == index && i.up && i.carrier);
        expect(monitor, "link up", up).await;

        let vip = "10.9.0.7".parse().unwrap();
        let vips = [OwnedAddress { index, address: vip, prefix_len: 32 }];
        assert_eq!(AddressBook::new().unwrap().add(&vips, Duration::from_secs(1)), [Ok(())]);
        expect(monitor, "address", |e| matches!(e, NetEvent::AddressAdded(a) if a.address == vip && a.is_ours())).await;
        let gone = NetEvent::AddressRemoved { index, address: vip, tag: Some(VIPD_PROTO) };
        expect(monitor, "address at the end of its life", |e| *e == gone).await;
        let vip = "2001:db8::7".parse().unwrap();
        ip("addr add 2001:db8::7/128 dev vip0 nodad");
        expect(monitor, "address", |e| matches!(e, NetEvent::AddressAdded(a) if a.address == vip && !a.is_ours()))
            .await;
        ip("addr del 2001:db8::7/128 dev vip0");
        let gone = NetEvent::AddressRemoved { index, address: vip, tag: None };
        expect(monitor, "address removed", |e| *e == gone).await;
    });
}

#[test]
fn a_port_that_leaves_its_bridge_is_not_gone() {
    watching(async |_, monitor| {
        ip("link add br0 type bridge");
        ip("link add port0 type veth peer name port0p");
        ip("link set port0 master br0");
        ip("link set port0 nomaster");
        ip("link add last0 type veth peer name last0p");
        let search = |e: &NetEvent| {
            assert!(!matches!(e, NetEvent::LinkRemoved { .. }), "{e:?}");
            matches!(e, NetEvent::LinkChanged(i) if i.name == "last0")
        };
        expect(monitor, "last link", search).await;
    });
}

#[test]
fn every_way_to_remove_the_filter_is_told_of() {
    let test = async |world: &mut World, monitor: &mut Monitor| {
        let index = world.index;
        let fence = world.open_fence();
        let removals = [
            "filter del dev vip0 egress",
            "filter del dev vip0 ingress prio 1",
            "filter del dev vip0 egress protocol all prio 1 handle 0x76697064 bpf",
            "qdisc del dev vip0 clsact",
        ];
        for removal in removals {
            fence.attach(index).unwrap();
            run("tc", removal);
            expect(monitor, removal, |e| *e == NetEvent::FilterRemoved { index }).await;
            assert!(!fence.attached(index).unwrap());
        }
        // Putting it back is none.
        fence.attach(index).unwrap();
        fence.attach(index).unwrap();
        ip("link add last0 type veth peer name last0p");
        let search = |e: &NetEvent| {
            assert!(!matches!(e, NetEvent::FilterRemoved { .. }), "{e:?}");
            matches!(e, NetEvent::LinkChanged(i) if i.name == "last0")
        };
        expect(monitor, "last link", search).await;
    };
    between_two_fenced_hosts(FenceKind::Bpf, move |world| watch(world, test));
}

#[test]
fn a_flood_that_nobody_reads_ends_in_an_overrun_and_the_events_go_on() {
    watching(async |_, monitor| {
        // While this thread does not run the runtime, the kernel's buffer alone takes the notices.
        let batch: String =
            (0..4000).map(|n| format!("addr add 10.10.{}.{}/32 dev vip0\n", n / 250, n % 250)).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), batch).unwrap();
        run("ip", &format!("-batch {}", file.path().display()));
        expect(monitor, "overrun", |e| *e == NetEvent::Overrun).await;
        ip("link add last0 type veth peer name last0p");
        expect(monitor, "life after it", |e| matches!(e, NetEvent::LinkChanged(i) if i.name == "last0")).await;
    });
}
