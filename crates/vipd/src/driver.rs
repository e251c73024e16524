//! Drives the agent: waits, feeds it, does what it says, and answers. One thread, which does nothing else.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use vip_core::{
    Action, Agent, AgentConfig, BootInstant, Claim, Command, HolderState, Holding, Input, KillPoint, Leadership,
    LeaseKind, Outcome, Step, VipName, VipStatus,
};
use vip_raft::RaftHandle;

use crate::dataplane::Dataplane;
use crate::mailbox::Mailbox;

/// What each VIP is doing on this node.
pub(crate) type Statuses = Arc<BTreeMap<VipName, VipStatus>>;

/// How long the successor gets to be elected before this node goes on without having seen it.
const TRANSFER_PATIENCE: Duration = Duration::from_millis(1000);

/// What the driver works with.
pub(crate) struct Driver<D> {
    pub(crate) agent: Agent,
    pub(crate) dataplane: D,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) raft: RaftHandle,
    pub(crate) runtime: Handle,
    pub(crate) clock: fn() -> BootInstant,
    pub(crate) statuses: watch::Sender<Statuses>,
    /// Whether leadership is being handed over, or was, as far as this node could.
    pub(crate) transferring: watch::Sender<bool>,
    pub(crate) finished: Option<oneshot::Sender<()>>,
    /// Why the VIPs could not be assigned last. Said once: it is tried many times a second.
    pub(crate) not_assigned: watch::Sender<Option<(Leadership, String)>>,
    /// The leadership that was given up last, and is to be handed over.
    pub(crate) resigned: Option<Leadership>,
    /// How the last step of each VIP failed, where it did: what fails the same way again and again is said once.
    pub(crate) failures: BTreeMap<VipName, (Step, String)>,
}

impl<D: Dataplane + 'static> Driver<D> {
    /// Starts the thread. It ends when the agent says that it is finished.
    pub(crate) fn spawn(self) -> io::Result<std::thread::JoinHandle<()>> {
        std::thread::Builder::new().name("vipd-agent".to_owned()).spawn(move || self.run())
    }

    fn run(mut self) {
        while self.finished.is_some() {
            let now = (self.clock)();
            let patience = self.agent.next_deadline().map(|deadline| deadline.saturating_duration_since(now));
            let mut inputs = self.mailbox.take(patience);
            if inputs.is_empty() {
                inputs.push(Input::Tick);
            }
            let mut acted = false;
            let mut carries_changed = false;
            for input in inputs {
                carries_changed |= matches!(input, Input::State(_) | Input::Links(_) | Input::Fence(_));
                self.agent.handle(input, (self.clock)());
                acted |= self.act();
            }
            // A step that failed, or works again, changes it as well.
            if (acted || carries_changed) && self.finished.is_some() {
                self.raft.set_eligible(self.agent.can_carry_all());
            }
            if acted || carries_changed {
                self.publish();
            }
        }
    }

    /// Does everything that the agent asks for; returns whether that changed what a VIP is doing.
    fn act(&mut self) -> bool {
        let mut acted = false;
        while let Some(action) = self.agent.poll_action() {
            acted |= !matches!(action, Action::Announce(_) | Action::Refresh(_));
            self.perform(action);
        }
        acted
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Know(addresses) => {
                if let Err(error) = self.dataplane.know(&addresses) {
                    // What is not in the fence must not be acquired.
                    tracing::error!(error, "cannot enter VIPs into the fence");
                    self.mailbox.other(Input::Fence(false));
                }
                KillPoint::VipKnown.reach();
            }
            Action::Forget(addresses) => {
                if let Err(error) = self.dataplane.forget(&addresses) {
                    tracing::error!(
                        error,
                        ?addresses,
                        "cannot take deleted VIPs out of the fence; they stay shut here"
                    );
                }
                KillPoint::VipForgotten.reach();
            }
            Action::Enable(leadership) => self.raft.lease().enable(leadership),
            Action::Propose(leadership, claims) => self.propose(leadership, claims),
            Action::Open(holdings) => {
                let result = self.dataplane.open(&holdings);
                KillPoint::AcquireFenceOpened.reach();
                self.done(Step::Open, &holdings, vec![result; holdings.len()]);
            }
            Action::Add(holdings) => {
                let results = self.dataplane.add(&holdings);
                KillPoint::AcquireAddressAdded.reach();
                self.done(Step::Add, &holdings, results);
            }
            Action::Announce(holdings) => {
                for failure in self.dataplane.announce(&holdings) {
                    tracing::warn!(failure, "announcing failed; it is repeated");
                }
                KillPoint::AcquireAnnounced.reach();
            }
            Action::Refresh(holdings) => {
                for result in self.dataplane.refresh(&holdings) {
                    if let Err(error) = result {
                        tracing::warn!(error, "renewing the lifetime of an address failed");
                    }
                }
                KillPoint::AddressRefreshed.reach();
            }
            Action::Shut(holdings) => {
                self.log_lapse();
                let result = self.dataplane.shut(&holdings);
                KillPoint::ReleaseFenceShut.reach();
                self.done(Step::Shut, &holdings, vec![result; holdings.len()]);
            }
            Action::Remove(holdings) => {
                let results = self.dataplane.remove(&holdings);
                KillPoint::ReleaseAddressRemoved.reach();
                self.done(Step::Remove, &holdings, results);
            }
            Action::Resign(leadership) => {
                tracing::info!(%leadership, "giving the VIPs back");
                self.resigned = Some(leadership);
                if let Err(error) = self.raft.lease().resign(leadership) {
                    tracing::error!(%error, "cannot end the lease in the kernel; it runs to its deadline");
                }
            }
            Action::Transfer => self.transfer(),
            Action::Finished => {
                if let Some(finished) = self.finished.take() {
                    let _ = finished.send(());
                }
            }
        }
    }

    fn done(&mut self, step: Step, holdings: &[Holding], results: Vec<Result<(), String>>) {
        self.log_step(step, holdings, &results);
        let results = holdings
            .iter()
            .zip(results)
            .map(|(holding, result)| (holding.vip.clone(), holding.epoch, result))
            .collect();
        self.agent.handle(Input::Done(step, results), (self.clock)());
    }

    /// One line for a step of many VIPs, and one for each new failure.
    fn log_step(&mut self, step: Step, holdings: &[Holding], results: &[Result<(), String>]) {
        for (holding, result) in holdings.iter().zip(results) {
            let Err(error) = result else {
                if matches!(step, Step::Add | Step::Remove) {
                    self.failures.retain(|vip, (failed, _)| *vip != holding.vip || *failed != step);
                }
                continue;
            };
            let failure = (step, error.clone());
            let known = self.failures.insert(holding.vip.clone(), failure.clone()) == Some(failure);
            let (vip, address, epoch) = (&holding.vip, holding.address, holding.epoch);
            if known {
                tracing::debug!(%vip, %address, %epoch, ?step, error, "a step failed again");
            } else {
                tracing::error!(%vip, %address, %epoch, ?step, error, "a step failed; it is tried again");
            }
        }
        let count = results.iter().filter(|result| result.is_ok()).count();
        let Some(first) = holdings.first().filter(|_| count > 0) else { return };
        let (vip, epoch) = (&first.vip, first.epoch);
        match step {
            Step::Add => tracing::info!(count, %vip, %epoch, "holding VIPs"),
            Step::Remove => tracing::info!(count, %vip, %epoch, "released VIPs"),
            Step::Open | Step::Shut => tracing::debug!(count, %vip, %epoch, ?step, "fence"),
        }
    }

    fn propose(&self, leadership: Leadership, claims: Vec<Claim>) {
        let (raft, mailbox) = (self.raft.clone(), Arc::clone(&self.mailbox));
        let not_assigned = self.not_assigned.clone();
        let command = Command::Assign { by: leadership, owner: leadership.node, kind: LeaseKind::Leader, claims };
        self.runtime.spawn(async move {
            let result = match raft.propose_here(command).await {
                Ok(Outcome::Changed { .. } | Outcome::Unchanged { .. }) => {
                    KillPoint::VipAssigned.reach();
                    Ok(())
                }
                Ok(Outcome::Refused(refusal)) => Err(refusal.to_string()),
                Err(error) => Err(error.to_string()),
            };
            let why = result.as_ref().err().map(|error| (leadership, error.clone()));
            if not_assigned.send_replace(why.clone()) != why
                && let Some((_, error)) = why
            {
                tracing::warn!(error, %leadership, "the VIPs were not assigned; it is tried again until they are");
            }
            // The state comes through its own door, and before the answer if both are on their way.
            mailbox.state(Arc::clone(&raft.applied().borrow().cluster));
            mailbox.other(Input::Proposed(result));
        });
    }

    fn transfer(&self) {
        let Some(from) = self.resigned else { return };
        let (raft, transferring) = (self.raft.clone(), self.transferring.clone());
        transferring.send_replace(true);
        self.runtime.spawn(async move {
            if !raft.transfer(from, TRANSFER_PATIENCE).await {
                tracing::warn!(
                    "no other node took over leadership in time; the others elect when the lease has run out"
                );
            }
            transferring.send_replace(false);
        });
    }

    /// R13: no quorum, no VIP, and the operator is told.
    fn log_lapse(&self) {
        let count = self.agent.status().values().filter(|vip| vip.state == HolderState::Fenced).count();
        if count > 0 {
            tracing::warn!(
                count,
                "no quorum answered within the lease: the kernel has silenced the VIPs, and their addresses are removed"
            );
        }
    }

    fn publish(&self) {
        self.statuses.send_replace(Arc::new(self.agent.status()));
    }
}

/// How the agent of a node with `config` behaves.
pub(crate) fn agent_config(config: &crate::config::Config) -> AgentConfig {
    AgentConfig {
        me: config.node,
        interface_map: config.interface_map.clone(),
        announce_burst: config.announce_burst.clone(),
        announce_refresh: config.announce_refresh,
        // Two renewals may fail before an address is lost.
        address_refresh: config.address_lifetime / 3,
        acquire_retry: Duration::from_secs(1),
        propose_retry: Duration::from_millis(50),
        blocked_for: Duration::from_secs(30),
        step_aside_interval: Duration::from_secs(5),
    }
}
