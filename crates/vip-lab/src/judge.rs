//! Who held a VIP, and did two hosts hold it at once? Pure: from the list of frames that spoke for it.
//!
//! A host *holds* a VIP from its first frame to its last, as long as no silence of [`QUIET`] or more lies between two
//! of them. As everybody is asked every 5 ms, a holder that stays silent for `QUIET` left ten questions unanswered in a row:
//! it had let go. Two holdings of one VIP by different hosts that intersect are an **overlap**. So
//! `A A A B B B` is clean, `A B A B` is not, and `A … B … A` is clean when A was silent for `QUIET` in between, and an
//! overlap as long as B's turn when it was not: strict in the doubtful case.
//!
//! Announcements and plain traffic count like answers: a frame by which a host speaks for the VIP is a claim.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use crate::clock::Stamp;
use crate::topology::HostId;

/// How long a host must say nothing to have let go of a VIP.
pub const QUIET: Duration = Duration::from_millis(50);

/// What one single frame in the middle of another host's holding counts for: its own length in time is zero.
pub const LEAST_OVERLAP: Duration = Duration::from_micros(100);

/// In which way a host spoke for a VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum AnswerKind {
    /// An ARP reply.
    Arp,
    /// A solicited neighbour advertisement.
    Ndp,
    /// An ICMP echo reply.
    Echo,
    /// A gratuitous ARP or an unsolicited neighbour advertisement: nobody asked.
    Announcement,
    /// Any other packet from the address.
    Other,
}

impl AnswerKind {
    /// A short word for it, for people.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Arp => "ARP",
            Self::Ndp => "NDP",
            Self::Echo => "ICMP",
            Self::Announcement => "announced",
            Self::Other => "other",
        }
    }
}

/// One frame by which a host spoke for a VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// When it reached the observer.
    pub at: Stamp,
    /// The address.
    pub vip: IpAddr,
    /// Who sent it.
    pub host: HostId,
    /// In which way.
    pub kind: AnswerKind,
    /// For the answer to one of our probes: when that was sent.
    pub echo_sent: Option<Stamp>,
}

/// One host's time with one VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holding {
    /// The address.
    pub vip: IpAddr,
    /// Who held it.
    pub host: HostId,
    /// Its first frame.
    pub first: Stamp,
    /// Its last frame.
    pub last: Stamp,
    /// How many frames there were.
    pub frames: usize,
    /// How many of them nobody had asked for.
    pub announcements: usize,
}

/// A time in which two hosts held one VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overlap {
    /// The address.
    pub vip: IpAddr,
    /// The two hosts, the one that began earlier first.
    pub hosts: (HostId, HostId),
    /// From when.
    pub from: Stamp,
    /// Until when.
    pub to: Stamp,
}

/// The judgement over a list of answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The longest total time in which one VIP had more than one holder. Zero is the promise.
    pub overlap: Duration,
    /// Every single overlap.
    pub overlaps: Vec<Overlap>,
    /// All holdings, by VIP and then by time.
    pub holdings: Vec<Holding>,
}

impl Verdict {
    /// Whether nowhere and never two hosts held one VIP.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.overlaps.is_empty()
    }

    /// The holders of one VIP one after another; holdings of the same host with nobody in between count as one.
    #[must_use]
    pub fn succession(&self, vip: IpAddr) -> Vec<Holding> {
        let mut turns: Vec<Holding> = Vec::new();
        for holding in self.holdings.iter().filter(|holding| holding.vip == vip) {
            match turns.last_mut() {
                Some(turn) if turn.host == holding.host => {
                    turn.last = turn.last.max(holding.last);
                    turn.frames += holding.frames;
                    turn.announcements += holding.announcements;
                }
                _ => turns.push(*holding),
            }
        }
        turns
    }

    /// The hosts that held one VIP at any time.
    #[must_use]
    pub fn hosts(&self, vip: IpAddr) -> BTreeSet<HostId> {
        self.holdings.iter().filter(|holding| holding.vip == vip).map(|holding| holding.host).collect()
    }
}

/// Judges answers that were asked for every 5 ms.
#[must_use]
pub fn judge(answers: &[Answer]) -> Verdict {
    judge_with(answers, |_| QUIET)
}

/// As [`judge`], with the silence after which a host has let go given for each VIP: a VIP that is asked about less
/// often needs a longer one.
#[must_use]
pub fn judge_with(answers: &[Answer], quiet: impl Fn(IpAddr) -> Duration) -> Verdict {
    let mut frames: BTreeMap<IpAddr, BTreeMap<HostId, Vec<Answer>>> = BTreeMap::new();
    for answer in answers {
        frames.entry(answer.vip).or_default().entry(answer.host).or_default().push(*answer);
    }
    let mut verdict = Verdict::default();
    for (vip, by_host) in frames {
        let mut holdings: Vec<Holding> = by_host.into_values().flat_map(|list| holdings_of(list, quiet(vip))).collect();
        holdings.sort_by_key(|holding| (holding.first, holding.last));
        let overlaps = overlaps_of(&holdings);
        verdict.overlap = verdict.overlap.max(time_covered(&overlaps));
        verdict.overlaps.extend(overlaps);
        verdict.holdings.extend(holdings);
    }
    verdict
}

/// The holdings of one host with one VIP.
fn holdings_of(mut answers: Vec<Answer>, quiet: Duration) -> Vec<Holding> {
    answers.sort_by_key(|answer| answer.at);
    let mut holdings: Vec<Holding> = Vec::new();
    for Answer { at, vip, host, kind, .. } in answers {
        let announced = usize::from(kind == AnswerKind::Announcement);
        match holdings.last_mut() {
            Some(holding) if at.since(holding.last) < quiet => {
                holding.last = at;
                holding.frames += 1;
                holding.announcements += announced;
            }
            _ => holdings.push(Holding { vip, host, first: at, last: at, frames: 1, announcements: announced }),
        }
    }
    holdings
}

/// Every pair of holdings, sorted by their beginning, that share an instant.
fn overlaps_of(holdings: &[Holding]) -> Vec<Overlap> {
    let mut overlaps = Vec::new();
    for (i, one) in holdings.iter().enumerate() {
        for other in holdings[i + 1..].iter().take_while(|other| other.first <= one.last) {
            if other.host != one.host {
                let to = one.last.min(other.last);
                overlaps.push(Overlap { vip: one.vip, hosts: (one.host, other.host), from: other.first, to });
            }
        }
    }
    overlaps
}

/// The length of the union: three hosts at once count once.
fn time_covered(overlaps: &[Overlap]) -> Duration {
    let mut spans: Vec<(Stamp, Stamp)> =
        overlaps.iter().map(|overlap| (overlap.from, overlap.to.max(overlap.from + LEAST_OVERLAP))).collect();
    spans.sort_unstable();
    let mut total = Duration::ZERO;
    let mut covered_to = Stamp::default();
    for (from, to) in spans {
        total += to.since(from.max(covered_to));
        covered_to = covered_to.max(to);
    }
    total
}

#[cfg(test)]
mod tests;
