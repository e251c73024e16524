//! The pinned maps, as typed state. The layout is that of `bpf/fence.bpf.c`.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Mutex;

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use nix::errno::Errno;
use vip_core::BootInstant;

use super::setup::PinDirectory;
use super::{Counters, FenceError, Gate, LeaseSlot, lock};

/// The compiled `bpf/fence.bpf.c`; `bpf/build.sh --check` proves that it is.
pub(super) const OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/fence.bpf.o");

const VIPS: &str = "vips";
const COUNTERS: &str = "counters";
const LEASES: &str = "leases";

pub(super) const MAP_NAMES: [&str; 3] = [VIPS, COUNTERS, LEASES];

/// Only for an address that is not there yet (`BPF_NOEXIST`).
const CREATE: u64 = 1;
/// Only for an address that is there (`BPF_EXIST`).
const REPLACE: u64 = 2;

/// An IPv4 address is entered as `::ffff:a.b.c.d`.
type Key = [u8; 16];

/// The deadlines.
pub(super) struct Leases {
    /// One handle and one mutex for each slot: a renewal never waits for anything but its own slot, and never for
    /// a change of many addresses.
    slots: [Mutex<Array<MapData, u64>>; LeaseSlot::ALL.len()],
    /// All entries, to end leases of slots that only another version uses.
    all: Mutex<Array<MapData, u64>>,
}

impl Leases {
    pub(super) fn open(pins: &PinDirectory) -> Result<Self, FenceError> {
        let array = || -> Result<_, FenceError> {
            let map = Map::Array(open(pins, LEASES)?);
            let array = Array::try_from(map).map_err(|source| FenceError::map("opening the leases", None, source))?;
            Ok(Mutex::new(array))
        };
        Ok(Self { slots: [array()?, array()?], all: array()? })
    }

    pub(super) fn set(&self, slot: LeaseSlot, deadline: BootInstant) -> Result<(), FenceError> {
        lock(self.slot(slot))
            .set(slot.0, deadline.as_nanos(), 0)
            .map_err(|source| FenceError::map("writing the deadline of a lease", None, source))
    }

    pub(super) fn get(&self, slot: LeaseSlot) -> Result<BootInstant, FenceError> {
        lock(self.slot(slot))
            .get(&slot.0, 0)
            .map(BootInstant::from_nanos)
            .map_err(|source| FenceError::map("reading the deadline of a lease", None, source))
    }

    /// Tries all before it reports the first failure.
    pub(super) fn end_all(&self) -> Result<(), FenceError> {
        // Against a renewal that is under way: whichever comes second wins, as with `set`.
        let mut all = lock(&self.all);
        let results: Vec<_> = (0..all.len()).map(|index| all.set(index, 0, 0)).collect();
        results
            .into_iter()
            .collect::<Result<(), _>>()
            .map_err(|source| FenceError::map("ending every lease", None, source))
    }

    const fn slot(&self, slot: LeaseSlot) -> &Mutex<Array<MapData, u64>> {
        // A slot has one of the values of LeaseSlot::ALL, which count from 1.
        &self.slots[slot.0 as usize - 1]
    }
}

/// The known addresses.
#[derive(Debug)]
pub(super) struct Vips {
    vips: HashMap<MapData, Key, u64>,
    counters: HashMap<MapData, Key, [u64; 3]>,
}

impl Vips {
    pub(super) fn open(pins: &PinDirectory) -> Result<Self, FenceError> {
        let failed = |source| FenceError::map("opening the addresses", None, source);
        Ok(Self {
            vips: HashMap::try_from(Map::HashMap(open(pins, VIPS)?)).map_err(failed)?,
            counters: HashMap::try_from(Map::HashMap(open(pins, COUNTERS)?)).map_err(failed)?,
        })
    }

    pub(super) fn know(&mut self, addresses: &[IpAddr]) -> Result<(), FenceError> {
        addresses.iter().try_for_each(|address| {
            let entered = self.enter(key(*address), 0);
            entered.map_err(|source| FenceError::map("entering an address", Some(*address), source))
        })
    }

    pub(super) fn forget(&mut self, addresses: &[IpAddr]) -> Result<(), FenceError> {
        addresses.iter().try_for_each(|address| {
            let key = key(*address);
            let removed = unless(self.vips.remove(&key), Errno::ENOENT);
            let removed = removed.and_then(|_| unless(self.counters.remove(&key), Errno::ENOENT));
            removed.map(|_| ()).map_err(|source| FenceError::map("removing an address", Some(*address), source))
        })
    }

    /// Tries all before it reports the first failure: for a shut, every address counts.
    pub(super) fn set(&mut self, addresses: &[IpAddr], gate: Gate) -> Result<(), FenceError> {
        let (attempted, slot) = match gate {
            Gate::Shut => ("shutting an address", 0),
            Gate::Held(slot) => ("holding an address", u64::from(slot.0)),
        };
        let mut result = Ok(());
        for address in addresses {
            let key = key(*address);
            let mut done = self.vips.insert(key, slot, REPLACE);
            if is(&done, Errno::ENOENT) {
                done = self.enter(key, slot);
            }
            let done = done.map_err(|source| FenceError::map(attempted, Some(*address), source));
            result = result.and(done);
        }
        result
    }

    pub(super) fn shut_known(&mut self) -> Result<(), FenceError> {
        let known: Vec<IpAddr> = self.known()?.into_iter().map(|(address, _)| address).collect();
        self.set(&known, Gate::Shut)
    }

    pub(super) fn known(&self) -> Result<Vec<(IpAddr, Gate)>, FenceError> {
        self.vips
            .iter()
            .map(|entry| {
                let (key, slot) = entry?;
                Ok((address(key), Gate::of_slot(slot)))
            })
            .collect::<Result<_, _>>()
            .map_err(|source| FenceError::map("listing the known addresses", None, source))
    }

    pub(super) fn counters(&self, address: IpAddr) -> Result<Option<Counters>, FenceError> {
        match self.counters.get(&key(address), 0) {
            Ok([passed, dropped, last_pass]) => {
                Ok(Some(Counters { passed, dropped, last_pass: BootInstant::from_nanos(last_pass) }))
            }
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(FenceError::map("reading the counters", Some(address), source)),
        }
    }

    /// Counters first: they must be there when the first frame is judged. An entry that is there stays.
    fn enter(&mut self, key: Key, slot: u64) -> Result<(), MapError> {
        unless(self.counters.insert(key, [0; 3], CREATE), Errno::EEXIST)?;
        unless(self.vips.insert(key, slot, CREATE), Errno::EEXIST)?;
        Ok(())
    }
}

fn open(pins: &PinDirectory, name: &'static str) -> Result<MapData, FenceError> {
    MapData::from_pin(pins.map(name)).map_err(|source| FenceError::map("opening a pinned map", None, source))
}

fn is(result: &Result<(), MapError>, errno: Errno) -> bool {
    match result {
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => errno == Errno::ENOENT,
        Err(MapError::SyscallError(error)) => error.io_error.raw_os_error() == Some(errno as i32),
        _ => false,
    }
}

/// `Ok(false)` where the kernel answered with this error, which is as good as done.
fn unless(result: Result<(), MapError>, errno: Errno) -> Result<bool, MapError> {
    if is(&result, errno) { Ok(false) } else { result.map(|()| true) }
}

const fn key(address: IpAddr) -> Key {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

fn address(key: Key) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(key)).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_the_way_through_its_key() {
        for text in ["192.0.2.1", "2001:db8::1"] {
            let parsed: IpAddr = text.parse().unwrap();
            assert_eq!(address(key(parsed)), parsed);
        }
        assert_eq!(key("192.0.2.1".parse().unwrap())[10..], [0xff, 0xff, 192, 0, 2, 1]);
    }
}
