//! The fence in nf_tables, for hosts on which BPF cannot be loaded.
//!
//! It knows no absolute time: an element of a set ends a while after the kernel took it, counted in ticks. So a
//! renewal that was held up between "how long is left" and the kernel would open again what is over. The token keeps
//! that from happening. A renewal is
//!
//! 1. enter a token that ends after [`Figures::token`], and wait until the kernel has it, which is at t2 or before;
//! 2. with `T = deadline - t2 - token - one tick`: too little left, nothing is done;
//! 3. in one transaction take the token out and put the lease in, to end after T.
//!
//! The third step is refused as a whole unless the token is there, which it is before `t2 + token`. So the lease ends
//! before `t2 + token + T`, which is before the deadline, wherever the process was held up outside the kernel. What
//! is left is to be held up inside the kernel, between its look at the token and the lease: a transaction that took
//! suspiciously long is undone at once.
//!
//! The clock of the sets is the kernel's tick. It can stand still for [`STALLED_TICKS`] and then catch up, which lets
//! a lease end that much late: whoever computes deadlines allows for [`Figures::slack`]. Rounding goes the safe way,
//! and costs [`Figures::early`] together with the token.
//!
//! Renewing is O(1), as in the BPF fence: addresses point to slots, and one element with a timeout is the lease of a
//! slot. See [`rules`].

mod changes;
mod rules;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use nix::errno::Errno;
use nix::time::{ClockId, clock_getres};
use vip_core::BootInstant;

pub use self::changes::FenceChanges;
use self::wire::{Kind, Nft, Refused, attribute, attributes, text};
use super::tc::Direction;
use super::{Backend, Counters, FenceError, Gate, LeaseSlot, lock};
use crate::clock::boot_now;
use crate::link::{ethernet_interface, ethernet_interfaces};
use crate::netlink::Netlink;

/// `MAX_STALLED_JIFFIES` in the kernel's `tick-sched.c`: for so many ticks the counter may stand still while the
/// processor that advances it is stopped by the hypervisor, before another one takes over.
const STALLED_TICKS: u32 = 5;

/// Ticks that a token lives. It begins somewhere between two ticks, so it lives one less at the least.
const TOKEN_TICKS: u32 = 3;
/// And at least this long, where ticks are short: time for two system calls on a busy host.
const LEAST_TOKEN: Duration = Duration::from_millis(5);

/// The longest tick there is (`CONFIG_HZ=100`), for a kernel that does not tell.
const LONGEST_TICK: Duration = Duration::from_millis(10);

/// Addresses that change in one transaction: what fits into a socket's buffer.
const CHUNK: usize = 1000;

/// A renewal that is refused for other reasons than time is tried again this often.
const ATTEMPTS: u32 = 8;

/// How exact the fence is, by the length of the kernel's tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// `1 / CONFIG_HZ`.
    pub tick: Duration,
}

impl Figures {
    /// Those of the running kernel. The coarse clocks advance once a tick, and tell that as their resolution;
    /// `sysconf(_SC_CLK_TCK)` would be the constant that user space is told instead.
    #[must_use]
    pub fn of_this_kernel() -> Self {
        let resolution = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map(Duration::from);
        let tick = resolution.ok().filter(|tick| !tick.is_zero() && *tick <= LONGEST_TICK);
        Self { tick: tick.unwrap_or(LONGEST_TICK) }
    }

    /// How late the kernel may end a lease: what has to be taken off a deadline before it is given to this fence.
    #[must_use]
    pub fn slack(self) -> Duration {
        self.tick * (STALLED_TICKS + 1)
    }

    /// How early the kernel may end a lease, at most.
    #[must_use]
    pub fn early(self) -> Duration {
        // One tick that is taken off, one that the kernel rounds down, one for whole milliseconds.
        self.token() + self.tick * 2 + Duration::from_millis(1)
    }

    /// How long a token lives, at most.
    #[must_use]
    pub fn token(self) -> Duration {
        let token = (self.tick * TOKEN_TICKS).max(LEAST_TOKEN);
        Duration::from_millis(whole_milliseconds(token))
    }

    /// The least time that a lease is armed for. The kernel rounds down to ticks, and takes 0 for no end at all.
    fn least(self) -> Duration {
        (self.tick * 2).max(Duration::from_millis(2))
    }

    /// How long a lease may run that is entered while a token of `confirmed` is there.
    fn time_left(self, deadline: BootInstant, confirmed: BootInstant) -> Option<Duration> {
        let left = deadline.saturating_duration_since(confirmed);
        left.checked_sub(self.token() + self.tick).filter(|left| *left >= self.least())
    }
}

fn whole_milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The table of this network namespace.
pub(super) struct NftFence {
    state: Mutex<State>,
    figures: Figures,
}

impl fmt::Debug for NftFence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NftFence").field("figures", &self.figures).finish_non_exhaustive()
    }
}

struct State {
    nft: Nft,
    links: Netlink,
    figures: Figures,
    form: Form,
    /// The addresses in the table, with their slots.
    known: BTreeMap<IpAddr, u32>,
    /// The interfaces that have our chains.
    hooked: BTreeSet<u32>,
    /// The rules as the kernel showed them when they were put there, by chain.
    rules: BTreeMap<String, Vec<u8>>,
    /// The deadline for which the lease of a slot was entered last.
    armed: [BootInstant; LeaseSlot::ALL.len()],
    token: u32,
}

/// What the kernel can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Form {
    /// The table belongs to this socket: nobody else can change it.
    owned: bool,
    /// Frames that the host's routes send on come in.
    carried: bool,
}

/// The table as the kernel has it.
#[derive(Debug, Default)]
struct View {
    /// Chains with the device that they are hooked to, if they are.
    chains: BTreeMap<String, Option<String>>,
    rules: BTreeMap<String, Vec<u8>>,
}

impl NftFence {
    /// Takes over the table of a predecessor, with what it knows, or makes one. No lease runs, all is shut.
    pub(super) fn open() -> Result<Self, FenceError> {
        Self::open_as(Form { owned: true, carried: true })
    }

    fn open_as(form: Form) -> Result<Self, FenceError> {
        let failed = |source| FenceError::Netlink { source };
        let figures = Figures::of_this_kernel();
        let mut state = State {
            nft: Nft::open().map_err(failed)?,
            links: Netlink::open().map_err(failed)?,
            figures,
            form,
            known: BTreeMap::new(),
            hooked: BTreeSet::new(),
            rules: BTreeMap::new(),
            armed: [BootInstant::ZERO; LeaseSlot::ALL.len()],
            // Two daemons after each other never share one.
            token: 0,
        };
        let leftover = Leftover::shut(&mut state.nft)?;
        state.known = leftover.known.into_iter().map(|address| (address, 0)).collect();
        state.hooked = leftover.hooked;
        state.install()?;
        Ok(Self { state: Mutex::new(state), figures })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// The table that an earlier process left.
#[derive(Debug, Default)]
pub(super) struct Leftover {
    /// The addresses that it knows.
    pub(super) known: Vec<IpAddr>,
    hooked: BTreeSet<u32>,
    /// Our chains on interfaces.
    pub(super) hooks: usize,
    exists: bool,
}

impl Leftover {
    /// Ends every lease of it, and reads the rest.
    pub(super) fn shut_here() -> Result<Self, FenceError> {
        let mut nft = Nft::open().map_err(|source| FenceError::Netlink { source })?;
        Self::shut(&mut nft)
    }

    /// Removes it. Afterwards nothing of it keeps this host silent.
    pub(super) fn remove_here() -> Result<Self, FenceError> {
        let mut nft = Nft::open().map_err(|source| FenceError::Netlink { source })?;
        let leftover = Self::read(&mut nft)?;
        if leftover.exists {
            refused("removing the table", nft.execute(&[rules::delete_table()]))?;
        }
        Ok(leftover)
    }

    fn shut(nft: &mut Nft) -> Result<Self, FenceError> {
        let leases = LeaseSlot::ALL.map(|slot| rules::flush(&rules::lease(slot.0)));
        match nft.execute(&leases) {
            Ok(()) => {}
            Err(refusal @ Refused { errno: Errno::EPERM, .. }) => {
                refused("ending every lease of an earlier process", Err(refusal))?;
            }
            // No table, or one without leases, or no nf_tables at all.
            Err(_) => {}
        }
        Self::read(nft)
    }

    fn read(nft: &mut Nft) -> Result<Self, FenceError> {
        let tables = match nft.dump(Kind::GetTable, &wire::Attributes::new()) {
            Ok(tables) => tables,
            Err(error) if error.raw_os_error() == Some(Errno::EPERM as i32) => {
                return Err(inspect("the tables")(error));
            }
            // No nf_tables in this kernel.
            Err(_) => return Ok(Self::default()),
        };
        if !tables.iter().any(|table| text(table, rules::TABLE_NAME) == Some(rules::TABLE)) {
            return Ok(Self::default());
        }
        let chains = chains(nft)?;
        let hooks: Vec<_> = chains.keys().filter_map(|chain| rules::hooked_index(chain)).collect();
        // A set that is not there is one of another version's table.
        let known = known(nft).unwrap_or_default().into_keys().collect();
        Ok(Self { known, hooks: hooks.len(), hooked: hooks.iter().map(|(_, index)| *index).collect(), exists: true })
    }
}

impl State {
    /// Makes the whole table anew in place of the one that is there, in one transaction, with everything shut.
    fn install(&mut self) -> Result<(), FenceError> {
        let tables = self.nft.dump(Kind::GetTable, &wire::Attributes::new()).map_err(inspect("the tables"))?;
        let exists = tables.iter().any(|table| text(table, rules::TABLE_NAME) == Some(rules::TABLE));
        let names: BTreeMap<u32, String> =
            ethernet_interfaces()?.into_iter().map(|interface| (interface.index, interface.name)).collect();
        self.hooked.retain(|index| names.contains_key(index));
        self.known.values_mut().for_each(|slot| *slot = 0);
        self.armed = [BootInstant::ZERO; LeaseSlot::ALL.len()];
        let known: Vec<IpAddr> = self.known.keys().copied().collect();
        loop {
            let Form { owned, carried } = self.form;
            let mut steps = if exists { vec![rules::delete_table()] } else { Vec::new() };
            let table_at = steps.len();
            steps.extend(rules::new_table(if owned { rules::OWNED } else { 0 }, carried));
            steps.extend(rules::know(&known));
            for index in &self.hooked {
                let hooks = Direction::BOTH.map(|direction| rules::new_hook(direction, *index, &names[index]));
                steps.extend(hooks.into_iter().flatten());
            }
            match self.nft.execute(&steps) {
                Ok(()) => break,
                // Before 6.9 a table cannot both belong to a socket and outlive it.
                Err(Refused { step: Some(at), errno: Errno::EOPNOTSUPP | Errno::EINVAL })
                    if owned && at == table_at =>
                {
                    self.form.owned = false;
                }
                // Without CONFIG_NFT_FIB_NETDEV. What is routed on is stopped, then.
                Err(Refused { step: Some(at), errno: Errno::ENOENT | Errno::EOPNOTSUPP })
                    if carried && steps[at].kind == Kind::NewRule =>
                {
                    self.form.carried = false;
                }
                Err(other) => refused("making the table", Err(other))?,
            }
        }
        self.rules = self.view()?.rules;
        Ok(())
    }

    fn view(&mut self) -> Result<View, FenceError> {
        let chains = chains(&mut self.nft)?;
        let filter = wire::Attributes::new().text(rules::RULE_TABLE, rules::TABLE);
        let mut by_chain: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for rule in self.nft.dump(Kind::GetRule, &filter).map_err(inspect("the rules"))? {
            if text(&rule, rules::RULE_TABLE) == Some(rules::TABLE)
                && let (Some(chain), Some(expressions)) =
                    (text(&rule, rules::RULE_CHAIN), attribute(&rule, rules::RULE_EXPRESSIONS))
            {
                by_chain.entry(chain.to_owned()).or_default().extend(expressions);
            }
        }
        Ok(View { chains, rules: by_chain })
    }

    /// What all interfaces share is as it was made.
    fn shared_is_whole(&mut self, view: &View) -> Result<bool, FenceError> {
        let shared = self.rules.iter().filter(|(chain, _)| rules::hooked_index(chain).is_none());
        let whole =
            shared.clone().count() > 0 && shared.into_iter().all(|(chain, of)| view.rules.get(chain) == Some(of));
        // Where others can change the table they can change what is in its sets, too.
        Ok(whole && (self.form.owned || known(&mut self.nft).is_ok_and(|known| known == self.known)))
    }

    fn hook_is_whole(&self, view: &View, index: u32, device: &str) -> bool {
        Direction::BOTH.iter().all(|direction| {
            let chain = rules::hook_chain(*direction, index);
            view.chains.get(&chain).is_some_and(|on| on.as_deref() == Some(device))
                && view.rules.contains_key(&chain)
                && view.rules.get(&chain) == self.rules.get(&chain)
        })
    }

    fn attach(&mut self, index: u32) -> Result<(), FenceError> {
        let device = ethernet_interface(&mut self.links, index)?.name;
        let view = self.view()?;
        if !self.shared_is_whole(&view)? {
            self.hooked.insert(index);
            return self.install();
        }
        if self.hook_is_whole(&view, index, &device) {
            return Ok(());
        }
        // Those of the interface, and of one that had its name before.
        let old: Vec<&String> = view
            .chains
            .iter()
            .filter(|(chain, on)| {
                rules::hooked_index(chain).is_some_and(|(_, of)| of == index || on.as_deref() == Some(&device))
            })
            .map(|(chain, _)| chain)
            .collect();
        let mut steps: Vec<_> = old.into_iter().flat_map(|chain| rules::delete_hook(chain)).collect();
        for direction in Direction::BOTH {
            steps.extend(rules::new_hook(direction, index, &device));
        }
        refused("putting the fence on an interface", self.nft.execute(&steps))?;
        self.hooked.insert(index);
        self.rules = self.view()?.rules;
        Ok(())
    }

    fn attached(&mut self, index: u32) -> Result<bool, FenceError> {
        // One that is gone has no fence.
        let Ok(interface) = ethernet_interface(&mut self.links, index) else { return Ok(false) };
        let view = self.view()?;
        Ok(self.hook_is_whole(&view, index, &interface.name) && self.shared_is_whole(&view)?)
    }

    fn detach(&mut self, index: u32) -> Result<(), FenceError> {
        let of_index = |chain: &&String| rules::hooked_index(chain).is_some_and(|(_, of)| of == index);
        let steps: Vec<_> =
            chains(&mut self.nft)?.keys().filter(of_index).flat_map(|c| rules::delete_hook(c)).collect();
        self.hooked.remove(&index);
        refused("taking the fence off an interface", self.nft.execute(&steps))
    }

    /// Changes the slots of addresses, and enters those that are not known; each thousand at once.
    fn set(&mut self, addresses: &[IpAddr], slot: u32, attempted: &'static str) -> Result<(), FenceError> {
        let mut result = Ok(());
        // An address may be named twice.
        let addresses: Vec<IpAddr> = addresses.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        for chunk in addresses.chunks(CHUNK) {
            let done = self.change(|known| {
                let wrong = |address: &&IpAddr| known.get(*address) != Some(&slot);
                let change: Vec<IpAddr> = chunk.iter().filter(wrong).copied().collect();
                let new: Vec<IpAddr> = change.iter().filter(|at| !known.contains_key(at)).copied().collect();
                let held: Vec<IpAddr> = change.iter().filter(|at| is_held(known, at)).copied().collect();
                let mut steps = [rules::know(&new), rules::shut(&held)].concat();
                if slot != 0 {
                    steps.extend(rules::hold(&change, slot));
                }
                known.extend(change.into_iter().map(|address| (address, slot)));
                steps
            });
            let done = refused(attempted, done);
            result = result.and(done);
        }
        result
    }

    fn forget(&mut self, addresses: &[IpAddr]) -> Result<(), FenceError> {
        for chunk in addresses.chunks(CHUNK) {
            let done = self.change(|known| {
                let present: Vec<IpAddr> = chunk.iter().copied().filter(|at| known.contains_key(at)).collect();
                let held: Vec<IpAddr> = present.iter().copied().filter(|at| is_held(known, at)).collect();
                known.retain(|address, _| !present.contains(address));
                [rules::shut(&held), rules::forget(&present)].concat()
            });
            refused("removing addresses", done)?;
        }
        Ok(())
    }

    /// `plan` changes what is known, and says which steps lead there.
    fn change(&mut self, plan: impl Fn(&mut BTreeMap<IpAddr, u32>) -> Vec<wire::Step>) -> Result<(), Refused> {
        let mut after = self.known.clone();
        let mut result = self.nft.execute(&plan(&mut after));
        if result.is_err() {
            // Somebody else was at the table, where it has no owner: look, and try again.
            self.known = known(&mut self.nft)?;
            after = self.known.clone();
            result = self.nft.execute(&plan(&mut after));
        }
        if result.is_ok() {
            self.known = after;
        }
        result
    }

    /// See the head of the module. `held_up` is called where being held up matters most.
    fn arm(&mut self, slot: LeaseSlot, deadline: BootInstant, held_up: &mut dyn FnMut()) -> Result<(), FenceError> {
        const ATTEMPTED: &str = "renewing a lease";
        let lifetime = whole_milliseconds(self.figures.token());
        let mut attempts = 0;
        loop {
            self.token = self.token.wrapping_add(1);
            let (token, lease) = (self.token.to_ne_bytes(), rules::lease(slot.0));
            refused(ATTEMPTED, self.nft.execute(&[rules::add_timed(rules::TOKENS, &token, lifetime)]))?;
            let confirmed = boot_now();
            // Too late: what was armed before ends by itself.
            let Some(left) = self.figures.time_left(deadline, confirmed) else { return Ok(()) };
            held_up();

            let mut steps = vec![rules::remove_timed(rules::TOKENS, &token)];
            let armed = self.armed(slot);
            let running = *armed > confirmed;
            if running {
                steps.push(rules::remove_timed(&lease, rules::RUNNING));
            }
            steps.push(rules::add_timed(&lease, rules::RUNNING, whole_milliseconds(left)));
            let added_at = steps.len() - 1;
            match self.nft.execute(&steps) {
                Ok(()) => {
                    *self.armed(slot) = deadline;
                    if boot_now().saturating_duration_since(confirmed) <= self.figures.token() {
                        return Ok(());
                    }
                    // It may have been held up behind its look at the token.
                    self.disarm(slot)?;
                }
                // The token has ended: this process was held up. There is less time left now.
                Err(Refused { step: Some(0), errno: Errno::ENOENT }) => {}
                Err(Refused { step: Some(at), errno }) if attempts < ATTEMPTS => {
                    attempts += 1;
                    *self.armed(slot) = match errno {
                        // The lease has ended a little before the deadline.
                        Errno::ENOENT if running && at == 1 => BootInstant::ZERO,
                        // It has not, or a predecessor's has not.
                        Errno::EEXIST if at == added_at => deadline,
                        _ => return refused(ATTEMPTED, Err(Refused { step: Some(at), errno })),
                    };
                }
                Err(other) => return refused(ATTEMPTED, Err(other)),
            }
        }
    }

    fn disarm(&mut self, slot: LeaseSlot) -> Result<(), FenceError> {
        match self.nft.execute(&[rules::remove_timed(&rules::lease(slot.0), rules::RUNNING)]) {
            Ok(()) | Err(Refused { step: Some(0), errno: Errno::ENOENT }) => {
                *self.armed(slot) = BootInstant::ZERO;
                Ok(())
            }
            Err(other) => refused("ending a lease", Err(other)),
        }
    }

    const fn armed(&mut self, slot: LeaseSlot) -> &mut BootInstant {
        &mut self.armed[slot.0 as usize - 1]
    }
}

fn is_held(known: &BTreeMap<IpAddr, u32>, address: &IpAddr) -> bool {
    known.get(address).is_some_and(|slot| *slot != 0)
}

impl Backend for NftFence {
    fn attach(&self, index: u32) -> Result<(), FenceError> {
        self.state().attach(index)
    }

    fn attached(&self, index: u32) -> Result<bool, FenceError> {
        self.state().attached(index)
    }

    fn detach(&self, index: u32) -> Result<(), FenceError> {
        self.state().detach(index)
    }

    fn know(&self, addresses: &[IpAddr]) -> Result<(), FenceError> {
        let mut state = self.state();
        let new: Vec<IpAddr> = addresses.iter().copied().filter(|at| !state.known.contains_key(at)).collect();
        state.set(&new, 0, "entering addresses")
    }

    fn forget(&self, addresses: &[IpAddr]) -> Result<(), FenceError> {
        self.state().forget(addresses)
    }

    fn known(&self) -> Result<Vec<(IpAddr, Gate)>, FenceError> {
        let known = known(&mut self.state().nft).map_err(inspect("the known addresses"))?;
        Ok(known.into_iter().map(|(address, slot)| (address, Gate::of_slot(slot.into()))).collect())
    }

    fn set(&self, addresses: &[IpAddr], gate: Gate) -> Result<(), FenceError> {
        match gate {
            Gate::Shut => self.state().set(addresses, 0, "shutting addresses"),
            Gate::Held(slot) => self.state().set(addresses, slot.0, "holding addresses"),
        }
    }

    fn shut_all(&self) -> Result<(), FenceError> {
        let mut state = self.state();
        let ended = LeaseSlot::ALL.into_iter().map(|slot| state.disarm(slot)).fold(Ok(()), Result::and);
        let known: Vec<IpAddr> = state.known.keys().copied().collect();
        let shut = state.set(&known, 0, "shutting addresses");
        ended.and(shut)
    }

    fn arm(&self, slot: LeaseSlot, deadline: BootInstant) -> Result<(), FenceError> {
        self.state().arm(slot, deadline, &mut || ())
    }

    fn disarm(&self, slot: LeaseSlot) -> Result<(), FenceError> {
        self.state().disarm(slot)
    }

    fn deadline(&self, slot: LeaseSlot) -> Result<BootInstant, FenceError> {
        deadline(&mut self.state().nft, slot)
    }

    fn counters(&self, _: IpAddr) -> Result<Option<Counters>, FenceError> {
        Ok(None)
    }

    fn changes(&self) -> std::io::Result<Option<FenceChanges>> {
        if self.state().form.owned { Ok(None) } else { FenceChanges::open().map(Some) }
    }

    fn slack(&self) -> Duration {
        self.figures.slack()
    }

    fn early(&self) -> Duration {
        self.figures.early()
    }
}

// ---- what the kernel shows ----

/// Until when the leader's lease runs that an earlier process left. An error where there is no table.
pub(super) fn leftover_deadline() -> Result<BootInstant, FenceError> {
    let mut nft = Nft::open().map_err(|source| FenceError::Netlink { source })?;
    deadline(&mut nft, LeaseSlot::LEADER)
}

/// When a lease ends, within a few ticks; zero where none runs.
fn deadline(nft: &mut Nft, slot: LeaseSlot) -> Result<BootInstant, FenceError> {
    let now = boot_now();
    let elements = nft.dump(Kind::GetElement, &rules::elements_of(&rules::lease(slot.0)));
    let elements = elements.map_err(inspect("the leases"))?;
    let left = elements.iter().flat_map(|message| listed(message)).find_map(|element| {
        let milliseconds = u64::from_be_bytes(attribute(element, rules::ELEMENT_EXPIRATION)?.try_into().ok()?);
        Some(milliseconds)
    });
    Ok(left.map_or(BootInstant::ZERO, |milliseconds| now + Duration::from_millis(milliseconds)))
}

/// The elements of one message of a dump.
fn listed(message: &[u8]) -> impl Iterator<Item = &[u8]> {
    attribute(message, rules::ELEMENTS_LIST).into_iter().flat_map(attributes).map(|(_, element)| element)
}

/// The value in an element's key or data.
fn value(element: &[u8], kind: u16) -> Option<&[u8]> {
    attribute(attribute(element, kind)?, 1)
}

fn number(element: &[u8], kind: u16) -> Option<u32> {
    value(element, kind)?.try_into().ok().map(u32::from_ne_bytes)
}

/// The addresses in the table with their slots. One that is held and not known is none: nothing judges it.
fn known(nft: &mut Nft) -> std::io::Result<BTreeMap<IpAddr, u32>> {
    let mut known = BTreeMap::new();
    for set in rules::VIPS.into_iter().chain(rules::HELD) {
        for message in nft.dump(Kind::GetElement, &rules::elements_of(set))? {
            for element in listed(&message) {
                let address = match value(element, rules::ELEMENT_KEY) {
                    Some(&[a, b, c, d]) => Ipv4Addr::new(a, b, c, d).into(),
                    Some(key) if key.len() == 16 => Ipv6Addr::from(key.try_into().unwrap_or([0; 16])).into(),
                    _ => continue,
                };
                match number(element, rules::ELEMENT_DATA) {
                    None => drop(known.insert(address, 0)),
                    Some(slot) => drop(known.get_mut(&address).map(|known| *known = slot)),
                }
            }
        }
    }
    Ok(known)
}

/// The chains of the table, with the device that each is hooked to, if it is.
fn chains(nft: &mut Nft) -> Result<BTreeMap<String, Option<String>>, FenceError> {
    let chains = nft.dump(Kind::GetChain, &wire::Attributes::new()).map_err(inspect("the chains"))?;
    let ours = chains.iter().filter(|chain| text(chain, rules::CHAIN_TABLE) == Some(rules::TABLE));
    let device = |chain: &[u8]| {
        let hook = attribute(chain, rules::CHAIN_HOOK)?;
        let listed = || text(attribute(hook, rules::HOOK_DEVICES)?, rules::DEVICE_NAME);
        text(hook, rules::HOOK_DEVICE).or_else(listed).map(str::to_owned)
    };
    Ok(ours.filter_map(|chain| Some((text(chain, rules::CHAIN_NAME)?.to_owned(), device(chain)))).collect())
}

fn inspect(what: &'static str) -> impl FnOnce(std::io::Error) -> FenceError {
    move |source| FenceError::Nftables {
        attempted: "reading",
        what,
        source: source.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
    }
}

fn refused(attempted: &'static str, result: Result<(), Refused>) -> Result<(), FenceError> {
    result.map_err(|Refused { errno, .. }| FenceError::Nftables { attempted, what: "", source: errno })
}
