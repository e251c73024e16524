//! What cannot be reached from outside: a renewal that is held up in its middle.

#![allow(clippy::unwrap_used, clippy::print_stderr)] // tests: a panic is the verdict, and skipping is loud

use std::io::Write as _;
use std::net::IpAddr;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};

use super::super::{Backend, Gate, LeaseSlot};
use super::{Figures, Form, NftFence, rules, whole_milliseconds};
use crate::announce::{Announced, Announcer};
use crate::clock::boot_now;
use crate::link::ethernet_interfaces;

const VIP: &str = "10.9.0.7";

fn vips() -> [IpAddr; 2] {
    [VIP.parse().unwrap(), "2001:db8::7".parse().unwrap()]
}

/// Runs `test` in a network namespace with one cable; says so and passes where that is not allowed.
fn in_a_namespace(test: impl FnOnce(Host) + Send + 'static) {
    let result = thread::spawn(move || {
        if unshare(CloneFlags::CLONE_NEWNET).is_err() {
            let required = std::env::var("VIPD_TEST_REQUIRE_ROOT").is_ok_and(|value| value == "1");
            assert!(!required, "VIPD_TEST_REQUIRE_ROOT=1, but there are no network namespaces");
            let _ = writeln!(std::io::stderr(), "\nSKIPPED: needs CAP_SYS_ADMIN, or unshare -Urn; nothing was tested");
            return;
        }
        ip("link add vip0 type veth peer name peer0");
        ip("link set vip0 up");
        ip("link set peer0 up");
        let interface = ethernet_interfaces().unwrap().into_iter().find(|found| found.name == "vip0").unwrap();
        test(Host { index: interface.index, announcer: Announcer::open(&interface).unwrap() });
    })
    .join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &str) {
    assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success(), "ip {arguments}");
}

struct Host {
    index: u32,
    announcer: Announcer,
}

impl Host {
    fn fence(&self, form: Form) -> NftFence {
        let fence = NftFence::open_as(form).unwrap();
        fence.know(&vips()).unwrap();
        fence.attach(self.index).unwrap();
        fence.set(&vips(), Gate::Held(LeaseSlot::LEADER)).unwrap();
        fence
    }

    /// Whether announcements leave: a request and a reply for IPv4, an advertisement for IPv6.
    fn speaks(&mut self) -> bool {
        let announced = self.announcer.announce(&vips()).unwrap();
        assert!([0, 3].contains(&announced.sent), "one lease, one answer: {announced:?}");
        announced == Announced { sent: 3, stopped: 0 }
    }

    /// The same while a lease may end in the middle of it.
    fn speaks_at_all(&mut self) -> bool {
        self.announcer.announce(&vips()).unwrap().sent > 0
    }
}

const WHOLE: Form = Form { owned: true, carried: true };

#[test]
fn a_lease_is_renewed_and_ends() {
    in_a_namespace(|mut host| {
        let fence = host.fence(WHOLE);
        assert!(!host.speaks());
        let deadline = boot_now() + Duration::from_millis(400);
        fence.arm(LeaseSlot::LEADER, deadline).unwrap();
        assert!(host.speaks());
        let mut last = boot_now();
        while boot_now() < deadline + Duration::from_millis(50) {
            let before = boot_now();
            if host.speaks_at_all() {
                last = before;
            }
        }
        eprintln!("spoke last {:?} before its deadline", deadline.saturating_duration_since(last));
        assert!(last < deadline + Figures::of_this_kernel().slack());
    });
}

/// A renewal without its token, as it would be if the token could be left out.
fn arm_without_token(fence: &NftFence, deadline: vip_core::BootInstant, held_up: impl FnOnce()) {
    let left = deadline.saturating_duration_since(boot_now());
    held_up();
    let slot = LeaseSlot::LEADER;
    let mut state = fence.state();
    // Whether the old lease runs still is not known by then, and both are tried.
    let renewed = [
        rules::remove_timed(&rules::lease(slot.0), rules::RUNNING),
        rules::add_timed(&rules::lease(slot.0), rules::RUNNING, whole_milliseconds(left)),
    ];
    if state.nft.execute(&renewed).is_err() {
        state.nft.execute(&renewed[1..]).unwrap();
    }
}

#[test]
fn a_renewal_that_is_held_up_before_it_arms_opens_nothing() {
    in_a_namespace(|mut host| {
        let fence = host.fence(WHOLE);
        let frozen = Duration::from_millis(400);
        for armed_before in [false, true] {
            let deadline = boot_now() + Duration::from_millis(300);
            if armed_before {
                fence.arm(LeaseSlot::LEADER, deadline).unwrap();
                assert!(host.speaks());
            }
            let mut times = 0;
            let mut held_up = || {
                times += 1;
                thread::sleep(frozen);
            };
            fence.state().arm(LeaseSlot::LEADER, deadline, &mut held_up).unwrap();
            assert!(boot_now() > deadline);
            assert_eq!(times, 1, "after that there was no time left");
            assert!(!host.speaks(), "another host may hold the address by now");
            assert_eq!(fence.deadline(LeaseSlot::LEADER).unwrap().as_nanos(), 0);
        }

        // This is what the token is for: without it the same opens the fence again.
        let deadline = boot_now() + Duration::from_millis(300);
        arm_without_token(&fence, deadline, || thread::sleep(frozen));
        assert!(boot_now() > deadline && host.speaks(), "the token does nothing, or this test does not");
    });
}

#[test]
fn a_renewal_that_is_held_up_for_a_while_arms_what_is_left() {
    in_a_namespace(|mut host| {
        let fence = host.fence(WHOLE);
        let figures = Figures::of_this_kernel();
        let deadline = boot_now() + Duration::from_millis(600);
        let mut times = 0;
        let mut held_up = || {
            times += 1;
            if times == 1 {
                thread::sleep(Duration::from_millis(100));
            }
        };
        fence.state().arm(LeaseSlot::LEADER, deadline, &mut held_up).unwrap();
        assert!(times >= 2, "the token had ended");
        assert!(host.speaks());
        assert!(fence.deadline(LeaseSlot::LEADER).unwrap() <= deadline);
        thread::sleep(deadline.saturating_duration_since(boot_now()) + figures.slack());
        assert!(!host.speaks());
    });
}

#[test]
fn renewals_leave_no_gap_and_cost_little() {
    in_a_namespace(|mut host| {
        let fence = host.fence(WHOLE);
        let many: Vec<IpAddr> = (0..1000_u32).map(|n| IpAddr::V4((0x0a0a_0000 + n).into())).collect();
        let timed = |what: &str, action: &dyn Fn()| {
            let start = Instant::now();
            action();
            eprintln!("{what}: {:?}", start.elapsed());
        };
        timed("know 1000", &|| fence.know(&many).unwrap());
        timed("hold 1000", &|| fence.set(&many, Gate::Held(LeaseSlot::LEADER)).unwrap());
        let mut costs: Vec<Duration> = (0..1000)
            .map(|_| {
                let start = Instant::now();
                fence.arm(LeaseSlot::LEADER, boot_now() + Duration::from_secs(5)).unwrap();
                let cost = start.elapsed();
                assert!(host.speaks());
                cost
            })
            .collect();
        costs.sort();
        eprintln!("arm: median {:?}, p99 {:?}, max {:?}", costs[500], costs[990], costs[999]);
        assert!(costs[500] < Duration::from_millis(2));
        timed("shut 1000", &|| fence.set(&many, Gate::Shut).unwrap());
        timed("attached with 1000", &|| assert!(fence.attached(host.index).unwrap()));
    });
}

fn nft(arguments: &str) -> bool {
    Command::new("nft").args(arguments.split(' ')).stderr(std::process::Stdio::null()).status().unwrap().success()
}

#[test]
fn a_table_with_an_owner_is_nobody_elses() {
    in_a_namespace(|mut host| {
        let fence = host.fence(WHOLE);
        if !fence.state().form.owned {
            let _ = writeln!(
                std::io::stderr(),
                "\nSKIPPED: no tables with an owner that persist (Linux 6.9); nothing was tested"
            );
            return;
        }
        assert!(nft("flush ruleset"), "which passes by what belongs to others");
        assert!(!nft("delete table netdev vipd"));
        assert!(!nft("flush set netdev vipd vip4"));
        assert!(fence.attached(host.index).unwrap());
        assert!(!host.speaks());
        // It outlives its owner, and the next one takes it over with what it knew.
        drop(fence);
        assert!(!host.speaks());
        let fence = NftFence::open_as(WHOLE).unwrap();
        assert!(!host.speaks());
        assert!(fence.attached(host.index).unwrap());
        assert_eq!(fence.known().unwrap(), vips().map(|vip| (vip, Gate::Shut)));
    });
}

#[test]
fn a_table_without_an_owner_is_missed_and_made_anew() {
    in_a_namespace(|mut host| {
        let fence = host.fence(Form { owned: false, ..WHOLE });
        let vandalism = [
            "flush ruleset",
            "flush table netdev vipd",
            "flush chain netdev vipd ingress_tags1",
            "flush chain netdev vipd egress_na",
            "flush chain netdev vipd egress",
            "flush set netdev vipd vip6",
            "flush map netdev vipd held4",
            "delete element netdev vipd vip4 { 10.9.0.7 }",
        ];
        for what in vandalism {
            fence.arm(LeaseSlot::LEADER, boot_now() + Duration::from_secs(60)).unwrap();
            assert!(host.speaks(), "before {what}");
            assert!(fence.attached(host.index).unwrap());
            assert!(nft(what), "{what}");
            assert!(!fence.attached(host.index).unwrap(), "after {what}");
            fence.attach(host.index).unwrap();
            assert!(fence.attached(host.index).unwrap(), "repaired after {what}");
            assert!(!host.speaks(), "what was held before {what} is held no more");
            fence.set(&vips(), Gate::Held(LeaseSlot::LEADER)).unwrap();
        }
        // The kernel tells of it, but not of what the fence does all the time.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let changes = Backend::changes(&fence).unwrap().unwrap();
            fence.arm(LeaseSlot::LEADER, boot_now() + Duration::from_secs(60)).unwrap();
            fence.set(&vips(), Gate::Shut).unwrap();
            tokio::time::timeout(Duration::from_millis(200), changes.next()).await.unwrap_err();
            assert!(nft("flush chain netdev vipd egress_tags2"));
            tokio::time::timeout(Duration::from_secs(5), changes.next()).await.unwrap().unwrap();
        });
        // Gone in the middle of it all: every change says so.
        assert!(nft("delete table netdev vipd"));
        fence.arm(LeaseSlot::LEADER, boot_now() + Duration::from_secs(1)).unwrap_err();
        fence.set(&vips(), Gate::Held(LeaseSlot::LEADER)).unwrap_err();
    });
}

#[test]
fn an_interface_that_is_renamed_is_fenced_under_its_new_name() {
    in_a_namespace(|mut host| {
        let fence = host.fence(WHOLE);
        ip("link set vip0 down");
        ip("link set vip0 name vip9");
        ip("link set vip9 up");
        // Since 6.16 a chain is hooked to a name, before to the device, whatever it is called.
        fence.attach(host.index).unwrap();
        assert!(fence.attached(host.index).unwrap());
        assert!(!host.speaks());
        let chains = super::chains(&mut fence.state().nft).unwrap();
        assert_eq!(chains.keys().filter(|chain| rules::hooked_index(chain).is_some()).count(), 2);
    });
}

/// Whoever lists all rules of a host, and many programs do, must not stumble over ours.
#[test]
fn nft_can_list_the_table() {
    in_a_namespace(|host| {
        let fence = host.fence(WHOLE);
        fence.arm(LeaseSlot::LEADER, boot_now() + Duration::from_secs(60)).unwrap();
        for arguments in [&["list", "ruleset"][..], &["-j", "list", "ruleset"], &["list", "tables"]] {
            let output = Command::new("nft").args(arguments).output().unwrap();
            assert!(output.status.success(), "{arguments:?}: {output:?}");
            eprintln!("{}", String::from_utf8_lossy(&output.stdout));
        }
    });
}

#[test]
fn the_figures_follow_the_tick() {
    for (hz, slack, early) in [(100, 60, 51), (250, 24, 21), (1000, 6, 8)] {
        let figures = Figures { tick: Duration::from_secs(1) / hz };
        assert_eq!(figures.slack(), Duration::from_millis(slack));
        assert_eq!(figures.early(), Duration::from_millis(early), "{hz}");
        // Never 0, which the kernel takes for no end at all.
        let at = |millis: u64| {
            figures.time_left(vip_core::BootInstant::from_nanos(millis * 1_000_000), vip_core::BootInstant::ZERO)
        };
        for millis in 0..200 {
            assert!(at(millis).is_none_or(|left| left >= figures.tick * 2 && left < Duration::from_millis(millis)));
        }
        assert_eq!(at(500), Some(Duration::from_millis(500) - figures.token() - figures.tick));
    }
    let of_this = Figures::of_this_kernel().tick;
    assert!((Duration::from_micros(900)..=Duration::from_millis(10)).contains(&of_this), "{of_this:?}");
}
