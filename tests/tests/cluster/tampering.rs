//! Somebody with root changes a host behind the daemon's back: never two holders, and all is put right again.

use std::time::Duration;

use vip_lab::topology::INTERFACE;
use vip_lab::{HostId, Profile, Stamp};
use vip_tests::cluster::{Cluster, PATIENCE, cluster};
use vip_tests::{TestResult, wait_until};

const REPAIR: Duration = Duration::from_secs(5);

fn delete_filters(cluster: &Cluster, host: HostId) -> TestResult {
    cluster.lab.network().host(host).run(["tc", "qdisc", "del", "dev", INTERFACE, "clsact"]).map(drop)
}

#[test]
fn the_filters_of_the_owner_are_deleted() -> TestResult {
    let Some(cluster) = cluster(Profile::Default)? else { return Ok(()) };
    let since = Stamp::now();
    delete_filters(&cluster, cluster.owner)?;
    wait_until("the filters are back", REPAIR, || Ok(cluster.fences_on(cluster.owner)? == 2))?;
    cluster.wait_for_one(PATIENCE)?;
    println!("VIPs away for {:?}", cluster.outage(since));
    assert!(cluster.node(cluster.owner).is_running());
    cluster.never_two(since)
}

#[test]
fn the_filters_of_another_node_are_deleted() -> TestResult {
    let Some(cluster) = cluster(Profile::Default)? else { return Ok(()) };
    let since = Stamp::now();
    let other = cluster.others(cluster.owner)[0];
    delete_filters(&cluster, other)?;
    wait_until("the filters are back", REPAIR, || Ok(cluster.fences_on(other)? == 2))?;
    assert_eq!(cluster.wait_for_one(PATIENCE)?, cluster.owner, "it is none of the owner's concern");
    cluster.never_two(since)
}

#[test]
fn the_addresses_of_the_owner_are_deleted() -> TestResult {
    let Some(cluster) = cluster(Profile::Default)? else { return Ok(()) };
    let since = Stamp::now();
    for &vip in cluster.lab.vips() {
        cluster.tamper(cluster.owner, "del", vip)?;
    }
    cluster.wait_for_one(PATIENCE)?;
    let outage = cluster.outage(since);
    println!("VIPs away for {outage:?}");
    assert!(outage < REPAIR, "{outage:?}");
    cluster.never_two(since)
}

/// A cluster with every VIP on a node that does not own them: that node, and since when.
fn with_addresses_by_hand() -> anyhow::Result<Option<(Cluster, HostId, Stamp)>> {
    let Some(cluster) = cluster(Profile::Default)? else { return Ok(None) };
    let since = Stamp::now();
    let other = cluster.others(cluster.owner)[0];
    for &vip in cluster.lab.vips() {
        cluster.tamper(other, "add", vip)?;
    }
    Ok(Some((cluster, other, since)))
}

#[test]
fn a_vip_that_was_put_on_another_node_by_hand_stays_silent() -> TestResult {
    let Some((cluster, other, since)) = with_addresses_by_hand()? else { return Ok(()) };
    // Every question of the watcher reaches that node as well: the fence drops it.
    std::thread::sleep(Duration::from_secs(1));
    let found = cluster.lab.observe().answers(since).into_iter().find(|answer| answer.host == other);
    assert!(found.is_none(), "{found:?}");
    cluster.never_two(since)
}

/// A node that cannot take a VIP must leave it to one that can.
#[test]
fn a_vip_that_was_put_on_the_heir_by_hand_comes_back() -> TestResult {
    let Some((cluster, _, since)) = with_addresses_by_hand()? else { return Ok(()) };
    cluster.node(cluster.owner).kill()?;
    let result = cluster.wait_for_one(PATIENCE);
    cluster.never_two(since)?;
    result.map(drop)
}
