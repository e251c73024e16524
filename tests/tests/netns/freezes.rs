//! SIGSTOP and SIGCONT: a daemon that does nothing for a while, is not told, and goes on where it was.

use std::time::Duration;

use vip_lab::Stamp;
use vip_tests::TestResult;

use crate::campaign::{Group, Stage, run, run_fast};
use crate::trial::{Case, End, Trial};

pub(crate) const GROUP: Group = Group {
    stage: Stage::Three,
    cases: &[
        Case {
            name: "the owner is frozen and wakes before its deadline",
            bound_ms: 2000,
            usual_ms: 150,
            in_ci: 0,
            run: |trial| {
                freeze_owner(trial, 0, 60)?;
                Ok(End::Unmoved)
            },
        },
        Case {
            name: "the owner is frozen and wakes around its deadline",
            bound_ms: 2000,
            usual_ms: 150,
            in_ci: 1,
            run: |trial| {
                freeze_owner(trial, 60, 105)?;
                Ok(End::Anyone)
            },
        },
        Case {
            name: "the owner is frozen and wakes around the takeover",
            bound_ms: 2000,
            usual_ms: 150,
            in_ci: 1,
            run: |trial| {
                freeze_owner(trial, 95, 125)?;
                Ok(End::Anyone)
            },
        },
        Case {
            name: "the owner is frozen and wakes much later",
            bound_ms: 2000,
            usual_ms: 150,
            in_ci: 1,
            run: |trial| {
                freeze_owner(trial, 200, 600)?;
                Ok(End::Not(trial.owner))
            },
        },
        Case {
            name: "another node is frozen",
            bound_ms: 1000,
            usual_ms: 50,
            in_ci: 1,
            run: |trial| {
                let other = trial.other();
                trial.node(other).freeze()?;
                trial.sleep(50..2000);
                trial.node(other).thaw()?;
                Ok(End::Unmoved)
            },
        },
        Case {
            name: "a successor is frozen while it takes over",
            bound_ms: 3000,
            usual_ms: 1500,
            in_ci: 1,
            run: successor,
        },
        Case {
            name: "all are frozen at once and wake one after the other",
            bound_ms: 3000,
            usual_ms: 1500,
            in_ci: 1,
            run: everything,
        },
        Case {
            name: "the owner is frozen, killed and started again",
            bound_ms: 2000,
            usual_ms: 150,
            in_ci: 1,
            run: frozen_killed_started,
        },
        Case { name: "nodes freeze again and again", bound_ms: 5000, usual_ms: 1500, in_ci: 0, run: stuttering },
    ],
};

/// For a time between two shares of the lease, in percent.
fn freeze_owner(trial: &mut Trial<'_>, from: u64, to: u64) -> TestResult {
    let owner = trial.node(trial.owner);
    owner.freeze()?;
    let time = trial.sleep_of_lease(from..to);
    owner.thaw()?;
    trial.note(format!("{} was frozen for {time:?}", trial.owner));
    std::thread::sleep(trial.lease());
    Ok(())
}

/// Two nodes are left without the owner, and none without the successor: nobody can hold until it wakes.
fn successor(trial: &mut Trial<'_>) -> anyhow::Result<End> {
    let (owner, other) = (trial.owner, trial.other());
    trial.node(owner).kill()?;
    trial.sleep_of_lease(60..120);
    trial.node(other).freeze()?;
    trial.note(format!("{other} freezes"));
    trial.sleep(100..2000);
    trial.node(other).thaw()?;
    trial.note(format!("{other} wakes"));
    trial.outages_count_from_here();
    trial.sleep(0..1000);
    trial.node(owner).start()?;
    Ok(End::Anyone)
}

fn everything(trial: &mut Trial<'_>) -> anyhow::Result<End> {
    let mut hosts = trial.nodes();
    for &host in &hosts {
        trial.node(host).freeze()?;
    }
    trial.rng.shuffle(&mut hosts);
    for host in hosts {
        trial.sleep(0..900);
        trial.node(host).thaw()?;
        trial.note(format!("{host} wakes"));
    }
    trial.outages_count_from_here();
    Ok(End::Anyone)
}

fn frozen_killed_started(trial: &mut Trial<'_>) -> anyhow::Result<End> {
    let owner = trial.node(trial.owner);
    owner.freeze()?;
    trial.sleep_of_lease(0..150);
    owner.kill()?;
    trial.sleep_of_lease(0..150);
    owner.start()?;
    trial.note("started");
    std::thread::sleep(trial.lease() * 2);
    Ok(End::Anyone)
}

fn stuttering(trial: &mut Trial<'_>) -> anyhow::Result<End> {
    let until = Stamp::now() + Duration::from_secs(4);
    while Stamp::now() < until {
        let nodes = trial.nodes();
        let host = nodes[trial.rng.usize(..nodes.len())];
        trial.node(host).freeze()?;
        trial.sleep_of_lease(5..160);
        trial.node(host).thaw()?;
        trial.sleep(0..200);
    }
    Ok(End::Anyone)
}

#[test]
fn freezes() -> TestResult {
    run(&GROUP)
}

#[test]
fn freezes_of_a_fast_cluster() -> TestResult {
    let names = [
        "the owner is frozen and wakes around its deadline",
        "the owner is frozen and wakes much later",
        "nodes freeze again and again",
    ];
    run_fast(&GROUP, &names)
}
