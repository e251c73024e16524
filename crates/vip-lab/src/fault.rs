//! Faults of the network: one-way cuts and losses between hosts at the switch, links without carrier, interfaces that go
//! away and come back.

use anyhow::{Result, ensure};

use crate::topology::{HostId, INTERFACE, Network};

const TABLE: &str = "lab";

/// The shares of frames that [`Network::lose`] can drop, in percent.
pub const LOSSES: [u8; 3] = [5, 20, 50];

impl Network {
    /// Lays the empty filter: sets of (from, to) ports whose frames the switch drops, all of one set, a share of the others.
    pub(crate) fn prepare_cuts(&self) -> Result<()> {
        let mut sets = String::from(" set cuts { type ifname . ifname; }\n");
        let mut rules = String::from(" meta iifname . meta oifname @cuts counter drop\n");
        for percent in LOSSES {
            sets += &format!(" set loss{percent} {{ type ifname . ifname; }}\n");
            rules += &format!(
                " meta iifname . meta oifname @loss{percent} numgen random mod 100 < {percent} counter drop\n"
            );
        }
        let table = format!(
            "table bridge {TABLE} {{\n{sets} chain forward {{\n type filter hook forward priority 0; policy accept\n\
             {rules} }}\n}}\n"
        );
        self.switch.run_with_input(["nft", "-f", "-"], &table).map(drop)
    }

    /// Drops every frame from each host of `from` to each host of `to`, in this direction only.
    ///
    /// # Errors
    /// When `nft` fails.
    pub fn cut(&self, from: &[HostId], to: &[HostId]) -> Result<()> {
        self.add("cuts", &pairs(from, to))
    }

    /// Drops every frame between the two groups, in both directions, at one instant.
    ///
    /// # Errors
    /// When `nft` fails.
    pub fn partition(&self, one: &[HostId], other: &[HostId]) -> Result<()> {
        self.add("cuts", &[pairs(one, other), pairs(other, one)].concat())
    }

    /// Drops each frame from a host of `from` to a host of `to` by chance, in this direction only. `percent` is one of
    /// [`LOSSES`].
    ///
    /// # Errors
    /// When `nft` fails, or for another share.
    pub fn lose(&self, from: &[HostId], to: &[HostId], percent: u8) -> Result<()> {
        ensure!(LOSSES.contains(&percent), "a loss of {percent} %: the switch is prepared for {LOSSES:?}");
        self.add(&format!("loss{percent}"), &pairs(from, to))
    }

    /// Ends all cuts, partitions and losses. Links that are down stay down.
    ///
    /// # Errors
    /// When `nft` fails.
    pub fn heal(&self) -> Result<()> {
        let sets = LOSSES.map(|percent| format!("flush set bridge {TABLE} loss{percent}\n")).concat();
        let commands = format!("flush set bridge {TABLE} cuts\n{sets}");
        self.switch.run_with_input(["nft", "-f", "-"], &commands).map(drop)
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

    /// Takes a host's interface away, with everything on it.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn unplug(&self, host: HostId) -> Result<()> {
        self.host(host).run(["ip", "link", "del", INTERFACE]).map(drop)
    }

    /// Takes the carrier of every host: the switch is off.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn switch_off(&self) -> Result<()> {
        self.all_ports("down")
    }

    /// Turns the switch on again.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn switch_on(&self) -> Result<()> {
        self.all_ports("up")
    }

    fn all_ports(&self, state: &str) -> Result<()> {
        let ports = self.nodes().chain([HostId::Client, HostId::Watch]);
        let commands: String = ports.map(|host| format!("link set {host} {state}\n")).collect();
        self.switch.run_with_input(["ip", "-batch", "-"], &commands).map(drop)
    }

    /// Lets the switch keep every frame to a host back for a while: `tc qdisc add dev PORT root netem ARGS`.
    ///
    /// # Errors
    /// When `tc` fails: the kernel may have no `sch_netem`.
    pub fn hold_up(&self, host: HostId, args: &[&str]) -> Result<()> {
        let port = host.to_string();
        let command = ["tc", "qdisc", "replace", "dev", &port, "root", "netem"];
        self.switch.run(command.iter().chain(args)).map(drop)
    }

    /// Ends [`Self::hold_up`].
    ///
    /// # Errors
    /// When `tc` fails.
    pub fn let_through(&self, host: HostId) -> Result<()> {
        self.switch.run(["tc", "qdisc", "del", "dev", &host.to_string(), "root"]).map(drop)
    }

    fn add(&self, set: &str, pairs: &[String]) -> Result<()> {
        if pairs.is_empty() {
            return Ok(());
        }
        let command = format!("add element bridge {TABLE} {set} {{ {} }}\n", pairs.join(", "));
        self.switch.run_with_input(["nft", "-f", "-"], &command).map(drop)
    }
}

fn pairs(from: &[HostId], to: &[HostId]) -> Vec<String> {
    from.iter().flat_map(|a| to.iter().map(move |b| format!("\"{a}\" . \"{b}\""))).collect()
}
