//! The observer on its own, for a cluster that something else laid out: from inside one host on the VIPs' network, told
//! by lines on standard input what to report, as JSON lines on standard output.
//!
//! ```text
//! peek            what was seen since the last judgement
//! judge [LABEL]   the same, and the next window begins
//! ```
//!
//! The window is judged from a second before its beginning, so that nothing hides at the seam.

use std::collections::BTreeSet;
use std::io::BufRead;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::clock::{Stamp, millis};
use crate::interrupt;
use crate::judge::Overlap;
use crate::observer::Observer;
use crate::outage::PATIENCE;
use crate::report::{Turn, print};
use crate::topology::HostId;

/// Who spoke this recently holds the VIP now: twenty questions.
const RECENT: Duration = Duration::from_millis(100);
/// See the module's description.
const SEAM: Duration = Duration::from_secs(1);
/// How long to wait between the end of a window and its judgement: answers may be under way, and on a busy machine the
/// collector may be late. Answers carry the kernel's time, so that waiting changes nothing else.
const SETTLE: Duration = Duration::from_millis(50);
/// How soon an interrupt is noticed.
const STEP: Duration = Duration::from_millis(50);

/// What one window says. Times of events are milliseconds from its beginning.
#[derive(Debug, Serialize)]
struct Window<'a> {
    label: &'a str,
    seconds: f64,
    /// The worst over all VIPs; see [`mod@crate::judge`].
    overlap_ms: f64,
    overlaps: Vec<OverlapLine>,
    /// The longest time in which the prober sent nothing: the observer's own noise.
    prober_pause_ms: f64,
    vips: Vec<VipLine>,
}

#[derive(Debug, Serialize)]
struct OverlapLine {
    vip: IpAddr,
    hosts: (HostId, HostId),
    from_ms: f64,
    to_ms: f64,
}

#[derive(Debug, Serialize)]
struct VipLine {
    vip: IpAddr,
    /// Who has spoken for it in the last 100 ms.
    holders: BTreeSet<HostId>,
    /// See [`crate::outage`].
    outage_ms: f64,
    /// Whether it is not answered at the end of the window: the outage may be longer than shown.
    open: bool,
    sent: usize,
    lost: usize,
    /// The holders one after another.
    turns: Vec<Turn>,
}

/// Observes `vips` from the caller's own network namespace until standard input ends; with `every`, standard input is
/// left alone and a window is judged that often.
///
/// # Errors
/// When the sockets cannot be opened, or at an interrupt.
pub fn observe(vips: &[IpAddr], every: Option<Duration>) -> Result<()> {
    let observer = Observer::start_here(vips)?;
    let mut session = Session { observer, from: Stamp::now() };
    match every {
        Some(time) => loop {
            interrupt::sleep(time)?;
            session.judge("")?;
        },
        None => session.serve(&lines_of_stdin()?),
    }
}

/// The lines of standard input, read on a thread of their own: an interrupt must not wait for the next one.
fn lines_of_stdin() -> Result<Receiver<String>> {
    let (sender, lines) = channel();
    std::thread::Builder::new().name("stdin".into()).spawn(move || {
        let mut lines = std::io::stdin().lock().lines();
        while let Some(Ok(line)) = lines.next() {
            if sender.send(line).is_err() {
                return;
            }
        }
    })?;
    Ok(lines)
}

struct Session {
    observer: Observer,
    from: Stamp,
}

impl Session {
    fn serve(&mut self, lines: &Receiver<String>) -> Result<()> {
        loop {
            interrupt::check()?;
            let line = match lines.recv_timeout(STEP) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            match line.split_once(' ').unwrap_or((&line, "")) {
                ("peek", label) => {
                    let to = Stamp::now();
                    interrupt::sleep(SETTLE)?;
                    print(&serde_json::to_string(&self.window(label, to))?);
                }
                ("judge", label) => self.judge(label)?,
                (other, _) => print(&serde_json::json!({ "error": format!("{other}: not peek or judge") }).to_string()),
            }
        }
    }

    fn judge(&mut self, label: &str) -> Result<()> {
        let to = Stamp::now();
        interrupt::sleep(SETTLE)?;
        print(&serde_json::to_string(&self.window(label, to))?);
        // The youngest probes count in no window unless they were answered: the next one begins with them.
        self.from = to - PATIENCE;
        self.observer.forget(self.from - SEAM * 2);
        Ok(())
    }

    fn window<'a>(&self, label: &'a str, to: Stamp) -> Window<'a> {
        let verdict = self.observer.verdict(self.from - SEAM);
        let overlap = |seen: &Overlap| OverlapLine {
            vip: seen.vip,
            hosts: seen.hosts,
            from_ms: seen.from.millis_from(self.from),
            to_ms: seen.to.millis_from(self.from),
        };
        let mut prober_pause_ms = 0.0_f64;
        let vips = self.observer.vips().iter().map(|&vip| {
            let outage = self.observer.outage(vip, self.from, to);
            prober_pause_ms = prober_pause_ms.max(millis(outage.prober_pause));
            let turns = verdict.succession(vip).into_iter().map(|holding| Turn {
                vip,
                host: holding.host,
                first_ms: holding.first.millis_from(self.from),
                last_ms: holding.last.millis_from(self.from),
                announcements: holding.announcements,
            });
            VipLine {
                vip,
                holders: self.observer.holders(vip, to - RECENT),
                outage_ms: millis(outage.longest),
                open: outage.open,
                sent: outage.sent,
                lost: outage.lost,
                turns: turns.collect(),
            }
        });
        Window {
            label,
            seconds: to.since(self.from).as_secs_f64(),
            overlap_ms: millis(verdict.overlap),
            overlaps: verdict.overlaps.iter().map(overlap).collect(),
            vips: vips.collect(),
            prober_pause_ms,
        }
    }
}
