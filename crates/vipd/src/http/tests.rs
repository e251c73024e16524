//! The routes over a fake node, asked as a client does: by bytes over TCP.

use std::sync::atomic::Ordering;
use std::thread;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use vip_core::NodeId;

use super::*;
use crate::api::tests::fake::Fake;

/// A server for a fake node, whose agent answers once it is woken.
struct Probed {
    fake: Arc<Fake>,
    mailbox: Arc<Mailbox>,
    address: std::net::SocketAddr,
}

impl Probed {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (fake, mailbox) = (Fake::new(), Arc::new(Mailbox::default()));
        let address = listener.local_addr().unwrap();
        tokio::spawn(start(listener, Arc::clone(&fake), Arc::clone(&mailbox)).unwrap());
        Self { fake, mailbox, address }
    }

    /// As the agent's thread does, until the test ends.
    fn wake_agent(&self) {
        let mailbox = Arc::downgrade(&self.mailbox);
        thread::spawn(move || {
            while let Some(mailbox) = mailbox.upgrade() {
                mailbox.take(Some(Duration::from_millis(20)));
            }
        });
    }

    /// The head and the body of the answer to these bytes. The server ends the connection.
    async fn send(&self, request: &str) -> (String, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(2 * CONNECTION, stream.read_to_string(&mut answer)).await.expect("in time").unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
        (head.to_lowercase(), body.to_owned())
    }

    /// As of now.
    async fn get(&self, path: &str) -> (u16, Value) {
        tokio::time::sleep(REUSE).await;
        let (head, body) = self.send(&format!("GET {path} HTTP/1.1\r\nHost: vipd\r\n\r\n")).await;
        assert!(head.contains("content-type: application/json") && head.contains("connection: close"), "{head}");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{head}"));
        (status, serde_json::from_str(&body).unwrap())
    }

    /// That the answer is 503, and why.
    async fn refusal(&self, path: &str) -> String {
        let (status, body) = self.get(path).await;
        assert_eq!((status, &body[path.trim_start_matches('/')]), (503, &Value::Bool(false)), "{body}");
        body["reason"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn a_node_whose_agent_answers_and_that_reaches_a_leader_is_live_and_ready() {
    let probed = Probed::start().await;
    probed.wake_agent();
    for _ in 0..3 {
        assert_eq!(probed.get("/live").await, (200, json!({ "live": true })));
        assert_eq!(probed.get("/ready").await, (200, json!({ "ready": true, "leader": 1 })));
    }
    probed.fake.set_leader(Some(NodeId(3)));
    assert_eq!(probed.get("/ready").await, (200, json!({ "ready": true, "leader": 3 })));
}

#[tokio::test]
async fn a_stuck_agent_is_neither_live_nor_ready() {
    let probed = Probed::start().await;
    for path in ["/live", "/ready"] {
        let reason = probed.refusal(path).await;
        assert!(reason.contains("agent") && reason.contains("900ms"), "{reason}");
    }
    probed.wake_agent();
    assert_eq!(probed.get("/live").await.0, 200, "it is awake again");
    assert_eq!(probed.get("/ready").await.0, 200);
}

#[tokio::test]
async fn without_a_leader_that_has_a_quorum_a_node_lives_and_is_not_ready() {
    let probed = Probed::start().await;
    probed.wake_agent();
    for (failure, why) in [
        (BackendError::NoLeader { leader: None }, "no leader with a quorum"),
        (BackendError::Timeout, "no leader with a quorum"),
        (BackendError::NotReady, "starts, stops"),
        (BackendError::Internal("the disk is gone".to_owned()), "the disk is gone"),
    ] {
        // What it knows of a leader is not what counts.
        probed.fake.fail(Some(failure));
        let reason = probed.refusal("/ready").await;
        assert!(reason.contains(why) && !reason.contains("change"), "{reason}");
        assert_eq!(probed.get("/live").await.0, 200);
    }
    probed.fake.fail(None);
    assert_eq!(probed.get("/ready").await.0, 200);
    probed.fake.hangs.store(true, Ordering::Relaxed);
    assert!(probed.refusal("/ready").await.contains("no leader with a quorum answered within 900ms"));
    assert_eq!(probed.get("/live").await.0, 200);
}

#[tokio::test]
async fn nothing_else_is_there() {
    let probed = Probed::start().await;
    probed.wake_agent();
    for path in ["/", "/metrics", "/live/", "/ready/x", "/LIVE"] {
        assert_eq!(probed.get(path).await.0, 404, "{path}");
    }
    let (head, _) = probed.send("POST /live HTTP/1.1\r\nHost: vipd\r\nContent-Length: 0\r\n\r\n").await;
    assert!(head.starts_with("http/1.1 405"), "{head}");
    let (head, body) = probed.send("HEAD /ready HTTP/1.1\r\nHost: vipd\r\n\r\n").await;
    assert!(head.starts_with("http/1.1 200") && body.is_empty(), "{head}\n{body}");
    let long = format!("GET /live HTTP/1.1\r\nHost: vipd\r\nX: {}\r\n\r\n", "x".repeat(2 * REQUEST_BYTES));
    let (head, _) = probed.send(&long).await;
    assert!(head.starts_with("http/1.1 431"), "{head}");
}

#[tokio::test]
async fn clients_that_say_nothing_do_not_keep_others_out() {
    let probed = Probed::start().await;
    probed.wake_agent();
    let mut silent = Vec::new();
    for _ in 0..2 * CONNECTIONS {
        silent.push(TcpStream::connect(probed.address).await.unwrap());
    }
    let (status, _) = tokio::time::timeout(CONNECTION / 2, probed.get("/live")).await.expect("a place was made");
    assert_eq!(status, 200);
    let mut byte = [0];
    // Nothing, or a reset: it was let go.
    assert!(matches!(silent[0].read(&mut byte).await, Ok(0) | Err(_)));
}

#[tokio::test]
async fn many_who_ask_at_once_are_one_question() {
    let probed = Probed::start().await;
    probed.wake_agent();
    let begin = Instant::now();
    for _ in 0..50 {
        let (head, _) = probed.send("GET /ready HTTP/1.1\r\nHost: vipd\r\n\r\n").await;
        assert!(head.starts_with("http/1.1 200"), "{head}");
    }
    // Those who do not wait for the answer cost no more.
    for _ in 0..50 {
        let mut stream = TcpStream::connect(probed.address).await.unwrap();
        stream.write_all(b"GET /ready HTTP/1.1\r\nHost: vipd\r\n\r\n").await.unwrap();
    }
    tokio::time::sleep(REUSE / 2).await;
    let most = 2 + begin.elapsed().as_millis() / REUSE.as_millis();
    let asked = probed.fake.barriers.load(Ordering::Relaxed);
    assert!(u128::from(asked) <= most, "{asked} questions in {:?}", begin.elapsed());
}

#[tokio::test]
async fn it_ends_with_the_daemon_and_lets_go_of_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (fake, mailbox) = (Fake::new(), Arc::new(Mailbox::default()));
    let address = listener.local_addr().unwrap();
    let served = tokio::spawn(start(listener, Arc::clone(&fake), mailbox).unwrap());
    TcpStream::connect(address).await.unwrap();
    served.abort();
    assert!(served.await.unwrap_err().is_cancelled());
    assert_eq!(Arc::strong_count(&fake), 1);
    let deadline = Instant::now() + Duration::from_secs(5);
    while TcpStream::connect(address).await.is_ok() {
        assert!(Instant::now() < deadline, "it still listens");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
