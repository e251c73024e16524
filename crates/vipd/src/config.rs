//! The configuration file: read, checked as a whole, and turned into values that are valid.
//!
//! Only what is local to this node stands in it, but for the members and VIPs that a cluster begins with. Unknown keys
//! are errors. Every problem names its line and key, and where two values conflict, both.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;
use toml::Spanned;
use vip_core::{ClusterName, InterfaceSelector, LeaseTiming, NodeId, Placement, VipName, VipSpec};
use vip_raft::types::PeerNode;

/// A valid configuration.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) cluster: ClusterName,
    pub(crate) node: NodeId,
    pub(crate) name: String,
    pub(crate) data_dir: PathBuf,
    pub(crate) peer_listen: SocketAddr,
    pub(crate) api_listen: Option<SocketAddr>,
    pub(crate) api_socket: PathBuf,
    pub(crate) http_listen: Option<SocketAddr>,
    pub(crate) heartbeat: Duration,
    pub(crate) lease: LeaseTiming,
    pub(crate) announce_burst: Vec<Duration>,
    pub(crate) announce_refresh: Duration,
    pub(crate) address_lifetime: Duration,
    pub(crate) fence: FenceChoice,
    pub(crate) pin_root: PathBuf,
    pub(crate) realtime_priority: u8,
    pub(crate) lock_memory: bool,
    pub(crate) log_level: String,
    pub(crate) log_format: LogFormat,
    pub(crate) interface_map: BTreeMap<String, String>,
    pub(crate) initial_members: BTreeMap<NodeId, PeerNode>,
    pub(crate) initial_vips: Vec<VipSpec>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Which fence to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FenceChoice {
    /// BPF, and nftables where that cannot be.
    #[default]
    Auto,
    /// BPF or nothing.
    Bpf,
    /// BPF is not tried.
    Nftables,
}

/// A set of timing that fits together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Profile {
    #[default]
    Default,
    Fast,
}

impl Profile {
    const fn heartbeat(self) -> Duration {
        match self {
            Self::Default => Duration::from_millis(100),
            Self::Fast => Duration::from_millis(20),
        }
    }

    const fn lease(self) -> Duration {
        match self {
            Self::Default => Duration::from_millis(500),
            Self::Fast => Duration::from_millis(100),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// The line, counted from 1; none where something is missing.
    pub(crate) line: Option<usize>,
    /// The key, such as `timing.lease`.
    pub(crate) key: String,
    /// What is wrong, and what to do.
    pub(crate) text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}: {}", self.key, self.text),
            None => write!(f, "{}: {}", self.key, self.text),
        }
    }
}

/// The configuration cannot be used.
#[derive(Debug, Error)]
pub(crate) enum ConfigError {
    /// The file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is no TOML, or has a key or a type that does not belong there.
    #[error("{} cannot be understood", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The parser's message, with line and column.
        source: Box<toml::de::Error>,
    },
    /// It is well formed and wrong.
    #[error("{}: {} problem(s)\n{}", path.display(), problems.len(), lines(problems))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// All that is wrong.
        problems: Vec<Problem>,
    },
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("  {problem}")).collect::<Vec<_>>().join("\n")
}

/// A valid configuration, and what is odd about it.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) config: Config,
    pub(crate) warnings: Vec<String>,
}

/// Reads and checks `path`.
pub(crate) fn load(path: &Path) -> Result<Loaded, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(&text).map_err(|error| match error {
        ParseError::Syntax(source) => ConfigError::Syntax { path: path.to_owned(), source },
        ParseError::Invalid(problems) => ConfigError::Invalid { path: path.to_owned(), problems },
    })
}

/// Why a text is no configuration.
#[derive(Debug)]
pub(crate) enum ParseError {
    Syntax(Box<toml::de::Error>),
    Invalid(Vec<Problem>),
}

/// Checks the text of a file. The fuzz target `config` takes this file as its own module, and begins here.
pub(crate) fn parse(text: &str) -> Result<Loaded, ParseError> {
    let raw: Raw = toml::from_str(text).map_err(|error| ParseError::Syntax(Box::new(error)))?;
    let mut check = Check { text, problems: Vec::new(), warnings: Vec::new() };
    let config = check.config(raw);
    match (config, check.problems.is_empty()) {
        (Some(config), true) => Ok(Loaded { config, warnings: check.warnings }),
        _ => Err(ParseError::Invalid(check.problems)),
    }
}

// ---- the file as written ----

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    insecure: Option<Spanned<bool>>,
    cluster: RawCluster,
    node: RawNode,
    peer: RawPeer,
    #[serde(default)]
    api: RawApi,
    #[serde(default)]
    http: RawHttp,
    #[serde(default)]
    timing: RawTiming,
    #[serde(default)]
    announce: RawAnnounce,
    #[serde(default)]
    address: RawAddress,
    #[serde(default)]
    fence: RawFence,
    #[serde(default)]
    process: RawProcess,
    #[serde(default)]
    log: RawLog,
    #[serde(default)]
    interfaces: BTreeMap<String, String>,
    #[serde(default)]
    initial_cluster: RawInitialCluster,
    #[serde(default)]
    initial_vip: Vec<RawVip>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCluster {
    name: Spanned<String>,
    #[serde(default)]
    profile: Profile,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNode {
    id: Spanned<u64>,
    name: Option<String>,
    data_dir: Option<Spanned<PathBuf>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPeer {
    listen: Spanned<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawApi {
    listen: Option<Spanned<String>>,
    socket: Option<Spanned<PathBuf>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHttp {
    listen: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTiming {
    heartbeat: Option<Spanned<String>>,
    lease: Option<Spanned<String>>,
    clock_drift_ppm: Option<Spanned<u32>>,
    queue_time: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAnnounce {
    burst: Option<Spanned<Vec<String>>>,
    refresh: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAddress {
    lifetime: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFence {
    #[serde(default)]
    backend: FenceChoice,
    pin_root: Option<Spanned<PathBuf>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProcess {
    realtime_priority: Option<Spanned<u8>>,
    #[serde(default)]
    lock_memory: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLog {
    level: Option<Spanned<String>>,
    #[serde(default)]
    format: LogFormat,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawInitialCluster {
    #[serde(default)]
    node: Vec<RawMember>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMember {
    id: Spanned<u64>,
    name: Option<String>,
    address: Spanned<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVip {
    name: Spanned<String>,
    address: Spanned<String>,
    prefix_len: Option<Spanned<u8>>,
    interface: Spanned<String>,
    #[serde(default)]
    placement: Placement,
}

// ---- what it means ----

struct Check<'a> {
    text: &'a str,
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

/// The least lease and heartbeat: below, scheduling alone would cost leases all the time.
const LEAST_HEARTBEAT: Duration = Duration::from_millis(5);
/// Ahead of everything at ordinary priority, behind what the kernel itself runs at 50. Refused, the daemon runs without.
const DEFAULT_PRIORITY: u8 = 10;
/// How many heartbeats must fit into what a lease leaves after its margin: one may be lost, one may be late.
pub(crate) const HEARTBEATS_IN_LEASE: u32 = 3;

impl Check<'_> {
    fn line(&self, offset: usize) -> usize {
        self.text.get(..offset).map_or(1, |before| before.matches('\n').count() + 1)
    }

    fn problem<T>(&mut self, at: &Spanned<T>, key: &str, text: impl Into<String>) {
        let line = Some(self.line(at.span().start));
        self.problems.push(Problem { line, key: key.to_owned(), text: text.into() });
    }

    /// The value of a fallible reading, or a problem.
    fn parsed<T, V, E: fmt::Display>(&mut self, at: &Spanned<T>, key: &str, result: Result<V, E>) -> Option<V> {
        result.map_err(|error| self.problem(at, key, error.to_string())).ok()
    }

    fn duration(&mut self, raw: Option<Spanned<String>>, key: &str, default: Duration) -> (Duration, Option<usize>) {
        let Some(raw) = raw else { return (default, None) };
        let line = self.line(raw.span().start);
        let value = self.parsed(&raw, key, parse_duration(raw.get_ref()));
        (value.unwrap_or(default), Some(line))
    }

    fn absolute(&mut self, raw: Option<Spanned<PathBuf>>, key: &str, default: &str) -> PathBuf {
        let Some(raw) = raw else { return PathBuf::from(default) };
        if !raw.get_ref().is_absolute() {
            self.problem(&raw, key, format!("{} is not an absolute path", raw.get_ref().display()));
        }
        raw.into_inner()
    }

    fn socket(&mut self, raw: &Spanned<String>, key: &str) -> Option<SocketAddr> {
        let why = |error| format!("{:?} is no address with a port, such as 10.0.0.1:7400: {error}", raw.get_ref());
        let socket = self.parsed(raw, key, raw.get_ref().parse::<SocketAddr>().map_err(why))?;
        if socket.port() == 0 {
            self.problem(raw, key, "port 0 is none that peers could know");
        }
        Some(socket)
    }

    /// A listener that need not be, and that shares its address with none of `others`.
    fn optional_socket(
        &mut self,
        raw: Option<&Spanned<String>>,
        key: &str,
        others: &[(&str, Option<SocketAddr>)],
    ) -> Option<SocketAddr> {
        let raw = raw?;
        let socket = self.socket(raw, key)?;
        for (other, _) in others.iter().filter(|(_, other)| *other == Some(socket)) {
            self.problem(raw, key, format!("{socket} is {other} too; give each its own port"));
        }
        Some(socket)
    }

    fn config(&mut self, raw: Raw) -> Option<Config> {
        let Raw {
            insecure,
            cluster,
            node,
            peer,
            api,
            http,
            timing,
            announce,
            address,
            fence,
            process,
            log,
            interfaces,
            initial_cluster,
            initial_vip,
        } = raw;
        self.insecure(insecure);
        let name = self.parsed(&cluster.name, "cluster.name", cluster.name.get_ref().parse::<ClusterName>());
        if *node.id.get_ref() == 0 {
            self.problem(&node.id, "node.id", "0 is no node id; ids begin with 1");
        }
        let peer_listen = self.socket(&peer.listen, "peer.listen");
        let api_listen = self.optional_socket(api.listen.as_ref(), "api.listen", &[("peer.listen", peer_listen)]);
        let taken = [("peer.listen", peer_listen), ("api.listen", api_listen)];
        let http_listen = self.optional_socket(http.listen.as_ref(), "http.listen", &taken);
        let (heartbeat, lease) = self.timing(timing, cluster.profile);
        let (announce_burst, announce_refresh) = self.announce(announce);
        let address_lifetime = self.address_lifetime(address, lease.lease);
        let realtime_priority = self.priority(process.realtime_priority);
        let log_level = self.log_level(log.level);
        let me = NodeId(*node.id.get_ref());
        let initial_members = self.members(&initial_cluster.node, me, &node.id, peer_listen);
        let initial_vips = self.vips(initial_vip, &initial_members, peer_listen);
        let interface_map = self.interface_map(interfaces);
        let data_dir = self.absolute(node.data_dir, "node.data_dir", "/var/lib/vipd");
        let api_socket = self.absolute(api.socket, "api.socket", "/run/vipd/vipd.sock");
        let pin_root = self.absolute(fence.pin_root, "fence.pin_root", "/sys/fs/bpf");
        Some(Config {
            cluster: name?,
            node: me,
            name: node.name.unwrap_or_else(host_name),
            data_dir,
            peer_listen: peer_listen?,
            api_listen,
            api_socket,
            http_listen,
            heartbeat,
            lease,
            announce_burst,
            announce_refresh,
            address_lifetime,
            fence: fence.backend,
            pin_root,
            realtime_priority,
            lock_memory: process.lock_memory,
            log_level,
            log_format: log.format,
            interface_map,
            initial_members,
            initial_vips,
        })
    }

    /// Peers and the TCP API speak plain text; nobody should find that out later.
    fn insecure(&mut self, insecure: Option<Spanned<bool>>) {
        const TEXT: &str = "the peers and the TCP API are neither encrypted nor authenticated in this version: keep their network closed to others and say so with insecure = true";
        match insecure {
            Some(insecure) if *insecure.get_ref() => {}
            Some(insecure) => self.problem(&insecure, "insecure", TEXT),
            None => self.problems.push(Problem { line: None, key: "insecure".to_owned(), text: TEXT.to_owned() }),
        }
    }

    fn timing(&mut self, raw: RawTiming, profile: Profile) -> (Duration, LeaseTiming) {
        let (heartbeat, heartbeat_line) = self.duration(raw.heartbeat, "timing.heartbeat", profile.heartbeat());
        let (lease, lease_line) = self.duration(raw.lease, "timing.lease", profile.lease());
        let (queue_time, queue_line) = self.duration(raw.queue_time, "timing.queue_time", Duration::from_millis(5));
        let (drift, drift_line) =
            raw.clock_drift_ppm.map_or((1000, None), |raw| (*raw.get_ref(), Some(self.line(raw.span().start))));
        let timing = LeaseTiming { lease, clock_drift_ppm: drift, queue_time };
        let mut problem = |line: Option<usize>, key: &str, text: String| {
            self.problems.push(Problem { line, key: key.to_owned(), text });
        };
        if drift > 100_000 {
            problem(
                drift_line,
                "timing.clock_drift_ppm",
                format!("{drift} is more than 100000, the kernel's own limit of 10 %"),
            );
            return (heartbeat, timing);
        }
        for (key, value, line) in [("timing.heartbeat", heartbeat, heartbeat_line), ("timing.lease", lease, lease_line)]
        {
            if value.subsec_nanos() % 1_000_000 != 0 {
                problem(line, key, format!("{value:?} is not a whole number of milliseconds"));
            }
            if value > Duration::from_secs(60) {
                problem(line, key, format!("{value:?} is more than a minute; no VIP would come back in useful time"));
            }
        }
        if heartbeat < LEAST_HEARTBEAT {
            problem(heartbeat_line, "timing.heartbeat", format!("{heartbeat:?} is less than {LEAST_HEARTBEAT:?}"));
        }
        let margin = timing.margin();
        if margin >= lease {
            problem(
                queue_line.or(lease_line),
                "timing.queue_time",
                format!(
                    "the margin of {margin:?} (2 x drift x lease + queue_time {queue_time:?}) leaves nothing of lease {lease:?}"
                ),
            );
        } else if heartbeat.saturating_mul(HEARTBEATS_IN_LEASE) > lease - margin {
            problem(
                heartbeat_line.or(lease_line),
                "timing.heartbeat",
                format!(
                    "heartbeat {heartbeat:?} is too long for lease {lease:?}: {HEARTBEATS_IN_LEASE} heartbeats must fit into the {:?} that the margin of {margin:?} leaves",
                    lease - margin
                ),
            );
        }
        (heartbeat, timing)
    }

    fn announce(&mut self, raw: RawAnnounce) -> (Vec<Duration>, Duration) {
        let mut burst: Vec<_> = [0, 5, 100, 1000].map(Duration::from_millis).into();
        if let Some(raw) = raw.burst {
            let key = "announce.burst";
            let parsed: Result<Vec<_>, _> = raw.get_ref().iter().map(|text| parse_duration(text)).collect();
            if let Some(parsed) = self.parsed(&raw, key, parsed) {
                if !parsed.is_sorted() {
                    self.problem(&raw, key, "the times after the takeover must grow");
                } else if parsed.first() != Some(&Duration::ZERO) {
                    self.problem(&raw, key, "the first announcement must come at once: begin with 0s");
                } else if parsed.len() > 100 {
                    self.problem(&raw, key, format!("{} announcements are more than 100", parsed.len()));
                }
                burst = parsed;
            }
        }
        let (refresh, line) = self.duration(raw.refresh, "announce.refresh", Duration::from_secs(30));
        if refresh < Duration::from_millis(100) {
            let text = format!("{refresh:?} is less than 100ms; the network would drown in announcements");
            self.problems.push(Problem { line, key: "announce.refresh".to_owned(), text });
        }
        (burst, refresh)
    }

    fn address_lifetime(&mut self, raw: RawAddress, lease: Duration) -> Duration {
        let (lifetime, line) = self.duration(raw.lifetime, "address.lifetime", Duration::from_secs(10));
        let least = lease.saturating_mul(2).max(Duration::from_secs(3));
        if lifetime < least {
            let text = format!(
                "{lifetime:?} is less than {least:?}: the kernel counts whole seconds, and the address must outlive its lease of {lease:?}"
            );
            self.problems.push(Problem { line, key: "address.lifetime".to_owned(), text });
        }
        lifetime
    }

    fn priority(&mut self, raw: Option<Spanned<u8>>) -> u8 {
        let Some(raw) = raw else { return DEFAULT_PRIORITY };
        if *raw.get_ref() > 99 {
            self.problem(&raw, "process.realtime_priority", format!("{} is more than 99; 0 is off", raw.get_ref()));
        }
        raw.into_inner()
    }

    fn log_level(&mut self, raw: Option<Spanned<String>>) -> String {
        let Some(raw) = raw else { return "info".to_owned() };
        let parsed = raw.get_ref().parse::<tracing_subscriber::filter::Targets>();
        self.parsed(&raw, "log.level", parsed);
        raw.into_inner()
    }

    fn interface_map(&mut self, raw: BTreeMap<String, String>) -> BTreeMap<String, String> {
        for name in raw.iter().flat_map(|(selector, name)| [selector, name]) {
            if let Err(error) = InterfaceSelector::try_from(name.clone()) {
                self.problems.push(Problem { line: None, key: format!("interfaces.{name}"), text: error.to_string() });
            }
        }
        raw
    }

    fn members(
        &mut self,
        raw: &[RawMember],
        me: NodeId,
        my_id: &Spanned<u64>,
        listen: Option<SocketAddr>,
    ) -> BTreeMap<NodeId, PeerNode> {
        let mut members = BTreeMap::new();
        let mut addresses = BTreeSet::new();
        for member in raw {
            let id = NodeId(*member.id.get_ref());
            let address = member.address.get_ref();
            if id.0 == 0 {
                self.problem(&member.id, "initial_cluster.node.id", "0 is no node id; ids begin with 1");
            }
            let Some(socket) = self.peer_address(&member.address) else { continue };
            if !addresses.insert(address.clone()) {
                self.problem(
                    &member.address,
                    "initial_cluster.node.address",
                    format!("{address} is given to two nodes"),
                );
            }
            if id == me
                && let (Some(listen), Some(socket)) = (listen, socket)
                && !listen.ip().is_unspecified()
                && listen != socket
            {
                self.problem(
                    &member.address,
                    "initial_cluster.node.address",
                    format!("the others would look for this node at {socket}, but peer.listen is {listen}"),
                );
            }
            let name = member.name.clone().unwrap_or_else(|| format!("node-{id}"));
            if members.insert(id, PeerNode { name, address: address.clone() }).is_some() {
                self.problem(&member.id, "initial_cluster.node.id", format!("two nodes have the id {id}"));
            }
        }
        if !members.is_empty() && !members.contains_key(&me) {
            let known: Vec<_> = members.keys().map(ToString::to_string).collect();
            self.problem(my_id, "node.id", format!("{me} is not among the initial members {}", known.join(", ")));
        }
        match members.len() {
            1 => self.warnings.push("the initial cluster has one voter: its failure stops all VIPs".to_owned()),
            even if even > 0 && even % 2 == 0 => self.warnings.push(format!(
                "the initial cluster has {even} voters, an even number: it survives no more failures than {} would; add or leave out one",
                even - 1
            )),
            _ => {}
        }
        members
    }

    /// `host:port`; none where it is wrong, and the socket address where the host is an IP address.
    fn peer_address(&mut self, raw: &Spanned<String>) -> Option<Option<SocketAddr>> {
        let text = raw.get_ref();
        if let Ok(socket) = text.parse::<SocketAddr>() {
            return Some(Some(socket));
        }
        let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
        let name_is_fine =
            !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'));
        if !name_is_fine || port.parse::<u16>().is_err() {
            self.problem(
                raw,
                "initial_cluster.node.address",
                format!("{text:?} is no host with a port, such as 10.0.0.1:7400"),
            );
            return None;
        }
        Some(None)
    }

    fn vips(
        &mut self,
        raw: Vec<RawVip>,
        members: &BTreeMap<NodeId, PeerNode>,
        listen: Option<SocketAddr>,
    ) -> Vec<VipSpec> {
        let mut names: BTreeMap<VipName, usize> = BTreeMap::new();
        let mut addresses: BTreeMap<IpAddr, usize> = BTreeMap::new();
        let node_addresses: BTreeSet<IpAddr> = members
            .values()
            .filter_map(|node| node.address.parse::<SocketAddr>().ok())
            .chain(listen)
            .map(|socket| socket.ip())
            .collect();
        let mut vips = Vec::new();
        for raw in raw {
            let line = self.line(raw.name.span().start);
            let Some(spec) = self.vip(&raw) else { continue };
            if let Some(other) = names.insert(spec.name.clone(), line) {
                self.problem(
                    &raw.name,
                    "initial_vip.name",
                    format!("{} is the name of the VIP at line {other} already", spec.name),
                );
            }
            if let Some(other) = addresses.insert(spec.address, line) {
                self.problem(
                    &raw.address,
                    "initial_vip.address",
                    format!("{} is the address of the VIP at line {other} already", spec.address),
                );
            }
            if node_addresses.contains(&spec.address) {
                self.problem(
                    &raw.address,
                    "initial_vip.address",
                    format!("{} is a node's own address; a VIP moves, a node's address must not", spec.address),
                );
            }
            vips.push(spec);
        }
        vips
    }

    fn vip(&mut self, raw: &RawVip) -> Option<VipSpec> {
        let name = self.parsed(&raw.name, "initial_vip.name", raw.name.get_ref().parse::<VipName>());
        let why = |error| {
            format!("{:?} is no IP address: {error}; a prefix length goes into prefix_len", raw.address.get_ref())
        };
        let address =
            self.parsed(&raw.address, "initial_vip.address", raw.address.get_ref().parse::<IpAddr>().map_err(why));
        let interface = InterfaceSelector::try_from(raw.interface.get_ref().clone());
        let interface = self.parsed(&raw.interface, "initial_vip.interface", interface);
        let (name, address, interface) = (name?, address?, interface?);
        let prefix_len =
            raw.prefix_len.as_ref().map_or_else(|| VipSpec::host_prefix_len(address), |raw| *raw.get_ref());
        let spec = VipSpec { name, address, prefix_len, interface, placement: raw.placement };
        match &raw.prefix_len {
            Some(at) => self.parsed(at, "initial_vip.prefix_len", spec.validate()),
            None => self.parsed(&raw.address, "initial_vip.address", spec.validate()),
        }
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let signed: jiff::SignedDuration =
        text.parse().map_err(|_| format!("{text:?} is no duration, such as 100ms, 5s or 1m"))?;
    Duration::try_from(signed).map_err(|_| format!("{text:?} is negative"))
}

fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "vipd".to_owned())
}

#[cfg(test)]
mod tests;
