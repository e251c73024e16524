//! `CLOCK_BOOTTIME`: the clock of every lease, here and in the fence.

use nix::time::{ClockId, clock_gettime};
use vip_core::BootInstant;

/// This instant of `CLOCK_BOOTTIME`: monotonic, suspended time included, never stepped.
///
/// # Panics
///
/// Never on a kernel since 2.6.39, which brought the clock.
#[must_use]
pub fn boot_now() -> BootInstant {
    BootInstant::from_nanos(nanos(ClockId::CLOCK_BOOTTIME))
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
}
