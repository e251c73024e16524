//! A daemon that is killed, or stands still, between any two of its effects while it takes VIPs or gives them back.
//!
//! Where it is to stop is named by a thread and the number of a system call of that thread, counted from the fault that
//! makes it act; see [`vip_tests::trace`]. Waiting and memory do not count. The notes of a trial tell what the thread was
//! about to do, or had just done.

use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;
use vip_lab::{HostId, Stamp};
use vip_tests::cluster::FenceKind;
use vip_tests::trace::{Stop, Tracee};
use vip_tests::{TestResult, wait_until};

use crate::campaign::{Group, Stage, run};
use crate::tampering;
use crate::trial::{Case, End, Trial};

/// The threads that act, and how many system calls of each a takeover takes at the least, before and after each of which
/// there is a trial sooner or later. Beyond the last one a trial is one without a stop.
const AGENT: (&str, usize) = ("vipd-agent", 24);
pub(crate) const LEASE: (&str, usize) = ("vipd-lease", 6);
const STORE: (&str, usize) = ("raft-store", 24);

pub(crate) const GROUP: Group = Group {
    stage: Stage::Tampered,
    cases: &[
        case("killed while it takes the VIPs: agent", 2, |trial| taking(trial, AGENT, Deed::Kill)),
        case("killed while it takes the VIPs: lease", 0, |trial| taking(trial, LEASE, Deed::Kill)),
        case("killed while it takes the VIPs: store", 1, |trial| taking(trial, STORE, Deed::Kill)),
        case("frozen while it takes the VIPs: agent", 1, |trial| taking(trial, AGENT, Deed::Freeze)),
        case("frozen while it takes the VIPs: lease", 0, |trial| taking(trial, LEASE, Deed::Freeze)),
        case("frozen while it takes the VIPs: store", 0, |trial| taking(trial, STORE, Deed::Freeze)),
        case("one thread stands still while it takes the VIPs: agent", 1, |trial| taking(trial, AGENT, Deed::Hold)),
        case("one thread stands still while it takes the VIPs: store", 0, |trial| taking(trial, STORE, Deed::Hold)),
        case("killed while it gives the VIPs back", 1, |trial| giving_back(trial, Deed::Kill)),
        case("frozen while it gives the VIPs back", 1, |trial| giving_back(trial, Deed::Freeze)),
        case("one thread stands still while it gives the VIPs back", 0, |trial| giving_back(trial, Deed::Hold)),
        case("killed while it repairs its fence", 1, |trial| repairing(trial, Deed::Kill)),
        case("frozen while it repairs its fence", 0, |trial| repairing(trial, Deed::Freeze)),
    ],
};

const fn case(name: &'static str, in_ci: u32, run: fn(&mut Trial<'_>) -> Result<End>) -> Case {
    Case { name, bound_ms: 5000, usual_ms: 1500, in_ci, run }
}

/// What happens to a daemon at its stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deed {
    /// SIGKILL.
    Kill,
    /// SIGSTOP, and SIGCONT after a while.
    Freeze,
    /// Only the thread stands still for a while; the others go on.
    Hold,
}

/// The `count`-th system call of a thread of one of some daemons.
pub(crate) struct Trap {
    tracees: Vec<(HostId, Tracee, usize)>,
    count: usize,
    before: bool,
}

impl Trap {
    /// Sets it at a call by chance. A fence of nftables takes some more.
    pub(crate) fn set(trial: &mut Trial<'_>, hosts: &[HostId], (thread, calls): (&str, usize)) -> Result<Self> {
        let calls = if trial.cluster.fence == FenceKind::Nftables { calls * 2 } else { calls };
        let count = trial.rng.usize(1..=calls);
        let before = trial.rng.bool();
        let mut tracees = Vec::new();
        for &host in hosts {
            let pid = trial.node(host).pid().unwrap_or_default();
            tracees.push((host, Tracee::seize(pid, thread)?, 0));
        }
        Ok(Self { tracees, count, before })
    }

    /// Waits until a thread walks into it: there it stands, and the others are let go. `None` when none does in time.
    pub(crate) fn wait(mut self, trial: &mut Trial<'_>, limit: Duration) -> Result<Option<(HostId, Tracee)>> {
        let deadline = Stamp::now() + limit;
        let mut calls: Vec<(HostId, Stop)> = Vec::new();
        while Stamp::now() < deadline {
            for i in 0..self.tracees.len() {
                let (host, tracee, seen) = &mut self.tracees[i];
                let Some(stop) = tracee.poll()? else { continue };
                *seen += usize::from(stop.before && stop.has_effect());
                if stop.has_effect() {
                    calls.push((*host, stop));
                }
                if *seen == self.count && stop.has_effect() && stop.before == self.before {
                    let (host, tracee, seen) = self.tracees.swap_remove(i);
                    let side = if self.before { "before" } else { "after" };
                    trial.note(format!("{host} stands {side} its call {seen}, {}", stop.name()));
                    return Ok(Some((host, tracee)));
                }
                tracee.resume()?;
            }
            std::thread::sleep(Duration::from_micros(20));
        }
        let counts: Vec<_> = self.tracees.iter().map(|(host, _, seen)| format!("{seen} of {host}")).collect();
        trial.note(format!("no stop: there were only the calls {}, not {}", counts.join(", "), self.count));
        Ok(None)
    }
}

/// Does the deed to a daemon that stands at its stop, and lets go of it. A killed one is not started again here.
pub(crate) fn strike(trial: &mut Trial<'_>, host: HostId, tracee: Tracee, deed: Deed) -> TestResult {
    let node = trial.node(host);
    match deed {
        Deed::Kill => {
            node.signal(Signal::SIGKILL)?;
            drop(tracee);
            wait_until("the killed daemon is gone", Duration::from_secs(5), || Ok(!node.is_running()))?;
        }
        Deed::Freeze => {
            node.freeze()?;
            trial.sleep_of_lease(0..400);
            node.thaw()?;
            drop(tracee);
        }
        Deed::Hold => {
            trial.sleep_of_lease(0..400);
            drop(tracee);
        }
    }
    trial.note(format!("{deed:?} is over"));
    Ok(())
}

/// The owner is killed; whoever takes over is struck.
fn taking(trial: &mut Trial<'_>, thread: (&str, usize), deed: Deed) -> Result<End> {
    let (owner, others) = (trial.owner, trial.others());
    // With the store any node has something to do; with the others only the heir.
    let trap = Trap::set(trial, &others, thread)?;
    trial.node(owner).kill()?;
    let struck = trap.wait(trial, trial.lease() + Duration::from_millis(700))?;
    if let Some((host, tracee)) = struck {
        strike(trial, host, tracee, deed)?;
        trial.sleep(0..300);
        trial.node(owner).start()?;
        trial.outages_count_from_here();
        trial.sleep(0..500);
        trial.node(host).start()?;
    } else {
        trial.node(owner).start()?;
    }
    std::thread::sleep(trial.lease());
    Ok(End::Anyone)
}

/// The owner is told to end, and struck while it does.
fn giving_back(trial: &mut Trial<'_>, deed: Deed) -> Result<End> {
    let owner = trial.owner;
    let trap = Trap::set(trial, &[owner], ("vipd-agent", 12))?;
    trial.node(owner).signal(Signal::SIGTERM)?;
    if let Some((host, tracee)) = trap.wait(trial, Duration::from_millis(700))? {
        strike(trial, host, tracee, deed)?;
        // It is the leader as long as its other threads run, and what it gave back is nobody's until it goes on.
        if deed == Deed::Hold {
            trial.outages_count_from_here();
        }
    }
    let node = trial.node(owner);
    wait_until("the owner has ended", Duration::from_secs(10), || Ok(!node.is_running()))?;
    trial.sleep(0..500);
    node.start()?;
    std::thread::sleep(trial.lease());
    Ok(End::Anyone)
}

/// The owner's fence is taken away: it drops all, puts them back, and takes the VIPs again, or another does.
fn repairing(trial: &mut Trial<'_>, deed: Deed) -> Result<End> {
    let owner = trial.owner;
    let hosts = trial.nodes();
    let trap = Trap::set(trial, &hosts, AGENT)?;
    tampering::remove_fence(trial, owner)?;
    if let Some((host, tracee)) = trap.wait(trial, Duration::from_secs(1))? {
        // Without a fence only a daemon that runs keeps its host silent: that one may not be struck before it is back.
        if !trial.cluster.is_fenced(host)? {
            trial.note("not struck: it has no fence yet");
            drop(tracee);
            return Ok(End::Anyone);
        }
        strike(trial, host, tracee, deed)?;
        trial.node(host).start()?;
    }
    std::thread::sleep(trial.lease());
    Ok(End::Anyone)
}

#[test]
fn phases() -> TestResult {
    run(&GROUP)
}
