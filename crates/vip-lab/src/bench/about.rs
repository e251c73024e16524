//! What a result depends on: the machine, the versions, the date.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::BenchPlan;
use crate::manager::{Manager, libraries_beside};

/// Where and with what a benchmark ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// The day, as 2026-01-31, UTC.
    pub date: String,
    /// The processor's name.
    pub processor: String,
    /// How many processors the programs could use.
    pub processors: usize,
    /// Memory in GiB.
    pub memory_gib: u64,
    /// The kernel's release.
    pub kernel: String,
    /// The distribution.
    pub distribution: String,
    /// Each program with its version.
    pub versions: Vec<String>,
    /// How much of the processors' time the host of this virtual machine gave to others meanwhile.
    #[serde(default)]
    pub stolen_percent: Option<f64>,
    /// Trials of each fault.
    pub trials: u32,
    /// Trials of each fault with many VIPs.
    pub many_trials: u32,
}

impl About {
    /// Looks at this machine and at the programs that a plan uses.
    ///
    /// # Errors
    /// When a program is not found or does not run.
    pub fn of(plan: &BenchPlan) -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let mut versions = Vec::new();
        for is_vipd in [true, false] {
            if let Some(&manager) = plan.managers.iter().find(|manager| manager.profile().is_some() == is_vipd) {
                let told = if is_vipd { &plan.vipd } else { &plan.keepalived };
                versions.push(version_of(manager, &manager.find_program(told.as_deref())?)?);
            }
        }
        Ok(Self {
            date: output(Command::new("date").args(["-u", "+%F"])).unwrap_or_default(),
            processor: value(&read("/proc/cpuinfo"), "model name", ':').unwrap_or_else(|| "unknown".to_owned()),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: memory_gib(&read("/proc/meminfo")).unwrap_or_default(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            distribution: value(&read("/etc/os-release"), "PRETTY_NAME", '=').unwrap_or_default(),
            versions,
            stolen_percent: None,
            trials: plan.trials,
            many_trials: plan.many_trials,
        })
    }
}

/// The processors' time since the machine started, in all and stolen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProcessorTime {
    all: u64,
    stolen: u64,
}

impl ProcessorTime {
    /// As of now; none where the kernel does not say.
    pub(super) fn now() -> Option<Self> {
        Self::of(&fs::read_to_string("/proc/stat").ok()?)
    }

    /// Of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal; guests are in the first two already.
    fn of(stat: &str) -> Option<Self> {
        let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let times: Vec<u64> = line.split_whitespace().take(8).map_while(|time| time.parse().ok()).collect();
        Some(Self { all: times.iter().sum(), stolen: *times.get(7)? })
    }

    /// How much was stolen from then to `later`.
    pub(super) fn stolen_percent(self, later: Self) -> Option<f64> {
        let all = later.all.checked_sub(self.all).filter(|all| *all > 0)?;
        Some(later.stolen.saturating_sub(self.stolen) as f64 / all as f64 * 100.0)
    }
}

/// What the program says of itself, and for vipd the commit that lies around it.
fn version_of(manager: Manager, program: &Path) -> Result<String> {
    let mut command = Command::new(program);
    if let Some(libraries) = libraries_beside(program) {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    let said = output(command.arg("--version")).with_context(|| format!("{} --version", program.display()))?;
    let version = said.lines().next().unwrap_or_default().trim().to_owned();
    let dir = program.parent().unwrap_or(program);
    let describe = ["describe", "--always", "--dirty=, with changes", "--exclude=*"];
    let commit = manager.profile().and_then(|_| output(Command::new("git").arg("-C").arg(dir).args(describe)).ok());
    Ok(match commit {
        Some(commit) => format!("{version} (commit {commit})"),
        None => version,
    })
}

/// What a command printed, on standard output or else on standard error.
fn output(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    anyhow::ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    let printed = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    Ok(String::from_utf8_lossy(&printed).trim().to_owned())
}

/// The value of the first line `key <separator> value`, without quotes.
fn value(text: &str, key: &str, separator: char) -> Option<String> {
    let mut pairs = text.lines().filter_map(|line| line.split_once(separator));
    let (_, value) = pairs.find(|(found, _)| found.trim() == key)?;
    Some(value.trim().trim_matches('"').to_owned())
}

/// The kernel takes a part for itself before it counts, so half a GiB more is nearer to what the machine has.
fn memory_gib(meminfo: &str) -> Option<u64> {
    let kib: u64 = value(meminfo, "MemTotal", ':')?.trim_end_matches("kB").trim().parse().ok()?;
    Some((kib + 512 * 1024) / (1024 * 1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_system_are_read() {
        let cpuinfo = "processor\t: 0\nmodel name\t: Some CPU @ 2.80GHz\nflags\t\t: a b\n";
        assert_eq!(value(cpuinfo, "model name", ':').as_deref(), Some("Some CPU @ 2.80GHz"));
        let release = "NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n";
        assert_eq!(value(release, "PRETTY_NAME", '=').as_deref(), Some("Debian GNU/Linux 12 (bookworm)"));
        assert_eq!(value(release, "VERSION", '='), None);
        assert_eq!(memory_gib("MemTotal:       24639612 kB\nMemFree: 1 kB\n"), Some(23));
    }

    #[test]
    fn stolen_time_is_a_share_of_all() {
        let then = ProcessorTime::of("cpu  10 0 10 70 0 0 0 10 5 0\ncpu0 1 2\n").expect("times");
        let now = ProcessorTime::of("cpu  60 0 60 170 0 0 0 10 5 0\n").expect("times");
        assert_eq!(then.stolen_percent(now), Some(0.0));
        let now = ProcessorTime::of("cpu  10 0 10 130 0 0 0 50 5 0\n").expect("times");
        assert_eq!(then.stolen_percent(now), Some(40.0));
        assert_eq!(then.stolen_percent(then), None);
        assert_eq!(ProcessorTime::of("intr 1\n"), None);
    }

    #[test]
    fn a_version_may_come_on_either_stream() {
        assert_eq!(output(Command::new("sh").args(["-c", "echo a"])).expect("output"), "a");
        assert_eq!(output(Command::new("sh").args(["-c", "echo b >&2"])).expect("output"), "b");
        assert!(output(Command::new("sh").args(["-c", "exit 3"])).is_err());
    }
}
