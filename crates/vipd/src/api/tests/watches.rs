use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tonic::{Code, Status, Streaming};
use vip_api::{WatchEvent, convert, v1};
use vip_core::{Command, Outcome};

use super::fake::{Api, Fake, serve, spec};
use crate::api::{BackendError, Limits};

const PATIENCE: Duration = Duration::from_secs(10);

fn limits() -> Limits {
    Limits { request_timeout: Duration::from_millis(500), watch_batch: 2, watch_history: 8, ..Limits::default() }
}

async fn start(limits: Limits) -> (Arc<Fake>, Api) {
    let fake = Fake::new();
    let api = serve(&fake, limits).await;
    (fake, api)
}

struct Watch {
    stream: Streaming<v1::WatchResponse>,
    resume: u64,
}

async fn watch(api: &Api, request: v1::WatchRequest) -> Result<Watch, Status> {
    Ok(Watch { stream: api.vips.clone().watch(request).await?.into_inner(), resume: 0 })
}

fn from(from_revision: u64) -> v1::WatchRequest {
    v1::WatchRequest { from_revision, ..v1::WatchRequest::default() }
}

impl Watch {
    /// The next message in short form.
    async fn next(&mut self) -> Result<Vec<String>, Status> {
        let message = tokio::time::timeout(PATIENCE, self.stream.message()).await.expect("in time")?;
        let message = message.expect("the stream goes on");
        self.resume = message.resume_revision;
        Ok(message.events.into_iter().map(|event| short(&convert::watch_event(event).unwrap().unwrap())).collect())
    }

    /// All up to the message with the event `last`.
    async fn until(&mut self, last: &str) -> Vec<String> {
        let mut all = Vec::new();
        let found = async {
            while !all.iter().any(|event| event == last) {
                all.extend(self.next().await.unwrap());
            }
        };
        tokio::time::timeout(PATIENCE, found).await.expect("in time");
        all
    }
}

fn short(event: &WatchEvent) -> String {
    match event {
        WatchEvent::SnapshotStart { reset } => format!("snapshot reset={reset}"),
        WatchEvent::Put(vip) => format!("+{}@{}", vip.spec.name, vip.revision),
        WatchEvent::Delete { name, revision } => format!("-{name}@{revision}"),
        WatchEvent::Synced => "synced".to_owned(),
        WatchEvent::Progress => "progress".to_owned(),
    }
}

#[tokio::test]
async fn an_empty_cluster_is_watched_from_the_start() {
    let (fake, api) = start(limits()).await;
    let mut watch = watch(&api, from(0)).await.unwrap();
    assert_eq!(watch.until("synced").await, ["snapshot reset=false", "synced"]);
    fake.declare("a", "10.0.0.1");
    assert_eq!(watch.next().await.unwrap(), ["+a@1"]);
    assert_eq!(watch.resume, 1);
}

#[tokio::test]
async fn a_snapshot_comes_in_parts_and_cannot_be_resumed_inside() {
    let (fake, api) = start(limits()).await;
    for n in 1..=3 {
        fake.declare(&format!("v{n}"), &format!("10.0.0.{n}"));
    }
    let mut watch = watch(&api, from(0)).await.unwrap();
    assert_eq!(watch.next().await.unwrap(), ["snapshot reset=false", "+v1@1", "+v2@2"]);
    assert_eq!(watch.resume, 0);
    assert_eq!(watch.until("synced").await, ["+v3@3", "synced"]);
    assert_eq!(watch.resume, 3);
    fake.assign("v2", 2);
    assert_eq!(watch.next().await.unwrap(), ["+v2@4"]);
    fake.apply([Command::DeleteVip("v1".parse().unwrap())]);
    assert_eq!(watch.next().await.unwrap(), ["-v1@5"]);
    assert_eq!(watch.resume, 5);
}

#[tokio::test]
async fn a_watch_resumes_without_a_snapshot() {
    let (fake, api) = start(limits()).await;
    fake.declare("a", "10.0.0.1");
    let mut first = watch(&api, from(0)).await.unwrap();
    first.until("synced").await;
    drop(first);
    fake.declare("b", "10.0.0.2");
    fake.apply([Command::DeleteVip("a".parse().unwrap())]);
    let mut second = watch(&api, from(1)).await.unwrap();
    let mut seen = second.until("synced").await;
    assert_eq!(seen.pop().unwrap(), "synced");
    // How many states the follower saw in between is up to the scheduler; the result is not.
    seen.sort();
    assert_eq!(seen, ["+b@2", "-a@3"]);
    assert_eq!(second.resume, 3);
}

#[tokio::test]
async fn a_change_larger_than_a_message_resumes_before_it() {
    let (fake, api) = start(limits()).await;
    let mut watch = watch(&api, from(0)).await.unwrap();
    fake.declare("a", "10.0.0.1");
    watch.until("+a@1").await;
    fake.apply((2..=4).map(|n| Command::DeclareVip(spec(&format!("v{n}"), &format!("10.0.0.{n}")))));
    assert_eq!(watch.next().await.unwrap(), ["+v2@2", "+v3@3"]);
    assert_eq!(watch.resume, 1);
    assert_eq!(watch.next().await.unwrap(), ["+v4@4"]);
    assert_eq!(watch.resume, 4);
}

#[tokio::test]
async fn a_revision_too_old_gets_a_reset() {
    let (fake, api) = start(limits()).await;
    for n in 1..=12 {
        fake.declare(&format!("v{n:02}"), &format!("10.0.0.{n}"));
        // So that each state is seen by itself.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut old = watch(&api, from(1)).await.unwrap();
    let seen = old.until("synced").await;
    assert_eq!((seen[0].as_str(), seen.len()), ("snapshot reset=true", 14));
    let mut recent = watch(&api, from(10)).await.unwrap();
    assert_eq!(recent.until("synced").await, ["+v11@11", "+v12@12", "synced"]);
}

#[tokio::test]
async fn a_revision_ahead_waits_locally_and_resets_after_a_barrier() {
    let (fake, api) = start(limits()).await;
    fake.declare("a", "10.0.0.1");
    let mut other_history = watch(&api, from(9)).await.unwrap();
    assert_eq!(other_history.until("synced").await[0], "snapshot reset=true");

    let local = || v1::WatchRequest { consistency: v1::Consistency::Local.into(), ..from(2) };
    assert_eq!(watch(&api, local()).await.err().unwrap().code(), Code::Unavailable);
    let (opened, ()) = tokio::join!(watch(&api, local()), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        fake.declare("b", "10.0.0.2");
    });
    assert_eq!(opened.unwrap().until("synced").await, ["synced"]);
}

#[tokio::test]
async fn names_filter_what_is_sent_but_not_the_resume_revision() {
    let (fake, api) = start(limits()).await;
    fake.declare("a", "10.0.0.1");
    let request = v1::WatchRequest {
        names: vec!["b".to_owned()],
        progress_interval: Some(convert::proto_duration(Duration::ZERO)),
        ..from(0)
    };
    let mut watch = watch(&api, request).await.unwrap();
    assert_eq!(watch.until("synced").await, ["snapshot reset=false", "synced"]);
    fake.assign("a", 1);
    assert_eq!(watch.next().await.unwrap(), ["progress"]);
    while watch.resume != 2 {
        assert_eq!(watch.next().await.unwrap(), ["progress"]);
    }
    fake.declare("b", "10.0.0.2");
    watch.until("+b@3").await;
}

/// Changes a VIP with a long name `times` times, each seen by itself.
async fn churn(fake: &Fake, name: &str, times: u64) {
    for n in 0..times {
        fake.assign(name, n % 2 + 1);
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_slow_reader_gets_a_reset_and_the_end_state() {
    let (fake, api) = start(limits()).await;
    let mut slow = watch(&api, from(0)).await.unwrap();
    slow.until("synced").await;
    let name = "x".repeat(63);
    fake.declare(&name, "10.0.0.1");
    // Far more than the window of the stream holds, and far more than the history.
    churn(&fake, &name, 5000).await;
    fake.declare("last", "10.9.0.1");
    let seen = slow.until("+last@5002").await;
    assert!(seen.len() < 5000, "{} events: nothing was dropped", seen.len());
    let reset = seen.iter().rposition(|event| event == "snapshot reset=true").expect("a reset");
    assert!(seen.len() - reset < 20, "after the last reset only what is left counts");
}

#[tokio::test]
async fn a_reader_that_stalls_is_cut_off_and_frees_its_place() {
    let stall = Limits { watch_stall: Duration::from_millis(100), watchers: 1, ..limits() };
    let (fake, api) = start(stall).await;
    let _stalled = watch(&api, from(0)).await.unwrap();
    assert_eq!(watch(&api, from(0)).await.err().unwrap().code(), Code::ResourceExhausted);
    let name = "x".repeat(63);
    fake.declare(&name, "10.0.0.1");
    let flood = async {
        while watch(&api, from(0)).await.is_err() {
            churn(&fake, &name, 100).await;
        }
    };
    tokio::time::timeout(PATIENCE, flood).await.expect("the place is free again");
}

#[tokio::test]
async fn a_watch_ends_where_the_leader_is_out_of_reach() {
    let (fake, api) = start(limits()).await;
    let interval = Some(convert::proto_duration(Duration::from_millis(100)));
    let open = |consistency: v1::Consistency| v1::WatchRequest {
        progress_interval: interval,
        consistency: consistency.into(),
        ..from(0)
    };
    let mut strict = watch(&api, open(v1::Consistency::Linearizable)).await.unwrap();
    let mut local = watch(&api, open(v1::Consistency::Local)).await.unwrap();
    strict.until("progress").await;
    fake.fail(Some(BackendError::NoLeader { leader: None }));
    let end = loop {
        if let Err(end) = strict.next().await {
            break end;
        }
    };
    assert_eq!(end.code(), Code::Unavailable);
    local.until("progress").await;
    assert_eq!(watch(&api, from(0)).await.err().unwrap().code(), Code::Unavailable);
}

#[tokio::test]
async fn changes_go_on_while_a_barrier_hangs() {
    let (fake, api) = start(Limits { request_timeout: PATIENCE, ..limits() }).await;
    let interval = Some(convert::proto_duration(Duration::from_millis(100)));
    let mut watch = watch(&api, v1::WatchRequest { progress_interval: interval, ..from(0) }).await.unwrap();
    watch.until("synced").await;
    fake.hangs.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(matches!(fake.apply([Command::DeclareVip(spec("a", "10.0.0.1"))]), Outcome::Changed { .. }));
    watch.until("+a@1").await;
}
