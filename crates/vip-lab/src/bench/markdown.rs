//! The results as a part of a page that people write: everything between two marks is replaced, nothing else is touched.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{BenchReport, Cost};
use crate::manager::Manager;
use crate::report::{Spread, Summary};
use crate::scenario::Fault;

/// The line before the results.
pub const BEGIN: &str = "<!-- begin: written by `make bench`; edit nothing between these two marks -->";
/// The line after the results.
pub const END: &str = "<!-- end: written by `make bench` -->";

/// Replaces what is between the marks in a file.
///
/// # Errors
/// When the file cannot be read or written, or has not exactly one pair of marks.
pub fn update(path: &Path, report: &BenchReport) -> Result<()> {
    let page = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let page = replace(&page, &render(report)).with_context(|| format!("update {}", path.display()))?;
    fs::write(path, page).with_context(|| format!("write {}", path.display()))
}

/// The page with other results between its marks.
///
/// # Errors
/// When it has not exactly one pair of marks, in order.
pub fn replace(page: &str, results: &str) -> Result<String> {
    replace_between(page, (BEGIN, END), results)
}

/// The same with any marks.
///
/// # Errors
/// The same.
pub fn replace_between(page: &str, (begin, end): (&str, &str), results: &str) -> Result<String> {
    let marks = |mark: &str| page.matches(mark).count();
    ensure!(marks(begin) == 1 && marks(end) == 1, "the page needs the lines {begin:?} and {end:?}, each once");
    let (before, rest) = page.split_once(begin).context("no first mark")?;
    let (_, after) = rest.split_once(end).context("the second mark stands before the first")?;
    Ok(format!("{before}{begin}\n\n{}\n\n{end}{after}", results.trim()))
}

/// The results.
#[must_use]
pub fn render(report: &BenchReport) -> String {
    let about = &report.about;
    let mut text = format!(
        "{}: {} with {} processors, {} GiB, {}, Linux {}. {}.{}\n",
        about.date,
        about.processor,
        about.processors,
        about.memory_gib,
        about.distribution,
        about.kernel,
        about.versions.join(". "),
        about.stolen_percent.map_or_else(String::new, |percent| format!(
            " Of the processors' time {percent:.1} % was stolen by the machine's own host."
        ))
    );
    if !report.faults.is_empty() {
        text += &format!("\n### vipd: {} trials of each fault\n\n{}", about.trials, vipd_table(&report.faults));
        text += &format!("\n### vipd and keepalived: {} trials of each fault\n\n", about.trials);
        text += &comparison(&report.faults);
    }
    if !report.many.is_empty() {
        text += &format!("\n### 1000 VIPs: {} trials of each fault\n\n{}", about.many_trials, many_table(&report.many));
    }
    if !report.steady.is_empty() {
        text += &format!("\n### Steady state\n\n{}", steady_table(&report.steady));
    }
    text
}

fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut text = format!("| {} |\n|{}\n", head.join(" | "), "---|".repeat(head.len()));
    for row in rows {
        text += &format!("| {} |\n", row.join(" | "));
    }
    text
}

fn vipd_table(summaries: &[Summary]) -> String {
    let mut rows: Vec<(Manager, Vec<String>)> = Vec::new();
    for summary in summaries.iter().filter(|summary| summary.manager.profile().is_some()) {
        let outage = |pick: fn(&Spread) -> f64| number(summary.outage_ms.as_ref().map(pick));
        let p99 =
            [summary.outage_ms, summary.outage6_ms].into_iter().flatten().map(|spread| spread.p99).reduce(f64::max);
        let reached = summary.budget_ms.zip(p99).map(|(budget, p99)| if p99 <= budget { "yes" } else { "**no**" });
        rows.push((
            summary.manager,
            vec![
                summary.manager.profile().map_or("-", |profile| profile.name()).to_owned(),
                summary.scenario.to_string(),
                summary.trials.to_string(),
                outage(|spread| spread.p50),
                outage(|spread| spread.p95),
                outage(|spread| spread.p99),
                outage(|spread| spread.max),
                number(summary.outage6_ms.map(|spread| spread.p99)),
                summary.budget_ms.map_or_else(|| "-".to_owned(), |budget| format!("≤ {budget:.0}")),
                reached.unwrap_or("-").to_owned(),
                number(summary.after_heal_ms.map(|spread| spread.p99)),
                number(summary.new_owner_ms.map(|spread| spread.p50)),
                number(summary.prober_pause_ms.map(|spread| spread.p50)),
                number(summary.prober_pause_ms.map(|spread| spread.max)),
                two_hosts(summary),
            ],
        ));
    }
    rows.sort_by_key(|(manager, _)| *manager);
    let head = [
        "profile",
        "fault",
        "trials",
        "outage p50",
        "p95",
        "p99",
        "max",
        "IPv6 p99",
        "goal p99",
        "reached",
        "after healing p99",
        "takeover p50",
        "pause p50",
        "pause max",
        "two hosts",
    ];
    table(&head, rows.into_iter().map(|(_, row)| row))
}

fn comparison(summaries: &[Summary]) -> String {
    let rows = summaries.iter().filter(|summary| summary.scenario != Fault::Reboot).map(|summary| {
        let base = reference(summaries, summary);
        let outage = |summary: &Summary| summary.outage_ms.map(|spread| spread.p50);
        let takeover = |summary: &Summary| summary.new_owner_ms.map(|spread| spread.p50);
        vec![
            summary.scenario.to_string(),
            summary.manager.to_string(),
            number(outage(summary)),
            // Whoever hears two hosts has no outage: nothing to compare with one host's.
            ratio(outage(summary).filter(|_| summary.overlaps == 0), base.and_then(outage)),
            number(summary.outage_ms.map(|spread| spread.max)),
            number(takeover(summary)),
            ratio(takeover(summary), base.and_then(takeover)),
            after_healing(summary),
            two_hosts(summary),
            format!("{} of {}", summary.overlaps, summary.trials),
        ]
    });
    let head = [
        "fault",
        "manager",
        "outage p50",
        "ratio",
        "max",
        "takeover p50",
        "ratio",
        "after healing max",
        "two hosts",
        "in trials",
    ];
    table(&head, rows)
}

fn many_table(summaries: &[Summary]) -> String {
    let rows = summaries.iter().map(|summary| {
        let last = |summary: &Summary| summary.last_vip_ms.map(|spread| spread.p50);
        vec![
            summary.scenario.to_string(),
            summary.manager.to_string(),
            number(summary.new_owner_ms.map(|spread| spread.p50)),
            number(last(summary)),
            ratio(last(summary), reference(summaries, summary).and_then(last)),
            number(summary.last_vip_ms.map(|spread| spread.max)),
            two_hosts(summary),
            format!("{} of {}", summary.trials - summary.unrecovered, summary.trials),
        ]
    });
    let head =
        ["fault", "manager", "first VIP p50", "last VIP p50", "ratio", "last VIP max", "two hosts", "all VIPs back"];
    table(&head, rows)
}

fn steady_table(costs: &[Cost]) -> String {
    let rows = costs.iter().map(|cost| {
        vec![
            cost.manager.to_string(),
            cost.vips.to_string(),
            format!("{:.0}", cost.seconds),
            percent(cost.owner_cpu_percent),
            percent(cost.others_cpu_percent),
            format!("{:.1}", cost.rss_mib),
            format!("{:.1}", cost.pss_mib),
            cost.owner_changes.to_string(),
            number(Some(cost.outage_ms)),
            number(Some(cost.overlap_ms)),
        ]
    });
    let head = [
        "manager",
        "VIPs",
        "seconds",
        "CPU of the owner",
        "of another node",
        "RSS, MiB",
        "PSS, MiB",
        "owner changes",
        "longest outage",
        "two hosts",
    ];
    table(&head, rows)
}

/// The same fault with vipd and its default profile: what ratios are to.
fn reference<'a>(summaries: &'a [Summary], summary: &Summary) -> Option<&'a Summary> {
    summaries.iter().find(|other| other.scenario == summary.scenario && other.manager == Manager::VipdDefault)
}

/// The longest time; at least that, when only the end of the fault ended it.
fn two_hosts(summary: &Summary) -> String {
    let least = if summary.overlaps_until_healed > 0 { "≥ " } else { "" };
    let text = format!("{least}{:.1}", summary.max_overlap_ms);
    if summary.overlaps > 0 { format!("**{text}**") } else { text }
}

fn after_healing(summary: &Summary) -> String {
    let least = if summary.unreached_at_end > 0 { "≥ " } else { "" };
    format!("{least}{}", number(summary.after_heal_ms.map(|spread| spread.max)))
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"))
}

/// The kernel counts in hundredths of a second.
fn percent(value: f64) -> String {
    if value < 0.1 { "< 0.1 %".to_owned() } else { format!("{value:.1} %") }
}

fn ratio(value: Option<f64>, base: Option<f64>) -> String {
    match (value, base) {
        (Some(value), Some(base)) if base > 0.0 => match value / base {
            ratio if ratio >= 10.0 => format!("{ratio:.0} ×"),
            ratio => format!("{ratio:.1} ×"),
        },
        _ => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests;
