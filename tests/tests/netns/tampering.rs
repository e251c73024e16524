//! Somebody with root changes a host behind the daemon's back: never two holders, and all is put right again.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vip_lab::clean::remove_pins;
use vip_lab::topology::INTERFACE;
use vip_lab::{HostId, Stamp};
use vip_tests::cluster::FenceKind;
use vip_tests::{TestResult, wait_until};

use crate::campaign::{Group, Stage, run};
use crate::trial::{Case, End, Trial};

const REPAIR: Duration = Duration::from_secs(5);

pub(crate) const GROUP: Group = Group {
    stage: Stage::Tampered,
    cases: &[
        case("a filter of the owner is removed", |trial| {
            let owner = trial.owner;
            remove_filter(trial, owner)?;
            Ok(End::Anyone)
        }),
        seldom("a filter of another node is removed", |trial| {
            let other = trial.other();
            remove_filter(trial, other)?;
            Ok(End::Unmoved)
        }),
        seldom("the clsact qdisc or table of the owner is removed", |trial| {
            let owner = trial.owner;
            remove_qdisc(trial, owner)?;
            Ok(End::Anyone)
        }),
        case("the clsact qdisc or table of another node is removed", |trial| {
            let other = trial.other();
            remove_qdisc(trial, other)?;
            Ok(End::Unmoved)
        }),
        case("the fence is removed again and again", again_and_again),
        seldom("the pinned maps of the owner are removed", |trial| pins(trial, false)),
        case("the pinned maps of the owner are removed before it is killed", |trial| pins(trial, true)),
        case("the addresses of the owner are deleted", |trial| {
            for _ in 0..trial.rng.u8(1..5) {
                for &vip in trial.cluster.lab.vips() {
                    // One may not be back yet.
                    let _ = trial.cluster.tamper(trial.owner, "del", vip);
                }
                trial.sleep(0..300);
            }
            Ok(End::Unmoved)
        }),
        case("the addresses of the owner become somebody else's", taken_on_the_owner),
        seldom("the addresses are added to another node by hand", added_elsewhere),
        case("the addresses are added to another node by hand, with vipd's tag", added_elsewhere_with_tag),
        Case {
            name: "the addresses are added to an heir by hand before the owner is killed",
            bound_ms: 15_000,
            usual_ms: 1500,
            in_ci: 1,
            run: added_to_the_heir,
        },
    ],
};

const fn case(name: &'static str, run: fn(&mut Trial<'_>) -> Result<End>) -> Case {
    Case { name, bound_ms: 5000, usual_ms: 1500, in_ci: 1, run }
}

/// One that only a campaign runs.
const fn seldom(name: &'static str, run: fn(&mut Trial<'_>) -> Result<End>) -> Case {
    Case { in_ci: 0, ..case(name, run) }
}

pub(crate) fn wait_for_fence(trial: &Trial<'_>, host: HostId) -> TestResult {
    wait_until("the fence is back", REPAIR, || trial.cluster.is_fenced(host))
}

/// Of nftables: the chain of one direction.
fn remove_filter(trial: &mut Trial<'_>, host: HostId) -> TestResult {
    let direction = if trial.rng.bool() { "egress" } else { "ingress" };
    trial.note(format!("the {direction} filter of {host}"));
    match trial.cluster.fence {
        FenceKind::Bpf => trial.on(host, &["tc", "filter", "del", "dev", INTERFACE, direction])?,
        FenceKind::Nftables => {
            let shown: Value = serde_json::from_str(&trial.on(host, &["ip", "-j", "link", "show", "dev", INTERFACE])?)?;
            let chain = format!("netdev vipd {direction}-{}", shown[0]["ifindex"]);
            trial.on(host, &["nft", &format!("flush chain {chain}; delete chain {chain}")])?
        }
    };
    wait_for_fence(trial, host)
}

/// All of it at once. Of nftables: the table.
pub(crate) fn remove_fence(trial: &Trial<'_>, host: HostId) -> TestResult {
    let command: &[&str] = match trial.cluster.fence {
        FenceKind::Bpf => &["tc", "qdisc", "del", "dev", INTERFACE, "clsact"],
        FenceKind::Nftables => &["nft", "delete", "table", "netdev", "vipd"],
    };
    trial.on(host, command).map(drop)
}

fn remove_qdisc(trial: &mut Trial<'_>, host: HostId) -> TestResult {
    remove_fence(trial, host)?;
    wait_for_fence(trial, host)
}

fn again_and_again(trial: &mut Trial<'_>) -> Result<End> {
    for _ in 0..8 {
        let hosts = trial.nodes();
        let host = hosts[trial.rng.usize(..hosts.len())];
        // It may be gone already.
        let _ = remove_fence(trial, host);
        // There and back within 50 ms counts as two hosts: the judge hears no silence in between.
        trial.sleep(80..400);
    }
    for host in trial.nodes() {
        wait_for_fence(trial, host)?;
    }
    Ok(End::Anyone)
}

/// The running daemon goes on with the maps that it has open; the next one makes new ones.
fn pins(trial: &mut Trial<'_>, kill: bool) -> Result<End> {
    let owner = trial.owner;
    if trial.cluster.fence == FenceKind::Nftables {
        return Ok(End::Skipped("nftables has no pins: what a successor takes over is the table itself".to_owned()));
    }
    remove_pins(trial.network().host(owner));
    if !kill {
        trial.sleep(100..1500);
        return Ok(End::Unmoved);
    }
    trial.sleep(0..200);
    trial.node(owner).kill()?;
    trial.sleep_of_lease(0..300);
    trial.node(owner).start()?;
    trial.note("started");
    std::thread::sleep(trial.lease() * 2);
    Ok(End::Anyone)
}

/// No longer ours, so the owner may not hold them, nor remove them; another node can.
fn taken_on_the_owner(trial: &mut Trial<'_>) -> Result<End> {
    let owner = trial.owner;
    // Else the daemon would be quicker.
    trial.node(owner).freeze()?;
    for &vip in trial.cluster.lab.vips() {
        trial.cluster.tamper(owner, "del", vip)?;
        trial.cluster.tamper(owner, "add", vip)?;
    }
    let said = failures_said(trial, owner)?;
    trial.node(owner).thaw()?;
    trial.note("taken");
    trial.sleep(3000..5000);
    let said = failures_said(trial, owner)? - said;
    ensure!(said <= MOST_SAID, "{owner} says {said} times that a step failed\n{}", trial.node(owner).log_tail(20));
    take_away(trial, owner)?;
    Ok(End::Anyone)
}

/// What fails the same way again and again is said once: for each of two VIPs when it is added and when it is removed,
/// and perhaps once more.
const MOST_SAID: usize = 8;

fn failures_said(trial: &Trial<'_>, host: HostId) -> Result<usize> {
    let log = std::fs::read_to_string(trial.node(host).log_path())?;
    Ok(log.matches("a step failed").count())
}

fn take_away(trial: &mut Trial<'_>, host: HostId) -> TestResult {
    trial.note("taken away by hand");
    for vip in trial.cluster.vips_on(host)? {
        trial.cluster.tamper(host, "del", vip)?;
    }
    Ok(())
}

fn added_elsewhere(trial: &mut Trial<'_>) -> Result<End> {
    let other = trial.other();
    for &vip in trial.cluster.lab.vips() {
        trial.cluster.tamper(other, "add", vip)?;
    }
    trial.sleep(300..2000);
    take_away(trial, other)?;
    Ok(End::Unmoved)
}

/// `ip addr save` and `restore` carry what `ip addr add` cannot give: the tag.
fn added_elsewhere_with_tag(trial: &mut Trial<'_>) -> Result<End> {
    let (owner, other) = (trial.owner, trial.other());
    let dump = trial.cluster.lab.dir().join("addresses");
    let save = format!("ip addr save dev {INTERFACE} > {}", dump.display());
    let restore = format!("ip addr restore < {}", dump.display());
    trial.on(owner, &["sh", "-c", &save])?;
    // It also has the owner's own addresses in it, which are not for the other node.
    let _ = trial.on(other, &["sh", "-c", &restore]);
    let added = trial.cluster.vips_on(other)?;
    for own in [IpAddr::V4(owner.ipv4()), IpAddr::V6(owner.ipv6())] {
        let length = if own.is_ipv4() { 16 } else { 64 };
        let _ = trial.on(other, &["ip", "addr", "del", &format!("{own}/{length}"), "dev", INTERFACE]);
    }
    if added.is_empty() {
        return Ok(End::Skipped("ip addr restore put no VIP on the other node".to_owned()));
    }
    trial.note(format!("{other} has {added:?}"));
    trial.sleep(300..2000);
    let answers = trial.cluster.lab.observe().answers(Stamp::now() - Duration::from_millis(300));
    ensure!(answers.iter().all(|answer| answer.host == owner), "{other} answered");
    take_away(trial, other)?;
    Ok(End::Anyone)
}

/// A node that cannot take a VIP must leave it to one that can.
fn added_to_the_heir(trial: &mut Trial<'_>) -> Result<End> {
    let (owner, other) = (trial.owner, trial.other());
    for &vip in trial.cluster.lab.vips() {
        trial.cluster.tamper(other, "add", vip)?;
    }
    trial.note(format!("{other} has them by hand"));
    trial.sleep(0..3000);
    trial.node(owner).kill()?;
    let since = trial.lease_end(Stamp::now());
    let vip = trial.cluster.lab.vips()[0];
    let observer = trial.cluster.lab.observe();
    let killed = Stamp::now();
    let back = wait_until("another node holds the VIPs", Duration::from_secs(15), || {
        Ok(!observer.holders(vip, since).is_empty())
    });
    trial.note(format!("back after {:.0} ms", Stamp::now().millis_from(killed)));
    take_away(trial, other)?;
    trial.node(owner).start()?;
    back.context("while another node has them by hand")?;
    Ok(End::Anyone)
}

#[test]
fn tampering() -> TestResult {
    run(&GROUP)
}
