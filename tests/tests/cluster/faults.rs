//! Every fault of the laboratory once: never two holders, and the VIPs come back.

use std::time::Duration;

use vip_lab::Profile;
use vip_lab::scenario::{Fault, run_trial};
use vip_tests::TestResult;
use vip_tests::cluster::{SETTLE, cluster};

const FAULTS: [Fault; 7] =
    [Fault::Kill, Fault::Freeze, Fault::Stop, Fault::Linkdown, Fault::Partition, Fault::Mute, Fault::Reboot];

/// Far above the budget: that is what `vip-lab run` measures, on a machine that does nothing else. Here it is about
/// coming back at all. A reboot is a start of everything, with a pause of a second in it.
const fn bound(fault: Fault) -> Duration {
    match fault {
        Fault::Reboot => Duration::from_secs(10),
        _ => Duration::from_secs(3),
    }
}

fn survives_every_fault(profile: Profile) -> TestResult {
    let Some(cluster) = cluster(profile)? else { return Ok(()) };
    let mut problems = Vec::new();
    for (number, fault) in (1..).zip(FAULTS) {
        let record = run_trial(&cluster.lab, fault, number, SETTLE, &mut |_| ())?;
        let line = format!(
            "{profile} {fault}: outage {:.1} ms, after healing {:?} ms, overlap {} ms, recovered: {}",
            record.worst_outage_ms(),
            record.after_heal_ms,
            record.overlap_ms,
            record.recovered
        );
        println!("{line}");
        let longest = record.worst_outage_ms().max(record.after_heal_ms.unwrap_or_default());
        if !record.passed() || longest > bound(fault).as_secs_f64() * 1000.0 {
            problems.push(format!("{line}\n{:?}\n{}", record.holders, cluster.logs()));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

#[test]
fn the_default_profile_survives_every_fault() -> TestResult {
    survives_every_fault(Profile::Default)
}

#[test]
fn the_fast_profile_survives_every_fault() -> TestResult {
    survives_every_fault(Profile::Fast)
}
