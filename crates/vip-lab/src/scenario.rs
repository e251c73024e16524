//! Faults of a whole host and the trial around them: wait until all is well, inject, watch the takeover, heal, watch that
//! healing harms nothing, judge.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::clock::{Stamp, millis};
use crate::config::Profile;
use crate::interrupt;
use crate::judge::{Answer, AnswerKind, Holding, Verdict};
use crate::lab::Lab;
use crate::node::Node;
use crate::outage::Outage;
use crate::report::{TrialRecord, Turn};
use crate::topology::HostId;

/// How long everything stays down in [`Fault::Reboot`], and nothing happens in [`Fault::Baseline`].
const PAUSE: Duration = Duration::from_secs(1);
/// When nobody has taken over by then, nobody will.
const RECOVERY_LIMIT: Duration = Duration::from_secs(15);
const STABLE_LIMIT: Duration = Duration::from_secs(40);
/// The outage window begins a little before the fault, so that it begins with answered probes.
const LEAD: Duration = Duration::from_millis(50);

/// A holder that was asked so long ago for the last time may still hold.
const LATEST_ANSWER: Duration = Duration::from_millis(50);

/// How long a trial waits and watches.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How long every daemon must have been up before the fault.
    pub settle: Duration,
    /// How long the new holder is watched before the fault is healed.
    pub watch: Duration,
    /// How long everybody is watched after healing: longer than any lease.
    pub healed: Duration,
    /// How long after healing a VIP that the client does not reach is waited for; the trial has not recovered when it is
    /// not reached then either.
    pub patience: Duration,
}

impl Pace {
    /// With the usual times for everything but `settle`.
    #[must_use]
    pub const fn settled(settle: Duration) -> Self {
        Self {
            settle,
            watch: Duration::from_secs(1),
            healed: Duration::from_millis(1500),
            patience: Duration::from_millis(1500),
        }
    }
}

/// What happens to the host that holds the VIPs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fault {
    /// Nothing: the observer's own noise.
    Baseline,
    /// SIGKILL to the daemon.
    Kill,
    /// SIGSTOP to the daemon, SIGCONT a second after the takeover.
    Freeze,
    /// SIGTERM to the daemon.
    Stop,
    /// The host's link loses its carrier.
    Linkdown,
    /// The host is cut off from the other nodes, and not from the clients.
    Partition,
    /// The other nodes do not hear the host any more; it hears them, and the clients hear it.
    Mute,
    /// Nobody hears the host any more, nor it anybody, but its link keeps the carrier.
    Upstream,
    /// SIGKILL to every daemon at once, then all are started again.
    Reboot,
}

impl Fault {
    /// The name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Kill => "kill",
            Self::Freeze => "freeze",
            Self::Stop => "stop",
            Self::Linkdown => "linkdown",
            Self::Partition => "partition",
            Self::Mute => "mute",
            Self::Upstream => "upstream",
            Self::Reboot => "reboot",
        }
    }

    /// The outage that a client may see at the most, in 99 of 100 cases; none is promised for a reboot of everything.
    #[must_use]
    pub const fn budget(self, profile: Profile) -> Option<Duration> {
        let (default, fast) = match self {
            Self::Baseline | Self::Reboot => return None,
            // A host that is cut off from its peers goes on serving until its lease ends, like one whose daemon is frozen.
            Self::Kill | Self::Freeze | Self::Partition | Self::Mute => (50, 40),
            Self::Stop => (40, 30),
            Self::Linkdown | Self::Upstream => (650, 160),
        };
        Some(Duration::from_millis(match profile {
            Profile::Default => default,
            Profile::Fast => fast,
        }))
    }

    /// What is done, in words; `daemon` is the manager's program.
    fn deed(self, daemon: &str) -> String {
        match self {
            Self::Baseline => "nothing happens".to_owned(),
            Self::Kill => format!("SIGKILL {daemon} (owner)"),
            Self::Freeze => format!("SIGSTOP {daemon} (owner)"),
            Self::Stop => format!("SIGTERM {daemon} (owner)"),
            Self::Linkdown => "link of the owner goes down".to_owned(),
            Self::Partition => "owner is cut off from the other nodes, not from the client".to_owned(),
            Self::Mute => "the other nodes do not hear the owner any more".to_owned(),
            Self::Upstream => "owner is cut off from everybody, its link stays up".to_owned(),
            Self::Reboot => format!("SIGKILL to every {daemon}"),
        }
    }

    fn healing(self, daemon: &str) -> String {
        match self {
            Self::Baseline => "still nothing happens".to_owned(),
            Self::Kill | Self::Stop => format!("{daemon} starts again"),
            Self::Freeze => format!("SIGCONT {daemon}: it wakes up and must notice"),
            Self::Linkdown => "link comes back".to_owned(),
            Self::Partition | Self::Mute | Self::Upstream => "the cut heals".to_owned(),
            Self::Reboot => format!("every {daemon} starts again"),
        }
    }

    fn inject(self, lab: &Lab, owner: HostId) -> Result<()> {
        match self {
            Self::Baseline => Ok(()),
            Self::Kill => lab.daemon(owner).kill(),
            Self::Freeze => lab.daemon(owner).freeze(),
            Self::Stop => lab.daemon(owner).stop(Duration::from_secs(10)),
            Self::Linkdown => lab.network().link_down(owner),
            Self::Partition => lab.network().partition(&[owner], &peers_of(lab, owner)),
            Self::Mute => lab.network().cut(&[owner], &peers_of(lab, owner)),
            Self::Upstream => {
                let everybody = [peers_of(lab, owner), vec![HostId::Client, HostId::Watch]].concat();
                lab.network().partition(&[owner], &everybody)
            }
            Self::Reboot => lab.nodes().iter().try_for_each(Node::kill),
        }
    }

    fn heal(self, lab: &Lab, owner: HostId) -> Result<()> {
        match self {
            Self::Baseline => Ok(()),
            Self::Kill | Self::Stop => lab.daemon(owner).start(),
            Self::Freeze => lab.daemon(owner).thaw(),
            Self::Linkdown => lab.network().link_up(owner),
            Self::Partition | Self::Mute | Self::Upstream => lab.network().heal(),
            Self::Reboot => lab.nodes().iter().try_for_each(Node::start),
        }
    }

    const fn moves_vips(self) -> bool {
        !matches!(self, Self::Baseline | Self::Reboot)
    }
}

fn peers_of(lab: &Lab, owner: HostId) -> Vec<HostId> {
    lab.network().nodes().filter(|&node| node != owner).collect()
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Something that happened in a trial, for a timeline.
#[derive(Debug, Clone)]
pub struct Moment {
    /// When.
    pub at: Stamp,
    /// Where, when it is about one host.
    pub host: Option<HostId>,
    /// What.
    pub what: String,
}

/// Runs one trial of `fault` at the usual pace. `settle` is how long every daemon must have been up before. Moments go to
/// `say` as they are known.
///
/// # Errors
/// When the lab does not get into a stable state before the fault, a command fails, or at an interrupt. What the
/// cluster does wrong is no error: it is in the record.
pub fn run_trial(
    lab: &Lab,
    fault: Fault,
    number: u32,
    settle: Duration,
    say: &mut dyn FnMut(Moment),
) -> Result<TrialRecord> {
    run_trial_at(lab, fault, number, Pace::settled(settle), say)
}

/// Runs one trial of `fault` at a given pace.
///
/// # Errors
/// As [`run_trial`].
pub fn run_trial_at(
    lab: &Lab,
    fault: Fault,
    number: u32,
    pace: Pace,
    say: &mut dyn FnMut(Moment),
) -> Result<TrialRecord> {
    let holders = lab.wait_stable(pace.settle, STABLE_LIMIT)?;
    let daemon = lab.manager().program();
    let owner = holders[0];
    let observer = lab.observe();
    let begin = Stamp::now() - Duration::from_secs(1);
    observer.forget(begin - Duration::from_secs(1));

    let victim = (fault != Fault::Reboot && fault != Fault::Baseline).then_some(owner);
    let injected = Stamp::now();
    say(Moment { at: injected, host: victim, what: fault.deed(daemon) });
    fault.inject(lab, owner)?;
    let moving: Vec<IpAddr> = match fault.moves_vips() {
        true => lab.vips().iter().zip(&holders).filter(|(_, host)| **host == owner).map(|(vip, _)| *vip).collect(),
        false => Vec::new(),
    };
    let taken_over = wait_taken_over(lab, &moving, owner, injected)?;
    interrupt::sleep(Duration::from_millis(100))?;
    if fault.moves_vips() {
        tell_takeovers(lab, owner, injected, say);
    }
    interrupt::sleep(if fault.moves_vips() { pace.watch } else { PAUSE })?;

    let healed = Stamp::now();
    say(Moment { at: healed, host: victim, what: fault.healing(daemon) });
    fault.heal(lab, owner)?;
    let back = fault != Fault::Reboot || wait_answered(lab, lab.vips(), healed, |_| true)?;
    interrupt::sleep(pace.healed)?;
    wait_reached(lab, healed, pace.patience.saturating_sub(pace.healed))?;

    let times = Times { begin, injected, healed, end: Stamp::now() };
    Ok(judge_trial(lab, fault, number, owner, &moving, times, taken_over && back))
}

/// Waits until every moving VIP is answered by another host than the old owner. False when that takes too long.
fn wait_taken_over(lab: &Lab, moving: &[IpAddr], owner: HostId, since: Stamp) -> Result<bool> {
    wait_answered(lab, moving, since, |host| host != owner)
}

/// Waits until each of `vips` is answered by a host that counts. False when that takes too long.
fn wait_answered(lab: &Lab, vips: &[IpAddr], since: Stamp, counts: impl Fn(HostId) -> bool) -> Result<bool> {
    let mut missing: HashSet<IpAddr> = vips.iter().copied().collect();
    let seen = lab.observe().wait("every VIP", since, RECOVERY_LIMIT, |answers| {
        for answer in answers.iter().filter(|answer| counts(answer.host)) {
            missing.remove(&answer.vip);
        }
        missing.is_empty()
    });
    interrupt::check()?;
    Ok(seen.is_ok())
}

/// Waits until the client reaches every probed VIP again, for `limit` at the most.
fn wait_reached(lab: &Lab, healed: Stamp, limit: Duration) -> Result<()> {
    const STEP: Duration = Duration::from_millis(100);
    let observer = lab.observe();
    let deadline = Stamp::now() + limit;
    let reached = |vip: &IpAddr| !observer.outage(*vip, healed, Stamp::now()).open;
    while Stamp::now() < deadline && !observer.probed().iter().all(reached) {
        interrupt::sleep(STEP)?;
    }
    Ok(())
}

/// For each VIP the first frame by another host than `owner`.
fn first_by_others(answers: &[Answer], owner: HostId) -> HashMap<IpAddr, Stamp> {
    let mut first = HashMap::new();
    for answer in answers.iter().filter(|answer| answer.host != owner) {
        first.entry(answer.vip).or_insert(answer.at);
    }
    first
}

fn tell_takeovers(lab: &Lab, owner: HostId, since: Stamp, say: &mut dyn FnMut(Moment)) {
    let answers = lab.observe().answers(since);
    for &vip in lab.observe().probed() {
        let mut news = answers.iter().filter(|answer| answer.vip == vip && answer.host != owner).peekable();
        let Some(&&Answer { at, host, .. }) = news.peek() else { continue };
        let kinds: BTreeSet<AnswerKind> = news.map(|answer| answer.kind).collect();
        let kinds: Vec<&str> = kinds.into_iter().map(AnswerKind::label).collect();
        say(Moment { at, host: Some(host), what: format!("answers for {vip} ({})", kinds.join(", ")) });
    }
}

#[derive(Clone, Copy)]
struct Times {
    begin: Stamp,
    injected: Stamp,
    healed: Stamp,
    end: Stamp,
}

fn judge_trial(
    lab: &Lab,
    fault: Fault,
    number: u32,
    owner: HostId,
    moving: &[IpAddr],
    times: Times,
    recovered: bool,
) -> TrialRecord {
    let observer = lab.observe();
    let verdict = observer.verdict(times.begin);
    // A reboot is over only when everything is back: its outage spans the healing.
    let fault_end = if fault.moves_vips() { times.healed } else { times.end };
    let outages = |from: Stamp, to: Stamp| -> Vec<Outage> {
        observer.probed().iter().map(|&vip| observer.outage(vip, from, to)).collect()
    };
    let during = outages(times.injected - LEAD, fault_end);
    let healing = outages(times.healed - LEAD, times.end);
    let longest = |list: &[Outage], i: usize| list.get(i).map(|outage| millis(outage.longest));

    let firsts = first_by_others(&observer.answers(times.injected), owner);
    let takeover: Vec<Stamp> = moving.iter().filter_map(|vip| firsts.get(vip).copied()).collect();
    let since_fault = |at: &Stamp| at.millis_from(times.injected);
    TrialRecord {
        scenario: fault,
        manager: lab.manager(),
        vips: lab.vips().len(),
        trial: number,
        recovered: recovered && healing.iter().all(|outage| !outage.open) && lab.nodes().iter().all(Node::is_running),
        outage_ms: longest(&during, 0).unwrap_or(0.0),
        outage6_ms: longest(&during, 1),
        after_heal_ms: if fault.moves_vips() { longest_value(&healing) } else { None },
        unreached_at_end: healing.iter().any(|outage| outage.open),
        overlap_ms: millis(verdict.overlap),
        overlap_until_healed: verdict
            .overlaps
            .iter()
            .any(|overlap| overlap.from < times.healed && overlap.to + LATEST_ANSWER >= times.healed),
        budget_ms: lab.manager().profile().and_then(|profile| fault.budget(profile)).map(millis),
        new_owner_ms: moving.first().and_then(|vip| firsts.get(vip)).map(since_fault),
        first_vip_ms: takeover.iter().min().map(since_fault),
        last_vip_ms: takeover.iter().max().filter(|_| takeover.len() == moving.len()).map(since_fault),
        prober_pause_ms: during.iter().chain(&healing).map(|outage| millis(outage.prober_pause)).fold(0.0, f64::max),
        owner,
        holders: turns(&verdict, observer.probed(), times.injected),
    }
}

fn longest_value(outages: &[Outage]) -> Option<f64> {
    outages.iter().map(|outage| millis(outage.longest)).reduce(f64::max)
}

/// The holders of the probed VIPs, one after another.
fn turns(verdict: &Verdict, vips: &[IpAddr], origin: Stamp) -> Vec<Turn> {
    let turn = |holding: Holding| Turn {
        vip: holding.vip,
        host: holding.host,
        first_ms: holding.first.millis_from(origin),
        last_ms: holding.last.millis_from(origin),
        announcements: holding.announcements,
    };
    vips.iter().flat_map(|&vip| verdict.succession(vip)).map(turn).collect()
}
