use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use tonic::Code;
use vip_api::v1;
use vip_api::v1::watch_event::{Event, Progress, SnapshotStart, Synced};

use super::fake::{End, Mood, Node, endpoints, put};
use crate::{Client, Error, Options, Refusal, Update, WatchEvent, WatchOptions};

type Updates = Pin<Box<dyn Stream<Item = Result<Update, Error>> + Send>>;

fn message(node: &Node, events: Vec<v1::WatchEvent>, resume_revision: u64) -> v1::WatchResponse {
    v1::WatchResponse { header: Some(node.header(resume_revision)), events, resume_revision }
}

fn event(event: Event) -> v1::WatchEvent {
    v1::WatchEvent { event: Some(event) }
}

/// A whole snapshot of one VIP.
fn snapshot(node: &Node, revision: u64) -> v1::WatchResponse {
    let start = event(Event::SnapshotStart(SnapshotStart { reset: false }));
    message(node, vec![start, put("a", revision), event(Event::Synced(Synced {}))], revision)
}

async fn watch(nodes: &[&Node]) -> Result<Updates, Error> {
    let client = Client::new(endpoints(nodes), Options { timeout: Duration::from_millis(500) })?;
    let options = WatchOptions { progress_interval: Duration::from_millis(100), ..WatchOptions::default() };
    Ok(Box::pin(client.watch(options).await?))
}

async fn next(updates: &mut Updates) -> String {
    let update = tokio::time::timeout(Duration::from_secs(10), updates.next()).await.expect("in time");
    match update.expect("goes on").unwrap() {
        Update::Interrupted { .. } => "interrupted".to_owned(),
        Update::Event { event, .. } => match event {
            WatchEvent::SnapshotStart { reset } => format!("snapshot reset={reset}"),
            WatchEvent::Put(vip) => format!("+{}@{}", vip.spec.name, vip.revision),
            WatchEvent::Delete { name, revision } => format!("-{name}@{revision}"),
            WatchEvent::Synced => "synced".to_owned(),
            WatchEvent::Progress => "progress".to_owned(),
        },
    }
}

async fn some<const N: usize>(updates: &mut Updates) -> Vec<String> {
    let mut all = Vec::new();
    for _ in 0..N {
        all.push(next(updates).await);
    }
    all
}

#[tokio::test]
async fn a_watch_goes_on_at_another_node_where_it_was() {
    for end in [End::Over, End::Error(Code::Unavailable), End::Silence] {
        let (a, b) = (Node::start(1).await, Node::start(2).await);
        a.will_stream(vec![snapshot(&a, 5), message(&a, vec![put("a", 7)], 7)], end.clone());
        b.will_stream(vec![message(&b, vec![put("a", 9)], 9)], End::Silence);
        let mut updates = watch(&[&a, &b]).await.unwrap();
        assert_eq!(
            some::<6>(&mut updates).await,
            ["snapshot reset=false", "+a@5", "synced", "+a@7", "interrupted", "+a@9"],
            "{end:?}"
        );
        assert_eq!(b.calls(), ["watch from 7"]);
    }
}

#[tokio::test]
async fn progress_keeps_a_stream_and_moves_the_revision() {
    let (a, b) = (Node::start(1).await, Node::start(2).await);
    a.will_stream(vec![snapshot(&a, 5), message(&a, vec![event(Event::Progress(Progress {}))], 8)], End::Over);
    b.will_stream(vec![message(&b, vec![put("a", 9)], 9)], End::Silence);
    let mut updates = watch(&[&a, &b]).await.unwrap();
    assert_eq!(some::<6>(&mut updates).await[3..], ["progress", "interrupted", "+a@9"]);
    assert_eq!(b.calls(), ["watch from 8"]);
}

#[tokio::test]
async fn a_snapshot_that_breaks_off_begins_anew_as_a_reset() {
    let (a, b) = (Node::start(1).await, Node::start(2).await);
    let start = event(Event::SnapshotStart(SnapshotStart { reset: false }));
    a.will_stream(vec![message(&a, vec![start, put("a", 5)], 0)], End::Over);
    b.will_stream(vec![snapshot(&b, 6)], End::Silence);
    let mut updates = watch(&[&a, &b]).await.unwrap();
    assert_eq!(
        some::<6>(&mut updates).await,
        ["snapshot reset=false", "+a@5", "interrupted", "snapshot reset=true", "+a@6", "synced"]
    );
    assert_eq!(b.calls(), ["watch from 0"]);
}

#[tokio::test]
async fn a_watch_outlives_a_time_without_any_node() {
    let a = Node::start(1).await;
    a.will_stream(vec![snapshot(&a, 5)], End::Over);
    let mut updates = watch(&[&a]).await.unwrap();
    a.feels(Mood::NoLeader(None));
    assert_eq!(some::<4>(&mut updates).await[3], "interrupted");
    let recovery = async {
        // Longer than a call may take.
        tokio::time::sleep(Duration::from_millis(800)).await;
        a.will_stream(vec![message(&a, vec![put("a", 6)], 6)], End::Silence);
        a.feels(Mood::Well);
    };
    let (update, ()) = tokio::join!(next(&mut updates), recovery);
    assert_eq!(update, "+a@6");
}

#[tokio::test]
async fn streams_that_end_at_once_are_not_opened_without_pause() {
    let a = Node::start(1).await;
    for _ in 0..50 {
        a.will_stream(Vec::new(), End::Over);
    }
    let mut updates = watch(&[&a]).await.unwrap();
    let _ = tokio::time::timeout(Duration::from_millis(500), some::<50>(&mut updates)).await;
    assert!(a.calls().len() < 15, "{}", a.calls().len());
}

#[tokio::test]
async fn a_refusal_ends_the_watch() {
    let a = Node::start(1).await;
    a.feels(Mood::Refuses(Code::InvalidArgument));
    assert!(matches!(watch(&[&a]).await.err(), Some(Error::Refused { kind: Refusal::Invalid, .. })));
    a.feels(Mood::Well);
    a.will_stream(vec![snapshot(&a, 5)], End::Error(Code::InvalidArgument));
    let mut updates = watch(&[&a]).await.unwrap();
    some::<3>(&mut updates).await;
    assert!(matches!(updates.next().await, Some(Err(Error::Refused { .. }))));
    assert!(updates.next().await.is_none());
}

#[tokio::test]
async fn a_watch_that_finds_nobody_says_so() {
    let a = Node::start(1).await;
    a.feels(Mood::Hangs);
    assert!(matches!(watch(&[&a]).await.err(), Some(Error::Unavailable { .. })));
}
