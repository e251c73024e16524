//! Who holds the VIPs, who does not, and how that changes hands.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use nix::sys::signal::Signal;
use vip_lab::{HostId, Lab, Profile, Stamp};
use vip_tests::cluster::{Cluster, FenceKind, PATIENCE, SLACK, cluster, cluster_fenced_by};
use vip_tests::{TestResult, programs, wait_until};

fn all_vips(cluster: &Cluster) -> BTreeSet<IpAddr> {
    cluster.lab.vips().iter().copied().collect()
}

#[test]
fn a_cluster_forms_and_one_host_holds_every_vip() -> TestResult {
    let Some(cluster) = cluster(Profile::Default)? else { return Ok(()) };
    cluster.never_two(Stamp::default())?;
    for node in cluster.lab.nodes() {
        let host = node.host();
        let expected = if host == cluster.owner { all_vips(&cluster) } else { BTreeSet::new() };
        assert_eq!(cluster.vips_on(host)?, expected, "VIPs on {host}; {} holds them", cluster.owner);
        assert_eq!(cluster.fences_on(host)?, 2, "a filter for each direction on {host}");
    }
    for entry in cluster.addresses(cluster.owner)? {
        let is_vip =
            entry["local"].as_str().is_some_and(|ip| cluster.lab.vips().iter().any(|vip| vip.to_string() == ip));
        // The janitor behind the fence: an address that nobody renews goes by itself.
        let lifetime = entry["valid_life_time"].as_u64().unwrap_or_default();
        assert_eq!(is_vip, lifetime <= 10, "{entry}");
        // iproute2 shows the tag since 6.3; vip-net's own tests read it from the kernel.
        if let Some(tag) = entry["protocol"].as_str().filter(|_| is_vip) {
            assert_eq!(tag, "0x76", "{entry}");
        }
    }
    Ok(())
}

#[test]
fn a_dead_owner_keeps_the_address_and_says_nothing() -> TestResult {
    keeps_the_address_and_says_nothing(FenceKind::Bpf)
}

#[test]
fn a_dead_owner_with_nftables_keeps_the_address_and_says_nothing() -> TestResult {
    keeps_the_address_and_says_nothing(FenceKind::Nftables)
}

fn keeps_the_address_and_says_nothing(fence: FenceKind) -> TestResult {
    let builder = Lab::builder().vipd(Some(programs::vipd()?));
    let Some(cluster) = cluster_fenced_by(fence, Profile::Default, builder)? else { return Ok(()) };
    let (owner, lab) = (cluster.owner, &cluster.lab);
    cluster.node(owner).kill()?;
    let killed = Stamp::now();
    let heir = cluster.wait_for_one(PATIENCE)?;
    assert_ne!(heir, owner);
    assert_eq!(cluster.vips_on(owner)?, all_vips(&cluster), "nobody is there to remove them");

    // Even a client that insists on the dead host gets nothing from it: past ARP and NDP, straight to its MAC address.
    let asked = Stamp::now();
    let mac = vip_lab::topology::mac_text(owner.mac());
    for &vip in lab.vips() {
        let vip = vip.to_string();
        lab.client().run(["ip", "neigh", "replace", &vip, "lladdr", &mac, "dev", "eth0", "nud", "permanent"])?;
    }
    std::thread::sleep(Duration::from_millis(500));
    let answers = lab.observe().answers(asked);
    let from_dead = answers.iter().find(|answer| answer.host == owner);
    assert!(from_dead.is_none(), "{from_dead:?}");
    assert!(answers.iter().any(|answer| answer.host == heir), "the watcher asks everybody: {heir} answers that");
    for &vip in lab.vips() {
        lab.client().run(["ip", "neigh", "del", &vip.to_string(), "dev", "eth0"])?;
    }

    // The next daemon finds what its predecessor left, sooner than the kernel's janitor.
    cluster.node(owner).start()?;
    wait_until("the addresses of the earlier run are gone", Duration::from_secs(5), || {
        Ok(cluster.vips_on(owner)?.is_empty())
    })?;
    assert!(killed + Duration::from_secs(9) > Stamp::now(), "too late to tell the daemon from the janitor");
    assert_eq!(cluster.wait_for_one(PATIENCE)?, heir, "a node that comes back takes nothing away");
    cluster.never_two(Stamp::default())
}

#[test]
fn a_minority_holds_nothing_past_its_lease() -> TestResult {
    let Some(cluster) = cluster(Profile::Default)? else { return Ok(()) };
    let owner = cluster.owner;
    let others = cluster.others(owner);
    let killed = Stamp::now();
    for &other in &others {
        cluster.node(other).kill()?;
    }
    // The quorum's last answer came before the second one died; it cannot be worth more than a lease from then.
    let lease_end = Stamp::now() + Profile::Default.lease() + Duration::from_millis(20);
    std::thread::sleep(Profile::Default.lease() * 4);
    cluster.nobody_answered(lease_end, Stamp::now())?;
    assert!(!cluster.lab.observe().answers(killed).is_empty(), "it held them until then");
    assert_eq!(cluster.vips_on(owner)?, BTreeSet::new(), "the addresses are taken away");
    // Not a line of the libraries: openraft tells of every message that did not get through.
    let log = std::fs::read_to_string(cluster.node(owner).log_path())?;
    let ours: Vec<&str> = log.lines().filter(|line| !line.contains(" openraft::")).collect();
    let said = ours.iter().any(|line| line.contains("quorum") && (line.contains("WARN") || line.contains("ERROR")));
    assert!(said, "it must say that it has no quorum, but it says\n{}", ours.join("\n"));

    cluster.node(others[0]).start()?;
    cluster.wait_for_one(PATIENCE)?;
    cluster.never_two(Stamp::default())
}

#[test]
fn a_stopped_owner_hands_over_and_ends_well() -> TestResult {
    let Some(cluster) = cluster(Profile::Default)? else { return Ok(()) };
    let owner = cluster.owner;
    // As the laboratory's child the daemon would hide its exit code.
    cluster.node(owner).stop(Duration::from_secs(2))?;
    let mut daemon = cluster.start_alone(owner)?;
    cluster.wait_for_one(PATIENCE)?;
    hand_over_until(&cluster, owner)?;

    let before = Stamp::now();
    daemon.signal(Signal::SIGTERM)?;
    let status = daemon.wait(Duration::from_secs(2))?;
    assert_eq!(status.code(), Some(0), "{}", daemon.log());
    assert_eq!(cluster.vips_on(owner)?, BTreeSet::new(), "it takes its addresses along");
    let heir = cluster.wait_for_one(PATIENCE)?;
    assert_ne!(heir, owner);
    let outage = cluster.outage(before);
    println!("handed over within {outage:?}");
    assert!(outage < Profile::Default.lease(), "a planned move waits for no lease: {outage:?}\n{}", daemon.log());
    cluster.never_two(Stamp::default())
}

/// Restarts whoever holds the VIPs, in order, until `wanted` does.
pub(crate) fn hand_over_until(cluster: &Cluster, wanted: HostId) -> TestResult {
    for _ in 0..6 {
        let holder = cluster.wait_for_one(PATIENCE)?;
        if holder == wanted {
            return Ok(());
        }
        // Past the time in which a daemon that has just started does not vote.
        std::thread::sleep(Profile::Default.lease() + SLACK);
        cluster.node(holder).stop(Duration::from_secs(5))?;
        cluster.wait_for_one(PATIENCE)?;
        cluster.node(holder).start()?;
    }
    anyhow::bail!("{wanted} never becomes the holder\n{}", cluster.logs())
}
