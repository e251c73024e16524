//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// With the commit, which the version alone does not tell apart.
const LONG_VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("VIPD_COMMIT"), ")");

#[derive(Debug, Parser)]
#[command(name = "vipd", version = LONG_VERSION, about = "Keeps virtual IP addresses on a cluster, never on two hosts at once.")]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Exit codes: 0 ended as asked, 1 failed or the configuration is wrong, 2 wrong usage.\n\
    Signals: SIGTERM and SIGINT give the VIPs back, hand leadership over, and end the daemon.")]
pub(crate) struct Args {
    /// The configuration file; the daemon runs in the foreground.
    #[arg(long, value_name = "FILE", default_value = "/etc/vipd/vipd.toml")]
    pub(crate) config: PathBuf,
    #[command(subcommand)]
    pub(crate) command: Option<Task>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Task {
    /// Checks a configuration and says all that is wrong with it.
    Check {
        /// The configuration file.
        #[arg(long, value_name = "FILE", default_value = "/etc/vipd/vipd.toml")]
        config: PathBuf,
    },
    /// Takes everything of vipd off this host after the daemon has ended: addresses, filters, pinned maps.
    Cleanup {
        /// The configuration file.
        #[arg(long, value_name = "FILE", default_value = "/etc/vipd/vipd.toml")]
        config: PathBuf,
    },
}
