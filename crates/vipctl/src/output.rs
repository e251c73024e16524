//! What is printed, as a table or as JSON.

use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;
use vip_client::{Changed, Header, HolderState, NodeStatus, Status, Vip, VipName, WatchEvent};

use crate::table;

const VIP_HEAD: [&str; 7] = ["NAME", "ADDRESS", "INTERFACE", "OWNER", "EPOCH", "STATE", "LEASE LEFT"];
const NODE_HEAD: [&str; 8] = ["ID", "NAME", "ADDRESS", "ROLE", "LEADER", "REACHABLE", "LAST ACK", "VIPS"];
/// Wide enough for most names and addresses; a stream has no widest row.
const EVENT_WIDTHS: (usize, usize, usize) = (10, 9, 20);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub(crate) json: bool,
}

#[derive(Serialize)]
struct VipsJson<'a> {
    header: &'a Header,
    vips: &'a [Vip],
}

#[derive(Serialize)]
struct VipJson<'a> {
    header: &'a Header,
    vip: &'a Vip,
}

/// What a change came to.
#[derive(Serialize)]
pub(crate) struct ChangeLine<'a> {
    header: &'a Header,
    name: &'a VipName,
    changed: bool,
}

impl<'a> ChangeLine<'a> {
    pub(crate) fn new(name: &'a VipName, done: &'a Changed) -> Self {
        Self { header: &done.header, name, changed: done.changed }
    }
}

/// One event of a watch.
#[derive(Serialize)]
pub(crate) struct WatchLine<'a> {
    pub(crate) header: &'a Header,
    #[serde(flatten)]
    pub(crate) event: &'a WatchEvent,
}

impl Output {
    pub(crate) fn vips(self, header: &Header, vips: &[Vip]) -> anyhow::Result<()> {
        if self.json {
            return json(&VipsJson { header, vips });
        }
        let rows: Vec<_> = vips.iter().map(vip_row).collect();
        Ok(table::write(&mut io::stdout().lock(), &VIP_HEAD, &rows)?)
    }

    pub(crate) fn vip(self, header: &Header, vip: &Vip) -> anyhow::Result<()> {
        if self.json {
            return json(&VipJson { header, vip });
        }
        let owner = vip.assignment.as_ref().map(|assignment| format!("{} ({})", assignment.owner, assignment.owner.id));
        let mut out = io::stdout().lock();
        writeln!(out, "name        {}", vip.spec.name)?;
        writeln!(out, "address     {}/{}", vip.spec.address, vip.spec.prefix_len)?;
        writeln!(out, "interface   {}", vip.spec.interface)?;
        writeln!(out, "owner       {}", owner.as_deref().unwrap_or("none yet"))?;
        if let Some(assignment) = &vip.assignment {
            writeln!(out, "epoch       {} (term {})", assignment.epoch, assignment.term)?;
        }
        writeln!(out, "revision    {} (declared at {})", vip.revision, vip.declared_revision)?;
        writeln!(out, "lease left  {}", optional(vip.lease_remaining))?;
        writeln!(out, "state       {} (as node {} knows)", state(vip.holder_state), header.node_id)?;
        Ok(())
    }

    pub(crate) fn change(self, change: &ChangeLine<'_>, text: &str) -> anyhow::Result<()> {
        if self.json {
            return json(change);
        }
        Ok(writeln!(io::stdout().lock(), "{} {text} (revision {})", change.name, change.header.revision)?)
    }

    pub(crate) fn status(self, status: &Status) -> anyhow::Result<()> {
        if self.json {
            return json(status);
        }
        let mut out = io::stdout().lock();
        let leader = status.leader.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
        writeln!(out, "cluster  {}, leader {leader}, term {}", status.header.cluster, status.header.term)?;
        writeln!(
            out,
            "log      committed {}, applied {}, revision {} ({})",
            status.commit_index, status.applied_index, status.header.revision, status.header.consistency
        )?;
        writeln!(out, "vips     {} declared, {} with an owner", status.vips_declared, status.vips_assigned)?;
        let timing = status.timing;
        writeln!(
            out,
            "timing   heartbeat {}, lease {}, margin {}, clock drift {} ppm",
            millis(timing.heartbeat),
            millis(timing.lease),
            millis(timing.margin),
            timing.clock_drift_ppm
        )?;
        local(&mut out, status)?;
        writeln!(out)?;
        let rows: Vec<_> = status.nodes.iter().map(|node| node_row(status, node)).collect();
        Ok(table::write(&mut out, &NODE_HEAD, &rows)?)
    }

    pub(crate) fn watch_head(self) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        let (event, revision, name) = EVENT_WIDTHS;
        writeln!(io::stdout().lock(), "{:event$} {:revision$} {:name$} DETAILS", "EVENT", "REVISION", "NAME")
    }

    pub(crate) fn watch(self, line: &WatchLine<'_>) -> anyhow::Result<()> {
        if self.json {
            return json(line);
        }
        let (event, name, details) = match line.event {
            WatchEvent::SnapshotStart { reset: false } => ("snapshot", "", String::new()),
            WatchEvent::SnapshotStart { reset: true } => {
                ("snapshot", "", "anew: changes in between were not seen".to_owned())
            }
            WatchEvent::Put(vip) => ("put", vip.spec.name.as_str(), put_details(vip)),
            WatchEvent::Delete { name, .. } => ("delete", name.as_str(), String::new()),
            WatchEvent::Synced => ("synced", "", String::new()),
            WatchEvent::Progress => ("progress", "", String::new()),
        };
        let revision = match line.event {
            WatchEvent::Put(vip) => vip.revision,
            WatchEvent::Delete { revision, .. } => *revision,
            WatchEvent::SnapshotStart { .. } | WatchEvent::Synced | WatchEvent::Progress => line.header.revision,
        };
        let (event_width, revision_width, name_width) = EVENT_WIDTHS;
        let text = format!("{event:event_width$} {revision:<revision_width$} {name:name_width$} {details}");
        Ok(writeln!(io::stdout().lock(), "{}", text.trim_end())?)
    }

    /// Something beside the result.
    pub(crate) fn note(self, text: &str) -> io::Result<()> {
        writeln!(io::stderr(), "vipctl: {text}")
    }
}

/// One object on one line.
fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(io::stdout().lock().write_all(&line)?)
}

fn local(out: &mut impl Write, status: &Status) -> io::Result<()> {
    let local = &status.local;
    let uptime = local.uptime.as_secs();
    writeln!(
        out,
        "node     {} ({}), vipd {}, up {}d {:02}:{:02}:{:02}, lease left {}",
        local.node,
        local.node.id,
        local.version,
        uptime / 86_400,
        uptime / 3600 % 24,
        uptime / 60 % 60,
        uptime % 60,
        optional(local.lease_remaining)
    )?;
    let healthy = if local.fence.healthy { "" } else { "; VIPs are NOT fenced as they should be" };
    writeln!(out, "fence    {}: {}{healthy}", local.fence.kind, local.fence.state)?;
    for count in &local.holders {
        writeln!(out, "here     {} {}", count.vips, count.state)?;
    }
    for warning in &local.warnings {
        writeln!(out, "warning  {warning}")?;
    }
    Ok(())
}

fn vip_row(vip: &Vip) -> Vec<String> {
    let (owner, epoch) = vip.assignment.as_ref().map_or_else(
        || ("-".to_owned(), "-".to_owned()),
        |assignment| (assignment.owner.to_string(), assignment.epoch.to_string()),
    );
    vec![
        vip.spec.name.to_string(),
        format!("{}/{}", vip.spec.address, vip.spec.prefix_len),
        vip.spec.interface.to_string(),
        owner,
        epoch,
        state(vip.holder_state),
        optional(vip.lease_remaining),
    ]
}

fn node_row(status: &Status, node: &NodeStatus) -> Vec<String> {
    let leads = status.header.leader_id == Some(node.node.id);
    let reachable = match node.reachable {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "-",
    };
    vec![
        node.node.id.to_string(),
        node.node.name.clone(),
        node.peer_address.clone(),
        node.role.to_string(),
        if leads { "yes" } else { "" }.to_owned(),
        reachable.to_owned(),
        node.last_acknowledged_age.map_or_else(|| "-".to_owned(), |age| format!("{} ago", millis(age))),
        node.vips_owned.to_string(),
    ]
}

fn put_details(vip: &Vip) -> String {
    let owner = vip.assignment.as_ref().map_or_else(
        || "no owner yet".to_owned(),
        |assignment| format!("owner {}, epoch {}", assignment.owner, assignment.epoch),
    );
    format!("{}/{} on {}, {owner}", vip.spec.address, vip.spec.prefix_len, vip.spec.interface)
}

/// A node speaks for itself only: what another holds is no state.
fn state(state: HolderState) -> String {
    if state == HolderState::Unknown { "-".to_owned() } else { state.to_string() }
}

fn optional(duration: Option<Duration>) -> String {
    duration.map_or_else(|| "-".to_owned(), millis)
}

fn millis(duration: Duration) -> String {
    if duration >= Duration::from_secs(10) {
        format!("{} s", duration.as_secs())
    } else {
        format!("{} ms", duration.as_millis())
    }
}
