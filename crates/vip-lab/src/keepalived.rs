//! keepalived's configuration for the lab, by keepalived.conf(5) of release 2.2: what an operator writes who wants one
//! owner of all VIPs that stays where it is.
//!
//! One VRRP instance, and so one owner, for all VIPs. The first one is `virtual_ipaddress`; all the others, the IPv6 one
//! among them, are `virtual_ipaddress_excluded`: that is how the manual mixes the two families in an instance, and
//! carries hundreds of addresses. All nodes begin as BACKUP with `nopreempt` and different priorities, so the owner
//! is well defined, and a node that comes back takes nothing away. Announcements are keepalived's defaults.
//!
//! With advertisements below a second it gets what its authors advise for that: VRRPv3, real-time scheduling and locked
//! memory. The limit of processor time between two blocking calls, 10 ms unless set, goes with real-time scheduling; an
//! instance with 1000 VIPs exceeds it at each takeover and is killed by the kernel, so it is raised.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::topology::{HostId, INTERFACE};

/// The priority of n1; the next node has so much less.
const HIGHEST_PRIORITY: u8 = 150;
const PRIORITY_STEP: u8 = 50;

/// The command line. In the foreground, and VRRP only: the part that balances load would look at kernel modules.
#[must_use]
pub fn arguments(config: &Path, dir: &Path) -> Vec<OsString> {
    let mut args: Vec<OsString> = ["--dont-fork", "--log-console", "--vrrp", "--use-file"].map(OsString::from).into();
    args.push(config.into());
    let [parent, child] = pid_files(dir);
    args.extend(["--pid".into(), parent.into(), "--vrrp_pid".into(), child.into()]);
    args
}

/// Where the parent and the child that speaks VRRP note their pids.
#[must_use]
pub fn pid_files(dir: &Path) -> [PathBuf; 2] {
    ["keepalived.pid", "vrrp.pid"].map(|name| dir.join(name))
}

/// The configuration of one node.
///
/// # Panics
/// Never: writing to a string does not fail.
#[must_use]
pub fn configuration(interval: Duration, vips: &[IpAddr], node: HostId) -> String {
    let below_a_second = interval < Duration::from_secs(1);
    let seconds = interval.as_secs_f64();
    let priority = match node {
        HostId::Node(n) => HIGHEST_PRIORITY.saturating_sub((n - 1).saturating_mul(PRIORITY_STEP)).max(1),
        HostId::Client | HostId::Watch | HostId::Stranger(_) => 1,
    };
    let mut text = format!("global_defs {{\n    router_id {node}\n");
    if below_a_second {
        text.push_str(
            "    vrrp_version 3\n    vrrp_rt_priority 10\n    vrrp_rlimit_rttime 1000000\n    vrrp_no_swap\n",
        );
    }
    write!(
        text,
        "}}\n\nvrrp_instance VI_1 {{\n    state BACKUP\n    nopreempt\n    interface {INTERFACE}\n    \
         virtual_router_id 51\n    priority {priority}\n    advert_int {seconds}\n    virtual_ipaddress {{\n"
    )
    .expect("writing to a string does not fail");
    for (i, vip) in vips.iter().enumerate() {
        if i == 1 {
            text.push_str("    }\n    virtual_ipaddress_excluded {\n");
        }
        writeln!(text, "        {vip}").expect("writing to a string does not fail");
    }
    text.push_str("    }\n}\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::vip_address;

    fn file(interval_ms: u64, node: u8, vips: u16) -> String {
        let vips: Vec<IpAddr> = (0..vips).map(vip_address).collect();
        configuration(Duration::from_millis(interval_ms), &vips, HostId::Node(node))
    }

    #[test]
    fn the_file_is_the_documented_one() {
        assert_eq!(file(1000, 1, 1), include_str!("config/keepalived-1s.conf"));
        assert_eq!(file(100, 2, 3), include_str!("config/keepalived-100ms.conf"));
        assert!(file(10, 1, 1).contains(" advert_int 0.01\n"));
    }

    #[test]
    fn every_node_has_a_priority_of_its_own_in_a_cluster_of_three() {
        let priorities = [1, 2, 3].map(|node| {
            let text = file(1000, node, 2);
            text.lines().find(|line| line.contains("priority")).expect("a priority").trim().to_owned()
        });
        assert_eq!(priorities, ["priority 150", "priority 100", "priority 50"]);
    }
}
