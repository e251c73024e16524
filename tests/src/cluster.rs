//! A cluster in the laboratory, and what tests ask about it. Holders are judged by packets, addresses and the fence by
//! `ip`, `tc` and `nft`: never by what the daemons say of themselves.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::time::{ClockId, clock_getres};
use serde_json::Value;
use vip_lab::clock::millis;
use vip_lab::topology::INTERFACE;
use vip_lab::{HostId, Lab, LabBuilder, Node, Profile, Stamp};

use crate::daemon::Daemon;
use crate::{TestResult, programs};

/// How long a cluster may take to form, and a VIP to come back where nothing else is promised.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// How long every daemon is up before anything is done to it: past the time after its start in which it does not vote.
pub const SETTLE: Duration = Duration::from_secs(1);

/// What a test in a laboratory may have to wait for beyond what is promised: another process has the processor.
pub const SLACK: Duration = Duration::from_millis(100);

/// What the fence of every node is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FenceKind {
    /// What a daemon takes by itself where BPF can be loaded.
    #[default]
    Bpf,
    /// A table of nftables.
    Nftables,
}

impl FenceKind {
    /// Its name in the configuration.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bpf => "bpf",
            Self::Nftables => "nftables",
        }
    }

    /// The kind with this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn named(name: &str) -> Result<Self> {
        let kind = [Self::Bpf, Self::Nftables].into_iter().find(|kind| kind.name() == name);
        kind.with_context(|| format!("{name:?} is no kind of fence; bpf and nftables are"))
    }

    /// By how much the kernel closes earlier than its deadline says, or may: the daemon's wider margin, and what the
    /// kernel rounds off. An outage is longer by that where an owner falls silent with its lease.
    #[must_use]
    pub fn early(self) -> Duration {
        // 6 ticks of margin; a token of 3, 2 for rounding, 1 ms.
        let nftables = || tick() * 11 + Duration::from_millis(3);
        if self == Self::Nftables { nftables() } else { Duration::ZERO }
    }

    /// The lease of a profile, or the shortest one that this fence has room in for three heartbeats.
    #[must_use]
    pub fn lease(self, profile: Profile) -> Duration {
        match (self, profile) {
            (Self::Nftables, Profile::Fast) => profile.lease().max(Duration::from_millis(72) + self.early()),
            _ => profile.lease(),
        }
    }

    /// The sections of the daemon's configuration that give it this fence.
    #[must_use]
    pub fn sections(self, profile: Profile) -> String {
        match self {
            Self::Bpf => String::new(),
            Self::Nftables => format!(
                "[fence]\nbackend = \"nftables\"\n[timing]\nlease = \"{}ms\"\n",
                self.lease(profile).as_millis()
            ),
        }
    }
}

/// `1 / CONFIG_HZ`: the coarse clock advances once a tick. The longest there is where the kernel does not tell.
fn tick() -> Duration {
    const LONGEST: Duration = Duration::from_millis(10);
    let resolution = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map(Duration::from);
    resolution.ok().filter(|tick| !tick.is_zero() && *tick <= LONGEST).unwrap_or(LONGEST)
}

/// Three daemons that have formed a cluster; an IPv4 and an IPv6 VIP that one of them holds.
#[derive(Debug)]
pub struct Cluster {
    /// The laboratory.
    pub lab: Lab,
    /// When there was one holder for the first time.
    pub formed: Stamp,
    /// The holder then.
    pub owner: HostId,
    /// What the fences are made of.
    pub fence: FenceKind,
}

/// A cluster with one holder for a second at least; `None`, and a word about it, without root. With
/// `VIPD_TEST_REQUIRE_ROOT` that is a failure.
///
/// # Errors
/// When the laboratory cannot be built, or no cluster comes of it.
pub fn cluster(profile: Profile) -> Result<Option<Cluster>> {
    cluster_of(Lab::builder().profile(profile).vipd(Some(programs::vipd()?)))
}

/// As [`cluster`], of a laboratory that is laid out otherwise.
///
/// # Errors
/// As [`cluster`].
pub fn cluster_of(builder: LabBuilder) -> Result<Option<Cluster>> {
    started(builder, FenceKind::Bpf)
}

/// As [`cluster_of`], with a profile and a fence. What else [`LabBuilder::extra_toml`] was given is lost.
///
/// # Errors
/// As [`cluster`].
pub fn cluster_fenced_by(fence: FenceKind, profile: Profile, builder: LabBuilder) -> Result<Option<Cluster>> {
    started(builder.profile(profile).extra_toml(&fence.sections(profile)), fence)
}

fn started(builder: LabBuilder, fence: FenceKind) -> Result<Option<Cluster>> {
    if !nix::unistd::geteuid().is_root() {
        ensure!(
            std::env::var_os("VIPD_TEST_REQUIRE_ROOT").is_none(),
            "VIPD_TEST_REQUIRE_ROOT is set, and this process may not make network namespaces"
        );
        let _ = writeln!(std::io::stderr(), "\nSKIPPED: a laboratory needs root; nothing was tested");
        return Ok(None);
    }
    let lab = builder.start()?;
    lab.wait_for_holder(PATIENCE)?;
    let formed = Stamp::now();
    let owner = one_host(&lab.wait_stable(SETTLE, PATIENCE)?)?;
    Ok(Some(Cluster { lab, formed, owner, fence }))
}

fn one_host(holders: &[HostId]) -> Result<HostId> {
    match holders {
        [first, rest @ ..] if rest.iter().all(|host| host == first) => Ok(*first),
        _ => bail!("the leader holds every VIP, but these hold them: {holders:?}"),
    }
}

impl Cluster {
    /// The daemon on a host.
    #[must_use]
    pub fn node(&self, host: HostId) -> &Node {
        self.lab.daemon(host)
    }

    /// The end of every daemon's log, without openraft's lines: it tells of every message that did not get through.
    #[must_use]
    pub fn logs(&self) -> String {
        const LINES: usize = 20;
        let mut text = String::new();
        for node in self.lab.nodes() {
            let log = fs::read(node.log_path()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            let log = log.unwrap_or_default();
            let ours: Vec<&str> = log.lines().filter(|line| !line.contains(" openraft::")).collect();
            for line in &ours[ours.len().saturating_sub(LINES)..] {
                text += &format!("  {} | {line}\n", node.host());
            }
        }
        text
    }

    /// The nodes that are not `host`.
    #[must_use]
    pub fn others(&self, host: HostId) -> Vec<HostId> {
        self.lab.nodes().iter().map(Node::host).filter(|&other| other != host).collect()
    }

    /// The VIPs that are on a host's interface.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn vips_on(&self, host: HostId) -> Result<BTreeSet<IpAddr>> {
        let found = self.addresses(host)?;
        let addresses = found.iter().filter_map(|entry| entry["local"].as_str()?.parse().ok());
        Ok(addresses.filter(|address| self.lab.vips().contains(address)).collect())
    }

    /// What `ip -j addr` shows on a host's interface.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn addresses(&self, host: HostId) -> Result<Vec<Value>> {
        let shown = self.lab.network().host(host).run(["ip", "-j", "addr", "show", "dev", INTERFACE])?;
        let shown: Value = serde_json::from_str(&shown).context("what ip says")?;
        Ok(shown[0]["addr_info"].as_array().cloned().unwrap_or_default())
    }

    /// The length of the lease.
    #[must_use]
    pub fn lease(&self) -> Duration {
        self.fence.lease(self.lab.profile())
    }

    /// Whether both directions of a host's interface have the fence.
    ///
    /// # Errors
    /// When `tc` or `nft` fails.
    pub fn is_fenced(&self, host: HostId) -> Result<bool> {
        let parts = match self.fence {
            FenceKind::Bpf => self.fences_on(host)?,
            FenceKind::Nftables => {
                let shown = self.table_on(host)?.unwrap_or_default();
                let hooks = ["ingress", "egress"].map(|direction| format!("hook {direction} device \"{INTERFACE}\""));
                hooks.iter().filter(|hook| shown.contains(hook.as_str())).count()
            }
        };
        Ok(parts == 2)
    }

    /// The table of nftables on a host, in `nft`'s words and without what is in its sets; `None` where there is none.
    ///
    /// # Errors
    /// When `nft` fails.
    pub fn table_on(&self, host: HostId) -> Result<Option<String>> {
        let netns = self.lab.network().host(host);
        if !netns.run(["nft", "list", "tables"])?.contains("netdev vipd") {
            return Ok(None);
        }
        // It may go in between.
        Ok(netns.run(["nft", "-t", "list", "table", "netdev", "vipd"]).ok())
    }

    /// The filters of the fence that `tc` shows on a host's interface.
    ///
    /// # Errors
    /// When `tc` fails.
    pub fn fences_on(&self, host: HostId) -> Result<usize> {
        let mut found = 0;
        for direction in ["ingress", "egress"] {
            let netns = self.lab.network().host(host);
            let shown = netns.run(["tc", "filter", "show", "dev", INTERFACE, direction])?;
            found += shown.matches(&format!("vipd-{direction}")).count();
        }
        Ok(found)
    }

    /// Adds a VIP to a host's interface, as an administrator would by mistake, or removes it.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn tamper(&self, host: HostId, verb: &str, vip: IpAddr) -> TestResult {
        let address = format!("{vip}/{}", if vip.is_ipv4() { 32 } else { 128 });
        let mut command = vec!["ip", "addr", verb, &address, "dev", INTERFACE];
        if vip.is_ipv6() && verb == "add" {
            command.push("nodad");
        }
        self.lab.network().host(host).run(command).map(drop)
    }

    /// That from `since` until now no VIP had two holders.
    ///
    /// # Errors
    /// With every overlap, and the end of the logs.
    pub fn never_two(&self, since: Stamp) -> TestResult {
        let verdict = self.lab.observe().verdict(since);
        if verdict.is_clean() {
            return Ok(());
        }
        let mut text = String::new();
        for overlap in &verdict.overlaps {
            let (one, other) = overlap.hosts;
            let (from, to) = (overlap.from.millis_from(since), overlap.to.millis_from(since));
            text += &format!("  {}: {one} and {other} from {from} ms to {to} ms\n", overlap.vip);
        }
        bail!("two hosts answered for one VIP for {} ms\n{text}{}", millis(verdict.overlap), self.logs());
    }

    /// Waits for one holder of every VIP, without a break for a second from now on, and says who it is.
    ///
    /// # Errors
    /// When that does not happen in time.
    pub fn wait_for_one(&self, limit: Duration) -> Result<HostId> {
        const STEADY: Duration = Duration::from_secs(1);
        const HICCUP: Duration = Duration::from_millis(30);
        let observer = self.lab.observe();
        let deadline = Stamp::now() + limit;
        std::thread::sleep(STEADY);
        loop {
            std::thread::sleep(Duration::from_millis(50));
            let (from, to) = (Stamp::now() - STEADY, Stamp::now());
            let answers = observer.answers(from);
            let hosts: BTreeSet<HostId> = answers.iter().map(|answer| answer.host).collect();
            let whole = self.lab.vips().iter().all(|&vip| observer.outage(vip, from, to).longest < HICCUP);
            let all = self.lab.vips().iter().all(|&vip| answers.iter().any(|answer| answer.vip == vip));
            if let (1, true, true) = (hosts.len(), whole, all)
                && let Some(&host) = hosts.first()
            {
                return Ok(host);
            }
            if to > deadline {
                bail!("{hosts:?} answered in the last second, not one host for every VIP\n{}", self.logs());
            }
        }
    }

    /// That from `from` to `to` nobody answered for any VIP.
    ///
    /// # Errors
    /// With who did, and when last.
    pub fn nobody_answered(&self, from: Stamp, to: Stamp) -> TestResult {
        let answers = self.lab.observe().answers(from);
        match answers.iter().rfind(|answer| answer.at <= to) {
            None => Ok(()),
            Some(last) => bail!(
                "{} answered for {} still {} ms later\n{}",
                last.host,
                last.vip,
                last.at.millis_from(from),
                self.logs()
            ),
        }
    }

    /// The longest time in which a client went without one of the VIPs, from `since` until now.
    #[must_use]
    pub fn outage(&self, since: Stamp) -> Duration {
        let now = Stamp::now();
        let longest = |&vip: &IpAddr| self.lab.observe().outage(vip, since, now).longest;
        self.lab.observe().probed().iter().map(longest).max().unwrap_or_default()
    }

    /// Changes a node's configuration file. Its daemon must not run.
    ///
    /// # Errors
    /// When `from` is not in it.
    pub fn reconfigure(&self, host: HostId, from: &str, to: &str) -> TestResult {
        let path = self.node(host).config_path();
        let text = fs::read_to_string(&path)?;
        ensure!(text.contains(from), "{from:?} is not in the configuration of {host}:\n{text}");
        Ok(fs::write(&path, text.replace(from, to))?)
    }

    /// Starts a node's daemon, which must not run, outside the laboratory's care.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_alone(&self, host: HostId) -> Result<Daemon> {
        let node = self.node(host);
        Daemon::start(self.lab.network().host(host), &node.config_path(), node.dir().join("alone.log"))
    }

    /// Runs `vipctl` against a node, with JSON.
    ///
    /// # Errors
    /// When it cannot be started. How it ends is for the caller to judge.
    pub fn vipctl(&self, host: HostId, args: &[&str]) -> Result<Output> {
        let endpoint = format!("unix:{}", self.node(host).socket().display());
        let mut command = std::process::Command::new(programs::vipctl()?);
        command.args(["--json", "--endpoint", &endpoint]).args(args).output().context("start vipctl")
    }

    /// The one JSON object that `vipctl` prints.
    ///
    /// # Errors
    /// When it fails, or prints something else.
    pub fn vipctl_json(&self, host: HostId, args: &[&str]) -> Result<Value> {
        let output = self.vipctl(host, args)?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "vipctl {args:?}: {}: {err}{out}", output.status);
        serde_json::from_str(&out).with_context(|| format!("vipctl {args:?} prints {out:?}"))
    }
}
