//! The soak: runs seed after seed on all cores, ones that were never tried where none is given; or one seed with all its
//! words.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use vip_simulation::omission::Omission;
use vip_simulation::{Report, run};

/// Simulates whole clusters and looks for an instant with two holders.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Run this seed, and no other.
    #[arg(long)]
    seed: Option<u64>,
    /// Print what happens; with --seed.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// The first seed; by chance otherwise, and above all that the tests run.
    #[arg(long)]
    from: Option<u64>,
    /// End after so many runs.
    #[arg(long, default_value_t = u64::MAX)]
    runs: u64,
    /// End after so many seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Take a rule out; can be given several times.
    #[arg(long)]
    without: Vec<Omission>,
    /// How many threads; one for each core otherwise.
    #[arg(long)]
    threads: Option<usize>,
    /// Go on after a finding.
    #[arg(long)]
    keep_going: bool,
    /// Write the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Default)]
struct Tally {
    runs: AtomicU64,
    events: AtomicU64,
    virtual_ms: AtomicU64,
    slowest_ms: AtomicU64,
    violations: AtomicU64,
    stop: AtomicBool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut out = std::io::stdout();
    if let Some(seed) = args.seed {
        let report = run(seed, &args.without, args.trace);
        for line in &report.lines {
            let _ = writeln!(out, "{line}");
        }
        let _ = writeln!(out, "{report}");
        return if report.violation.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let tally = soak(&args);
    let violations = tally.violations.load(Ordering::Relaxed);
    let _ = writeln!(out, "{}", summary(&tally, args.json));
    if violations > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Where seeds begin that no test runs; there are 10¹⁵ of them.
const UNTRIED: u64 = 1_000_000_000_000;

fn untried() -> u64 {
    UNTRIED + RandomState::new().build_hasher().finish() % (1000 * UNTRIED)
}

fn soak(args: &Args) -> Tally {
    let tally = Tally::default();
    let from = args.from.unwrap_or_else(untried);
    let _ = writeln!(std::io::stderr(), "seeds from {from} on; again with --from {from}");
    let next = AtomicU64::new(from);
    let found = Mutex::new(());
    let started = Instant::now();
    let threads =
        args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    while !tally.stop.load(Ordering::Relaxed) && started.elapsed().as_secs() < args.seconds {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed.wrapping_sub(from) >= args.runs {
                            return;
                        }
                        let report = run(seed, &args.without, false);
                        count(&tally, &report);
                        if report.violation.is_some() {
                            let _guard = found.lock();
                            let _ = writeln!(std::io::stderr(), "{report}");
                            if !args.keep_going {
                                tally.stop.store(true, Ordering::Relaxed);
                            }
                        }
                    }
                })
            })
            .collect();
        let mut said = Instant::now();
        while workers.iter().any(|worker| !worker.is_finished()) {
            std::thread::sleep(Duration::from_millis(20));
            if said.elapsed() > Duration::from_secs(5) {
                said = Instant::now();
                let _ = writeln!(std::io::stderr(), "{} s: {}", started.elapsed().as_secs(), summary(&tally, false));
            }
        }
    });
    tally
}

fn count(tally: &Tally, report: &Report) {
    const MS: u64 = 1_000_000;
    tally.runs.fetch_add(1, Ordering::Relaxed);
    tally.events.fetch_add(report.counts.events, Ordering::Relaxed);
    tally.virtual_ms.fetch_add(report.took / MS, Ordering::Relaxed);
    tally.slowest_ms.fetch_max(report.back_in.unwrap_or(0) / MS, Ordering::Relaxed);
    tally.violations.fetch_add(u64::from(report.violation.is_some()), Ordering::Relaxed);
}

fn summary(tally: &Tally, json: bool) -> String {
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (runs, events, violations) = (load(&tally.runs), load(&tally.events), load(&tally.violations));
    let (virtual_ms, slowest_ms) = (load(&tally.virtual_ms), load(&tally.slowest_ms));
    let (hours, hundredths) = (virtual_ms / 3_600_000, virtual_ms / 36_000 % 100);
    if json {
        return format!(
            "{{\"runs\":{runs},\"events\":{events},\"virtual_hours\":{hours}.{hundredths:02},\"slowest_recovery_ms\":{slowest_ms},\"violations\":{violations}}}"
        );
    }
    format!("runs={runs} events={events} virtual_hours={hours}.{hundredths:02} violations={violations}")
}
