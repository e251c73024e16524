//! `vipctl`: reads and changes the VIPs of a cluster.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use vip_client::{Client, Endpoint, Error, Options};

mod args;
mod commands;
mod output;
mod table;

use args::Args;

/// The cluster, or a node, said no.
const REFUSED: u8 = 1;
/// The command line makes no sense; clap exits with the same.
const USAGE: u8 = 2;
/// Nobody answered, or nobody had a quorum.
const UNAVAILABLE: u8 = 3;

fn main() -> ExitCode {
    let args = Args::parse();
    let Err(error) = run(args) else { return ExitCode::SUCCESS };
    if is_broken_pipe(&error) {
        // Whoever read has seen enough, as `head` does.
        return ExitCode::SUCCESS;
    }
    // Nothing is left to do where standard error is closed, too.
    let _ = writeln!(io::stderr(), "vipctl: {error:#}");
    ExitCode::from(exit_code(&error))
}

fn run(args: Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let endpoints = args.endpoints.iter().map(|text| text.parse()).collect::<Result<Vec<Endpoint>, _>>();
        let client = Client::new(endpoints.map_err(Error::from)?, Options { timeout: args.timeout })?;
        commands::run(&args, &client).await
    })
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Error>() {
        Some(Error::NoEndpoint | Error::BadEndpoint(_)) => USAGE,
        Some(Error::Unavailable { .. }) => UNAVAILABLE,
        Some(Error::Refused { .. } | Error::Failed { .. } | Error::Malformed(_)) | None => REFUSED,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
            || cause.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind)
                == Some(io::ErrorKind::BrokenPipe)
    })
}
