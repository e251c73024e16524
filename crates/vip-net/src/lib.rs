//! The effects of vipd on a Linux host: addresses, announcements, the kernel fence, and what happens to links.
//!
//! Nothing is decided here. Every function does one thing to the kernel, or reads one thing from it, and says
//! what it attempted and what it found when that fails. All of it acts on the network namespace of the thread
//! that opens the handle, and needs `CAP_NET_ADMIN`; [`announce`] needs `CAP_NET_RAW` too, and [`fence`]
//! `CAP_BPF` (with `CAP_SYS_ADMIN` where it has to mount the BPF filesystem).
//!
//! - [`clock`]: the clock that leases are measured with
//! - [`fence`]: the kernel program that silences an address whose lease is not running
//! - [`address`]: addresses on interfaces, tagged so that they are told from everybody else's
//! - [`announce`]: gratuitous ARP and unsolicited Neighbor Advertisements
//! - [`link`]: the interfaces there are
//! - [`monitor`]: changes that others make

pub mod address;
pub mod announce;
pub mod clock;
pub mod fence;
pub mod link;
pub mod monitor;
mod netlink;
