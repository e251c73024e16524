//! Runs cases: a few in CI, all of them again and again when asked to.
//!
//! The settings of a campaign, as environment variables:
//!
//! - `VIPD_FAULT_TRIALS`: how often each case is run. Without it there is no campaign.
//! - `VIPD_FAULT_SEED`: the seed that a former run printed; by chance without it.
//! - `VIPD_FAULT_REPORT`: a file to which each trial adds one line of JSON. The daemons' logs of a trial that was slow
//!   or failed lie beside it, by the number of the trial.
//! - `VIPD_FAULT_TABLE`: a page whose table is made anew out of that file, which may be that of several campaigns.
//! - `VIPD_FAULT_ONLY`: words in the names of the cases to run, separated by commas.
//! - `VIPD_FAULT_FENCE`: `bpf` or `nftables`, what all nodes make their fence of; `bpf` without it. CI's tests obey it too.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use fastrand::Rng;
use vip_lab::{Lab, Profile};
use vip_tests::cluster::{Cluster, FenceKind, cluster_fenced_by};
use vip_tests::{TestResult, programs};

use crate::trial::{Case, Stand, Trial, whole_logs};
use crate::{
    clocks, disks, five, freezes, kill_points, kills, links, nftables, partitions, phases, pressure, table, tampering,
};

/// Which laboratory a list of cases needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Three nodes.
    Three,
    /// Three nodes whose fence anybody with root can change; see [`nftables::before_6_9`].
    Tampered,
    /// Five nodes.
    Five,
    /// Five nodes, as in [`Self::Tampered`].
    FiveTampered,
    /// Three nodes with a small disk each.
    Disks,
    /// Three nodes whose clocks differ.
    Clocks,
}

impl Stage {
    fn build(self, fence: FenceKind, profile: Profile) -> Result<Option<Stand>> {
        let build = |builder| cluster_fenced_by(fence, profile, builder);
        let builder = Lab::builder().vipd(Some(programs::vipd()?));
        match self {
            Self::Tampered if fence == FenceKind::Nftables => nftables::before_6_9(builder, build),
            Self::FiveTampered if fence == FenceKind::Nftables => nftables::before_6_9(builder.nodes(5), build),
            Self::Three | Self::Tampered => Ok(stand(build(builder)?)),
            Self::Five | Self::FiveTampered => Ok(stand(build(builder.nodes(5))?)),
            Self::Disks => disks::stand(build(builder)?),
            Self::Clocks => clocks::stand(builder, build),
        }
    }
}

fn stand(cluster: Option<Cluster>) -> Option<Stand> {
    cluster.map(|cluster| Stand { cluster, disks: BTreeMap::new(), children: Vec::new(), dir: None })
}

/// A list of cases for one kind of laboratory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Group {
    pub(crate) stage: Stage,
    pub(crate) cases: &'static [Case],
}

const GROUPS: [Group; 11] = [
    partitions::GROUP,
    freezes::GROUP,
    kills::GROUP,
    phases::GROUP,
    kill_points::GROUP,
    tampering::GROUP,
    links::GROUP,
    disks::GROUP,
    pressure::GROUP,
    five::GROUP,
    clocks::GROUP,
];

/// Those that only a fence of nftables has.
const GROUPS_OF_NFTABLES: [Group; 2] = [nftables::GROUP, nftables::OWNED];

/// A run over several trials.
struct Run {
    seed: u64,
    fence: FenceKind,
    /// A campaign takes its time.
    brief: bool,
    report: Option<File>,
    trials: u32,
    overlaps: u32,
    slow: u32,
    skipped: u32,
    failures: Vec<String>,
}

impl Run {
    fn new(brief: bool) -> Result<Self> {
        let setting = |name| std::env::var(name).ok();
        let seed = setting("VIPD_FAULT_SEED").map(|text| text.parse()).transpose().context("VIPD_FAULT_SEED")?;
        let open = |path: String| OpenOptions::new().create(true).append(true).open(&path).with_context(|| path);
        let report = setting("VIPD_FAULT_REPORT").map(open).transpose().context("VIPD_FAULT_REPORT")?;
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        let fence = setting("VIPD_FAULT_FENCE").map_or(Ok(FenceKind::Bpf), |name| FenceKind::named(&name));
        let fence = fence.context("VIPD_FAULT_FENCE")?;
        Ok(Self { seed, fence, brief, report, trials: 0, overlaps: 0, slow: 0, skipped: 0, failures: Vec::new() })
    }

    /// Runs the cases of a group; `times` says how often each.
    fn group(&mut self, group: &Group, profile: Profile, round: u32, times: impl Fn(&Case) -> u32) -> TestResult {
        self.cases(group.stage, group.cases, profile, round, times)
    }

    /// The same of any cases for one laboratory. One in which a trial failed is not used again.
    fn cases<'c>(
        &mut self,
        stage: Stage,
        cases: impl IntoIterator<Item = &'c Case>,
        profile: Profile,
        round: u32,
        times: impl Fn(&Case) -> u32,
    ) -> TestResult {
        let only = std::env::var("VIPD_FAULT_ONLY").unwrap_or_default();
        let wanted = |case: &&Case| only.split(',').any(|word| case.name.contains(word));
        let mut stand: Option<Stand> = None;
        for case in cases.into_iter().filter(wanted) {
            for turn in 0..times(case) {
                if stand.is_none() {
                    stand = stage.build(self.fence, profile)?;
                }
                // Without root there is nothing to do, and the reader was told.
                let Some(at) = &stand else { return Ok(()) };
                if !self.trial(case, at, round + turn)? {
                    stand = None;
                }
            }
        }
        Ok(())
    }

    /// One trial; whether it passed.
    fn trial(&mut self, case: &Case, stand: &Stand, number: u32) -> Result<bool> {
        let cluster = &stand.cluster;
        let mut hasher = DefaultHasher::new();
        (self.seed, case.name, number).hash(&mut hasher);
        let mut trial = Trial::begin(stand, Rng::with_seed(hasher.finish()), self.brief)
            .with_context(|| format!("before the trial of {:?}: {}", case.name, whole_logs(cluster)))?;
        let result = (case.run)(&mut trial);
        let mut record = trial.end(case, result);
        record.json["trial"] = number.into();
        record.json["seed"] = self.seed.into();
        self.trials += 1;
        self.overlaps += u32::from(record.overlapped);
        self.slow += u32::from(record.slow);
        self.skipped += u32::from(record.skipped.is_some());
        println!("{}", record.json);
        if let Some(report) = &mut self.report {
            writeln!(report, "{}", record.json)?;
        }
        if let Some(why) = &record.skipped {
            // Not by println!, which cargo keeps to itself where a test passes.
            writeln!(std::io::stderr(), "\nSKIPPED: {}: {why}; nothing was tested", case.name)?;
        }
        if record.slow || !record.problems.is_empty() {
            self.keep_logs(cluster)?;
        }
        if !record.problems.is_empty() {
            let text = format!("{}: {}", case.name, record.problems.join("\n"));
            println!("FAILED: {text}\n{}", whole_logs(cluster));
            self.failures.push(text);
        }
        Ok(record.problems.is_empty())
    }

    /// The logs of a trial that somebody will want to look at, beside the report.
    fn keep_logs(&self, cluster: &Cluster) -> TestResult {
        let Ok(report) = std::env::var("VIPD_FAULT_REPORT") else { return Ok(()) };
        Ok(std::fs::write(format!("{report}.{}.log", self.trials), whole_logs(cluster))?)
    }

    fn end(self) -> TestResult {
        println!(
            "trials={} overlaps={} failed={} slow={} skipped={} seed={}",
            self.trials,
            self.overlaps,
            self.failures.len(),
            self.slow,
            self.skipped,
            self.seed
        );
        assert!(self.failures.is_empty(), "seed {}:\n{}", self.seed, self.failures.join("\n"));
        Ok(())
    }
}

/// A laboratory for a group, with the default timing and the fence of the settings.
pub(crate) fn stand_of(group: &Group) -> Result<Option<Stand>> {
    group.stage.build(Run::new(true)?.fence, Profile::Default)
}

/// Runs each case of a group as often as CI does, with the default timing.
pub(crate) fn run(group: &Group) -> TestResult {
    let mut run = Run::new(true)?;
    run.group(group, Profile::Default, 0, |case| case.in_ci)?;
    run.end()
}

/// Runs some cases of some groups once, with the fence of nftables; groups with one kind of laboratory share one.
pub(crate) fn run_with_nftables(cases: &[(&Group, &[&str])]) -> TestResult {
    let mut run = Run::new(true)?;
    run.fence = FenceKind::Nftables;
    for stage in [Stage::Three, Stage::Tampered] {
        let mut chosen = Vec::new();
        for (group, names) in cases.iter().filter(|(group, _)| group.stage == stage) {
            known(group, names);
            chosen.extend(group.cases.iter().filter(|case| names.contains(&case.name)));
        }
        run.cases(stage, chosen, Profile::Default, 0, |_| 1)?;
    }
    run.end()
}

fn known(group: &Group, names: &[&str]) {
    let known = |name: &&str| group.cases.iter().any(|case| case.name == *name);
    assert!(names.iter().all(known), "a case of {names:?} does not exist");
}

/// Runs some cases of a group once, with the fast timing.
pub(crate) fn run_fast(group: &Group, names: &[&str]) -> TestResult {
    known(group, names);
    let mut run = Run::new(true)?;
    run.group(group, Profile::Fast, 0, |case| u32::from(names.contains(&case.name)))?;
    run.end()
}

/// Every case again and again, in the default profile and the fast one by turns. See the module.
#[test]
#[ignore = "takes minutes for each repetition; `make faults` runs it"]
fn campaign() -> TestResult {
    let trials: u32 = match std::env::var("VIPD_FAULT_TRIALS") {
        Ok(text) => text.parse().context("VIPD_FAULT_TRIALS")?,
        Err(_) => 1,
    };
    let mut run = Run::new(false)?;
    let more: &[Group] = if run.fence == FenceKind::Nftables { &GROUPS_OF_NFTABLES } else { &[] };
    for round in 0..trials {
        let profile = if round % 2 == 0 { Profile::Default } else { Profile::Fast };
        for group in GROUPS.iter().chain(more) {
            if let Err(error) = run.group(group, profile, round, |_| 1) {
                println!("FAILED: {error:#}");
                run.failures.push(format!("{error:#}"));
            }
        }
        println!("round {} of {trials}: trials={} overlaps={}", round + 1, run.trials, run.overlaps);
    }
    if let (Ok(report), Ok(page)) = (std::env::var("VIPD_FAULT_REPORT"), std::env::var("VIPD_FAULT_TABLE")) {
        let cases = GROUPS.iter().chain(&GROUPS_OF_NFTABLES).flat_map(|group| group.cases);
        table::update(Path::new(&page), Path::new(&report), cases)?;
    }
    run.end()
}
