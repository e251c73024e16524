//! A laboratory for a virtual-IP cluster: hosts as network namespaces on one bridge, real daemons, faults by signal,
//! link state and packet filter, and an observer that judges by nothing but the packets that reach a client.
//!
//! ```text
//!   n1 ──┐            ┌── client   sends an echo request to the probed VIPs every millisecond,
//!   n2 ──┼── bridge ──┤            through its own, untouched neighbour cache
//!   n3 ──┘   (-sw)    └── watch    asks by ARP and NDP who has each VIP, to everybody, every 5 ms
//! ```
//!
//! The two observing hosts are separate on purpose: an answer to a broadcast question would refresh the neighbour
//! cache of the host that asked, and a client that is told every 5 ms where the VIP is would hide a missing announcement.
//!
//! This crate shares no code with the daemon. It drives `ip`, `nft` and processes, and reads frames.

pub mod bench;
pub mod capture;
pub mod clean;
pub mod clock;
pub mod config;
pub mod demo;
pub mod fault;
pub mod frame;
pub mod interrupt;
pub mod judge;
pub mod keepalived;
pub mod lab;
pub mod load;
pub mod manager;
pub mod netns;
pub mod node;
pub mod observe;
pub mod observer;
pub mod outage;
pub mod prober;
pub mod report;
pub mod scenario;
pub mod steady;
pub mod topology;

pub use clock::Stamp;
pub use config::Profile;
pub use judge::{Answer, AnswerKind, Verdict, judge};
pub use lab::{Lab, LabBuilder};
pub use manager::Manager;
pub use node::Node;
pub use observer::Observer;
pub use topology::HostId;
