//! Disks that fail: a node without a store it can trust holds nothing, and says so.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use vip_lab::{HostId, Node, Profile, Stamp};
use vip_tests::TestResult;
use vip_tests::cluster::{Cluster, PATIENCE, cluster};
use vip_tests::daemon::Daemon;
use vip_tests::disk::TinyDisk;

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn a_damaged_store_is_not_used() -> TestResult {
    let Some(cluster) = cluster(Profile::Default)? else { return Ok(()) };
    let host = cluster.others(cluster.owner)[0];
    cluster.node(host).stop(Duration::from_secs(5))?;
    let path = cluster.node(host).dir().join("raft.redb");
    let mut bytes = fs::read(&path)?;
    // Behind the header, so that it is still a store to look at.
    bytes.iter_mut().skip(4096).step_by(64).for_each(|byte| *byte ^= 0xff);
    fs::write(&path, &bytes)?;
    cluster.start_alone(host)?.gives_up(LIMIT, &["cannot trust", "raft.redb", "join with a new node id"])?;
    assert!(fs::read(&path)? == bytes, "the file is kept as it was, for a look at it");
    assert_eq!(cluster.wait_for_one(PATIENCE)?, cluster.owner);
    cluster.never_two(Stamp::default())
}

/// Moves the store of every node to a small disk of its own, and starts the cluster again.
fn on_tiny_disks(cluster: &Cluster) -> anyhow::Result<(BTreeMap<HostId, TinyDisk>, BTreeMap<HostId, Daemon>)> {
    const KIB: u32 = 2048;
    cluster.lab.nodes().iter().try_for_each(Node::kill)?;
    let (mut disks, mut daemons) = (BTreeMap::new(), BTreeMap::new());
    for node in cluster.lab.nodes() {
        let (host, dir) = (node.host(), node.dir().display().to_string());
        let disk = TinyDisk::mount(node.dir().join("disk"), KIB)?;
        fs::copy(node.dir().join("raft.redb"), disk.path().join("raft.redb"))?;
        cluster.reconfigure(host, &format!("data_dir = \"{dir}\""), &format!("data_dir = \"{dir}/disk\""))?;
        disks.insert(host, disk);
    }
    for node in cluster.lab.nodes() {
        daemons.insert(node.host(), cluster.start_alone(node.host())?);
    }
    Ok((disks, daemons))
}

#[test]
fn a_full_disk_ends_an_owner_and_another_takes_over() -> TestResult {
    let Some(cluster) = cluster(Profile::Default)? else { return Ok(()) };
    let (disks, mut daemons) = on_tiny_disks(&cluster)?;
    let owner = cluster.wait_for_one(PATIENCE)?;
    let since = Stamp::now();
    disks[&owner].fill()?;
    // Renewing a lease writes nothing: a full disk shows with the next change.
    let mut daemon = daemons.remove(&owner).expect("a daemon for each node");
    let mut changes = 0;
    let status = loop {
        let name = format!("more-{changes}");
        let address = format!("10.77.5.{}", changes + 1);
        cluster.vipctl(owner, &["--timeout", "2s", "vip", "add", &name, &address, "--interface", "eth0"])?;
        changes += 1;
        match daemon.wait(Duration::from_millis(10)) {
            Ok(status) => break status,
            Err(error) if changes >= 200 => return Err(error),
            Err(_) => {}
        }
    };
    println!("{changes} changes until the disk was full; ended with {status}");
    let log = daemon.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("No space left") || log.contains("no space is left"), "it must say why\n{log}");
    assert!(cluster.vips_on(owner)?.is_empty(), "it gives its addresses back");
    let heir = cluster.wait_for_one(PATIENCE)?;
    assert_ne!(heir, owner);
    println!("VIPs away for {:?}", cluster.outage(since));
    cluster.never_two(since)?;

    // It says so at the start as well, and with some room it joins again.
    fs::remove_file(disks[&owner].path().join("ballast"))?;
    let daemon = cluster.start_alone(owner)?;
    daemon.wait_for_line(LIMIT, &["running"])?;
    assert_eq!(cluster.wait_for_one(PATIENCE)?, heir);
    cluster.never_two(since)
}
