//! The fence of nftables, and how a node comes to it. The kernel's tick costs more of the lease, never a second holder.

use std::ffi::OsStr;
use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use vip_lab::scenario::{Fault, run_trial};
use vip_lab::{HostId, Lab, Profile, Stamp};
use vip_tests::cluster::{Cluster, FenceKind, PATIENCE, cluster_fenced_by, cluster_of};
use vip_tests::daemon::wait_for_line;
use vip_tests::{TestResult, programs, wait_until};

const LIMIT: Duration = Duration::from_secs(10);
/// Where no BPF filesystem can be: as good as a kernel without BPF.
const NO_BPF: &str = "pin_root = \"/proc/vipd\"";

fn cluster_with_nftables() -> anyhow::Result<Option<Cluster>> {
    cluster_fenced_by(FenceKind::Nftables, Profile::Default, Lab::builder().vipd(Some(programs::vipd()?)))
}

fn cluster_with(sections: &str) -> anyhow::Result<Option<Cluster>> {
    cluster_of(Lab::builder().vipd(Some(programs::vipd()?)).extra_toml(sections))
}

fn kind(cluster: &Cluster, host: HostId) -> anyhow::Result<String> {
    let status = cluster.vipctl_json(host, &["status"])?;
    Ok(status["local"]["fence"]["kind"].as_str().unwrap_or_default().to_owned())
}

fn has_table(cluster: &Cluster, host: HostId) -> anyhow::Result<bool> {
    Ok(cluster.table_on(host)?.is_some())
}

#[test]
fn no_fault_makes_two_holders() -> TestResult {
    let Some(cluster) = cluster_with_nftables()? else { return Ok(()) };
    for host in cluster.lab.nodes().iter().map(vip_lab::Node::host) {
        assert_eq!(kind(&cluster, host)?, "nftables");
        assert_eq!(cluster.fences_on(host)?, 0, "no BPF");
        assert!(cluster.is_fenced(host)?);
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
    let Some(cluster) = cluster_with_nftables()? else { return Ok(()) };
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

/// Root of a user namespace may make namespaces and rules, and may not load BPF. Anybody may be that.
#[test]
fn without_the_privilege_for_bpf_a_whole_cluster_takes_nftables_by_itself() -> TestResult {
    const NAME: &str = "nftables::without_the_privilege_for_bpf_a_whole_cluster_takes_nftables_by_itself";
    const INSIDE: &str = "VIPD_TEST_IN_USER_NAMESPACE";
    if std::env::var_os(INSIDE).is_none() {
        if !unshared([OsStr::new("true")]).status().context("start unshare")?.success() {
            let required = std::env::var_os("VIPD_TEST_REQUIRE_ROOT").is_some();
            assert!(!required, "VIPD_TEST_REQUIRE_ROOT is set, and this process may not make user namespaces");
            let _ = writeln!(std::io::stderr(), "\nSKIPPED: no user namespaces here; nothing was tested");
            return Ok(());
        }
        // `ip netns` wants a directory of its own.
        let script = "mount -t tmpfs tmpfs /run && exec \"$0\" --exact \"$1\" --nocapture";
        let program = std::env::current_exe()?;
        let mut again = unshared(["sh".as_ref(), "-c".as_ref(), script.as_ref(), program.as_os_str(), NAME.as_ref()]);
        again.env(INSIDE, "1").env("VIPD_BIN", programs::vipd()?).env("VIPCTL_BIN", programs::vipctl()?);
        let output = again.output().context("start unshare")?;
        let said = String::from_utf8_lossy(&output.stdout);
        let ran = output.status.success() && said.contains("1 passed");
        assert!(ran, "in a user namespace: {said}{}", String::from_utf8_lossy(&output.stderr));
        print!("{said}");
        return Ok(());
    }
    let cluster = cluster_with("")?.context("root of a user namespace may have a laboratory")?;
    for node in cluster.lab.nodes() {
        let host = node.host();
        wait_for_line(&node.log_path(), LIMIT, &["WARN", "the fence is nftables", "bpf", "not permitted"])?;
        let status = cluster.vipctl_json(host, &["status"])?;
        assert_eq!(status["local"]["fence"]["kind"], "nftables", "{status}");
        let warnings = status["local"]["warnings"].to_string();
        assert!(warnings.contains("the fence is nftables") && warnings.contains("not permitted"), "{warnings}");
        assert_eq!(cluster.fences_on(host)?, 0, "no BPF");
    }
    let record = run_trial(&cluster.lab, Fault::Kill, 1, Duration::from_secs(1), &mut |_| ())?;
    println!("kill: outage {:.1} ms, overlap {:.1} ms", record.worst_outage_ms(), record.overlap_ms);
    assert!(record.passed(), "{record:?}\n{}", cluster.logs());
    cluster.never_two(Stamp::default())
}

fn unshared<'a>(command: impl IntoIterator<Item = &'a OsStr>) -> Command {
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--net", "--mount", "--"]).args(command);
    unshare
}
