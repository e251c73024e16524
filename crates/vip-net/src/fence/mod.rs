//! The fence: what keeps this host silent for an address whose lease is not running, by itself, in the kernel.
//!
//! It judges every frame of a known address, on both directions of every interface it is attached to, so it closes
//! on time whether or not this process runs. It stays in the kernel when the process ends: what is held stays open
//! until its lease runs out, and then it is shut.
//!
//! There are two kinds. [`FenceKind::Bpf`] compares the clock with an absolute deadline, so a deadline that is
//! written too late opens nothing. [`FenceKind::Nftables`] is for hosts on which BPF cannot be loaded: it counts
//! ticks from the moment of the renewal on, which takes a transaction with a token to be safe, and a wider margin
//! ([`Fence::slack`]). The heads of `bpf.rs` and `nft/mod.rs` say more.
//!
//! What a host only carries for its containers, its virtual machines and other networks passes the BPF fence, also
//! while the address is shut. The other kind cannot tell such frames from the host's own when they leave, and stops
//! them: behind a host that does not hold the address nobody reaches it through that host.
//!
//! What neither stops: frames already queued behind it; local processes that reach the address over the loopback
//! interface. The BPF fence is passed by a process that sends with `PACKET_QDISC_BYPASS`, and by a tcx program
//! (Linux 6.6) of somebody else that ends the classification before ours; the nftables fence by XDP, and since 6.16
//! by an interface that is renamed, until that is seen.

mod bpf;
mod error;
mod maps;
mod nft;
mod setup;
mod tc;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vip_core::BootInstant;

use self::bpf::BpfFence;
pub use self::error::FenceError;
pub use self::nft::{FenceChanges, Figures as NftablesFigures};
use self::nft::{Leftover, NftFence};
use self::setup::Lock;
pub(crate) use self::tc::{may_remove_fence, removes_clsact};

/// Where the BPF filesystem is on nearly every host.
pub const DEFAULT_PIN_ROOT: &str = "/sys/fs/bpf";

/// How many addresses the fence can know.
pub const MAX_ADDRESSES: usize = 16_384;

/// How the fence is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FenceKind {
    /// A tc classifier in BPF.
    Bpf,
    /// A table of nf_tables.
    Nftables,
}

impl FenceKind {
    /// Its name in the configuration and in the status.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bpf => "bpf",
            Self::Nftables => "nftables",
        }
    }

    const fn other(self) -> Self {
        match self {
            Self::Bpf => Self::Nftables,
            Self::Nftables => Self::Bpf,
        }
    }
}

impl fmt::Display for FenceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

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

impl Gate {
    /// As the kernel has it; a slot that nobody knows is one without a lease.
    fn of_slot(slot: u64) -> Self {
        let held = LeaseSlot::ALL.into_iter().find(|held| u64::from(held.0) == slot);
        held.map_or(Self::Shut, Self::Held)
    }
}

/// What [`Fence::detach_all`] and [`Fence::remove_other_kind`] took away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Filters and chains, counted for each interface and direction.
    pub filters: usize,
    /// The directory whose pinned maps were removed, where there was one.
    pub pins: Option<PathBuf>,
}

/// One kind of fence. The methods are those of [`Fence`].
trait Backend: fmt::Debug + Send + Sync {
    fn attach(&self, index: u32) -> Result<(), FenceError>;
    fn attached(&self, index: u32) -> Result<bool, FenceError>;
    fn detach(&self, index: u32) -> Result<(), FenceError>;
    fn know(&self, addresses: &[IpAddr]) -> Result<(), FenceError>;
    fn forget(&self, addresses: &[IpAddr]) -> Result<(), FenceError>;
    fn known(&self) -> Result<Vec<(IpAddr, Gate)>, FenceError>;
    fn set(&self, addresses: &[IpAddr], gate: Gate) -> Result<(), FenceError>;
    fn shut_all(&self) -> Result<(), FenceError>;
    fn arm(&self, slot: LeaseSlot, deadline: BootInstant) -> Result<(), FenceError>;
    fn disarm(&self, slot: LeaseSlot) -> Result<(), FenceError>;
    fn deadline(&self, slot: LeaseSlot) -> Result<BootInstant, FenceError>;
    fn counters(&self, address: IpAddr) -> Result<Option<Counters>, FenceError>;
    fn changes(&self) -> io::Result<Option<FenceChanges>> {
        Ok(None)
    }
    fn slack(&self) -> Duration {
        Duration::ZERO
    }
    fn early(&self) -> Duration {
        Duration::ZERO
    }
}

/// The fence of this network namespace. At most one exists at a time, across all processes.
///
/// Dropping it detaches nothing: it stays in the kernel, and closes when the leases run out.
#[derive(Debug)]
pub struct Fence {
    kind: FenceKind,
    pin_root: PathBuf,
    backend: Box<dyn Backend>,
    _lock: Lock,
}

impl Fence {
    /// Until when the lease runs that a predecessor left in a fence of either kind: until then the kernel answers for
    /// the addresses, with every right to. In nftables within a few ticks. None where there is no such lease.
    /// [`Self::open`] ends it.
    #[must_use]
    pub fn leftover_deadline(pin_root: &Path) -> Option<BootInstant> {
        let found = [bpf::leftover_deadline(pin_root), nft::leftover_deadline()];
        found.into_iter().flatten().max().filter(|deadline| *deadline > BootInstant::ZERO)
    }

    /// Takes over the fence of this network namespace, or makes it; afterwards every lease has ended and every
    /// known address is shut, on every interface where a predecessor of this kind is still attached. What a
    /// predecessor of the other kind knew is known as well; it stays, shut, until [`Self::remove_other_kind`].
    ///
    /// `pin_root` is where the BPF filesystem is, usually [`DEFAULT_PIN_ROOT`]; a fence in BPF mounts it where it is
    /// not mounted.
    ///
    /// # Errors
    ///
    /// [`FenceError::InUse`] when another process has the fence of this network namespace, and otherwise what
    /// could not be set up, with the kernel's reason.
    pub fn open(kind: FenceKind, pin_root: &Path) -> Result<Self, FenceError> {
        let lock = Lock::take()?;
        let (backend, leftover): (Box<dyn Backend>, _) = match kind {
            FenceKind::Bpf => (Box::new(BpfFence::open(pin_root)?), Leftover::shut_here().map(|left| left.known)),
            FenceKind::Nftables => (Box::new(NftFence::open()?), bpf::shut_leftover(pin_root)),
        };
        // Where there is none, or it cannot be read: its leases end by themselves.
        if let Ok(known) = leftover {
            backend.know(&known)?;
        }
        Ok(Self { kind, pin_root: pin_root.to_owned(), backend, _lock: lock })
    }

    /// Which kind it is.
    #[must_use]
    pub const fn kind(&self) -> FenceKind {
        self.kind
    }

    /// A subscription to what others do to this fence, in the network namespace of the calling thread; must be called
    /// inside a tokio runtime. `None` where [`crate::monitor`] tells of it, or nobody else can do anything to it.
    ///
    /// # Errors
    ///
    /// The socket could not be opened.
    pub fn changes(&self) -> io::Result<Option<FenceChanges>> {
        self.backend.changes()
    }

    /// By how much the kernel may end a lease after its deadline: what is to be taken off before it is armed. Zero
    /// for BPF.
    #[must_use]
    pub fn slack(&self) -> Duration {
        self.backend.slack()
    }

    /// By how much the kernel may end a lease before its deadline. Zero for BPF.
    #[must_use]
    pub fn early(&self) -> Duration {
        self.backend.early()
    }

    /// Puts the fence on both directions of the interface, in place of that of a predecessor, in one step: there is
    /// no instant without one. Doing it again changes nothing.
    ///
    /// # Errors
    ///
    /// [`FenceError::Attach`] or [`FenceError::Nftables`] with the step that failed.
    pub fn attach(&self, index: u32) -> Result<(), FenceError> {
        self.backend.attach(index)
    }

    /// Whether this very fence is whole on both directions of the interface. False for an interface that does not
    /// exist.
    ///
    /// # Errors
    ///
    /// [`FenceError::Inspect`] or [`FenceError::Nftables`] when the kernel cannot be asked.
    pub fn attached(&self, index: u32) -> Result<bool, FenceError> {
        self.backend.attached(index)
    }

    /// Takes it off one interface, which then is not fenced any more. Filters of others stay.
    ///
    /// # Errors
    ///
    /// What could not be read or removed.
    pub fn detach(&self, index: u32) -> Result<(), FenceError> {
        self.backend.detach(index)
    }

    /// Removes what an earlier process left of the other kind; without that it would keep the addresses that it
    /// knows silent for ever. To be called when this fence is on every interface.
    ///
    /// # Errors
    ///
    /// What could not be removed.
    pub fn remove_other_kind(&self) -> Result<Removed, FenceError> {
        remove(self.kind.other(), &self.pin_root)
    }

    /// Removes the fence of this network namespace, of both kinds: what is on interfaces, and pinned maps.
    ///
    /// Afterwards nothing keeps this host silent, so the addresses must be gone first.
    ///
    /// # Errors
    ///
    /// [`FenceError::InUse`] while a process has the fence, and otherwise what could not be removed.
    pub fn detach_all(pin_root: &Path) -> Result<Removed, FenceError> {
        let _lock = Lock::take()?;
        let bpf = remove(FenceKind::Bpf, pin_root)?;
        let nftables = remove(FenceKind::Nftables, pin_root)?;
        Ok(Removed { filters: bpf.filters + nftables.filters, pins: bpf.pins })
    }

    /// Enters addresses as shut. Those that are known already stay as they are, held ones too.
    ///
    /// # Errors
    ///
    /// The first failure; some of the addresses may have been entered.
    pub fn know(&self, addresses: &[IpAddr]) -> Result<(), FenceError> {
        self.backend.know(addresses)
    }

    /// Removes addresses, which then pass always. For addresses that are not ours any more, once they are gone
    /// from the interfaces.
    ///
    /// # Errors
    ///
    /// The first failure; some of the addresses may have been removed.
    pub fn forget(&self, addresses: &[IpAddr]) -> Result<(), FenceError> {
        self.backend.forget(addresses)
    }

    /// Every known address with how it stands.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn known(&self) -> Result<Vec<(IpAddr, Gate)>, FenceError> {
        self.backend.known()
    }

    /// Lets addresses pass while the lease runs. An address that is not known becomes known.
    ///
    /// # Errors
    ///
    /// The first failure; some of the addresses may be held.
    pub fn hold(&self, addresses: &[IpAddr], slot: LeaseSlot) -> Result<(), FenceError> {
        self.backend.set(addresses, Gate::Held(slot))
    }

    /// Stops addresses, whatever their lease. An address that is not known becomes known.
    ///
    /// # Errors
    ///
    /// The first failure, after all were tried.
    pub fn shut(&self, addresses: &[IpAddr]) -> Result<(), FenceError> {
        self.backend.set(addresses, Gate::Shut)
    }

    /// Ends every lease, then shuts every known address.
    ///
    /// # Errors
    ///
    /// The first failure, after all was tried.
    pub fn shut_all(&self) -> Result<(), FenceError> {
        self.backend.shut_all()
    }

    /// Sets the deadline of a lease, whatever the number of addresses. In BPF one system call that waits for nothing;
    /// in nftables two transactions, which wait for others that change the rules of this network namespace.
    ///
    /// A deadline that is past or all but past opens nothing, and is no error.
    ///
    /// # Errors
    ///
    /// What the kernel said; the former deadline then still stands.
    pub fn arm(&self, slot: LeaseSlot, deadline: BootInstant) -> Result<(), FenceError> {
        self.backend.arm(slot, deadline)
    }

    /// Ends a lease now: everything that is held under it is silent from here on.
    ///
    /// # Errors
    ///
    /// What the kernel said; the former deadline then still stands.
    pub fn disarm(&self, slot: LeaseSlot) -> Result<(), FenceError> {
        self.backend.disarm(slot)
    }

    /// The deadline that the kernel has for a lease. In nftables within a few ticks.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn deadline(&self, slot: LeaseSlot) -> Result<BootInstant, FenceError> {
        self.backend.deadline(slot)
    }

    /// What was done with the frames of an address; `None` where it is not known, and always in nftables.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn counters(&self, address: IpAddr) -> Result<Option<Counters>, FenceError> {
        self.backend.counters(address)
    }
}

fn remove(kind: FenceKind, pin_root: &Path) -> Result<Removed, FenceError> {
    match kind {
        FenceKind::Bpf => {
            let (filters, pins) = bpf::remove_leftover(pin_root)?;
            Ok(Removed { filters, pins: pins.map(|pins| pins.path().to_owned()) })
        }
        FenceKind::Nftables => {
            let leftover = Leftover::remove_here()?;
            Ok(Removed { filters: leftover.hooks, pins: None })
        }
    }
}

/// None of these mutexes guards anything that a panic could leave half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
