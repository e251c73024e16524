//! The replicated machine: what the cluster has agreed on.
//!
//! Every node applies the same commands in the same order and so holds the same state. No clock, no randomness,
//! no effect: a node acts on what it reads here elsewhere (see [`crate::agent`]).

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::{Epoch, Leadership, NodeId, VipName};
use crate::rules::{Rule, holds};
use crate::spec::{Placement, VipSpec};

/// The most VIPs that one cluster holds; the kernel fence has room for them.
pub const MAX_VIPS: usize = 10_000;

/// By which lease an assignment is held. It never changes silently when an owner becomes leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseKind {
    /// Kind L: the owner is the leader that proposed it and holds it by its own quorum lease.
    Leader,
}

/// Who owns a VIP, as agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The owner.
    pub owner: NodeId,
    /// The log index of the entry that made this assignment.
    pub epoch: Epoch,
    /// The leadership that decided it.
    pub by: Leadership,
    /// The lease that holds it.
    pub kind: LeaseKind,
}

/// A VIP in the replicated state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipRecord {
    /// As declared.
    pub spec: VipSpec,
    /// The newest assignment; none before the first.
    pub assignment: Option<Assignment>,
    /// The revision that declared it.
    pub declared_at: u64,
    /// The revision that changed it last.
    pub changed_at: u64,
}

/// One VIP that an [`Command::Assign`] claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The VIP.
    pub vip: VipName,
    /// The epoch that the claim replaces; where another is current by then, the claim is void.
    pub base: Option<Epoch>,
}

/// A change that the cluster is asked to agree on. Repeating one does no harm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Declares the VIPs that the cluster begins with. Counts once in a cluster's life, whoever says it first.
    Form(Vec<VipSpec>),
    /// Makes known which store a node id belongs to, so that a wiped disk is noticed.
    RegisterNode {
        /// The node.
        node: NodeId,
        /// The id that its store drew when it was made.
        instance: String,
    },
    /// Adds a VIP. The same declaration again changes nothing; another one under the same name is refused.
    DeclareVip(VipSpec),
    /// Removes a VIP. Removing what is not there changes nothing.
    DeleteVip(VipName),
    /// Gives VIPs an owner, all in one entry and so with one epoch.
    Assign {
        /// The leadership that decided it; the entry counts only if that very leadership appended it.
        by: Leadership,
        /// The owner.
        owner: NodeId,
        /// The lease that will hold them.
        kind: LeaseKind,
        /// The VIPs.
        claims: Vec<Claim>,
    },
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Another VIP has that name.
    #[error(
        "a VIP named {name} exists already, with {existing}, not {requested}; delete it first or choose another name"
    )]
    NameTaken {
        /// The name.
        name: VipName,
        /// What it stands for now.
        existing: String,
        /// What was asked for.
        requested: String,
    },
    /// Another VIP has that address.
    #[error("the address {address} belongs to the VIP {name} already")]
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// Its VIP.
        name: VipName,
    },
    /// No room.
    #[error("the cluster holds {found} VIPs already; at most {most} are possible")]
    TooMany {
        /// How many there are.
        found: usize,
        /// How many there can be.
        most: usize,
    },
    /// The node id belongs to another store.
    #[error(
        "node {node} is known with store {known}, not {found}: a wiped disk is a new node, and an old copy of the disk forgets its votes; put the right disk back, or form the cluster anew under another name"
    )]
    OtherInstance {
        /// The node.
        node: NodeId,
        /// The registered store.
        known: String,
        /// The one that was offered.
        found: String,
    },
    /// The entry was appended by another leadership than the one that decided it.
    #[error("decided by {decided}, but appended by {appended}")]
    OtherLeadership {
        /// Who decided.
        decided: Leadership,
        /// Who appended.
        appended: Leadership,
    },
}

/// What applying a command came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// State changed; this is the revision that did it.
    Changed {
        /// The revision.
        revision: u64,
    },
    /// Everything was so already.
    Unchanged {
        /// The revision that stands.
        revision: u64,
    },
    /// Nothing changed, for this reason.
    Refused(Refusal),
}

/// The replicated state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// The log index of the last entry that changed anything here.
    pub revision: u64,
    /// The VIPs by name.
    pub vips: BTreeMap<VipName, VipRecord>,
    /// Whether the first VIPs were declared, even if there were none; later ones come one by one.
    #[serde(default)]
    pub formed: bool,
    /// The store that each node id belongs to.
    pub instances: BTreeMap<NodeId, String>,
    /// Which VIP an address belongs to; made from `vips`, never stored.
    #[serde(skip)]
    addresses: BTreeMap<IpAddr, VipName>,
}

impl Cluster {
    /// Rebuilds what is not stored. To be called after deserializing.
    #[must_use]
    pub fn restored(mut self) -> Self {
        self.addresses = self.vips.values().map(|vip| (vip.spec.address, vip.spec.name.clone())).collect();
        self
    }

    /// Applies the command of the log entry `index` that `appended_by` appended.
    pub fn apply(&mut self, index: u64, appended_by: Leadership, command: Command) -> Outcome {
        let result = match command {
            Command::Form(specs) => self.form(index, specs),
            Command::RegisterNode { node, instance } => self.register(node, instance),
            Command::DeclareVip(spec) => self.declare(index, spec),
            Command::DeleteVip(name) => Ok(self.delete(&name)),
            Command::Assign { by, owner, kind, claims } => {
                if by == appended_by || !holds(Rule::AssignByDecider) {
                    Ok(self.assign(index, Assignment { owner, epoch: Epoch(index), by, kind }, claims))
                } else {
                    Err(Refusal::OtherLeadership { decided: by, appended: appended_by })
                }
            }
        };
        match result {
            Ok(changed) => self.changed(index, changed),
            Err(refusal) => Outcome::Refused(refusal),
        }
    }

    /// Applies the first entry of a leadership, `index`: the leader owns every VIP of placement `leader` from here on.
    ///
    /// That entry has to be committed before a leader may do anything. Since it says who leads, it is the assignment,
    /// too, and a takeover need not wait for a second one. Assignments that come later replace this one (see
    /// [`Command::Assign`]): those of VIPs that were declared since, or given back.
    pub fn begin(&mut self, index: u64, leadership: Leadership) -> Outcome {
        let assignment =
            Assignment { owner: leadership.node, epoch: Epoch(index), by: leadership, kind: LeaseKind::Leader };
        let mut changed = false;
        for vip in self.vips.values_mut() {
            match vip.spec.placement {
                Placement::Leader => {
                    vip.assignment = Some(assignment);
                    vip.changed_at = index;
                    changed = true;
                }
            }
        }
        self.changed(index, changed)
    }

    fn changed(&mut self, index: u64, changed: bool) -> Outcome {
        if changed {
            self.revision = index;
            Outcome::Changed { revision: index }
        } else {
            Outcome::Unchanged { revision: self.revision }
        }
    }

    /// The VIP that holds `address`.
    #[must_use]
    pub fn vip_of(&self, address: IpAddr) -> Option<&VipRecord> {
        self.addresses.get(&address).and_then(|name| self.vips.get(name))
    }

    /// All or none: half a configuration would look like all of it.
    fn form(&mut self, index: u64, specs: Vec<VipSpec>) -> Result<bool, Refusal> {
        if self.formed {
            return Ok(false);
        }
        let before = self.clone();
        for spec in specs {
            if let Err(refusal) = self.declare(index, spec) {
                *self = before;
                return Err(refusal);
            }
        }
        self.formed = true;
        Ok(true)
    }

    fn register(&mut self, node: NodeId, instance: String) -> Result<bool, Refusal> {
        match self.instances.get(&node) {
            Some(known) if *known == instance => Ok(false),
            Some(known) => Err(Refusal::OtherInstance { node, known: known.clone(), found: instance }),
            None => {
                self.instances.insert(node, instance);
                Ok(true)
            }
        }
    }

    fn declare(&mut self, index: u64, spec: VipSpec) -> Result<bool, Refusal> {
        if let Some(known) = self.vips.get(&spec.name) {
            if known.spec == spec {
                return Ok(false);
            }
            return Err(Refusal::NameTaken {
                name: spec.name.clone(),
                existing: describe(&known.spec),
                requested: describe(&spec),
            });
        }
        if let Some(name) = self.addresses.get(&spec.address) {
            return Err(Refusal::AddressTaken { address: spec.address, name: name.clone() });
        }
        if self.vips.len() >= MAX_VIPS {
            return Err(Refusal::TooMany { found: self.vips.len(), most: MAX_VIPS });
        }
        self.addresses.insert(spec.address, spec.name.clone());
        self.vips
            .insert(spec.name.clone(), VipRecord { spec, assignment: None, declared_at: index, changed_at: index });
        Ok(true)
    }

    fn delete(&mut self, name: &VipName) -> bool {
        match self.vips.remove(name) {
            Some(vip) => {
                self.addresses.remove(&vip.spec.address);
                true
            }
            None => false,
        }
    }

    fn assign(&mut self, index: u64, assignment: Assignment, claims: Vec<Claim>) -> bool {
        let mut changed = false;
        for claim in claims {
            if let Some(vip) = self.vips.get_mut(&claim.vip)
                && (vip.assignment.map(|current| current.epoch) == claim.base || !holds(Rule::AssignBase))
            {
                vip.assignment = Some(assignment);
                vip.changed_at = index;
                changed = true;
            }
        }
        changed
    }
}

fn describe(spec: &VipSpec) -> String {
    format!("{}/{} on {}", spec.address, spec.prefix_len, spec.interface)
}

#[cfg(test)]
mod tests;
