//! One thread of a daemon, stopped at each of its system calls.
//!
//! Everything that a daemon does to the world is a system call: a map of the fence written, an address added, a frame
//! sent, a file synced. A thread that is held before or after its n-th call is held between two effects, in the
//! program that is shipped, and no instant between two effects is left out.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Where a thread stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// The number of the system call.
    pub call: i64,
    /// Before it is done; otherwise after.
    pub before: bool,
}

impl Stop {
    /// Whether the call has an effect outside of the process, or takes something in: not waiting, not memory.
    #[must_use]
    pub const fn has_effect(self) -> bool {
        !matches!(
            self.call,
            libc::SYS_futex
                | libc::SYS_sched_yield
                | libc::SYS_mmap
                | libc::SYS_munmap
                | libc::SYS_mprotect
                | libc::SYS_madvise
                | libc::SYS_brk
                | libc::SYS_restart_syscall
                | libc::SYS_clock_nanosleep
        )
    }

    /// The call's name, of those that a daemon's threads make; a number for others.
    #[must_use]
    pub fn name(self) -> String {
        let name = match self.call {
            libc::SYS_bpf => "bpf",
            libc::SYS_sendto => "sendto",
            libc::SYS_sendmsg => "sendmsg",
            libc::SYS_recvfrom => "recvfrom",
            libc::SYS_recvmsg => "recvmsg",
            libc::SYS_socket => "socket",
            libc::SYS_bind => "bind",
            libc::SYS_close => "close",
            libc::SYS_write => "write",
            libc::SYS_pwrite64 => "pwrite64",
            libc::SYS_pread64 => "pread64",
            libc::SYS_fdatasync => "fdatasync",
            libc::SYS_fsync => "fsync",
            libc::SYS_ftruncate => "ftruncate",
            other => return format!("call {other}"),
        };
        name.to_owned()
    }
}

/// A traced thread. Only the thread that made this may use it, and must let go of it before it waits for the daemon's end.
#[derive(Debug)]
pub struct Tracee {
    thread: Pid,
    held: bool,
    gone: bool,
}

impl Tracee {
    /// Takes hold of the thread `name` of process `pid`. It runs on.
    ///
    /// # Errors
    /// When there is no such thread, or it may not be traced.
    pub fn seize(pid: u32, name: &str) -> Result<Self> {
        let tasks = Path::new("/proc").join(pid.to_string()).join("task");
        let mut found = None;
        for entry in fs::read_dir(&tasks).with_context(|| format!("list {}", tasks.display()))? {
            let entry = entry?;
            if fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim() == name) {
                found = entry.file_name().to_str().and_then(|text| text.parse().ok());
            }
        }
        let thread = Pid::from_raw(found.with_context(|| format!("process {pid} has no thread {name}"))?);
        ptrace::seize(thread, ptrace::Options::PTRACE_O_TRACESYSGOOD).with_context(|| format!("trace {name}"))?;
        ptrace::interrupt(thread).context("interrupt a thread")?;
        Ok(Self { thread, held: false, gone: false })
    }

    /// Whether the thread stopped at a system call, and which. It stays there until [`Self::resume`]. Does not wait.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn poll(&mut self) -> Result<Option<Stop>> {
        if self.held || self.gone {
            return Ok(None);
        }
        match waitpid(self.thread, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
            Ok(WaitStatus::StillAlive) => Ok(None),
            Ok(WaitStatus::PtraceSyscall(_)) => {
                let before = ptrace::syscall_info(self.thread)?.op == libc::PTRACE_SYSCALL_INFO_ENTRY;
                self.held = true;
                Ok(Some(Stop { call: self.call()?, before }))
            }
            Ok(WaitStatus::Stopped(_, signal)) => {
                ptrace::syscall(self.thread, signal)?;
                Ok(None)
            }
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD | Errno::ESRCH) => {
                self.gone = true;
                Ok(None)
            }
            Ok(WaitStatus::PtraceEvent(..) | WaitStatus::Continued(_)) => {
                ptrace::syscall(self.thread, None)?;
                Ok(None)
            }
            Err(error) => Err(error).context("wait for a traced thread"),
        }
    }

    /// Lets a thread go on to its next system call.
    ///
    /// # Errors
    /// When the kernel refuses. A thread that was killed meanwhile is no error.
    pub fn resume(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.held) {
            return Ok(());
        }
        match ptrace::syscall(self.thread, None::<Signal>) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).context("resume a traced thread"),
        }
    }

    /// The thread stands in a system call, whose number is the first word here; "running" when it does not stand. It may
    /// have told that it stops, and not have left its processor yet.
    fn call(&self) -> Result<i64> {
        const ATTEMPTS: usize = 1000;
        let path = format!("/proc/{}/syscall", self.thread);
        let mut text = String::new();
        for _ in 0..ATTEMPTS {
            text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
            if text.trim() != "running" {
                break;
            }
            std::thread::sleep(Duration::from_micros(20));
        }
        let number = text.split_whitespace().next().unwrap_or_default();
        number.parse().with_context(|| format!("{path} says {text:?}"))
    }

    fn wait_for_stop(&self) -> bool {
        matches!(
            waitpid(self.thread, Some(WaitPidFlag::__WALL)),
            Ok(WaitStatus::PtraceSyscall(_) | WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(..))
        )
    }
}

impl Drop for Tracee {
    /// Lets go: the thread runs on as if nothing had been. A thread of a killed process is laid to rest here, for its
    /// process does not end before.
    fn drop(&mut self) {
        if self.gone {
            return;
        }
        let stopped = self.held || (ptrace::interrupt(self.thread).is_ok() && self.wait_for_stop());
        if stopped && ptrace::detach(self.thread, None::<Signal>).is_ok() {
            return;
        }
        // Killed: it is told once more, with its end.
        let _ = waitpid(self.thread, Some(WaitPidFlag::__WALL));
    }
}
