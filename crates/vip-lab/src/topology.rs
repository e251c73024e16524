//! The hosts of the lab: one bridge in a namespace of its own, nodes, client and watcher each on a veth pair.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use serde::{Serialize, Serializer};

use crate::clean::remove_pins;
use crate::netns::Netns;

/// The interface of every host.
pub const INTERFACE: &str = "eth0";
const BRIDGE: &str = "br0";

/// A host of the lab, as told apart by its MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostId {
    /// A node of the cluster, from 1.
    Node(u8),
    /// The client: sends the probes.
    Client,
    /// The watcher: asks everybody who has the VIPs.
    Watch,
    /// A MAC address that the lab did not give out.
    Stranger([u8; 6]),
}

impl HostId {
    /// The host's MAC address.
    #[must_use]
    pub const fn mac(self) -> [u8; 6] {
        match self {
            Self::Stranger(mac) => mac,
            known => [0x02, 0x76, 0x69, 0x70, 0x00, known.suffix()],
        }
    }

    /// The host with this MAC address.
    #[must_use]
    pub const fn from_mac(mac: [u8; 6]) -> Self {
        match mac {
            [0x02, 0x76, 0x69, 0x70, 0x00, 200] => Self::Client,
            [0x02, 0x76, 0x69, 0x70, 0x00, 201] => Self::Watch,
            [0x02, 0x76, 0x69, 0x70, 0x00, suffix @ 11..=99] => Self::Node(suffix - 10),
            other => Self::Stranger(other),
        }
    }

    /// The host's IPv4 address.
    #[must_use]
    pub const fn ipv4(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.suffix())
    }

    /// The host's IPv6 address: the same digits as the IPv4 one, `fd77::11` for n1.
    #[must_use]
    pub const fn ipv6(self) -> Ipv6Addr {
        let n = self.suffix() as u16;
        let digits_as_hex = (n / 100) * 0x100 + (n / 10 % 10) * 0x10 + n % 10;
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, digits_as_hex)
    }

    const fn suffix(self) -> u8 {
        match self {
            Self::Node(n) => 10 + n,
            Self::Client => 200,
            Self::Watch => 201,
            Self::Stranger(mac) => mac[5],
        }
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(n) => f.pad(&format!("n{n}")),
            Self::Client => f.pad("client"),
            Self::Watch => f.pad("watch"),
            Self::Stranger(mac) => f.pad(&mac_text(*mac)),
        }
    }
}

impl Serialize for HostId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The `i`-th VIP of a run: an IPv4 and an IPv6 one that are probed, then as many more as asked for in 10.77.4.0/22.
#[must_use]
pub fn vip_address(i: u16) -> IpAddr {
    match i {
        0 => IpAddr::V4(Ipv4Addr::new(10, 77, 0, 100)),
        1 => IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x100)),
        more => IpAddr::V4(Ipv4Addr::from_bits(Ipv4Addr::new(10, 77, 4, 0).to_bits() + u32::from(more) - 1)),
    }
}

/// The namespaces and links of one run.
#[derive(Debug)]
pub struct Network {
    prefix: String,
    pub(crate) switch: Netns,
    hosts: BTreeMap<HostId, Netns>,
}

impl Network {
    /// Builds bridge and hosts. The names begin with `vl<pid>`, so that two runs never meet.
    ///
    /// # Errors
    /// When not root, or a command fails; what was made until then is removed.
    pub fn build(nodes: u8) -> Result<Self> {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        if !nix::unistd::geteuid().is_root() {
            bail!("the lab makes network namespaces and needs root");
        }
        if !(1..=20).contains(&nodes) {
            bail!("{nodes} nodes: between 1 and 20 fit in the lab");
        }
        let prefix = format!("vl{}x{}", std::process::id(), RUNS.fetch_add(1, Ordering::Relaxed));
        let switch = Netns::create(&format!("{prefix}-sw"))?;
        // From here on dropping `network` removes what there is.
        let mut network = Self { prefix, switch, hosts: BTreeMap::new() };
        network.lay_bridge()?;
        for host in (1..=nodes).map(HostId::Node).chain([HostId::Client, HostId::Watch]) {
            network.add_host(host).with_context(|| format!("host {host}"))?;
        }
        network.prepare_cuts()?;
        Ok(network)
    }

    /// The namespace of a host.
    ///
    /// # Panics
    /// When the lab has no such host.
    #[must_use]
    pub fn host(&self, host: HostId) -> &Netns {
        match self.hosts.get(&host) {
            Some(netns) => netns,
            None => panic!("the lab has no host {host}"),
        }
    }

    /// The nodes of the cluster.
    pub fn nodes(&self) -> impl Iterator<Item = HostId> + '_ {
        self.hosts.keys().copied().filter(|host| matches!(host, HostId::Node(_)))
    }

    /// What the names of this run begin with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    fn lay_bridge(&self) -> Result<()> {
        self.switch.sysctl(&[("ipv6/conf/all/disable_ipv6", "1"), ("ipv6/conf/default/disable_ipv6", "1")])?;
        self.ip_batch(
            &self.switch,
            &format!(
                "link add {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set {BRIDGE} up\n"
            ),
        )
    }

    fn add_host(&mut self, host: HostId) -> Result<()> {
        let netns = Netns::create(&format!("{}-{host}", self.prefix))?;
        self.hosts.insert(host, netns);
        let netns = self.host(host);
        // No duplicate address detection while the host comes up; afterwards as on any host, so that a daemon whose
        // VIP would sit in "tentative" for a second is seen to do so.
        netns.sysctl(&[("ipv6/conf/default/accept_dad", "0"), ("ipv4/ping_group_range", "0 0")])?;
        netns.run(["ip", "link", "set", "lo", "up"])?;
        self.plug(host)?;
        self.host(host).sysctl(&[("ipv6/conf/default/accept_dad", "1"), ("ipv6/conf/eth0/accept_dad", "1")])
    }

    /// Gives a host its interface, with its MAC and IP addresses, and connects it to the switch.
    ///
    /// # Errors
    /// When `ip` fails: the host has it already.
    pub fn plug(&self, host: HostId) -> Result<()> {
        let netns = self.host(host);
        self.ip_batch(
            &self.switch,
            &format!(
                "link add {host} type veth peer name {INTERFACE} address {} netns {}\n\
             link set {host} master {BRIDGE}\nlink set {host} up\n",
                mac_text(host.mac()),
                netns.name(),
            ),
        )?;
        self.ip_batch(
            netns,
            &format!(
                "link set {INTERFACE} up\n\
             addr add {}/16 dev {INTERFACE}\naddr add {}/64 dev {INTERFACE} nodad\n",
                host.ipv4(),
                host.ipv6(),
            ),
        )
    }

    fn ip_batch(&self, netns: &Netns, commands: &str) -> Result<()> {
        netns.run_with_input(["ip", "-batch", "-"], commands).map(drop)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Nothing can be done about a failure here that `vip-lab clean` would not do as well.
        for netns in self.hosts.values().chain([&self.switch]) {
            remove_pins(netns);
            let _ = netns.delete();
        }
    }
}

/// A MAC address as text.
#[must_use]
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_known_by_its_mac() {
        for host in [HostId::Node(1), HostId::Node(20), HostId::Client, HostId::Watch] {
            assert_eq!(HostId::from_mac(host.mac()), host);
        }
        let stranger = [2, 0, 0, 0, 0, 9];
        assert_eq!(HostId::from_mac(stranger), HostId::Stranger(stranger));
    }

    #[test]
    fn addresses_are_those_of_the_plan() {
        assert_eq!(HostId::Node(1).ipv4().to_string(), "10.77.0.11");
        assert_eq!(HostId::Node(2).ipv6().to_string(), "fd77::12");
        assert_eq!(HostId::Client.ipv6().to_string(), "fd77::200");
        assert_eq!(vip_address(2).to_string(), "10.77.4.1");
        assert_eq!(vip_address(1000).to_string(), "10.77.7.231");
    }
}
