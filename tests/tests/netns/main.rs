//! Faults on a real kernel: real daemons on hosts in network namespaces, judged by nothing but packets. Needs root.
//!
//! Each test runs one list of [`trial::Case`]s in a laboratory of its own, each case once or a few times: that is what CI
//! does. `campaign` runs all lists again and again with parameters by chance; see [`campaign`] for its settings. Run the
//! tests one after the other (`--test-threads=1`): they measure times.
//!
//! In every trial two hosts that answer for one VIP at once are a failure, for however short a time; so is a VIP that
//! does not come back, and a daemon that ended by itself. The times are bounds for a busy machine.

#![allow(clippy::print_stdout, reason = "measured times belong to the output of a test")]

mod campaign;
mod clocks;
mod disks;
mod five;
mod freezes;
mod kill_points;
mod kills;
mod links;
mod nftables;
mod partitions;
mod phases;
mod pressure;
mod table;
mod tampering;
mod trial;
