//! The fence as a BPF program: a tc classifier that compares `CLOCK_BOOTTIME` with an absolute deadline.
//!
//! State is in three maps, pinned below the BPF filesystem in `vipd/<network namespace>-v1/`: which addresses are
//! known and which lease each is held under, their counters, and one deadline for each lease. Renewing a lease
//! is one write, however many addresses are held under it.
//!
//! What this host only carries passes, also while the address is shut, so that its containers and virtual machines
//! reach the owner through it: on the way in, frames that it bridges, or routes on through another interface; on
//! the way out, frames that came in from outside and spoke for the address already then. Never what it makes
//! itself, and never what its NAT gives the address to. A request that it would take itself is dropped as well,
//! although the answer could not leave: served and not answered means served twice. What stays out although it
//! is carried, in doubt, is listed at the head of `bpf/fence.bpf.c`.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Mutex;

use aya::programs::{ProgramError, ProgramFd, SchedClassifier};
use vip_core::BootInstant;

use super::maps::{self, Leases, Vips};
use super::setup::{self, PinDirectory};
use super::tc::{self, Attached, Direction};
use super::{Backend, Counters, FenceError, Gate, LeaseSlot, lock};
use crate::link::ethernet_interfaces;
use crate::netlink::Netlink;

/// The programs that go on the two directions of an interface.
#[derive(Debug)]
struct Programs {
    egress: Program,
    ingress: Program,
}

#[derive(Debug)]
pub(super) struct Program {
    pub(super) fd: ProgramFd,
    /// The kernel's id, by which a filter shows which program it runs.
    id: u32,
}

/// Programs, maps and filters of this network namespace.
pub(super) struct BpfFence {
    vips: Mutex<Vips>,
    leases: Leases,
    programs: Programs,
    netlink: Mutex<Netlink>,
    pins: PinDirectory,
}

impl fmt::Debug for BpfFence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BpfFence").field("pins", &self.pins).finish_non_exhaustive()
    }
}

impl BpfFence {
    /// Mounts the BPF filesystem at `pin_root` where it is not mounted. Takes some 100 ms: for start-up, not for a
    /// takeover.
    ///
    /// A predecessor's filters follow its pinned maps. Should those be lost (the filesystem was unmounted), its
    /// filters run on with the deadlines they have until [`Backend::attach`] replaces them.
    pub(super) fn open(pin_root: &Path) -> Result<Self, FenceError> {
        setup::mount_bpf(pin_root)?;
        let pins = PinDirectory::of_this_namespace(pin_root)?;
        pins.create()?;

        let mut object = aya::EbpfLoader::new()
            // Nothing in the object is relocated against the kernel's types, whose parsed form would stay in memory.
            .btf(None)
            .default_map_pin_directory(pins.path())
            .load(maps::OBJECT)
            .map_err(FenceError::load)?;
        let leases = Leases::open(&pins)?;
        let mut vips = Vips::open(&pins)?;
        // The order is the promise: with all deadlines at zero nothing passes, whatever the entries still say.
        leases.end_all()?;
        vips.shut_known()?;

        let programs = Programs {
            egress: load_program(&mut object, Direction::Egress)?,
            ingress: load_program(&mut object, Direction::Ingress)?,
        };
        let netlink = Netlink::open().map_err(|source| FenceError::Netlink { source })?;
        Ok(Self { vips: Mutex::new(vips), leases, programs, netlink: Mutex::new(netlink), pins })
    }

    const fn program(&self, direction: Direction) -> &Program {
        match direction {
            Direction::Egress => &self.programs.egress,
            Direction::Ingress => &self.programs.ingress,
        }
    }
}

/// Until when the leader's lease runs that an earlier process left. An error where there is none.
pub(super) fn leftover_deadline(pin_root: &Path) -> Result<BootInstant, FenceError> {
    Leases::open(&PinDirectory::of_this_namespace(pin_root)?)?.get(LeaseSlot::LEADER)
}

/// Ends the leases that an earlier process left, and says which addresses it knew. An error where there are none.
pub(super) fn shut_leftover(pin_root: &Path) -> Result<Vec<IpAddr>, FenceError> {
    let pins = PinDirectory::of_this_namespace(pin_root)?;
    Leases::open(&pins)?.end_all()?;
    Ok(Vips::open(&pins)?.known()?.into_iter().map(|(address, _)| address).collect())
}

/// Takes our filters off all Ethernet interfaces and removes the pinned maps; says how many filters there were, and
/// whether there were maps. Needs no BPF.
pub(super) fn remove_leftover(pin_root: &Path) -> Result<(usize, Option<PinDirectory>), FenceError> {
    let mut netlink = Netlink::open().map_err(|source| FenceError::Netlink { source })?;
    let mut filters = 0;
    for interface in ethernet_interfaces()? {
        filters += detach(&mut netlink, interface.index)?;
    }
    let pins = PinDirectory::of_this_namespace(pin_root)?;
    Ok((filters, pins.remove()?.then_some(pins)))
}

impl Backend for BpfFence {
    fn attach(&self, index: u32) -> Result<(), FenceError> {
        let mut netlink = lock(&self.netlink);
        tc::ensure_clsact(&mut netlink, index)?;
        for direction in Direction::BOTH {
            tc::put_filter(&mut netlink, index, direction, self.program(direction))?;
        }
        Ok(())
    }

    fn attached(&self, index: u32) -> Result<bool, FenceError> {
        let mut netlink = lock(&self.netlink);
        for direction in Direction::BOTH {
            let filters = tc::filters(&mut netlink, index, direction)?;
            let id = Some(self.program(direction).id);
            if !filters.iter().any(|filter| filter.is_fence() && filter.program_id == id) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn detach(&self, index: u32) -> Result<(), FenceError> {
        detach(&mut lock(&self.netlink), index).map(|_| ())
    }

    fn know(&self, addresses: &[IpAddr]) -> Result<(), FenceError> {
        lock(&self.vips).know(addresses)
    }

    fn forget(&self, addresses: &[IpAddr]) -> Result<(), FenceError> {
        lock(&self.vips).forget(addresses)
    }

    fn known(&self) -> Result<Vec<(IpAddr, Gate)>, FenceError> {
        lock(&self.vips).known()
    }

    fn set(&self, addresses: &[IpAddr], gate: Gate) -> Result<(), FenceError> {
        lock(&self.vips).set(addresses, gate)
    }

    fn shut_all(&self) -> Result<(), FenceError> {
        let ended = self.leases.end_all();
        let shut = lock(&self.vips).shut_known();
        ended.and(shut)
    }

    fn arm(&self, slot: LeaseSlot, deadline: BootInstant) -> Result<(), FenceError> {
        self.leases.set(slot, deadline)
    }

    fn disarm(&self, slot: LeaseSlot) -> Result<(), FenceError> {
        self.leases.set(slot, BootInstant::ZERO)
    }

    fn deadline(&self, slot: LeaseSlot) -> Result<BootInstant, FenceError> {
        self.leases.get(slot)
    }

    fn counters(&self, address: IpAddr) -> Result<Option<Counters>, FenceError> {
        lock(&self.vips).counters(address)
    }
}

/// Deletes our filters on both directions; returns how many there were.
fn detach(netlink: &mut Netlink, index: u32) -> Result<usize, FenceError> {
    let mut count = 0;
    for direction in Direction::BOTH {
        if tc::filters(netlink, index, direction)?.iter().any(Attached::is_fence) {
            tc::delete_filter(netlink, index, direction)?;
            count += 1;
        }
    }
    Ok(count)
}

fn load_program(object: &mut aya::Ebpf, direction: Direction) -> Result<Program, FenceError> {
    let name = direction.program_name();
    let missing = || FenceError::Object { name };
    let program: &mut SchedClassifier =
        object.program_mut(name).ok_or_else(missing)?.try_into().map_err(|_| missing())?;
    program.load().map_err(|error| FenceError::load(error.into()))?;
    let id = program.info().map_err(|error| FenceError::load(error.into()))?.id();
    let fd = program.fd().map_err(|error| FenceError::load(error.into()))?;
    let fd = fd.try_clone().map_err(|error| FenceError::load(ProgramError::IOError(error).into()))?;
    Ok(Program { fd, id })
}
