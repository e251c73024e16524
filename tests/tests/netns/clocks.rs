//! Clocks. The hosts of a laboratory share one kernel, and with it its suspending: what would take other machines is
//! reported as skipped. What a kernel can do for one process alone is to let it see another time since the boot, in a time
//! namespace, as in a container that was moved. Its wall clock is the whole machine's; here the C library of each daemon
//! tells it another one ([`WALL_CLOCK`]), which it cannot tell from the kernel's.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use vip_lab::{HostId, LabBuilder};
use vip_tests::cluster::Cluster;
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
        case("the wall clock of the daemons is stepped by hours", |trial| {
            step_wall_clocks(trial)?;
            trial.sleep(1000..3000);
            Ok(End::Unmoved)
        }),
        case("the wall clock of the daemons is stepped by hours and the owner is killed", |trial| {
            let owner = trial.owner;
            let logs: Vec<_> = trial.nodes().into_iter().map(|host| (host, length_of_log(trial, host))).collect();
            let stepped = step_wall_clocks(trial)?;
            trial.node(owner).kill()?;
            let lease_end = trial.lease_end(vip_lab::Stamp::now());
            std::thread::sleep(trial.lease() * 2);
            trial.silent_since(owner, lease_end)?;
            for (host, length) in logs.into_iter().filter(|(host, _)| stepped.contains(host) && *host != owner) {
                saw_the_step(trial, host, length)?;
            }
            trial.node(owner).start()?;
            Ok(End::Not(owner))
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

/// Preloaded into the daemons: CLOCK_REALTIME is so many seconds later as a file says.
const WALL_CLOCK: &str = include_str!("wall_clock.c");

/// The file that says so, in the directory of the stand.
fn offset_file(host: HostId) -> String {
    format!("offset-{host}")
}

/// Steps the wall clocks of some nodes, each by hours of its own, back or forth. Which ones.
fn step_wall_clocks(trial: &mut Trial<'_>) -> Result<Vec<HostId>> {
    let dir = trial.stand.dir.as_ref().context("the directory of the offsets")?.path().to_owned();
    let mut hosts = trial.nodes();
    trial.rng.shuffle(&mut hosts);
    hosts.truncate(trial.rng.usize(1..=hosts.len()));
    for &host in &hosts {
        let hours = trial.rng.i64(2..12) * if trial.rng.bool() { 1 } else { -1 };
        // In place: the daemon reads it as memory.
        fs::OpenOptions::new()
            .write(true)
            .open(dir.join(offset_file(host)))?
            .write_all(&(hours * 3600).to_ne_bytes())?;
        trial.note(format!("the wall clock of {host} is {hours} hours off"));
    }
    Ok(hosts)
}

fn length_of_log(trial: &Trial<'_>, host: HostId) -> usize {
    fs::read(trial.node(host).log_path()).map_or(0, |log| log.len())
}

/// That the daemon took part in the takeover by the stepped clock: what it logged since is hours away from now.
fn saw_the_step(trial: &Trial<'_>, host: HostId, from: usize) -> Result<()> {
    let log = fs::read(trial.node(host).log_path())?;
    let new = String::from_utf8_lossy(&log[from..]).into_owned();
    let hour = Command::new("date").args(["-u", "+%Y-%m-%dT%H:"]).output().context("run date")?;
    let hour = String::from_utf8(hour.stdout)?;
    let dated = |line: &&str| line.contains("T") && line.trim_start().starts_with("20");
    let line = new.lines().find(dated).with_context(|| format!("{host} logged nothing in a takeover:\n{new}"))?;
    ensure!(!line.contains(hour.trim()), "{host} did not see that its clock was stepped: {line}");
    Ok(())
}

/// A cluster of which each daemon sees another time since the boot, in seconds: later, earlier, and by days. Their wall
/// clocks are right at first.
pub(crate) fn stand(
    builder: LabBuilder,
    build: impl FnOnce(LabBuilder) -> Result<Option<Cluster>>,
) -> Result<Option<Stand>> {
    const OFFSETS: [(&str, i64); 3] = [("n1", 3600), ("n2", -600), ("n3", 864_000)];
    let dir = TempDir::new()?;
    let mut children = Vec::new();
    let (source, library) = (dir.path().join("wall_clock.c"), dir.path().join("wall_clock.so"));
    fs::write(&source, WALL_CLOCK)?;
    let status = Command::new("cc").args(["-shared", "-fPIC", "-O2", "-o"]).args([&library, &source]).status();
    ensure!(status.context("run cc")?.success(), "cc cannot compile wall_clock.c");
    let mut choices = String::new();
    for (node, offset) in OFFSETS {
        let child = namespace(offset)?;
        let offset = dir.path().join(format!("offset-{node}"));
        fs::write(&offset, 0_i64.to_ne_bytes())?;
        choices += &format!("*/{node}/*) clock=/proc/{}/ns/time_for_children", child.0.id());
        choices += &format!(" VIPD_TEST_WALL_CLOCK={} ;;\n", offset.display());
        children.push(child);
    }
    let vipd = programs::vipd()?;
    // nsenter becomes the daemon: signals reach it, and nobody else.
    let script = format!(
        "#!/bin/sh\ncase \"$2\" in\n{choices}*) exit 3 ;;\nesac\nexport VIPD_TEST_WALL_CLOCK\n\
         exec nsenter --time=\"$clock\" -- env LD_PRELOAD={} {} \"$@\"\n",
        library.display(),
        vipd.display()
    );
    let path = dir.path().join("vipd");
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    let cluster = build(builder.vipd(Some(path)))?;
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
