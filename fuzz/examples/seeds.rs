//! Writes the seeds of the corpora: `fuzz/run --seeds`. Those of `config` are
//! files of the repository and what is made of them here; the others are made by the code that they go through.

use std::fs;
use std::path::Path;

// For the symbols that instrumented code refers to.
use libfuzzer_sys as _;
use prost::Message;
use vip_api::v1;
use vip_raft::fuzzing::{peer_seeds, record_seeds};

type Seeds = Vec<(&'static str, Vec<u8>)>;

fn main() {
    write("api", api());
    write("cluster", cluster());
    write("config", config());
    write("frame", frame());
    write("peer", peer_seeds());
    write("record", record_seeds());
    write("store_file", store_file());
}

fn write(target: &str, seeds: Seeds) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&dir).expect("the folder of a corpus");
    println!("{target}: {} seeds", seeds.len());
    for (name, bytes) in seeds {
        assert!(name.len() != 40, "{name}: as long as the name of what libFuzzer finds");
        assert!(bytes.len() <= 4096, "{target}/{name} has {} bytes", bytes.len());
        fs::write(dir.join(name), bytes).expect("a seed");
    }
}

fn with(kind: u8, message: &impl Message) -> Vec<u8> {
    [vec![kind], message.encode_to_vec()].concat()
}

fn api() -> Seeds {
    let spec = |name: &str, address: &str, prefix_len| v1::VipSpec {
        name: name.to_owned(),
        address: address.to_owned(),
        prefix_len,
        interface: "eth0".to_owned(),
        placement: 1,
    };
    let node = || Some(v1::NodeRef { id: 1, name: "n1".to_owned() });
    let header = || {
        Some(v1::ResponseHeader {
            cluster: "web".to_owned(),
            node_id: 1,
            term: 3,
            leader_id: Some(1),
            revision: 9,
            consistency: 1,
        })
    };
    let time = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
    let vip = v1::Vip {
        spec: Some(spec("web-1", "192.0.2.10", 24)),
        assignment: Some(v1::Assignment { owner: node(), epoch: 9, term: 3 }),
        revision: 9,
        declared_revision: 2,
        lease_remaining: time(0, 250_000_000),
        holder_state: 3,
    };
    let removed = v1::watch_event::Removed { name: "web-2".to_owned(), revision: 8 };
    let event = |event| v1::WatchEvent { event: Some(event) };
    use v1::watch_event::Event;
    let events = vec![
        event(Event::SnapshotStart(v1::watch_event::SnapshotStart { reset: true })),
        event(Event::Put(vip.clone())),
        event(Event::Delete(removed)),
        event(Event::Synced(v1::watch_event::Synced {})),
        event(Event::Progress(v1::watch_event::Progress {})),
    ];
    let status = v1::StatusResponse {
        header: header(),
        leader: node(),
        commit_index: 9,
        applied_index: 9,
        nodes: vec![v1::NodeStatus {
            node: node(),
            peer_address: "10.0.0.1:7400".to_owned(),
            role: 1,
            reachable: Some(true),
            last_acknowledged_age: time(0, 1_500_000),
            instance: "store-1".to_owned(),
            vips_owned: 1,
        }],
        timing: Some(v1::Timing {
            heartbeat: time(0, 100_000_000),
            lease: time(0, 500_000_000),
            margin: time(0, 6_000_000),
            clock_drift_ppm: 1000,
        }),
        local: Some(v1::LocalStatus {
            node: node(),
            version: "0.1.0".to_owned(),
            uptime: time(60, 0),
            lease_remaining: time(0, 1),
            fence: Some(v1::FenceStatus { kind: "bpf".to_owned(), state: "attached".to_owned(), healthy: true }),
            warnings: vec!["one voter".to_owned()],
            holders: vec![v1::HolderCount { state: 3, vips: 1 }],
        }),
        vips_declared: 1,
        vips_assigned: 1,
    };
    let watch = |names: &[&str], progress_interval| v1::WatchRequest {
        from_revision: 7,
        names: names.iter().map(ToString::to_string).collect(),
        consistency: 3,
        progress_interval,
    };
    vec![
        ("declare", with(b'd', &v1::DeclareRequest { spec: Some(spec("web-1", "192.0.2.10", 24)) })),
        ("declare-v6", with(b'd', &v1::DeclareRequest { spec: Some(spec("web-6", "2001:db8::10", 0)) })),
        ("declare-network", with(b'd', &v1::DeclareRequest { spec: Some(spec("n", "192.0.2.0", 24)) })),
        ("declare-nothing", with(b'd', &v1::DeclareRequest { spec: None })),
        ("delete", with(b'x', &v1::DeleteRequest { name: "web-1".to_owned() })),
        ("get", with(b'g', &v1::GetRequest { name: "web-1".to_owned(), consistency: 2 })),
        ("list", with(b'l', &v1::ListRequest { consistency: 3 })),
        ("status", with(b's', &v1::StatusRequest { consistency: 1 })),
        ("watch", with(b'w', &watch(&["web-1", "web-2"], time(2, 500_000_000)))),
        ("watch-negative", with(b'w', &watch(&[], time(-1, -1)))),
        ("declared", with(b'D', &v1::DeclareResponse { header: header(), created: true })),
        ("deleted", with(b'X', &v1::DeleteResponse { header: header(), deleted: true })),
        ("got", with(b'G', &v1::GetResponse { header: header(), vip: Some(vip.clone()) })),
        ("listed", with(b'L', &v1::ListResponse { header: header(), vips: vec![vip] })),
        ("status-answer", with(b'S', &status)),
        ("watched", with(b'W', &v1::WatchResponse { header: header(), events, resume_revision: 9 })),
    ]
}

fn cluster() -> Seeds {
    let lines = |lines: &[&str]| lines.join("\n").into_bytes();
    let spec = r#"{"name":"a","address":"10.0.0.1","prefix_len":32,"interface":"eth0","placement":"leader"}"#;
    let declare = format!(r#"{{"declare_vip":{spec}}}"#);
    let form = format!(r#"{{"form":[{spec}]}}"#);
    let assign = |base: &str| {
        format!(
            r#"{{"assign":{{"by":{{"term":1,"node":1}},"owner":1,"kind":"leader","claims":[{{"vip":"a","base":{base}}}]}}}}"#
        )
    };
    let register = r#"{"register_node":{"node":2,"instance":"store-2"}}"#;
    vec![
        ("json", lines(&[&form, &assign("null"), &assign("2"), r#"{"delete_vip":"a"}"#, &declare, register])),
        ("json-repeated", lines(&[&declare, &declare, &form, register, register])),
        // Declare, claim from nothing, assign; claim from the current epoch, assign to another.
        ("takeover", vec![0, 5, 0, 0, 5, 0, 0, 0, 6, 5, 2, 0, 5, 0, 2, 0, 6, 10, 2, 0]),
        // An assignment of another leadership, one from a stale epoch, two claims of one VIP.
        ("stale", vec![0, 5, 1, 1, 5, 1, 0, 0, 6, 5, 0, 9, 5, 1, 0, 0, 5, 1, 0, 0, 6, 5, 2, 0, 5, 1, 1, 1, 6, 5, 2, 0]),
        // The same address twice; a form that clashes, one that does not, and one too many.
        ("form", vec![3, 0, 1, 1, 3, 0, 2, 1, 4, 5, 0, 0, 3, 0, 1, 1, 3, 0, 2, 10, 4, 5, 0, 0, 3, 0, 3, 3, 4, 5, 0, 0]),
        ("delete", vec![0, 5, 4, 4, 1, 5, 4, 0, 1, 5, 4, 0, 0, 5, 3, 4, 2, 5, 1, 1, 2, 5, 1, 2, 7, 200, 0, 0]),
    ]
}

fn config() -> Seeds {
    let head = "insecure = true\ncluster.name = \"web\"\nnode.id = 1\npeer.listen = \"192.0.2.11:7400\"\n";
    let vip = |name: &str, address: &str| {
        format!("[[initial_vip]]\nname = \"{name}\"\naddress = \"{address}\"\nprefix_len = 24\ninterface = \"eth0\"\n")
    };
    let with = |rest: &str| format!("{head}{rest}").into_bytes();
    // With every key that stands in a comment, without the explanations.
    let shipped: String = include_str!("../../config/vipd.toml")
        .split_inclusive('\n')
        .filter(|line| !line.starts_with("# "))
        .map(|line| line.strip_prefix('#').unwrap_or(line))
        .collect();
    vec![
        ("shipped", shipped.into_bytes()),
        ("n1", include_bytes!("../../config/examples/n1.toml").to_vec()),
        ("n2", include_bytes!("../../config/examples/n2.toml").to_vec()),
        ("plain", with("")),
        (
            "timing",
            with("[timing]\nheartbeat = \"50ms\"\nlease = \"1s 500ms\"\nclock_drift_ppm = 500\nqueue_time = \"5ms\"\n"),
        ),
        ("timing-least", with("[timing]\nheartbeat = \"5ms\"\nlease = \"21ms\"\n[address]\nlifetime = \"3s\"\n")),
        ("timing-conflict", with("[timing]\nheartbeat = \"165ms\"\nlease = \"61s\"\nqueue_time = \"59s\"\n")),
        (
            "announce",
            with("[announce]\nburst = [\"0s\", \"5ms\", \"1m\"]\nrefresh = \"1h\"\n[address]\nlifetime = \"10s\"\n"),
        ),
        (
            "paths",
            with(
                "[api]\nlisten = \"[::1]:7401\"\nsocket = \"/run/vipd/vipd.sock\"\n[fence]\npin_root = \"/sys/fs/bpf\"\n",
            ),
        ),
        (
            "process",
            with(
                "[process]\nrealtime_priority = 99\nlock_memory = true\n[log]\nlevel = \"info,vip_raft=debug\"\nformat = \"json\"\n",
            ),
        ),
        ("vips", with(&[vip("a", "192.0.2.100"), vip("b", "2001:db8::10"), vip("a", "192.0.2.100")].concat())),
        ("interfaces", with("[interfaces]\nfront = \"enp3s0\"\nback = \"a/b\"\n")),
        (
            "members",
            with(
                "[[initial_cluster.node]]\nid = 1\naddress = \"192.0.2.11:7400\"\n[[initial_cluster.node]]\nid = 2\nname = \"second\"\naddress = \"n2.example:7400\"\n",
            ),
        ),
        ("unknown-key", with("[timing]\nlaese = \"1s\"\n")),
        ("no-toml", b"[cluster\nname = 'web\"".to_vec()),
    ]
}

fn frame() -> Seeds {
    let mac = [2, 0, 0x5e, 0x10, 0x20, 0x30];
    let v6 = [0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    let own = [10, 77, 0, 200, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 1];
    let sent = 1_234_567_u64.to_be_bytes();
    let arp = [&[0xff; 6][..], &mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &mac, &[10, 77, 0, 100], &mac, &[10, 77, 0, 100]];
    let ip = [
        &[2; 6][..],
        &mac,
        &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255],
        &v6,
        &own,
        &[136, 0, 0, 0, 0x40, 0, 0, 0],
        &v6,
    ];
    let v4 =
        [&[2; 6][..], &mac, &[8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 77, 0, 100, 10, 77, 0, 1], &[7; 12]];
    vec![
        ("request", [&b"q"[..], &mac, &[10, 77, 0, 100]].concat()),
        ("request-of-nobody", [&b"q"[..], &mac, &[0; 4]].concat()),
        ("reply", [&b"r"[..], &mac, &[10, 77, 0, 100]].concat()),
        ("advertisement", [&b"n"[..], &mac, &v6].concat()),
        ("questions", [&b"?"[..], &mac, &own, &v6].concat()),
        ("echo", [&b"e"[..], &v6, &sent].concat()),
        ("echo-with-options", [&b"e"[..], &own, &sent, &[1; 8]].concat()),
        ("any-arp", [&b"."[..], &arp.concat()].concat()),
        ("any-advertisement", [&b"."[..], &ip.concat()].concat()),
        ("any-v4", [&b"."[..], &v4.concat()].concat()),
    ]
}

/// The file (0 was closed), and steps: what, where (two bytes), value.
fn store_file() -> Seeds {
    vec![
        ("whole", vec![0]),
        ("flip-in-the-header", vec![0, 0, 0, 9, 1]),
        ("flip-further-on", vec![0, 0, 0x80, 0, 0x40]),
        ("flip-after-a-crash", vec![1, 0, 0xc0, 0, 1]),
        ("set", vec![2, 1, 0x20, 0, 0xff]),
        ("lost-write", vec![1, 2, 0x40, 0, 0]),
        ("lost-header", vec![1, 2, 0, 0, 0]),
        ("misdirected-write", vec![1, 3, 0x80, 0, 2]),
        ("zeros", vec![3, 4, 0x60, 0, 0]),
        ("cut", vec![0, 5, 0xff, 0xff, 0x80]),
    ]
}
