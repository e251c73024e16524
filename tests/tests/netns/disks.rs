//! Disks that fail: a node without a store that it can trust holds nothing, says so, and is whole again when its disk is.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vip_lab::{HostId, Node};
use vip_tests::cluster::Cluster;
use vip_tests::disk::Disk;
use vip_tests::{TestResult, wait_until};

use crate::campaign::{Group, Stage, run};
use crate::trial::{Case, End, Stand, Trial};

const LIMIT: Duration = Duration::from_secs(10);
const STORE: &str = "raft.redb";

pub(crate) const GROUP: Group = Group {
    stage: Stage::Disks,
    cases: &[
        case("the owner's disk is full", 150, |trial| {
            let owner = trial.owner;
            full(trial, owner)?;
            Ok(End::Not(owner))
        }),
        seldom("another node's disk is full", 50, |trial| {
            let other = trial.other();
            full(trial, other)?;
            Ok(End::Unmoved)
        }),
        case("the owner's disk fails and is read-only", 150, |trial| {
            let owner = trial.owner;
            read_only(trial, owner)?;
            Ok(End::Not(owner))
        }),
        seldom("another node's disk fails and is read-only", 50, |trial| {
            let other = trial.other();
            read_only(trial, other)?;
            Ok(End::Unmoved)
        }),
        case("the owner's disk hangs", 50, |trial| {
            let owner = trial.owner;
            hangs(trial, owner)?;
            Ok(End::Unmoved)
        }),
        seldom("another node's disk hangs", 50, |trial| {
            let other = trial.other();
            hangs(trial, other)?;
            Ok(End::Unmoved)
        }),
        seldom("a node's disk hangs when the owner is killed", 1500, hangs_in_takeover),
        seldom("the disks of all fail at once", 5000, all_fail),
        case("the end of a killed owner's store is damaged", 150, |trial| {
            let owner = trial.owner;
            damaged(trial, owner)?;
            Ok(End::Not(owner))
        }),
        case("the newest record of a killed node's store is damaged", 50, |trial| {
            let other = trial.other();
            newest_damaged(trial, other)?;
            Ok(End::Unmoved)
        }),
        seldom("the newest record of a killed owner's store is damaged", 150, |trial| {
            let owner = trial.owner;
            newest_damaged(trial, owner)?;
            Ok(End::Not(owner))
        }),
        seldom("the end of a killed node's store is missing", 50, cut_short),
    ],
};

const fn case(name: &'static str, usual_ms: u64, run: fn(&mut Trial<'_>) -> Result<End>) -> Case {
    Case { name, bound_ms: 5000, usual_ms, in_ci: 1, run }
}

/// One that only a campaign runs.
const fn seldom(name: &'static str, usual_ms: u64, run: fn(&mut Trial<'_>) -> Result<End>) -> Case {
    Case { in_ci: 0, ..case(name, usual_ms, run) }
}

/// The cluster with the store of every node on a small disk of its own.
pub(crate) fn stand(cluster: Option<Cluster>) -> Result<Option<Stand>> {
    const MIB: u64 = 12;
    let Some(cluster) = cluster else { return Ok(None) };
    cluster.lab.nodes().iter().try_for_each(Node::kill)?;
    let mut disks = BTreeMap::new();
    for node in cluster.lab.nodes() {
        let (host, dir) = (node.host(), node.dir().display().to_string());
        let disk = Disk::mount(node.dir().join("disk"), MIB)?;
        fs::copy(node.dir().join(STORE), disk.path().join(STORE))?;
        cluster.reconfigure(host, &format!("data_dir = \"{dir}\""), &format!("data_dir = \"{dir}/disk\""))?;
        disks.insert(host, disk);
    }
    cluster.lab.nodes().iter().try_for_each(Node::start)?;
    Ok(Some(Stand { cluster, disks, children: Vec::new(), dir: None }))
}

fn disk<'a>(trial: &Trial<'a>, host: HostId) -> Result<&'a Disk> {
    trial.stand.disks.get(&host).with_context(|| format!("{host} has no disk"))
}

/// Changes the agreed state until the daemon of `host` has ended: renewing a lease writes nothing.
fn write_until_it_ends(trial: &mut Trial<'_>, host: HostId) -> TestResult {
    const MOST: u32 = 400;
    let node = trial.node(host);
    let writer = if host == trial.owner { host } else { trial.owner };
    for changes in 0..MOST {
        let change: &[&str] = match changes % 2 {
            0 => &["--timeout", "2s", "vip", "add", "more", "10.77.5.1", "--interface", "eth0"],
            _ => &["--timeout", "2s", "vip", "rm", "more"],
        };
        // It may have been refused by the very node that ends.
        trial.cluster.vipctl(writer, change)?;
        if !node.is_running() {
            trial.note(format!("ended after {changes} changes"));
            return Ok(());
        }
    }
    anyhow::bail!("{host} still runs after {MOST} changes that it cannot write")
}

fn says(trial: &Trial<'_>, host: HostId, words: &[&str]) -> TestResult {
    let log = fs::read_to_string(trial.node(host).log_path())?;
    let found = log.lines().any(|line| words.iter().any(|word| line.contains(word)));
    ensure!(found, "{host} says none of {words:?}\n{}", trial.node(host).log_tail(20));
    Ok(())
}

/// The others take over; after `repair` the node joins again.
fn back_after(trial: &mut Trial<'_>, host: HostId, repair: impl FnOnce(&Disk) -> Result<()>) -> TestResult {
    ensure!(trial.cluster.vips_on(host)?.is_empty(), "{host} left its addresses behind");
    trial.sleep(100..600);
    repair(disk(trial, host)?)?;
    trial.node(host).start()?;
    trial.note("repaired and started");
    std::thread::sleep(trial.lease() + Duration::from_millis(300));
    // What was added and not removed.
    let holder = trial.nodes().into_iter().find(|&other| other != host).unwrap_or(host);
    trial.cluster.vipctl(holder, &["--timeout", "2s", "vip", "rm", "more"])?;
    Ok(())
}

fn full(trial: &mut Trial<'_>, host: HostId) -> TestResult {
    disk(trial, host)?.fill()?;
    write_until_it_ends(trial, host)?;
    says(trial, host, &["No space left", "no space is left"])?;
    back_after(trial, host, Disk::make_room)
}

fn read_only(trial: &mut Trial<'_>, host: HostId) -> TestResult {
    disk(trial, host)?.fail()?;
    write_until_it_ends(trial, host)?;
    says(trial, host, &["Read-only file system", "Input/output error", "read-only"])?;
    // As a supervisor would, to no use.
    let node = trial.node(host);
    node.start()?;
    wait_until("it ends again", LIMIT, || Ok(!node.is_running()))?;
    back_after(trial, host, Disk::repair)
}

/// What is held without writing goes on; with the first change all end, and nobody may hold without a store.
fn all_fail(trial: &mut Trial<'_>) -> Result<End> {
    for host in trial.nodes() {
        disk(trial, host)?.fail()?;
    }
    trial
        .cluster
        .vipctl(trial.owner, &["--timeout", "2s", "vip", "add", "more", "10.77.5.1", "--interface", "eth0"])?;
    std::thread::sleep(trial.lease() * 2);
    let running: Vec<_> = trial.nodes().into_iter().filter(|&host| trial.node(host).is_running()).collect();
    trial.note(format!("still running: {running:?}"));
    for host in trial.nodes() {
        if trial.node(host).is_running() {
            trial.node(host).kill()?;
        }
        disk(trial, host)?.repair()?;
    }
    trial.cluster.lab.nodes().iter().try_for_each(Node::start)?;
    trial.note("repaired and started");
    trial.outages_count_from_here();
    Ok(End::Anyone)
}

/// Nobody writes anything but changes, and those wait.
fn hangs(trial: &mut Trial<'_>, host: HostId) -> TestResult {
    disk(trial, host)?.freeze()?;
    trial.sleep(500..1500);
    let change = ["--timeout", "300ms", "vip", "add", "more", "10.77.5.1", "--interface", "eth0"];
    trial.cluster.vipctl(trial.owner, &change)?;
    trial.sleep(500..2000);
    disk(trial, host)?.thaw()?;
    trial.note("thawed");
    trial.sleep(300..800);
    trial.cluster.vipctl(trial.owner, &["--timeout", "2s", "vip", "rm", "more"])?;
    Ok(())
}

/// It cannot vote, and the third one alone cannot win.
fn hangs_in_takeover(trial: &mut Trial<'_>) -> Result<End> {
    let (owner, other) = (trial.owner, trial.other());
    disk(trial, other)?.freeze()?;
    trial.node(owner).kill()?;
    trial.note(format!("the disk of {other} hangs"));
    std::thread::sleep(trial.lease());
    trial.sleep(200..2000);
    disk(trial, other)?.thaw()?;
    trial.note("thawed");
    trial.outages_count_from_here();
    trial.sleep(0..1000);
    trial.node(owner).start()?;
    Ok(End::Anyone)
}

fn damaged(trial: &mut Trial<'_>, host: HostId) -> TestResult {
    trial.node(host).kill()?;
    let path = disk(trial, host)?.path().join(STORE);
    let whole = fs::read(&path)?;
    let mut bytes = whole.clone();
    // Behind the header; a page here and there, as after a torn write.
    for _ in 0..trial.rng.usize(1..20) {
        let at = trial.rng.usize(4096..bytes.len() - 64);
        bytes[at..at + 64].iter_mut().for_each(|byte| *byte ^= 0x5a);
    }
    fs::write(&path, &bytes)?;
    let node = trial.node(host);
    node.start()?;
    trial.sleep(1500..2500);
    if node.is_running() {
        // It has written since: what was there before would be a disk that went back in time.
        trial.note("runs: nothing of it was in use");
        return Ok(());
    }
    trial.note("refused");
    says(trial, host, &["cannot trust"])?;
    ensure!(fs::read(&path)? == bytes, "the damaged file is kept as it was, for a look at it");
    fs::write(&path, whole)?;
    node.start()?;
    Ok(())
}

/// What the newest change wrote is damaged: either the store is refused, or it opens without that change, as after a power
/// loss in the middle of a write. Then the node lacks what it had acknowledged, and is sent it again.
fn newest_damaged(trial: &mut Trial<'_>, host: HostId) -> TestResult {
    const PAGE: usize = 4096;
    let path = disk(trial, host)?.path().join(STORE);
    let before = fs::read(&path)?;
    let add = ["--timeout", "2s", "vip", "add", "more", "10.77.5.1", "--interface", "eth0"];
    trial.cluster.vipctl(trial.owner, &add)?;
    wait_until("the change is in the store", LIMIT, || Ok(fs::read(&path)? != before))?;
    trial.sleep(20..200);
    let node = trial.node(host);
    node.kill()?;
    let whole = fs::read(&path)?;
    let mut pages: Vec<usize> = (0..whole.len().div_ceil(PAGE))
        .map(|page| page * PAGE)
        .filter(|&at| before.get(at..at + PAGE) != whole.get(at..at + PAGE))
        .collect();
    trial.rng.shuffle(&mut pages);
    let at = *pages.first().context("the change is nowhere in the store")?;
    let mut bytes = whole.clone();
    let end = bytes.len().min(at + PAGE);
    bytes[at..end].iter_mut().for_each(|byte| *byte ^= 0x5a);
    fs::write(&path, &bytes)?;
    node.start()?;
    trial.sleep(1500..2500);
    if node.is_running() {
        trial.note(format!("runs, with page {} of {} damaged", at / PAGE, pages.len()));
    } else {
        trial.note(format!("refused, with page {} of {} damaged", at / PAGE, pages.len()));
        says(trial, host, &["cannot trust"])?;
        fs::write(&path, whole)?;
        node.start()?;
    }
    let known = || {
        let list = trial.cluster.vipctl(host, &["--timeout", "2s", "--consistency", "local", "vip", "list"])?;
        Ok(String::from_utf8_lossy(&list.stdout).contains("10.77.5.1"))
    };
    wait_until("the node knows of the change", LIMIT, known)?;
    let writer = trial.nodes().into_iter().find(|&other| other != host).unwrap_or(host);
    trial.cluster.vipctl(writer, &["--timeout", "2s", "vip", "rm", "more"])?;
    Ok(())
}

fn cut_short(trial: &mut Trial<'_>) -> Result<End> {
    let other = trial.other();
    trial.node(other).kill()?;
    let path = disk(trial, other)?.path().join(STORE);
    let whole = fs::read(&path)?;
    let cut = trial.rng.usize(1..whole.len() / 2);
    fs::write(&path, &whole[..whole.len() - cut])?;
    let node = trial.node(other);
    node.start()?;
    trial.sleep(1000..2000);
    trial.note(format!("{cut} bytes less: {}", if node.is_running() { "runs" } else { "refused" }));
    if node.is_running() {
        return Ok(End::Unmoved);
    }
    fs::write(&path, whole)?;
    node.start()?;
    Ok(End::Unmoved)
}

#[test]
fn disks() -> TestResult {
    run(&GROUP)
}
