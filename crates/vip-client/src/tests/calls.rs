use std::time::{Duration, Instant};

use tonic::Code;
use vip_core::{Placement, VipSpec};

use super::fake::{Mood, Node, endpoints, nobody};
use crate::{Client, Consistency, Endpoint, Error, Options, Refusal};

const LIN: Consistency = Consistency::Linearizable;

fn client(endpoints: Vec<Endpoint>) -> Client {
    Client::new(endpoints, Options { timeout: Duration::from_secs(2) }).unwrap()
}

fn spec() -> VipSpec {
    VipSpec {
        name: "web".parse().unwrap(),
        address: "10.0.0.1".parse().unwrap(),
        prefix_len: 32,
        interface: "eth0".to_owned().try_into().unwrap(),
        placement: Placement::Leader,
    }
}

#[tokio::test]
async fn no_endpoint_is_an_error() {
    assert!(matches!(Client::new(Vec::new(), Options::default()), Err(Error::NoEndpoint)));
}

#[tokio::test]
async fn dead_nodes_are_passed_over_and_the_leader_is_remembered() {
    let (a, b) = (Node::start(1).await, Node::start(2).await);
    a.follows(Some(2));
    b.follows(Some(2));
    let client = client(vec![nobody(), a.endpoint.clone(), b.endpoint.clone()]);
    assert_eq!(client.list(LIN).await.unwrap().0.node_id.0, 1);
    // Where node 2 is, is not known before it has answered.
    a.feels(Mood::NoLeader(None));
    assert_eq!(client.list(LIN).await.unwrap().0.node_id.0, 2);
    a.feels(Mood::Well);
    for _ in 0..3 {
        assert!(client.declare(spec()).await.unwrap().changed);
    }
    assert_eq!((a.calls().len(), b.calls().len()), (2, 4));
}

#[tokio::test]
async fn a_hint_leads_to_a_node_that_was_not_given() {
    let (a, b) = (Node::start(1).await, Node::start(2).await);
    a.feels(Mood::NoLeader(Some(b.endpoint.to_string())));
    let client = client(endpoints(&[&a]));
    assert_eq!(client.declare(spec()).await.unwrap().header.node_id.0, 2);
    client.list(LIN).await.unwrap();
    assert_eq!((a.calls().len(), b.calls().len()), (1, 2));
}

#[tokio::test]
async fn hints_that_lead_nowhere_do_no_harm() {
    let (a, b) = (Node::start(1).await, Node::start(2).await);
    for hint in ["".to_owned(), "unix:/etc/passwd".to_owned(), nobody().to_string(), a.endpoint.to_string()] {
        a.feels(Mood::NoLeader(Some(hint)));
        assert_eq!(client(endpoints(&[&a, &b])).list(LIN).await.unwrap().0.node_id.0, 2);
    }
}

#[tokio::test]
async fn refusals_are_final() {
    let (a, b) = (Node::start(1).await, Node::start(2).await);
    let client = client(endpoints(&[&a, &b]));
    for (code, kind) in [
        (Code::InvalidArgument, Refusal::Invalid),
        (Code::NotFound, Refusal::NotFound),
        (Code::AlreadyExists, Refusal::AlreadyExists),
        (Code::FailedPrecondition, Refusal::FailedPrecondition),
        (Code::ResourceExhausted, Refusal::ResourceExhausted),
    ] {
        a.feels(Mood::Refuses(code));
        match client.declare(spec()).await {
            Err(Error::Refused { kind: found, message }) => assert_eq!((found, message.as_str()), (kind, "as told")),
            other => panic!("{code:?}: {other:?}"),
        }
    }
    a.feels(Mood::Refuses(Code::Internal));
    assert!(matches!(client.delete(&spec().name).await, Err(Error::Failed { code: Code::Internal, .. })));
    assert!(b.calls().is_empty());
}

#[tokio::test]
async fn a_node_that_recovers_is_asked_again() {
    let a = Node::start(1).await;
    a.feels(Mood::NoLeader(None));
    let client = client(endpoints(&[&a]));
    let (answer, ()) = tokio::join!(client.declare(spec()), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        a.feels(Mood::Well);
    });
    assert!(answer.is_ok());
    let calls = a.calls().len();
    assert!((3..20).contains(&calls), "{calls} calls in 200 ms: no backoff");
}

#[tokio::test]
async fn a_node_that_hangs_leaves_time_for_the_others() {
    let (a, b) = (Node::start(1).await, Node::start(2).await);
    a.feels(Mood::Hangs);
    assert_eq!(client(endpoints(&[&a, &b])).list(LIN).await.unwrap().0.node_id.0, 2);
}

#[tokio::test]
async fn the_deadline_holds_and_the_error_says_what_happened() {
    let hanging = Node::start(1).await;
    hanging.feels(Mood::Hangs);
    let leaderless = Node::start(2).await;
    leaderless.feels(Mood::NoLeader(None));
    for (endpoints, says) in [
        (endpoints(&[&hanging]), "no answer in"),
        (endpoints(&[&leaderless]), "no leader"),
        (vec![nobody()], "refused"),
        (vec!["unix:/nonexistent/vipd.sock".parse().unwrap()], "No such file"),
    ] {
        let client = Client::new(endpoints, Options { timeout: Duration::from_millis(300) }).unwrap();
        let start = Instant::now();
        let error = client.list(LIN).await.unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }));
        assert!(error.to_string().contains(says), "{error}");
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
}

#[tokio::test]
async fn an_incomplete_answer_is_malformed() {
    let a = Node::start(1).await;
    let error = client(endpoints(&[&a])).get(&spec().name, LIN).await.unwrap_err();
    assert!(matches!(error, Error::Malformed(_)), "{error}");
}
