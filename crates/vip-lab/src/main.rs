//! `vip-lab`: lays out a virtual-IP cluster in network namespaces, breaks it, and judges it by its packets.
//! Exit status: 0 all well, 1 the cluster broke a promise, 2 the lab itself failed.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};
use vip_lab::bench::{BenchPlan, BenchReport, FAULTS, Part, markdown, run_bench};
use vip_lab::demo::run_demo;
use vip_lab::load::BusyLoops;
use vip_lab::observe::observe;
use vip_lab::report::{Reporter, Summary, TrialRecord, print};
use vip_lab::scenario::{Fault, run_trial};
use vip_lab::steady::run_steady;
use vip_lab::{Lab, Manager, Profile, clean, interrupt};

/// With the commit, which the version alone does not tell apart.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("VIPD_COMMIT"), ")");

#[derive(Parser)]
#[command(version = VERSION, about = "Namespace laboratory for vipd: faults, and an observer that judges by packets")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure one fault, or all of them, several times
    Run(RunArgs),
    /// Show kill, freeze, link loss and partition on a timeline
    Demo {
        #[command(flatten)]
        lab: LabArgs,
        /// Print the result as JSON instead of the timeline
        #[arg(long)]
        json: bool,
    },
    /// Measure vipd beside keepalived, with the same faults; fails only by what vipd does
    Bench(BenchArgs),
    /// Keep a lab running until Ctrl-C, to try things by hand
    Up(LabArgs),
    /// Observe VIPs from this host, in a laboratory that something else laid out; JSON lines
    ///
    /// Reads commands from standard input: `peek` prints what was seen since the last judgement, `judge [LABEL]`
    /// does so and begins anew.
    Observe {
        /// A VIP; more than once for several
        #[arg(long = "vip", value_name = "ADDRESS", required = true)]
        vips: Vec<IpAddr>,
        /// Judge this often instead, in milliseconds, and read nothing
        #[arg(long)]
        every_ms: Option<u64>,
    },
    /// Remove what killed runs left behind
    Clean,
}

#[derive(Args)]
struct LabArgs {
    /// Timing profile of vipd
    #[arg(long, value_enum, default_value = "default")]
    profile: Profile,
    /// What keeps the VIPs, when it is not vipd with that profile
    #[arg(long, value_enum, conflicts_with = "profile")]
    manager: Option<Manager>,
    /// Number of nodes
    #[arg(long, default_value_t = 3)]
    nodes: u8,
    /// Number of VIPs: an IPv4 and an IPv6 one, then more IPv4 ones
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1020))]
    vips: u16,
    /// What the daemons make their fence of [default: auto]
    #[arg(long, value_enum)]
    fence: Option<FenceBackend>,
    /// The daemon's program [default: $VIPD_BIN, then vipd beside this program]
    #[arg(long, value_name = "PATH")]
    vipd: Option<PathBuf>,
    /// The program of keepalived [default: $KEEPALIVED_BIN, where `make bench` unpacks it, /usr/sbin/keepalived]
    #[arg(long, value_name = "PATH")]
    keepalived: Option<PathBuf>,
    /// Keep the directory with configurations, logs and state
    #[arg(long)]
    keep: bool,
}

#[derive(Args)]
struct RunArgs {
    #[arg(value_enum)]
    scenario: Scenario,
    #[command(flatten)]
    lab: LabArgs,
    /// How often each fault is measured
    #[arg(long, default_value_t = 5)]
    trials: u32,
    /// How long `steady` watches
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Endless loops beside `steady`, for each processor
    #[arg(long, default_value_t = 0)]
    busy_loops: usize,
    /// How long every daemon must have been up before a fault, in milliseconds
    #[arg(long, default_value_t = 2000)]
    settle_ms: u64,
    /// Write one JSON object a line: every trial, then the summary
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Args)]
struct BenchArgs {
    /// How often each fault is measured
    #[arg(long, default_value_t = 30)]
    trials: u32,
    /// How often each fault is measured with 1000 VIPs [default: a tenth of the trials]
    #[arg(long)]
    many_trials: Option<u32>,
    /// How long the steady state is watched
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Measure these parts only
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Part::value_variants().to_vec())]
    only: Vec<Part>,
    /// Measure these managers only
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Manager::value_variants().to_vec())]
    managers: Vec<Manager>,
    /// Of the faults with two VIPs measure these only
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = FAULTS)]
    faults: Vec<Fault>,
    /// The daemon's program [default: $VIPD_BIN, then vipd beside this program]
    #[arg(long, value_name = "PATH")]
    vipd: Option<PathBuf>,
    /// The program of keepalived [default: $KEEPALIVED_BIN, where `make bench` unpacks it, /usr/sbin/keepalived]
    #[arg(long, value_name = "PATH")]
    keepalived: Option<PathBuf>,
    /// Write one JSON object a line: every trial, the summaries, then everything together
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Replace the results in this page: what is between its two marks
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Measure nothing: take the results from the JSON of an earlier run
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    from: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Scenario {
    Baseline,
    Kill,
    Freeze,
    Stop,
    Linkdown,
    Partition,
    Mute,
    Upstream,
    Reboot,
    /// No fault: processor time, memory, changes of owner; fails when there are any
    Steady,
    /// Every fault, one after the other
    All,
}

impl Scenario {
    fn faults(self) -> &'static [Fault] {
        match self {
            Self::Baseline => &[Fault::Baseline],
            Self::Kill => &[Fault::Kill],
            Self::Freeze => &[Fault::Freeze],
            Self::Stop => &[Fault::Stop],
            Self::Linkdown => &[Fault::Linkdown],
            Self::Partition => &[Fault::Partition],
            Self::Mute => &[Fault::Mute],
            Self::Upstream => &[Fault::Upstream],
            Self::Reboot => &[Fault::Reboot],
            Self::Steady => &[],
            Self::All => Fault::value_variants(),
        }
    }
}

/// `fence.backend` in the daemon's configuration.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum FenceBackend {
    Auto,
    Bpf,
    Nftables,
}

impl FenceBackend {
    const fn toml(self) -> &'static str {
        match self {
            Self::Auto => "[fence]\nbackend = \"auto\"\n",
            Self::Bpf => "[fence]\nbackend = \"bpf\"\n",
            Self::Nftables => "[fence]\nbackend = \"nftables\"\n",
        }
    }
}

impl LabArgs {
    fn start(&self) -> Result<Lab> {
        let Self { profile, manager, nodes, vips, fence, vipd, keepalived, keep } = self;
        Lab::builder()
            .manager(manager.unwrap_or_else(|| (*profile).into()))
            .nodes(*nodes)
            .vips(*vips)
            .extra_toml(fence.map_or("", FenceBackend::toml))
            .vipd(vipd.clone())
            .keepalived(keepalived.clone())
            .keep(*keep)
            .start()
    }
}

#[allow(clippy::print_stderr, reason = "the one place where a failure of the program is told")]
fn main() -> ExitCode {
    let cli = Cli::parse();
    let passed = interrupt::install().and_then(|()| match cli.command {
        Command::Run(args) => run(&args),
        Command::Demo { lab, json } => demo(&lab, json),
        Command::Bench(args) => bench(&args),
        Command::Up(args) => up(&args),
        Command::Observe { vips, every_ms } => observe(&vips, every_ms.map(Duration::from_millis)).map(|()| true),
        Command::Clean => clean_up(),
    });
    match passed {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("vip-lab: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &RunArgs) -> Result<bool> {
    let mut reporter = Reporter::new(args.json.as_deref())?;
    let lab = args.lab.start()?;
    tell_directory(&lab, args.lab.keep);
    let settle = Duration::from_millis(args.settle_ms);
    if matches!(args.scenario, Scenario::Steady) {
        return steady(&lab, args, settle, &mut reporter);
    }
    reporter.heading();
    let mut summaries = Vec::new();
    let mut passed = true;
    for &fault in args.scenario.faults() {
        let mut records: Vec<TrialRecord> = Vec::new();
        for number in 1..=args.trials {
            let record = run_trial(&lab, fault, number, settle, &mut |_| ())?;
            reporter.trial(&record)?;
            if !record.passed() {
                passed = false;
                tell_failure(&lab);
            }
            records.push(record);
        }
        summaries.extend(Summary::of(&records));
    }
    for summary in &summaries {
        reporter.summary(summary)?;
    }
    Ok(passed)
}

fn steady(lab: &Lab, args: &RunArgs, settle: Duration, reporter: &mut Reporter) -> Result<bool> {
    let load = BusyLoops::start(args.busy_loops)?;
    let record = run_steady(lab, Duration::from_secs(args.seconds), settle, &mut |elapsed, so_far| {
        print(&format!(
            "{:.0} s so far: {} changes of owner, overlap {:.1} ms",
            elapsed.as_secs_f64(),
            so_far.owner_changes,
            so_far.overlap_ms
        ));
    })?;
    drop(load);
    for node in &record.nodes {
        let role = if node.owner { "owner" } else { "" };
        print(&format!("{:4} {role:6} {:6.2} % of one CPU  {:6.1} MiB", node.node, node.cpu_percent, node.rss_mib));
    }
    let outages: Vec<String> = record.outage_ms.iter().map(|ms| format!("{ms:.1} ms")).collect();
    print(&format!(
        "{:.0} s: {} changes of owner, overlap {:.1} ms, longest outage {}, prober pause {:.1} ms",
        record.seconds,
        record.owner_changes,
        record.overlap_ms,
        outages.join(" and "),
        record.prober_pause_ms,
    ));
    reporter.json_line(&record)?;
    Ok(record.overlap_ms == 0.0 && record.owner_changes == 0)
}

fn bench(args: &BenchArgs) -> Result<bool> {
    let plan = BenchPlan {
        parts: args.only.clone(),
        managers: args.managers.clone(),
        faults: args.faults.clone(),
        trials: args.trials,
        many_trials: args.many_trials.unwrap_or_else(|| args.trials.div_ceil(10)),
        steady: Duration::from_secs(args.seconds),
        vipd: args.vipd.clone(),
        keepalived: args.keepalived.clone(),
    };
    let report = match &args.from {
        Some(path) => BenchReport::read(path)?,
        None => run_bench(&plan, Reporter::new(args.json.as_deref())?)?,
    };
    match &args.markdown {
        Some(path) => markdown::update(path, &report)?,
        None => print(&format!("\n{}", markdown::render(&report))),
    }
    Ok(report.passed())
}

fn demo(args: &LabArgs, json: bool) -> Result<bool> {
    let lab = args.start()?;
    let record = run_demo(&lab, json)?;
    if json {
        print(&serde_json::to_string_pretty(&record)?);
    }
    if !record.passed {
        tell_failure(&lab);
    }
    Ok(record.passed)
}

fn up(args: &LabArgs) -> Result<bool> {
    let lab = args.start()?;
    let holder = lab.wait_for_holder(Duration::from_secs(20))?;
    let (vip, prefix) = (lab.vips()[0], lab.network().prefix());
    print(&format!("{holder} holds {vip}. Things to try, in another terminal:\n"));
    print(&format!("  nsenter --net=/run/netns/{prefix}-client ping {vip}"));
    for node in lab.nodes() {
        let pid = node.pid().unwrap_or_default();
        print(&format!(
            "  vipctl --endpoint unix:{} status     # {}: kill -9 {pid}",
            node.socket().display(),
            node.host()
        ));
    }
    print(&format!("  tail -f {}/*/vipd.log", lab.dir().display()));
    print(&format!("  ip -n {prefix}-sw link set {holder} down\n\nCtrl-C takes everything down."));
    while interrupt::sleep(Duration::from_secs(1)).is_ok() {}
    Ok(true)
}

fn clean_up() -> Result<bool> {
    let cleaned = clean::clean()?;
    for pid in &cleaned.processes {
        print(&format!("killed process {pid}"));
    }
    for name in cleaned.namespaces.iter().chain(&cleaned.directories) {
        print(&format!("removed {name}"));
    }
    Ok(true)
}

#[allow(clippy::print_stderr, reason = "standard output is for the table")]
fn tell_failure(lab: &Lab) {
    eprint!("{}", lab.log_tails(20));
}

#[allow(clippy::print_stderr, reason = "standard output is for the table")]
fn tell_directory(lab: &Lab, keep: bool) {
    if keep {
        eprintln!("logs and state stay in {}", lab.dir().display());
    }
}
