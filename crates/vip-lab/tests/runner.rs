//! Proves the trials: with a stand-in for the daemon that keeps the promise, and with one that breaks it. Needs root.

#![allow(clippy::print_stderr, reason = "a skipped test must be heard")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vip_lab::report::TrialRecord;
use vip_lab::scenario::{Fault, run_trial};
use vip_lab::steady::run_steady;
use vip_lab::{Lab, Manager, Profile};

type TestResult = anyhow::Result<()>;

const SETTLE: Duration = Duration::from_millis(500);

/// A lab with stand-ins, or `None` without the rights for one.
fn lab() -> anyhow::Result<Option<Lab>> {
    if nix::unistd::geteuid().is_root() {
        let program: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stand-in.sh");
        return Lab::builder().profile(Profile::Fast).vipd(Some(program)).start().map(Some);
    }
    assert!(std::env::var_os("VIPD_TEST_REQUIRE_ROOT").is_none(), "VIPD_TEST_REQUIRE_ROOT is set and this is not root");
    let _ = writeln!(std::io::stderr(), "\nSKIPPED: the lab makes network namespaces and needs root");
    Ok(None)
}

fn trial(lab: &Lab, fault: Fault) -> anyhow::Result<TrialRecord> {
    let record = run_trial(lab, fault, 1, SETTLE, &mut |moment| eprintln!("{moment:?}"))?;
    eprintln!("{record:?}");
    Ok(record)
}

#[test]
fn a_manager_that_keeps_the_promise_passes() -> TestResult {
    let Some(lab) = lab()? else { return Ok(()) };
    let baseline = trial(&lab, Fault::Baseline)?;
    assert!(baseline.passed() && baseline.outage_ms < 30.0);
    for fault in [Fault::Kill, Fault::Freeze, Fault::Stop, Fault::Linkdown] {
        let record = trial(&lab, fault)?;
        assert!(record.passed(), "{fault}: {record:?}");
        assert!(record.holders.iter().any(|turn| turn.host != record.owner), "{fault}: nobody took over");
        let takeover = record.new_owner_ms.expect("a new owner");
        assert!((0.0..3000.0).contains(&takeover), "{fault}: taken over after {takeover} ms");
    }
    assert!(trial(&lab, Fault::Reboot)?.passed());
    let steady = run_steady(&lab, Duration::from_secs(7), SETTLE, &mut |_, _| ())?;
    assert_eq!((steady.owner_changes, steady.overlap_ms), (0, 0.0));
    assert!(steady.nodes.iter().filter(|node| node.owner).count() == 1);
    assert!(steady.nodes.iter().all(|node| node.rss_mib > 0.1), "{steady:?}");
    Ok(())
}

#[test]
fn a_manager_without_a_fence_is_found_out() -> TestResult {
    let Some(lab) = lab()? else { return Ok(()) };
    std::fs::write(lab.dir().join("careless"), "")?;
    for fault in [Fault::Kill, Fault::Freeze] {
        let record = trial(&lab, fault)?;
        assert!(record.overlap_ms > 500.0, "{fault}: the old owner goes on answering: {record:?}");
        assert!(!record.passed());
        // The stand-in that was killed does not clean up when it starts again: do it for it.
        lab.daemon(record.owner).stop(Duration::from_secs(5))?;
        for vip in lab.vips() {
            let prefix = if vip.is_ipv4() { 32 } else { 128 };
            let netns = lab.network().host(record.owner);
            let _ = netns.run(["ip", "addr", "del", &format!("{vip}/{prefix}"), "dev", "eth0"]);
        }
        lab.client().run(["ip", "neigh", "flush", "dev", "eth0"])?;
        lab.daemon(record.owner).start()?;
    }
    Ok(())
}

/// The peer is configured as intended: one owner of every VIP, on time, and known as far as its children. What it does
/// with its addresses is the benchmark's subject.
#[test]
fn keepalived_is_a_manager_like_others() -> TestResult {
    let manager = Manager::Keepalived100ms;
    if !nix::unistd::geteuid().is_root() {
        let _ = writeln!(std::io::stderr(), "\nSKIPPED: the lab makes network namespaces and needs root");
        return Ok(());
    }
    if let Err(error) = manager.find_program(None) {
        let _ = writeln!(std::io::stderr(), "\nSKIPPED: nothing was tested: {error:#}");
        return Ok(());
    }
    let lab = Lab::builder().manager(manager).vips(3).start()?;
    let stop = trial(&lab, Fault::Stop)?;
    assert!(stop.recovered, "{stop:?}\n{}", lab.log_tails(20));
    let takeover = stop.new_owner_ms.expect("a new owner");
    assert!(takeover < 2000.0, "an advertisement of priority 0 was not heard: {takeover} ms");
    let kill = trial(&lab, Fault::Kill)?;
    assert!(kill.recovered && kill.overlap_until_healed, "the addresses of a killed keepalived stay: {kill:?}");
    let freeze = trial(&lab, Fault::Freeze)?;
    assert!(freeze.overlap_until_healed, "the child was not frozen, or the kernel does not answer: {freeze:?}");
    let steady = run_steady(&lab, Duration::from_secs(2), SETTLE, &mut |_, _| ())?;
    assert!(steady.nodes.iter().all(|node| node.rss_mib > node.pss_mib), "two processes that share: {steady:?}");
    Ok(())
}
