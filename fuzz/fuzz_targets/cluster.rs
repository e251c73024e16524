//! The replicated machine over any sequence of commands, from JSON as it travels between nodes or from a small program
//! that makes commands which meet each other.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vip_core::{Claim, Cluster, Command, Epoch, Leadership, LeaseKind, NodeId, Outcome, Placement, VipName, VipSpec};

fuzz_target!(|bytes: &[u8]| {
    let mut world = World::default();
    if bytes.starts_with(b"{") {
        for line in bytes.split(|byte| *byte == b'\n') {
            if let Ok(command) = serde_json::from_slice::<Command>(line) {
                world.apply(Leadership { term: 1, node: NodeId(1) }, command);
            }
        }
    } else {
        for step in bytes.chunks_exact(4) {
            world.step([step[0], step[1], step[2], step[3]]);
        }
    }
});

/// The state, the index of the last entry, and an `Assign` that is being put together.
#[derive(Default)]
struct World {
    cluster: Cluster,
    index: u64,
    claims: Vec<Claim>,
    first: Vec<VipSpec>,
}

impl World {
    fn step(&mut self, [what, a, b, c]: [u8; 4]) {
        let leadership = |byte: u8| Leadership { term: u64::from(byte / 4), node: NodeId(u64::from(byte % 4)) };
        let by = leadership(a);
        match what % 8 {
            0 => self.apply(by, Command::DeclareVip(spec(b, c))),
            1 => self.apply(by, Command::DeleteVip(name(b))),
            2 => {
                self.apply(by, Command::RegisterNode { node: NodeId(u64::from(b % 4)), instance: format!("{}", c % 4) })
            }
            3 => self.first.push(spec(b, c)),
            4 => {
                let specs = std::mem::take(&mut self.first);
                self.apply(by, Command::Form(specs));
            }
            5 => {
                let current = self.cluster.vips.get(&name(a)).and_then(|vip| vip.assignment).map(|held| held.epoch);
                let base = match b % 4 {
                    0 => None,
                    1 => Some(Epoch(u64::from(c))),
                    _ => current,
                };
                self.claims.push(Claim { vip: name(a), base });
            }
            6 => {
                let claims = std::mem::take(&mut self.claims);
                // Mostly by the one who appended it.
                let decided = if b % 8 == 0 { leadership(c) } else { by };
                let owner = if b % 8 == 1 { NodeId(u64::from(c)) } else { by.node };
                self.apply(by, Command::Assign { by: decided, owner, kind: LeaseKind::Leader, claims });
            }
            // Entries that change nothing lie in between: blank ones, memberships.
            _ => self.index += u64::from(a),
        }
    }

    fn apply(&mut self, by: Leadership, command: Command) {
        self.index += 1;
        let index = self.index;
        let before = self.cluster.clone();
        let mut twin = before.clone();
        let outcome = self.cluster.apply(index, by, command.clone());
        assert_eq!(twin.apply(index, by, command.clone()), outcome, "two nodes came to different ends");
        assert_eq!(twin, self.cluster, "two nodes hold different states");
        let after = &self.cluster;
        match outcome {
            Outcome::Changed { revision } => {
                assert_eq!((revision, after.revision), (index, index));
                assert_ne!(&before, after, "changed nothing and says otherwise");
            }
            Outcome::Unchanged { revision } => {
                assert_eq!(revision, before.revision);
                assert_eq!(&before, after, "changed something and says otherwise");
            }
            Outcome::Refused(refusal) => {
                assert!(!refusal.to_string().is_empty());
                assert_eq!(&before, after, "refused and changed something all the same: {refusal}");
            }
        }
        only_forward(&before, after, index, by, &command);
        consistent(after);
        // As a snapshot, and as an entry.
        let state = serde_json::to_vec(after).expect("a state encodes");
        assert_eq!(&serde_json::from_slice::<Cluster>(&state).expect("and decodes").restored(), after);
        let entry = serde_json::to_vec(&command).expect("a command encodes");
        assert_eq!(serde_json::from_slice::<Command>(&entry).expect("and decodes"), command);
    }
}

/// Revision and epochs never go back, an assignment moves only by its leadership and from the epoch that it names, a store
/// is never replaced, a cluster is formed once.
fn only_forward(before: &Cluster, after: &Cluster, index: u64, by: Leadership, command: &Command) {
    assert!(after.revision >= before.revision && after.revision <= index, "revision {}", after.revision);
    assert!(after.formed >= before.formed);
    for (node, instance) in &before.instances {
        assert_eq!(after.instances.get(node), Some(instance), "the store of node {node} was replaced");
    }
    for (name, vip) in &after.vips {
        let old = before.vips.get(name);
        assert!(vip.declared_at <= vip.changed_at && vip.changed_at <= after.revision);
        let Some(old) = old else {
            assert_eq!((vip.declared_at, vip.changed_at, vip.assignment), (index, index, None), "{name} is new");
            continue;
        };
        assert_eq!((&old.spec, old.declared_at), (&vip.spec, vip.declared_at), "{name} became another VIP");
        if old.assignment == vip.assignment {
            assert_eq!(old.changed_at, vip.changed_at);
            continue;
        }
        let now = vip.assignment.expect("an assignment is replaced, never taken back");
        assert!(old.assignment.is_none_or(|held| held.epoch < now.epoch), "the epoch of {name} went back");
        assert_eq!((now.epoch, now.by, vip.changed_at), (Epoch(index), by, index));
        let Command::Assign { owner, claims, .. } = command else { panic!("assigned by {command:?}") };
        assert_eq!(now.owner, *owner);
        let base = old.assignment.map(|held| held.epoch);
        assert!(claims.iter().any(|claim| claim.vip == *name && claim.base == base), "{name} moved from another epoch");
    }
}

/// One name a VIP, one VIP an address, and no more than there is room for.
fn consistent(cluster: &Cluster) {
    assert!(cluster.vips.len() <= vip_core::cluster::MAX_VIPS);
    for (name, vip) in &cluster.vips {
        assert_eq!(*name, vip.spec.name);
        assert_eq!(cluster.vip_of(vip.spec.address), Some(vip), "{} is not the VIP of its address", vip.spec.address);
    }
    assert_eq!(&cluster.clone().restored(), cluster, "an address of a VIP that is gone is still taken");
}

fn name(byte: u8) -> VipName {
    format!("v{}", byte % 8).parse().expect("a name")
}

fn spec(name_of: u8, address: u8) -> VipSpec {
    let last = address % 8 + 1;
    let v4 = address & 8 == 0;
    VipSpec {
        name: name(name_of),
        address: if v4 { [10, 0, 0, last].into() } else { [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)].into() },
        prefix_len: if address & 16 == 0 { 24 } else { 32 },
        interface: "eth0".to_owned().try_into().expect("an interface"),
        placement: Placement::Leader,
    }
}
