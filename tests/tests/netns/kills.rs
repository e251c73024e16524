//! SIGKILL, SIGTERM and starts: daemons that end, in order or not, at any time.

use std::time::Duration;

use anyhow::ensure;
use nix::sys::signal::Signal;
use vip_lab::{HostId, Stamp};
use vip_tests::{TestResult, wait_until};

use crate::campaign::{Group, Stage, run, run_fast};
use crate::trial::{Case, End, Trial};

pub(crate) const GROUP: Group = Group {
    stage: Stage::Three,
    cases: &[
        Case { name: "the owner is killed", bound_ms: 2000, usual_ms: 150, in_ci: 1, run: owner_killed },
        Case { name: "the owner is stopped", bound_ms: 2000, usual_ms: 150, in_ci: 1, run: owner_stopped },
        Case {
            name: "the owner is killed and started within its lease",
            bound_ms: 2000,
            usual_ms: 1000,
            in_ci: 1,
            run: restarted_within_its_lease,
        },
        Case { name: "another node is killed and started", bound_ms: 1000, usual_ms: 50, in_ci: 0, run: other_killed },
        Case { name: "two nodes are killed at once", bound_ms: 3000, usual_ms: 1500, in_ci: 1, run: two_killed },
        Case { name: "all are killed at once", bound_ms: 3000, usual_ms: 1500, in_ci: 1, run: all_killed },
        Case {
            name: "a node is stopped during a takeover",
            bound_ms: 3000,
            usual_ms: 1500,
            in_ci: 0,
            run: stop_in_takeover,
        },
        Case {
            name: "a node is killed during a takeover",
            bound_ms: 3000,
            usual_ms: 1500,
            in_ci: 1,
            run: kill_in_takeover,
        },
        Case { name: "all are restarted in turn", bound_ms: 2000, usual_ms: 150, in_ci: 1, run: rolling_restart },
        Case { name: "a storm of restarts", bound_ms: 3000, usual_ms: 1500, in_ci: 1, run: storm },
    ],
};

fn owner_killed(trial: &mut Trial<'_>) -> anyhow::Result<End> {
    let owner = trial.owner;
    trial.node(owner).kill()?;
    let lease_end = trial.lease_end(Stamp::now());
    std::thread::sleep(trial.lease());
    trial.sleep(100..1500);
    trial.node(owner).start()?;
    trial.sleep(100..600);
    trial.silent_since(owner, lease_end)?;
    Ok(End::Not(owner))
}

fn owner_stopped(trial: &mut Trial<'_>) -> anyhow::Result<End> {
    let owner = trial.owner;
    trial.node(owner).stop(Duration::from_secs(5))?;
    let stopped = Stamp::now();
    ensure!(trial.cluster.vips_on(owner)?.is_empty(), "{owner} left its addresses behind");
    trial.sleep(100..1500);
    trial.node(owner).start()?;
    trial.sleep(100..600);
    trial.silent_since(owner, stopped)?;
    Ok(End::Not(owner))
}

/// The new daemon shuts the fence at its start, before its predecessor's lease is over: the VIPs are away until that is.
fn restarted_within_its_lease(trial: &mut Trial<'_>) -> anyhow::Result<End> {
    let owner = trial.node(trial.owner);
    owner.kill()?;
    trial.sleep_of_lease(0..80);
    owner.start()?;
    trial.note("started");
    std::thread::sleep(trial.lease() * 2);
    Ok(End::Anyone)
}

fn other_killed(trial: &mut Trial<'_>) -> anyhow::Result<End> {
    let other = trial.other();
    trial.node(other).kill()?;
    trial.sleep(0..1500);
    trial.node(other).start()?;
    trial.sleep(100..1000);
    Ok(End::Unmoved)
}

/// Without a quorum all is dark within the lease, and comes back with one node.
fn two_killed(trial: &mut Trial<'_>) -> anyhow::Result<End> {
    let mut hosts = trial.nodes();
    trial.rng.shuffle(&mut hosts);
    trial.note(format!("{} and {} are killed", hosts[0], hosts[1]));
    trial.node(hosts[0]).kill()?;
    trial.node(hosts[1]).kill()?;
    let lease_end = trial.lease_end(Stamp::now());
    std::thread::sleep(trial.lease());
    trial.sleep(200..1500);
    trial.cluster.nobody_answered(lease_end, Stamp::now())?;
    back_with_one(trial, hosts[0])?;
    trial.node(hosts[1]).start()?;
    Ok(End::Anyone)
}

/// Starts `host`, which makes a quorum with another, and waits for the VIPs.
fn back_with_one(trial: &mut Trial<'_>, host: HostId) -> TestResult {
    trial.node(host).start()?;
    trial.note(format!("{host} starts"));
    trial.outages_count_from_here();
    let since = Stamp::now();
    let vip = trial.cluster.lab.vips()[0];
    wait_until("a quorum holds the VIPs", Duration::from_secs(10), || {
        Ok(!trial.cluster.lab.observe().holders(vip, since).is_empty())
    })
}

fn all_killed(trial: &mut Trial<'_>) -> anyhow::Result<End> {
    for host in trial.nodes() {
        trial.node(host).kill()?;
    }
    trial.sleep(0..1000);
    let mut hosts = trial.nodes();
    trial.rng.shuffle(&mut hosts);
    for host in hosts {
        trial.node(host).start()?;
        trial.sleep(0..300);
    }
    trial.outages_count_from_here();
    Ok(End::Anyone)
}

fn stop_in_takeover(trial: &mut Trial<'_>) -> anyhow::Result<End> {
    second_node(trial, |trial, other| trial.node(other).stop(Duration::from_secs(10)))
}

fn kill_in_takeover(trial: &mut Trial<'_>) -> anyhow::Result<End> {
    second_node(trial, |trial, other| trial.node(other).kill())
}

/// Kills the owner, and ends another node around the takeover: one is left, until one of them is back.
fn second_node(trial: &mut Trial<'_>, end: fn(&mut Trial<'_>, HostId) -> TestResult) -> anyhow::Result<End> {
    let (owner, other) = (trial.owner, trial.other());
    trial.node(owner).kill()?;
    trial.sleep_of_lease(85..115);
    trial.note(format!("{other} ends, too"));
    end(trial, other)?;
    trial.sleep(0..500);
    back_with_one(trial, owner)?;
    trial.sleep(0..500);
    trial.node(other).start()?;
    Ok(End::Anyone)
}

fn rolling_restart(trial: &mut Trial<'_>) -> anyhow::Result<End> {
    let mut hosts = trial.nodes();
    trial.rng.shuffle(&mut hosts);
    let begin = Stamp::now();
    for host in hosts {
        trial.node(host).stop(Duration::from_secs(10))?;
        trial.node(host).start()?;
        // As an operator's tool would: on to the next once this one can vote.
        std::thread::sleep(trial.lease() + Duration::from_millis(400));
    }
    let observer = trial.cluster.lab.observe();
    let lost = observer.probed().iter().map(|&vip| observer.outage(vip, begin, Stamp::now()).lost).max();
    trial.note(format!("the whole restart cost {} probes, one a millisecond", lost.unwrap_or_default()));
    Ok(End::Anyone)
}

fn storm(trial: &mut Trial<'_>) -> anyhow::Result<End> {
    let until = Stamp::now() + Duration::from_secs(10);
    let mut restarts = 0;
    while Stamp::now() < until {
        let nodes = trial.nodes();
        let host = nodes[trial.rng.usize(..nodes.len())];
        let node = trial.node(host);
        if trial.rng.bool() {
            node.kill()?;
        } else {
            node.signal(Signal::SIGTERM)?;
            trial.sleep(0..50);
            // It may have ended by then.
            let _ = node.kill();
        }
        trial.sleep(0..200);
        node.start()?;
        trial.sleep(0..700);
        restarts += 1;
    }
    trial.note(format!("{restarts} restarts"));
    trial.outages_count_from_here();
    Ok(End::Anyone)
}

#[test]
fn kills() -> TestResult {
    run(&GROUP)
}

#[test]
fn kills_in_a_fast_cluster() -> TestResult {
    let names = ["the owner is killed", "the owner is stopped", "all are killed at once"];
    run_fast(&GROUP, &names)
}
