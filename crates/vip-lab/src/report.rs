//! What a run found, as JSON lines for programs and as a table for people.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::manager::Manager;
use crate::scenario::Fault;
use crate::topology::HostId;

/// One host's turn with one probed VIP. Times are milliseconds from the fault.
#[derive(Debug, Clone, Serialize)]
pub struct Turn {
    /// The address.
    pub vip: IpAddr,
    /// Who held it.
    pub host: HostId,
    /// First frame.
    pub first_ms: f64,
    /// Last frame.
    pub last_ms: f64,
    /// Gratuitous ARPs and unsolicited advertisements among the frames.
    pub announcements: usize,
}

/// The result of one trial. Times are milliseconds; those of events count from the fault.
#[derive(Debug, Clone, Serialize)]
pub struct TrialRecord {
    /// Which fault.
    pub scenario: Fault,
    /// What kept the VIPs.
    pub manager: Manager,
    /// The number of VIPs.
    pub vips: usize,
    /// The trial, from 1.
    pub trial: u32,
    /// Whether every VIP was taken over, and at the end every VIP was answered and every daemon ran.
    pub recovered: bool,
    /// The client's longest time without the IPv4 VIP, because of the fault.
    pub outage_ms: f64,
    /// The same for the IPv6 VIP.
    pub outage6_ms: Option<f64>,
    /// The longest time without one of the two after the fault was healed.
    pub after_heal_ms: Option<f64>,
    /// Whether the client did not reach one of the two at the very end either: `after_heal_ms` is longer than shown.
    pub unreached_at_end: bool,
    /// The time in which a VIP had two holders: in the whole trial, over all VIPs.
    pub overlap_ms: f64,
    /// Whether two hosts still held a VIP when the fault was healed: only that ended it.
    pub overlap_until_healed: bool,
    /// The outage that is allowed.
    pub budget_ms: Option<f64>,
    /// The first frame for the first VIP by another host than the old owner.
    pub new_owner_ms: Option<f64>,
    /// The same, for the earliest of all VIPs.
    pub first_vip_ms: Option<f64>,
    /// The same, for the latest of all VIPs; none when not all of them came.
    pub last_vip_ms: Option<f64>,
    /// The longest time in which the prober sent nothing: the observer's own noise.
    pub prober_pause_ms: f64,
    /// Who held the VIPs before the fault.
    pub owner: HostId,
    /// The holders of the probed VIPs, in order.
    pub holders: Vec<Turn>,
}

impl TrialRecord {
    /// Whether the two promises held: never two holders, and back in the end.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.recovered && self.overlap_ms == 0.0
    }

    /// The longer of the two outages.
    #[must_use]
    pub fn worst_outage_ms(&self) -> f64 {
        self.outage_ms.max(self.outage6_ms.unwrap_or(0.0))
    }

    /// Whether the outage was within the budget, where there is one.
    #[must_use]
    pub fn within_budget(&self) -> Option<bool> {
        self.budget_ms.map(|budget| self.worst_outage_ms() <= budget)
    }
}

/// Percentiles by nearest rank: each is a value that was measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// The worst.
    pub max: f64,
}

impl Spread {
    /// The spread of some values; none when there are none.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let rank = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).max(1) - 1).copied();
        Some(Self { p50: rank(50)?, p95: rank(95)?, p99: rank(99)?, max: rank(100)? })
    }
}

/// All trials of one scenario together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Which fault.
    pub scenario: Fault,
    /// What kept the VIPs.
    pub manager: Manager,
    /// The number of VIPs.
    pub vips: usize,
    /// How many trials.
    pub trials: usize,
    /// Outages of the IPv4 VIP.
    pub outage_ms: Option<Spread>,
    /// Outages of the IPv6 VIP.
    pub outage6_ms: Option<Spread>,
    /// Outages after healing.
    pub after_heal_ms: Option<Spread>,
    /// Time to the first frame of the new owner.
    pub new_owner_ms: Option<Spread>,
    /// Time to the first frame for the last of all VIPs.
    pub last_vip_ms: Option<Spread>,
    /// The longest time in each trial in which the probing thread did not run.
    #[serde(default)]
    pub prober_pause_ms: Option<Spread>,
    /// The outage that is allowed at p99.
    pub budget_ms: Option<f64>,
    /// The worst overlap.
    pub max_overlap_ms: f64,
    /// Overlaps of all trials.
    pub overlap_ms: Option<Spread>,
    /// Trials with an overlap that lasted until the fault was healed.
    pub overlaps_until_healed: usize,
    /// Trials after which the client still did not reach a VIP.
    pub unreached_at_end: usize,
    /// Trials with an overlap.
    pub overlaps: usize,
    /// Trials in which a VIP did not come back.
    pub unrecovered: usize,
}

impl Summary {
    /// Adds up trials of one scenario; none when there are none.
    #[must_use]
    pub fn of(records: &[TrialRecord]) -> Option<Self> {
        let first = records.first()?;
        Some(Self {
            scenario: first.scenario,
            manager: first.manager,
            vips: first.vips,
            trials: records.len(),
            outage_ms: Spread::of(records.iter().map(|record| record.outage_ms)),
            outage6_ms: Spread::of(records.iter().filter_map(|record| record.outage6_ms)),
            after_heal_ms: Spread::of(records.iter().filter_map(|record| record.after_heal_ms)),
            new_owner_ms: Spread::of(records.iter().filter_map(|record| record.new_owner_ms)),
            last_vip_ms: Spread::of(records.iter().filter_map(|record| record.last_vip_ms)),
            prober_pause_ms: Spread::of(records.iter().map(|record| record.prober_pause_ms)),
            budget_ms: first.budget_ms,
            max_overlap_ms: records.iter().map(|record| record.overlap_ms).fold(0.0, f64::max),
            overlap_ms: Spread::of(records.iter().map(|record| record.overlap_ms)),
            overlaps_until_healed: records.iter().filter(|record| record.overlap_until_healed).count(),
            unreached_at_end: records.iter().filter(|record| record.unreached_at_end).count(),
            overlaps: records.iter().filter(|record| record.overlap_ms > 0.0).count(),
            unrecovered: records.iter().filter(|record| !record.recovered).count(),
        })
    }
}

/// Prints to standard output. A reader that is gone (`| head`) is no reason to leave a lab standing, so failures are dropped.
pub fn print(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Where the results of a run go: a table on standard output, and JSON lines in a file if one is given.
#[derive(Debug)]
pub struct Reporter {
    json: Option<BufWriter<File>>,
}

impl Reporter {
    /// Opens the file, if any.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn new(json: Option<&Path>) -> Result<Self> {
        let open = |path: &Path| File::create(path).with_context(|| format!("create {}", path.display()));
        Ok(Self { json: json.map(open).transpose()?.map(BufWriter::new) })
    }

    /// The head of the table.
    pub fn heading(&self) {
        print(
            "scenario   manager          trial  outage v4        v6  after heal  overlap  takeover  last VIP  pause  owner",
        );
    }

    /// One trial.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn trial(&mut self, record: &TrialRecord) -> Result<()> {
        print(&format!(
            "{:10} {:16} {:4} {:7.1} ms {} ms {} ms {:5.1} ms {} ms {} ms {:6.1}  {}{}{}{}",
            record.scenario,
            record.manager,
            record.trial,
            record.outage_ms,
            cell(record.outage6_ms, 6),
            cell(record.after_heal_ms, 8),
            record.overlap_ms,
            cell(record.new_owner_ms, 6),
            cell(record.last_vip_ms, 6),
            record.prober_pause_ms,
            record.owner,
            if record.overlap_ms > 0.0 { "  OVERLAP" } else { "" },
            if record.recovered { "" } else { "  NOT RECOVERED" },
            if record.within_budget() == Some(false) { "  over budget" } else { "" },
        ));
        self.json_line(record)
    }

    /// All trials of one scenario.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn summary(&mut self, summary: &Summary) -> Result<()> {
        let spread = |name: &str, spread: Option<Spread>| {
            if let Some(Spread { p50, p95, p99, max }) = spread {
                print(&format!("  {name:12} p50 {p50:7.1}  p95 {p95:7.1}  p99 {p99:7.1}  max {max:7.1} ms"));
            }
        };
        let Summary { scenario, manager, trials, overlaps, unrecovered, max_overlap_ms, .. } = summary;
        print(&format!(
            "{scenario} ({manager}): {trials} trials, {overlaps} with two holders (longest {max_overlap_ms:.1} ms), \
             {unrecovered} not recovered{}",
            summary.budget_ms.map_or(String::new(), |ms| format!(", budget {ms:.0} ms at p99")),
        ));
        spread("outage v4", summary.outage_ms);
        spread("outage v6", summary.outage6_ms);
        spread("after heal", summary.after_heal_ms);
        spread("pause", summary.prober_pause_ms);
        spread("takeover", summary.new_owner_ms);
        if summary.vips > 2 {
            spread("last VIP", summary.last_vip_ms);
        }
        #[derive(Serialize)]
        struct Line<'a> {
            summary: &'a Summary,
        }
        self.json_line(&Line { summary })
    }

    /// Anything, as a line of the file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn json_line(&mut self, value: &impl Serialize) -> Result<()> {
        let Some(json) = self.json.as_mut() else { return Ok(()) };
        writeln!(json, "{}", serde_json::to_string(value)?)?;
        // A run that is cut short keeps what it found.
        json.flush().context("write the results")
    }
}

fn cell(value: Option<f64>, width: usize) -> String {
    value.map_or_else(|| format!("{:>width$}", "-"), |value| format!("{value:>width$.1}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measured_values() {
        let spread = Spread::of((1..=100).map(f64::from)).expect("values");
        assert_eq!(spread, Spread { p50: 50.0, p95: 95.0, p99: 99.0, max: 100.0 });
        assert_eq!(Spread::of([3.0]).expect("value"), Spread { p50: 3.0, p95: 3.0, p99: 3.0, max: 3.0 });
        assert_eq!(Spread::of([]), None);
    }
}
