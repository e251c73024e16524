//! Ctrl-C and SIGTERM as a flag that every wait of the lab looks at, so that a run that is cut short still tears down.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Starts to catch SIGINT, SIGTERM and SIGHUP. Call it before any other thread exists: they inherit the mask.
/// The second signal ends the process at once and may leave things behind for `vip-lab clean`.
///
/// # Errors
/// When the mask cannot be set or the waiting thread cannot be started.
pub fn install() -> Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().context("block signals")?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        while signals.wait().is_ok() {
            if INTERRUPTED.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
        }
    })?;
    Ok(())
}

/// Fails once a signal has arrived.
///
/// # Errors
/// "interrupted", after SIGINT, SIGTERM or SIGHUP.
pub fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::SeqCst) {
        bail!("interrupted");
    }
    Ok(())
}

/// Sleeps in short steps, and fails early when a signal arrives.
///
/// # Errors
/// As [`check`].
pub fn sleep(time: Duration) -> Result<()> {
    const STEP: Duration = Duration::from_millis(20);
    let mut left = time;
    while !left.is_zero() {
        check()?;
        let step = left.min(STEP);
        std::thread::sleep(step);
        left -= step;
    }
    check()
}
