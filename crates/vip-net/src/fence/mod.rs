//! The fence: a kernel program that keeps this host silent for an address whose lease is not running.
//!
//! It compares `CLOCK_BOOTTIME` with an absolute deadline for every frame of a known address, on both directions
//! of every interface it is attached to, so it closes on time whether or not this process runs, and a deadline
//! that is written too late opens nothing. Programs and maps stay in the kernel when the process ends: what is
//! held stays open until its lease runs out, and then it is shut.
//!
//! What this host only carries passes, also while the address is shut, so that its containers and virtual machines
//! reach the owner through it: on the way in, frames that it bridges, or routes on through another interface; on
//! the way out, frames that came in from outside and spoke for the address already then. Never what it makes
//! itself, and never what its NAT gives the address to. A request that it would take itself is dropped as well,
//! although the answer could not leave: served and not answered means served twice. What stays out although it
//! is carried, in doubt, is listed at the head of `bpf/fence.bpf.c`.
//!
//! State is in three maps, pinned below the BPF filesystem in `vipd/<network namespace>-v1/`: which addresses are
//! known and which lease each is held under, their counters, and one deadline for each lease. Renewing a lease
//! is one write, however many addresses are held under it.
//!
//! What it cannot stop: a process that sends with `PACKET_QDISC_BYPASS`; a tcx program (Linux 6.6) of somebody
//! else that ends the classification before ours; frames already queued behind it; local processes that reach the
//! address over the loopback interface.

mod error;
mod maps;
mod setup;
mod tc;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::programs::{ProgramError, ProgramFd, SchedClassifier};
use vip_core::BootInstant;

pub use self::error::FenceError;
use self::maps::{Leases, Vips};
use self::setup::{Lock, PinDirectory};
use self::tc::{Attached, Direction};
pub(crate) use self::tc::{may_remove_fence, removes_clsact};
use crate::link::ethernet_interfaces;
use crate::netlink::Netlink;

/// Where the BPF filesystem is on nearly every host.
pub const DEFAULT_PIN_ROOT: &str = "/sys/fs/bpf";

/// How many addresses the fence can know.
pub const MAX_ADDRESSES: usize = 16_384;

/// Which lease an address is held under. Each has a deadline of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseSlot(u32);

impl LeaseSlot {
    /// The quorum lease of this node as the leader.
    pub const LEADER: Self = Self(1);
    /// The lease that a leader grants to this node.
    pub const NODE: Self = Self(2);

    const ALL: [Self; 2] = [Self::LEADER, Self::NODE];
}

/// What the fence did with the frames of one address since it became known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames let through, not counting those that were only carried.
    pub passed: u64,
    /// Frames stopped.
    pub dropped: u64,
    /// When the newest frame was let through; [`BootInstant::ZERO`] for never.
    pub last_pass: BootInstant,
}

/// How one address stands in the fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Known; nothing of this host passes.
    Shut,
    /// Passes while this lease runs.
    Held(LeaseSlot),
}

/// What [`Fence::detach_all`] took away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Filters, counted for each interface and direction.
    pub filters: usize,
    /// The directory whose pinned maps were removed, where there was one.
    pub pins: Option<PathBuf>,
}

/// The programs that go on the two directions of an interface.
#[derive(Debug)]
struct Programs {
    egress: Program,
    ingress: Program,
}

#[derive(Debug)]
struct Program {
    fd: ProgramFd,
    /// The kernel's id, by which a filter shows which program it runs.
    id: u32,
}

/// The fence of this network namespace. At most one exists at a time, across all processes.
///
/// Dropping it detaches nothing: the filters stay, and close when the leases run out.
pub struct Fence {
    vips: Mutex<Vips>,
    leases: Leases,
    programs: Programs,
    netlink: Mutex<Netlink>,
    pins: PinDirectory,
    _lock: Lock,
}

impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fence").field("pins", &self.pins).finish_non_exhaustive()
    }
}

impl Fence {
    /// Takes over the fence of this network namespace, or makes it; afterwards every lease has ended and every
    /// known address is shut, on every interface where a filter of a predecessor is still attached.
    ///
    /// Mounts the BPF filesystem at `pin_root` (usually [`DEFAULT_PIN_ROOT`]) where it is not mounted. Takes some
    /// 100 ms: for start-up, not for a takeover.
    ///
    /// A predecessor's filters follow its pinned maps. Should those be lost (the filesystem was unmounted), its
    /// filters run on with the deadlines they have until [`Self::attach`] replaces them.
    ///
    /// # Errors
    ///
    /// [`FenceError::InUse`] when another process has the fence of this network namespace, and otherwise what
    /// could not be set up, with the kernel's reason.
    pub fn open(pin_root: &Path) -> Result<Self, FenceError> {
        let lock = Lock::take()?;
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
        Ok(Self { vips: Mutex::new(vips), leases, programs, netlink: Mutex::new(netlink), pins, _lock: lock })
    }

    /// Puts our filters on both directions of the interface, in place of those of a predecessor. A filter is
    /// replaced in one step: there is no instant without one. Doing it again changes nothing.
    ///
    /// # Errors
    ///
    /// [`FenceError::Attach`] with the step that failed.
    pub fn attach(&self, index: u32) -> Result<(), FenceError> {
        let mut netlink = lock(&self.netlink);
        tc::ensure_clsact(&mut netlink, index)?;
        for direction in Direction::BOTH {
            tc::put_filter(&mut netlink, index, direction, self.program(direction))?;
        }
        Ok(())
    }

    /// Whether both filters are on the interface and run the programs of this very fence. False for an interface
    /// that does not exist.
    ///
    /// # Errors
    ///
    /// [`FenceError::Inspect`] when the kernel cannot be asked.
    pub fn attached(&self, index: u32) -> Result<bool, FenceError> {
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

    /// Takes our filters off one interface, which then is not fenced any more. Filters of others stay.
    ///
    /// # Errors
    ///
    /// [`FenceError::Inspect`] or [`FenceError::Detach`].
    pub fn detach(&self, index: u32) -> Result<(), FenceError> {
        detach(&mut lock(&self.netlink), index).map(|_| ())
    }

    /// Removes the fence of this network namespace: filters on all Ethernet interfaces, and pinned maps.
    ///
    /// Afterwards nothing keeps this host silent, so the addresses must be gone first.
    ///
    /// # Errors
    ///
    /// [`FenceError::InUse`] while a process has the fence, and otherwise what could not be removed.
    pub fn detach_all(pin_root: &Path) -> Result<Removed, FenceError> {
        let _lock = Lock::take()?;
        let mut netlink = Netlink::open().map_err(|source| FenceError::Netlink { source })?;
        let mut removed = Removed::default();
        for interface in ethernet_interfaces()? {
            removed.filters += detach(&mut netlink, interface.index)?;
        }
        let pins = PinDirectory::of_this_namespace(pin_root)?;
        if pins.remove()? {
            removed.pins = Some(pins.path().to_owned());
        }
        Ok(removed)
    }

    /// Enters addresses as shut. Those that are known already stay as they are, held ones too.
    ///
    /// # Errors
    ///
    /// [`FenceError::Map`] for the first address that could not be entered; the ones before it are.
    pub fn know(&self, addresses: &[IpAddr]) -> Result<(), FenceError> {
        lock(&self.vips).know(addresses)
    }

    /// Removes addresses, which then pass always. For addresses that are not ours any more, once they are gone
    /// from the interfaces.
    ///
    /// # Errors
    ///
    /// [`FenceError::Map`] for the first address that could not be removed.
    pub fn forget(&self, addresses: &[IpAddr]) -> Result<(), FenceError> {
        lock(&self.vips).forget(addresses)
    }

    /// Every known address with how it stands.
    ///
    /// # Errors
    ///
    /// [`FenceError::Map`].
    pub fn known(&self) -> Result<Vec<(IpAddr, Gate)>, FenceError> {
        lock(&self.vips).known()
    }

    /// Lets addresses pass while the lease runs. An address that is not known becomes known.
    ///
    /// # Errors
    ///
    /// [`FenceError::Map`] for the first address that could not be entered; the ones before it are held.
    pub fn hold(&self, addresses: &[IpAddr], slot: LeaseSlot) -> Result<(), FenceError> {
        lock(&self.vips).set(addresses, Gate::Held(slot))
    }

    /// Stops addresses, whatever their lease. An address that is not known becomes known.
    ///
    /// # Errors
    ///
    /// [`FenceError::Map`], after all were tried: one that fails keeps none of the others open.
    pub fn shut(&self, addresses: &[IpAddr]) -> Result<(), FenceError> {
        lock(&self.vips).set(addresses, Gate::Shut)
    }

    /// Ends every lease, then shuts every known address.
    ///
    /// # Errors
    ///
    /// [`FenceError::Map`], after all was tried.
    pub fn shut_all(&self) -> Result<(), FenceError> {
        let ended = self.leases.end_all();
        let shut = lock(&self.vips).shut_known();
        ended.and(shut)
    }

    /// Sets the deadline of a lease: one system call and no allocation. It waits for no other call but one on the
    /// same slot, which is as short.
    ///
    /// # Errors
    ///
    /// [`FenceError::Map`]; the former deadline then still stands.
    pub fn arm(&self, slot: LeaseSlot, deadline: BootInstant) -> Result<(), FenceError> {
        self.leases.set(slot, deadline)
    }

    /// Ends a lease now: everything that is held under it is silent from here on.
    ///
    /// # Errors
    ///
    /// [`FenceError::Map`]; the former deadline then still stands.
    pub fn disarm(&self, slot: LeaseSlot) -> Result<(), FenceError> {
        self.leases.set(slot, BootInstant::ZERO)
    }

    /// The deadline that the kernel has for a lease.
    ///
    /// # Errors
    ///
    /// [`FenceError::Map`].
    pub fn deadline(&self, slot: LeaseSlot) -> Result<BootInstant, FenceError> {
        self.leases.get(slot)
    }

    /// What was done with the frames of an address; `None` where it is not known.
    ///
    /// # Errors
    ///
    /// [`FenceError::Map`].
    pub fn counters(&self, address: IpAddr) -> Result<Option<Counters>, FenceError> {
        lock(&self.vips).counters(address)
    }

    /// The directory of the pinned maps.
    #[must_use]
    pub fn pin_directory(&self) -> &Path {
        self.pins.path()
    }

    const fn program(&self, direction: Direction) -> &Program {
        match direction {
            Direction::Egress => &self.programs.egress,
            Direction::Ingress => &self.programs.ingress,
        }
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

/// None of these mutexes guards anything that a panic could leave half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
