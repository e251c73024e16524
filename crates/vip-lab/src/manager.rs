//! What keeps the VIPs on the hosts of a lab: `vipd`, or keepalived to compare it with. Everything else in this crate
//! treats them alike: the network, the faults, the observer and the judge.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::config::{ClusterPlan, Profile};
use crate::keepalived;
use crate::topology::HostId;

/// A manager of VIPs, with the timing that it is configured for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Manager {
    /// vipd, profile default.
    VipdDefault,
    /// vipd, profile fast.
    VipdFast,
    /// keepalived as its examples show it: VRRPv2, one advertisement a second.
    #[value(name = "keepalived-1s")]
    #[serde(rename = "keepalived-1s")]
    Keepalived1s,
    /// keepalived with VRRPv3, an advertisement every 100 ms, and real-time priority.
    #[value(name = "keepalived-100ms")]
    #[serde(rename = "keepalived-100ms")]
    Keepalived100ms,
    /// The same every 10 ms, the shortest that VRRPv3 can express.
    #[value(name = "keepalived-10ms")]
    #[serde(rename = "keepalived-10ms")]
    Keepalived10ms,
}

impl Manager {
    /// The name on the command line and in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::VipdDefault => "vipd-default",
            Self::VipdFast => "vipd-fast",
            Self::Keepalived1s => "keepalived-1s",
            Self::Keepalived100ms => "keepalived-100ms",
            Self::Keepalived10ms => "keepalived-10ms",
        }
    }

    /// The timing profile; none for what is not `vipd`.
    #[must_use]
    pub const fn profile(self) -> Option<Profile> {
        match self {
            Self::VipdDefault => Some(Profile::Default),
            Self::VipdFast => Some(Profile::Fast),
            Self::Keepalived1s | Self::Keepalived100ms | Self::Keepalived10ms => None,
        }
    }

    /// The time between two advertisements; none for what does not speak VRRP.
    #[must_use]
    pub const fn advertises_every(self) -> Option<Duration> {
        match self {
            Self::VipdDefault | Self::VipdFast => None,
            Self::Keepalived1s => Some(Duration::from_secs(1)),
            Self::Keepalived100ms => Some(Duration::from_millis(100)),
            Self::Keepalived10ms => Some(Duration::from_millis(10)),
        }
    }

    /// The name of the program.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self.profile() {
            Some(_) => "vipd",
            None => "keepalived",
        }
    }

    /// Finds the program: as told, then by `$VIPD_BIN` or `$KEEPALIVED_BIN`, then `vipd` beside this program (tests live
    /// one directory deeper), or keepalived where `make bench` unpacks it, else where Debian installs it.
    ///
    /// # Errors
    /// When there is none.
    pub fn find_program(self, told: Option<&Path>) -> Result<PathBuf> {
        let (variable, hint) = match self.profile() {
            Some(_) => ("VIPD_BIN", "build it (cargo build -p vipd), or say --vipd PATH or VIPD_BIN"),
            None => ("KEEPALIVED_BIN", "`make bench` fetches it; or say --keepalived PATH or KEEPALIVED_BIN"),
        };
        let told = told.map(Path::to_owned).or_else(|| env::var_os(variable).map(PathBuf::from));
        let found = match told {
            Some(path) if path.is_file() => Some(path),
            Some(path) => bail!("no program at {}", path.display()),
            None => self.usual_places().into_iter().find(|path| path.is_file()),
        };
        let path = found.with_context(|| format!("{} not found: {hint}", self.program()))?;
        path.canonicalize().with_context(|| format!("resolve {}", path.display()))
    }

    fn usual_places(self) -> Vec<PathBuf> {
        let exe = env::current_exe().unwrap_or_default();
        let above = exe.ancestors().skip(1);
        match self.profile() {
            Some(_) => above.take(2).map(|dir| dir.join("vipd")).collect(),
            None => {
                let unpacked = above.take(3).map(|dir| dir.join("keepalived/unpacked/usr/sbin/keepalived"));
                unpacked.chain([PathBuf::from("/usr/sbin/keepalived")]).collect()
            }
        }
    }

    /// How to start the manager of one node, and with which configuration.
    #[must_use]
    pub fn launch(self, program: PathBuf, plan: &ClusterPlan, node: HostId) -> Launch {
        let dir = plan.node_dir(node);
        let name = self.program();
        match self.advertises_every() {
            None => {
                let config_path = dir.join("vipd.toml");
                let args = vec!["--config".into(), config_path.clone().into()];
                Launch {
                    name,
                    program,
                    args,
                    library_path: None,
                    pid_files: Vec::new(),
                    config_path,
                    config: plan.node_toml(node),
                }
            }
            Some(interval) => {
                let config_path = dir.join("keepalived.conf");
                Launch {
                    name,
                    args: keepalived::arguments(&config_path, &dir),
                    pid_files: keepalived::pid_files(&dir).into(),
                    library_path: libraries_beside(&program),
                    program,
                    config_path,
                    config: keepalived::configuration(interval, &plan.vips, node),
                }
            }
        }
    }
}

impl From<Profile> for Manager {
    fn from(profile: Profile) -> Self {
        match profile {
            Profile::Default => Self::VipdDefault,
            Profile::Fast => Self::VipdFast,
        }
    }
}

impl fmt::Display for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How the manager of one node is started.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The program's name, for messages and for the log file.
    pub name: &'static str,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Where the dynamic linker looks first, for a package that was unpacked and not installed.
    pub library_path: Option<OsString>,
    /// Files to remove before a start. The process that one of them names was killed, but stays known until init reaps
    /// it; a daemon would take it for running and not start.
    pub pid_files: Vec<PathBuf>,
    /// The configuration file.
    pub config_path: PathBuf,
    /// What is in it.
    pub config: String,
}

/// The directories with libraries that were unpacked together with `<root>/usr/sbin/<program>`; none for a program that
/// is installed.
#[must_use]
pub fn libraries_beside(program: &Path) -> Option<OsString> {
    let root = program.ancestors().nth(3).filter(|root| root.parent().is_some())?;
    let mut dirs = Vec::new();
    for lib in ["usr/lib", "lib"] {
        let entries = fs::read_dir(root.join(lib)).into_iter().flatten().flatten();
        dirs.extend(entries.map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    dirs.sort();
    (!dirs.is_empty()).then(|| env::join_paths(dirs).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_has_one_name_everywhere() {
        for &manager in Manager::value_variants() {
            let on_command_line = manager.to_possible_value().expect("not hidden");
            assert_eq!(on_command_line.get_name(), manager.name());
            let json = serde_json::to_string(&manager).expect("JSON");
            assert_eq!(json, format!("\"{manager}\""));
            assert_eq!(serde_json::from_str::<Manager>(&json).expect("a manager"), manager);
        }
    }

    #[test]
    fn libraries_are_looked_for_beside_what_was_unpacked_only() {
        assert_eq!(libraries_beside(Path::new("/usr/sbin/keepalived")), None);
        let root = tempfile::tempdir().expect("a directory");
        let program = root.path().join("usr/sbin/keepalived");
        assert_eq!(libraries_beside(&program), None);
        let dir = root.path().join("usr/lib/x86_64-linux-gnu");
        fs::create_dir_all(&dir).expect("create");
        assert_eq!(libraries_beside(&program), Some(dir.into()));
    }
}
