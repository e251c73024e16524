//! What the tests of the whole share: where the repository is, its programs, and a cluster of real daemons on hosts in
//! network namespaces.
//!
//! The tests are sorted by what they need: `tidy` reads files, `config_check` runs a program, `cluster` needs root.

pub mod cluster;
pub mod daemon;
pub mod disk;
pub mod programs;
pub mod repository;
pub mod trace;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// What every test returns: the first thing that went wrong, with what led to it.
pub type TestResult = Result<()>;

/// Asks again and again until `yes`.
///
/// # Errors
/// When the answer is still no after `limit`, or cannot be had; the message says what was waited for.
pub fn wait_until(what: &str, limit: Duration, mut yes: impl FnMut() -> Result<bool>) -> TestResult {
    const PACE: Duration = Duration::from_millis(10);
    let started = Instant::now();
    while !yes()? {
        if started.elapsed() > limit {
            bail!("{what}: not within {limit:?}");
        }
        std::thread::sleep(PACE);
    }
    Ok(())
}
