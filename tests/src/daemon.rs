//! A daemon outside the laboratory's care: for tests that ask how it ends.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vip_lab::netns::Netns;

use crate::{TestResult, programs, wait_until};

/// A running daemon, ended when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts the daemon with a configuration file; its log goes to `log`, which is made anew.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(netns: &Netns, config: &Path, log: PathBuf) -> Result<Self> {
        let file = File::create(&log).with_context(|| format!("make {}", log.display()))?;
        let child = netns
            .command()
            .arg(programs::vipd()?)
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("start vipd")?;
        Ok(Self { child, log })
    }

    /// What it has said so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the daemon has ended.
    pub fn signal(&self, signal: Signal) -> TestResult {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, signal).with_context(|| format!("{signal} to vipd"))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it goes on for longer than `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if started.elapsed() > limit {
                bail!("vipd has not ended within {limit:?}; it says\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for it to give up by itself: with status 1, and a text that has all of `words` in it.
    ///
    /// # Errors
    /// When it does something else.
    pub fn gives_up(mut self, limit: Duration, words: &[&str]) -> TestResult {
        let status = self.wait(limit)?;
        let log = self.log();
        if status.code() != Some(1) {
            bail!("vipd ended with {status}, not with 1; it says\n{log}");
        }
        match words.iter().find(|word| !log.contains(*word)) {
            None => Ok(()),
            Some(word) => bail!("vipd gave up and did not say {word:?}, but\n{log}"),
        }
    }

    /// Waits until one line of its log has all of `words` in it.
    ///
    /// # Errors
    /// When that does not happen within `limit`.
    pub fn wait_for_line(&self, limit: Duration, words: &[&str]) -> TestResult {
        wait_for_line(&self.log, limit, words)
    }
}

/// Waits until one line of a log has all of `words` in it.
///
/// # Errors
/// When that does not happen within `limit`.
pub fn wait_for_line(log: &Path, limit: Duration, words: &[&str]) -> TestResult {
    let read = || std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let found = || Ok(read().lines().any(|line| words.iter().all(|word| line.contains(word))));
    wait_until(&format!("a line with {words:?}"), limit, found).with_context(read)
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.signal(Signal::SIGCONT);
            let _ = self.signal(Signal::SIGTERM);
            if self.wait(Duration::from_secs(2)).is_err() {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
    }
}
