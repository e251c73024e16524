//! vipd: keeps virtual IP addresses on a cluster of hosts, and never on two at once.
//!
//! This is where the parts are joined: [`vip_core`] decides, [`vip_raft`] agrees, [`vip_net`] acts, [`api`] speaks.

mod api;
mod args;
mod backend;
mod config;
mod daemon;
mod dataplane;
mod driver;
mod fence;
mod host;
mod http;
mod kill_points;
mod listen;
mod mailbox;
mod process;
mod sink;

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use vip_core::kill_point;

use crate::args::{Args, Task};
use crate::config::{Config, FenceChoice, LogFormat};

/// The version, as the API and the log tell it.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

fn main() -> ExitCode {
    let args = Args::parse();
    let result = match args.command {
        None => run(&args.config),
        Some(Task::Check { config }) => check(&config),
        Some(Task::Cleanup { config }) => cleanup(&config),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The log may not be there yet, or not any more.
            let _ = writeln!(std::io::stderr(), "vipd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The real-time priority until the fence is in place: the lowest there is.
const STARTING_PRIORITY: u8 = 1;

fn run(path: &Path) -> anyhow::Result<()> {
    let loaded = config::load(path)?;
    let _log = init_log(&loaded.config)?;
    for warning in &loaded.warnings {
        tracing::warn!(warning, "configuration");
    }
    process::end_with_vital_threads();
    // Before any thread is started: they inherit it.
    process::unblock_signals().map_err(anyhow::Error::msg)?;
    // Loading the fence costs the kernel tens of milliseconds, and nobody waits for this node yet: it does that ahead of
    // what is at ordinary priority, but behind daemons of the same host that hold VIPs, as a laboratory has them.
    let priority = loaded.config.realtime_priority;
    let granted = process::realtime(priority.min(STARTING_PRIORITY));
    if kill_point::BUILT_IN {
        kill_points::begin(path)?;
    }
    let host = daemon::Host::prepare(&loaded.config)?;
    if let Err(warning) = granted.and_then(|()| process::realtime(priority)) {
        tracing::warn!(warning, "running at ordinary priority");
    }
    if loaded.config.lock_memory
        && let Err(warning) = process::lock_memory()
    {
        tracing::warn!(warning, "running with memory that can be swapped");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("vipd-worker")
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    if kill_point::BUILT_IN {
        runtime.spawn(kill_points::follow(path.to_owned()));
    }
    let result = runtime.block_on(daemon::run(loaded, host));
    // A task that does not end must not keep the process, which holds nothing any more.
    runtime.shutdown_background();
    result
}

fn check(path: &Path) -> anyhow::Result<()> {
    let loaded = config::load(path)?;
    let mut stdout = std::io::stdout().lock();
    for warning in &loaded.warnings {
        writeln!(stdout, "warning: {warning}")?;
    }
    if loaded.config.fence == FenceChoice::Nftables {
        fence::check_timing_for_nftables(&loaded.config)?;
    }
    daemon::check_interfaces(&loaded.config)?;
    writeln!(stdout, "{}: ok", path.display())?;
    Ok(())
}

fn cleanup(path: &Path) -> anyhow::Result<()> {
    let config = config::load(path)?.config;
    // Opening it refuses where a daemon runs, and shuts it: what is left answers nothing from here on. The filters go
    // last, when there is nothing any more that they would have to stop.
    let fence = fence::open(config.fence, &config.pin_root)?;
    let swept = vip_net::address::AddressBook::new()?.sweep()?;
    drop(fence);
    let removed = vip_net::fence::Fence::detach_all(&config.pin_root)?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "removed {} addresses and {} filters", swept.len(), removed.filters)?;
    Ok(())
}

/// What is logged before the returned guard is dropped is written by then.
fn init_log(config: &Config) -> anyhow::Result<tracing_appender::non_blocking::WorkerGuard> {
    use tracing_appender::non_blocking::NonBlockingBuilder;
    use tracing_subscriber::filter::{LevelFilter, Targets};
    use tracing_subscriber::prelude::*;
    /// How many lines wait for a slow reader; the default of 128,000 would take more memory than all the rest.
    const LINES: usize = 2048;
    let mut filter: Targets = config.log_level.parse().context("log.level")?;
    if !config.log_level.contains("openraft") {
        // It tells every failed call to a peer that is down; what matters of that is told by vipd, once.
        filter = filter.with_target("openraft", LevelFilter::ERROR);
    }
    // Lines are dropped rather than waited for: a log that nobody reads must not cost a lease.
    let (writer, guard) = NonBlockingBuilder::default().buffered_lines_limit(LINES).finish(std::io::stderr());
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    let registry = tracing_subscriber::registry();
    match config.log_format {
        LogFormat::Text => registry.with(layer.with_ansi(false).with_filter(filter)).init(),
        LogFormat::Json => registry.with(layer.json().with_filter(filter)).init(),
    }
    Ok(guard)
}
