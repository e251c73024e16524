use super::*;
use crate::spec::Placement;

const LEADER: Leadership = Leadership { term: 3, node: NodeId(1) };

fn spec(name: &str, address: &str) -> VipSpec {
    VipSpec {
        name: name.parse().unwrap(),
        address: address.parse().unwrap(),
        prefix_len: 32,
        interface: "eth0".to_owned().try_into().unwrap(),
        placement: Placement::Leader,
    }
}

fn claim(name: &str, base: Option<u64>) -> Claim {
    Claim { vip: name.parse().unwrap(), base: base.map(Epoch) }
}

fn assign(by: Leadership, claims: Vec<Claim>) -> Command {
    Command::Assign { by, owner: by.node, kind: LeaseKind::Leader, claims }
}

#[test]
fn declaring_twice_is_harmless_and_differing_is_refused() {
    let mut cluster = Cluster::default();
    assert_eq!(cluster.apply(5, LEADER, Command::DeclareVip(spec("a", "10.0.0.1"))), Outcome::Changed { revision: 5 });
    assert_eq!(
        cluster.apply(6, LEADER, Command::DeclareVip(spec("a", "10.0.0.1"))),
        Outcome::Unchanged { revision: 5 }
    );
    assert!(matches!(
        cluster.apply(7, LEADER, Command::DeclareVip(spec("a", "10.0.0.2"))),
        Outcome::Refused(Refusal::NameTaken { .. })
    ));
    assert!(matches!(
        cluster.apply(8, LEADER, Command::DeclareVip(spec("b", "10.0.0.1"))),
        Outcome::Refused(Refusal::AddressTaken { .. })
    ));
    assert_eq!(cluster.revision, 5);
}

#[test]
fn a_deleted_address_is_free_again() {
    let mut cluster = Cluster::default();
    cluster.apply(1, LEADER, Command::DeclareVip(spec("a", "10.0.0.1")));
    assert_eq!(cluster.apply(2, LEADER, Command::DeleteVip("a".parse().unwrap())), Outcome::Changed { revision: 2 });
    assert_eq!(cluster.apply(3, LEADER, Command::DeleteVip("a".parse().unwrap())), Outcome::Unchanged { revision: 2 });
    assert_eq!(cluster.apply(4, LEADER, Command::DeclareVip(spec("b", "10.0.0.1"))), Outcome::Changed { revision: 4 });
    assert_eq!(cluster.vip_of("10.0.0.1".parse().unwrap()).unwrap().spec.name.as_str(), "b");
}

#[test]
fn a_leadership_begins_with_every_vip() {
    let mut cluster = Cluster::default();
    assert_eq!(cluster.begin(1, LEADER), Outcome::Unchanged { revision: 0 });
    cluster.apply(2, LEADER, Command::DeclareVip(spec("a", "10.0.0.1")));
    cluster.apply(3, LEADER, Command::DeclareVip(spec("b", "10.0.0.2")));
    assert!(cluster.vips.values().all(|vip| vip.assignment.is_none()));

    let successor = Leadership { term: 4, node: NodeId(2) };
    assert_eq!(cluster.begin(4, successor), Outcome::Changed { revision: 4 });
    for vip in cluster.vips.values() {
        let expected = Assignment { owner: NodeId(2), epoch: Epoch(4), by: successor, kind: LeaseKind::Leader };
        assert_eq!(vip.assignment, Some(expected));
        assert_eq!(vip.changed_at, 4);
    }
    // What the leader before had on its way is void.
    assert_eq!(
        cluster.apply(5, successor, assign(successor, vec![claim("a", None)])),
        Outcome::Unchanged { revision: 4 }
    );
}

#[test]
fn an_assignment_counts_only_in_its_leadership_and_on_its_base() {
    let mut cluster = Cluster::default();
    cluster.apply(1, LEADER, Command::DeclareVip(spec("a", "10.0.0.1")));
    let usurper = Leadership { term: 4, node: NodeId(2) };
    assert!(matches!(
        cluster.apply(2, usurper, assign(LEADER, vec![claim("a", None)])),
        Outcome::Refused(Refusal::OtherLeadership { .. })
    ));
    assert_eq!(cluster.apply(3, LEADER, assign(LEADER, vec![claim("a", None)])), Outcome::Changed { revision: 3 });
    let held = cluster.vips.values().next().unwrap().assignment.unwrap();
    assert_eq!((held.owner, held.epoch), (NodeId(1), Epoch(3)));
    // A stale base: nothing moves, and a VIP that is gone is passed over.
    assert_eq!(
        cluster.apply(4, usurper, assign(usurper, vec![claim("a", None), claim("gone", None)])),
        Outcome::Unchanged { revision: 3 }
    );
    assert_eq!(cluster.apply(5, usurper, assign(usurper, vec![claim("a", Some(3))])), Outcome::Changed { revision: 5 });
}

#[test]
fn a_wiped_disk_is_noticed() {
    let mut cluster = Cluster::default();
    let register = |instance: &str| Command::RegisterNode { node: NodeId(2), instance: instance.to_owned() };
    assert_eq!(cluster.apply(1, LEADER, register("x")), Outcome::Changed { revision: 1 });
    assert_eq!(cluster.apply(2, LEADER, register("x")), Outcome::Unchanged { revision: 1 });
    assert!(matches!(cluster.apply(3, LEADER, register("y")), Outcome::Refused(Refusal::OtherInstance { .. })));
}

#[test]
fn the_state_survives_serialization() {
    let mut cluster = Cluster::default();
    cluster.apply(1, LEADER, Command::DeclareVip(spec("a", "10.0.0.1")));
    cluster.apply(2, LEADER, assign(LEADER, vec![claim("a", None)]));
    let text = serde_json::to_string(&cluster).unwrap();
    let back = serde_json::from_str::<Cluster>(&text).unwrap().restored();
    assert_eq!(back, cluster);
    assert!(back.vip_of("10.0.0.1".parse().unwrap()).is_some());
}

#[test]
fn a_cluster_is_formed_once_and_whole() {
    let mut cluster = Cluster::default();
    let clash = vec![spec("a", "10.0.0.1"), spec("b", "10.0.0.1")];
    assert!(matches!(cluster.apply(1, LEADER, Command::Form(clash)), Outcome::Refused(Refusal::AddressTaken { .. })));
    assert_eq!(cluster, Cluster::default());
    assert_eq!(cluster.apply(2, LEADER, Command::Form(vec![spec("a", "10.0.0.1")])), Outcome::Changed { revision: 2 });
    assert_eq!(
        cluster.apply(3, LEADER, Command::Form(vec![spec("b", "10.0.0.2")])),
        Outcome::Unchanged { revision: 2 }
    );
    assert_eq!(cluster.vips.len(), 1);
}
