//! Five nodes: two may be gone.

use vip_lab::{HostId, Stamp};
use vip_tests::TestResult;

use crate::campaign::{Group, Stage, run};
use crate::trial::{Case, End, Trial};

pub(crate) const GROUP: Group = Group {
    stage: Stage::Five,
    cases: &[
        Case {
            name: "the owner is with a minority of five",
            bound_ms: 2000,
            usual_ms: 150,
            in_ci: 1,
            run: owner_in_the_minority,
        },
        Case {
            name: "the owner is with a majority of five",
            bound_ms: 1000,
            usual_ms: 50,
            in_ci: 0,
            run: owner_in_the_majority,
        },
        Case {
            name: "the owner and another of five are killed",
            bound_ms: 2000,
            usual_ms: 150,
            in_ci: 1,
            run: two_killed,
        },
        Case { name: "two, two and one of five", bound_ms: 3000, usual_ms: 1500, in_ci: 0, run: three_parts },
    ],
};

fn owner_in_the_minority(trial: &mut Trial<'_>) -> anyhow::Result<End> {
    let (owner, others) = (trial.owner, trial.others());
    let minority = [owner, others[0]];
    trial.network().partition(&minority, &others[1..])?;
    let lease_end = trial.lease_end(Stamp::now());
    std::thread::sleep(trial.lease());
    trial.sleep(300..1500);
    for host in minority {
        trial.silent_since(host, lease_end)?;
    }
    trial.network().heal()?;
    Ok(End::Not(owner))
}

fn owner_in_the_majority(trial: &mut Trial<'_>) -> anyhow::Result<End> {
    let (owner, others) = (trial.owner, trial.others());
    let majority = [owner, others[0], others[1]];
    trial.network().partition(&majority, &others[2..])?;
    trial.sleep(300..2000);
    trial.network().heal()?;
    Ok(End::Unmoved)
}

fn two_killed(trial: &mut Trial<'_>) -> anyhow::Result<End> {
    let killed = [trial.owner, trial.other()];
    for host in killed {
        trial.node(host).kill()?;
    }
    std::thread::sleep(trial.lease());
    trial.sleep(200..1000);
    for host in killed {
        trial.node(host).start()?;
    }
    Ok(End::Not(killed[0]))
}

fn three_parts(trial: &mut Trial<'_>) -> anyhow::Result<End> {
    let mut hosts = trial.nodes();
    trial.rng.shuffle(&mut hosts);
    let (one, rest) = hosts.split_at(2);
    let (two, three) = rest.split_at(2);
    for (a, b) in [(one, two), (one, three), (two, three)] {
        trial.network().partition(a, b)?;
    }
    let lease_end = trial.lease_end(Stamp::now());
    std::thread::sleep(trial.lease());
    trial.sleep(200..1000);
    trial.cluster.nobody_answered(lease_end, Stamp::now())?;
    trial.network().heal()?;
    trial.outages_count_from_here();
    Ok(End::Anyone)
}

#[test]
fn five_nodes() -> TestResult {
    run(&GROUP)
}

/// Hosts are told apart by their MAC addresses, also after one of them was changed.
#[test]
fn a_second_mac_address_is_known() {
    let alias = HostId::Node(1 + crate::trial::ALIAS);
    assert_eq!(HostId::from_mac(alias.mac()), alias);
}
