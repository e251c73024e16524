//! Whom a cluster and a host do not let in, and that they say why. Whoever is refused, the VIPs stay where they are.

use std::fs;
use std::time::Duration;

use anyhow::Context;
use vip_lab::{HostId, Profile, Stamp};
use vip_tests::TestResult;
use vip_tests::cluster::{Cluster, PATIENCE, cluster};
use vip_tests::daemon::{Daemon, wait_for_line};

const LIMIT: Duration = Duration::from_secs(10);
/// What the observer itself may miss on a busy machine; a lease that is lost costs 500 ms.
const HICCUP: Duration = Duration::from_millis(300);

/// A cluster with one node stopped: that one, and the moment from which on nothing may happen to the VIPs.
fn with_one_stopped() -> anyhow::Result<Option<(Cluster, HostId, Stamp)>> {
    let Some(cluster) = cluster(Profile::Default)? else { return Ok(None) };
    let host = *cluster.others(cluster.owner).last().expect("three nodes");
    cluster.node(host).stop(Duration::from_secs(5))?;
    Ok(Some((cluster, host, Stamp::now())))
}

fn nothing_happened(cluster: &Cluster, since: Stamp) -> TestResult {
    let outage = cluster.outage(since);
    assert!(outage < HICCUP, "the VIPs were away for {outage:?}\n{}", cluster.logs());
    assert_eq!(cluster.wait_for_one(PATIENCE)?, cluster.owner);
    cluster.never_two(Stamp::default())
}

#[test]
fn a_wiped_disk_under_a_known_id() -> TestResult {
    let Some((cluster, host, since)) = with_one_stopped()? else { return Ok(()) };
    let store = cluster.node(host).dir().join("raft.redb");
    fs::remove_file(store)?;
    let daemon = cluster.start_alone(host)?;
    daemon
        .gives_up(LIMIT, &["a wiped disk is a new node", "comes with store", "the cluster knows it with store"])
        .with_context(|| cluster.logs())?;
    nothing_happened(&cluster, since)
}

/// The same, and the leader speaks first: the node's own questions do not get through for a while.
#[test]
fn a_wiped_disk_that_the_leader_reaches_first() -> TestResult {
    const RULES: &str = "table inet test { chain out { type filter hook output priority 0; policy accept\n\
         tcp dport 7400 tcp flags & (syn | ack) == syn drop\n}\n}\n";
    let Some((cluster, host, since)) = with_one_stopped()? else { return Ok(()) };
    fs::remove_file(cluster.node(host).dir().join("raft.redb"))?;
    let netns = cluster.lab.network().host(host);
    netns.run_with_input(["nft", "-f", "-"], RULES)?;
    let daemon = cluster.start_alone(host)?;
    daemon.wait_for_line(LIMIT, &["running"])?;
    std::thread::sleep(Duration::from_secs(2));
    netns.run(["nft", "delete", "table", "inet", "test"])?;
    daemon.gives_up(LIMIT, &["a wiped disk is a new node"]).with_context(|| cluster.logs())?;
    nothing_happened(&cluster, since)
}

#[test]
fn the_store_of_another_cluster() -> TestResult {
    let Some((cluster, host, since)) = with_one_stopped()? else { return Ok(()) };
    cluster.reconfigure(host, "name = \"lab\"", "name = \"other\"")?;
    cluster.start_alone(host)?.gives_up(LIMIT, &["a store of cluster lab", "this node is of cluster other"])?;
    nothing_happened(&cluster, since)
}

#[test]
fn a_new_node_of_another_cluster() -> TestResult {
    let Some((cluster, host, since)) = with_one_stopped()? else { return Ok(()) };
    cluster.reconfigure(host, "name = \"lab\"", "name = \"other\"")?;
    fs::remove_file(cluster.node(host).dir().join("raft.redb"))?;
    let daemon = cluster.start_alone(host)?;
    daemon
        .wait_for_line(LIMIT, &["\"lab\"", "\"other\""])
        .or_else(|_| daemon.wait_for_line(LIMIT, &["lab", "other"]))?;
    assert!(cluster.vips_on(host)?.is_empty());
    nothing_happened(&cluster, since)
}

#[test]
fn a_member_with_another_timing() -> TestResult {
    let Some((cluster, host, since)) = with_one_stopped()? else { return Ok(()) };
    cluster.reconfigure(host, "profile = \"default\"", "profile = \"fast\"")?;
    let daemon = cluster.start_alone(host)?;
    daemon.wait_for_line(LIMIT, &["lease = 500ms", "lease = 100ms"])?;
    // Whoever operates the others is told as well.
    wait_for_line(&cluster.node(cluster.owner).log_path(), LIMIT, &["lease = 500ms", "lease = 100ms"])?;
    assert!(cluster.vips_on(host)?.is_empty());
    nothing_happened(&cluster, since)
}

#[test]
fn a_second_daemon_on_the_same_host() -> TestResult {
    let Some(cluster) = cluster(Profile::Default)? else { return Ok(()) };
    let since = Stamp::now();
    let words = ["another vipd runs in this network namespace"];
    cluster.start_alone(cluster.owner)?.gives_up(LIMIT, &words)?;
    // Also one that shares nothing with the first but the host.
    let dir = cluster.lab.dir().join("second");
    fs::create_dir_all(&dir)?;
    let (dir_text, ip) = (dir.display(), cluster.owner.ipv4());
    let config = dir.join("vipd.toml");
    fs::write(
        &config,
        format!(
            "insecure = true\n[cluster]\nname = \"second\"\n[node]\nid = 9\ndata_dir = \"{dir_text}\"\n\
             [peer]\nlisten = \"{ip}:7500\"\n[api]\nsocket = \"{dir_text}/vipd.sock\"\n\
             [[initial_cluster.node]]\nid = 9\naddress = \"{ip}:7500\"\n"
        ),
    )?;
    let netns = cluster.lab.network().host(cluster.owner);
    Daemon::start(netns, &config, dir.join("vipd.log"))?.gives_up(LIMIT, &words)?;
    assert_eq!(cluster.fences_on(cluster.owner)?, 2);
    nothing_happened(&cluster, since)
}
