//! What can go wrong with the fence.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;
use nix::errno::Errno;
use thiserror::Error;

use crate::link::LinkError;

/// The verifier writes thousands of lines; the reason is in the last ones.
const VERIFIER_LINES: usize = 8;

/// Why the fence could not be set up, changed or read.
#[derive(Debug, Error)]
pub enum FenceError {
    /// Another process has the fence of this network namespace.
    #[error(
        "another vipd runs in this network namespace (it holds the abstract socket @{name}); \
         stop it first, two of them would undo each other's leases"
    )]
    InUse {
        /// The abstract socket that is the lock.
        name: &'static str,
    },
    /// The lock could not be tried.
    #[error("binding the abstract socket @{name}, which keeps a second vipd out, failed: {source}")]
    Lock {
        /// The abstract socket that is the lock.
        name: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The BPF filesystem is not there and could not be mounted.
    #[error(
        "no BPF filesystem at {path}, and mounting it failed: {source}; mount it before vipd starts \
         (mount -t bpf bpf {path}), or give vipd CAP_SYS_ADMIN"
    )]
    Mount {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The directory of the pinned maps could not be made, read or removed.
    #[error("{attempted} {path} failed: {source}")]
    Pin {
        /// What was attempted.
        attempted: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused the maps or the programs.
    #[error("loading the fence into the kernel failed: {reason}")]
    Load {
        /// The reason in words, with the end of the verifier's log where there is one.
        reason: String,
        /// What the loader said.
        source: Box<EbpfError>,
    },
    /// The built-in object lacks a program: vipd was built wrong.
    #[error("the built-in fence object has no classifier {name}; rebuild it with crates/vip-net/bpf/build.sh")]
    Object {
        /// The program that was looked for.
        name: &'static str,
    },
    /// A map could not be written or read.
    #[error("{attempted}{} failed: {source}", about(*.address))]
    Map {
        /// What was attempted.
        attempted: &'static str,
        /// For which address, where it was about one.
        address: Option<IpAddr>,
        /// What the kernel said.
        source: Box<MapError>,
    },
    /// A table of nf_tables could not be made, changed or read.
    #[error("{attempted}{}{what} of the nftables fence failed: {source}{}", if what.is_empty() { "" } else { " " }, nftables_hint(*source))]
    Nftables {
        /// What was attempted.
        attempted: &'static str,
        /// At what, where that is not said yet.
        what: &'static str,
        /// What the kernel said.
        source: Errno,
    },
    /// No netlink socket.
    #[error("no netlink socket for the filters of the fence: {source}")]
    Netlink {
        /// What the kernel said.
        source: io::Error,
    },
    /// A filter could not be put on an interface.
    #[error("{attempted} on interface {index} failed: {source}{hint}")]
    Attach {
        /// What was attempted.
        attempted: &'static str,
        /// The interface.
        index: u32,
        /// What the kernel said.
        source: Errno,
        /// What may help.
        hint: &'static str,
    },
    /// The filters of an interface could not be listed.
    #[error("listing the tc filters of interface {index} failed: {source}")]
    Inspect {
        /// The interface.
        index: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// A filter could not be taken off an interface.
    #[error("removing the fence from interface {index} failed: {source}; remove it with tc filter del")]
    Detach {
        /// The interface.
        index: u32,
        /// What the kernel said.
        source: Errno,
    },
    /// The interfaces could not be listed.
    #[error(transparent)]
    Links(
        /// Why.
        #[from]
        LinkError,
    ),
}

impl FenceError {
    pub(super) fn load(error: EbpfError) -> Self {
        Self::Load { reason: reason(&error), source: Box::new(error) }
    }

    pub(super) fn map(attempted: &'static str, address: Option<IpAddr>, source: MapError) -> Self {
        Self::Map { attempted, address, source: Box::new(source) }
    }
}

const fn nftables_hint(source: Errno) -> &'static str {
    match source {
        Errno::EPERM => "; vipd needs CAP_NET_ADMIN, and the table netdev vipd must not belong to another process",
        Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EINVAL => {
            "; it needs Linux 5.16 or later with CONFIG_NF_TABLES_NETDEV and CONFIG_NETFILTER_EGRESS"
        }
        Errno::ENOENT => "; was the table netdev vipd removed by somebody (nft flush ruleset)?",
        _ => "",
    }
}

fn about(address: Option<IpAddr>) -> String {
    address.map(|address| format!(" for {address}")).unwrap_or_default()
}

/// The innermost error in words that say what to do.
fn reason(error: &EbpfError) -> String {
    let mut number = None;
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        number = inner.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error).or(number);
        cause = inner.source();
    }
    let advice = match number.map(Errno::from_raw) {
        Some(Errno::EPERM | Errno::EACCES) => {
            "; vipd needs CAP_BPF and CAP_NET_ADMIN, or root, outside of user namespaces"
        }
        Some(Errno::ENOSYS) => "; this kernel is built without BPF (CONFIG_BPF_SYSCALL)",
        Some(Errno::EINVAL | Errno::EOPNOTSUPP) => "; the fence needs Linux 5.8 or later with CONFIG_NET_CLS_BPF",
        Some(Errno::ENOMEM) => "; raise the limit of locked memory (LimitMEMLOCK=infinity), which counts before 5.11",
        _ => "",
    };
    let log = match error {
        EbpfError::ProgramError(ProgramError::LoadError { verifier_log, .. }) => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().filter(|line| !line.is_empty()).collect();
            let end = lines[lines.len().saturating_sub(VERIFIER_LINES)..].join("\n  ");
            if end.is_empty() { end } else { format!("; the verifier said:\n  {end}") }
        }
        _ => String::new(),
    };
    let number = number.map(|number| format!(": {}", io::Error::from_raw_os_error(number))).unwrap_or_default();
    format!("{error}{number}{advice}{log}")
}
