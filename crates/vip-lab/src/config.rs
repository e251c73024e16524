//! The configuration of `vipd`, written by hand: this crate knows the format from its documentation only.

use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use crate::manager::Manager;
use crate::topology::{HostId, INTERFACE};

/// The timing profile of the daemons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Heartbeat 100 ms, lease 500 ms.
    Default,
    /// Heartbeat 20 ms, lease 100 ms, with real-time priority.
    Fast,
}

impl Profile {
    /// The name in the configuration file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Fast => "fast",
        }
    }

    /// The lease duration: a restarted daemon does not vote before it is over.
    #[must_use]
    pub const fn lease(self) -> Duration {
        match self {
            Self::Default => Duration::from_millis(500),
            Self::Fast => Duration::from_millis(100),
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Everything that the configuration of the nodes of one run depends on.
#[derive(Debug, Clone)]
pub struct ClusterPlan {
    /// What keeps the VIPs.
    pub manager: Manager,
    /// The nodes of the cluster.
    pub nodes: Vec<HostId>,
    /// The VIPs, the probed ones first.
    pub vips: Vec<IpAddr>,
    /// The directory of the run; each node has one of its own below it.
    pub dir: PathBuf,
    /// Sections to add, as TOML.
    pub extra: String,
}

impl ClusterPlan {
    /// The directory of one node.
    #[must_use]
    pub fn node_dir(&self, node: HostId) -> PathBuf {
        self.dir.join(node.to_string())
    }

    /// The configuration of vipd on one node.
    #[must_use]
    pub fn node_toml(&self, node: HostId) -> String {
        let profile = self.manager.profile().unwrap_or(Profile::Default);
        let (id, ip, dir) = (number(node), node.ipv4(), self.node_dir(node));
        let mut text = format!(
            "insecure = true\n[cluster]\nname = \"lab\"\nprofile = \"{}\"\n\
             [node]\nid = {id}\nname = \"{node}\"\ndata_dir = \"{}\"\n\
             [peer]\nlisten = \"{ip}:7400\"\n\
             [api]\nsocket = \"{}\"\nlisten = \"{ip}:7401\"\n",
            profile,
            dir.display(),
            socket_path(&dir).display(),
        );
        if profile == Profile::Fast {
            text.push_str("[process]\nrealtime_priority = 10\nlock_memory = true\n");
        }
        text.push_str(&self.extra);
        self.write_cluster(&mut text).expect("writing to a string does not fail");
        text
    }

    fn write_cluster(&self, text: &mut String) -> fmt::Result {
        for &node in &self.nodes {
            let (id, ip) = (number(node), node.ipv4());
            writeln!(text, "[[initial_cluster.node]]\nid = {id}\nname = \"{node}\"\naddress = \"{ip}:7400\"")?;
        }
        for (i, vip) in self.vips.iter().enumerate() {
            let name = vip_name(i, *vip);
            writeln!(text, "[[initial_vip]]\nname = \"{name}\"\naddress = \"{vip}\"\ninterface = \"{INTERFACE}\"")?;
        }
        Ok(())
    }
}

/// Where a node's daemon serves its local API.
#[must_use]
pub fn socket_path(node_dir: &Path) -> PathBuf {
    node_dir.join("vipd.sock")
}

/// The name of the `i`-th VIP: `web4`, `web6`, `web-2`, `web-3`, …
#[must_use]
pub fn vip_name(i: usize, vip: IpAddr) -> String {
    match (i, vip) {
        (0 | 1, IpAddr::V4(_)) => "web4".to_owned(),
        (0 | 1, IpAddr::V6(_)) => "web6".to_owned(),
        _ => format!("web-{i}"),
    }
}

const fn number(node: HostId) -> u8 {
    match node {
        HostId::Node(n) => n,
        HostId::Client | HostId::Watch | HostId::Stranger(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::vip_address;

    #[test]
    fn the_file_of_a_node_is_the_documented_one() {
        let plan = ClusterPlan {
            manager: Manager::VipdFast,
            nodes: vec![HostId::Node(1), HostId::Node(2)],
            vips: vec![vip_address(0), vip_address(1), vip_address(2)],
            dir: PathBuf::from("/run/x"),
            extra: String::new(),
        };
        assert_eq!(plan.node_toml(HostId::Node(2)), include_str!("config/n2.toml"));
    }
}
