//! What a file means, what is wrong with it, and that the shipped files and the reference say the same.

use toml::Table;

use super::*;

/// Nothing is wrong with it. What is added to it begins at line 21.
const GOOD: &str = r#"insecure = true
[cluster]
name = "web"
profile = "default"
[node]
id = 2
data_dir = "/var/lib/vipd"
[peer]
listen = "192.0.2.2:7400"
[[initial_cluster.node]]
id = 1
address = "192.0.2.1:7400"
[[initial_cluster.node]]
id = 2
name = "second"
address = "192.0.2.2:7400"
[[initial_cluster.node]]
id = 3
name = "third"
address = "n3.example:7400"
"#;

/// All that a file needs.
const PLAIN: &str = r#"
insecure = true
cluster.name = "web"
node.id = 1
peer.listen = "192.0.2.11:7400"
"#;

const SHIPPED: &str = include_str!("../../../../config/vipd.toml");
const REFERENCE: &str = include_str!("../../../../docs/configuration.md");
const EXAMPLES: [&str; 3] = [
    include_str!("../../../../config/examples/n1.toml"),
    include_str!("../../../../config/examples/n2.toml"),
    include_str!("../../../../config/examples/n3.toml"),
];

fn config(text: &str) -> Config {
    loaded(text).config
}

fn loaded(text: &str) -> Loaded {
    parse(text).unwrap_or_else(|error| panic!("{error:?}\n{text}"))
}

fn problems(text: &str) -> Vec<Problem> {
    match parse(text) {
        Err(ParseError::Invalid(problems)) => problems,
        other => panic!("no problem found, but {other:?}\n{text}"),
    }
}

fn replaced(from: &str, to: &str) -> String {
    assert_eq!(GOOD.matches(from).count(), 1, "{from:?} is not there once");
    GOOD.replace(from, to)
}

fn with_vip(lines: &str) -> String {
    format!("{GOOD}[[initial_vip]]\n{lines}")
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

// ---- defaults ----

#[test]
fn what_is_not_said_has_its_default() {
    let Loaded { config, warnings } = loaded(PLAIN);
    // Without `..`: a new key must say its default here.
    let Config {
        cluster,
        node,
        name,
        data_dir,
        peer_listen,
        api_listen,
        api_socket,
        http_listen,
        heartbeat,
        lease,
        announce_burst,
        announce_refresh,
        address_lifetime,
        fence,
        pin_root,
        realtime_priority,
        lock_memory,
        log_level,
        log_format,
        interface_map,
        initial_members,
        initial_vips,
    } = config;
    assert_eq!((cluster.as_str(), node), ("web", NodeId(1)));
    assert_eq!(name, host_name());
    assert_eq!(data_dir, Path::new("/var/lib/vipd"));
    assert_eq!(peer_listen.to_string(), "192.0.2.11:7400");
    assert_eq!((api_listen, http_listen), (None, None));
    assert_eq!(api_socket, Path::new("/run/vipd/vipd.sock"));
    assert_eq!(heartbeat, ms(100));
    assert_eq!(lease, LeaseTiming { lease: ms(500), clock_drift_ppm: 1000, queue_time: ms(5) });
    assert_eq!(announce_burst, [0, 5, 100, 1000].map(ms));
    assert_eq!(announce_refresh, ms(30_000));
    assert_eq!(address_lifetime, ms(10_000));
    assert_eq!((fence, pin_root.as_path()), (FenceChoice::Auto, Path::new("/sys/fs/bpf")));
    assert_eq!((realtime_priority, lock_memory), (10, false));
    assert_eq!((log_level.as_str(), log_format), ("info", LogFormat::Text));
    assert!(interface_map.is_empty() && initial_members.is_empty() && initial_vips.is_empty());
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn a_profile_sets_what_is_not_said() {
    let fast = config(&replaced("\"default\"", "\"fast\""));
    assert_eq!((fast.heartbeat, fast.lease.lease, fast.realtime_priority), (ms(20), ms(100), 10));
    let said = replaced("\"default\"", "\"fast\"") + "[timing]\nlease = \"90ms\"\n[process]\nrealtime_priority = 0\n";
    let said = config(&said);
    assert_eq!((said.heartbeat, said.lease.lease, said.realtime_priority), (ms(20), ms(90), 0));
}

#[test]
fn members_and_vips_are_taken_over() {
    let v6 =
        "name = \"b\"\naddress = \"2001:db8::10\"\nprefix_len = 64\ninterface = \"front\"\nplacement = \"leader\"\n";
    let text = with_vip("name = \"a\"\naddress = \"192.0.2.100\"\ninterface = \"eth0\"\n")
        + &format!("[[initial_vip]]\n{v6}[interfaces]\nfront = \"enp3s0\"\n");
    let config = config(&text);
    let names: Vec<_> = config.initial_members.iter().map(|(id, node)| format!("{id} {node}")).collect();
    assert_eq!(names, ["1 node-1 at 192.0.2.1:7400", "2 second at 192.0.2.2:7400", "3 third at n3.example:7400"]);
    let vips: Vec<_> = config.initial_vips.iter().map(|vip| (vip.address.to_string(), vip.prefix_len)).collect();
    assert_eq!(vips, [("192.0.2.100".to_owned(), 32), ("2001:db8::10".to_owned(), 64)]);
    assert_eq!(config.interface_map["front"], "enp3s0");
}

// ---- what is wrong ----

/// What is replaced (nothing: added at the end), by what, and the line, key and words of the problem that there then is.
type Wrong = (&'static str, &'static str, Option<usize>, &'static str, &'static [&'static str]);

#[rustfmt::skip] // a table
const WRONG: &[Wrong] = &[
    ("insecure = true\n", "", None, "insecure", &["insecure = true", "neither encrypted nor authenticated"]),
    ("insecure = true", "insecure = false", Some(1), "insecure", &["insecure = true"]),
    ("\"web\"", "\"-web\"", Some(3), "cluster.name", &["-web", "begin with a letter"]),
    ("id = 2\ndata", "id = 0\ndata", Some(6), "node.id", &["ids begin with 1"]),
    ("\"/var/lib/vipd\"", "\"lib\"", Some(7), "node.data_dir", &["lib", "absolute"]),
    ("listen = \"192.0.2.2:7400\"", "listen = \"n2:7400\"", Some(9), "peer.listen", &["n2:7400", "10.0.0.1:7400"]),
    ("listen = \"192.0.2.2:7400\"", "listen = \"0.0.0.0:0\"", Some(9), "peer.listen", &["port 0"]),
    ("", "[api]\nlisten = \"192.0.2.2\"", Some(22), "api.listen", &["192.0.2.2"]),
    ("", "[api]\nlisten = \"192.0.2.2:7400\"", Some(22), "api.listen", &["192.0.2.2:7400", "peer.listen"]),
    ("", "[api]\nsocket = \"vipd.sock\"", Some(22), "api.socket", &["vipd.sock", "absolute"]),
    ("", "[http]\nlisten = \"7402\"", Some(22), "http.listen", &["7402"]),
    ("", "[http]\nlisten = \"192.0.2.2:7400\"", Some(22), "http.listen", &["192.0.2.2:7400", "peer.listen"]),
    ("", "[http]\nlisten = \"[::1]:7401\"\n[api]\nlisten = \"[::1]:7401\"", Some(22), "http.listen", &["[::1]:7401", "api.listen"]),
    ("", "[fence]\npin_root = \"bpf\"", Some(22), "fence.pin_root", &["bpf", "absolute"]),
    ("", "[process]\nrealtime_priority = 100", Some(22), "process.realtime_priority", &["100", "99"]),
    ("", "[log]\nlevel = \"info=x=y\"", Some(22), "log.level", &[]),
    ("", "[interfaces]\nfront = \"a/b\"", None, "interfaces.a/b", &["1 to 15 characters"]),
    ("", "[interfaces]\nlo = \"eth0\"", None, "interfaces.lo", &["not lo"]),
    // Timing; where values conflict, both are named.
    ("", "[timing]\nlease = \"500\"", Some(22), "timing.lease", &["\"500\"", "100ms, 5s or 1m"]),
    ("", "[timing]\nlease = \"-5s\"", Some(22), "timing.lease", &["-5s", "negative"]),
    ("", "[timing]\nlease = \"500500us\"", Some(22), "timing.lease", &["500.5ms", "whole number of milliseconds"]),
    ("", "[timing]\nlease = \"61s\"\n[address]\nlifetime = \"3m\"", Some(22), "timing.lease", &["61s", "more than a minute"]),
    ("", "[timing]\nheartbeat = \"4ms\"", Some(22), "timing.heartbeat", &["4ms", "5ms"]),
    ("", "[timing]\nheartbeat = \"9000000000000000000s\"", Some(22), "timing.heartbeat", &["9000000000000000000s", "more than a minute"]),
    ("", "[timing]\nheartbeat = \"165ms\"", Some(22), "timing.heartbeat", &["165ms", "500ms", "3 heartbeats", "494ms", "6ms"]),
    ("", "[timing]\nlease = \"300ms\"", Some(22), "timing.heartbeat", &["100ms", "300ms"]),
    ("", "[timing]\nqueue_time = \"499ms\"", Some(22), "timing.queue_time", &["500ms", "499ms"]),
    ("", "[timing]\nlease = \"5ms\"", Some(22), "timing.queue_time", &["5ms", "5.01ms"]),
    ("", "[timing]\nclock_drift_ppm = 100001", Some(22), "timing.clock_drift_ppm", &["100001", "100000"]),
    ("", "[timing]\nlease = \"6s\"", None, "address.lifetime", &["10s", "12s", "6s"]),
    ("", "[address]\nlifetime = \"2s\"", Some(22), "address.lifetime", &["2s", "3s", "500ms"]),
    ("", "[announce]\nburst = [\"0s\", \"2s\", \"1s\"]", Some(22), "announce.burst", &["grow"]),
    ("", "[announce]\nburst = []", Some(22), "announce.burst", &["begin with 0s"]),
    ("", "[announce]\nburst = [\"0s\", \"soon\"]", Some(22), "announce.burst", &["soon"]),
    ("", "[announce]\nrefresh = \"99ms\"", Some(22), "announce.refresh", &["99ms", "100ms"]),
    // Members.
    ("id = 2\ndata", "id = 7\ndata", Some(6), "node.id", &["7", "1, 2, 3"]),
    ("id = 3", "id = 0", Some(18), "initial_cluster.node.id", &["ids begin with 1"]),
    ("id = 3", "id = 1", Some(18), "initial_cluster.node.id", &["two nodes have the id 1"]),
    ("n3.example:7400", "192.0.2.1:7400", Some(20), "initial_cluster.node.address", &["192.0.2.1:7400", "two nodes"]),
    ("n3.example:7400", "n3.example", Some(20), "initial_cluster.node.address", &["n3.example", "10.0.0.1:7400"]),
    ("n3.example:7400", "n3 example:7400", Some(20), "initial_cluster.node.address", &["n3 example"]),
    ("listen = \"192.0.2.2:7400\"", "listen = \"192.0.2.2:7500\"", Some(16), "initial_cluster.node.address", &["192.0.2.2:7400", "192.0.2.2:7500"]),
];

/// VIPs: the lines below `[[initial_vip]]`, which is line 21.
#[rustfmt::skip] // a table
const WRONG_VIPS: &[(&str, usize, &str, &[&str])] = &[
    ("name = \"a b\"\naddress = \"192.0.2.100\"\ninterface = \"eth0\"", 22, "name", &["a b"]),
    ("name = \"a\"\naddress = \"192.0.2.100/24\"\ninterface = \"eth0\"", 23, "address", &["192.0.2.100/24", "prefix_len"]),
    ("name = \"a\"\naddress = \"127.0.0.1\"\ninterface = \"eth0\"", 23, "address", &["127.0.0.1", "loopback"]),
    ("name = \"a\"\naddress = \"192.0.2.1\"\ninterface = \"eth0\"", 23, "address", &["192.0.2.1", "a node's own address"]),
    ("name = \"a\"\naddress = \"192.0.2.100\"\ninterface = \"eth0\"\nprefix_len = 33", 25, "prefix_len", &["33", "at most 32"]),
    ("name = \"a\"\naddress = \"192.0.2.0\"\ninterface = \"eth0\"\nprefix_len = 24", 25, "prefix_len", &["192.0.2.0", "network"]),
    ("name = \"a\"\naddress = \"192.0.2.100\"\ninterface = \"an-interface-name\"", 24, "interface", &["an-interface-name"]),
    ("name = \"a\"\naddress = \"192.0.2.100\"\ninterface = \"e\"\n[[initial_vip]]\nname = \"a\"\naddress = \"192.0.2.101\"\ninterface = \"e\"", 26, "name", &["a is the name", "line 22"]),
    ("name = \"a\"\naddress = \"192.0.2.100\"\ninterface = \"e\"\n[[initial_vip]]\nname = \"b\"\naddress = \"192.0.2.100\"\ninterface = \"e\"", 27, "address", &["192.0.2.100", "line 22"]),
];

/// One problem, or several with the same key.
fn assert_problem(text: &str, line: Option<usize>, key: &str, says: &[&str]) {
    let found = problems(text);
    for problem in &found {
        assert_eq!((problem.line, problem.key.as_str()), (line, key), "{problem}, in\n{text}");
    }
    let shown = found[0].to_string();
    assert!(shown.starts_with(&line.map_or_else(|| format!("{key}: "), |line| format!("line {line}: {key}: "))));
    for word in says {
        assert!(found[0].text.contains(word), "{word:?} is missing in: {shown}");
    }
}

#[test]
fn a_wrong_value_is_named_with_its_line_its_key_and_what_it_conflicts_with() {
    for (from, to, line, key, says) in WRONG {
        let text = if from.is_empty() { format!("{GOOD}{to}\n") } else { replaced(from, to) };
        assert_problem(&text, *line, key, says);
    }
    for (lines, line, key, says) in WRONG_VIPS {
        assert_problem(&with_vip(lines), Some(*line), &format!("initial_vip.{key}"), says);
    }
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let text = replaced("\"web\"", "\"\"").replace("/var/lib", "lib").replace("n3.example:7400", "n3");
    let found: Vec<_> = problems(&text).into_iter().map(|problem| (problem.line, problem.key)).collect();
    let expected = [(3, "cluster.name"), (7, "node.data_dir"), (20, "initial_cluster.node.address")];
    for (line, key) in expected {
        assert!(found.contains(&(Some(line), key.to_owned())), "{key} is missing in {found:?}");
    }
    assert_eq!(found.len(), expected.len(), "{found:?}");
}

/// What the shape of the file forbids is told by the parser, with the line.
#[test]
fn a_key_or_type_that_does_not_belong_there_is_named() {
    for (from, to, says) in [
        ("name = \"web\"", "nmae = \"web\"", ["line 3", "unknown field `nmae`"]),
        ("[peer]", "[peers]", ["line 8", "unknown field `peers`"]),
        ("id = 2\ndata", "id = \"2\"\ndata", ["line 6", "string \"2\""]),
        ("profile = \"default\"", "profile = \"slow\"", ["line 4", "unknown variant `slow`"]),
        ("name = \"web\"\n", "", ["line 2", "missing field `name`"]),
        ("[node]", "[node", ["line 5", "unclosed table"]),
    ] {
        let text = replaced(from, to);
        let Err(ParseError::Syntax(error)) = parse(&text) else { panic!("{to:?} is taken") };
        for word in says {
            assert!(error.to_string().contains(word), "{word:?} is missing in: {error}");
        }
    }
}

#[test]
fn the_file_is_named_in_every_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vipd.toml");
    let shown = path.display().to_string();
    assert!(matches!(load(&path), Err(ConfigError::Read { .. })));
    for text in ["", "insecure = ", &replaced("\"web\"", "\"\""), GOOD] {
        let says = load(&path).map(drop).map_err(|error| error.to_string());
        assert!(says.as_ref().is_err_and(|says| says.contains(&shown)), "{says:?}");
        std::fs::write(&path, text).unwrap();
    }
    assert_eq!(load(&path).unwrap().config.cluster.as_str(), "web");
}

#[test]
fn what_is_odd_and_not_wrong_is_said() {
    let warnings = |text: &str| loaded(text).warnings.join("\n");
    assert_eq!(warnings(GOOD), "");
    let two = GOOD.rsplit_once("[[").unwrap().0;
    assert!(warnings(two).contains("2 voters, an even number"), "{}", warnings(two));
    let one = format!("{PLAIN}[[initial_cluster.node]]\nid = 1\naddress = \"192.0.2.11:7400\"\n");
    assert!(warnings(&one).contains("one voter"), "{}", warnings(&one));
}

#[test]
fn what_is_just_right_passes() {
    for lines in [
        "[timing]\nheartbeat = \"5ms\"\nlease = \"22ms\"\n",
        "[timing]\nheartbeat = \"164ms\"\n",
        "[timing]\nclock_drift_ppm = 0\nqueue_time = \"0s\"\nheartbeat = \"100ms\"\nlease = \"300ms\"\n",
        "[timing]\nclock_drift_ppm = 100000\n",
        "[timing]\nlease = \"1m\"\n[address]\nlifetime = \"2m\"\n",
        "[address]\nlifetime = \"3s\"\n",
        "[announce]\nburst = [\"0s\"]\nrefresh = \"100ms\"\n",
        "[process]\nrealtime_priority = 99\nlock_memory = true\n",
        "[log]\nlevel = \"warn,vip_raft=debug,openraft=error\"\nformat = \"json\"\n",
        "[api]\nlisten = \"[2001:db8::1]:7401\"\n",
        "[http]\nlisten = \"127.0.0.1:7402\"\n",
    ] {
        config(&format!("{GOOD}{lines}"));
    }
    config(&replaced("listen = \"192.0.2.2:7400\"", "listen = \"0.0.0.0:7400\""));
}

// ---- the shipped files and the reference ----

/// The file with every commented-out setting in force: these begin with # and no space.
fn uncommented(text: &'static str) -> String {
    let setting = |line: &'static str| line.strip_prefix('#').filter(|rest| !rest.is_empty() && !rest.starts_with(' '));
    text.lines().map(|line| setting(line).unwrap_or(line).to_owned() + "\n").collect()
}

#[test]
fn the_shipped_file_equals_the_defaults() {
    // As it is, it says what it must and no more.
    let shipped = config(SHIPPED);
    let plain = config(PLAIN);
    assert_eq!(format!("{shipped:#?}"), format!("{plain:#?}"));

    // With everything that it leaves out said, it still means the same, but for the examples.
    let mut full = config(&uncommented(SHIPPED));
    assert_eq!(full.name, "n1");
    assert_eq!(full.api_listen.map(|at| at.to_string()).as_deref(), Some("192.0.2.11:7401"));
    assert_eq!(full.initial_members.len(), 3);
    assert_eq!(full.initial_vips.len(), 1);
    assert_eq!(full.initial_vips[0].prefix_len, 32, "the default of an IPv4 address");
    assert!(full.interface_map.contains_key(full.initial_vips[0].interface.as_str()));
    full.name = plain.name.clone();
    assert_eq!(full.http_listen.map(|at| at.to_string()).as_deref(), Some("127.0.0.1:7402"));
    full.api_listen = None;
    full.http_listen = None;
    full.interface_map.clear();
    full.initial_members.clear();
    full.initial_vips.clear();
    assert_eq!(format!("{full:#?}"), format!("{plain:#?}"));
}

/// The keys that may stand in a table, by the words of the parser, which knows them all.
fn keys_of(table: &str) -> Vec<String> {
    let head = match table {
        "" => String::new(),
        "initial_cluster.node" | "initial_vip" => format!("[[{table}]]\n"),
        _ => format!("[{table}]\n"),
    };
    let error = toml::from_str::<Raw>(&format!("{head}no-such-key = 1\n")).unwrap_err();
    let (_, expected) = error.message().split_once("expected").unwrap_or_else(|| panic!("{error}"));
    expected.split('`').skip(1).step_by(2).map(ToOwned::to_owned).collect()
}

/// Whether the file has this key; of an array of tables the first counts.
fn has_key(file: &Table, name: &str) -> bool {
    let mut table = Some(file);
    let mut found = false;
    for key in name.split('.') {
        let value = table.and_then(|table| table.get(key));
        found = value.is_some();
        let first = value.map(|value| value.as_array().and_then(|all| all.first()).unwrap_or(value));
        table = first.and_then(toml::Value::as_table);
    }
    found
}

#[test]
fn the_shipped_file_and_the_reference_name_every_key() {
    let mut names = Vec::new();
    let mut tables = vec![String::new()];
    while let Some(table) = tables.pop() {
        for key in keys_of(&table) {
            let name = if table.is_empty() { key } else { format!("{table}.{key}") };
            match name.as_str() {
                "insecure" => names.push(name),
                // Its keys are the operator's own.
                "interfaces" => names.push(name),
                "initial_cluster.node" => tables.push(name),
                _ if table.is_empty() => tables.push(name),
                _ => names.push(name),
            }
        }
    }
    assert!(names.len() >= 30, "{names:?}");
    let file: Table = uncommented(SHIPPED).parse().unwrap();
    for name in &names {
        assert!(has_key(&file, name), "config/vipd.toml does not show {name}");
        assert!(REFERENCE.contains(&format!("`{name}`")), "docs/configuration.md does not explain {name}");
    }
}

#[test]
fn the_examples_are_three_nodes_of_one_cluster() {
    for (number, text) in (1..).zip(EXAMPLES) {
        assert!(text.lines().count() <= 25, "n{number}.toml is too long to be an example");
        let Loaded { config, warnings } = loaded(text);
        assert_eq!((config.node, warnings.len()), (NodeId(number), 0));
        assert_eq!(config.initial_members[&config.node].address, config.peer_listen.to_string());
        let first = self::config(EXAMPLES[0]);
        assert_eq!(config.initial_members, first.initial_members);
        assert_eq!(config.initial_vips, first.initial_vips);
        assert_eq!(config.cluster, first.cluster);
    }
}
