//! What the agent's effects need of a host, and the Linux kernel as that host.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vip_core::Holding;
use vip_net::address::{AddressBook, OwnedAddress};
use vip_net::announce::Announcer;
use vip_net::fence::{Fence, LeaseSlot};
use vip_net::link::Interface;

/// The effects of [`vip_core::Action`] on a host. Results come in the order of what was asked for.
pub(crate) trait Dataplane: Send {
    /// Enters addresses into the fence, shut.
    fn know(&mut self, addresses: &[IpAddr]) -> Result<(), String>;
    /// Takes addresses out of the fence.
    fn forget(&mut self, addresses: &[IpAddr]) -> Result<(), String>;
    /// Lets the lease's deadline decide.
    fn open(&mut self, holdings: &[Holding]) -> Result<(), String>;
    /// Closes the fence.
    fn shut(&mut self, holdings: &[Holding]) -> Result<(), String>;
    /// Puts addresses on their interfaces.
    fn add(&mut self, holdings: &[Holding]) -> Vec<Result<(), String>>;
    /// Renews the lifetime of addresses.
    fn refresh(&mut self, holdings: &[Holding]) -> Vec<Result<(), String>>;
    /// Takes addresses off whichever interfaces they are on.
    fn remove(&mut self, holdings: &[Holding]) -> Vec<Result<(), String>>;
    /// Announces addresses; answers with the interfaces on which that failed.
    fn announce(&mut self, holdings: &[Holding]) -> Vec<String>;
}

/// The Ethernet interfaces of this host by name, as the monitor last saw them.
#[derive(Debug, Default)]
pub(crate) struct Interfaces(Mutex<Arc<BTreeMap<String, Interface>>>);

impl Interfaces {
    pub(crate) fn replace(&self, interfaces: BTreeMap<String, Interface>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(interfaces);
    }

    pub(crate) fn snapshot(&self) -> Arc<BTreeMap<String, Interface>> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// This host.
pub(crate) struct Kernel {
    fence: Arc<Fence>,
    book: AddressBook,
    interfaces: Arc<Interfaces>,
    lifetime: Duration,
    /// By interface index: an interface that was made anew gets another one.
    announcers: HashMap<u32, Announcer>,
}

impl Kernel {
    pub(crate) fn new(fence: Arc<Fence>, book: AddressBook, interfaces: Arc<Interfaces>, lifetime: Duration) -> Self {
        Self { fence, book, interfaces, lifetime, announcers: HashMap::new() }
    }

    /// Calls `act` with those whose interface is there, and answers for all in order.
    fn with_indices(
        &self,
        holdings: &[Holding],
        missing: &Result<(), String>,
        act: impl FnOnce(&AddressBook, &[OwnedAddress]) -> Vec<Result<(), String>>,
    ) -> Vec<Result<(), String>> {
        let interfaces = self.interfaces.snapshot();
        let owned: Vec<Option<OwnedAddress>> = holdings
            .iter()
            .map(|holding| {
                let interface = interfaces.get(&holding.interface)?;
                Some(OwnedAddress { index: interface.index, address: holding.address, prefix_len: holding.prefix_len })
            })
            .collect();
        let present: Vec<_> = owned.iter().flatten().copied().collect();
        let mut results = act(&self.book, &present).into_iter();
        owned
            .iter()
            .zip(holdings)
            .map(|(owned, holding)| match owned {
                Some(_) => results.next().unwrap_or(Ok(())),
                None => missing
                    .clone()
                    .map_err(|why| format!("{} cannot go on {}: {why}", holding.address, holding.interface)),
            })
            .collect()
    }
}

fn addresses(holdings: &[Holding]) -> Vec<IpAddr> {
    holdings.iter().map(|holding| holding.address).collect()
}

fn texts<E: std::fmt::Display>(results: Vec<Result<(), E>>) -> Vec<Result<(), String>> {
    results.into_iter().map(|result| result.map_err(|error| error.to_string())).collect()
}

impl Dataplane for Kernel {
    fn know(&mut self, addresses: &[IpAddr]) -> Result<(), String> {
        self.fence.know(addresses).map_err(|error| error.to_string())
    }

    fn forget(&mut self, addresses: &[IpAddr]) -> Result<(), String> {
        self.fence.forget(addresses).map_err(|error| error.to_string())
    }

    fn open(&mut self, holdings: &[Holding]) -> Result<(), String> {
        self.fence.hold(&addresses(holdings), LeaseSlot::LEADER).map_err(|error| error.to_string())
    }

    fn shut(&mut self, holdings: &[Holding]) -> Result<(), String> {
        self.fence.shut(&addresses(holdings)).map_err(|error| error.to_string())
    }

    fn add(&mut self, holdings: &[Holding]) -> Vec<Result<(), String>> {
        let missing = Err("there is no such Ethernet interface".to_owned());
        let lifetime = self.lifetime;
        self.with_indices(holdings, &missing, |book, owned| texts(book.add(owned, lifetime)))
    }

    fn refresh(&mut self, holdings: &[Holding]) -> Vec<Result<(), String>> {
        let lifetime = self.lifetime;
        self.with_indices(holdings, &Ok(()), |book, owned| texts(book.refresh(owned, lifetime)))
    }

    fn remove(&mut self, holdings: &[Holding]) -> Vec<Result<(), String>> {
        // By address and not by interface: an interface that was renamed still has it, and once the VIP is
        // forgotten nothing would keep this host from answering. One that is gone took its addresses with it.
        texts(self.book.remove_tagged(&addresses(holdings)))
    }

    fn announce(&mut self, holdings: &[Holding]) -> Vec<String> {
        let interfaces = self.interfaces.snapshot();
        let mut by_interface: BTreeMap<&str, Vec<IpAddr>> = BTreeMap::new();
        for holding in holdings {
            by_interface.entry(&holding.interface).or_default().push(holding.address);
        }
        let mut failures = Vec::new();
        self.announcers.retain(|index, _| interfaces.values().any(|interface| interface.index == *index));
        for (name, addresses) in by_interface {
            let Some(interface) = interfaces.get(name) else {
                failures.push(format!("{name}: there is no such Ethernet interface"));
                continue;
            };
            if let Err(error) = announce_on(&mut self.announcers, interface, &addresses) {
                // Made anew next time: the socket may be of an interface that is gone.
                self.announcers.remove(&interface.index);
                failures.push(format!("{name}: {error}"));
            }
        }
        failures
    }
}

fn announce_on(
    announcers: &mut HashMap<u32, Announcer>,
    interface: &Interface,
    addresses: &[IpAddr],
) -> Result<(), String> {
    use std::collections::hash_map::Entry;
    let announcer = match announcers.entry(interface.index) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => entry.insert(Announcer::open(interface).map_err(|error| error.to_string())?),
    };
    let announced = announcer.announce(addresses).map_err(|error| error.to_string())?;
    if announced.stopped > 0 {
        return Err(format!(
            "{} of {} announcements did not leave",
            announced.stopped,
            announced.stopped + announced.sent
        ));
    }
    Ok(())
}
