//! What `fuzz/` reaches of this crate: each function takes bytes of a stranger and panics where a promise is broken.
//! Only with the feature `fuzzing`.

use std::time::Duration;

use prost::Message;
use tonic::Status;
use vip_core::{Claim, Cluster, Command, Epoch, LeaseKind, LeaseTiming, NodeId, Outcome};

use crate::convert::{append_request, from_json, proto, required, to_json, vote_request, vote_response};
use crate::peer::{Envelope, Identity};
use crate::server::vote_requests;
use crate::types::{self, leadership_of, leadership_of_log};

pub use crate::store::fuzzing::{StoreFiles, records, seeds as record_seeds};

/// The request or answer that the first byte chooses, from the rest: as the server and the client of the peers' protocol
/// take it.
pub fn peer_message(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    match kind {
        b'a' => received(bytes, append),
        b'v' => received(bytes, vote),
        b't' => received(bytes, transfer),
        b's' => received(bytes, snapshot),
        b'p' => received(bytes, |message: proto::ProposeRequest| {
            let command: Command = from_json(&message.command, "a command")?;
            assert_eq!(from_json::<Command>(&to_json(&command), "again").ok(), Some(command));
            Ok(())
        }),
        b'r' => received(bytes, |_: proto::ReadIndexRequest| Ok(())),
        b'h' => received(bytes, |_: proto::HelloRequest| Ok(())),
        b'A' => received(bytes, append_answer),
        b'V' => received(bytes, |message: proto::VoteResponse| {
            let given = proto::VoteResponse { sender: None, ..message.clone() };
            assert_eq!(vote_response(&types::VoteResponse::try_from(message)?), given, "a vote changed on its way");
            Ok(())
        }),
        b'T' => received(bytes, |_: proto::TransferLeaderResponse| Ok(())),
        b'S' => received(bytes, |message: proto::InstallSnapshotResponse| {
            let vote: types::Vote = required(message.vote, "vote")?.into();
            let _ = leadership_of(&vote);
            Ok(())
        }),
        b'P' => received(bytes, |message: proto::ProposeResponse| {
            let outcome: Outcome = from_json(&message.outcome, "an outcome")?;
            assert_eq!(from_json::<Outcome>(&to_json(&outcome), "again").ok(), Some(outcome));
            Ok(())
        }),
        b'R' => received(bytes, |_: proto::ReadIndexResponse| Ok(())),
        b'H' => received(bytes, |_: proto::HelloResponse| Ok(())),
        _ => {}
    }
}

/// Decodes, asks who speaks, and hands over to `convert`, also what a stranger sent: the checks must not depend on it.
fn received<M: Envelope + Message + Default>(bytes: &[u8], convert: impl FnOnce(M) -> Result<(), Status>) {
    let Ok(message) = M::decode(bytes) else { return };
    let (me, cluster) = (identity(1), known());
    let disowned = me.disowned(message.sender());
    match me.admit(message.sender(), &cluster) {
        Ok(node) => {
            let peer = message.sender().expect("admitted without a name");
            assert_ne!(node, me.node, "let itself in");
            assert_eq!((peer.cluster.as_str(), peer.node), (me.cluster.as_str(), node.0));
            assert!(cluster.instances.get(&node).is_none_or(|known| *known == peer.instance), "a wiped node is in");
            let same = me.to_wire(false, None);
            assert_eq!(
                (peer.protocol, peer.lease_nanos, peer.clock_drift_ppm, peer.queue_time_nanos),
                (same.protocol, same.lease_nanos, same.clock_drift_ppm, same.queue_time_nanos),
            );
            if let Some(why) = disowned {
                assert!(why.contains(&me.instance), "{why}");
            }
        }
        Err(status) => assert!(!status.message().is_empty()),
    }
    if let Err(status) = convert(message) {
        assert!(status.message().contains("malformed message of a peer"), "{status}");
    }
}

fn append(message: proto::AppendEntriesRequest) -> Result<(), Status> {
    let given = message.clone();
    let request = types::AppendEntriesRequest::try_from(message)?;
    // What openraft and its log lines do with them, short of acting.
    let _ = (leadership_of(&request.vote), format!("{request}"));
    let mut index = request.prev_log_id.map(|prev| prev.index);
    for entry in &request.entries {
        let next = index.map_or(0, |index| index + 1);
        assert_eq!(entry.log_id.index, next, "a gap in what the log is given");
        assert!(entry.log_id.leader_id <= request.vote.leader_id, "of a leader yet to come");
        index = Some(next);
        let _ = (leadership_of_log(&entry.log_id), format!("{entry}"));
    }
    let back = append_request(&request);
    assert_eq!((back.vote, back.prev_log_id, back.leader_commit), (given.vote, given.prev_log_id, given.leader_commit));
    assert!(back.entries.iter().map(|entry| entry.log_id).eq(given.entries.iter().map(|entry| entry.log_id)));
    let sent = back.encode_to_vec();
    let again = proto::AppendEntriesRequest::decode(sent.as_slice()).expect("our own encoding");
    let again = types::AppendEntriesRequest::try_from(again)?;
    assert_eq!(format!("{request:?}"), format!("{again:?}"), "an append changed on its way");
    Ok(())
}

fn vote(message: proto::VoteRequest) -> Result<(), Status> {
    let given = proto::VoteRequest { sender: None, transfer_of: None, ..message.clone() };
    let transfer_of = message.transfer_of;
    let (asked, request) = vote_requests(message)?;
    assert_eq!(asked.leadership, leadership_of(&request.vote));
    let expected = transfer_of.filter(|_| request.leadership_transfer).map(|vote| leadership_of(&vote.into()));
    assert_eq!(asked.by_transfer_of, expected);
    assert_eq!(vote_request(&request), given, "a request for a vote changed on its way");
    Ok(())
}

fn transfer(message: proto::TransferLeaderRequest) -> Result<(), Status> {
    let from: types::Vote = required(message.from_leader, "from_leader")?.into();
    let transfer = types::TransferLeaderRequest::new(from, message.to_node, message.last_log_id.map(Into::into));
    let _ = (leadership_of(&from), format!("{transfer:?}"));
    Ok(())
}

fn snapshot(message: proto::InstallSnapshotRequest) -> Result<(), Status> {
    let vote: types::Vote = required(message.vote, "vote")?.into();
    let meta: types::SnapshotMeta = from_json(&message.meta, "a snapshot's meta")?;
    let _ = (leadership_of(&vote), format!("{meta}"));
    // As `StateMachine::install_snapshot` reads it.
    let state = from_json::<Cluster>(&message.data, "a snapshot's state")?.restored();
    assert!(from_json::<Cluster>(&to_json(&state), "again").is_ok());
    Ok(())
}

fn append_answer(message: proto::AppendEntriesResponse) -> Result<(), Status> {
    let given = required(message.result, "result")?;
    let response: types::AppendEntriesResponse = given.clone().into();
    assert_eq!(proto::append_entries_response::Result::from(response), given, "an answer changed on its way");
    Ok(())
}

fn identity(node: u64) -> Identity {
    Identity {
        cluster: "web".parse().expect("a name"),
        node: NodeId(node),
        instance: format!("store-{node}"),
        timing: LeaseTiming {
            lease: Duration::from_millis(500),
            clock_drift_ppm: 1000,
            queue_time: Duration::from_millis(5),
        },
    }
}

/// A state that knows the store of node 2 and not that of node 3.
fn known() -> Cluster {
    let mut cluster = Cluster::default();
    cluster.instances.insert(NodeId(2), "store-2".to_owned());
    cluster
}

/// Messages to begin with, by name: one of each kind that is in order, and some that are not.
#[must_use]
pub fn peer_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let good = || Some(identity(2).to_wire(true, Some(&"store-1".to_owned())));
    let wiped = Some(proto::Peer { instance: "other".to_owned(), ..good().unwrap_or_default() });
    let at = |index| Some(proto::LogId { term: 3, node: 2, index });
    let vote = Some(proto::Vote { term: 3, node: 2, committed: true });
    let command = |command: Command| Some(proto::entry::Payload::Command(to_json(&command)));
    let by = leadership_of(&types::Vote::new_committed(3, 2));
    let claims = vec![Claim { vip: "a".parse().expect("a name"), base: Some(Epoch(4)) }];
    let assign = Command::Assign { by, owner: NodeId(2), kind: LeaseKind::Leader, claims };
    let register = Command::RegisterNode { node: NodeId(2), instance: "store-2".to_owned() };
    let members = br#"{"configs":[[1,2,3]],"nodes":{"1":{"name":"n1","address":"10.0.0.1:7400"},"2":{"name":"n2","address":"10.0.0.2:7400"},"3":{"name":"n3","address":"10.0.0.3:7400"}}}"#;
    let entries = vec![
        proto::Entry { log_id: at(5), payload: None },
        proto::Entry { log_id: at(6), payload: command(assign.clone()) },
        proto::Entry { log_id: at(7), payload: Some(proto::entry::Payload::Membership(members.to_vec())) },
    ];
    let heartbeat = proto::AppendEntriesRequest {
        sender: good(),
        vote,
        prev_log_id: at(4),
        leader_commit: at(4),
        entries: Vec::new(),
    };
    let asking = proto::VoteRequest {
        sender: good(),
        vote: Some(proto::Vote { term: 4, node: 2, committed: false }),
        last_log_id: at(7),
        leadership_transfer: false,
        transfer_of: None,
    };
    let meta = br#"{"last_log_id":{"leader_id":{"term":3,"node_id":2},"index":5},"last_membership":{"log_id":null,"membership":{"configs":[],"nodes":{}}}}"#;
    let answer = |result| proto::AppendEntriesResponse { sender: good(), result: Some(result) };
    use proto::append_entries_response::Result as Answer;
    vec![
        ("append", with(b'a', &proto::AppendEntriesRequest { entries, ..heartbeat.clone() })),
        ("append-heartbeat", with(b'a', &heartbeat)),
        ("append-from-a-wiped-node", with(b'a', &proto::AppendEntriesRequest { sender: wiped, ..heartbeat })),
        ("vote", with(b'v', &asking)),
        (
            "vote-after-transfer",
            with(b'v', &proto::VoteRequest { leadership_transfer: true, transfer_of: vote, ..asking }),
        ),
        (
            "transfer",
            with(
                b't',
                &proto::TransferLeaderRequest { sender: good(), from_leader: vote, to_node: 1, last_log_id: at(7) },
            ),
        ),
        (
            "snapshot",
            with(
                b's',
                &proto::InstallSnapshotRequest {
                    sender: good(),
                    vote,
                    meta: meta.to_vec(),
                    data: to_json(&crate::store::fuzzing::example_state()),
                },
            ),
        ),
        ("propose", with(b'p', &proto::ProposeRequest { sender: good(), command: to_json(&assign) })),
        ("propose-registration", with(b'p', &proto::ProposeRequest { sender: good(), command: to_json(&register) })),
        ("read-index", with(b'r', &proto::ReadIndexRequest { sender: good(), by_lease: true })),
        ("hello", with(b'h', &proto::HelloRequest { sender: good(), initial_cluster: "1=10.0.0.1:7400".into() })),
        ("append-success", with(b'A', &answer(Answer::Success(proto::Empty {})))),
        ("append-partial", with(b'A', &answer(Answer::PartialSuccess(proto::PartialSuccess { matching: at(5) })))),
        ("append-higher-vote", with(b'A', &answer(Answer::HigherVote(vote.unwrap_or_default())))),
        ("vote-granted", with(b'V', &proto::VoteResponse { sender: good(), vote, last_log_id: at(7), granted: true })),
        (
            "transfer-refused",
            with(b'T', &proto::TransferLeaderResponse { sender: good(), refusal: "a link is down".into() }),
        ),
        ("snapshot-taken", with(b'S', &proto::InstallSnapshotResponse { sender: good(), vote })),
        (
            "outcome",
            with(b'P', &proto::ProposeResponse { sender: good(), outcome: to_json(&Outcome::Changed { revision: 8 }) }),
        ),
        ("index", with(b'R', &proto::ReadIndexResponse { sender: good(), index: 8 })),
        (
            "hello-answer",
            with(b'H', &proto::HelloResponse { sender: good(), initialized: true, initial_cluster: String::new() }),
        ),
    ]
}

fn with(kind: u8, message: &impl Message) -> Vec<u8> {
    let mut bytes = vec![kind];
    message.encode(&mut bytes).expect("room for it");
    bytes
}
