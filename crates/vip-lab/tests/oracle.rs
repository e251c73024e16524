//! Proves the observer itself, with addresses set by hand instead of a daemon: what it must see it sees, and what is
//! not there it does not see. Needs root.

use std::io::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use vip_lab::clock::millis;
use vip_lab::{AnswerKind, HostId, Lab, Stamp};

type TestResult = anyhow::Result<()>;

const N1: HostId = HostId::Node(1);
const N2: HostId = HostId::Node(2);
const TIMEOUT: Duration = Duration::from_secs(5);

/// A lab without daemons, or `None` without the rights for one.
fn lab(vips: u16) -> anyhow::Result<Option<Lab>> {
    if nix::unistd::geteuid().is_root() {
        return Lab::builder().without_daemons().vips(vips).start().map(Some);
    }
    assert!(std::env::var_os("VIPD_TEST_REQUIRE_ROOT").is_none(), "VIPD_TEST_REQUIRE_ROOT is set and this is not root");
    let _ = writeln!(std::io::stderr(), "\nSKIPPED: the lab makes network namespaces and needs root");
    Ok(None)
}

/// The stand-in for a daemon: puts an address on a node.
fn hold(lab: &Lab, node: u8, vip: IpAddr) -> TestResult {
    let prefix = if vip.is_ipv4() { 32 } else { 128 };
    let mut args =
        vec!["ip".to_owned(), "addr".into(), "add".into(), format!("{vip}/{prefix}"), "dev".into(), "eth0".into()];
    if vip.is_ipv6() {
        args.push("nodad".into());
    }
    lab.host(node).run(args).map(drop)
}

fn release(lab: &Lab, node: u8, vip: IpAddr) -> TestResult {
    let prefix = if vip.is_ipv4() { 32 } else { 128 };
    lab.host(node).run(["ip", "addr", "del", &format!("{vip}/{prefix}"), "dev", "eth0"]).map(drop)
}

/// Tells the client's neighbour cache where the VIP is, by a gratuitous ARP from a tool that is not ours.
fn announce4(lab: &Lab, node: u8, vip: IpAddr) -> TestResult {
    lab.host(node)
        .run(["arping", "-U", "-c", "1", "-w", "1", "-I", "eth0", "-s", &vip.to_string(), &vip.to_string()])
        .map(drop)
}

fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

#[test]
fn sees_the_holder_of_both_families() -> TestResult {
    let Some(lab) = lab(2)? else { return Ok(()) };
    for &vip in lab.vips() {
        hold(&lab, 1, vip)?;
    }
    assert_eq!(lab.wait_stable(Duration::ZERO, TIMEOUT)?, [N1, N1]);
    let since = Stamp::now() - Duration::from_millis(500);
    let answers = lab.observe().answers(since);
    for (vip, kind) in [(lab.vips()[0], AnswerKind::Arp), (lab.vips()[1], AnswerKind::Ndp)] {
        for kind in [kind, AnswerKind::Echo] {
            let count = answers.iter().filter(|answer| answer.vip == vip && answer.kind == kind).count();
            assert!(count > 50, "{vip}: only {count} answers of kind {kind:?} in 500 ms");
        }
        let outage = lab.observe().outage(vip, since, Stamp::now());
        assert!(outage.longest < Duration::from_millis(20), "{outage:?}");
        assert!(outage.sent > 250, "{outage:?}");
    }
    assert!(lab.observe().verdict(since).is_clean());
    Ok(())
}

#[test]
fn sees_an_outage_and_its_length() -> TestResult {
    let Some(lab) = lab(2)? else { return Ok(()) };
    let vip = lab.vips()[0];
    for &vip in lab.vips() {
        hold(&lab, 1, vip)?;
    }
    lab.wait_stable(Duration::ZERO, TIMEOUT)?;
    let since = Stamp::now();
    pause(100);
    let (deleted_after, gone) = (Stamp::now(), release(&lab, 1, vip));
    gone?;
    let deleted_before = Stamp::now();
    pause(200);
    let added_after = Stamp::now();
    hold(&lab, 1, vip)?;
    let added_before = Stamp::now();
    pause(300);

    let longest = lab.observe().outage(vip, since, Stamp::now()).longest;
    let least = added_after.since(deleted_before);
    let most = added_before.since(deleted_after) + Duration::from_millis(20);
    assert!(least <= longest && longest <= most, "outage {longest:?}, truth between {least:?} and {most:?}");
    let other = lab.observe().outage(lab.vips()[1], since, Stamp::now()).longest;
    assert!(other < Duration::from_millis(30), "the IPv6 VIP was there all the time, and yet: {other:?}");
    Ok(())
}

#[test]
fn sees_two_hosts_with_one_address() -> TestResult {
    let Some(lab) = lab(2)? else { return Ok(()) };
    for &vip in lab.vips() {
        hold(&lab, 1, vip)?;
    }
    lab.wait_stable(Duration::ZERO, TIMEOUT)?;
    for &vip in lab.vips() {
        let since = Stamp::now();
        hold(&lab, 2, vip)?;
        let both = Stamp::now();
        pause(150);
        let one = Stamp::now();
        release(&lab, 1, vip)?;
        pause(100);
        let verdict = lab.observe().verdict(since);
        let (least, most) = (millis(one.since(both)) - 15.0, millis(Stamp::now().since(since)));
        let overlap = millis(verdict.overlap);
        assert!(least <= overlap && overlap <= most, "{vip}: overlap {overlap} ms, not {least} to {most}");
        assert!(verdict.overlaps.iter().all(|overlap| overlap.vip == vip && overlap.hosts == (N1, N2)), "{verdict:?}");
    }
    Ok(())
}

/// A host that answers only what it is asked by hand would hide from a quiet client; an unasked claim must count too.
#[test]
fn sees_one_announcement_by_another_host() -> TestResult {
    let Some(lab) = lab(1)? else { return Ok(()) };
    let vip = lab.vips()[0];
    hold(&lab, 1, vip)?;
    lab.wait_stable(Duration::ZERO, TIMEOUT)?;
    let since = Stamp::now();
    pause(100);
    // The address on the loopback, and ARP switched off: n2 answers nobody, but claims once.
    lab.host(2).sysctl(&[("ipv4/conf/all/arp_ignore", "8")])?;
    lab.host(2).run(["ip", "addr", "add", &format!("{vip}/32"), "dev", "lo"])?;
    announce4(&lab, 2, vip)?;
    pause(100);
    let verdict = lab.observe().verdict(since);
    assert!(!verdict.is_clean(), "{verdict:?}");
    let of_n2: Vec<_> = verdict.holdings.iter().filter(|holding| holding.host == N2).collect();
    assert!(of_n2.iter().all(|holding| holding.announcements > 0), "{of_n2:?}");
    Ok(())
}

#[test]
fn sees_nothing_wrong_in_a_clean_hand_over_and_back() -> TestResult {
    let Some(lab) = lab(1)? else { return Ok(()) };
    let vip = lab.vips()[0];
    hold(&lab, 1, vip)?;
    lab.wait_stable(Duration::ZERO, TIMEOUT)?;
    let since = Stamp::now();
    for (from, to) in [(1, 2), (2, 3), (3, 1)] {
        pause(150);
        release(&lab, from, vip)?;
        hold(&lab, to, vip)?;
        announce4(&lab, to, vip)?;
    }
    pause(150);
    let verdict = lab.observe().verdict(since);
    assert!(verdict.is_clean(), "{:?}", verdict.overlaps);
    let turns: Vec<HostId> = verdict.succession(vip).iter().map(|turn| turn.host).collect();
    assert_eq!(turns, [N1, N2, HostId::Node(3), N1]);
    Ok(())
}

/// Without an announcement the client goes on sending to the old host although everybody else knows better: the
/// watcher's questions must not heal the client's neighbour cache.
#[test]
fn the_clients_neighbour_cache_is_left_alone() -> TestResult {
    let Some(lab) = lab(1)? else { return Ok(()) };
    let vip = lab.vips()[0];
    hold(&lab, 1, vip)?;
    lab.wait_stable(Duration::ZERO, TIMEOUT)?;
    release(&lab, 1, vip)?;
    hold(&lab, 2, vip)?;
    let moved = Stamp::now();
    pause(400);
    assert_eq!(lab.observe().holders(vip, moved + Duration::from_millis(20)), [N2].into());
    assert!(lab.observe().outage(vip, moved, Stamp::now()).open, "the client cannot know where the VIP is");
    announce4(&lab, 2, vip)?;
    pause(100);
    assert!(!lab.observe().outage(vip, moved, Stamp::now()).open, "the announcement must reach the client");
    Ok(())
}

#[test]
fn faults_of_the_network_do_what_they_say() -> TestResult {
    let Some(lab) = lab(1)? else { return Ok(()) };
    let reaches = |from: u8, to: HostId| {
        lab.host(from).run(["arping", "-f", "-c", "2", "-w", "1", "-I", "eth0", &to.ipv4().to_string()]).is_ok()
    };
    assert!(reaches(1, N2));
    lab.partition(&[1], &[2, 3])?;
    assert!(!reaches(1, N2) && !reaches(2, N1) && reaches(2, HostId::Node(3)) && reaches(1, HostId::Client));
    lab.heal()?;
    assert!(reaches(1, N2));
    lab.cut(1, 2)?;
    assert!(!reaches(1, N2) && reaches(1, HostId::Node(3)));
    lab.heal()?;
    lab.link_down(1)?;
    assert!(lab.host(1).run(["ip", "link", "show", "eth0"])?.contains("NO-CARRIER"));
    lab.link_up(1)?;
    pause(50);
    assert!(reaches(1, N2));
    Ok(())
}

#[test]
fn many_vips_are_swept() -> TestResult {
    let Some(lab) = lab(300)? else { return Ok(()) };
    let batch: String = lab
        .vips()
        .iter()
        .map(|vip| {
            format!(
                "addr add {vip}/{} dev eth0{}\n",
                if vip.is_ipv4() { 32 } else { 128 },
                if vip.is_ipv6() { " nodad" } else { "" }
            )
        })
        .collect();
    lab.host(2).run_with_input(["ip", "-batch", "-"], &batch)?;
    let holders = lab.wait_stable(Duration::ZERO, TIMEOUT)?;
    assert!(holders.len() == 300 && holders.iter().all(|&host| host == N2));
    // And two hosts with one of the many are found as well.
    let since = Stamp::now();
    hold(&lab, 3, lab.vips()[217])?;
    pause(700);
    let verdict = lab.observe().verdict(since);
    assert!(verdict.overlaps.iter().all(|overlap| overlap.vip == lab.vips()[217]) && !verdict.is_clean());
    Ok(())
}

#[test]
fn nothing_is_left_behind() -> TestResult {
    let Some(lab) = lab(1)? else { return Ok(()) };
    let (prefix, dir) = (lab.network().prefix().to_owned(), lab.dir().to_owned());
    drop(lab);
    let left: Vec<_> = std::fs::read_dir("/run/netns")?.flatten().map(|entry| entry.file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with(&format!("{prefix}-"))), "{left:?}");
    assert!(!dir.exists());
    Ok(())
}
