//! What an operator declares: a VIP and how it is placed.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::VipName;

/// How the cluster chooses the owner of a VIP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// The Raft leader owns it, held by the leader's own quorum lease.
    #[default]
    Leader,
}

/// Which interface of a node carries a VIP: a kernel name such as `eth0`, or a name of the node's own interface map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceSelector(String);

impl InterfaceSelector {
    /// The selector as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for InterfaceSelector {
    type Error = SpecError;

    fn try_from(name: String) -> Result<Self, SpecError> {
        // IFNAMSIZ is 16 with the closing zero (linux/if.h); '/' and white space are what dev_valid_name refuses.
        let bad = name.is_empty()
            || name.len() > 15
            || name == "lo"
            || name.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
        if bad {
            return Err(SpecError::Interface { interface: name.chars().take(80).collect() });
        }
        Ok(Self(name))
    }
}

impl From<InterfaceSelector> for String {
    fn from(selector: InterfaceSelector) -> Self {
        selector.0
    }
}

impl fmt::Display for InterfaceSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A VIP cannot be declared like this.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SpecError {
    /// Not an address that a host may hold and announce.
    #[error("{address} cannot be a VIP: it is {kind}; give a unicast address that hosts of the network can reach")]
    Address {
        /// What was given.
        address: IpAddr,
        /// What sort of address it is.
        kind: &'static str,
    },
    /// Longer than the address.
    #[error("prefix length {found} is too long for {address}: at most {most}")]
    PrefixTooLong {
        /// The address.
        address: IpAddr,
        /// The prefix length that was given.
        found: u8,
        /// The longest one for this family.
        most: u8,
    },
    /// The network's or the broadcast address of its own prefix.
    #[error("{address} cannot be a VIP: it is the {kind} address of its own prefix {prefix}")]
    NotAHost {
        /// The address.
        address: IpAddr,
        /// "network" or "broadcast".
        kind: &'static str,
        /// The prefix.
        prefix: IpNet,
    },
    /// Not a name that a kernel interface can have, or the loopback.
    #[error(
        "{interface:?} cannot carry a VIP: give an interface name of 1 to 15 characters without '/', ':' or spaces, and not lo"
    )]
    Interface {
        /// What was given.
        interface: String,
    },
}

/// A VIP as declared: one address, its prefix length, where it goes, and how it is placed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipSpec {
    /// Unique name.
    pub name: VipName,
    /// The address itself, unique among the VIPs of the cluster.
    pub address: IpAddr,
    /// Prefix length on the interface; 32 or 128 unless the operator wants a connected route.
    pub prefix_len: u8,
    /// The interface that carries it.
    pub interface: InterfaceSelector,
    /// How the owner is chosen.
    #[serde(default)]
    pub placement: Placement,
}

impl VipSpec {
    /// The prefix length of a single host: 32 for IPv4, 128 for IPv6.
    #[must_use]
    pub const fn host_prefix_len(address: IpAddr) -> u8 {
        match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        }
    }

    /// Checks what can be checked without looking at other VIPs.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(self) -> Result<Self, SpecError> {
        if let Some(kind) = unusable(self.address) {
            return Err(SpecError::Address { address: self.address, kind });
        }
        let most = Self::host_prefix_len(self.address);
        let too_long = || SpecError::PrefixTooLong { address: self.address, found: self.prefix_len, most };
        if self.prefix_len == 0 {
            return Err(SpecError::Address {
                address: self.address,
                kind: "given with prefix length 0, the whole address space",
            });
        }
        let prefix = IpNet::new(self.address, self.prefix_len).map_err(|_| too_long())?;
        if let IpNet::V4(net) = prefix
            && net.prefix_len() < 31
        {
            let not_a_host = |kind| Err(SpecError::NotAHost { address: self.address, kind, prefix: prefix.trunc() });
            if net.addr() == net.network() {
                return not_a_host("network");
            }
            if net.addr() == net.broadcast() {
                return not_a_host("broadcast");
            }
        }
        Ok(self)
    }
}

/// Why no host may hold `address`, if so.
fn unusable(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        return Some("the unspecified address");
    }
    if address.is_loopback() {
        return Some("a loopback address");
    }
    if address.is_multicast() {
        return Some("a multicast address");
    }
    match address {
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("in 0.0.0.0/8, \"this network\""),
        IpAddr::V4(v4) if v4.octets()[0] >= 240 => Some("in 240.0.0.0/4, reserved"),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Some("an IPv4-mapped IPv6 address"),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(address: &str, prefix_len: u8) -> VipSpec {
        VipSpec {
            name: "v".parse().unwrap(),
            address: address.parse().unwrap(),
            prefix_len,
            interface: "eth0".to_owned().try_into().unwrap(),
            placement: Placement::Leader,
        }
    }

    #[test]
    fn good_specs_pass() {
        for (address, prefix_len) in
            [("10.0.0.1", 32), ("10.0.0.1", 24), ("10.0.0.0", 31), ("fd00::1", 128), ("fe80::1", 64)]
        {
            assert!(spec(address, prefix_len).validate().is_ok(), "{address}/{prefix_len}");
        }
    }

    #[test]
    fn bad_specs_say_what_is_wrong() {
        for (address, prefix_len, says) in [
            ("10.0.0.1", 33, "at most 32"),
            ("fd00::1", 129, "at most 128"),
            ("10.0.0.1", 0, "prefix length 0"),
            ("10.0.0.0", 24, "network address"),
            ("10.0.0.255", 24, "broadcast address"),
            ("127.0.0.1", 32, "loopback"),
            ("::1", 128, "loopback"),
            ("224.0.0.18", 32, "multicast"),
            ("ff02::1", 128, "multicast"),
            ("0.0.0.0", 32, "unspecified"),
            ("0.1.2.3", 32, "0.0.0.0/8"),
            ("255.255.255.255", 32, "broadcast"),
            ("::ffff:10.0.0.1", 128, "mapped"),
        ] {
            let error = spec(address, prefix_len).validate().unwrap_err().to_string();
            assert!(error.contains(says), "{address}/{prefix_len}: {error}");
        }
    }

    #[test]
    fn interfaces_are_checked() {
        for bad in ["", "lo", "a b", "eth0/1", "sixteencharacter", "eth0:1"] {
            assert!(InterfaceSelector::try_from(bad.to_owned()).is_err(), "{bad}");
        }
        assert!(InterfaceSelector::try_from("enp1s0f0.100".to_owned()).is_ok());
    }
}
