//! A whole cluster in one thread: the real machines of vip-core (gate, agent, replicated state) around a model of
//! openraft, stores, kernels and a network, on virtual clocks, with everything that can go wrong drawn from one seed. A
//! judge looks after every event. See README.md in this folder.

mod daemon;
mod dice;
mod driver;
mod engine;
mod faults;
mod host;
mod message;
pub mod omission;
mod oracle;
mod panic;
pub mod plan;
mod raft;
pub mod script;
mod stall;
mod start;
mod store;
mod trace;
mod world;

use std::fmt;

use dice::Dice;
use omission::Omission;
use plan::{MS, Nanos, Plan};
use trace::Trace;
pub use world::Counts;
use world::World;

/// More events than any run should need.
const EVENTS: u64 = 2_000_000;

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// What was taken out.
    pub without: Vec<Omission>,
    /// What was found, if anything.
    pub violation: Option<String>,
    /// The same for the same run.
    pub hash: u64,
    /// How much happened.
    pub counts: Counts,
    /// How long it took, in true time of the simulated world.
    pub took: Nanos,
    /// How long after healing every VIP was answered.
    pub back_in: Option<Nanos>,
    /// What happened, where that was asked for.
    pub lines: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { events, deadlines, elections, transfers, acquired, faults, stalls } = self.counts;
        writeln!(
            f,
            "seed {}: {events} events in {} ms, {faults} faults, {stalls} stalls, {elections} elections, {transfers} transfers, {deadlines} deadlines, {acquired} addresses added, hash {:016x}",
            self.seed,
            self.took / MS,
            self.hash
        )?;
        let Some(violation) = &self.violation else { return write!(f, "nothing found") };
        writeln!(f, "FOUND at {} ms: {violation}", self.took / MS)?;
        write!(f, "repeat: cargo run --manifest-path tests/simulation/Cargo.toml -- --seed {}", self.seed)?;
        for omission in &self.without {
            write!(f, " --without {omission}")?;
        }
        write!(f, " --trace")
    }
}

/// Runs the seed, with the rules of `without` taken out. A panic is a violation like any other.
#[must_use]
pub fn run(seed: u64, without: &[Omission], words: bool) -> Report {
    let mut dice = Dice::new(seed);
    let plan = Plan::draw(&mut dice);
    let mut trace = Trace::new(words);
    trace.line(0, || format!("{plan:?}"));
    let mut world = World::new(plan, dice, without, trace);
    if let Some(panic) = panic::caught(|| world.run_to_the_end()) {
        world.oracle.found(panic);
    }
    world.report(seed, without)
}

impl World {
    /// Until something is found, or all is well after healing.
    fn run_to_the_end(&mut self) {
        loop {
            let more = self.step(self.due);
            if self.counts.events > EVENTS {
                self.oracle.found("the nodes are busy without end".to_owned());
            }
            if self.oracle.violation.is_some() {
                return;
            }
            let look = self.healed.is_some() && (!more || self.counts.events.is_multiple_of(64));
            if look && self.settled() {
                if !self.probe_on() {
                    return self.check_the_end();
                }
            } else if !more {
                return self.too_late();
            }
        }
    }

    /// What came of it.
    fn report(&mut self, seed: u64, without: &[Omission]) -> Report {
        let violation = self.oracle.violation.clone();
        if let Some(violation) = &violation {
            self.trace.line(self.now, || format!("FOUND: {violation}"));
        }
        Report {
            seed,
            without: without.to_vec(),
            violation,
            hash: self.trace.hash(),
            counts: self.counts,
            took: self.now,
            back_in: self.back_in,
            lines: self.trace.take_lines(),
        }
    }
}
