//! Links and interfaces that come, go and change.

use std::time::Duration;

use anyhow::Result;
use vip_lab::HostId;
use vip_lab::topology::{INTERFACE, mac_text};
use vip_tests::TestResult;

use crate::campaign::{Group, Stage, run};
use crate::trial::{ALIAS, Case, End, Trial};

pub(crate) const GROUP: Group = Group {
    stage: Stage::Three,
    cases: &[
        case("the owner loses its carrier", |trial| {
            let owner = trial.owner;
            trial.network().link_down(owner)?;
            std::thread::sleep(trial.lease());
            trial.sleep(200..1500);
            trial.network().link_up(owner)?;
            Ok(End::Not(owner))
        }),
        seldom("the owner's interface is set down for a while", |trial| {
            let owner = trial.owner;
            trial.on(owner, &["ip", "link", "set", INTERFACE, "down"])?;
            std::thread::sleep(trial.lease());
            trial.sleep(200..1500);
            let own = format!("link set {INTERFACE} up\naddr replace {}/64 dev {INTERFACE} nodad\n", owner.ipv6());
            trial.network().host(owner).run_with_input(["ip", "-batch", "-"], &own)?;
            Ok(End::Not(owner))
        }),
        case("the switch is off for a while", |trial| {
            trial.network().switch_off()?;
            trial.sleep(50..2500);
            trial.network().switch_on()?;
            trial.note("on again");
            trial.outages_count_from_here();
            Ok(End::Anyone)
        }),
        seldom("IPv6 is switched off on the owner's interface", |trial| {
            let owner = trial.owner;
            trial.wait_until_owner_may_step_aside()?;
            let netns = trial.network().host(owner);
            netns.sysctl(&[("ipv6/conf/eth0/disable_ipv6", "1")])?;
            trial.sleep(1500..3000);
            netns.sysctl(&[("ipv6/conf/eth0/disable_ipv6", "0")])?;
            trial.on(owner, &["ip", "addr", "replace", &format!("{}/64", owner.ipv6()), "dev", INTERFACE, "nodad"])?;
            Ok(End::Not(owner))
        }),
        case("the owner's interface is set down and up once", |trial| flap(trial, 1, 0..1)),
        seldom("the owner's interface is set down and up quickly", |trial| flap(trial, 12, 0..1)),
        case("the owner's interface flaps", |trial| flap(trial, 12, 5..300)),
        case("the owner's carrier flaps", carrier_flaps),
        Case { name: "the MAC address of the owner changes", bound_ms: 700, usual_ms: 150, in_ci: 1, run: new_mac },
        case("the owner's interface is removed and made anew", |trial| {
            let owner = trial.owner;
            replug(trial, owner)?;
            Ok(End::Not(owner))
        }),
        seldom("the interface of another node is removed and made anew", |trial| {
            let other = trial.other();
            replug(trial, other)?;
            Ok(End::Unmoved)
        }),
        seldom("the owner's interface is removed and made anew at once", |trial| {
            let owner = trial.owner;
            trial.network().unplug(owner)?;
            trial.network().plug(owner)?;
            std::thread::sleep(trial.lease());
            Ok(End::Anyone)
        }),
    ],
};

const fn case(name: &'static str, run: fn(&mut Trial<'_>) -> Result<End>) -> Case {
    Case { name, bound_ms: 5000, usual_ms: 1500, in_ci: 1, run }
}

/// One that only a campaign runs.
const fn seldom(name: &'static str, run: fn(&mut Trial<'_>) -> Result<End>) -> Case {
    Case { in_ci: 0, ..case(name, run) }
}

fn flap(trial: &mut Trial<'_>, times: u8, gap: std::ops::Range<u64>) -> Result<End> {
    let owner = trial.owner;
    let own = format!("addr replace {}/64 dev {INTERFACE} nodad\n", owner.ipv6());
    for _ in 0..times {
        // In one go: a kernel that is told both at once may tell the daemon of neither.
        let netns = trial.network().host(owner);
        if gap.end <= 1 {
            let both = format!("link set {INTERFACE} down\nlink set {INTERFACE} up\n{own}");
            netns.run_with_input(["ip", "-batch", "-"], &both)?;
        } else {
            netns.run(["ip", "link", "set", INTERFACE, "down"])?;
            trial.sleep(gap.clone());
            netns.run_with_input(["ip", "-batch", "-"], &format!("link set {INTERFACE} up\n{own}"))?;
            trial.sleep(gap.clone());
        }
    }
    trial.note(format!("{times} times"));
    trial.outages_count_from_here();
    std::thread::sleep(trial.lease());
    Ok(End::Anyone)
}

fn carrier_flaps(trial: &mut Trial<'_>) -> Result<End> {
    let owner = trial.owner;
    for _ in 0..trial.rng.u8(1..15) {
        trial.network().link_down(owner)?;
        trial.sleep(0..200);
        trial.network().link_up(owner)?;
        trial.sleep(0..200);
    }
    trial.outages_count_from_here();
    Ok(End::Anyone)
}

/// Nobody can know but the host itself: it must tell its neighbours.
fn new_mac(trial: &mut Trial<'_>) -> Result<End> {
    let owner = trial.owner;
    let HostId::Node(number) = owner else { return Ok(End::Skipped(format!("{owner} is no node"))) };
    for host in [HostId::Node(number + ALIAS), owner] {
        trial.on(owner, &["ip", "link", "set", INTERFACE, "address", &mac_text(host.mac())])?;
        trial.note(format!("the MAC address of {host}"));
        std::thread::sleep(trial.lease());
        trial.sleep(500..1500);
    }
    Ok(End::Unmoved)
}

fn replug(trial: &mut Trial<'_>, host: HostId) -> TestResult {
    trial.network().unplug(host)?;
    trial.sleep(20..2000);
    trial.network().plug(host)?;
    trial.note("made anew");
    std::thread::sleep(trial.lease() + Duration::from_millis(500));
    Ok(())
}

#[test]
fn links() -> TestResult {
    run(&GROUP)
}
