//! Real daemons on hosts in network namespaces, judged by packets. Needs root.
//!
//! The laboratories measure times: run these one after the other (`--test-threads=1`), as `make test-hosts` does.

#![allow(clippy::print_stdout, reason = "measured times belong to the output of a test")]

mod control;
mod holding;
mod http;
mod nftables;
mod refusals;
