//! What `/live` and `/ready` say of a node, asked from the client's host, while its peers and its process come and go.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use vip_lab::{HostId, Lab, Stamp};
use vip_tests::cluster::{Cluster, PATIENCE, cluster_of};
use vip_tests::{TestResult, programs, wait_until};

const LISTEN: &str = "[http]\nlisten = \"0.0.0.0:7402\"\n";

/// Status and body, or nothing where no answer comes in three seconds; the node promises one within a second.
fn ask(cluster: &Cluster, host: HostId, path: &str) -> Result<Option<(u16, Value)>> {
    let request = format!("GET {path} HTTP/1.1\\r\\nHost: {host}\\r\\n\\r\\n");
    let script = format!("exec 3<>/dev/tcp/{}/7402 && printf '{request}' >&3 && cat <&3", host.ipv4());
    let output = cluster.lab.client().command().args(["timeout", "3", "bash", "-c", &script]).output()?;
    let answer = String::from_utf8_lossy(&output.stdout);
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        return Ok(None);
    };
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).with_context(|| head.to_owned())?;
    Ok(Some((status, serde_json::from_str(body).with_context(|| body.to_owned())?)))
}

/// Waits until a node says that it is ready, and returns the leader that it names.
fn leader_of(cluster: &Cluster, host: HostId) -> Result<u64> {
    let mut leader = None;
    wait_until(&format!("{host} is ready"), PATIENCE, || {
        let answer = ask(cluster, host, "/ready")?;
        leader = answer.filter(|(status, _)| *status == 200).and_then(|(_, body)| body["leader"].as_u64());
        Ok(leader.is_some())
    })?;
    leader.context("a leader")
}

/// Waits until a node says that it is not ready, and why; it says all the while that it lives.
fn waits_for_others(cluster: &Cluster, host: HostId) -> TestResult {
    let mut reason = String::new();
    wait_until(&format!("{host} is not ready"), PATIENCE, || {
        match ask(cluster, host, "/live")? {
            Some((200, body)) if body["live"] == true => {}
            other => bail!("{host} is alone, not dead, but says {other:?}"),
        }
        Ok(match ask(cluster, host, "/ready")? {
            Some((503, body)) if body["ready"] == false => {
                reason = body["reason"].as_str().unwrap_or_default().to_owned();
                true
            }
            _ => false,
        })
    })?;
    anyhow::ensure!(reason.contains("leader"), "{host} says of a missing leader: {reason:?}");
    Ok(())
}

const fn number(host: HostId) -> u8 {
    match host {
        HostId::Node(n) => n,
        _ => panic!("no node"),
    }
}

#[test]
fn a_node_says_whether_it_lives_and_takes_part() -> TestResult {
    let builder = Lab::builder().vipd(Some(programs::vipd()?)).extra_toml(LISTEN);
    let Some(cluster) = cluster_of(builder)? else { return Ok(()) };
    let leader = u64::from(number(cluster.owner));
    for node in cluster.lab.nodes() {
        assert_eq!(leader_of(&cluster, node.host())?, leader);
        let (status, body) = ask(&cluster, node.host(), "/live")?.context("an answer")?;
        assert_eq!((status, body.to_string().as_str()), (200, "{\"live\":true}"));
        assert_eq!(ask(&cluster, node.host(), "/")?.context("an answer")?.0, 404);
    }

    // A follower that hears nobody, then a leader: it knows itself, which is no quorum.
    let follower = cluster.others(cluster.owner)[0];
    for alone in [follower, cluster.owner] {
        let others = cluster.others(alone);
        cluster.lab.partition(&[number(alone)], &others.iter().copied().map(number).collect::<Vec<_>>())?;
        waits_for_others(&cluster, alone)?;
        let leaders = [leader_of(&cluster, others[0])?, leader_of(&cluster, others[1])?];
        assert!(leaders[0] == leaders[1] && leaders[0] != u64::from(number(alone)), "{leaders:?} without {alone}");
        cluster.lab.heal()?;
        leader_of(&cluster, alone)?;
    }

    // The kernel takes the connection; the process, which does not run, says nothing.
    cluster.node(follower).freeze()?;
    assert_eq!(ask(&cluster, follower, "/live")?, None);
    cluster.node(follower).thaw()?;
    wait_until("the thawed node lives", Duration::from_secs(5), || {
        Ok(ask(&cluster, follower, "/live")?.is_some_and(|(status, _)| status == 200))
    })?;
    leader_of(&cluster, follower)?;
    cluster.wait_for_one(PATIENCE)?;
    cluster.never_two(Stamp::default())
}
