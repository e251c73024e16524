//! The command line.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, Subcommand};
use vip_client::{Consistency, InterfaceSelector, Placement, VipName, VipSpec};

const AFTER_HELP: &str = "\
Exit codes:
  0  done
  1  refused by the cluster, or failed there; standard error says why
  2  the command line makes no sense
  3  no node was reached in time, or none had a leader and a quorum; a change may or may not have been made, and
     repeating it is safe

Endpoints: host:port, http://host:port or unix:/path. With several, nodes that do not answer are passed over; `status`, and
reads with --consistency local, ask them in the order given.

With --json each command prints one JSON object, watch one on each line; durations are in milliseconds (`_ms`).";

/// With the commit, which the version alone does not tell apart.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("VIPD_COMMIT"), ")");

/// Reads and changes the virtual addresses of a vipd cluster.
#[derive(Debug, Parser)]
#[command(name = "vipctl", version = VERSION, after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Where to find nodes; separate several by commas, or repeat the option
    #[arg(
        long = "endpoint",
        global = true,
        env = "VIPCTL_ENDPOINTS",
        value_delimiter = ',',
        value_name = "ENDPOINT",
        default_value = "unix:/run/vipd/vipd.sock"
    )]
    pub(crate) endpoints: Vec<String>,

    /// How long a call may take, with all its attempts: a number with ms, s or m
    #[arg(long, global = true, default_value = "5s", value_parser = duration)]
    pub(crate) timeout: Duration,

    /// How new the answer must be: linearizable, lease or local; a node without a quorum answers only local
    #[arg(long, global = true, default_value = "linearizable")]
    pub(crate) consistency: Consistency,

    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the cluster, its nodes, and the node that answers
    Status,
    /// Show and change VIPs
    #[command(subcommand)]
    Vip(Vip),
    /// Follow changes until interrupted
    Watch {
        /// The VIPs to follow, existing or not; none: all
        #[arg(value_name = "NAME")]
        names: Vec<VipName>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Vip {
    /// List all VIPs
    List,
    /// Show one VIP
    Get {
        /// Its name
        name: VipName,
    },
    /// Declare a VIP; the same declaration again changes nothing
    Add {
        /// Its name, unique in the cluster
        name: VipName,
        /// The address; the prefix is that of a single host unless given
        #[arg(value_name = "ADDRESS[/PREFIX]")]
        address: AddressPrefix,
        /// The interface that carries it
        #[arg(long, value_parser = interface)]
        interface: InterfaceSelector,
    },
    /// Delete a VIP; deleting what is not there changes nothing
    Rm {
        /// Its name
        name: VipName,
    },
}

/// An address, with a prefix length or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AddressPrefix {
    address: IpAddr,
    prefix_len: u8,
}

impl AddressPrefix {
    pub(crate) fn spec(self, name: VipName, interface: InterfaceSelector) -> VipSpec {
        let Self { address, prefix_len } = self;
        VipSpec { name, address, prefix_len, interface, placement: Placement::Leader }
    }
}

impl FromStr for AddressPrefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address = address.parse().map_err(|_| format!("{address:?} is not an IP address"))?;
        let most = VipSpec::host_prefix_len(address);
        let prefix_len = match prefix {
            None => most,
            Some(prefix) => prefix
                .parse()
                .ok()
                .filter(|bits| (1..=most).contains(bits))
                .ok_or_else(|| format!("{prefix:?} is not a prefix length of 1 to {most}"))?,
        };
        Ok(Self { address, prefix_len })
    }
}

fn interface(text: &str) -> Result<InterfaceSelector, String> {
    InterfaceSelector::try_from(text.to_owned()).map_err(|error| error.to_string())
}

fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let milliseconds_each = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        _ => return Err("give a whole number with ms, s or m, such as 500ms".to_owned()),
    };
    let milliseconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(milliseconds_each));
    // A deadline beyond this would overflow somewhere, and nobody waits a day.
    match milliseconds {
        Some(milliseconds @ 1..=86_400_000) => Ok(Duration::from_millis(milliseconds)),
        _ => Err("give 1ms to 1440m".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn addresses_are_read() {
        let read = |text: &str| text.parse::<AddressPrefix>().map(|read| (read.address.to_string(), read.prefix_len));
        assert_eq!(read("10.0.0.1"), Ok(("10.0.0.1".to_owned(), 32)));
        assert_eq!(read("10.0.0.1/24"), Ok(("10.0.0.1".to_owned(), 24)));
        assert_eq!(read("fd00::1"), Ok(("fd00::1".to_owned(), 128)));
        for bad in
            ["", "10.0.0", "10.0.0.1/", "10.0.0.1/0", "10.0.0.1/33", "10.0.0.1/x", "fd00::1/129", "10.0.0.1/24/8"]
        {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_are_read() {
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "5", "s", "0s", "-1s", "1.5s", "5h", "99999999999999999999s", "1441m"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
