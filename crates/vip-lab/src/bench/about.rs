//! What a result depends on: the machine, the versions, the date.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::BenchPlan;
use crate::manager::{Manager, libraries_beside};

/// Where and with what a benchmark ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
            trials: plan.trials,
            many_trials: plan.many_trials,
        })
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
    fn a_version_may_come_on_either_stream() {
        assert_eq!(output(Command::new("sh").args(["-c", "echo a"])).expect("output"), "a");
        assert_eq!(output(Command::new("sh").args(["-c", "echo b >&2"])).expect("output"), "b");
        assert!(output(Command::new("sh").args(["-c", "exit 3"])).is_err());
    }
}
