//! The demonstration: one lab, four faults, a timeline to read along, and a table at the end.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::clock::Stamp;
use crate::lab::Lab;
use crate::report::{TrialRecord, print};
use crate::scenario::{Fault, Moment, run_trial};

const FAULTS: [Fault; 4] = [Fault::Kill, Fault::Freeze, Fault::Linkdown, Fault::Partition];
/// Short, for the sake of the spectator, and yet longer than any lease.
const SETTLE: Duration = Duration::from_secs(1);

/// What the demonstration found.
#[derive(Debug, Serialize)]
pub struct DemoRecord {
    /// One trial for each fault.
    pub trials: Vec<TrialRecord>,
    /// Whether never two hosts answered, and every VIP came back each time.
    pub passed: bool,
}

/// Runs the demonstration on a lab that has just been started. Silent with `quiet`.
///
/// # Errors
/// When the lab does not become stable, a command fails, or at an interrupt.
pub fn run_demo(lab: &Lab, quiet: bool) -> Result<DemoRecord> {
    let timeline = Timeline { origin: Stamp::now(), colours: std::io::stdout().is_terminal(), quiet };
    timeline.note(&format!(
        "{} nodes, one client; VIPs {}; {}",
        lab.nodes().len(),
        lab.vips().iter().map(ToString::to_string).collect::<Vec<_>>().join(" and "),
        lab.manager(),
    ));
    let owner = lab.wait_stable(SETTLE, Duration::from_secs(40))?[0];
    timeline.moment(&Moment { at: Stamp::now(), host: Some(owner), what: "answers for every VIP: the owner".into() });
    let mut trials = Vec::new();
    for (number, fault) in (1..).zip(FAULTS) {
        timeline.note(&format!("── {fault} ──"));
        let record = run_trial(lab, fault, number, SETTLE, &mut |moment| timeline.moment(&moment))?;
        timeline.result(&record);
        trials.push(record);
    }
    timeline.table(&trials);
    let passed = trials.iter().all(TrialRecord::passed);
    Ok(DemoRecord { trials, passed })
}

struct Timeline {
    origin: Stamp,
    colours: bool,
    quiet: bool,
}

#[derive(Clone, Copy)]
enum Colour {
    Red = 31,
    Green = 32,
    Yellow = 33,
    Bold = 1,
}

impl Timeline {
    fn moment(&self, moment: &Moment) {
        let host = moment.host.map_or_else(String::new, |host| host.to_string());
        let at = moment.at.since(self.origin).as_secs_f64();
        self.line(&format!("{at:8.3}  {}  {}", self.paint(Colour::Bold, &format!("{host:3}")), moment.what));
    }

    fn note(&self, text: &str) {
        self.line(&format!("{:8.3}  {text}", Stamp::now().since(self.origin).as_secs_f64()));
    }

    fn result(&self, record: &TrialRecord) {
        let healed = record.after_heal_ms.map_or_else(String::new, |ms| format!("  after healing {ms:.0} ms"));
        let outage = record.worst_outage_ms();
        self.line(&format!(
            "{:15}outage {outage:.0} ms{healed}  overlap {:.0} ms  {}",
            "",
            record.overlap_ms.ceil(),
            self.judgement(record),
        ));
    }

    fn table(&self, trials: &[TrialRecord]) {
        self.line("");
        self.line("fault       outage v4  outage v6  after healing    two hosts    budget");
        for record in trials {
            self.line(&format!(
                "{:10} {:7.1} ms {:7.1} ms {:11.1} ms {:9.1} ms   {}",
                record.scenario,
                record.outage_ms,
                record.outage6_ms.unwrap_or(0.0),
                record.after_heal_ms.unwrap_or(0.0),
                record.overlap_ms,
                self.judgement(record),
            ));
        }
    }

    fn judgement(&self, record: &TrialRecord) -> String {
        let budget = record.budget_ms.map_or_else(String::new, |ms| format!("{ms:.0} ms "));
        let (colour, word) = match (record.overlap_ms > 0.0, record.recovered, record.within_budget()) {
            (true, _, _) => (Colour::Red, "TWO HOSTS ANSWERED"),
            (false, false, _) => (Colour::Red, "NOT ANSWERED"),
            (false, true, Some(false)) => (Colour::Yellow, "over budget"),
            (false, true, Some(true) | None) => (Colour::Green, "OK"),
        };
        format!("budget {budget}{}", self.paint(colour, word))
    }

    fn paint(&self, colour: Colour, text: &str) -> String {
        if self.colours { format!("\x1b[{}m{text}\x1b[0m", colour as u8) } else { text.to_owned() }
    }

    fn line(&self, text: &str) {
        if !self.quiet {
            print(text);
        }
    }
}
