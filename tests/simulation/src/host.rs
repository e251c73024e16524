//! A host: its clock, and what its kernel does by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use vip_core::{BootInstant, Epoch, Leadership, VipName};

use crate::plan::Nanos;

/// A clock that runs a little fast or slow, and counts while the host sleeps.
#[derive(Clone, Debug)]
pub(crate) struct Clock {
    base_true: Nanos,
    base_local: u64,
    ppm: i64,
    slept: u64,
}

impl Clock {
    /// A clock that shows `local` at `now`.
    #[must_use]
    pub(crate) const fn new(now: Nanos, local: u64, ppm: i64) -> Self {
        Self { base_true: now, base_local: local, ppm, slept: 0 }
    }

    const fn rate(&self) -> u128 {
        (1_000_000 + self.ppm).unsigned_abs() as u128
    }

    /// `CLOCK_BOOTTIME`.
    #[must_use]
    pub(crate) fn boot(&self, now: Nanos) -> BootInstant {
        let passed = u128::from(now - self.base_true) * self.rate() / 1_000_000;
        BootInstant::from_nanos(self.base_local + u64::try_from(passed).unwrap_or(u64::MAX))
    }

    /// `CLOCK_MONOTONIC`, which openraft reads.
    #[must_use]
    pub(crate) fn mono(&self, now: Nanos) -> u64 {
        self.boot(now).as_nanos() - self.slept
    }

    /// When the clock shows `local`, or showed it as far as it has run at its present rate.
    #[must_use]
    pub(crate) fn when(&self, local: BootInstant) -> Nanos {
        let ahead = u128::from(local.as_nanos().saturating_sub(self.base_local));
        let passed = (ahead * 1_000_000).div_ceil(self.rate());
        self.base_true.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX / 2))
    }

    /// From now on it runs at another rate.
    pub(crate) fn set_rate(&mut self, now: Nanos, ppm: i64) {
        self.base_local = self.boot(now).as_nanos();
        self.base_true = now;
        self.ppm = ppm;
    }

    /// The host slept since `since`.
    pub(crate) fn woke(&mut self, since: BootInstant, now: Nanos) {
        self.slept += self.boot(now).as_nanos() - since.as_nanos();
    }
}

/// An entry of the fence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Nothing passes.
    Shut,
    /// The leader's lease decides.
    Held {
        /// For which VIP.
        vip: VipName,
        /// By which assignment.
        epoch: Epoch,
    },
}

/// The kernel of a host, and what it was told. It outlives the daemon.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kernel {
    /// The fence's deadline of the leader's lease.
    pub(crate) deadline: BootInstant,
    /// Whose lease that is; the kernel does not know, the oracle does.
    pub(crate) lease_of: Option<Leadership>,
    /// When the newest deadline passed in true time, where the clock cannot tell any more.
    pub(crate) lapsed: Option<Nanos>,
    /// The fence.
    pub(crate) slots: BTreeMap<IpAddr, Slot>,
    /// The addresses and their interfaces.
    pub(crate) addresses: BTreeMap<IpAddr, String>,
    /// The interfaces, and whether they have a carrier.
    pub(crate) links: BTreeMap<String, bool>,
    /// Whether operations fail, so many in a hundred.
    pub(crate) failing: u64,
    /// Fence entries that could not be shut.
    pub(crate) stuck: BTreeSet<IpAddr>,
    /// Epochs that were opened and shut again by the present process.
    pub(crate) released: BTreeSet<(VipName, Epoch)>,
    /// Taken out: the fence compares no clock.
    pub(crate) no_clock: bool,
}

impl Kernel {
    /// A kernel that has just booted.
    #[must_use]
    pub(crate) fn booted(links: &[&str], no_clock: bool) -> Self {
        let links = links.iter().map(|name| ((*name).to_owned(), true)).collect();
        Self { links, no_clock, ..Self::default() }
    }

    /// Whether it answers for `address` at `now`.
    #[must_use]
    pub(crate) fn answers(&self, address: IpAddr, now: BootInstant) -> bool {
        let carried = self.addresses.get(&address).is_some_and(|on| self.links.get(on).copied().unwrap_or(false));
        carried
            && match self.slots.get(&address) {
                // No VIP as far as the fence knows: everything passes.
                None => true,
                Some(Slot::Shut) => false,
                Some(Slot::Held { .. }) => self.no_clock || now < self.deadline,
            }
    }
}
