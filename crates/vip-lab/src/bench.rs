//! The benchmark: vipd and keepalived in the same laboratory, with the same faults, in the same run.
//!
//! Every manager has a lab of its own, and all labs are up at once. The trials alternate between the managers, so that a
//! noise of the machine meets all of them. Only the lab whose turn it is, and the one that comes next, are probed. A
//! manager that takes seconds to take over has a lane of its own beside the others: next to nothing happens in it, and a
//! few milliseconds are nothing to its results.

pub mod about;
pub mod markdown;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use self::about::{About, ProcessorTime};
use crate::clock::Stamp;
use crate::interrupt;
use crate::lab::Lab;
use crate::manager::Manager;
use crate::node::Node;
use crate::report::{Reporter, Summary, TrialRecord, print};
use crate::scenario::{Fault, Pace, run_trial_at};
use crate::steady::{SteadyRecord, run_steady};
use crate::topology::INTERFACE;

/// The faults of the comparison, and what only vipd is put through.
pub const FAULTS: [Fault; 6] =
    [Fault::Kill, Fault::Freeze, Fault::Stop, Fault::Linkdown, Fault::Partition, Fault::Reboot];
/// The faults with many VIPs.
const MANY_FAULTS: [Fault; 2] = [Fault::Kill, Fault::Stop];
const MANY_VIPS: u16 = 1000;
const STEADY_VIPS: u16 = 10;
/// Labs wait for their turn anyway, so the waits of a trial can be short; all are longer than any lease.
const PACE: Pace = Pace {
    settle: Duration::from_millis(1500),
    watch: Duration::from_millis(500),
    healed: Duration::from_millis(800),
    patience: Duration::from_secs(8),
};
/// A manager that is slower than this is in a lane of its own.
const SLOW: Duration = Duration::from_secs(1);
/// How long a lab is probed before its trial at least: its VIPs are known to be at rest after that.
const AT_REST: Duration = Duration::from_millis(1200);
/// How often a trial is begun when the VIPs never come to rest on one host before the fault.
const ATTEMPTS: usize = 3;

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Two VIPs, every fault.
    Faults,
    /// 1000 VIPs, SIGKILL and SIGTERM.
    Many,
    /// Ten VIPs, no fault: processor time, memory, changes of owner.
    Steady,
}

/// What to measure.
#[derive(Debug, Clone)]
pub struct BenchPlan {
    /// Which parts.
    pub parts: Vec<Part>,
    /// Which managers, in this order.
    pub managers: Vec<Manager>,
    /// Which faults of the first part.
    pub faults: Vec<Fault>,
    /// Trials of each fault.
    pub trials: u32,
    /// Trials of each fault with many VIPs.
    pub many_trials: u32,
    /// How long the steady state is watched.
    pub steady: Duration,
    /// The program of vipd, when told.
    pub vipd: Option<PathBuf>,
    /// The program of keepalived, when told.
    pub keepalived: Option<PathBuf>,
}

/// What the daemons of one manager cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// The manager.
    pub manager: Manager,
    /// The number of VIPs.
    pub vips: usize,
    /// How long it was watched.
    pub seconds: f64,
    /// The owner's share of one processor.
    pub owner_cpu_percent: f64,
    /// The same, for the one of the others that used most.
    pub others_cpu_percent: f64,
    /// Resident memory of the owner's processes.
    pub rss_mib: f64,
    /// The same, with what they share divided by those who share it.
    pub pss_mib: f64,
    /// How often a VIP changed its holder without a reason.
    pub owner_changes: usize,
    /// The longest time without an answer.
    pub outage_ms: f64,
    /// The worst overlap.
    pub overlap_ms: f64,
}

/// Everything that a benchmark found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// The machine, the versions, the date.
    pub about: About,
    /// Faults with two VIPs.
    pub faults: Vec<Summary>,
    /// Faults with many VIPs.
    pub many: Vec<Summary>,
    /// The steady state.
    pub steady: Vec<Cost>,
}

impl BenchReport {
    /// Whether vipd kept its promises: never two holders, and back each time. Others promised nothing.
    #[must_use]
    pub fn passed(&self) -> bool {
        let of_vipd = |manager: Manager| manager.profile().is_some();
        let mut summaries = self.faults.iter().chain(&self.many).filter(|summary| of_vipd(summary.manager));
        summaries.all(|summary| summary.overlaps == 0 && summary.unrecovered == 0)
            && self.steady.iter().filter(|cost| of_vipd(cost.manager)).all(|cost| cost.overlap_ms == 0.0)
    }

    /// Reads the result of an earlier run from the file of its JSON lines.
    ///
    /// # Errors
    /// When the file cannot be read, or is of a run that did not end.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let last = text.lines().rev().find(|line| line.starts_with("{\"bench\":"));
        let last = last.with_context(|| format!("{} has no final result: the run did not end", path.display()))?;
        let line: BenchLine = serde_json::from_str(last).with_context(|| format!("read {}", path.display()))?;
        Ok(line.bench)
    }
}

#[derive(Serialize, Deserialize)]
struct BenchLine {
    bench: BenchReport,
}

/// Runs the benchmark. Every trial goes to `reporter` as it ends, and the whole at the end.
///
/// # Errors
/// When a program is missing, a lab cannot be built or does not come to rest, or at an interrupt. What a manager does wrong
/// is no error.
pub fn run_bench(plan: &BenchPlan, reporter: Reporter) -> Result<BenchReport> {
    let about = About::of(plan)?;
    let began = ProcessorTime::now();
    let bench = Bench { plan, reporter: Mutex::new(reporter) };
    let mut report = BenchReport { about, faults: Vec::new(), many: Vec::new(), steady: Vec::new() };
    for part in &plan.parts {
        match part {
            Part::Faults => report.faults = bench.faults()?,
            Part::Many => report.many = bench.many()?,
            Part::Steady => report.steady = bench.steady()?,
        }
    }
    let ended = ProcessorTime::now();
    report.about.stolen_percent = began.zip(ended).and_then(|(began, ended)| began.stolen_percent(ended));
    let line = BenchLine { bench: report };
    bench.reporter().json_line(&line)?;
    Ok(line.bench)
}

struct Bench<'a> {
    plan: &'a BenchPlan,
    reporter: Mutex<Reporter>,
}

type Records = Mutex<BTreeMap<(Fault, Manager), Vec<TrialRecord>>>;

impl Bench<'_> {
    fn faults(&self) -> Result<Vec<Summary>> {
        let labs = self.labs(2)?;
        let is_slow = |lab: &&Lab| lab.manager().advertises_every().is_some_and(|interval| interval >= SLOW);
        let (slow, quick): (Vec<&Lab>, Vec<&Lab>) = labs.iter().partition(is_slow);
        let lanes = [Lane { labs: quick, ahead: true }, Lane { labs: slow, ahead: true }];
        self.rounds("faults", &lanes, &self.plan.faults, self.plan.trials)
    }

    fn many(&self) -> Result<Vec<Summary>> {
        let labs = self.labs(MANY_VIPS)?;
        let lane = Lane { labs: labs.iter().collect(), ahead: false };
        self.rounds("1000 VIPs", &[lane], &MANY_FAULTS, self.plan.many_trials)
    }

    fn steady(&self) -> Result<Vec<Cost>> {
        let mut costs = Vec::new();
        for &manager in &self.plan.managers {
            let lab = self.lab(manager, STEADY_VIPS)?;
            let record = run_steady(&lab, self.plan.steady, PACE.settle, &mut |_, _| ())?;
            self.reporter().json_line(&record)?;
            let cost = cost_of(&record);
            print(&format!(
                "steady     {manager:16}  owner {:.2} % of one CPU, {:.1} MiB ({:.1} MiB with shares), {} changes of \
                 owner, longest outage {:.1} ms, overlap {:.1} ms",
                cost.owner_cpu_percent, cost.rss_mib, cost.pss_mib, cost.owner_changes, cost.outage_ms, cost.overlap_ms
            ));
            costs.push(cost);
        }
        Ok(costs)
    }

    fn lab(&self, manager: Manager, vips: u16) -> Result<Lab> {
        let BenchPlan { vipd, keepalived, .. } = self.plan;
        let builder = Lab::builder().manager(manager).vips(vips).vipd(vipd.clone()).keepalived(keepalived.clone());
        builder.start().with_context(|| format!("a lab for {manager}"))
    }

    /// A lab for each manager; all of them have a holder.
    fn labs(&self, vips: u16) -> Result<Vec<Lab>> {
        let mut labs = Vec::new();
        for &manager in &self.plan.managers {
            print(&format!("{manager}: starts, with {vips} VIPs"));
            let lab = self.lab(manager, vips)?;
            lab.wait_for_holder(Duration::from_secs(20))?;
            lab.observe().pause();
            labs.push(lab);
        }
        Ok(labs)
    }

    fn rounds(&self, what: &str, lanes: &[Lane<'_>], faults: &[Fault], trials: u32) -> Result<Vec<Summary>> {
        let records = Records::default();
        let total = faults.len() * trials as usize;
        let began = Stamp::now();
        self.reporter().heading();
        for (done, (fault, number)) in
            faults.iter().flat_map(|&fault| (1..=trials).map(move |n| (fault, n))).enumerate()
        {
            std::thread::scope(|scope| {
                let turns: Vec<_> =
                    lanes.iter().map(|lane| scope.spawn(|| self.turn(lane, fault, number, &records))).collect();
                turns.into_iter().try_for_each(|turn| match turn.join() {
                    Ok(result) => result,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
            })?;
            let spent = Stamp::now().since(began).as_secs_f64();
            let left = spent / (done + 1) as f64 * (total - done - 1) as f64;
            print(&format!(
                "{what}: round {} of {total} after {spent:.0} s, about {:.0} min left",
                done + 1,
                left / 60.0
            ));
        }
        let records = records.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut summaries = Vec::new();
        for &fault in faults {
            for manager in &self.plan.managers {
                let summary = records.get(&(fault, *manager)).and_then(|records| Summary::of(records));
                summaries.extend(summary);
            }
        }
        for summary in &summaries {
            self.reporter().summary(summary)?;
        }
        Ok(summaries)
    }

    /// One trial in each lab of a lane.
    fn turn(&self, lane: &Lane<'_>, fault: Fault, number: u32, records: &Records) -> Result<()> {
        let labs: Vec<&Lab> = lane.labs.iter().copied().filter(|lab| fits(fault, lab.manager())).collect();
        for (i, lab) in labs.iter().enumerate() {
            lab.observe().resume();
            let next = labs[(i + 1) % labs.len()];
            if lane.ahead {
                next.observe().resume();
            } else {
                interrupt::sleep(AT_REST)?;
            }
            let record = trial(lab, fault, number)?;
            if !lane.ahead || next.manager() != lab.manager() {
                lab.observe().pause();
            }
            self.reporter().trial(&record)?;
            lock(records).entry((fault, lab.manager())).or_default().push(record);
        }
        Ok(())
    }

    fn reporter(&self) -> MutexGuard<'_, Reporter> {
        lock(&self.reporter)
    }
}

/// Labs whose trials come one after another. `ahead`: the next one is probed already during a trial, so that its VIPs are
/// known to be at rest when its turn comes.
struct Lane<'a> {
    labs: Vec<&'a Lab>,
    ahead: bool,
}

/// keepalived keeps nothing on disk that a start of all nodes would have to read again.
fn fits(fault: Fault, manager: Manager) -> bool {
    fault != Fault::Reboot || manager.profile().is_some()
}

/// One trial. A manager whose VIPs do not come to rest is started anew.
fn trial(lab: &Lab, fault: Fault, number: u32) -> Result<TrialRecord> {
    let mut attempt = 1;
    let record = loop {
        match run_trial_at(lab, fault, number, PACE, &mut |_| ()) {
            Ok(record) => break record,
            Err(error) if attempt < ATTEMPTS && interrupt::check().is_ok() => {
                let text = format!("{error:#}");
                let why = text.lines().next().unwrap_or_default();
                print(&format!("{}: trial {number} of {fault} is begun anew: {why}", lab.manager()));
                start_anew(lab)?;
                attempt += 1;
            }
            Err(error) => return Err(error.context(format!("{}: trial {number} of {fault}", lab.manager()))),
        }
    };
    if record.unreached_at_end {
        // It is in the record. The client's neighbour cache would also spoil the trials that follow.
        lab.client().run(["ip", "neigh", "flush", "dev", INTERFACE])?;
    }
    Ok(record)
}

fn start_anew(lab: &Lab) -> Result<()> {
    lab.heal()?;
    for host in lab.network().nodes() {
        lab.network().link_up(host)?;
    }
    lab.nodes().iter().try_for_each(Node::restart)?;
    lab.client().run(["ip", "neigh", "flush", "dev", INTERFACE]).map(drop)
}

fn cost_of(record: &SteadyRecord) -> Cost {
    let owner = record.nodes.iter().find(|node| node.owner);
    let others = record.nodes.iter().filter(|node| !node.owner).map(|node| node.cpu_percent);
    Cost {
        manager: record.manager,
        vips: record.vips,
        seconds: record.seconds,
        owner_cpu_percent: owner.map_or(0.0, |node| node.cpu_percent),
        others_cpu_percent: others.fold(0.0, f64::max),
        rss_mib: owner.map_or(0.0, |node| node.rss_mib),
        pss_mib: owner.map_or(0.0, |node| node.pss_mib),
        owner_changes: record.owner_changes,
        outage_ms: record.outage_ms.iter().copied().fold(0.0, f64::max),
        overlap_ms: record.overlap_ms,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
