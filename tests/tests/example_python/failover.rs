//! `watch` while the owner dies, or can no longer be reached.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use vip_lab::{HostId, Stamp};
use vip_tests::TestResult;
use vip_tests::cluster::PATIENCE;

use crate::python::{Bench, bench, number};

/// A running `watch`, and what it prints.
struct Watch {
    child: Child,
    lines: mpsc::Receiver<String>,
    notes: mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl Watch {
    /// Starts one that hangs on `first`, and knows the other nodes.
    fn start(bench: &Bench, first: HostId) -> Result<Self> {
        let hosts = [vec![first], bench.cluster.others(first)].concat();
        let endpoints: Vec<String> = hosts.into_iter().map(Bench::endpoint).collect();
        let mut command = bench.command(&endpoints, &["--json", "watch"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("start the example")?;
        let lines = lines(child.stdout.take().context("its output")?);
        let notes = self::lines(child.stderr.take().context("its errors")?);
        Ok(Self { child, lines, notes, seen: Vec::new() })
    }

    /// The next event.
    fn next(&mut self, limit: Duration) -> Result<Value> {
        match self.lines.recv_timeout(limit) {
            Ok(line) => {
                let event = serde_json::from_str(&line).with_context(|| line.clone())?;
                self.seen.push(line);
                Ok(event)
            }
            Err(RecvTimeoutError::Timeout) => bail!("nothing more within {limit:?}\n{}", self.story()),
            Err(RecvTimeoutError::Disconnected) => bail!("the watch ended\n{}", self.story()),
        }
    }

    /// The events until the next `synced`, and that one.
    fn until_synced(&mut self) -> Result<Vec<Value>> {
        let mut events = vec![self.next(PATIENCE)?];
        while events.last().is_some_and(|event| event["event"] != "synced") {
            events.push(self.next(PATIENCE)?);
        }
        Ok(events)
    }

    /// The next event that is not `synced`: it comes before or after what happens while a watch is resumed.
    fn next_change(&mut self) -> Result<Value> {
        loop {
            let event = self.next(PATIENCE)?;
            if event["event"] != "synced" {
                return Ok(event);
            }
        }
    }

    /// What it said beside the events.
    fn notes(&self) -> Vec<String> {
        self.notes.try_iter().collect()
    }

    fn story(&self) -> String {
        format!("it saw\n{}\nand said\n{}", self.seen.join("\n"), self.notes().join("\n"))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ends by itself with the process.
fn lines(pipe: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || BufReader::new(pipe).lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    lines
}

fn names<'a>(events: &'a [Value]) -> Vec<(&'a str, &'a str)> {
    let text = |value: &'a Value| value.as_str().unwrap_or("");
    events.iter().map(|event| (text(&event["event"]), text(&event["name"]))).collect()
}

fn epoch(event: &Value) -> Result<u64> {
    event["assignment"]["epoch"].as_u64().with_context(|| format!("no epoch: {event}"))
}

/// That a `put` says of its VIP what `vipctl` says, and that `owner` owns it.
fn check_put(bench: &Bench, event: &Value, owner: HostId, at: HostId) -> TestResult {
    let name = event["name"].as_str().context("a name")?;
    let told = bench.cluster.vipctl_json(at, &["vip", "get", name])?;
    for key in
        ["name", "address", "prefix_len", "interface", "placement", "assignment", "revision", "declared_revision"]
    {
        assert_eq!(event[key], told["vip"][key], "{key} of {event}");
    }
    assert_eq!(event["assignment"]["owner"]["id"], number(owner), "{event}");
    assert_eq!(event["assignment"]["owner"]["name"], owner.to_string(), "{event}");
    assert_eq!(event["header"]["cluster"], "lab", "{event}");
    assert_eq!(event["header"]["consistency"], "linearizable", "{event}");
    let answers = event["header"]["node_id"] == event["assignment"]["owner"]["id"];
    assert_eq!(event["holder_state"] != "unknown", answers, "only the owner knows: {event}");
    Ok(())
}

/// Follows a watch on the owner through `fault`, which makes another node the owner; gives the watch and the heir.
fn through(bench: &Bench, fault: impl FnOnce() -> TestResult) -> Result<(Watch, HostId)> {
    let owner = bench.cluster.owner;
    let mut watch = Watch::start(bench, owner)?;
    let start = watch.until_synced()?;
    assert_eq!(names(&start), [("snapshot_start", ""), ("put", "web4"), ("put", "web6"), ("synced", "")]);
    assert_eq!(start[0]["reset"], false);
    for put in &start[1..3] {
        assert_eq!(put["header"]["node_id"], number(owner), "the first endpoint is asked first: {put}");
        check_put(bench, put, owner, owner)?;
    }

    fault()?;
    let after = [watch.next_change()?, watch.next_change()?];
    let heir = bench.cluster.wait_for_one(PATIENCE)?;
    assert_ne!(heir, owner, "the fault moves the VIPs");
    // Resumed by its revision: only what has changed, no snapshot.
    assert_eq!(names(&after), [("put", "web4"), ("put", "web6")], "{}", watch.story());
    for (before, put) in start[1..3].iter().zip(&after) {
        check_put(bench, put, heir, heir)?;
        assert!(epoch(put)? > epoch(before)?, "{before}, then {put}");
        assert!(put["revision"].as_u64() > before["revision"].as_u64(), "{before}, then {put}");
        assert!(put["header"]["term"].as_u64() > before["header"]["term"].as_u64(), "{before}, then {put}");
        assert_ne!(put["header"]["node_id"], number(owner), "{put}");
    }
    Ok((watch, heir))
}

#[test]
fn a_watch_outlives_the_owner_that_it_hangs_on() -> TestResult {
    let Some(bench) = bench()? else { return Ok(()) };
    let owner = bench.cluster.owner;
    let (mut watch, heir) = through(&bench, || bench.cluster.node(owner).kill())?;
    let notes = watch.notes();
    assert!(notes.iter().any(|note| note.contains(&Bench::endpoint(owner))), "it says which node is gone: {notes:?}");
    assert!(!notes.iter().any(|note| note.contains("Traceback")), "{notes:?}");

    // Live again, not only caught up.
    let added = bench.cluster.vipctl_json(heir, &["vip", "add", "third", "10.77.0.103", "--interface", "eth0"])?;
    let declared = watch.next_change()?;
    assert_eq!((&declared["event"], &declared["name"]), (&"put".into(), &"third".into()), "{declared}");
    assert_eq!(declared["declared_revision"], added["header"]["revision"], "{declared}");
    // The two changes may come merged.
    let owned = if declared["assignment"].is_null() { watch.next_change()? } else { declared };
    check_put(&bench, &owned, heir, heir)?;
    let removed = bench.cluster.vipctl_json(heir, &["vip", "rm", "third"])?;
    let deleted = watch.next_change()?;
    assert_eq!((&deleted["event"], &deleted["name"]), (&"delete".into(), &"third".into()), "{deleted}");
    assert_eq!(deleted["revision"], removed["header"]["revision"], "{deleted}");
    bench.cluster.never_two(Stamp::default())
}

/// No connection breaks here: only the silence tells.
#[test]
fn a_watch_leaves_an_owner_that_falls_silent() -> TestResult {
    let Some(bench) = bench()? else { return Ok(()) };
    let owner = bench.cluster.owner;
    through(&bench, || bench.cluster.lab.network().link_down(owner))?;
    bench.cluster.never_two(Stamp::default())
}
