//! A network namespace by name: made, entered, and removed.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

/// Where `ip netns` keeps its names.
pub const NETNS_DIR: &str = "/run/netns";

/// The namespace that the calling thread is in.
const HERE: &str = "/proc/thread-self/ns/net";

/// One named network namespace. Whoever made it deletes it: there is no clean-up on drop, so that the owner of a whole
/// topology can choose the order.
#[derive(Debug, Clone)]
pub struct Netns {
    name: String,
    path: PathBuf,
}

impl Netns {
    /// Makes the namespace `name`.
    ///
    /// # Errors
    /// When `ip netns add` fails: not root, or the name is taken.
    pub fn create(name: &str) -> Result<Self> {
        command_output(Command::new("ip").args(["netns", "add", name]), "")?;
        Ok(Self::existing(name))
    }

    /// The namespace that has this name already.
    #[must_use]
    pub fn existing(name: &str) -> Self {
        Self { name: name.to_owned(), path: Path::new(NETNS_DIR).join(name) }
    }

    /// The namespace that this program is in; it has no name. Entering it changes nothing and needs no right.
    #[must_use]
    pub fn here() -> Self {
        Self { name: String::new(), path: PathBuf::from(HERE) }
    }

    /// The name, as `ip netns` shows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs a command inside and returns what it printed.
    ///
    /// # Errors
    /// When it cannot be started or ends with another status than 0; the message carries its stderr.
    pub fn run<I, S>(&self, args: I) -> Result<String>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.run_with_input(args, "")
    }

    /// As [`Netns::run`], with text for the command's standard input.
    ///
    /// # Errors
    /// As [`Netns::run`].
    pub fn run_with_input<I, S>(&self, args: I, input: &str) -> Result<String>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        command_output(self.command().args(args), input).with_context(|| format!("in namespace {}", self.name))
    }

    /// A command that starts inside: append program and arguments. `nsenter` replaces itself by the program, so the
    /// child's pid is the program's. (`ip netns exec` would also remount /sys and hide the shared bpffs.)
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path.display())).arg("--");
        command
    }

    /// Runs `job` on a thread inside the namespace. Sockets that it opens stay in the namespace wherever they are used.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or what `job` fails with.
    pub fn enter<T: Send>(&self, job: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        if self.path == Path::new(HERE) {
            return job();
        }
        let file = File::open(&self.path).with_context(|| format!("open {}", self.path.display()))?;
        let inside = move || {
            setns(file, CloneFlags::CLONE_NEWNET).context("setns")?;
            job()
        };
        std::thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Writes kernel settings, keys relative to /proc/sys/net.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            for (key, value) in settings {
                let path = Path::new("/proc/sys/net").join(key);
                std::fs::write(&path, value).with_context(|| format!("write {value} to {}", path.display()))?;
            }
            Ok(())
        })
    }

    /// The number by which the kernel and the daemons know the namespace.
    ///
    /// # Errors
    /// When the namespace is gone.
    pub fn inode(&self) -> Result<u64> {
        Ok(std::fs::metadata(&self.path).with_context(|| format!("look at {}", self.path.display()))?.ino())
    }

    /// Removes the name; the namespace itself goes when nothing uses it any more.
    ///
    /// # Errors
    /// When `ip netns del` fails.
    pub fn delete(&self) -> Result<()> {
        command_output(Command::new("ip").args(["netns", "del", &self.name]), "").map(drop)
    }
}

/// Runs a command to its end; its stdout, or an error that names the command and carries its stderr.
pub(crate) fn command_output(command: &mut Command, input: &str) -> Result<String> {
    let shown = format!("{command:?}").replace('"', "");
    let stdin = if input.is_empty() { Stdio::null() } else { Stdio::piped() };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {shown}"))?;
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(input.as_bytes()).with_context(|| format!("write to {shown}"))?;
    }
    let output = child.wait_with_output().with_context(|| format!("wait for {shown}"))?;
    if !output.status.success() {
        bail!("{shown}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
