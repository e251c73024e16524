//! The observer: sends the probes and the questions, collects every frame that speaks for a VIP, and answers queries
//! about what it saw. It knows of the daemons nothing but their packets.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::capture::Capture;
use crate::clock::Stamp;
use crate::interrupt;
use crate::judge::{Answer, QUIET, Verdict, judge_with};
use crate::netns::Netns;
use crate::outage::{Outage, PATIENCE, longest_outage};
use crate::prober::{ASK_INTERVAL, Asker, EchoSender, PROBE_INTERVAL, SWEEP_INTERVAL, every};
use crate::topology::{HostId, Network};

/// How often arrived frames are collected. Their times are the kernel's, so nothing depends on this but memory.
const COLLECT_INTERVAL: Duration = Duration::from_millis(2);
/// Answers of one batch may be this much out of order with those of another.
const DISORDER: Duration = Duration::from_millis(100);

/// What was seen, since the observer started or was told to forget.
#[derive(Debug, Default)]
struct Record {
    answers: Vec<Answer>,
    forgotten: usize,
    sent: HashMap<IpAddr, Vec<Stamp>>,
}

impl Record {
    /// How many answers there have ever been.
    const fn arrived(&self) -> usize {
        self.forgotten + self.answers.len()
    }
}

/// A running observer. Dropping it stops its threads.
#[derive(Debug)]
pub struct Observer {
    record: Arc<Mutex<Record>>,
    vips: Vec<IpAddr>,
    probed: usize,
    stop: Arc<AtomicBool>,
    paused: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Observer {
    /// Starts to watch `vips`. The first `probed` of them get echo requests and frequent questions, the rest are
    /// only swept over by questions.
    ///
    /// # Errors
    /// When the sockets cannot be opened.
    pub fn start(network: &Network, vips: &[IpAddr], probed: usize) -> Result<Self> {
        let (client, watch) = (network.host(HostId::Client), network.host(HostId::Watch));
        let captures = vec![(HostId::Client, Capture::open(client)?), (HostId::Watch, Capture::open(watch)?)];
        Self::start_at(client, watch, captures, vips, probed)
    }

    /// Starts to watch `vips` from the host that this program is on, and probes all of them. That host is the client. The
    /// questions are asked in the name of a watcher that does not exist: the switch brings the answers here, the
    /// capture sees them, and the kernel takes no notice of frames to another MAC address.
    ///
    /// # Errors
    /// As [`Observer::start`].
    pub fn start_here(vips: &[IpAddr]) -> Result<Self> {
        let here = Netns::here();
        let captures = vec![(HostId::Watch, Capture::open(&here)?)];
        Self::start_at(&here, &here, captures, vips, vips.len())
    }

    fn start_at(
        client: &Netns,
        watch: &Netns,
        captures: Vec<(HostId, Capture)>,
        vips: &[IpAddr],
        probed: usize,
    ) -> Result<Self> {
        let record = Arc::new(Mutex::new(Record::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let probed_vips = &vips[..probed.min(vips.len())];
        let mut asker = Asker::open(watch, probed_vips, &vips[probed_vips.len()..])?;
        let echo: Result<Vec<_>> = probed_vips.iter().map(|&vip| Ok((vip, EchoSender::open(client, vip)?))).collect();
        let (vips, probed) = (vips.to_vec(), probed_vips.len());
        let paused = Arc::new(AtomicBool::new(false));
        let mut observer = Self { record, vips, probed, stop, paused, threads: Vec::new() };
        observer.spawn_collector(captures)?;
        observer.spawn_prober(echo?)?;
        observer.spawn_sender("asker", ASK_INTERVAL, move || asker.turn())?;
        Ok(observer)
    }

    /// The VIPs that are watched.
    #[must_use]
    pub fn vips(&self) -> &[IpAddr] {
        &self.vips
    }

    /// Those of them that get echo requests.
    #[must_use]
    pub fn probed(&self) -> &[IpAddr] {
        &self.vips[..self.probed]
    }

    /// Asks nobody anything until [`Observer::resume`]: several labs on one machine disturb each other less. What was seen
    /// before, and what comes unasked, stays. A judgement needs a second of questions before it.
    pub fn pause(&self) {
        self.paused.store(true, Ordering::Relaxed);
    }

    /// Asks again.
    pub fn resume(&self) {
        self.paused.store(false, Ordering::Relaxed);
    }

    /// Every frame for a VIP since `since`, in order of arrival.
    #[must_use]
    pub fn answers(&self, since: Stamp) -> Vec<Answer> {
        let mut answers: Vec<Answer> = {
            let record = self.lock();
            let recent = record.answers.iter().rev().take_while(|answer| answer.at + DISORDER >= since);
            recent.filter(|answer| answer.at >= since).copied().collect()
        };
        answers.sort_by_key(|answer| answer.at);
        answers
    }

    /// Who has spoken for `vip` since `since`.
    #[must_use]
    pub fn holders(&self, vip: IpAddr, since: Stamp) -> BTreeSet<HostId> {
        self.answers(since).iter().filter(|answer| answer.vip == vip).map(|answer| answer.host).collect()
    }

    /// The judgement over everything since `since`.
    #[must_use]
    pub fn verdict(&self, since: Stamp) -> Verdict {
        judge_with(&self.answers(since), |vip| if self.probed().contains(&vip) { QUIET } else { SWEEP_INTERVAL * 3 })
    }

    /// The longest time between `from` and `to` in which a probed VIP gave no answer to the client.
    #[must_use]
    pub fn outage(&self, vip: IpAddr, from: Stamp, to: Stamp) -> Outage {
        let answered: HashSet<Stamp> = self
            .answers(from)
            .iter()
            .filter(|answer| answer.vip == vip)
            .filter_map(|answer| answer.echo_sent.filter(|&sent| answer.at.since(sent) <= PATIENCE))
            .collect();
        let sent: Vec<Stamp> = {
            let record = self.lock();
            let all = record.sent.get(&vip).map_or(&[][..], Vec::as_slice);
            all[all.partition_point(|&probe| probe < from)..].to_vec()
        };
        longest_outage(&sent, &answered, from, to)
    }

    /// Waits until `seen` says yes. It is called again and again with what has arrived for any VIP since the call before,
    /// beginning at `since`.
    ///
    /// # Errors
    /// When that does not happen in time, or at an interrupt.
    pub fn wait(
        &self,
        what: &str,
        since: Stamp,
        timeout: Duration,
        mut seen: impl FnMut(&[Answer]) -> bool,
    ) -> Result<()> {
        let deadline = Stamp::now() + timeout;
        // What arrives between these two lines is seen twice, which does no harm; the other order would lose it.
        let mut read = self.lock().arrived();
        let mut fresh = self.answers(since);
        while !seen(&fresh) {
            if Stamp::now() > deadline {
                bail!("{what}: not seen within {timeout:?}");
            }
            interrupt::sleep(Duration::from_millis(5))?;
            let record = self.lock();
            let known = read.saturating_sub(record.forgotten).min(record.answers.len());
            fresh = record.answers[known..].iter().filter(|answer| answer.at >= since).copied().collect();
            read = record.arrived();
        }
        Ok(())
    }

    /// Drops what was seen before `before`: a long run would fill the memory.
    pub fn forget(&self, before: Stamp) {
        let mut record = self.lock();
        let old = record.answers.iter().position(|answer| answer.at >= before).unwrap_or(record.answers.len());
        record.answers.drain(..old);
        record.forgotten += old;
        for sent in record.sent.values_mut() {
            sent.retain(|&probe| probe >= before);
        }
    }

    fn spawn_collector(&mut self, mut captures: Vec<(HostId, Capture)>) -> Result<()> {
        let vips: HashSet<IpAddr> = self.vips.iter().copied().collect();
        let record = Arc::clone(&self.record);
        let mut batch = Vec::new();
        self.spawn("collector", COLLECT_INTERVAL, move || {
            for (seen_at, capture) in &mut captures {
                // A failing socket shows as an outage of every VIP, which no run passes.
                let _ = capture.drain(|at, claim| {
                    // A frame to everybody reaches both hosts: the watcher counts it.
                    let seen_twice = claim.to_group && *seen_at == HostId::Client;
                    if vips.contains(&claim.address) && !seen_twice {
                        let host = HostId::from_mac(claim.mac);
                        let (vip, kind, echo_sent) = (claim.address, claim.kind, claim.echo_sent);
                        batch.push(Answer { at, vip, host, kind, echo_sent });
                    }
                });
            }
            // Never wait for a reader: what cannot be handed over now goes with the next turn.
            if let Ok(mut record) = record.try_lock() {
                record.answers.append(&mut batch);
            }
        })
    }

    fn spawn_prober(&mut self, mut echo: Vec<(IpAddr, EchoSender)>) -> Result<()> {
        let record = Arc::clone(&self.record);
        let mut batch = Vec::new();
        self.spawn_sender("prober", PROBE_INTERVAL, move || {
            for (vip, sender) in &mut echo {
                batch.push((*vip, sender.send()));
            }
            if let Ok(mut record) = record.try_lock() {
                for (vip, sent) in batch.drain(..) {
                    record.sent.entry(vip).or_default().push(sent);
                }
            }
        })
    }

    fn spawn_sender(&mut self, name: &str, interval: Duration, mut turn: impl FnMut() + Send + 'static) -> Result<()> {
        let paused = Arc::clone(&self.paused);
        self.spawn(name, interval, move || {
            if !paused.load(Ordering::Relaxed) {
                turn();
            }
        })
    }

    fn spawn(&mut self, name: &str, interval: Duration, turn: impl FnMut() + Send + 'static) -> Result<()> {
        let stop = Arc::clone(&self.stop);
        let body = move || every(interval, &stop, turn);
        self.threads.push(std::thread::Builder::new().name(name.into()).spawn(body)?);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
