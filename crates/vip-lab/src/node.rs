//! One real daemon, with its children, in the namespace of its host: started, signalled, looked at.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::config::socket_path;
use crate::manager::Launch;
use crate::netns::Netns;
use crate::topology::HostId;

/// What a daemon has used so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// User and system time.
    pub cpu: Duration,
    /// Resident memory. What several processes of one daemon share counts for each.
    pub rss_kib: u64,
    /// Resident memory, with what is shared divided by those who share it.
    pub pss_kib: u64,
}

impl Usage {
    /// Resident memory in MiB.
    #[must_use]
    pub fn rss_mib(&self) -> f64 {
        self.rss_kib as f64 / 1024.0
    }

    /// Resident memory in MiB, shares counted as shares.
    #[must_use]
    pub fn pss_mib(&self) -> f64 {
        self.pss_kib as f64 / 1024.0
    }

    fn add(&mut self, other: Self) {
        self.cpu += other.cpu;
        self.rss_kib += other.rss_kib;
        self.pss_kib += other.pss_kib;
    }
}

#[derive(Debug)]
struct Running {
    child: Child,
    since: Instant,
}

/// The daemon of one node. All methods take `&self`, so that a test can fault several nodes from several threads.
#[derive(Debug)]
pub struct Node {
    host: HostId,
    netns: Netns,
    dir: PathBuf,
    launch: Launch,
    running: Mutex<Option<Running>>,
}

impl Node {
    /// Writes the configuration; does not start anything.
    ///
    /// # Errors
    /// When the directory or the file cannot be written.
    pub fn prepare(host: HostId, netns: Netns, dir: PathBuf, launch: Launch) -> Result<Self> {
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let node = Self { host, netns, dir, launch, running: Mutex::new(None) };
        let path = node.config_path();
        fs::write(&path, &node.launch.config).with_context(|| format!("write {}", path.display()))?;
        Ok(node)
    }

    /// Which host this is.
    #[must_use]
    pub const fn host(&self) -> HostId {
        self.host
    }

    /// The directory with configuration, log, socket and state.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The configuration file.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.launch.config_path.clone()
    }

    /// The Unix socket of vipd's local API.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        socket_path(&self.dir)
    }

    /// Starts the daemon; nothing happens when it runs already.
    ///
    /// # Errors
    /// When it cannot be started. An early end shows in [`Node::is_running`] and [`Node::log_tail`].
    pub fn start(&self) -> Result<()> {
        let mut running = self.lock();
        if let Some(running) = running.as_mut()
            && running.child.try_wait()?.is_none()
        {
            return Ok(());
        }
        let path = self.log_path();
        let log = OpenOptions::new().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("open {}", path.display()))?;
        for stale in &self.launch.pid_files {
            let _ = fs::remove_file(stale);
        }
        let mut command = self.netns.command();
        if let Some(libraries) = &self.launch.library_path {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        command.arg(&self.launch.program).args(&self.launch.args);
        // A group of its own: Ctrl-C at the terminal is for the lab, which then ends the daemons in order; and a fault hits
        // the daemon's children too.
        command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("start {}", self.launch.program.display()))?;
        *running = Some(Running { child, since: Instant::now() });
        Ok(())
    }

    /// SIGKILL to the daemon and its children, and waits until the daemon is gone.
    ///
    /// # Errors
    /// When the daemon does not run.
    pub fn kill(&self) -> Result<()> {
        self.signal_all(Signal::SIGKILL)?;
        self.reap(Duration::from_secs(5)).map(drop)
    }

    /// SIGTERM, and waits until the process is gone.
    ///
    /// # Errors
    /// When the daemon does not run, does not end within `timeout`, or ends with a failure.
    pub fn stop(&self, timeout: Duration) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let status = self.reap(timeout)?;
        if !status.success() && status.signal() != Some(Signal::SIGTERM as i32) {
            bail!("{}: {} ended with {status} after SIGTERM", self.host, self.launch.name);
        }
        Ok(())
    }

    /// SIGSTOP to the daemon and its children: they do nothing any more, and nothing tells them.
    ///
    /// # Errors
    /// When the daemon does not run.
    pub fn freeze(&self) -> Result<()> {
        self.signal_all(Signal::SIGSTOP)
    }

    /// SIGCONT to the daemon and its children.
    ///
    /// # Errors
    /// When the daemon does not run.
    pub fn thaw(&self) -> Result<()> {
        self.signal_all(Signal::SIGCONT)
    }

    /// Kills the daemon if it runs, and starts it again.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn restart(&self) -> Result<()> {
        if self.is_running() {
            self.kill()?;
        }
        self.start()
    }

    /// Sends any signal to the daemon's own process.
    ///
    /// # Errors
    /// When the daemon does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.signal_by(signal, kill)
    }

    /// Sends any signal to the daemon and all its children: the whole process group at one instant.
    fn signal_all(&self, signal: Signal) -> Result<()> {
        self.signal_by(signal, killpg)
    }

    fn signal_by(&self, signal: Signal, send: fn(Pid, Option<Signal>) -> nix::Result<()>) -> Result<()> {
        let mut running = self.lock();
        let Some(child) = running.as_mut().map(|running| &mut running.child) else {
            bail!("{}: {} is not running", self.host, self.launch.name);
        };
        if let Some(status) = child.try_wait()? {
            bail!("{}: {} has already ended with {status}\n{}", self.host, self.launch.name, self.log_tail(15));
        }
        // Not reaped yet, so the pid is still this child's, and the group too.
        send(pid_of(child), Some(signal)).with_context(|| format!("{signal} to {}", self.host))
    }

    /// The daemon's own pid: `nsenter` became the daemon.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.lock().as_ref().map(|running| running.child.id())
    }

    /// Whether the process exists; a frozen one does.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.uptime().is_some()
    }

    /// The time since the start, for a process that exists.
    #[must_use]
    pub fn uptime(&self) -> Option<Duration> {
        let mut running = self.lock();
        let running = running.as_mut()?;
        matches!(running.child.try_wait(), Ok(None)).then(|| running.since.elapsed())
    }

    /// What the daemon and its children have used so far, from /proc.
    ///
    /// # Errors
    /// When the daemon does not run.
    pub fn usage(&self) -> Result<Usage> {
        let leader = self.pid().with_context(|| format!("{} is not running", self.launch.name))?;
        let ticks_per_sec = u64::try_from(sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100))?;
        let mut total = Usage::default();
        for entry in fs::read_dir("/proc")?.flatten().filter(|entry| is_pid(&entry.file_name())) {
            // A process may end meanwhile; the daemon itself is found or the sum is an error.
            let read = |file: &str| fs::read_to_string(entry.path().join(file));
            let Ok(stat) = read("stat") else { continue };
            if group_from(&stat) == Some(leader)
                && let (Ok(status), Ok(rollup)) = (read("status"), read("smaps_rollup"))
            {
                total.add(usage_from(&stat, &status, &rollup, ticks_per_sec).context("unexpected format of /proc")?);
            }
        }
        ensure!(total.rss_kib > 0, "{}: {} is not running", self.host, self.launch.name);
        Ok(total)
    }

    /// The last lines of the daemon's log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read(self.log_path()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let text = text.unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].iter().map(|line| format!("  {} | {line}\n", self.host)).collect()
    }

    /// The daemon's log file.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.dir.join(format!("{}.log", self.launch.name))
    }

    fn reap(&self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            let mut running = self.lock();
            let Some(child) = running.as_mut().map(|running| &mut running.child) else {
                bail!("{}: {} is not running", self.host, self.launch.name);
            };
            if let Some(status) = child.try_wait()? {
                *running = None;
                return Ok(status);
            }
            drop(running);
            if Instant::now() > deadline {
                bail!("{}: {} has not ended within {timeout:?}\n{}", self.host, self.launch.name, self.log_tail(15));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Node {
    /// First politely, so that the daemon can remove what it pinned in the kernel; a process that is frozen is woken for it.
    fn drop(&mut self) {
        const GRACE: Duration = Duration::from_secs(2);
        if self.is_running() {
            let _ = self.thaw();
            if self.stop(GRACE).is_err() && self.is_running() {
                let _ = self.kill();
            }
        }
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX))
}

fn is_pid(name: &OsStr) -> bool {
    name.as_encoded_bytes().iter().all(u8::is_ascii_digit)
}

/// Field 5 of `stat` in proc(5): the process group.
fn group_from(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(2)?.parse().ok()
}

/// Reads proc(5): fields 14 and 15 of `stat`, counted behind the parenthesised name, which may contain anything.
fn usage_from(stat: &str, status: &str, rollup: &str, ticks_per_sec: u64) -> Option<Usage> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    let kib = |text: &str, key: &str| -> Option<u64> {
        let value = text.lines().find_map(|line| line.strip_prefix(key))?;
        value.trim().trim_end_matches("kB").trim().parse().ok()
    };
    Some(Usage {
        cpu: Duration::from_millis(ticks * 1000 / ticks_per_sec.max(1)),
        rss_kib: kib(status, "VmRSS:")?,
        pss_kib: kib(rollup, "Pss:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_read_behind_a_name_with_parentheses() {
        let stat = "42 (a) b) S 1 41 3 4 5 6 7 8 9 10 250 50 0 0";
        let rollup = "0-1 ---p 0 00:00 0 [rollup]\nRss:   13312 kB\nPss:    9000 kB\nPss_Dirty: 1 kB\n";
        let usage = usage_from(stat, "Name:\tx\nVmRSS:\t   13312 kB\n", rollup, 100).expect("usage");
        assert_eq!((usage.cpu, usage.rss_kib, usage.pss_kib), (Duration::from_secs(3), 13312, 9000));
        assert_eq!(group_from(stat), Some(41));
    }
}
