//! Addresses on interfaces, tagged with who put them there.
//!
//! Every address that is added here carries [`VIPD_PROTO`] as its `IFA_PROTO` (Linux 5.18), so that a restarted
//! daemon finds what its predecessor left and touches nothing else. It also has a finite lifetime: should nobody
//! refresh it, the kernel takes it away. That is the janitor, not the fence: it is seconds late.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope, CacheInfo,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use thiserror::Error;

use crate::netlink::{Netlink, Request, errno};

/// The `IFA_PROTO` of every address that vipd adds (`ip addr` shows it as `proto 0x76`).
pub const VIPD_PROTO: u8 = 0x76;

/// The index of the loopback interface in every network namespace (`LOOPBACK_IFINDEX` in the kernel).
const LOOPBACK: u32 = 1;

/// Tried on the loopback interface, where it harms nobody: the network 127.0.0.0/8 never leaves a host.
const TRIAL: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 118, 105, 112));

/// Why an address could not be added, removed or listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    /// No netlink socket.
    #[error("no netlink socket for addresses: {source}")]
    Open {
        /// What the kernel said.
        source: Errno,
    },
    /// The kernel could not be asked which addresses there are.
    #[error("listing the addresses of this host failed: {source}")]
    List {
        /// What the kernel said.
        source: Errno,
    },
    /// The address is on the interface already, and vipd did not put it there. It was left alone.
    #[error(
        "{address}/{prefix_len} is on interface {index} without vipd's tag, so somebody else put it there; \
         remove it by hand (ip addr del) and from the host's network configuration"
    )]
    Foreign {
        /// The address.
        address: IpAddr,
        /// The prefix length that it has now.
        prefix_len: u8,
        /// The interface it is on.
        index: u32,
    },
    /// The kernel forgets who added an address.
    #[error(
        "this kernel does not keep the tag by which vipd tells its addresses from others' (IFA_PROTO): an address was \
         added with it and came back without; vipd needs Linux 5.18 or later"
    )]
    NoTags,
    /// The kernel refused to add or refresh it.
    #[error("adding {address}/{prefix_len} to interface {index} failed: {source}{}", hint(*.source))]
    Add {
        /// The address.
        address: IpAddr,
        /// The prefix length that was asked for.
        prefix_len: u8,
        /// The interface.
        index: u32,
        /// What the kernel said.
        source: Errno,
    },
    /// The kernel refused to remove it.
    #[error("removing {address}/{prefix_len} from interface {index} failed: {source}{}", hint(*.source))]
    Remove {
        /// The address.
        address: IpAddr,
        /// The prefix length it has.
        prefix_len: u8,
        /// The interface.
        index: u32,
        /// What the kernel said.
        source: Errno,
    },
}

fn hint(source: Errno) -> &'static str {
    match source {
        Errno::EPERM => "; vipd needs CAP_NET_ADMIN",
        Errno::ENODEV => "; the interface is gone",
        Errno::EACCES => "; IPv6 is disabled on the interface (sysctl disable_ipv6)",
        _ => "",
    }
}

/// An address that vipd puts on an interface, or takes away from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OwnedAddress {
    /// The interface.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
    /// The prefix length; 32 or 128 where neighbours reach the address through another one's prefix route.
    pub prefix_len: u8,
}

/// An address as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelAddress {
    /// The interface.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
    /// The prefix length.
    pub prefix_len: u8,
    /// Who put it there (`IFA_PROTO`), where that is known.
    pub proto: Option<u8>,
    /// Duplicate address detection has not finished: the address does not answer yet.
    pub tentative: bool,
    /// Duplicate address detection found another host: the address does not answer.
    pub dad_failed: bool,
    /// Never chosen as the source of a new flow; it answers all the same.
    pub deprecated: bool,
    /// What is left of its lifetime, in whole seconds; `None` where it has none.
    pub valid: Option<Duration>,
}

impl KernelAddress {
    /// Whether vipd added it.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.proto == Some(VIPD_PROTO)
    }
}

/// What the kernel has, by interface and address: a thousand addresses are looked up at once.
type Present = HashMap<(u32, IpAddr), Vec<KernelAddress>>;

/// What to do for one address that was asked for.
enum Plan {
    Create,
    Refresh,
    Refuse(AddressError),
}

/// Adds, refreshes, removes and lists addresses. Calls from several threads wait for each other.
#[derive(Debug)]
pub struct AddressBook {
    netlink: Mutex<Netlink>,
}

impl AddressBook {
    /// For the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// [`AddressError::Open`].
    pub fn new() -> Result<Self, AddressError> {
        let netlink = Netlink::open().map_err(|error| AddressError::Open { source: errno(&error) })?;
        Ok(Self { netlink: Mutex::new(netlink) })
    }

    /// Adds the addresses, or refreshes those of ours that are there; one result each, in order.
    ///
    /// They answer at once (no duplicate address detection: the lease is the proof that nobody else has it), come
    /// with no route, and vanish after `lifetime` (rounded up to whole seconds) unless they are added again. IPv6
    /// addresses are deprecated from the start, so that the host never picks one as its own source address. An
    /// address that is on the interface without our tag is refused and left as it is.
    #[must_use = "each address has its own result"]
    pub fn add(&self, addresses: &[OwnedAddress], lifetime: Duration) -> Vec<Result<(), AddressError>> {
        let mut netlink = self.lock();
        let present = match list(&mut netlink) {
            Ok(addresses) => by_place(addresses),
            Err(error) => return vec![Err(error); addresses.len()],
        };
        let plans: Vec<Plan> = addresses.iter().map(|wanted| plan(&present, wanted)).collect();
        let requests = addresses.iter().zip(&plans).filter_map(|(wanted, plan)| {
            // A new address is created exclusively: one that somebody adds at this very moment is not taken over.
            let flags = match plan {
                Plan::Create => NLM_F_CREATE | NLM_F_EXCL,
                Plan::Refresh => NLM_F_CREATE | NLM_F_REPLACE,
                Plan::Refuse(_) => return None,
            };
            let message = RouteNetlinkMessage::NewAddress(addition(wanted, lifetime));
            Some(Request { message, flags })
        });
        let mut verdicts = match netlink.execute(requests) {
            Ok(verdicts) => verdicts.into_iter(),
            Err(error) => {
                let source = errno(&error);
                return addresses.iter().map(|wanted| Err(add_failed(wanted, source))).collect();
            }
        };
        addresses
            .iter()
            .zip(plans)
            .map(|(wanted, plan)| match plan {
                Plan::Refuse(error) => Err(error),
                Plan::Create | Plan::Refresh => {
                    let verdict = verdicts.next().unwrap_or(Err(Errno::EPROTO));
                    verdict.map_err(|source| match source {
                        Errno::EEXIST => foreign(wanted.address, wanted.prefix_len, wanted.index),
                        source => add_failed(wanted, source),
                    })
                }
            })
            .collect()
    }

    /// Sets the lifetime of our addresses anew, and adds those that are missing: the same as [`Self::add`].
    #[must_use = "each address has its own result"]
    pub fn refresh(&self, addresses: &[OwnedAddress], lifetime: Duration) -> Vec<Result<(), AddressError>> {
        self.add(addresses, lifetime)
    }

    /// Removes our addresses, whatever prefix length they have; one result each, in order.
    ///
    /// One that is not there is done. One without our tag is refused and left as it is.
    #[must_use = "each address has its own result"]
    pub fn remove(&self, addresses: &[OwnedAddress]) -> Vec<Result<(), AddressError>> {
        let keys: Vec<_> = addresses.iter().map(|wanted| (wanted.index, wanted.address)).collect();
        self.remove_by(&keys, |found| Some((found.index, found.address)))
    }

    /// Removes our addresses from whichever interfaces they are on; one result each, in order.
    ///
    /// For giving an address up: the interface it was put on may have another name by now. One that is nowhere is
    /// done. One that is also somewhere without our tag is refused after ours are gone, for this host would still
    /// answer for it. Not counted is the loopback interface, where the servers behind a load balancer with direct
    /// return have it.
    #[must_use = "each address has its own result"]
    pub fn remove_tagged(&self, addresses: &[IpAddr]) -> Vec<Result<(), AddressError>> {
        self.remove_by(addresses, |found| (found.is_ours() || found.index != LOOPBACK).then_some(found.address))
    }

    /// Removes what has our tag and one of the keys; says what has the key and not the tag. One dump for all.
    fn remove_by<K: Eq + Hash>(
        &self,
        keys: &[K],
        key_of: impl Fn(&KernelAddress) -> Option<K>,
    ) -> Vec<Result<(), AddressError>> {
        let mut netlink = self.lock();
        let present = match list(&mut netlink) {
            Ok(present) => present,
            Err(error) => return vec![Err(error); keys.len()],
        };
        let mut by_key: HashMap<K, Vec<&KernelAddress>> = HashMap::with_capacity(present.len());
        for found in &present {
            if let Some(key) = key_of(found) {
                by_key.entry(key).or_default().push(found);
            }
        }
        let found = |key: &K| by_key.get(key).into_iter().flatten().copied();
        let ours: Vec<&KernelAddress> = keys.iter().flat_map(found).filter(|entry| entry.is_ours()).collect();
        let mut verdicts = remove_all(&mut netlink, &ours).into_iter();
        keys.iter()
            .map(|key| {
                // As many verdicts as this key had entries of ours, in the same order; the first failure counts.
                let count = found(key).filter(|entry| entry.is_ours()).count();
                let removed = verdicts.by_ref().take(count).fold(Ok(()), Result::and);
                let other = found(key).find(|entry| !entry.is_ours());
                let refused = other.map(|entry| Err(foreign(entry.address, entry.prefix_len, entry.index)));
                if removed.is_err() { removed } else { refused.unwrap_or(Ok(())) }
            })
            .collect()
    }

    /// All addresses of all interfaces, ours and others.
    ///
    /// # Errors
    ///
    /// [`AddressError::List`].
    pub fn list(&self) -> Result<Vec<KernelAddress>, AddressError> {
        list(&mut self.lock())
    }

    /// Removes every address with our tag from every interface, and no other: what a predecessor left behind.
    /// Returns those that were removed.
    ///
    /// # Errors
    ///
    /// [`AddressError::List`], or the first [`AddressError::Remove`] after all were tried.
    pub fn sweep(&self) -> Result<Vec<KernelAddress>, AddressError> {
        let mut netlink = self.lock();
        let ours: Vec<KernelAddress> = list(&mut netlink)?.into_iter().filter(KernelAddress::is_ours).collect();
        let verdicts = remove_all(&mut netlink, &ours.iter().collect::<Vec<_>>());
        verdicts.into_iter().collect::<Result<(), _>>()?;
        Ok(ours)
    }

    /// Whether this kernel keeps the tag by which vipd knows its addresses (`IFA_PROTO`, Linux 5.18). By trying it, on
    /// the loopback interface and with an address that no host is reached by: vendors bring it to older versions too.
    ///
    /// # Errors
    ///
    /// [`AddressError::NoTags`] where it does not; what adding, listing or removing the address failed with.
    pub fn check_tags(&self) -> Result<(), AddressError> {
        let trial = OwnedAddress { index: LOOPBACK, address: TRIAL, prefix_len: 32 };
        let mut netlink = self.lock();
        let message = RouteNetlinkMessage::NewAddress(addition(&trial, Duration::from_secs(1)));
        match netlink.execute_one(message, NLM_F_CREATE | NLM_F_EXCL) {
            Ok(()) => {}
            // Somebody else's, who may keep it; or of a daemon that tries at this moment.
            Err(Errno::EEXIST) => return Ok(()),
            Err(source) => return Err(add_failed(&trial, source)),
        }
        let found: Vec<KernelAddress> =
            list(&mut netlink)?.into_iter().filter(|found| found.address == TRIAL).collect();
        let kept = found.iter().any(KernelAddress::is_ours);
        remove_all(&mut netlink, &found.iter().collect::<Vec<_>>()).into_iter().collect::<Result<(), _>>()?;
        if kept { Ok(()) } else { Err(AddressError::NoTags) }
    }

    fn lock(&self) -> MutexGuard<'_, Netlink> {
        // The socket holds no state that a panic could leave half done: answers are matched by number.
        self.netlink.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn by_place(addresses: Vec<KernelAddress>) -> Present {
    let mut present = Present::with_capacity(addresses.len());
    for address in addresses {
        present.entry((address.index, address.address)).or_default().push(address);
    }
    present
}

fn plan(present: &Present, wanted: &OwnedAddress) -> Plan {
    let mut plan = Plan::Create;
    for found in present.get(&(wanted.index, wanted.address)).into_iter().flatten() {
        if !found.is_ours() {
            return Plan::Refuse(foreign(found.address, found.prefix_len, found.index));
        }
        // IPv4 may have the same address twice, with different prefix lengths; IPv6 may not.
        if found.address.is_ipv6() || found.prefix_len == wanted.prefix_len {
            plan = Plan::Refresh;
        }
    }
    plan
}

const fn foreign(address: IpAddr, prefix_len: u8, index: u32) -> AddressError {
    AddressError::Foreign { address, prefix_len, index }
}

const fn add_failed(wanted: &OwnedAddress, source: Errno) -> AddressError {
    let &OwnedAddress { index, address, prefix_len } = wanted;
    AddressError::Add { address, prefix_len, index, source }
}

fn list(netlink: &mut Netlink) -> Result<Vec<KernelAddress>, AddressError> {
    let objects = netlink
        .dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))
        .map_err(|error| AddressError::List { source: errno(&error) })?;
    Ok(objects
        .iter()
        .filter_map(|object| match object {
            RouteNetlinkMessage::NewAddress(message) => kernel_address(message),
            _ => None,
        })
        .collect())
}

fn remove_all(netlink: &mut Netlink, addresses: &[&KernelAddress]) -> Vec<Result<(), AddressError>> {
    let requests = addresses.iter().map(|found| Request {
        message: RouteNetlinkMessage::DelAddress(base(found.index, found.address, found.prefix_len)),
        flags: 0,
    });
    let verdicts = netlink.execute(requests).unwrap_or_else(|error| vec![Err(errno(&error)); addresses.len()]);
    addresses
        .iter()
        .zip(verdicts)
        .map(|(found, verdict)| match verdict {
            // Gone already: its lifetime ended, or its interface did.
            Ok(()) | Err(Errno::EADDRNOTAVAIL | Errno::ENOENT | Errno::ENODEV) => Ok(()),
            Err(source) => {
                let (address, prefix_len, index) = (found.address, found.prefix_len, found.index);
                Err(AddressError::Remove { address, prefix_len, index, source })
            }
        })
        .collect()
}

fn base(index: u32, address: IpAddr, prefix_len: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    message.header.prefix_len = prefix_len;
    message.header.index = index;
    message.header.scope = AddressScope::Universe;
    // IPv4 knows the address by IFA_LOCAL; IFA_ADDRESS is the peer's, the same where there is none.
    message.attributes.push(AddressAttribute::Local(address));
    message.attributes.push(AddressAttribute::Address(address));
    message
}

fn addition(wanted: &OwnedAddress, lifetime: Duration) -> AddressMessage {
    let mut message = base(wanted.index, wanted.address, wanted.prefix_len);
    let seconds = lifetime.as_secs() + u64::from(lifetime.subsec_nanos() > 0);
    // u32::MAX means "for ever" to the kernel.
    let seconds = u32::try_from(seconds.max(1)).unwrap_or(u32::MAX).min(u32::MAX - 1);
    let mut cache = CacheInfo::default();
    cache.ifa_valid = seconds;
    cache.ifa_preferred = if wanted.address.is_ipv6() { 0 } else { seconds };
    let mut flags = AddressFlags::Noprefixroute;
    if wanted.address.is_ipv6() {
        flags |= AddressFlags::Nodad;
    }
    message.attributes.push(AddressAttribute::CacheInfo(cache));
    message.attributes.push(AddressAttribute::Flags(flags));
    message.attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(VIPD_PROTO)));
    message
}

/// `None` for a message without an address.
pub(crate) fn kernel_address(message: &AddressMessage) -> Option<KernelAddress> {
    let (mut local, mut address, mut proto, mut valid) = (None, None, None, None);
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(value) => local = Some(*value),
            AddressAttribute::Address(value) => address = Some(*value),
            AddressAttribute::Protocol(value) => proto = Some(u8::from(*value)),
            AddressAttribute::Flags(value) => flags = *value,
            AddressAttribute::CacheInfo(cache) if cache.ifa_valid != u32::MAX => {
                valid = Some(Duration::from_secs(u64::from(cache.ifa_valid)));
            }
            _ => {}
        }
    }
    Some(KernelAddress {
        index: message.header.index,
        address: local.or(address)?,
        prefix_len: message.header.prefix_len,
        proto,
        tentative: flags.contains(AddressFlags::Tentative),
        dad_failed: flags.contains(AddressFlags::Dadfailed),
        deprecated: flags.contains(AddressFlags::Deprecated),
        valid,
    })
}
