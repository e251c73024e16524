//! A lab left alone: what the daemons cost, and whether an owner changes without a reason.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::clock::{Stamp, millis};
use crate::interrupt;
use crate::lab::Lab;
use crate::manager::Manager;
use crate::node::{Node, Usage};
use crate::topology::HostId;

/// Judged and forgotten at this pace, so that a run of days fits into memory.
const CHUNK: Duration = Duration::from_secs(5);
/// What is judged again with the next chunk, so that nothing hides at the seam.
const SEAM: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// What the daemon of one node costs, with its children.
#[derive(Debug, Clone, Serialize)]
pub struct NodeCost {
    /// The node.
    pub node: HostId,
    /// Whether it held the first VIP at the end.
    pub owner: bool,
    /// Share of one processor.
    pub cpu_percent: f64,
    /// Resident memory at the end. What several processes of one daemon share counts for each.
    pub rss_mib: f64,
    /// The same, with what is shared divided by those who share it.
    pub pss_mib: f64,
}

/// The result of a steady run.
#[derive(Debug, Clone, Serialize)]
pub struct SteadyRecord {
    /// "steady".
    pub scenario: &'static str,
    /// What kept the VIPs.
    pub manager: Manager,
    /// The number of VIPs.
    pub vips: usize,
    /// How long it was watched.
    pub seconds: f64,
    /// How often a VIP changed its holder.
    pub owner_changes: usize,
    /// The longest time without an answer for each probed VIP.
    pub outage_ms: Vec<f64>,
    /// The longest time in which the prober sent nothing.
    pub prober_pause_ms: f64,
    /// The worst overlap.
    pub overlap_ms: f64,
    /// The daemons.
    pub nodes: Vec<NodeCost>,
}

/// Watches a lab that is left alone for `time`, and tells each minute what it saw so far.
///
/// # Errors
/// When the lab does not become stable, a daemon ends, or at an interrupt.
pub fn run_steady(
    lab: &Lab,
    time: Duration,
    settle: Duration,
    tell: &mut dyn FnMut(Duration, &SteadyRecord),
) -> Result<SteadyRecord> {
    let holders = lab.wait_stable(settle, Duration::from_secs(40))?;
    let observer = lab.observe();
    let mut holder_of: HashMap<IpAddr, HostId> = lab.vips().iter().copied().zip(holders).collect();
    let mut record = SteadyRecord {
        scenario: "steady",
        manager: lab.manager(),
        vips: lab.vips().len(),
        seconds: time.as_secs_f64(),
        owner_changes: 0,
        outage_ms: vec![0.0; observer.probed().len()],
        prober_pause_ms: 0.0,
        overlap_ms: 0.0,
        nodes: Vec::new(),
    };
    let before: Vec<Usage> = lab.nodes().iter().map(Node::usage).collect::<Result<_>>()?;
    let started = Stamp::now();
    let mut from = started;
    let mut told = started;
    while from < started + time {
        let to = (from + CHUNK).min(started + time);
        interrupt::sleep(to.since(Stamp::now()) + Duration::from_millis(20))?;
        record.overlap_ms = record.overlap_ms.max(millis(observer.verdict(from - SEAM).overlap));
        for answer in observer.answers(from).iter().filter(|answer| answer.at < to) {
            if holder_of.insert(answer.vip, answer.host) != Some(answer.host) {
                record.owner_changes += 1;
            }
        }
        for (i, &vip) in observer.probed().iter().enumerate() {
            let outage = observer.outage(vip, from - SEAM, to);
            record.outage_ms[i] = record.outage_ms[i].max(millis(outage.longest));
            record.prober_pause_ms = record.prober_pause_ms.max(millis(outage.prober_pause));
        }
        observer.forget(to - SEAM * 2);
        from = to;
        if from.since(told) >= MINUTE && from < started + time {
            told = from;
            tell(from.since(started), &record);
        }
    }
    let elapsed = Stamp::now().since(started).as_secs_f64();
    for (node, before) in lab.nodes().iter().zip(before) {
        let after = node.usage()?;
        record.nodes.push(NodeCost {
            node: node.host(),
            owner: holder_of.get(&lab.vips()[0]) == Some(&node.host()),
            cpu_percent: 100.0 * (after.cpu.saturating_sub(before.cpu)).as_secs_f64() / elapsed,
            rss_mib: after.rss_mib(),
            pss_mib: after.pss_mib(),
        });
    }
    Ok(record)
}
