//! Removes what runs left behind that ended without tearing down: killed, or with a second Ctrl-C.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::{NETNS_DIR, Netns, command_output};

/// What was removed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Cleaned {
    /// Daemons that still ran in namespaces of dead runs.
    pub processes: Vec<i32>,
    /// Namespaces.
    pub namespaces: Vec<String>,
    /// Directories.
    pub directories: Vec<String>,
}

/// Removes processes, namespaces and directories of runs whose process is gone.
///
/// # Errors
/// When `ip` fails.
pub fn clean() -> Result<Cleaned> {
    let mut cleaned = Cleaned::default();
    for name in names_of_dead_runs(Path::new(NETNS_DIR)) {
        for pid in pids_in(&name)? {
            if kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok() {
                cleaned.processes.push(pid);
            }
        }
        let netns = Netns::existing(&name);
        remove_pins(&netns);
        netns.delete()?;
        cleaned.namespaces.push(name);
    }
    let tmp = std::env::temp_dir();
    for name in names_of_dead_runs(&tmp) {
        let path = tmp.join(&name);
        let configured = ["vipd.toml", "keepalived.conf"].iter().any(|file| path.join("n1").join(file).is_file());
        if configured && fs::remove_dir_all(&path).is_ok() {
            cleaned.directories.push(name);
        }
    }
    Ok(cleaned)
}

/// Removes the maps that a daemon pinned for this namespace: they outlive a daemon that was killed, by design, but are of
/// no use to anybody once the namespace is gone. Their directory begins with the namespace's number.
pub fn remove_pins(netns: &Netns) {
    const PIN_DIR: &str = "/sys/fs/bpf/vipd";
    let (Ok(inode), Ok(entries)) = (netns.inode(), fs::read_dir(PIN_DIR)) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(&format!("{inode}-")) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn pids_in(netns: &str) -> Result<Vec<i32>> {
    let listed = command_output(Command::new("ip").args(["netns", "pids", netns]), "")?;
    Ok(listed.split_whitespace().filter_map(|pid| pid.parse().ok()).collect())
}

fn names_of_dead_runs(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| run_of(name).is_some_and(|pid| !Path::new("/proc").join(pid).exists())).collect()
}

/// The pid in a name of the lab: `vl1234x0-n1` is of the run with pid 1234.
fn run_of(name: &str) -> Option<&str> {
    let (pid, rest) = name.strip_prefix("vl")?.split_once('x')?;
    let (count, _) = rest.split_once('-')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(pid) && digits(count)).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::run_of;

    #[test]
    fn only_names_of_the_lab_are_taken() {
        assert_eq!(run_of("vl1234x0-n1"), Some("1234"));
        for other in ["vlan10", "vl12", "vl12x-n1", "vlx1-n1", "vl1234-n1", "docker0"] {
            assert_eq!(run_of(other), None, "{other}");
        }
    }
}
