//! How long did a client go without an answer? Pure: from the send times of all probes and of those that were answered.
//!
//! A probe is *answered* when its answer arrived within [`PATIENCE`]; one that waited in a neighbour queue and was answered
//! later is not. An **outage** is the time between the send times of two answered probes with at least one unanswered
//! probe between them: send times, because they do not contain the round trip; and the unanswered probe, because a
//! pause of the prober itself proves nothing about the VIP. The prober's own longest pause is reported beside it.
//! So the resolution is one probe interval, and an outage is at least twice that.

use std::collections::HashSet;
use std::time::Duration;

use crate::clock::Stamp;

/// The latest that an answer may come to count for its probe.
pub const PATIENCE: Duration = Duration::from_millis(10);

/// What a window of probes says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outage {
    /// The longest time without an answer; zero when every probe was answered.
    pub longest: Duration,
    /// The last answered probe before it.
    pub from: Stamp,
    /// Probes sent, and how many of them went unanswered.
    pub sent: usize,
    /// See `sent`.
    pub lost: usize,
    /// Whether the window ends without an answer: the outage may be longer than shown.
    pub open: bool,
    /// The longest time in which the prober itself sent nothing: the observer's own noise.
    pub prober_pause: Duration,
}

/// The longest outage between `from` and `to`. `sent` in order of time; `answered` are the send times of the probes that
/// were answered in time. Probes younger than [`PATIENCE`] at `to` are left out unless they were answered.
#[must_use]
pub fn longest_outage(sent: &[Stamp], answered: &HashSet<Stamp>, from: Stamp, to: Stamp) -> Outage {
    let mut outage = Outage { from, ..Outage::default() };
    let mut last_answered = from;
    let mut lost_since = false;
    let mut last_sent: Option<Stamp> = None;
    for &probe in sent.iter().filter(|&&probe| probe >= from && probe <= to) {
        let was_answered = answered.contains(&probe);
        if !was_answered && probe + PATIENCE > to {
            continue;
        }
        outage.sent += 1;
        outage.prober_pause = outage.prober_pause.max(last_sent.map_or(Duration::ZERO, |last| probe.since(last)));
        last_sent = Some(probe);
        if was_answered {
            if lost_since && probe.since(last_answered) > outage.longest {
                (outage.longest, outage.from) = (probe.since(last_answered), last_answered);
            }
            (last_answered, lost_since) = (probe, false);
        } else {
            outage.lost += 1;
            lost_since = true;
        }
    }
    outage.open = lost_since || outage.sent == 0;
    if outage.open && to.since(last_answered) > outage.longest {
        (outage.longest, outage.from) = (to.since(last_answered), last_answered);
    }
    outage
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(sent: impl IntoIterator<Item = u64>, lost: impl Fn(u64) -> bool) -> Outage {
        let sent: Vec<u64> = sent.into_iter().collect();
        let answered = sent.iter().filter(|&&at| !lost(at)).map(|&at| Stamp::from_millis(at)).collect();
        let sent: Vec<Stamp> = sent.into_iter().map(Stamp::from_millis).collect();
        longest_outage(&sent, &answered, Stamp::from_millis(100), Stamp::from_millis(200))
    }

    #[test]
    fn all_answered_is_no_outage() {
        let outage = run(0..300, |_| false);
        assert_eq!((outage.longest, outage.lost, outage.open), (Duration::ZERO, 0, false));
    }

    #[test]
    fn one_lost_probe_is_two_intervals() {
        assert_eq!(run(0..300, |at| at == 150).longest, Duration::from_millis(2));
    }

    #[test]
    fn the_longest_counts_and_not_the_sum() {
        let outage = run(0..300, |at| (110..115).contains(&at) || (150..170).contains(&at));
        assert_eq!(outage.longest, Duration::from_millis(21));
        assert_eq!(outage.from, Stamp::from_millis(149));
        assert_eq!(outage.lost, 25);
    }

    #[test]
    fn a_pause_of_the_prober_is_not_an_outage() {
        let outage = run((0..140).chain(170..300), |_| false);
        assert_eq!(outage.longest, Duration::ZERO);
        assert_eq!(outage.prober_pause, Duration::from_millis(31));
    }

    #[test]
    fn what_is_outside_the_window_does_not_count() {
        assert_eq!(run(0..300, |at| !(90..=210).contains(&at)).longest, Duration::ZERO);
    }

    #[test]
    fn an_outage_that_does_not_end_is_open() {
        let outage = run(0..300, |at| at >= 160);
        assert!(outage.open);
        assert_eq!(outage.longest, Duration::from_millis(41));
    }

    #[test]
    fn the_youngest_probes_may_still_be_under_way() {
        assert!(!run(0..300, |at| at > 190).open);
    }

    #[test]
    fn no_probe_at_all_is_an_open_outage() {
        let outage = run(0..50, |_| false);
        assert!(outage.open);
        assert_eq!(outage.longest, Duration::from_millis(100));
    }
}
