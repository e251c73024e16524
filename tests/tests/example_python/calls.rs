//! `list` and `get`, and how they fail.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use vip_lab::{HostId, Profile};
use vip_tests::TestResult;

use crate::python::{Bench, bench, number};

/// Takes out what is left of the lease, and says whether it is what an owner may say, or another node.
fn lease_of(vip: &mut Value, holder: bool) -> TestResult {
    let lease = vip.as_object_mut().context("a VIP")?.remove("lease_remaining_ms").context("the lease")?;
    match lease.as_f64() {
        Some(left) => {
            let most = Profile::Default.lease().as_secs_f64() * 1e3;
            ensure!(holder && left > 0.0 && left <= most, "{left} ms of a lease of {most} ms; holder: {holder}");
        }
        None => ensure!(!holder && lease.is_null(), "the lease of a holder is {lease}"),
    }
    Ok(())
}

/// What the node `asked` has to say of a VIP that `owner` holds since the cluster formed.
fn expected(bench: &Bench, asked: HostId, name: &str) -> Result<Value> {
    // Past the lease that was just compared, another client of the same node is asked for the revisions only.
    let told = bench.cluster.vipctl_json(asked, &["vip", "get", name])?;
    let (owner, vips) = (bench.cluster.owner, bench.cluster.lab.vips());
    let address = vips.iter().find(|ip| ip.is_ipv4() == (name == "web4")).context("its address")?;
    Ok(json!({
        "name": name,
        "address": address.to_string(),
        "prefix_len": if address.is_ipv4() { 32 } else { 128 },
        "interface": "eth0",
        "placement": "leader",
        "assignment": {
            "owner": { "id": number(owner), "name": owner.to_string() },
            "epoch": told["vip"]["assignment"]["epoch"].as_u64().context("epoch")?,
            "term": told["vip"]["assignment"]["term"].as_u64().context("term")?,
        },
        "revision": told["vip"]["revision"].as_u64().context("revision")?,
        "declared_revision": told["vip"]["declared_revision"].as_u64().context("declared_revision")?,
        "holder_state": if asked == owner { "active" } else { "unknown" },
    }))
}

/// The header that `asked` has to send.
fn expected_header(bench: &Bench, asked: HostId, consistency: &str) -> Result<Value> {
    let told = bench.cluster.vipctl_json(asked, &["--consistency", "local", "status"])?;
    Ok(json!({
        "cluster": "lab",
        "node_id": number(asked),
        "term": told["term"].as_u64().context("term")?,
        "leader_id": number(bench.cluster.owner),
        "revision": told["revision"].as_u64().context("revision")?,
        "consistency": consistency,
    }))
}

#[test]
fn every_field_is_what_the_network_and_vipctl_say() -> TestResult {
    let Some(bench) = bench()? else { return Ok(()) };
    for node in bench.cluster.lab.nodes() {
        let host = node.host();
        let (holder, endpoints) = (host == bench.cluster.owner, [Bench::endpoint(host)]);
        for consistency in ["linearizable", "lease", "local"] {
            let header = expected_header(&bench, host, consistency)?;
            let mut list = bench.json(&endpoints, &["--consistency", consistency, "list"])?;
            assert_eq!(list["header"], header, "list from {host}");
            let listed = list["vips"].as_array_mut().context("the VIPs")?;
            assert_eq!(listed.len(), 2, "{listed:?}");
            for (listed, name) in listed.iter_mut().zip(["web4", "web6"]) {
                lease_of(listed, holder)?;
                assert_eq!(*listed, expected(&bench, host, name)?, "{name} from {host}");
                let mut got = bench.json(&endpoints, &["--consistency", consistency, "get", name])?;
                assert_eq!(got["header"], header, "get {name} from {host}");
                lease_of(&mut got["vip"], holder)?;
                assert_eq!(got["vip"], *listed, "get {name} from {host}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_table_shows_the_same() -> TestResult {
    let Some(bench) = bench()? else { return Ok(()) };
    let owner = bench.cluster.owner;
    for host in [owner, bench.cluster.others(owner)[0]] {
        let endpoints = [Bench::endpoint(host)];
        let shown = bench.run(&endpoints, &["list"])?;
        let rows: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows.len(), 4, "{shown}");
        assert_eq!(rows[0], ["NAME", "ADDRESS", "INTERFACE", "OWNER", "EPOCH", "STATE", "LEASE", "LEFT"]);
        for (row, name) in rows[1..3].iter().zip(["web4", "web6"]) {
            let vip = expected(&bench, host, name)?;
            let address = format!("{}/{}", vip["address"].as_str().context("address")?, vip["prefix_len"]);
            let (owner, epoch) = (owner.to_string(), vip["assignment"]["epoch"].to_string());
            let state = if host == bench.cluster.owner { "active" } else { "-" };
            assert_eq!(row[..6], [name, &address, "eth0", &owner, &epoch, state], "{shown}");
            match &row[6..] {
                ["-"] => assert_ne!(host, bench.cluster.owner, "{shown}"),
                [left, "ms"] => assert!(left.parse::<u32>()? <= 500, "{shown}"),
                other => panic!("{other:?} in\n{shown}"),
            }
        }
        let header = expected_header(&bench, host, "linearizable")?;
        let last = format!(
            "node {} of lab, leader {}, term {}, revision {}, linearizable",
            header["node_id"], header["leader_id"], header["term"], header["revision"]
        );
        assert_eq!(rows[3].join(" "), last);
        let one = bench.run(&endpoints, &["get", "web6"])?;
        let found: Vec<&str> = one.lines().map(|line| line.split_whitespace().next().unwrap_or_default()).collect();
        assert_eq!(found, ["NAME", "web6", "node"], "{one}");
    }
    Ok(())
}

#[test]
fn a_failure_is_one_line_and_in_time() -> TestResult {
    let Some(bench) = bench()? else { return Ok(()) };
    let owner = Bench::endpoint(bench.cluster.owner);
    let owner = std::slice::from_ref(&owner);
    let (code, said) = bench.failure(owner, &["get", "nope"])?;
    assert_eq!((code, said.contains("NOT_FOUND") && said.contains("nope")), (Some(1), true), "{said}");
    let (code, said) = bench.failure(owner, &["get", "no such"])?;
    assert_eq!((code, said.contains("INVALID_ARGUMENT")), (Some(1), true), "{said}");

    // A host that is not there, and a port at which nobody listens.
    let nowhere = ["10.77.0.99:7401".to_owned(), format!("{}:9", bench.cluster.owner.ipv4())];
    for (wrong, command) in nowhere.iter().flat_map(|wrong| [(wrong, "list"), (wrong, "watch")]) {
        let started = Instant::now();
        let output = bench.command(std::slice::from_ref(wrong), &["--timeout", "1", command]).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains(wrong.as_str()) && !said.contains("Traceback"), "{said}");
        assert!(started.elapsed() < Duration::from_secs(8), "{command}: {:?}", started.elapsed());
    }
    // One of them stands in nobody's way.
    let endpoints = [nowhere[0].clone(), nowhere[1].clone(), owner[0].clone()];
    assert_eq!(bench.json(&endpoints, &["list"])?["vips"].as_array().map(Vec::len), Some(2));

    for host in bench.cluster.others(bench.cluster.owner) {
        bench.cluster.node(host).kill()?;
    }
    std::thread::sleep(Profile::Default.lease() * 2);
    for consistency in ["linearizable", "lease"] {
        let (code, said) = bench.failure(owner, &["--timeout", "2", "--consistency", consistency, "list"])?;
        assert_eq!(code, Some(3), "without a quorum, {consistency}: {said}");
    }
    let local = bench.json(owner, &["--consistency", "local", "list"])?;
    for vip in local["vips"].as_array().context("the VIPs")? {
        assert!(vip["lease_remaining_ms"].is_null() && vip["holder_state"] != "active", "its lease is over: {vip}");
    }
    Ok(())
}
