//! `vipd check` as an operator meets it: a program, a file, an exit code, and a text that says which line is wrong and why.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::Context;
use vip_tests::repository::root;
use vip_tests::{TestResult, programs};

/// Nothing is wrong with this one. Line 1 is `insecure`.
const GOOD: &str = "\
insecure = true
[cluster]
name = \"web\"
profile = \"default\"
[node]
id = 2
data_dir = \"/var/lib/vipd\"
[peer]
listen = \"192.0.2.2:7400\"
[timing]
heartbeat = \"100ms\"
lease = \"500ms\"
[[initial_cluster.node]]
id = 1
address = \"192.0.2.1:7400\"
[[initial_cluster.node]]
id = 2
address = \"192.0.2.2:7400\"
[[initial_cluster.node]]
id = 3
address = \"192.0.2.3:7400\"
";

/// One change to [`GOOD`] that makes it wrong.
struct Wrong {
    /// What is replaced; empty: the change is added at the end.
    replace: &'static str,
    by: &'static str,
    /// The line that the message must name; none where something is missing.
    line: Option<usize>,
    key: &'static str,
    /// What else must be said: where values conflict, both.
    says: &'static [&'static str],
}

const fn wrong(
    replace: &'static str,
    by: &'static str,
    line: Option<usize>,
    key: &'static str,
    says: &'static [&'static str],
) -> Wrong {
    Wrong { replace, by, line, key, says }
}

#[rustfmt::skip] // a table
const WRONG: &[Wrong] = &[
    // Values on their own.
    wrong("insecure = true\n", "", None, "insecure", &["insecure = true"]),
    wrong("insecure = true", "insecure = false", Some(1), "insecure", &["insecure = true"]),
    wrong("\"web\"", "\"\"", Some(3), "cluster.name", &[]),
    wrong("\"web\"", "\"two words\"", Some(3), "cluster.name", &["two words"]),
    wrong("id = 2\ndata", "id = 0\ndata", Some(6), "node.id", &["0"]),
    wrong("\"/var/lib/vipd\"", "\"state\"", Some(7), "node.data_dir", &["state", "absolute"]),
    wrong("listen = \"192.0.2.2:7400\"", "listen = \"192.0.2.2\"", Some(9), "peer.listen", &["192.0.2.2", "port"]),
    wrong("listen = \"192.0.2.2:7400\"", "listen = \"192.0.2.2:0\"", Some(9), "peer.listen", &["port 0"]),
    wrong("\"500ms\"", "\"500\"", Some(12), "timing.lease", &["\"500\"", "100ms"]),
    wrong("\"500ms\"", "\"-1s\"", Some(12), "timing.lease", &["-1s"]),
    wrong("\"500ms\"", "\"2m\"", Some(12), "timing.lease", &["120s"]),
    wrong("\"100ms\"", "\"1ms\"", Some(11), "timing.heartbeat", &["1ms", "5ms"]),
    wrong("\"500ms\"", "\"500ms\"\nclock_drift_ppm = 200000", Some(13), "timing.clock_drift_ppm", &["200000", "100000"]),
    wrong("", "[announce]\nburst = [\"5ms\"]", Some(23), "announce.burst", &["0s"]),
    wrong("", "[announce]\nrefresh = \"10ms\"", Some(23), "announce.refresh", &["10ms", "100ms"]),
    wrong("", "[address]\nlifetime = \"1s\"", Some(23), "address.lifetime", &["1s", "3s", "500ms"]),
    wrong("", "[process]\nrealtime_priority = 100", Some(23), "process.realtime_priority", &["100", "99"]),
    wrong("", "[log]\nlevel = \"loud=5=x\"", Some(23), "log.level", &[]),
    wrong("", "[fence]\npin_root = \"bpf\"", Some(23), "fence.pin_root", &["bpf"]),
    wrong("", "[api]\nsocket = \"vipd.sock\"", Some(23), "api.socket", &["vipd.sock"]),
    wrong("", "[api]\nlisten = \"localhost\"", Some(23), "api.listen", &["localhost"]),
    // Values that contradict each other: both are said.
    wrong("\"100ms\"", "\"400ms\"", Some(11), "timing.heartbeat", &["400ms", "500ms"]),
    wrong("\"500ms\"", "\"200ms\"", Some(11), "timing.heartbeat", &["100ms", "200ms"]),
    wrong("\"500ms\"", "\"500ms\"\nqueue_time = \"600ms\"", Some(13), "timing.queue_time", &["600ms", "500ms"]),
    wrong("id = 2\ndata", "id = 7\ndata", Some(6), "node.id", &["7", "1, 2, 3"]),
    wrong("listen = \"192.0.2.2:7400\"", "listen = \"192.0.2.9:7400\"", Some(18), "initial_cluster.node.address", &["192.0.2.2:7400", "192.0.2.9:7400"]),
    wrong("id = 3", "id = 1", Some(20), "initial_cluster.node.id", &["1"]),
    wrong("\"192.0.2.3:7400\"", "\"192.0.2.1:7400\"", Some(21), "initial_cluster.node.address", &["192.0.2.1:7400"]),
    wrong("\"192.0.2.3:7400\"", "\"192.0.2.3\"", Some(21), "initial_cluster.node.address", &["192.0.2.3"]),
    // VIPs.
    wrong("", "[[initial_vip]]\nname = \"a\"\naddress = \"192.0.2.100/24\"\ninterface = \"eth0\"", Some(24), "initial_vip.address", &["192.0.2.100/24", "prefix_len"]),
    wrong("", "[[initial_vip]]\nname = \"a\"\naddress = \"192.0.2.3\"\ninterface = \"eth0\"", Some(24), "initial_vip.address", &["192.0.2.3"]),
    wrong("", "[[initial_vip]]\nname = \"a\"\naddress = \"192.0.2.100\"\nprefix_len = 64\ninterface = \"eth0\"", Some(25), "initial_vip.prefix_len", &["64", "32"]),
    wrong("", "[[initial_vip]]\nname = \"a\"\naddress = \"127.0.0.1\"\ninterface = \"eth0\"", Some(24), "initial_vip.address", &["127.0.0.1"]),
    wrong("", "[[initial_vip]]\nname = \"a b\"\naddress = \"192.0.2.100\"\ninterface = \"eth0\"", Some(23), "initial_vip.name", &["a b"]),
    wrong("", "[[initial_vip]]\nname = \"a\"\naddress = \"192.0.2.100\"\ninterface = \"an-interface-too-long\"", Some(25), "initial_vip.interface", &["an-interface-too-long"]),
    wrong("", "[[initial_vip]]\nname = \"a\"\naddress = \"192.0.2.100\"\ninterface = \"eth0\"\n[[initial_vip]]\nname = \"a\"\naddress = \"192.0.2.101\"\ninterface = \"eth0\"", Some(27), "initial_vip.name", &["line 23"]),
    wrong("", "[[initial_vip]]\nname = \"a\"\naddress = \"192.0.2.100\"\ninterface = \"eth0\"\n[[initial_vip]]\nname = \"b\"\naddress = \"192.0.2.100\"\ninterface = \"eth0\"", Some(28), "initial_vip.address", &["192.0.2.100", "line 23"]),
    // What TOML itself, or the shape of the file, forbids.
    wrong("name = \"web\"", "nmae = \"web\"", Some(3), "nmae", &["unknown field", "name"]),
    wrong("[timing]", "[timeing]", Some(10), "timeing", &["unknown field", "timing"]),
    wrong("id = 2\ndata", "id = \"2\"\ndata", Some(6), "id", &["string"]),
    wrong("profile = \"default\"", "profile = \"slow\"", Some(4), "profile", &["slow", "fast"]),
    wrong("[peer]\nlisten = \"192.0.2.2:7400\"\n", "", None, "peer", &["missing field"]),
    wrong("[node]", "[node", Some(5), "[node", &[]),
];

fn check(path: &Path) -> anyhow::Result<Output> {
    Command::new(programs::vipd()?).arg("check").arg("--config").arg(path).output().context("start vipd")
}

fn check_text(text: &str) -> anyhow::Result<Output> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("vipd.toml");
    std::fs::write(&path, text)?;
    check(&path)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What is missing from the answer to a wrong configuration.
fn missing_from(case: &Wrong, output: &Output) -> Vec<String> {
    let text = stderr(output);
    let mut missing = Vec::new();
    if output.status.code() != Some(1) {
        missing.push(format!("exit code 1, not {}", output.status));
    }
    // Ours begin a line with it, the parser's own have "at line 3, column 1".
    let wanted = case.line.map(|line| [format!("line {line}: {}: ", case.key), format!("at line {line},")]);
    if wanted.is_some_and(|wanted| !wanted.iter().any(|wanted| text.contains(wanted.as_str()))) {
        missing.push(format!("line {:?}", case.line.unwrap_or_default()));
    }
    let words = case.says.iter().copied().chain([case.key, "vipd.toml"]);
    missing.extend(words.filter(|word| !text.contains(word)).map(|word| format!("{word:?}")));
    missing
}

#[test]
fn a_wrong_value_is_named_with_its_line_and_key() -> TestResult {
    let mut problems = Vec::new();
    for case in WRONG {
        let text = match case.replace {
            "" => format!("{GOOD}{}\n", case.by),
            replace => {
                assert_eq!(GOOD.matches(replace).count(), 1, "{replace:?} is not there once");
                GOOD.replace(replace, case.by)
            }
        };
        let output = check_text(&text)?;
        let missing = missing_from(case, &output);
        if !missing.is_empty() {
            let change = format!("{:?} instead of {:?}", case.by, case.replace);
            problems.push(format!("{change}: missing {}\n{}", missing.join(", "), stderr(&output)));
        }
    }
    assert!(problems.is_empty(), "{} of {}\n{}", problems.len(), WRONG.len(), problems.join("\n"));
    Ok(())
}

#[test]
fn everything_that_is_wrong_is_said_at_once() -> TestResult {
    let text = GOOD.replace("\"100ms\"", "\"400ms\"").replace("\"web\"", "\"\"").replace("\"/var", "\"var");
    let output = check_text(&text)?;
    let said = stderr(&output);
    for key in ["3 problem", "line 3: cluster.name", "line 7: node.data_dir", "line 11: timing.heartbeat"] {
        assert!(said.contains(key), "{key:?} is missing in\n{said}");
    }
    Ok(())
}

#[test]
fn a_right_one_passes_and_what_is_odd_is_said() -> TestResult {
    let output = check_text(GOOD)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.ends_with(": ok\n"), "{said}{}", stderr(&output));
    assert!(!said.contains("warning"), "{said}");
    let two = GOOD.rsplit_once("[[").context("a member")?.0;
    let said = String::from_utf8_lossy(&check_text(two)?.stdout).into_owned();
    assert!(said.contains("warning") && said.contains("2 voters"), "{said}");
    Ok(())
}

#[test]
fn a_file_that_is_not_there_is_named() -> TestResult {
    let output = check(Path::new("/nonexistent/vipd.toml"))?;
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output).matches("/nonexistent/vipd.toml").count(), 1, "{}", stderr(&output));
    assert_eq!(stderr(&output).matches("No such file").count(), 1, "said once: {}", stderr(&output));
    Ok(())
}

/// The file that is shipped: passes as it is, and names every key.
#[test]
fn the_shipped_file_passes() -> TestResult {
    let path = root().join("config/vipd.toml");
    let output = check(&path)?;
    assert!(output.status.success(), "{}", stderr(&output));
    let text = std::fs::read_to_string(&path)?;
    for key in [
        "insecure",
        "profile",
        "data_dir",
        "listen",
        "socket",
        "heartbeat",
        "lease",
        "clock_drift_ppm",
        "queue_time",
        "burst",
        "refresh",
        "lifetime",
        "backend",
        "pin_root",
        "realtime_priority",
        "lock_memory",
        "level",
        "format",
        "[interfaces]",
        "[[initial_cluster.node]]",
        "[[initial_vip]]",
        "prefix_len",
        "placement",
    ] {
        assert!(text.contains(key), "config/vipd.toml does not tell of {key}");
    }
    Ok(())
}
