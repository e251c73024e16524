//! The fence of nftables, and how a node comes to it. The kernel's tick costs more of the lease, never a second holder.

use std::time::Duration;

use vip_lab::scenario::{Fault, run_trial};
use vip_lab::{HostId, Lab, Stamp};
use vip_tests::cluster::{Cluster, PATIENCE, cluster_of};
use vip_tests::daemon::wait_for_line;
use vip_tests::{TestResult, programs, wait_until};

const LIMIT: Duration = Duration::from_secs(10);
const NFTABLES: &str = "[fence]\nbackend = \"nftables\"\n";
/// Where no BPF filesystem can be: as good as a kernel without BPF.
const NO_BPF: &str = "pin_root = \"/proc/vipd\"";

fn cluster_with(sections: &str) -> anyhow::Result<Option<Cluster>> {
    cluster_of(Lab::builder().vipd(Some(programs::vipd()?)).extra_toml(sections))
}

fn kind(cluster: &Cluster, host: HostId) -> anyhow::Result<String> {
    let status = cluster.vipctl_json(host, &["status"])?;
    Ok(status["local"]["fence"]["kind"].as_str().unwrap_or_default().to_owned())
}

fn has_table(cluster: &Cluster, host: HostId) -> anyhow::Result<bool> {
    Ok(cluster.lab.network().host(host).run(["nft", "list", "tables"])?.contains("netdev vipd"))
}

#[test]
fn no_fault_makes_two_holders() -> TestResult {
    let Some(cluster) = cluster_with(NFTABLES)? else { return Ok(()) };
    for host in cluster.lab.nodes().iter().map(vip_lab::Node::host) {
        assert_eq!(kind(&cluster, host)?, "nftables");
        assert_eq!(cluster.fences_on(host)?, 0, "no BPF");
        assert!(has_table(&cluster, host)?);
    }
    for fault in [Fault::Kill, Fault::Freeze, Fault::Partition, Fault::Linkdown, Fault::Stop] {
        let record = run_trial(&cluster.lab, fault, 1, Duration::from_secs(2), &mut |_| ())?;
        println!("{fault}: outage {:.1} ms, overlap {:.1} ms", record.worst_outage_ms(), record.overlap_ms);
        assert!(record.passed(), "{fault}: {record:?}\n{}", cluster.logs());
    }
    Ok(())
}

#[test]
fn where_bpf_cannot_be_the_reason_is_told() -> TestResult {
    let Some(cluster) = cluster_with(&format!("[fence]\n{NO_BPF}\n"))? else { return Ok(()) };
    let host = *cluster.others(cluster.owner).last().expect("three nodes");
    for host in [cluster.owner, host] {
        wait_for_line(&cluster.node(host).log_path(), LIMIT, &["WARN", "the fence is nftables", "/proc/vipd"])?;
        let status = cluster.vipctl_json(host, &["status"])?;
        assert_eq!(status["local"]["fence"]["kind"], "nftables", "{status}");
        let warnings = status["local"]["warnings"].to_string();
        assert!(warnings.contains("the fence is nftables") && warnings.contains("/proc/vipd"), "{warnings}");
        assert!(status["timing"]["margin_ms"].as_f64() > Some(6.0), "more than with BPF: {status}");
    }

    // Asked for by name it is BPF or nothing.
    let since = Stamp::now();
    cluster.node(host).stop(LIMIT)?;
    cluster.reconfigure(host, NO_BPF, &format!("{NO_BPF}\nbackend = \"bpf\""))?;
    cluster.start_alone(host)?.gives_up(LIMIT, &["no BPF filesystem at /proc/vipd", "fence.backend"])?;

    // Kinds may differ between nodes, and the new kind clears away what the old one left.
    assert!(has_table(&cluster, host)?, "it keeps what it knows silent until somebody takes over");
    cluster.reconfigure(host, NO_BPF, "")?;
    cluster.node(host).start()?;
    wait_until("the node has BPF", PATIENCE, || Ok(kind(&cluster, host).is_ok_and(|kind| kind == "bpf")))?;
    assert!(!has_table(&cluster, host)?);
    assert_eq!(cluster.fences_on(host)?, 2);
    assert_eq!(kind(&cluster, cluster.owner)?, "nftables");
    cluster.wait_for_one(PATIENCE)?;
    cluster.never_two(since)
}

#[test]
fn a_flush_of_all_rules_passes_by_the_fence() -> TestResult {
    let Some(cluster) = cluster_with(NFTABLES)? else { return Ok(()) };
    let since = Stamp::now();
    for host in cluster.lab.nodes().iter().map(vip_lab::Node::host) {
        cluster.lab.network().host(host).run(["nft", "flush", "ruleset"])?;
    }
    // Before Linux 6.9 it is gone, and made anew.
    for host in cluster.lab.nodes().iter().map(vip_lab::Node::host) {
        wait_until("the table is there", LIMIT, || has_table(&cluster, host))?;
    }
    cluster.wait_for_one(PATIENCE)?;
    cluster.never_two(since)
}
