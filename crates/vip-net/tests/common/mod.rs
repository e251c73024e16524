//! Two hosts on a cable, each in a network namespace of its own: "host", where the test and the code under test
//! run, and "peer", a silent neighbour that sends and hears raw frames. Nothing outlives the test.

#![allow(dead_code, unreachable_pub)] // each test binary uses its part

use std::io::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use pnet::datalink::{self, Channel, Config, DataLinkReceiver, DataLinkSender, NetworkInterface};
use vip_net::fence::{Fence, FenceKind};

/// Each of these is a test for each kind of fence.
#[allow(unused_macros)] // each test binary uses its part
macro_rules! for_each_kind {
    ($($test:ident),* $(,)?) => {
        mod bpf {
            $(#[test] fn $test() { super::$test(super::FenceKind::Bpf); })*
        }
        mod nftables {
            $(#[test] fn $test() { super::$test(super::FenceKind::Nftables); })*
        }
    };
}

pub mod rtnetlink;
pub mod wire;

pub const HOST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
pub const PEER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
pub const PEER4: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
pub const PEER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 2);

/// How long an answer may take that must come; builds may run beside the test.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long to listen for an answer that must not come.
pub const SILENCE: Duration = Duration::from_millis(120);

type Job = Box<dyn FnOnce() + Send>;

pub struct World {
    /// The host's interface towards the peer.
    pub index: u32,
    pub pin_root: PathBuf,
    /// Which fence the test is about.
    pub kind: FenceKind,
    pub wire: Wire,
    _peer: Elsewhere,
}

/// The peer's end of the cable.
pub struct Wire {
    sender: Box<dyn DataLinkSender>,
    receiver: Box<dyn DataLinkReceiver>,
}

/// Runs `test` between two fresh namespaces; without the privilege says so loudly and passes, unless
/// VIPD_TEST_REQUIRE_ROOT=1.
pub fn between_two_hosts(test: impl FnOnce(&mut World) + Send + 'static) {
    between_two_hosts_with(FenceKind::Bpf, test);
}

fn between_two_hosts_with(kind: FenceKind, test: impl FnOnce(&mut World) + Send + 'static) {
    if !may_unshare() {
        skip("this process may not make network namespaces");
        return;
    }
    // unshare acts on the calling thread alone, so a thread is what a host lives in.
    let result = thread::spawn(move || {
        let directory = tempfile::tempdir().unwrap();
        enter_namespaces();
        let mut world = World::build(directory.path(), kind);
        test(&mut world);
        drop(world);
        // The mount is private to this thread; it must go before its directory can.
        let _ = nix::mount::umount(&directory.path().join("bpf"));
    })
    .join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// The same for a test that needs a fence, which namespaces alone do not give for BPF (a container, say).
pub fn between_two_fenced_hosts(kind: FenceKind, test: impl FnOnce(&mut World) + Send + 'static) {
    if kind == FenceKind::Nftables && !may_unshare() && repeated_with_an_own_user_namespace() {
        return;
    }
    match why_no_fence(kind) {
        Some(reason) => skip(&format!("the fence cannot be loaded: {reason}")),
        None => between_two_hosts_with(kind, test),
    }
}

fn skip(reason: &str) {
    let required = std::env::var("VIPD_TEST_REQUIRE_ROOT").is_ok_and(|value| value == "1");
    assert!(!required, "VIPD_TEST_REQUIRE_ROOT=1, but {reason}");
    tell_skipped(&format!("needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_BPF): {reason}"));
}

/// Past cargo, which keeps to itself what tests print that pass.
pub fn tell_skipped(reason: &str) {
    let _ = writeln!(std::io::stderr(), "\nSKIPPED: {reason}; nothing was tested");
}

/// Why the fence does not load here, found out once for all tests of a binary; `None` also where there are no
/// namespaces to try it in.
fn why_no_fence(kind: FenceKind) -> Option<&'static str> {
    static REASONS: [OnceLock<Option<String>>; 2] = [OnceLock::new(), OnceLock::new()];
    let try_it = move || {
        let directory = tempfile::tempdir().unwrap();
        enter_namespaces();
        let root = directory.path().join("bpf");
        ip("link add try0 type veth peer name try1");
        let fence = Fence::open(kind, &root);
        let reason = fence.and_then(|fence| fence.attach(index_of("try0"))).err().map(|e| e.to_string());
        let _ = nix::mount::umount(&root);
        reason
    };
    let reason = &REASONS[usize::from(kind == FenceKind::Nftables)];
    reason.get_or_init(|| may_unshare().then(|| thread::spawn(try_it).join().unwrap()).flatten()).as_deref()
}

/// Runs the calling test once more as root of a user namespace, which is enough for nftables. False where there are
/// none.
fn repeated_with_an_own_user_namespace() -> bool {
    const REPEATED: &str = "VIPD_TEST_IN_USER_NAMESPACE";
    let current = thread::current();
    let name = current.name().expect("a test's thread has its name");
    if std::env::var_os(REPEATED).is_some() || !unshared("true").status().is_ok_and(|status| status.success()) {
        return false;
    }
    let mut again = unshared(std::env::current_exe().unwrap());
    let status = again.args(["--exact", name, "--nocapture"]).env(REPEATED, "1").status().unwrap();
    assert!(status.success(), "{name} failed in a user namespace");
    true
}

fn unshared(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "--mount"]).arg(program);
    command
}

fn may_unshare() -> bool {
    thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).is_ok()).join().unwrap()
}

fn enter_namespaces() {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
}

impl World {
    fn build(directory: &Path, kind: FenceKind) -> Self {
        let peer = Elsewhere::new();
        ip("link set lo up");
        ip(&format!(
            "link add vip0 address {} type veth peer name peer0 address {}",
            mac_text(HOST_MAC),
            mac_text(PEER_MAC)
        ));
        ip(&format!("link set peer0 netns {}", peer.tid));
        ip("link set vip0 addrgenmode none");
        ip("link set vip0 up");
        ip("addr add 10.9.0.1/24 dev vip0");
        ip("addr add fd00:9::1/64 dev vip0 nodad");
        let wire = peer.run(|| {
            ip("link set peer0 addrgenmode none");
            ip("link set peer0 up");
            Wire::open("peer0")
        });
        // The peer's kernel has no address and answers nothing.
        ip(&format!("neigh add {PEER4} lladdr {} dev vip0 nud permanent", mac_text(PEER_MAC)));
        ip(&format!("neigh add {PEER6} lladdr {} dev vip0 nud permanent", mac_text(PEER_MAC)));
        let index = index_of("vip0");
        wait_for(|| ip_json("link show dev vip0")[0]["operstate"] == "UP");
        Self { index, pin_root: directory.join("bpf"), kind, wire, _peer: peer }
    }

    /// The fence of the kind that the test is about.
    pub fn open_fence(&self) -> Fence {
        Fence::open(self.kind, &self.pin_root).unwrap()
    }

    /// Whether the host answers on the wire for an address, asked with ARP or NS, echo, and a SYN.
    pub fn answers(&mut self, address: std::net::IpAddr, patience: Duration) -> Answers {
        match address {
            std::net::IpAddr::V4(ip) => Answers {
                resolves: self.wire.ask(&wire::arp_request(ip), |f| wire::is_arp_of(f, ip), patience),
                echoes: self.wire.ask(&wire::echo4(ip), |f| wire::is_echo_reply4(f, ip), patience),
                connects: self.wire.ask(&wire::syn4(ip), |f| wire::is_tcp4(f, ip), patience),
            },
            std::net::IpAddr::V6(ip) => Answers {
                resolves: self.wire.ask(&wire::solicitation(ip), |f| wire::is_advertisement_of(f, ip), patience),
                echoes: self.wire.ask(&wire::echo6(ip), |f| wire::is_echo_reply6(f, ip), patience),
                connects: self.wire.ask(&wire::syn6(ip), |f| wire::is_tcp6(f, ip), patience),
            },
        }
    }

    pub fn assert_answers(&mut self, address: &str) {
        let answers = self.answers(address.parse().unwrap(), PATIENCE);
        assert_eq!(answers, Answers { resolves: true, echoes: true, connects: true }, "{address} should answer");
    }

    pub fn assert_silent(&mut self, address: &str) {
        let answers = self.answers(address.parse().unwrap(), SILENCE);
        let silent = Answers { resolves: false, echoes: false, connects: false };
        assert_eq!(answers, silent, "{address} should be silent");
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answers {
    /// To ARP or Neighbor Discovery.
    pub resolves: bool,
    /// To ICMP echo.
    pub echoes: bool,
    /// To a SYN, with whatever TCP says (a reset where nobody listens).
    pub connects: bool,
}

impl Wire {
    /// A raw channel on an interface of the calling thread's namespace.
    pub fn open(name: &str) -> Self {
        let interface = NetworkInterface {
            name: name.to_owned(),
            description: String::new(),
            index: index_of(name),
            mac: None,
            ips: Vec::new(),
            flags: 0,
        };
        let config = Config { read_timeout: Some(Duration::from_millis(5)), ..Config::default() };
        match datalink::channel(&interface, config).unwrap() {
            Channel::Ethernet(sender, receiver) => Self { sender, receiver },
            _ => panic!("no ethernet channel"),
        }
    }

    pub fn send(&mut self, frame: &[u8]) -> std::io::Result<()> {
        self.sender.send_to(frame, None).unwrap()
    }

    /// Forgets what arrived so far.
    pub fn drain(&mut self) {
        while self.receiver.next().is_ok() {}
    }

    /// Sends a frame now and then until the host sends a wanted one, or patience ends.
    pub fn ask(&mut self, question: &[u8], wanted: impl Fn(&[u8]) -> bool, patience: Duration) -> bool {
        self.drain();
        let end = Instant::now() + patience;
        while Instant::now() < end {
            self.send(question).unwrap();
            let again = Instant::now() + Duration::from_millis(40);
            while Instant::now() < again.min(end) {
                if self.receiver.next().is_ok_and(|frame| wire::is_from_host(frame) && wanted(frame)) {
                    return true;
                }
            }
        }
        false
    }

    /// The wanted frames that arrive from the host until the time is over.
    pub fn hear(&mut self, wanted: impl Fn(&[u8]) -> bool, time: Duration) -> Vec<Vec<u8>> {
        let end = Instant::now() + time;
        let mut heard = Vec::new();
        while Instant::now() < end {
            if let Ok(frame) = self.receiver.next()
                && wire::is_from_host(frame)
                && wanted(frame)
            {
                heard.push(frame.to_vec());
            }
        }
        heard
    }
}

/// Another host: a thread in namespaces of its own that does what it is told.
pub struct Elsewhere {
    jobs: mpsc::Sender<Job>,
    /// The thread's id, by which `ip` finds its namespace.
    pub tid: i32,
}

impl Elsewhere {
    pub fn new() -> Self {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, started) = mpsc::channel();
        thread::spawn(move || {
            enter_namespaces();
            ready.send(nix::unistd::gettid().as_raw()).unwrap();
            inbox.into_iter().for_each(|job| job());
        });
        Self { jobs, tid: started.recv().unwrap() }
    }

    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, receiver) = mpsc::channel();
        self.jobs.send(Box::new(move || sender.send(job()).unwrap())).unwrap();
        receiver.recv().expect("the job panicked")
    }
}

pub fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    let problem = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {problem}");
    String::from_utf8(output.stdout).unwrap()
}

pub fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

pub fn ip_json(arguments: &str) -> serde_json::Value {
    serde_json::from_str(&run("ip", &format!("-j -d {arguments}"))).unwrap()
}

/// The addresses of an interface as `ip` sees them.
pub fn addresses_of(name: &str) -> Vec<serde_json::Value> {
    ip_json(&format!("addr show dev {name}"))[0]["addr_info"].as_array().unwrap().clone()
}

/// The BPF filters on one direction as `tc` sees them.
pub fn filters_of(name: &str, direction: &str) -> Vec<serde_json::Value> {
    let text = run("tc", &format!("-j filter show dev {name} {direction}"));
    let all: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap_or_default();
    all.into_iter().filter(|filter| filter["options"]["handle"].is_string()).collect()
}

pub fn index_of(name: &str) -> u32 {
    u32::try_from(ip_json(&format!("link show dev {name}"))[0]["ifindex"].as_u64().unwrap()).unwrap()
}

pub fn wait_for(condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain");
        thread::sleep(Duration::from_millis(10));
    }
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}
