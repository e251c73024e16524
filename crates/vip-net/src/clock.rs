//! `CLOCK_BOOTTIME`: the clock of every lease, here and in the fence.
//!
//! A process in a time namespace (`time_namespaces(7)`) sees that clock with an offset; a program in the kernel sees it
//! without. Deadlines pass from one to the other, so the offset is taken off here.

use std::sync::OnceLock;

use nix::time::{ClockId, clock_gettime};
use vip_core::BootInstant;

/// This instant of `CLOCK_BOOTTIME` as the kernel has it, in whichever time namespace this process is: monotonic,
/// suspended time included, never stepped.
///
/// # Panics
///
/// Never on a kernel since 2.6.39, which brought the clock.
#[must_use]
pub fn boot_now() -> BootInstant {
    static OFFSET: OnceLock<i64> = OnceLock::new();
    // It cannot change any more once a process is in the namespace.
    let offset = *OFFSET.get_or_init(|| {
        // Without the file the kernel has no time namespaces.
        std::fs::read_to_string("/proc/self/timens_offsets").map_or(0, |text| boot_offset(&text))
    });
    BootInstant::from_nanos(nanos(ClockId::CLOCK_BOOTTIME).saturating_add_signed(-offset))
}

/// What the namespace adds to the clock, in nanoseconds: the line `boottime <seconds> <nanoseconds>`.
fn boot_offset(text: &str) -> i64 {
    let words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let offset = words.into_iter().find_map(|words| match words.as_slice() {
        ["boottime", seconds, nanos] => Some((seconds.parse::<i64>().ok()?, nanos.parse::<i64>().ok()?)),
        _ => None,
    });
    offset.map_or(0, |(seconds, nanos)| seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

fn nanos(clock: ClockId) -> u64 {
    let Ok(now) = clock_gettime(clock) else {
        // Without this clock no lease can be kept; there is nothing to go on with.
        panic!("clock_gettime failed for clock {clock:?}: vipd needs Linux 2.6.39 or later");
    };
    let (seconds, rest) = (now.tv_sec().unsigned_abs(), now.tv_nsec().unsigned_abs());
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_time_runs_forward_and_is_not_behind_monotonic_time() {
        let first = boot_now();
        let second = boot_now();
        assert!(second >= first);
        assert!(second.as_nanos() >= nanos(ClockId::CLOCK_MONOTONIC) - 1_000_000_000, "suspended time counts");
    }

    #[test]
    fn the_offset_of_a_time_namespace_is_read() {
        assert_eq!(boot_offset("monotonic           0         0\nboottime         3600   500\n"), 3_600_000_000_500);
        // Nanoseconds count forward also from a negative second.
        assert_eq!(boot_offset("monotonic  -5 0\nboottime  -2  500000000\n"), -1_500_000_000);
        assert_eq!(boot_offset(""), 0);
    }
}
