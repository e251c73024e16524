//! `vipctl` against a real cluster: reads, changes, and a watch across a change of owner.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use vip_lab::{HostId, Profile, Stamp};
use vip_tests::cluster::{Cluster, PATIENCE, cluster};
use vip_tests::{TestResult, programs, wait_until};

fn number(host: HostId) -> u64 {
    match host {
        HostId::Node(n) => n.into(),
        other => panic!("{other} is no node"),
    }
}

#[test]
fn reads_agree_with_the_packets() -> TestResult {
    let Some(cluster) = cluster(Profile::Default)? else { return Ok(()) };
    for node in cluster.lab.nodes() {
        let status = cluster.vipctl_json(node.host(), &["status"])?;
        assert_eq!(status["leader"]["id"], number(cluster.owner), "{status}");
        assert_eq!(status["nodes"].as_array().map(Vec::len), Some(3), "{status}");
        let vip = cluster.vipctl_json(node.host(), &["vip", "get", "web4"])?;
        assert_eq!(vip["vip"]["assignment"]["owner"]["id"], number(cluster.owner), "{vip}");
        let local = cluster.vipctl_json(node.host(), &["--consistency", "local", "vip", "list"])?;
        assert_eq!(local["vips"].as_array().map(Vec::len), Some(2), "{local}");
    }
    Ok(())
}

#[test]
fn a_vip_comes_and_goes() -> TestResult {
    let Some(cluster) = cluster(Profile::Default)? else { return Ok(()) };
    let (owner, other) = (cluster.owner, cluster.others(cluster.owner)[0]);
    let add = ["vip", "add", "third", "10.77.0.103/32", "--interface", "eth0"];
    let is_there = |host| -> anyhow::Result<bool> {
        Ok(cluster.addresses(host)?.iter().any(|entry| entry["local"] == "10.77.0.103"))
    };
    // Asked of a node that does not lead: the client finds the leader.
    assert_eq!(cluster.vipctl_json(other, &add)?["changed"], true);
    assert_eq!(cluster.vipctl_json(other, &add)?["changed"], false, "the same again changes nothing");
    wait_until("the owner has the address", PATIENCE, || is_there(owner))?;
    assert!(!is_there(other)?);
    // As a client reaches it. -D and -I would be about duplicates; this asks who has it.
    cluster.lab.client().run(["arping", "-c", "1", "-w", "2", "-I", "eth0", "10.77.0.103"])?;

    let taken = cluster.vipctl(other, &["vip", "add", "fourth", "10.77.0.103/32", "--interface", "eth0"])?;
    let said = String::from_utf8_lossy(&taken.stderr);
    assert_eq!(taken.status.code(), Some(1), "{said}");
    assert!(said.contains("10.77.0.103"), "{said}");

    assert_eq!(cluster.vipctl_json(other, &["vip", "rm", "third"])?["changed"], true);
    assert_eq!(cluster.vipctl_json(other, &["vip", "rm", "third"])?["changed"], false);
    wait_until("the address is gone", PATIENCE, || Ok(!is_there(owner)?))?;
    let unknown = cluster.vipctl(other, &["vip", "get", "third"])?;
    assert_eq!(unknown.status.code(), Some(1), "{}", String::from_utf8_lossy(&unknown.stderr));
    cluster.never_two(Stamp::default())
}

#[test]
fn a_node_without_a_quorum_answers_local_reads_only() -> TestResult {
    let Some(cluster) = cluster(Profile::Default)? else { return Ok(()) };
    for host in cluster.others(cluster.owner) {
        cluster.node(host).kill()?;
    }
    std::thread::sleep(Profile::Default.lease() * 2);
    let local = cluster.vipctl_json(cluster.owner, &["--consistency", "local", "vip", "list"])?;
    assert_eq!(local["vips"].as_array().map(Vec::len), Some(2), "{local}");
    let refused = cluster.vipctl(cluster.owner, &["--timeout", "1s", "vip", "list"])?;
    assert_eq!(refused.status.code(), Some(3), "{}", String::from_utf8_lossy(&refused.stderr));
    let change = ["--timeout", "1s", "vip", "rm", "web4"];
    let refused = cluster.vipctl(cluster.owner, &change)?;
    assert_eq!(refused.status.code(), Some(3), "{}", String::from_utf8_lossy(&refused.stderr));
    Ok(())
}

/// A `vipctl watch`, and what it prints.
struct Watch {
    child: std::process::Child,
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl Watch {
    /// Starts one that knows all nodes.
    fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        let endpoints = cluster.lab.nodes().iter().map(|node| format!("unix:{}", node.socket().display()));
        let endpoints = endpoints.collect::<Vec<_>>().join(",");
        let mut command = Command::new(programs::vipctl()?);
        command.args(["--json", "--endpoint", &endpoints, "watch"]).stdout(Stdio::piped()).stdin(Stdio::null());
        let mut child = command.spawn().context("start vipctl")?;
        let out = child.stdout.take().context("its output")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            BufReader::new(out).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Ok(Self { child, lines, seen: Vec::new() })
    }

    /// Waits for an event for which `is_it` holds.
    fn wait_for(&mut self, what: &str, is_it: impl Fn(&Value) -> bool) -> TestResult {
        let started = Instant::now();
        loop {
            match self.lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => {
                    let event: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
                    self.seen.push(line);
                    if is_it(&event) {
                        return Ok(());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("the watch ended; it saw\n{}", self.seen.join("\n")),
            }
            ensure!(started.elapsed() < PATIENCE, "{what}: not seen; it saw\n{}", self.seen.join("\n"));
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_watch_goes_on_across_a_change_of_owner() -> TestResult {
    let Some(cluster) = cluster(Profile::Default)? else { return Ok(()) };
    let mut watch = Watch::start(&cluster)?;
    watch.wait_for("the end of the snapshot", |event| event.to_string().to_lowercase().contains("synced"))?;
    assert!(watch.seen.iter().any(|line| line.contains("web4")), "{}", watch.seen.join("\n"));
    cluster.node(cluster.owner).kill()?;
    let heir = cluster.wait_for_one(PATIENCE)?;
    let owner_is = |event: &Value, host: HostId| {
        let text = event.to_string();
        text.contains("web4") && text.contains(&format!("\"id\":{}", number(host)))
    };
    watch.wait_for("web4 with its new owner", |event| owner_is(event, heir))?;
    cluster.vipctl_json(heir, &["vip", "rm", "web6"])?;
    watch.wait_for("web6 is deleted", |event| event.to_string().contains("web6") && !event.to_string().contains("fd77"))
}
