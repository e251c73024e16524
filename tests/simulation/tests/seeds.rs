//! Runs that must find nothing, and runs that must be the same each time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use vip_simulation::omission::Omission;
use vip_simulation::{Report, run};

/// How many seeds of each test run.
const SEEDS: u64 = 2400;

/// Runs `job` for every number below `count`, on all cores.
fn on_all_cores(count: u64, job: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(0);
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    job(number);
                }
            });
        }
    });
}

fn assert_nothing_found(reports: &[Report]) {
    let found: Vec<_> = reports.iter().filter(|report| report.violation.is_some()).map(ToString::to_string).collect();
    assert!(found.is_empty(), "{} of {} runs found something:\n{}", found.len(), reports.len(), found.join("\n\n"));
}

#[test]
fn with_every_rule_nothing_is_found() {
    let reports = Mutex::new(Vec::new());
    on_all_cores(SEEDS, |seed| {
        let report = run(seed, &[], false);
        reports.lock().unwrap().push(report);
    });
    let reports = reports.into_inner().unwrap();
    assert_nothing_found(&reports);
    // Runs in which nothing happens prove nothing.
    let total = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
    let (events, deadlines) = (total(|at| at.counts.events), total(|at| at.counts.deadlines));
    let (elections, transfers) = (total(|at| at.counts.elections), total(|at| at.counts.transfers));
    let (acquired, faults) = (total(|at| at.counts.acquired), total(|at| at.counts.faults));
    assert!(events > SEEDS * 1000, "{events} events");
    assert!(deadlines > SEEDS * 50, "{deadlines} deadlines");
    assert!(elections > SEEDS * 3, "{elections} elections");
    assert!(transfers > SEEDS / 4, "{transfers} transfers");
    assert!(acquired > SEEDS * 3, "{acquired} addresses were added");
    assert!(faults > SEEDS * 10, "{faults} faults");
    let stalls = total(|at| at.counts.stalls);
    assert!(stalls > SEEDS / 2, "disks stood still {stalls} times");
}

#[test]
fn seeds_that_once_found_something_find_nothing_any_more() {
    let lines: Vec<_> = include_str!("../seeds.txt").lines().filter(|line| !line.starts_with('#')).collect();
    assert!(!lines.is_empty());
    for line in lines {
        let mut words = line.split_whitespace();
        let seed = words.next().and_then(|seed| seed.parse().ok()).expect("a seed begins the line");
        assert_nothing_found(&[run(seed, &[], false)]);
        // Nor is it lost what it shows.
        let without = words.next().expect("what was missing then comes second");
        if without != "-" {
            let omission: Omission = without.parse().expect("something that can be taken out");
            let report = run(seed, &[omission], false);
            assert!(report.violation.is_some(), "seed {seed} finds nothing without {omission} any more");
        }
    }
}

#[test]
fn a_seed_is_the_same_run_each_time() {
    for seed in 0..20 {
        let (first, second) = (run(seed, &[], true), run(seed, &[], false));
        assert_eq!(first.hash, second.hash, "seed {seed}, with words and without");
        assert_eq!(first.counts, second.counts, "seed {seed}");
        let again = run(seed, &[], true);
        assert_eq!(first.lines, again.lines, "seed {seed}");
        assert!(first.lines.len() > 100, "seed {seed}: {} lines", first.lines.len());
        assert_ne!(first.hash, run(seed + 1000, &[], false).hash, "another seed is another run");
    }
}
