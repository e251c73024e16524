//! A daemon that is killed, or frozen, at a named point of its code: after each step of starting, renewing, acquiring and
//! releasing whose effect outlives it.
//!
//! The points are [`KillPoint`]'s. Of five nodes, so that nothing that a trial does keeps the others from taking over: no
//! time is excused but that in which a VIP is not declared. Points that several daemons come by are armed on all of them;
//! it happens to the first that does.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use nix::sys::signal::Signal;
use vip_core::KillPoint;
use vip_lab::clock::millis;
use vip_lab::topology::INTERFACE;
use vip_lab::{HostId, Node, Stamp};
use vip_tests::cluster::Cluster;
use vip_tests::{TestResult, wait_until};

use crate::campaign::{Group, Stage, run};
use crate::tampering::remove_fence;
use crate::trial::{Case, End, Trial};

use KillPoint as P;

pub(crate) const GROUP: Group = Group {
    stage: Stage::FiveTampered,
    cases: &[
        case("killed at a point of taking the VIPs", 2, |trial| by_chance(trial, &TAKING, Deed::Kill)),
        case("frozen at a point of taking the VIPs", 1, |trial| by_chance(trial, &TAKING, Deed::Freeze)),
        case("killed at a point of giving the VIPs back", 1, |trial| by_chance(trial, &GIVING_BACK, Deed::Kill)),
        case("frozen at a point of giving the VIPs back", 1, |trial| by_chance(trial, &GIVING_BACK, Deed::Freeze)),
        case("killed at a point of renewing", 1, |trial| by_chance(trial, &RENEWING, Deed::Kill)),
        case("frozen at a point of renewing", 0, |trial| by_chance(trial, &RENEWING, Deed::Freeze)),
        case("killed at a point of starting", 1, |trial| by_chance(trial, &STARTING, Deed::Kill)),
        case("frozen at a point of starting", 0, |trial| by_chance(trial, &STARTING, Deed::Freeze)),
        case("killed at a point of repairing the fence", 0, |trial| by_chance(trial, &REPAIRING, Deed::Kill)),
        case("frozen at a point of repairing the fence", 0, |trial| by_chance(trial, &REPAIRING, Deed::Freeze)),
    ],
};

/// A lease, and an election that fails once, on a busy machine.
const BOUND_MS: u64 = 3000;

const fn case(name: &'static str, in_ci: u32, run: fn(&mut Trial<'_>) -> Result<End>) -> Case {
    Case { name, bound_ms: BOUND_MS, usual_ms: 1500, in_ci, run }
}

/// What makes a daemon come by a point, and whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The owner is killed; an heir, or one who votes for it.
    Takeover,
    /// The owner is told to end; an heir, or one who votes for it.
    Handover,
    /// A VIP is declared; any but the node that is asked.
    Declaration,
    /// The owner is told to end.
    End,
    /// The owner loses its carrier.
    CarrierLost,
    /// The owner is cut off from the other nodes.
    CutOff,
    /// A VIP is deleted; any but the node that is asked.
    Deletion,
    /// Nothing happens; the owner.
    Reign,
    /// Nothing happens; a follower.
    Following,
    /// A node is killed and started.
    Start,
    /// The owner's fence is taken away; any.
    FenceLost,
}

type Ways = [(Way, &'static [P])];

const TAKING: [(Way, &[P]); 3] = [
    (
        Way::Takeover,
        &[
            P::VoteGranted,
            P::VoteCounted,
            P::StoreFilled,
            P::StoreVoteWritten,
            P::StoreEntriesWritten,
            P::AppendAcknowledged,
            P::AppendAnswered,
            P::EntriesApplied,
            P::AcquireEnabled,
            P::LeaseComputed,
            P::LeaseWritten,
            P::AcquireFenceOpened,
            P::AcquireAddressAdded,
            P::AcquireFrameSent,
            P::AcquireAnnounced,
        ],
    ),
    (
        Way::Handover,
        &[
            P::TransferAccepted,
            P::VoteGranted,
            P::VoteCounted,
            P::StoreFilled,
            P::StoreVoteWritten,
            P::StoreEntriesWritten,
            P::EntriesApplied,
            P::AcquireEnabled,
            P::LeaseComputed,
            P::LeaseWritten,
            P::AcquireFenceOpened,
            P::AcquireAddressAdded,
            P::AcquireFrameSent,
            P::AcquireAnnounced,
        ],
    ),
    (
        Way::Declaration,
        &[
            P::VipKnown,
            P::StoreEntriesWritten,
            P::EntriesApplied,
            P::VipAssigned,
            P::AcquireFenceOpened,
            P::AcquireAddressAdded,
        ],
    ),
];

const GIVING_BACK: [(Way, &[P]); 4] = [
    (
        Way::End,
        &[
            P::ReleaseLeaseEnded,
            P::ReleaseFenceShut,
            P::ReleaseAddressRemoved,
            P::TransferAsked,
            P::TransferAnswered,
            P::EndHandedOver,
            P::EndClosed,
        ],
    ),
    (Way::CarrierLost, &[P::ReleaseLeaseEnded, P::ReleaseFenceShut, P::ReleaseAddressRemoved, P::TransferAsked]),
    (Way::CutOff, &[P::ReleaseFenceShut, P::ReleaseAddressRemoved]),
    (
        Way::Deletion,
        &[P::StoreEntriesWritten, P::EntriesApplied, P::ReleaseFenceShut, P::ReleaseAddressRemoved, P::VipForgotten],
    ),
];

const RENEWING: [(Way, &[P]); 2] = [
    (Way::Reign, &[P::AppendAnswered, P::LeaseComputed, P::LeaseWritten, P::AddressRefreshed]),
    (Way::Following, &[P::AppendAcknowledged]),
];

const STARTING: [(Way, &[P]); 1] = [(Way::Start, &[P::StartFenceShut, P::StartSwept, P::StartFenced, P::StartJoined])];

/// Without a fence only a daemon that runs keeps its host silent: none is struck before its fence is back.
const REPAIRING: [(Way, &[P]); 1] =
    [(Way::FenceLost, &[P::RepairFenced, P::AcquireFenceOpened, P::AcquireAddressAdded])];

const FAMILIES: [&Ways; 5] = [&TAKING, &GIVING_BACK, &RENEWING, &STARTING, &REPAIRING];

/// What happens to a daemon at its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    /// SIGKILL.
    Kill,
    /// SIGSTOP, and SIGCONT after a while.
    Freeze,
}

/// A point that is armed on some daemons.
struct Trap {
    hosts: Vec<HostId>,
    deed: Deed,
    /// There until a daemon comes by the point, which removes it.
    token: PathBuf,
}

impl Trap {
    /// Arms the point on the hosts; where no daemon runs, for its next start.
    fn set(cluster: &Cluster, hosts: &[HostId], point: P, deed: Deed) -> Result<Self> {
        const LIMIT: Duration = Duration::from_secs(2);
        // One that was armed in vain is never heard of again: its token is another one.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let trap = Self { hosts: hosts.to_owned(), deed, token: cluster.lab.dir().join(format!("token-{number}")) };
        fs::write(&trap.token, "")?;
        let word = if deed == Deed::Kill { "kill" } else { "freeze" };
        let text = format!("{}\n{word}\n{}\n", point.name(), trap.token.display());
        let mut told = Vec::new();
        for &host in hosts {
            let node = cluster.node(host);
            let (new, file) = (node.dir().join("kill-point.new"), node.config_path().with_extension("kill-point"));
            fs::write(&new, &text)?;
            fs::rename(&new, &file)?;
            if node.is_running() {
                node.signal(Signal::SIGUSR1)?;
                told.push((node, file));
            }
        }
        let begin = Stamp::now();
        // One that is struck already may not have come to it.
        while told.iter().any(|(node, file)| file.exists() && !is_struck(node)) {
            ensure!(
                Stamp::now().since(begin) < LIMIT,
                "a daemon takes no kill points: was it built without the feature kill-points?\n{}",
                cluster.logs()
            );
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(trap)
    }

    /// Waits until a daemon comes by; the others are disarmed by that. `None` where none does in time.
    fn wait(self, trial: &mut Trial<'_>, limit: Duration) -> Result<Option<HostId>> {
        let begin = Stamp::now();
        while self.token.exists() {
            if Stamp::now().since(begin) > limit && fs::remove_file(&self.token).is_ok() {
                trial.note("no daemon came by the point");
                return Ok(None);
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        let node_of = |host: &HostId| trial.cluster.node(*host);
        let mut struck = None;
        wait_until("the daemon at the point stands or is gone", Duration::from_secs(2), || {
            struck = self.hosts.iter().copied().find(|host| is_struck(node_of(host)));
            Ok(struck.is_some())
        })?;
        let host = struck.context("a host")?;
        trial.note(format!("{host} is at the point: {:?}", self.deed));
        if self.deed == Deed::Kill {
            ensure!(!trial.node(host).is_running(), "{host} stands, and should be gone");
        }
        Ok(Some(host))
    }
}

/// Gone, or stopped.
fn is_struck(node: &Node) -> bool {
    let Some(pid) = node.pid().filter(|_| node.is_running()) else { return true };
    // Field 3 of `stat` in proc(5), behind the name in parentheses.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('T'))
}

/// One of a family's points.
fn by_chance(trial: &mut Trial<'_>, ways: &Ways, deed: Deed) -> Result<End> {
    let all: Vec<(Way, P)> = pairs(ways).collect();
    let (way, point) = all[trial.rng.usize(..all.len())];
    Ok(strike(trial, way, point, deed)?.0)
}

fn pairs(ways: &Ways) -> impl Iterator<Item = (Way, P)> {
    ways.iter().flat_map(|(way, points)| points.iter().map(|point| (*way, *point)))
}

/// Has a daemon come by a point in this way, and strikes it there. Says who was struck, too.
fn strike(trial: &mut Trial<'_>, way: Way, point: P, deed: Deed) -> Result<(End, Option<HostId>)> {
    /// For what takes its course within a lease or two.
    const SOON: Duration = Duration::from_millis(1500);
    /// For what a daemon does every few seconds.
    const IN_TURN: Duration = Duration::from_secs(12);
    let (cluster, owner, others) = (trial.cluster, trial.owner, trial.others());
    let soon = SOON + trial.lease() * 2;
    trial.note(format!("{way:?}, {}", point.name()));
    let struck = match way {
        Way::Takeover => {
            trial.node(owner).kill()?;
            // Not before: the followers come by some of the points with every heartbeat.
            Trap::set(cluster, &others, point, deed)?.wait(trial, soon)?
        }
        Way::Handover | Way::End => {
            let hosts = if way == Way::End { vec![owner] } else { others };
            let trap = Trap::set(cluster, &hosts, point, deed)?;
            trial.node(owner).signal(Signal::SIGTERM)?;
            trap.wait(trial, soon)?
        }
        Way::CarrierLost => {
            trial.wait_until_owner_may_step_aside()?;
            let trap = Trap::set(cluster, &[owner], point, deed)?;
            trial.network().link_down(owner)?;
            trap.wait(trial, soon)?
        }
        Way::CutOff => {
            let trap = Trap::set(cluster, &[owner], point, deed)?;
            trial.network().partition(&[owner], &others)?;
            trap.wait(trial, soon)?
        }
        Way::Declaration | Way::Deletion => return change(trial, way, point, deed),
        Way::Reign => Trap::set(cluster, &[owner], point, deed)?.wait(trial, IN_TURN)?,
        Way::Following => Trap::set(cluster, &others, point, deed)?.wait(trial, soon)?,
        Way::Start => {
            let nodes = trial.nodes();
            let host = nodes[trial.rng.usize(..nodes.len())];
            trial.node(host).kill()?;
            trial.sleep_of_lease(0..200);
            let trap = Trap::set(cluster, &[host], point, deed)?;
            trial.node(host).start()?;
            trap.wait(trial, soon)?
        }
        Way::FenceLost => {
            let trap = Trap::set(cluster, &trial.nodes(), point, deed)?;
            remove_fence(trial, owner)?;
            trap.wait(trial, soon)?
        }
    };
    trial.sleep_of_lease(100..250);
    match way {
        Way::CarrierLost => trial.network().link_up(owner)?,
        Way::CutOff => trial.network().heal()?,
        Way::Takeover
        | Way::Handover
        | Way::Declaration
        | Way::End
        | Way::Deletion
        | Way::Reign
        | Way::Following
        | Way::Start
        | Way::FenceLost => {}
    }
    let ending = matches!(way, Way::Handover | Way::End).then_some(owner);
    restore(trial, struck.filter(|_| deed == Deed::Freeze), ending)?;
    let unmoved = way == Way::Following || (way == Way::Start && struck.is_some_and(|host| host != owner));
    Ok((if unmoved { End::Unmoved } else { End::Anyone }, struck))
}

/// A VIP is deleted, and declared again: one of the two with a point armed.
fn change(trial: &mut Trial<'_>, way: Way, point: P, deed: Deed) -> Result<(End, Option<HostId>)> {
    const VIP: &str = "web6";
    let cluster = trial.cluster;
    let address = cluster.lab.vips()[1].to_string();
    let asked = trial.other();
    let hosts = cluster.others(asked);
    let delete = ["vip", "rm", VIP];
    let declare = ["vip", "add", VIP, &address, "--interface", INTERFACE];
    let begin = Stamp::now();
    let armed: &[&str] = if way == Way::Deletion {
        &delete
    } else {
        ask(cluster, asked, &delete)?;
        trial.sleep(300..500);
        &declare
    };
    let trap = Trap::set(cluster, &hosts, point, deed)?;
    let struck = std::thread::scope(|scope| -> Result<Option<HostId>> {
        let asking = scope.spawn(|| ask(cluster, asked, armed));
        let struck = trap.wait(trial, Duration::from_secs(3))?;
        trial.sleep_of_lease(100..250);
        restore(trial, struck.filter(|_| deed == Deed::Freeze), None)?;
        asking.join().map_err(|_| anyhow::anyhow!("whoever asked has panicked"))??;
        Ok(struck)
    })?;
    if way == Way::Deletion {
        ask(cluster, asked, &declare)?;
    }
    let now = Stamp::now();
    trial.outages_count_from_here();
    // The other one was declared all the time.
    let other = cluster.lab.observe().outage(cluster.lab.vips()[0], begin, now).longest;
    trial.note(format!("the other VIP was away for {:.0} ms", millis(other)));
    ensure!(other < Duration::from_millis(BOUND_MS), "the VIP that was declared all the time was away for {other:?}");
    Ok((End::Anyone, struck))
}

/// Asks for a change until it is made: the leader may be struck meanwhile, and repeating it is safe.
fn ask(cluster: &Cluster, host: HostId, change: &[&str]) -> TestResult {
    const LIMIT: Duration = Duration::from_secs(15);
    let begin = Stamp::now();
    loop {
        let output = cluster.vipctl(host, &[&["--timeout", "2s"], change].concat())?;
        if output.status.success() {
            return Ok(());
        }
        if Stamp::now().since(begin) > LIMIT {
            bail!("vipctl {change:?} on {host}: {}", String::from_utf8_lossy(&output.stderr));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Lets a frozen daemon go on, waits for the one that was told to end, and starts what does not run.
fn restore(trial: &mut Trial<'_>, frozen: Option<HostId>, ending: Option<HostId>) -> TestResult {
    if let Some(host) = frozen {
        trial.sleep_of_lease(0..300);
        trial.node(host).thaw()?;
        trial.note(format!("{host} goes on"));
    }
    if let Some(host) = ending {
        let node = trial.node(host);
        wait_until("the daemon that was told to end has ended", Duration::from_secs(10), || Ok(!node.is_running()))?;
    }
    trial.sleep(0..500);
    for host in trial.nodes() {
        trial.node(host).start()?;
    }
    std::thread::sleep(trial.lease());
    Ok(())
}

#[test]
fn kill_points() -> TestResult {
    run(&GROUP)
}

/// A point that no family has would never be tried.
#[test]
fn every_kill_point_is_in_a_family() {
    let tried = |point: &P| FAMILIES.iter().any(|ways| pairs(ways).any(|(_, tried)| tried == *point));
    let missing: Vec<_> = P::ALL.iter().filter(|point| !tried(point)).collect();
    assert!(missing.is_empty(), "no way to {missing:?}");
}

/// All points in all ways, killed and frozen, each once. A point that is not reached is a failure. `VIPD_FAULT_ONLY` has
/// words as in `Takeover lease.written`.
#[test]
#[ignore = "takes ten minutes; `make faults` runs it"]
fn every_kill_point() -> TestResult {
    const CASE: Case = case("every kill point", 0, |_| Ok(End::Anyone));
    let only = std::env::var("VIPD_FAULT_ONLY").unwrap_or_default();
    let mut stand = None;
    let (mut table, mut wrong) = (String::new(), Vec::new());
    for (way, point) in FAMILIES.iter().flat_map(|ways| pairs(ways)) {
        if !only.split(',').any(|word| format!("{way:?} {}", point.name()).contains(word)) {
            continue;
        }
        for deed in [Deed::Kill, Deed::Freeze] {
            if stand.is_none() {
                stand = crate::campaign::stand_of(&GROUP)?;
            }
            // Without root there is nothing to do, and the reader was told.
            let Some(at) = &stand else { return Ok(()) };
            let mut trial = Trial::begin(at, Rng::new(), true)?;
            let (result, struck) = match strike(&mut trial, way, point, deed) {
                Ok((end, struck)) => (Ok(end), struck),
                Err(error) => (Err(error), None),
            };
            let record = trial.end(&CASE, result);
            let what = format!("{way:?} {} {deed:?}", point.name());
            let reached = struck.map_or_else(|| "not reached".to_owned(), |host| host.to_string());
            let outage = record.json["outage_ms"].as_f64().unwrap_or(f64::NAN);
            let away = record.json["away_ms"].as_f64().unwrap_or(f64::NAN);
            let overlap = record.json["overlap_ms"].as_f64().unwrap_or(f64::NAN);
            let line = format!("{what:<52} {reached:<12} {outage:>7.0} {away:>7.0} {overlap:>7.0}\n");
            println!("{line}{}", record.json);
            table += &line;
            if struck.is_none() && record.skipped.is_none() {
                wrong.push(format!("{what}: not reached"));
            }
            if !record.problems.is_empty() {
                wrong.push(format!("{what}: {}", record.problems.join("\n")));
                println!("FAILED: {what}\n{}", crate::trial::whole_logs(&at.cluster));
                stand = None;
            }
        }
    }
    println!("way, point, deed: struck, outage ms, away ms in all, overlap ms\n{table}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
