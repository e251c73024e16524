//! Watches this host: links come and go, others remove filters and addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use vip_core::{Input, KillPoint};
use vip_net::fence::{Fence, FenceChanges};
use vip_net::link::{Interface, LinkError, ethernet_interfaces};
use vip_net::monitor::{Monitor, NetEvent};

use crate::dataplane::Interfaces;
use crate::mailbox::Mailbox;

/// How often everything is looked at without being told to: events can be lost, and a filter can go unseen.
const CHECK: Duration = Duration::from_secs(2);

/// The watch over this host.
pub(crate) struct HostWatch {
    pub(crate) fence: Arc<Fence>,
    pub(crate) interfaces: Arc<Interfaces>,
    pub(crate) mailbox: Arc<Mailbox>,
    /// What keeps the fence from being whole, for the status.
    pub(crate) trouble: watch::Sender<Option<String>>,
    /// The interfaces that had their filters when they were looked at last.
    attached: BTreeSet<u32>,
}

impl HostWatch {
    pub(crate) fn new(
        fence: Arc<Fence>,
        interfaces: Arc<Interfaces>,
        mailbox: Arc<Mailbox>,
        trouble: watch::Sender<Option<String>>,
    ) -> Self {
        Self { fence, interfaces, mailbox, trouble, attached: BTreeSet::new() }
    }

    /// Fences every Ethernet interface, and says which can carry traffic.
    ///
    /// # Errors
    /// The interfaces cannot be listed. An interface that cannot be fenced is no error here: see [`Self::trouble`].
    pub(crate) fn look(&mut self) -> Result<(), LinkError> {
        let list = ethernet_interfaces()?;
        let mut trouble = None;
        self.attached.retain(|index| list.iter().any(|interface| interface.index == *index));
        for interface in &list {
            if let Err(why) = self.fence_in(interface) {
                trouble = Some(why);
            }
        }
        let by_name: BTreeMap<String, Interface> =
            list.into_iter().map(|interface| (interface.name.clone(), interface)).collect();
        let links = by_name.iter().map(|(name, at)| (name.clone(), at.up && at.carrier)).collect();
        let known = self.interfaces.snapshot();
        let renewed: Vec<String> =
            by_name.values().filter(|now| is_renewed(&known, now)).map(|now| now.name.clone()).collect();
        self.interfaces.replace(by_name);
        self.mailbox.links(links);
        for interface in renewed {
            tracing::info!(interface, "the interface has another hardware address; announcing what is on it");
            self.mailbox.other(Input::Renewed(interface));
        }
        self.mailbox.other(Input::Fence(trouble.is_none()));
        self.trouble.send_if_modified(|known| {
            let news = *known != trouble;
            *known = trouble;
            news
        });
        Ok(())
    }

    /// Sees to it that `interface` has its filters. Where they had been and are gone, everything is dropped first.
    fn fence_in(&mut self, interface: &Interface) -> Result<(), String> {
        let Interface { index, name, .. } = interface;
        let mut lost = false;
        match self.fence.attached(*index) {
            Ok(true) => {
                self.attached.insert(*index);
                return Ok(());
            }
            Ok(false) if self.attached.remove(index) => {
                tracing::error!(
                    interface = name,
                    "the fence's filter was removed by somebody; dropping all VIPs, then repairing it"
                );
                self.mailbox.other(Input::Fence(false));
                lost = true;
            }
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, interface = name, "cannot look at the fence's filters"),
        }
        match self.fence.attach(*index) {
            Ok(()) => {
                self.attached.insert(*index);
                tracing::info!(interface = name, "fenced");
                if lost {
                    KillPoint::RepairFenced.reach();
                }
                Ok(())
            }
            Err(error) => {
                let gone = ethernet_interfaces().is_ok_and(|list| list.iter().all(|other| other.index != *index));
                if gone {
                    return Ok(());
                }
                tracing::error!(%error, interface = name, "cannot fence an interface; no VIP is held until that works");
                Err(error.to_string())
            }
        }
    }

    /// Watches for as long as the process lives.
    pub(crate) async fn run(mut self) {
        loop {
            match Monitor::open() {
                Ok(monitor) => self.follow(monitor).await,
                Err(error) => tracing::error!(%error, "cannot watch this host; looking every {CHECK:?} instead"),
            }
            tokio::time::sleep(CHECK).await;
            self.look_again();
        }
    }

    async fn follow(&mut self, mut monitor: Monitor) {
        // What changed before the subscription began is not told by it.
        let mut changes = self.fence.changes().unwrap_or_else(|error| {
            tracing::error!(%error, "cannot watch the fence's table; looking every {CHECK:?} instead");
            None
        });
        self.look_again();
        let mut interval = tokio::time::interval(CHECK);
        loop {
            tokio::select! {
                event = monitor.next() => match event {
                    Some(event) => self.on(event),
                    None => return,
                },
                result = changed(changes.as_ref()) => {
                    if let Err(error) = result {
                        tracing::error!(%error, "cannot watch the fence's table any more; looking every {CHECK:?} instead");
                        changes = None;
                    }
                    self.look_again();
                }
                _ = interval.tick() => self.look_again(),
            }
        }
    }

    fn on(&mut self, event: NetEvent) {
        match event {
            NetEvent::LinkChanged(interface) => {
                let known = self.interfaces.snapshot();
                if known.get(&interface.name) != Some(&interface) {
                    self.look_again();
                }
            }
            NetEvent::LinkRemoved { .. } | NetEvent::FilterRemoved { .. } | NetEvent::Overrun => self.look_again(),
            NetEvent::AddressRemoved { address, .. } => self.mailbox.other(Input::AddressLost(address)),
            NetEvent::AddressAdded(_) => {}
        }
    }

    fn look_again(&mut self) {
        // A dump of links and filters takes a millisecond or so; other tasks of this worker move elsewhere meanwhile.
        tokio::task::block_in_place(|| {
            if let Err(error) = self.look() {
                tracing::error!(%error, "cannot list the interfaces; dropping all VIPs");
                self.mailbox.other(Input::Fence(false));
            }
        });
    }
}

/// Whether the neighbours know an interface of this name by an address that it has no more.
fn is_renewed(known: &BTreeMap<String, Interface>, now: &Interface) -> bool {
    known.get(&now.name).is_some_and(|before| before.mac != now.mac)
}

/// Waits for ever where there is nothing to wait for.
async fn changed(changes: Option<&FenceChanges>) -> std::io::Result<()> {
    match changes {
        Some(changes) => changes.next().await,
        None => std::future::pending().await,
    }
}
