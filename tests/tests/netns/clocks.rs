//! Clocks. The hosts of a laboratory share one kernel, and with it the wall clock, and its suspending: what would take
//! other machines is reported as skipped. What a kernel can do for one process alone is to let it see another time since
//! the boot, in a time namespace, as in a container that was moved.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use tempfile::TempDir;
use vip_lab::LabBuilder;
use vip_tests::cluster::cluster_of;
use vip_tests::{TestResult, programs};

use crate::campaign::{Group, Stage, run};
use crate::trial::{Case, End, Kept, Stand, Trial};

pub(crate) const GROUP: Group = Group {
    stage: Stage::Clocks,
    cases: &[
        case("the owner is killed where each node has its own time since the boot", |trial| {
            let owner = trial.owner;
            trial.node(owner).kill()?;
            let lease_end = trial.lease_end(vip_lab::Stamp::now());
            std::thread::sleep(trial.lease() * 2);
            trial.silent_since(owner, lease_end)?;
            trial.node(owner).start()?;
            Ok(End::Not(owner))
        }),
        seldom("the owner is cut off where each node has its own time since the boot", |trial| {
            let (owner, others) = (trial.owner, trial.others());
            trial.network().partition(&[owner], &others)?;
            let lease_end = trial.lease_end(vip_lab::Stamp::now());
            std::thread::sleep(trial.lease() * 2);
            trial.silent_since(owner, lease_end)?;
            trial.network().heal()?;
            Ok(End::Not(owner))
        }),
        case("the owner is frozen where each node has its own time since the boot", |trial| {
            let owner = trial.owner;
            trial.node(owner).freeze()?;
            let lease_end = trial.lease_end(vip_lab::Stamp::now());
            trial.sleep_of_lease(120..300);
            trial.node(owner).thaw()?;
            std::thread::sleep(trial.lease());
            trial.silent_since(owner, lease_end)?;
            Ok(End::Not(owner))
        }),
        case("the wall clock is stepped by hours", |_| {
            skipped("the kernel has one CLOCK_REALTIME for all namespaces, and it is this machine's")
        }),
        case("a host is suspended and its clock goes on", |_| {
            skipped("suspending stops the whole machine, the observer with it")
        }),
    ],
};

const fn case(name: &'static str, run: fn(&mut Trial<'_>) -> Result<End>) -> Case {
    Case { name, bound_ms: 2000, usual_ms: 150, in_ci: 1, run }
}

/// One that only a campaign runs.
const fn seldom(name: &'static str, run: fn(&mut Trial<'_>) -> Result<End>) -> Case {
    Case { in_ci: 0, ..case(name, run) }
}

#[allow(clippy::unnecessary_wraps, reason = "it stands where faults stand")]
fn skipped(why: &str) -> Result<End> {
    Ok(End::Skipped(why.to_owned()))
}

/// A cluster of which each daemon sees another time since the boot, in seconds: later, earlier, and by days.
pub(crate) fn stand(builder: LabBuilder) -> Result<Option<Stand>> {
    const OFFSETS: [(&str, i64); 3] = [("n1", 3600), ("n2", -600), ("n3", 864_000)];
    let dir = TempDir::new()?;
    let mut children = Vec::new();
    let mut choices = String::new();
    for (node, offset) in OFFSETS {
        let child = namespace(offset)?;
        choices += &format!("*/{node}/*) clock=/proc/{}/ns/time_for_children ;;\n", child.0.id());
        children.push(child);
    }
    let vipd = programs::vipd()?;
    // nsenter becomes the daemon: signals reach it, and nobody else.
    let script = format!(
        "#!/bin/sh\ncase \"$2\" in\n{choices}*) exit 3 ;;\nesac\nexec nsenter --time=\"$clock\" -- {} \"$@\"\n",
        vipd.display()
    );
    let path = dir.path().join("vipd");
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    let cluster = cluster_of(builder.vipd(Some(path)))?;
    Ok(cluster.map(|cluster| Stand { cluster, disks: BTreeMap::new(), children, dir: Some(dir) }))
}

/// A process in a time namespace of its own.
fn namespace(offset: i64) -> Result<Kept> {
    // The process that makes the namespace is not in it; what it becomes after a fork is.
    let mut command = Command::new("unshare");
    command.args(["--time", "--boottime", &offset.to_string(), "--fork", "--kill-child", "sleep", "infinity"]);
    Ok(Kept(command.stdin(Stdio::null()).spawn().context("start unshare")?))
}

#[test]
fn clocks() -> TestResult {
    run(&GROUP)
}
