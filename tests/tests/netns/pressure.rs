//! Processors that are busy and networks that lose frames.

use std::fs;

use anyhow::{Context, Result};
use vip_lab::load::BusyLoops;
use vip_lab::{HostId, Profile};
use vip_tests::TestResult;

use crate::campaign::{Group, Stage, run};
use crate::trial::{Case, End, Trial};

pub(crate) const GROUP: Group = Group {
    stage: Stage::Three,
    cases: &[
        Case { name: "8 busy loops a core", bound_ms: 2000, usual_ms: 150, in_ci: 0, run: busy },
        Case {
            name: "8 busy loops a core and the owner is killed",
            bound_ms: 5000,
            usual_ms: 1500,
            in_ci: 1,
            run: busy_kill,
        },
        Case {
            name: "8 busy loops a core without real-time priority",
            bound_ms: 5000,
            usual_ms: 1500,
            in_ci: 0,
            run: busy_without_priority,
        },
        Case {
            name: "5 % of the frames between nodes are lost",
            bound_ms: 2000,
            usual_ms: 150,
            in_ci: 0,
            run: |trial| lossy(trial, 5),
        },
        Case {
            name: "20 % of the frames between nodes are lost",
            bound_ms: 5000,
            usual_ms: 500,
            in_ci: 1,
            run: |trial| lossy(trial, 20),
        },
        Case {
            name: "50 % of the frames between nodes are lost",
            bound_ms: 5000,
            usual_ms: 1500,
            in_ci: 1,
            run: |trial| lossy(trial, 50),
        },
        Case {
            name: "every frame takes 20 ms longer",
            bound_ms: 5000,
            usual_ms: 150,
            in_ci: 1,
            run: |trial| delayed(trial, &["delay", "20ms"]),
        },
        Case {
            name: "every frame takes 60 ms longer, more or less, in any order",
            bound_ms: 10_000,
            usual_ms: 1500,
            in_ci: 0,
            run: |trial| delayed(trial, &["delay", "60ms", "40ms", "duplicate", "5%", "reorder", "25%"]),
        },
        Case {
            name: "20 % are lost and the owner is killed",
            bound_ms: 10_000,
            usual_ms: 3000,
            in_ci: 0,
            run: lossy_kill,
        },
        Case {
            name: "50 % of what the owner sends is lost",
            bound_ms: 10_000,
            usual_ms: 3000,
            in_ci: 0,
            run: |trial| one_way(trial, true),
        },
        Case {
            name: "50 % of what the owner is sent is lost",
            bound_ms: 10_000,
            usual_ms: 3000,
            in_ci: 0,
            run: |trial| one_way(trial, false),
        },
    ],
};

fn busy(trial: &mut Trial<'_>) -> Result<End> {
    let load = BusyLoops::start(8)?;
    trial.note(format!("{} busy loops", load.count()));
    trial.sleep(2500..3500);
    Ok(End::Unmoved)
}

fn busy_kill(trial: &mut Trial<'_>) -> Result<End> {
    let _load = BusyLoops::start(8)?;
    trial.sleep(200..600);
    let owner = trial.node(trial.owner);
    owner.kill()?;
    std::thread::sleep(trial.lease() * 2);
    owner.start()?;
    std::thread::sleep(trial.lease());
    Ok(End::Not(trial.owner))
}

/// The daemons wait for their turn like everything else.
fn busy_without_priority(trial: &mut Trial<'_>) -> Result<End> {
    const OFF: &str = "[process]\nrealtime_priority = 0\n[peer]";
    let on = if trial.cluster.lab.profile() == Profile::Fast { "realtime_priority = 10" } else { "[peer]" };
    let off = if on == "[peer]" { OFF } else { "realtime_priority = 0" };
    for host in trial.nodes() {
        change(trial, host, on, off)?;
    }
    std::thread::sleep(trial.lease() * 2);
    let load = BusyLoops::start(8)?;
    trial.sleep(2500..3500);
    drop(load);
    // Who has to wait for a processor for longer than a lease loses it, again and again.
    trial.outages_count_from_here();
    for host in trial.nodes() {
        change(trial, host, off, on)?;
    }
    Ok(End::Anyone)
}

fn change(trial: &Trial<'_>, host: HostId, from: &str, to: &str) -> TestResult {
    let path = trial.node(host).config_path();
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    anyhow::ensure!(text.contains(from), "{from:?} is not in {}", path.display());
    fs::write(&path, text.replacen(from, to, 1))?;
    trial.node(host).stop(std::time::Duration::from_secs(10))?;
    trial.node(host).start()?;
    std::thread::sleep(trial.lease() + std::time::Duration::from_millis(300));
    Ok(())
}

fn lossy(trial: &mut Trial<'_>, percent: u8) -> Result<End> {
    let nodes = trial.nodes();
    trial.network().lose(&nodes, &nodes, percent)?;
    trial.sleep(3000..5000);
    trial.note("heal");
    trial.network().heal()?;
    // Of four exchanges one succeeds: a quorum is a matter of luck then.
    if percent >= 50 {
        trial.outages_count_from_here();
    }
    Ok(End::Anyone)
}

/// Both ways, for the nodes only.
fn delayed(trial: &mut Trial<'_>, args: &[&str]) -> Result<End> {
    for host in trial.nodes() {
        if let Err(error) = trial.network().hold_up(host, args) {
            return Ok(End::Skipped(format!("this kernel has no sch_netem: {error:#}")));
        }
    }
    trial.sleep(2000..3000);
    trial.node(trial.owner).kill()?;
    trial.sleep(2000..3000);
    trial.node(trial.owner).start()?;
    trial.sleep(500..1000);
    for host in trial.nodes() {
        trial.network().let_through(host)?;
    }
    // A client that is answered late is not answered: the observer waits for 10 ms.
    trial.outages_count_from_here();
    Ok(End::Anyone)
}

fn lossy_kill(trial: &mut Trial<'_>) -> Result<End> {
    let nodes = trial.nodes();
    trial.network().lose(&nodes, &nodes, 20)?;
    trial.sleep(200..1000);
    let owner = trial.node(trial.owner);
    if owner.is_running() {
        owner.kill()?;
    }
    trial.sleep(2000..3000);
    owner.start()?;
    trial.sleep(1000..1500);
    trial.network().heal()?;
    Ok(End::Anyone)
}

fn one_way(trial: &mut Trial<'_>, sent: bool) -> Result<End> {
    let (owner, others) = ([trial.owner], trial.others());
    if sent {
        trial.network().lose(&owner, &others, 50)?;
    } else {
        trial.network().lose(&others, &owner, 50)?;
    }
    trial.sleep(3000..5000);
    trial.note("heal");
    trial.network().heal()?;
    Ok(End::Anyone)
}

#[test]
fn pressure() -> TestResult {
    run(&GROUP)
}
