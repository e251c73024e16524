//! Cuts between nodes, in one direction or both, that the clients do not see.

use vip_lab::{HostId, Stamp};
use vip_tests::TestResult;

use crate::campaign::{Group, Stage, run};
use crate::trial::{Case, End, Trial};

pub(crate) const GROUP: Group = Group {
    stage: Stage::Three,
    cases: &[
        Case {
            name: "one way cut from the owner to each other node in turn",
            bound_ms: 1000,
            usual_ms: 50,
            in_ci: 1,
            run: |trial| {
                let (owner, others) = (trial.owner, trial.others());
                cut_each(trial, &[(owner, others[0]), (owner, others[1])])
            },
        },
        Case {
            name: "one way cut from each other node in turn to the owner",
            bound_ms: 1000,
            usual_ms: 50,
            in_ci: 1,
            run: |trial| {
                let (owner, others) = (trial.owner, trial.others());
                cut_each(trial, &[(others[0], owner), (others[1], owner)])
            },
        },
        Case {
            name: "one way cut between the nodes that hold nothing, either way in turn",
            bound_ms: 1000,
            usual_ms: 50,
            in_ci: 1,
            run: |trial| {
                let others = trial.others();
                cut_each(trial, &[(others[0], others[1]), (others[1], others[0])])
            },
        },
        Case {
            name: "the owner is cut off from the nodes, not from the client",
            bound_ms: 2000,
            usual_ms: 150,
            in_ci: 1,
            run: owner_alone,
        },
        Case {
            name: "the nodes do not hear the owner, which hears them",
            bound_ms: 2000,
            usual_ms: 150,
            in_ci: 0,
            run: owner_mute,
        },
        Case {
            name: "the owner does not hear the nodes, which hear it",
            bound_ms: 2000,
            usual_ms: 1500,
            in_ci: 1,
            run: owner_deaf,
        },
        Case {
            name: "another node is cut off from the nodes",
            bound_ms: 1000,
            usual_ms: 50,
            in_ci: 1,
            run: other_alone,
        },
        Case { name: "every node is alone", bound_ms: 3000, usual_ms: 1500, in_ci: 1, run: all_alone },
        Case { name: "cuts that come and go", bound_ms: 5000, usual_ms: 1500, in_ci: 1, run: flapping },
        Case { name: "only the clients lose the owner", bound_ms: 1000, usual_ms: 100, in_ci: 1, run: client_cut },
    ],
};

/// Of each pair the second one does not hear the first one for a while. The third node hears both, so the owner has its
/// quorum, and nobody who misses it finds one.
fn cut_each(trial: &mut Trial<'_>, pairs: &[(HostId, HostId)]) -> anyhow::Result<End> {
    for &(from, to) in pairs {
        trial.note(format!("{to} does not hear {from}"));
        trial.network().cut(&[from], &[to])?;
        std::thread::sleep(trial.lease());
        trial.sleep(100..1000);
        trial.note("heal");
        trial.network().heal()?;
        trial.sleep(0..500);
    }
    Ok(End::Unmoved)
}

fn owner_alone(trial: &mut Trial<'_>) -> anyhow::Result<End> {
    let (owner, others) = (trial.owner, trial.others());
    trial.network().partition(&[owner], &others)?;
    gives_way(trial, owner)
}

fn owner_mute(trial: &mut Trial<'_>) -> anyhow::Result<End> {
    let (owner, others) = (trial.owner, trial.others());
    trial.network().cut(&[owner], &others)?;
    gives_way(trial, owner)
}

fn owner_deaf(trial: &mut Trial<'_>) -> anyhow::Result<End> {
    let (owner, others) = (trial.owner, trial.others());
    trial.network().cut(&others, &[owner])?;
    // Its heartbeats go on until its own lease is over, and what the others granted it by the last one must be over, too,
    // before they elect: healed any sooner, it may be leader again.
    std::thread::sleep(trial.lease() * 2);
    gives_way(trial, owner)
}

/// The owner has no quorum from now on: once its lease is over it is silent, also after the healing.
fn gives_way(trial: &mut Trial<'_>, owner: HostId) -> anyhow::Result<End> {
    let lease_end = trial.lease_end(Stamp::now());
    let lease = trial.lease();
    std::thread::sleep(lease);
    trial.sleep(300..1500);
    trial.silent_since(owner, lease_end)?;
    trial.note("heal");
    trial.network().heal()?;
    Ok(End::Not(owner))
}

fn other_alone(trial: &mut Trial<'_>) -> anyhow::Result<End> {
    let other = trial.other();
    let rest: Vec<_> = trial.nodes().into_iter().filter(|&host| host != other).collect();
    trial.network().partition(&[other], &rest)?;
    trial.sleep(300..1500);
    trial.network().heal()?;
    Ok(End::Unmoved)
}

fn all_alone(trial: &mut Trial<'_>) -> anyhow::Result<End> {
    for host in trial.nodes() {
        let rest: Vec<_> = trial.nodes().into_iter().filter(|&other| other != host).collect();
        trial.network().cut(&[host], &rest)?;
    }
    let lease_end = trial.lease_end(Stamp::now());
    let lease = trial.lease();
    std::thread::sleep(lease);
    trial.sleep(200..1500);
    trial.cluster.nobody_answered(lease_end, Stamp::now())?;
    trial.note("heal");
    trial.network().heal()?;
    trial.outages_count_from_here();
    Ok(End::Anyone)
}

fn flapping(trial: &mut Trial<'_>) -> anyhow::Result<End> {
    let until = Stamp::now() + std::time::Duration::from_secs(4);
    while Stamp::now() < until {
        let mut hosts = trial.nodes();
        trial.rng.shuffle(&mut hosts);
        match trial.rng.u8(0..3) {
            0 => trial.network().cut(&hosts[..1], &hosts[1..2])?,
            1 => trial.network().cut(&hosts[..1], &hosts[1..])?,
            _ => trial.network().partition(&hosts[..1], &hosts[1..])?,
        }
        trial.sleep(20..700);
        trial.network().heal()?;
        trial.sleep(0..400);
    }
    Ok(End::Anyone)
}

/// Nothing that a node could see; the VIPs stay, for everybody else.
fn client_cut(trial: &mut Trial<'_>) -> anyhow::Result<End> {
    let owner = trial.owner;
    trial.network().partition(&[owner], &[HostId::Client])?;
    trial.sleep(300..2000);
    trial.network().heal()?;
    trial.outages_count_from_here();
    Ok(End::Unmoved)
}

#[test]
fn partitions() -> TestResult {
    run(&GROUP)
}
