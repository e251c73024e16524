//! The program against a node that gives fixed answers.
#![allow(clippy::unwrap_used)] // clippy.toml allows it in test functions, not in what they call

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use vip_api::convert::proto_duration;
use vip_api::v1;
use vip_api::v1::cluster_service_server::{ClusterService, ClusterServiceServer};
use vip_api::v1::vip_service_server::{VipService, VipServiceServer};
use vip_api::v1::watch_event::{Event, Removed, SnapshotStart, Synced};

struct Fake;

fn header(consistency: i32) -> Option<v1::ResponseHeader> {
    Some(v1::ResponseHeader {
        cluster: "prod".to_owned(),
        node_id: 1,
        term: 4,
        leader_id: Some(1),
        revision: 17,
        consistency,
    })
}

fn node(id: u64) -> Option<v1::NodeRef> {
    Some(v1::NodeRef { id, name: format!("n{id}") })
}

fn vip(name: &str) -> v1::Vip {
    v1::Vip {
        spec: Some(v1::VipSpec {
            name: name.to_owned(),
            address: "192.0.2.10".to_owned(),
            prefix_len: 24,
            interface: "eth0".to_owned(),
            placement: 1,
        }),
        assignment: Some(v1::Assignment { owner: node(1), epoch: 17, term: 4 }),
        revision: 17,
        declared_revision: 5,
        lease_remaining: Some(proto_duration(Duration::from_millis(412))),
        holder_state: v1::HolderState::Active.into(),
    }
}

#[tonic::async_trait]
impl VipService for Fake {
    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        let consistency = request.into_inner().consistency;
        if consistency == i32::from(v1::Consistency::Lease) {
            return Err(Status::unavailable("the cluster has no leader"));
        }
        Ok(Response::new(v1::ListResponse { header: header(consistency), vips: vec![vip("db"), vip("web")] }))
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let v1::GetRequest { name, consistency } = request.into_inner();
        if name != "web" {
            return Err(Status::not_found(format!("no VIP is named {name}")));
        }
        Ok(Response::new(v1::GetResponse { header: header(consistency), vip: Some(vip("web")) }))
    }

    type WatchStream = ReceiverStream<Result<v1::WatchResponse, Status>>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let consistency = request.into_inner().consistency;
        let (sender, receiver) = mpsc::channel(1);
        let message = move |events: Vec<Event>, resume_revision| v1::WatchResponse {
            header: header(consistency),
            events: events.into_iter().map(|event| v1::WatchEvent { event: Some(event) }).collect(),
            resume_revision,
        };
        tokio::spawn(async move {
            let start = Event::SnapshotStart(SnapshotStart { reset: false });
            let first = vec![start, Event::Put(vip("web")), Event::Synced(Synced {})];
            let _ = sender.send(Ok(message(first, 17))).await;
            for revision in 18.. {
                let removed = Event::Delete(Removed { name: "db".to_owned(), revision });
                if sender.send(Ok(message(vec![removed], revision))).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn declare(&self, request: Request<v1::DeclareRequest>) -> Result<Response<v1::DeclareResponse>, Status> {
        let spec = request.into_inner().spec.unwrap_or_default();
        match spec.name.as_str() {
            "taken" => Err(Status::already_exists("a VIP named taken exists already")),
            "same" => Ok(Response::new(v1::DeclareResponse { header: header(1), created: false })),
            _ => {
                assert_eq!(
                    (spec.address.as_str(), spec.prefix_len, spec.interface.as_str()),
                    ("192.0.2.10", 24, "eth0")
                );
                Ok(Response::new(v1::DeclareResponse { header: header(1), created: true }))
            }
        }
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteResponse>, Status> {
        let deleted = request.into_inner().name == "web";
        Ok(Response::new(v1::DeleteResponse { header: header(1), deleted }))
    }
}

#[tonic::async_trait]
impl ClusterService for Fake {
    async fn status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        let member = |id, role: v1::NodeRole| v1::NodeStatus {
            node: node(id),
            peer_address: format!("192.0.2.{id}:7400"),
            role: role.into(),
            reachable: Some(id == 1),
            ..v1::NodeStatus::default()
        };
        Ok(Response::new(v1::StatusResponse {
            header: header(request.into_inner().consistency),
            leader: node(1),
            nodes: vec![member(1, v1::NodeRole::Voter), member(2, v1::NodeRole::Learner)],
            local: Some(v1::LocalStatus {
                node: node(1),
                version: "0.1.0".to_owned(),
                uptime: Some(proto_duration(Duration::from_secs(90_061))),
                warnings: vec!["the number of voters is even".to_owned()],
                ..v1::LocalStatus::default()
            }),
            vips_declared: 2,
            ..v1::StatusResponse::default()
        }))
    }
}

/// A node on a Unix socket, for as long as this lives.
struct Node {
    directory: TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Node {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = {
            let _context = runtime.enter();
            UnixListener::bind(directory.path().join("vipd.sock")).unwrap()
        };
        let server = Server::builder()
            .add_service(VipServiceServer::new(Fake))
            .add_service(ClusterServiceServer::new(Fake))
            .serve_with_incoming(UnixListenerStream::new(listener));
        runtime.spawn(server);
        Self { directory, _runtime: runtime }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = vipctl(args);
        command.env("VIPCTL_ENDPOINTS", format!("unix:{}/vipd.sock", self.directory.path().display()));
        command
    }

    /// Standard output of a run that must succeed.
    fn prints(&self, args: &[&str]) -> String {
        let (code, stdout, stderr) = result(self.command(args).output().unwrap());
        assert_eq!((code, stderr.as_str()), (0, ""), "{args:?}");
        stdout
    }

    fn json(&self, args: &[&str]) -> Value {
        let text = self.prints(&[args, &["--json"]].concat());
        assert_eq!(text.lines().count(), 1, "one line");
        serde_json::from_str(&text).unwrap()
    }
}

fn vipctl(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vipctl"));
    command.args(args).env_remove("VIPCTL_ENDPOINTS").stdin(Stdio::null());
    command
}

fn result(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn lists_and_shows_vips() {
    let node = Node::start();
    let table = node.prints(&["vip", "list"]);
    let lines: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0][..3], ["NAME", "ADDRESS", "INTERFACE"]);
    assert_eq!(lines[2], ["web", "192.0.2.10/24", "eth0", "n1", "17", "active", "412", "ms"]);
    let shown = node.prints(&["vip", "get", "web"]);
    assert!(shown.contains("owner       n1 (1)"), "{shown}");

    let json = node.json(&["--consistency", "local", "vip", "list"]);
    assert_eq!(json["header"]["consistency"], "local");
    let web = &node.json(&["vip", "get", "web"])["vip"];
    assert_eq!(web, &json["vips"][1]);
    assert_eq!((&web["name"], &web["lease_remaining_ms"]), (&Value::from("web"), &Value::from(412.0)));
    assert_eq!(web["assignment"]["owner"]["id"], 1);
}

#[test]
fn changes_say_what_they_came_to() {
    let node = Node::start();
    let add = |name| node.prints(&["vip", "add", name, "192.0.2.10/24", "--interface", "eth0"]);
    assert_eq!(add("web"), "web added (revision 17)\n");
    assert_eq!(add("same"), "same was declared so already (revision 17)\n");
    assert_eq!(node.prints(&["vip", "rm", "web"]), "web deleted (revision 17)\n");
    assert_eq!(node.prints(&["vip", "rm", "db"]), "db was not there (revision 17)\n");
    assert_eq!(node.json(&["vip", "rm", "db"])["changed"], false);
}

#[test]
fn status_is_shown() {
    let node = Node::start();
    let text = node.prints(&["status"]);
    for part in ["cluster  prod, leader n1, term 4", "up 1d 01:01:01", "warning  the number", "learner", "NO"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let json = node.json(&["status"]);
    assert_eq!((&json["cluster"], &json["leader"]["name"]), (&Value::from("prod"), &Value::from("n1")));
    assert_eq!(json["nodes"][1]["role"], "learner");
}

/// Starts a watch; gives it with its first lines read.
fn watch(node: &Node, args: &[&str], lines: usize) -> (Child, Vec<String>) {
    let mut child = node.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let lines = stdout.lines().take(lines).map(Result::unwrap).collect();
    (child, lines)
}

#[test]
fn a_watch_prints_a_line_for_each_event_and_ends_well_with_its_reader() {
    let node = Node::start();
    let (mut child, lines) = watch(&node, &["watch", "--json", "web"], 4);
    let events: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["snapshot_start", "put", "synced", "delete"]);
    assert_eq!((&events[1]["name"], &events[3]["revision"]), (&Value::from("web"), &Value::from(18)));
    // The pipe is closed by now, and events go on.
    let deadline = Instant::now() + Duration::from_secs(10);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "does not end");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(status.code(), Some(0));

    let (mut child, lines) = watch(&node, &["watch"], 4);
    child.wait().unwrap();
    assert!(lines[0].starts_with("EVENT"), "{lines:?}");
    assert!(
        lines[2].starts_with("put        17        web                  192.0.2.10/24 on eth0, owner n1"),
        "{lines:?}"
    );
}

#[test]
fn refusals_exit_1_with_the_reason() {
    let node = Node::start();
    for (args, says) in [
        (&["vip", "get", "none"][..], "no VIP is named none"),
        (&["vip", "add", "taken", "192.0.2.10", "--interface", "eth0"], "exists already"),
    ] {
        let (code, stdout, stderr) = result(node.command(args).output().unwrap());
        assert_eq!((code, stdout.as_str()), (1, ""), "{args:?}");
        assert!(stderr.starts_with("vipctl: ") && stderr.contains(says), "{stderr}");
    }
}

#[test]
fn a_senseless_command_line_exits_2() {
    for args in [
        &[][..],
        &["vip", "frobnicate"],
        &["vip", "get", "a b"],
        &["vip", "add", "web", "192.0.2.300", "--interface", "eth0"],
        &["vip", "add", "web", "192.0.2.1/33", "--interface", "eth0"],
        &["vip", "add", "web", "192.0.2.1", "--interface", "lo"],
        &["vip", "add", "web", "192.0.2.1"],
        &["status", "--timeout", "5"],
        &["status", "--consistency", "eventual"],
        &["status", "--endpoint", "https://node-1:1"],
        &["status", "--endpoint", ""],
    ] {
        let (code, stdout, stderr) = result(vipctl(args).output().unwrap());
        assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}");
        assert!(!stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn nobody_there_or_no_quorum_exits_3() {
    let node = Node::start();
    let no_quorum = node.command(&["--timeout", "200ms", "--consistency", "lease", "vip", "list"]).output().unwrap();
    let nobody = |args: &[&str]| {
        let endpoints = "unix:/nonexistent/a.sock,unix:/nonexistent/b.sock";
        vipctl(&[&["--timeout", "200ms", "--endpoint", endpoints], args].concat()).output().unwrap()
    };
    for (output, says) in [
        (no_quorum, "has no leader"),
        (nobody(&["status"]), "/nonexistent/"),
        (nobody(&["watch"]), "/nonexistent/"),
        (nobody(&["vip", "rm", "web"]), "/nonexistent/"),
    ] {
        let (code, _, stderr) = result(output);
        assert_eq!(code, 3, "{stderr}");
        assert!(stderr.contains(says), "{stderr}");
    }
}

#[test]
fn help_names_the_exit_codes() {
    let (code, stdout, _) = result(vipctl(&["--help"]).output().unwrap());
    assert_eq!(code, 0);
    for part in ["Exit codes:", "VIPCTL_ENDPOINTS", "unix:/run/vipd/vipd.sock", "3  no node was reached"] {
        assert!(stdout.contains(part), "{part}: {stdout}");
    }
}
