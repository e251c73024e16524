//! Faults of the network: one-way cuts between hosts at the switch, and links without carrier.

use anyhow::Result;

use crate::topology::{HostId, Network};

const TABLE: &str = "lab";

impl Network {
    /// Lays the empty filter: one set of (from, to) ports whose frames the switch drops.
    pub(crate) fn prepare_cuts(&self) -> Result<()> {
        let rules = format!(
            "table bridge {TABLE} {{\n set cuts {{ type ifname . ifname; }}\n chain forward {{\n\
             type filter hook forward priority 0; policy accept\n meta iifname . meta oifname @cuts counter drop\n }}\n}}\n"
        );
        self.switch.run_with_input(["nft", "-f", "-"], &rules).map(drop)
    }

    /// Drops every frame from each host of `from` to each host of `to`, in this direction only.
    ///
    /// # Errors
    /// When `nft` fails.
    pub fn cut(&self, from: &[HostId], to: &[HostId]) -> Result<()> {
        self.add_cuts(pairs(from, to))
    }

    /// Drops every frame between the two groups, in both directions, at one instant.
    ///
    /// # Errors
    /// When `nft` fails.
    pub fn partition(&self, one: &[HostId], other: &[HostId]) -> Result<()> {
        self.add_cuts(pairs(one, other).into_iter().chain(pairs(other, one)).collect())
    }

    /// Ends all cuts and partitions. Links that are down stay down.
    ///
    /// # Errors
    /// When `nft` fails.
    pub fn heal(&self) -> Result<()> {
        self.switch.run(["nft", "flush", "set", "bridge", TABLE, "cuts"]).map(drop)
    }

    /// Takes the carrier of a host: the switch's side of its link goes down.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn link_down(&self, host: HostId) -> Result<()> {
        self.switch.run(["ip", "link", "set", &host.to_string(), "down"]).map(drop)
    }

    /// Gives a host its carrier back.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn link_up(&self, host: HostId) -> Result<()> {
        self.switch.run(["ip", "link", "set", &host.to_string(), "up"]).map(drop)
    }

    fn add_cuts(&self, pairs: Vec<String>) -> Result<()> {
        if pairs.is_empty() {
            return Ok(());
        }
        let command = format!("add element bridge {TABLE} cuts {{ {} }}\n", pairs.join(", "));
        self.switch.run_with_input(["nft", "-f", "-"], &command).map(drop)
    }
}

fn pairs(from: &[HostId], to: &[HostId]) -> Vec<String> {
    from.iter().flat_map(|a| to.iter().map(move |b| format!("\"{a}\" . \"{b}\""))).collect()
}
