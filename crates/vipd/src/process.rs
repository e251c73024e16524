//! What the process asks of the system before it starts its threads: a place ahead of others, and memory that stays.

use rustix::mm::{MlockAllFlags, mlockall};
use thread_priority::unix::{
    NormalThreadSchedulePolicy, RealtimeThreadSchedulePolicy, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};
use thread_priority::{ThreadPriority, ThreadPriorityValue};

/// Lets every signal in: a supervisor that blocks some for itself hands that down, and SIGTERM must end the daemon.
pub(crate) fn unblock_signals() -> Result<(), String> {
    nix::sys::signal::SigSet::empty().thread_set_mask().map_err(|error| format!("cannot unblock signals: {error}"))
}

/// Puts this thread, and with it every thread that it starts, under `SCHED_FIFO` with `priority`. 0 leaves it.
///
/// Help, never the guarantee: a node that is starved all the same loses its VIPs, and no more.
pub(crate) fn realtime(priority: u8) -> Result<(), String> {
    if priority == 0 {
        return Ok(());
    }
    let value = ThreadPriorityValue::try_from(priority)
        .map_err(|why| format!("real-time priority {priority} is none: {why}"))?;
    set_thread_priority_and_policy(
        thread_native_id(),
        ThreadPriority::Crossplatform(value),
        ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo),
    )
    .map_err(|error| {
        format!("real-time priority {priority} was refused ({error}); give CAP_SYS_NICE or set process.realtime_priority = 0")
    })
}

/// Puts this thread back among all others, for what strangers may keep busy.
pub(crate) fn ordinary() {
    let policy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Other);
    // What the library makes a niceness of 0: it counts from 0, which is 19, to 99, which is -20.
    if let Ok(value) = ThreadPriorityValue::try_from(48) {
        // Of one who was made nicer at the start the policy is set all the same, before this is refused.
        let _ = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Crossplatform(value), policy);
    }
}

/// Keeps every page that is used once in memory, so that no lease waits for a disk.
pub(crate) fn lock_memory() -> Result<(), String> {
    // On fault only: the unused parts of the threads' stacks need not be there.
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT).map_err(|error| {
        format!("locking memory was refused ({error}); give CAP_IPC_LOCK or set process.lock_memory = false")
    })
}

/// Ends the process when a thread panics that the VIPs rest on: the kernel's deadline shuts the fence, others take over,
/// and a supervisor starts a daemon that is whole. A node without one of them would look alive and hold nothing.
pub(crate) fn end_with_vital_threads() {
    const VITAL: [&str; 2] = ["vipd-lease", "vipd-agent"];
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        if std::thread::current().name().is_some_and(|name| VITAL.contains(&name)) {
            std::process::exit(1);
        }
    }));
}
