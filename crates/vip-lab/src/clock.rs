//! One clock for everything that the lab measures: nanoseconds of CLOCK_MONOTONIC.

use std::ops::{Add, Sub};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};

/// A moment, in nanoseconds of CLOCK_MONOTONIC. Unlike `Instant` it fits into a packet and can be read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Stamp(u64);

impl Stamp {
    /// The present moment.
    #[must_use]
    pub fn now() -> Self {
        Self(nanos_of(ClockId::CLOCK_MONOTONIC))
    }

    /// A moment from its nanoseconds, as carried in a probe.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// A moment from its milliseconds: for tests of the pure parts.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis * 1_000_000)
    }

    /// The nanoseconds behind this moment.
    #[must_use]
    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// Time from `earlier` to this moment; zero when it is in fact later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Signed milliseconds from `origin` to this moment, for reports.
    #[must_use]
    pub fn millis_from(self, origin: Self) -> f64 {
        millis(self.since(origin)) - millis(origin.since(self))
    }

    /// Sleeps until this moment; late by what the scheduler makes of it, never cumulatively.
    pub fn sleep_until(self) {
        let secs = i64::try_from(self.0 / 1_000_000_000).unwrap_or(i64::MAX);
        let nanos = i64::try_from(self.0 % 1_000_000_000).unwrap_or(0);
        let target = TimeSpec::new(secs, nanos);
        let mut woken_early = true;
        while woken_early {
            let flags = ClockNanosleepFlags::TIMER_ABSTIME;
            woken_early = clock_nanosleep(ClockId::CLOCK_MONOTONIC, flags, &target) == Err(nix::Error::EINTR);
        }
    }
}

impl Add<Duration> for Stamp {
    type Output = Self;
    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Stamp {
    type Output = Self;
    fn sub(self, time: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// A duration in milliseconds, to the microsecond: more digits would pretend.
#[must_use]
pub fn millis(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}

/// Translates kernel packet times, which are wall-clock times, into [`Stamp`]s. Made anew for each batch of packets, so
/// that a step of the wall clock spoils at most one batch.
#[derive(Debug, Clone, Copy)]
pub struct WallClock {
    wall_nanos: u64,
    stamp: Stamp,
}

impl WallClock {
    /// Reads both clocks.
    #[must_use]
    pub fn read() -> Self {
        Self { wall_nanos: nanos_of(ClockId::CLOCK_REALTIME), stamp: Stamp::now() }
    }

    /// The stamp of a wall-clock time in the recent past.
    #[must_use]
    pub fn stamp(&self, wall: TimeSpec) -> Stamp {
        let age = self.wall_nanos.saturating_sub(timespec_nanos(wall));
        Stamp(self.stamp.0.saturating_sub(age))
    }
}

fn nanos_of(clock: ClockId) -> u64 {
    clock_gettime(clock).map_or(0, timespec_nanos)
}

fn timespec_nanos(time: TimeSpec) -> u64 {
    let secs = u64::try_from(time.tv_sec()).unwrap_or(0);
    secs * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_keep_their_sign() {
        let (early, late) = (Stamp::from_millis(10), Stamp::from_millis(25));
        assert!((late.millis_from(early) - 15.0).abs() < 1e-9);
        assert!((early.millis_from(late) + 15.0).abs() < 1e-9);
        assert_eq!(early.since(late), Duration::ZERO);
    }
}
