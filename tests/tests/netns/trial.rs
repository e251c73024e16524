//! One trial: a cluster that is well, a fault with its healing, and a judgement by packets.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::ops::Range;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use serde_json::{Value, json};
use tempfile::TempDir;
use vip_lab::clock::millis;
use vip_lab::topology::Network;
use vip_lab::{Answer, HostId, Node, Stamp, judge};
use vip_tests::cluster::{Cluster, PATIENCE};
use vip_tests::disk::Disk;
use vip_tests::{TestResult, wait_until};

/// A kind of fault, and what may come of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    /// A short sentence.
    pub(crate) name: &'static str,
    /// The longest outage that is no failure, from [`Trial::outages_count_from_here`] on: in milliseconds, on a busy
    /// machine.
    pub(crate) bound_ms: u64,
    /// An outage beyond this is marked as slow, on whatever machine.
    pub(crate) usual_ms: u64,
    /// How often CI runs it.
    pub(crate) in_ci: u32,
    /// Does it, and undoes it.
    pub(crate) run: fn(&mut Trial<'_>) -> Result<End>,
}

/// Who must hold the VIPs when all is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// Whoever.
    Anyone,
    /// The owner from before, and nobody else answered meanwhile.
    Unmoved,
    /// Somebody else than this host.
    Not(HostId),
    /// The fault could not be made here, for this reason: nothing was tested.
    Skipped(String),
}

impl End {
    const fn expected(&self) -> &'static str {
        match self {
            Self::Anyone => "anyone",
            Self::Unmoved => "the same",
            Self::Not(_) => "another",
            Self::Skipped(_) => "",
        }
    }
}

/// How long nothing must have gone wrong before a trial begins, and after its fault.
const STEADY: Duration = Duration::from_millis(300);

/// What the observer itself may miss on a busy machine.
const HICCUP: Duration = Duration::from_millis(30);

/// How long every daemon runs before a fault: one that just started does not vote for a lease.
const SETTLED: Duration = Duration::from_millis(700);

/// Between the healing of one fault and the next: time to connect anew.
const REST: Duration = Duration::from_millis(300);

/// A laboratory, and what belongs to it.
#[derive(Debug)]
pub(crate) struct Stand {
    pub(crate) cluster: Cluster,
    /// The disks of the nodes, where they have some of their own.
    pub(crate) disks: BTreeMap<HostId, Disk>,
    /// Whatever must live as long.
    #[expect(dead_code, reason = "dropped with the rest")]
    pub(crate) children: Vec<Kept>,
    /// And a directory.
    pub(crate) dir: Option<TempDir>,
}

/// A process that is ended when dropped.
#[derive(Debug)]
pub(crate) struct Kept(pub(crate) Child);

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running trial.
pub(crate) struct Trial<'a> {
    pub(crate) stand: &'a Stand,
    pub(crate) cluster: &'a Cluster,
    /// Who held the VIPs before.
    pub(crate) owner: HostId,
    pub(crate) rng: Rng,
    /// Whether times are to be short.
    brief: bool,
    begin: Stamp,
    judged_from: Stamp,
    notes: Vec<String>,
}

/// What came of a trial.
#[derive(Debug)]
pub(crate) struct Record {
    /// For the report.
    pub(crate) json: Value,
    /// Why it could not be made.
    pub(crate) skipped: Option<String>,
    /// Two hosts answered at once.
    pub(crate) overlapped: bool,
    /// The outage was beyond the usual one.
    pub(crate) slow: bool,
    /// What was wrong; nothing in a trial that passed.
    pub(crate) problems: Vec<String>,
}

impl<'a> Trial<'a> {
    /// Waits until all is well, then begins.
    ///
    /// # Errors
    /// When the cluster does not get well.
    pub(crate) fn begin(stand: &'a Stand, rng: Rng, brief: bool) -> Result<Self> {
        let cluster = &stand.cluster;
        let ready = |node: &Node| node.uptime().is_some_and(|time| time > SETTLED);
        let deadline = Stamp::now() + PATIENCE;
        while !cluster.lab.nodes().iter().all(ready) {
            ensure!(Stamp::now() < deadline, "not every daemon runs\n{}", cluster.logs());
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(REST);
        let owner = wait_for_holder(cluster)?;
        let begin = Stamp::now();
        cluster.lab.observe().forget(begin - Duration::from_secs(1));
        Ok(Self { stand, cluster, owner, rng, brief, begin, judged_from: begin, notes: Vec::new() })
    }

    pub(crate) fn network(&self) -> &'a Network {
        self.cluster.lab.network()
    }

    pub(crate) fn node(&self, host: HostId) -> &'a Node {
        self.cluster.node(host)
    }

    /// The length of the lease.
    pub(crate) fn lease(&self) -> Duration {
        self.cluster.lease()
    }

    /// All nodes.
    pub(crate) fn nodes(&self) -> Vec<HostId> {
        self.cluster.lab.nodes().iter().map(Node::host).collect()
    }

    /// The nodes that do not hold the VIPs, in an order by chance.
    pub(crate) fn others(&mut self) -> Vec<HostId> {
        let mut others = self.cluster.others(self.owner);
        self.rng.shuffle(&mut others);
        others
    }

    /// One of them.
    pub(crate) fn other(&mut self) -> HostId {
        self.others()[0]
    }

    /// Waits until the owner would give up its leadership for a VIP that it cannot hold: not in the first seconds of a
    /// daemon, when links may still come up everywhere.
    pub(crate) fn wait_until_owner_may_step_aside(&self) -> TestResult {
        /// The daemon's interval, and some more.
        const STEPS_ASIDE: Duration = Duration::from_millis(5500);
        let node = self.node(self.owner);
        wait_until("the owner may step aside", STEPS_ASIDE * 2, || {
            Ok(node.uptime().is_some_and(|time| time > STEPS_ASIDE))
        })
    }

    /// Says what is done, for the report.
    pub(crate) fn note(&mut self, what: impl AsRef<str>) {
        let at = Stamp::now().millis_from(self.begin);
        self.notes.push(format!("{at:.1} ms: {}", what.as_ref()));
    }

    /// Sleeps for a time by chance, in milliseconds; outside of a campaign for less.
    pub(crate) fn sleep(&mut self, range: Range<u64>) -> Duration {
        let end = if self.brief { range.start + (range.end - range.start).div_ceil(3) } else { range.end };
        self.sleep_micros(range.start * 1000..end * 1000)
    }

    /// Sleeps for about as long as a share of the lease, in percent.
    pub(crate) fn sleep_of_lease(&mut self, percent: Range<u64>) -> Duration {
        let lease = u64::try_from(self.lease().as_micros()).unwrap_or_default();
        self.sleep_micros(percent.start * lease / 100..percent.end * lease / 100 + 1)
    }

    fn sleep_micros(&mut self, range: Range<u64>) -> Duration {
        let time = Duration::from_micros(self.rng.u64(range));
        std::thread::sleep(time);
        time
    }

    /// Until now nobody could have held the VIPs, or no client seen it: that they are away counts from here on.
    pub(crate) fn outages_count_from_here(&mut self) {
        self.judged_from = Stamp::now();
    }

    /// Whatever held VIPs until now has none of them once its lease is over, whose last renewal was at `since`.
    pub(crate) fn lease_end(&self, since: Stamp) -> Stamp {
        since + self.lease() + Duration::from_millis(20)
    }

    /// That `host` answered nothing from `from` until now.
    pub(crate) fn silent_since(&self, host: HostId, from: Stamp) -> TestResult {
        match self.answers(from).iter().find(|answer| answer.host == host) {
            None => Ok(()),
            Some(late) => bail!("{host} answered for {} at {:.1} ms", late.vip, late.at.millis_from(self.begin)),
        }
    }

    /// Runs a command on a host.
    pub(crate) fn on(&self, host: HostId, command: &[&str]) -> Result<String> {
        self.network().host(host).run(command)
    }

    fn answers(&self, from: Stamp) -> Vec<Answer> {
        answers(self.cluster, from)
    }

    /// Judges what happened, after `result` of the fault.
    pub(crate) fn end(mut self, case: &Case, result: Result<End>) -> Record {
        let mut problems = Vec::new();
        let end = result.unwrap_or_else(|error| {
            problems.push(format!("{error:#}"));
            End::Anyone
        });
        for node in self.cluster.lab.nodes().iter().filter(|node| !node.is_running()) {
            problems.push(format!("vipd on {} has ended\n{}", node.host(), node.log_tail(20)));
        }
        let heir = wait_for_holder(self.cluster);
        std::thread::sleep(STEADY);
        let now = Stamp::now();
        let answers = self.answers(self.begin);
        let verdict = judge(&answers);
        for overlap in &verdict.overlaps {
            let (one, other) = overlap.hosts;
            let (from, to) = (overlap.from.millis_from(self.begin), overlap.to.millis_from(self.begin));
            problems.push(format!("OVERLAP of {}: {one} and {other} from {from} ms to {to} ms", overlap.vip));
        }
        match (&end, &heir) {
            (_, Err(error)) => problems.push(format!("the VIPs are not back: {error:#}")),
            (End::Not(host), Ok(heir)) if heir == host => problems.push(format!("{host} holds the VIPs")),
            (End::Unmoved, Ok(_)) => {
                let hosts: BTreeSet<HostId> = answers.iter().map(|answer| answer.host).collect();
                if hosts != BTreeSet::from([self.owner]) {
                    problems.push(format!("{hosts:?} held the VIPs, not just {}", self.owner));
                }
            }
            _ => {}
        }
        let outages: Vec<_> = (self.cluster.lab.observe().probed().iter())
            .map(|&vip| self.cluster.lab.observe().outage(vip, self.judged_from, now))
            .collect();
        let longest = outages.iter().map(|outage| outage.longest).max().unwrap_or_default();
        let probed = self.cluster.lab.observe().probed();
        let away = probed.iter().map(|&vip| self.cluster.lab.observe().outage(vip, self.begin, now).longest).max();
        let lost = outages.iter().map(|outage| outage.lost).max().unwrap_or_default();
        let early = self.cluster.fence.early();
        let slow = longest > Duration::from_millis(case.usual_ms) + early;
        if longest > Duration::from_millis(case.bound_ms) + early {
            problems.push(format!("the VIPs were away for {:.0} ms", millis(longest)));
        }
        let skipped = match &end {
            End::Skipped(why) => Some(why.clone()),
            End::Anyone | End::Unmoved | End::Not(_) => None,
        };
        self.note("end");
        let json = json!({
            "case": case.name,
            "fence": self.cluster.fence.name(),
            "profile": self.cluster.lab.profile().name(),
            "owner": self.owner.to_string(),
            "heir": heir.ok().map(|host| host.to_string()),
            "outage_ms": millis(longest),
            // With the time in which it does not count.
            "away_ms": millis(away.unwrap_or_default()),
            "lost_probes": lost,
            "judged_from_ms": self.judged_from.millis_from(self.begin),
            "bound_ms": case.bound_ms,
            "overlap_ms": millis(verdict.overlap),
            "expected": end.expected(),
            "slow": slow,
            "skipped": skipped,
            // A trial that could not be made has not passed.
            "passed": skipped.is_none().then_some(problems.is_empty()),
            "problems": problems,
            "notes": self.notes,
        });
        Record { json, skipped, overlapped: !verdict.is_clean(), slow, problems }
    }
}

/// Who spoke for a VIP. A node whose MAC address was changed by a trial is still that node.
fn answers(cluster: &Cluster, from: Stamp) -> Vec<Answer> {
    let mut answers = cluster.lab.observe().answers(from);
    for answer in &mut answers {
        if let HostId::Node(n) = answer.host
            && n > ALIAS
        {
            answer.host = HostId::Node(n - ALIAS);
        }
    }
    answers
}

/// What is added to the number of a node for its second MAC address.
pub(crate) const ALIAS: u8 = 40;

/// Waits until one host has answered for every VIP without a break for a while, and says which.
fn wait_for_holder(cluster: &Cluster) -> Result<HostId> {
    let observer = cluster.lab.observe();
    let deadline = Stamp::now() + PATIENCE;
    loop {
        std::thread::sleep(Duration::from_millis(20));
        let now = Stamp::now();
        let answers = answers(cluster, now - STEADY);
        let hosts: BTreeSet<HostId> = answers.iter().map(|answer| answer.host).collect();
        let vips: BTreeSet<IpAddr> = answers.iter().map(|answer| answer.vip).collect();
        let whole = observer.probed().iter().all(|&vip| observer.outage(vip, now - STEADY, now).longest < HICCUP);
        if let (1, Some(&host), true) = (hosts.len(), hosts.first(), whole && vips.len() == cluster.lab.vips().len()) {
            return Ok(host);
        }
        if now > deadline {
            let outage = observer.outage(cluster.lab.vips()[0], now - STEADY, now);
            bail!("{hosts:?} answered for {vips:?} lately, the longest outage is {:?}", outage.longest);
        }
    }
}

/// The end of every daemon's log and all that it said since `from` bytes, for a trial that failed.
pub(crate) fn whole_logs(cluster: &Cluster) -> String {
    const LINES: usize = 150;
    let mut text = String::new();
    for node in cluster.lab.nodes() {
        let log = fs::read(node.log_path()).context("the log").unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        for line in &lines[lines.len().saturating_sub(LINES)..] {
            text += &format!("  {} | {line}\n", node.host());
        }
    }
    text
}
