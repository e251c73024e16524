//! The table of docs/reliability.md, out of the report of one campaign or several.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use vip_lab::bench::markdown::replace_between;
use vip_tests::TestResult;

use crate::trial::Case;

const MARKS: (&str, &str) = (
    "<!-- begin: written by `make faults`; edit nothing between these two marks -->",
    "<!-- end: written by `make faults` -->",
);

/// One line of a report, as [`crate::trial::Trial::end`] writes it.
#[derive(Deserialize)]
struct Line {
    case: String,
    fence: String,
    profile: String,
    expected: String,
    outage_ms: f64,
    overlap_ms: f64,
    skipped: Option<String>,
    passed: Option<bool>,
}

/// A column of outages.
const KINDS: [(&str, &str, &str); 3] =
    [("bpf", "default", "default"), ("bpf", "fast", "fast"), ("nftables", "default", "nftables")];

/// Replaces the table in `page` by that of the report.
///
/// # Errors
/// When a file cannot be read or written, or has not the marks.
pub(crate) fn update<'c>(page: &Path, report: &Path, cases: impl Iterator<Item = &'c Case>) -> TestResult {
    let text = fs::read_to_string(report).with_context(|| format!("read {}", report.display()))?;
    let lines: Vec<Line> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let old = fs::read_to_string(page).with_context(|| format!("read {}", page.display()))?;
    let new = replace_between(&old, MARKS, &render(&lines, cases))?;
    fs::write(page, new).with_context(|| format!("write {}", page.display()))
}

fn render<'c>(lines: &[Line], cases: impl Iterator<Item = &'c Case>) -> String {
    let mut by_case: BTreeMap<&str, Vec<&Line>> = BTreeMap::new();
    for line in lines {
        by_case.entry(&line.case).or_default().push(line);
    }
    let made = lines.iter().filter(|line| line.skipped.is_none());
    let count = |wanted: &dyn Fn(&Line) -> bool| made.clone().filter(|line| wanted(line)).count();
    let mut text = format!(
        "{} trials of {} kinds of faults; two hosts in {} of them, failed otherwise {}; {} more were skipped.\n\n",
        made.clone().count(),
        by_case.values().filter(|lines| lines.iter().any(|line| line.skipped.is_none())).count(),
        count(&|line| line.overlap_ms > 0.0),
        count(&|line| line.passed == Some(false) && line.overlap_ms == 0.0),
        lines.len() - made.clone().count(),
    );
    text += "| fault | who holds the VIPs then | trials | two hosts |";
    KINDS.iter().for_each(|(.., head)| text += &format!(" {head}: median, worst |"));
    text += "\n|---|---|---|---|---|---|---|\n";
    for case in cases {
        let Some(lines) = by_case.remove(case.name) else { continue };
        text += &row(case, &lines);
    }
    text
}

fn row(case: &Case, lines: &[&Line]) -> String {
    let made: Vec<_> = lines.iter().filter(|line| line.skipped.is_none()).collect();
    if made.is_empty() {
        let why = lines.first().and_then(|line| line.skipped.as_deref()).unwrap_or_default();
        // The reason, without what the kernel said.
        let why = why.split(": ").next().unwrap_or_default();
        return format!("| {} | skipped: {why} | 0 | | | | |\n", case.name);
    }
    let mut expected: Vec<&str> = made.iter().map(|line| line.expected.as_str()).collect();
    expected.sort_unstable();
    expected.dedup();
    let overlaps = made.iter().filter(|line| line.overlap_ms > 0.0).count();
    let mut text = format!("| {} | {} | {} | {overlaps} |", case.name, expected.join(" or "), made.len());
    for (fence, profile, _) in KINDS {
        let of_kind = made.iter().filter(|line| line.fence == fence && line.profile == profile);
        let mut outages: Vec<f64> = of_kind.map(|line| line.outage_ms).collect();
        outages.sort_by(f64::total_cmp);
        text += &match (outages.get(outages.len() / 2), outages.last()) {
            (Some(median), Some(worst)) => format!(" {median:.0}, {worst:.0} |"),
            _ => " |".to_owned(),
        };
    }
    text + "\n"
}

#[test]
fn a_table_of_a_report() {
    let line = |overlap_ms: f64, outage_ms: f64, skipped: Option<&str>| Line {
        case: "it breaks".into(),
        fence: "bpf".into(),
        profile: "default".into(),
        expected: "another node".into(),
        outage_ms,
        overlap_ms,
        skipped: skipped.map(str::to_owned),
        passed: skipped.is_none().then_some(overlap_ms == 0.0),
    };
    let run = |_: &mut crate::trial::Trial<'_>| -> Result<crate::trial::End> { Ok(crate::trial::End::Anyone) };
    let case = Case { name: "it breaks", bound_ms: 1, usual_ms: 1, in_ci: 0, run };
    let lines = [line(0.0, 30.0, None), line(2.0, 10.0, None), line(0.0, 20.0, None), line(0.0, 0.0, Some("no disk"))];
    let text = render(&lines, [&case].into_iter());
    assert!(
        text.starts_with("3 trials of 1 kinds of faults; two hosts in 1 of them, failed otherwise 0; 1 more"),
        "{text}"
    );
    assert!(text.contains("| it breaks | another node | 3 | 1 | 20, 30 | | |"), "{text}");
    let text = render(&lines[3..], [&case].into_iter());
    assert!(text.contains("| it breaks | skipped: no disk | 0 | | | | |"), "{text}");
}
