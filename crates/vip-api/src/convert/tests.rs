use super::*;

fn wire_spec() -> v1::VipSpec {
    v1::VipSpec {
        name: "web".to_owned(),
        address: "192.0.2.10".to_owned(),
        prefix_len: 24,
        interface: "eth0".to_owned(),
        placement: v1::Placement::Leader.into(),
    }
}

fn vip() -> Vip {
    Vip {
        spec: declared(Some(wire_spec())).unwrap(),
        assignment: Some(Assigned {
            owner: NodeRef { id: NodeId(2), name: "b".to_owned() },
            epoch: Epoch(17),
            term: 3,
        }),
        revision: 17,
        declared_revision: 5,
        lease_remaining: Some(Duration::from_micros(412_300)),
        holder_state: HolderState::Active,
    }
}

#[test]
fn prefix_length_defaults_to_one_host() {
    let with = |address: &str| {
        declared(Some(v1::VipSpec { address: address.to_owned(), prefix_len: 0, ..wire_spec() })).unwrap().prefix_len
    };
    assert_eq!(with("192.0.2.10"), 32);
    assert_eq!(with("2001:db8::10"), 128);
    assert_eq!(declared(Some(wire_spec())).unwrap().prefix_len, 24);
}

#[test]
fn a_malformed_spec_names_its_field() {
    type Spoil = fn(&mut v1::VipSpec);
    let cases: [(Spoil, &str); 10] = [
        (|s| s.name.clear(), "spec.name"),
        (|s| s.name = "a b".to_owned(), "spec.name"),
        (|s| s.address.clear(), "spec.address"),
        (|s| s.address = "192.0.2.10/24".to_owned(), "spec.address"),
        (|s| s.address = "127.0.0.1".to_owned(), "spec.address"),
        (|s| s.address = "192.0.2.255".to_owned(), "spec.address"),
        (|s| s.prefix_len = 33, "spec.prefix_len"),
        (|s| s.prefix_len = 70_000, "spec.prefix_len"),
        (|s| s.interface = "lo".to_owned(), "spec.interface"),
        (|s| s.placement = 99, "spec.placement"),
    ];
    for (spoil, field) in cases {
        let mut spec = wire_spec();
        spoil(&mut spec);
        let error = declared(Some(spec.clone())).unwrap_err();
        assert_eq!(error.field, field, "{spec:?}");
        let status = tonic::Status::from(error);
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(status.message().starts_with(field), "{}", status.message());
    }
    assert_eq!(declared(None).unwrap_err().field, "spec");
}

#[test]
fn huge_garbage_is_not_repeated_in_full() {
    let spec = v1::VipSpec { address: "x".repeat(100_000), ..wire_spec() };
    assert!(declared(Some(spec)).unwrap_err().to_string().len() < 300);
}

#[test]
fn vips_survive_the_wire() {
    assert_eq!(Vip::try_from(v1::Vip::from(vip())), Ok(vip()));
    let unassigned = Vip { assignment: None, lease_remaining: None, holder_state: HolderState::Unknown, ..vip() };
    assert_eq!(Vip::try_from(v1::Vip::from(unassigned.clone())), Ok(unassigned));
}

#[test]
fn watch_events_survive_the_wire() {
    for event in [
        WatchEvent::SnapshotStart { reset: true },
        WatchEvent::Put(vip()),
        WatchEvent::Delete { name: "web".parse().unwrap(), revision: 9 },
        WatchEvent::Synced,
        WatchEvent::Progress,
    ] {
        assert_eq!(watch_event(event.clone().into()), Ok(Some(event)));
    }
    assert_eq!(watch_event(v1::WatchEvent { event: None }), Ok(None));
}

#[test]
fn statuses_survive_the_wire() {
    let node = NodeRef { id: NodeId(1), name: "a".to_owned() };
    let status = Status {
        header: Header {
            cluster: "c".to_owned(),
            node_id: NodeId(1),
            term: 4,
            leader_id: Some(NodeId(1)),
            revision: 17,
            consistency: Consistency::Local,
        },
        leader: Some(node.clone()),
        commit_index: 20,
        applied_index: 19,
        nodes: vec![NodeStatus {
            node: node.clone(),
            peer_address: "192.0.2.1:7400".to_owned(),
            role: NodeRole::Learner,
            reachable: Some(false),
            last_acknowledged_age: Some(Duration::from_secs(90)),
            instance: Some("i".to_owned()),
            vips_owned: 2,
        }],
        timing: Timing {
            heartbeat: Duration::from_millis(100),
            lease: Duration::from_millis(500),
            margin: Duration::from_millis(6),
            clock_drift_ppm: 1000,
        },
        local: LocalStatus {
            node,
            version: "0.1.0".to_owned(),
            uptime: Duration::from_secs(5),
            lease_remaining: None,
            fence: Fence { kind: "bpf".to_owned(), state: "attached".to_owned(), healthy: true },
            warnings: vec!["w".to_owned()],
            holders: vec![HolderCount { state: HolderState::Fenced, vips: 2 }],
        },
        vips_declared: 3,
        vips_assigned: 2,
    };
    assert_eq!(Status::try_from(v1::StatusResponse::from(status.clone())), Ok(status));
}

#[test]
fn what_a_newer_version_adds_is_unknown_or_refused() {
    let newer = v1::Vip { holder_state: 77, ..vip().into() };
    assert_eq!(Vip::try_from(newer).unwrap().holder_state, HolderState::Unknown);
    assert_eq!(consistency(77).unwrap_err().field, "consistency");
    assert_eq!(consistency(0), Ok(Consistency::Linearizable));
}

#[test]
fn durations_are_checked_on_the_way_in_and_cut_on_the_way_out() {
    let negative = prost_types::Duration { seconds: -1, nanos: 0 };
    assert_eq!(duration("d", negative).unwrap_err().field, "d");
    for (seconds, nanos) in
        [(i64::MIN, 0), (i64::MIN, i32::MIN), (-1, i32::MIN), (0, -1), (0, i32::MIN), (i64::MAX, i32::MAX)]
    {
        let error = duration("d", prost_types::Duration { seconds, nanos }).unwrap_err();
        assert!(error.reason.contains(&seconds.to_string()) && error.reason.contains(&nanos.to_string()), "{error}");
    }
    for (seconds, nanos, expected) in [
        (0, 0, Duration::ZERO),
        (2, 500_000_000, Duration::from_millis(2500)),
        (2, -500_000_000, Duration::from_millis(1500)),
        (i64::MAX, 999_999_999, Duration::new(i64::MAX.unsigned_abs(), 999_999_999)),
    ] {
        assert_eq!(duration("d", prost_types::Duration { seconds, nanos }), Ok(expected));
    }
    assert_eq!(proto_duration(Duration::MAX).seconds, i64::MAX);
}

#[test]
fn incomplete_answers_are_refused() {
    assert_eq!(header(None).unwrap_err().field, "header");
    assert_eq!(Vip::try_from(v1::Vip::default()).unwrap_err().field, "spec");
    assert_eq!(Status::try_from(v1::StatusResponse::default()).unwrap_err().field, "header");
}
