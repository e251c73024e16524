//! A whole laboratory: network, daemons and observer, made by a builder and taken down by dropping it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::clock::{Stamp, millis};
use crate::config::{ClusterPlan, Profile};
use crate::interrupt;
use crate::manager::Manager;
use crate::netns::Netns;
use crate::node::Node;
use crate::observer::Observer;
use crate::topology::{HostId, Network, vip_address};

/// How many VIPs get echo requests: one IPv4, one IPv6.
const PROBED: usize = 2;

/// What to build.
#[derive(Debug, Clone)]
pub struct LabBuilder {
    nodes: u8,
    manager: Manager,
    vips: u16,
    vipd: Option<PathBuf>,
    keepalived: Option<PathBuf>,
    daemons: bool,
    keep: bool,
    extra: String,
}

impl LabBuilder {
    /// The number of nodes; 3 when not said.
    #[must_use]
    pub const fn nodes(mut self, nodes: u8) -> Self {
        self.nodes = nodes;
        self
    }

    /// What keeps the VIPs; vipd with the default profile when not said.
    #[must_use]
    pub const fn manager(mut self, manager: Manager) -> Self {
        self.manager = manager;
        self
    }

    /// vipd keeps the VIPs, with this timing profile.
    #[must_use]
    pub fn profile(self, profile: Profile) -> Self {
        self.manager(profile.into())
    }

    /// The number of VIPs; 2 when not said: one IPv4 and one IPv6. Further ones are IPv4.
    #[must_use]
    pub const fn vips(mut self, vips: u16) -> Self {
        self.vips = vips;
        self
    }

    /// The program of vipd. When not said: see [`Manager::find_program`].
    #[must_use]
    pub fn vipd(mut self, program: Option<PathBuf>) -> Self {
        self.vipd = program;
        self
    }

    /// The program of keepalived. When not said: see [`Manager::find_program`].
    #[must_use]
    pub fn keepalived(mut self, program: Option<PathBuf>) -> Self {
        self.keepalived = program;
        self
    }

    /// No daemons: a network and an observer, for a stand-in.
    #[must_use]
    pub const fn without_daemons(mut self) -> Self {
        self.daemons = false;
        self
    }

    /// Keep the directory with logs and state.
    #[must_use]
    pub const fn keep(mut self, keep: bool) -> Self {
        self.keep = keep;
        self
    }

    /// Sections to add to the configuration of every node, as TOML.
    #[must_use]
    pub fn extra_toml(mut self, text: &str) -> Self {
        self.extra = text.to_owned();
        self
    }

    /// Builds the network, starts the observer, then the daemons. Does not wait for a holder.
    ///
    /// # Errors
    /// When not root, a command fails, or the daemon's program is not found.
    pub fn start(self) -> Result<Lab> {
        let told = if self.manager.profile().is_some() { self.vipd } else { self.keepalived };
        let program = if self.daemons { self.manager.find_program(told.as_deref())? } else { PathBuf::new() };
        let network = Network::build(self.nodes)?;
        let dir = tempfile::Builder::new().prefix(&format!("{}-", network.prefix())).tempdir()?;
        let plan = ClusterPlan {
            manager: self.manager,
            nodes: network.nodes().collect(),
            vips: (0..self.vips.max(1)).map(vip_address).collect(),
            dir: dir.path().to_owned(),
            extra: self.extra,
        };
        let observer = Observer::start(&network, &plan.vips, PROBED)?;
        let mut lab = Lab { observer, nodes: Vec::new(), network, dir: Some(dir), keep: self.keep, plan };
        if self.daemons {
            for host in lab.plan.nodes.clone() {
                let (netns, dir) = (lab.network.host(host).clone(), lab.plan.node_dir(host));
                let launch = lab.plan.manager.launch(program.clone(), &lab.plan, host);
                lab.nodes.push(Node::prepare(host, netns, dir, launch)?);
            }
            lab.nodes.iter().try_for_each(Node::start)?;
        }
        Ok(lab)
    }
}

/// A running laboratory. Dropping it stops the daemons and removes every trace.
#[derive(Debug)]
pub struct Lab {
    // Dropped in this order: threads and daemons first, then the namespaces that they live in.
    observer: Observer,
    nodes: Vec<Node>,
    network: Network,
    dir: Option<TempDir>,
    keep: bool,
    plan: ClusterPlan,
}

impl Lab {
    /// Three nodes, an IPv4 and an IPv6 VIP, default profile, unless told otherwise.
    #[must_use]
    pub const fn builder() -> LabBuilder {
        LabBuilder {
            nodes: 3,
            manager: Manager::VipdDefault,
            vips: 2,
            vipd: None,
            keepalived: None,
            daemons: true,
            keep: false,
            extra: String::new(),
        }
    }

    /// The daemon of node `id`, from 1.
    ///
    /// # Panics
    /// When the lab has no such node, or no daemons.
    #[must_use]
    pub fn node(&self, id: u8) -> &Node {
        self.daemon(HostId::Node(id))
    }

    /// The daemon of a host.
    ///
    /// # Panics
    /// When the host has none.
    #[must_use]
    pub fn daemon(&self, host: HostId) -> &Node {
        match self.nodes.iter().find(|node| node.host() == host) {
            Some(node) => node,
            None => panic!("the lab has no daemon on {host}"),
        }
    }

    /// All daemons.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The namespace of node `id`: `lab.host(1).run(["ip", "-j", "addr"])`.
    #[must_use]
    pub fn host(&self, id: u8) -> &Netns {
        self.network.host(HostId::Node(id))
    }

    /// The client's namespace.
    #[must_use]
    pub fn client(&self) -> &Netns {
        self.network.host(HostId::Client)
    }

    /// The network, for faults between any hosts.
    #[must_use]
    pub const fn network(&self) -> &Network {
        &self.network
    }

    /// The observer. It runs from the start.
    #[must_use]
    pub const fn observe(&self) -> &Observer {
        &self.observer
    }

    /// The VIPs, the probed ones first.
    #[must_use]
    pub fn vips(&self) -> &[IpAddr] {
        &self.plan.vips
    }

    /// What keeps the VIPs.
    #[must_use]
    pub const fn manager(&self) -> Manager {
        self.plan.manager
    }

    /// The timing profile of vipd; the default one when something else keeps the VIPs.
    #[must_use]
    pub fn profile(&self) -> Profile {
        self.plan.manager.profile().unwrap_or(Profile::Default)
    }

    /// The directory with one subdirectory for each node.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.plan.dir
    }

    /// Drops all frames between two groups of nodes, both ways.
    ///
    /// # Errors
    /// When `nft` fails.
    pub fn partition(&self, one: &[u8], other: &[u8]) -> Result<()> {
        self.network.partition(&hosts(one), &hosts(other))
    }

    /// Drops all frames from node `from` to node `to`, one way.
    ///
    /// # Errors
    /// When `nft` fails.
    pub fn cut(&self, from: u8, to: u8) -> Result<()> {
        self.network.cut(&hosts(&[from]), &hosts(&[to]))
    }

    /// Ends all partitions and cuts.
    ///
    /// # Errors
    /// When `nft` fails.
    pub fn heal(&self) -> Result<()> {
        self.network.heal()
    }

    /// Takes a node's carrier.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn link_down(&self, id: u8) -> Result<()> {
        self.network.link_down(HostId::Node(id))
    }

    /// Gives a node its carrier back.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn link_up(&self, id: u8) -> Result<()> {
        self.network.link_up(HostId::Node(id))
    }

    /// Waits until the first VIP is answered by exactly one host, and says which.
    ///
    /// # Errors
    /// When that does not happen in time; the message carries the end of the logs.
    pub fn wait_for_holder(&self, timeout: Duration) -> Result<HostId> {
        const RECENT: Duration = Duration::from_millis(100);
        let vip = self.vips()[0];
        let deadline = Stamp::now() + timeout;
        loop {
            let holders = self.observer.holders(vip, Stamp::now() - RECENT);
            if let (1, Some(&host)) = (holders.len(), holders.first()) {
                return Ok(host);
            }
            if Stamp::now() > deadline {
                bail!("{vip}: {} hosts answer, not one, after {timeout:?}\n{}", holders.len(), self.log_tails(12));
            }
            interrupt::sleep(Duration::from_millis(10))?;
        }
    }

    /// Waits until every VIP has been answered by exactly one host, without a break, for a second, and every daemon has
    /// been up for `settle`. Says who holds each VIP.
    ///
    /// # Errors
    /// When that does not happen in time; the message carries what was missing and the end of the logs.
    pub fn wait_stable(&self, settle: Duration, timeout: Duration) -> Result<Vec<HostId>> {
        let deadline = Stamp::now() + timeout;
        loop {
            // Nobody will start it: no use in waiting.
            if let Some(node) = self.nodes.iter().find(|node| !node.is_running()) {
                bail!("{} on {} has ended\n{}", self.manager().program(), node.host(), node.log_tail(30));
            }
            let missing = match self.stable_holders(settle) {
                Ok(holders) => return Ok(holders),
                Err(missing) => missing,
            };
            if Stamp::now() > deadline {
                bail!("not stable within {timeout:?}: {missing}\n{}", self.log_tails(12));
            }
            interrupt::sleep(Duration::from_millis(50))?;
        }
    }

    /// The holder of each VIP over the last second, or what is missing.
    fn stable_holders(&self, settle: Duration) -> Result<Vec<HostId>> {
        const STEADY: Duration = Duration::from_secs(1);
        /// Longer than any pause of an observer on a busy machine, shorter than any lease.
        const HICCUP: Duration = Duration::from_millis(30);
        if let Some(node) = self.nodes.iter().find(|node| node.uptime().is_none_or(|time| time < settle)) {
            bail!("{} on {} has just started", self.manager().program(), node.host());
        }
        let now = Stamp::now();
        let verdict = self.observer.verdict(now - STEADY);
        for &vip in self.observer.probed() {
            let outage = self.observer.outage(vip, now - STEADY, now);
            if outage.longest > HICCUP {
                bail!("{vip} went unanswered for {:.0} ms", millis(outage.longest));
            }
        }
        let mut holders = std::collections::HashMap::new();
        for holding in &verdict.holdings {
            if *holders.entry(holding.vip).or_insert(holding.host) != holding.host {
                bail!("{} was answered by several hosts in the last second", holding.vip);
            }
        }
        let holder_of = |vip: &IpAddr| holders.get(vip).copied().with_context(|| format!("{vip} is not answered"));
        self.vips().iter().map(holder_of).collect()
    }

    /// The end of every daemon's log.
    #[must_use]
    pub fn log_tails(&self, lines: usize) -> String {
        self.nodes.iter().map(|node| node.log_tail(lines)).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.keep
            && let Some(dir) = self.dir.take()
        {
            let _ = dir.keep();
        }
    }
}

fn hosts(ids: &[u8]) -> Vec<HostId> {
    ids.iter().copied().map(HostId::Node).collect()
}
