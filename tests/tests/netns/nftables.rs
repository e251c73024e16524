//! What only a fence of nftables has to bear: administrators who change rules, and a renewal in two steps.
//!
//! From Linux 6.9 on the table belongs to the daemon, and nobody else can change it. Most of these trials, and whatever
//! else removes parts of a fence by hand, therefore run with daemons to which the kernel seems older; see
//! [`before_6_9`].

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use vip_lab::{HostId, LabBuilder, Stamp};
use vip_tests::cluster::Cluster;
use vip_tests::{TestResult, programs, wait_until};

use crate::campaign::{Group, Stage, run_with_nftables};
use crate::phases::{Deed, LEASE, Trap, strike};
use crate::tampering::wait_for_fence;
use crate::trial::{Case, End, Stand, Trial};
use crate::{freezes, kills, partitions, tampering};

const REPAIR: Duration = Duration::from_secs(5);

/// The kernel lets anybody with root do these.
pub(crate) const GROUP: Group = Group {
    stage: Stage::Tampered,
    cases: &[
        case("the rules of every host are flushed", |trial| {
            let hosts = trial.nodes();
            changed(trial, &hosts, "flush ruleset")?;
            Ok(End::Anyone)
        }),
        case("the rules of the owner's fence are flushed", |trial| {
            let owner = trial.owner;
            changed(trial, &[owner], "flush table netdev vipd")?;
            Ok(End::Anyone)
        }),
        case("a chain of the owner's fence is flushed", |trial| {
            let (owner, chain) = (trial.owner, chain(trial));
            changed(trial, &[owner], &format!("flush chain netdev vipd {chain}"))?;
            Ok(End::Anyone)
        }),
        case("a chain of another node's fence is flushed", |trial| {
            let (other, chain) = (trial.other(), chain(trial));
            changed(trial, &[other], &format!("flush chain netdev vipd {chain}"))?;
            Ok(End::Unmoved)
        }),
        case("an address is removed from the owner's fence", |trial| {
            let owner = trial.owner;
            forgotten(trial, owner)?;
            Ok(End::Anyone)
        }),
        case("an address is removed from another node's fence", |trial| {
            let other = trial.other();
            forgotten(trial, other)?;
            Ok(End::Unmoved)
        }),
        case("the owner's lease is removed from its fence", lease_removed),
        case("the owner's lease is prolonged by hand before it is frozen", lease_prolonged),
        case("a lease without an end is added on another node", lease_added),
    ],
};

/// And here nobody can, so these are about other things.
pub(crate) const OWNED: Group = Group {
    stage: Stage::Three,
    cases: &[
        case("somebody wants to change a fence that is the daemon's", refused),
        case("the table of a killed node is deleted before it starts again", orphan_deleted),
        case("others change rules on the owner all the time", busy),
        case("the owner is frozen while it renews its lease", |trial| renewing(trial, Deed::Freeze)),
        case("the owner's renewal stands still", |trial| renewing(trial, Deed::Hold)),
        case("the owner is killed while it renews its lease", |trial| renewing(trial, Deed::Kill)),
    ],
};

const fn case(name: &'static str, run: fn(&mut Trial<'_>) -> Result<End>) -> Case {
    Case { name, bound_ms: 5000, usual_ms: 1500, in_ci: 0, run }
}

/// A cluster of daemons to which the kernel says that it knows no tables that both have an owner and outlive it. They do
/// what they do on an older kernel then, and `nft` does to them what it does there. On such a kernel nothing changes.
pub(crate) fn before_6_9(
    builder: LabBuilder,
    build: impl FnOnce(LabBuilder) -> Result<Option<Cluster>>,
) -> Result<Option<Stand>> {
    let dir = TempDir::new()?;
    let (source, library, script) = (dir.path().join("old.c"), dir.path().join("old.so"), dir.path().join("vipd"));
    fs::write(&source, include_str!("before_6_9.c"))?;
    let compiled = Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    ensure!(compiled.context("start cc")?.success(), "cc failed");
    let vipd = programs::vipd()?;
    fs::write(&script, format!("#!/bin/sh\nLD_PRELOAD={} exec {} \"$@\"\n", library.display(), vipd.display()))?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let cluster = build(builder.vipd(Some(script)))?;
    if let Some(cluster) = &cluster {
        let shown = cluster.table_on(cluster.owner)?.context("the owner has no table")?;
        ensure!(!shown.contains("flags owner"), "the table belongs to the daemon all the same: {shown}");
    }
    Ok(cluster.map(|cluster| Stand { cluster, disks: BTreeMap::new(), children: Vec::new(), dir: Some(dir) }))
}

fn nft(trial: &Trial<'_>, host: HostId, command: &str) -> Result<String> {
    trial.on(host, &["nft", command])
}

/// Does the same on some hosts, and waits until each fence is what it was.
fn changed(trial: &mut Trial<'_>, hosts: &[HostId], command: &str) -> TestResult {
    let shown = |host| trial.cluster.table_on(host);
    let before = hosts.iter().map(|&host| shown(host)).collect::<Result<Vec<_>>>()?;
    for &host in hosts {
        nft(trial, host, command)?;
    }
    trial.note(format!("nft {command} on {hosts:?}"));
    for (&host, before) in hosts.iter().zip(before) {
        ensure!(before.is_some(), "{host} had no table");
        wait_until("the table is what it was", REPAIR, || Ok(trial.cluster.table_on(host)? == before))?;
    }
    Ok(())
}

/// One of those that all interfaces share.
fn chain(trial: &mut Trial<'_>) -> &'static str {
    const CHAINS: [&str; 6] = ["egress", "egress_arp", "egress_ip", "egress_na", "ingress", "ingress_ip6"];
    CHAINS[trial.rng.usize(..CHAINS.len())]
}

/// An address that the fence does not know passes always.
fn forgotten(trial: &mut Trial<'_>, host: HostId) -> TestResult {
    let vips = trial.cluster.lab.vips();
    let vip = vips[trial.rng.usize(..vips.len())];
    let set = if vip.is_ipv4() { "vip4" } else { "vip6" };
    nft(trial, host, &format!("delete element netdev vipd {set} {{ {vip} }}"))?;
    trial.note(format!("{vip} on {host}"));
    wait_until("the address is known again", REPAIR, || {
        Ok(nft(trial, host, &format!("list set netdev vipd {set}"))?.contains(&vip.to_string()))
    })?;
    wait_for_fence(trial, host)
}

/// The next renewal puts it there again.
fn lease_removed(trial: &mut Trial<'_>) -> Result<End> {
    for _ in 0..trial.rng.u8(1..6) {
        nft(trial, trial.owner, "flush set netdev vipd lease1; flush set netdev vipd lease2")?;
        trial.sleep(0..300);
    }
    Ok(End::Unmoved)
}

/// The next renewal makes it end again.
fn lease_prolonged(trial: &mut Trial<'_>) -> Result<End> {
    let owner = trial.owner;
    let lease = format!("netdev vipd lease1 {{ {RUNNING}");
    // Between the two it may be renewed, or have ended.
    nft(trial, owner, &format!("delete element {lease} }}; add element {lease} timeout 1h }}"))?;
    trial.sleep(500..900);
    trial.node(owner).freeze()?;
    let lease_end = trial.lease_end(Stamp::now());
    trial.sleep_of_lease(150..400);
    trial.node(owner).thaw()?;
    std::thread::sleep(trial.lease());
    trial.silent_since(owner, lease_end)?;
    Ok(End::Not(owner))
}

/// What `nft` calls the element of a lease that runs.
const RUNNING: &str = "5";

/// Nothing is held there, and whatever comes to be held there has a lease of its own.
fn lease_added(trial: &mut Trial<'_>) -> Result<End> {
    let (owner, other) = (trial.owner, trial.other());
    nft(trial, other, &format!("add element netdev vipd lease1 {{ {RUNNING} }}"))?;
    trial.sleep(100..1000);
    let answers = trial.cluster.lab.observe().answers(Stamp::now() - Duration::from_millis(100));
    ensure!(answers.iter().all(|answer| answer.host == owner), "{other} answered");
    // It or the third node takes over, and then it falls silent in time.
    trial.node(owner).kill()?;
    std::thread::sleep(trial.lease() * 3);
    trial.node(owner).start()?;
    trial.note("the first owner is back");
    trial.sleep(500..900);
    trial.node(other).freeze()?;
    let lease_end = trial.lease_end(Stamp::now());
    trial.sleep_of_lease(150..400);
    trial.node(other).thaw()?;
    std::thread::sleep(trial.lease());
    trial.silent_since(other, lease_end)?;
    Ok(End::Not(other))
}

fn refused(trial: &mut Trial<'_>) -> Result<End> {
    let owner = trial.owner;
    let before = trial.cluster.table_on(owner)?;
    let owned = before.as_ref().is_some_and(|shown| shown.contains("flags owner"));
    // It passes by what belongs to others.
    nft(trial, owner, "flush ruleset")?;
    if !owned {
        wait_for_fence(trial, owner)?;
        return Ok(End::Skipped("before Linux 6.9 a table has no owner that it outlives".to_owned()));
    }
    for command in ["delete table netdev vipd", "flush table netdev vipd", "flush set netdev vipd vip4"] {
        ensure!(nft(trial, owner, command).is_err(), "nft {command} was not refused");
    }
    ensure!(trial.cluster.table_on(owner)? == before, "the table is another one");
    Ok(End::Unmoved)
}

/// Without its daemon a table is nobody's. Nothing is held on that node, so nothing speaks there meanwhile.
fn orphan_deleted(trial: &mut Trial<'_>) -> Result<End> {
    let other = trial.other();
    trial.node(other).kill()?;
    trial.sleep(0..300);
    nft(trial, other, "flush ruleset")?;
    trial.sleep(0..1000);
    trial.node(other).start()?;
    wait_until("the fence is back", Duration::from_secs(10), || trial.cluster.is_fenced(other))?;
    trial.sleep(100..600);
    Ok(End::Unmoved)
}

/// One transaction at a time: a renewal waits for them.
fn busy(trial: &mut Trial<'_>) -> Result<End> {
    const ELEMENTS: u32 = 20_000;
    let owner = trial.owner;
    let path = trial.cluster.lab.dir().join("busy.nft");
    let elements: Vec<String> =
        (0..ELEMENTS).map(|n| std::net::Ipv4Addr::from(0x0b00_0000 + n * 7).to_string()).collect();
    let rules = format!(
        "table inet busy {{\nset s {{\ntype ipv4_addr\nelements = {{ {} }}\n}}\n}}\ndelete table inet busy\n",
        elements.join(", ")
    );
    fs::write(&path, rules)?;
    for _ in 0..trial.rng.u8(3..10) {
        trial.on(owner, &["nft", "-f", &path.display().to_string()])?;
    }
    Ok(End::Anyone)
}

/// Between any two system calls of the two transactions that a renewal takes. What comes after a pause that was too long
/// must open nothing.
fn renewing(trial: &mut Trial<'_>, deed: Deed) -> Result<End> {
    let owner = trial.owner;
    let trap = Trap::set(trial, &[owner], LEASE)?;
    if let Some((host, tracee)) = trap.wait(trial, Duration::from_secs(2))? {
        let struck = Stamp::now();
        strike(trial, host, tracee, deed)?;
        if deed == Deed::Kill {
            std::thread::sleep(trial.lease() + Duration::from_millis(200));
            trial.silent_since(owner, trial.lease_end(struck))?;
            trial.node(host).start()?;
        }
        if deed == Deed::Hold {
            // It is the leader all the time, and cannot renew.
            trial.outages_count_from_here();
        }
    }
    std::thread::sleep(trial.lease());
    Ok(End::Anyone)
}

#[test]
fn with_nftables() -> TestResult {
    run_with_nftables(&[
        (&kills::GROUP, &["the owner is killed and started within its lease"]),
        (&freezes::GROUP, &["the owner is frozen and wakes around its deadline"]),
        (&partitions::GROUP, &["the owner is cut off from the nodes, not from the client"]),
        (&OWNED, &["the owner is frozen while it renews its lease"]),
        (&tampering::GROUP, &["the clsact qdisc or table of the owner is removed"]),
        (&GROUP, &["the owner's lease is prolonged by hand before it is frozen"]),
    ])
}
