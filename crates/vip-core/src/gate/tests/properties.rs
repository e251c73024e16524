//! Any operations in any order, against a second, plainer account of what the gate has promised.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Operation {
    Acknowledge { term: u64, node: u64 },
    CheckVote { ahead: u64, node: u64, by_transfer: bool },
    BeginVote { ahead: u64, node: u64, by_transfer: bool },
    EndVote,
    AcceptTransfer { older: bool },
    VoteFor { ahead: u64, node: u64 },
    Win,
    SaveStale,
    Apply,
    Answered { peer: u64, ago: u64, older: bool },
    Enable,
    Arm { voters: usize },
    Resign,
    Released,
    Wait(u64),
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation::{
        AcceptTransfer, Acknowledge, Answered, Apply, Arm, BeginVote, CheckVote, Enable, EndVote, Released, Resign,
        SaveStale, VoteFor, Wait, Win,
    };
    prop_oneof![
        3 => (0..4u64, 2..4u64).prop_map(|(term, node)| Acknowledge { term, node }),
        4 => (0..3u64, 2..4u64, any::<bool>())
            .prop_map(|(ahead, node, by_transfer)| CheckVote { ahead, node, by_transfer }),
        2 => (0..3u64, 2..4u64, any::<bool>())
            .prop_map(|(ahead, node, by_transfer)| BeginVote { ahead, node, by_transfer }),
        3 => Just(EndVote),
        2 => prop::bool::weighted(0.3).prop_map(|older| AcceptTransfer { older }),
        3 => (0..3u64, 1..4u64).prop_map(|(ahead, node)| VoteFor { ahead, node }),
        6 => Just(Win),
        1 => Just(SaveStale),
        6 => Just(Apply),
        10 => (1..6u64, 0..150u64, prop::bool::weighted(0.1))
            .prop_map(|(peer, ago, older)| Answered { peer, ago, older }),
        6 => Just(Enable),
        12 => (0..4usize).prop_map(|voters| Arm { voters }),
        1 => Just(Resign),
        1 => Just(Released),
        8 => (0..60u64).prop_map(Wait),
    ]
}

/// Single, three, five, and a joint configuration.
fn configurations() -> [Vec<BTreeSet<NodeId>>; 4] {
    let nodes = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<BTreeSet<_>>();
    [
        vec![nodes(&[1])],
        vec![nodes(&[1, 2, 3])],
        vec![nodes(&[1, 2, 3, 4, 5])],
        vec![nodes(&[1, 2, 3]), nodes(&[3, 4, 5])],
    ]
}

/// What was promised, written down beside the gate.
struct Ledger {
    gate: LeaseGate,
    now: BootInstant,
    silent_until: BootInstant,
    vote: HeldVote,
    older_vote: HeldVote,
    acknowledged: Option<(Leadership, BootInstant)>,
    /// What each peer answered of the present vote's leadership, by the send time.
    answers: BTreeSet<(NodeId, BootInstant)>,
    applied: Option<Leadership>,
    enabled: Option<Leadership>,
    resigned: Option<Leadership>,
    votes_in_flight: u32,
    transfer_from: Option<Leadership>,
    transfer_at: BootInstant,
    /// Until when R4 forbids anything.
    hold_from: BootInstant,
    /// The newest S behind a deadline that may still be in the kernel, and that deadline.
    armed: Option<(BootInstant, BootInstant)>,
    /// Until when frames of a lease that was given up may be queued.
    queued_until: BootInstant,
}

impl Ledger {
    fn new(pristine: bool) -> Self {
        let now = at(0);
        let vote = HeldVote::default();
        Self {
            gate: LeaseGate::new(ME, drifting(), vote, pristine, now),
            now,
            silent_until: if pristine { BootInstant::ZERO } else { now + drifting().voter_lease() },
            vote,
            older_vote: vote,
            acknowledged: None,
            answers: BTreeSet::new(),
            applied: None,
            enabled: None,
            resigned: None,
            votes_in_flight: 0,
            transfer_from: None,
            transfer_at: BootInstant::ZERO,
            hold_from: BootInstant::ZERO,
            armed: None,
            queued_until: BootInstant::ZERO,
        }
    }

    fn leads(&self) -> bool {
        self.vote.committed && self.vote.leadership.node == ME
    }

    fn request(&self, ahead: u64, node: u64, by_transfer: bool) -> VoteRequest {
        // In the name of one who may or may not be the one acknowledged last.
        let from = if ahead.is_multiple_of(2) { self.older_vote.leadership } else { self.vote.leadership };
        let by_transfer_of = by_transfer.then_some(from);
        VoteRequest { leadership: reign(self.vote.leadership.term + ahead, node), by_transfer_of }
    }

    fn may_vote(&self, request: VoteRequest) -> bool {
        let by_leader = |leader: Leadership| request.by_transfer_of == Some(leader);
        self.own_lease_is_over()
            && self.now >= self.queued_until
            && self
                .acknowledged
                .is_none_or(|(leader, since)| self.now >= since + drifting().voter_lease() || by_leader(leader))
    }

    fn own_lease_is_over(&self) -> bool {
        self.now >= self.silent_until && self.armed.is_none_or(|(sent, _)| self.now >= sent + drifting().lease)
    }

    /// S, found by trying every send time: the newest by which a majority of each configuration had been asked.
    fn quorum_sent(&self, voters: &[BTreeSet<NodeId>]) -> Option<BootInstant> {
        let by =
            |voter: &NodeId, sent| *voter == ME || self.answers.iter().any(|(peer, at)| peer == voter && *at >= sent);
        let quorum =
            |sent| voters.iter().all(|config| config.iter().filter(|voter| by(voter, sent)).count() * 2 > config.len());
        self.answers.iter().map(|(_, sent)| *sent).chain([self.now]).filter(|sent| quorum(*sent)).max()
    }

    fn vote_for(&mut self, vote: HeldVote) {
        if vote <= self.vote {
            return;
        }
        self.older_vote = self.vote;
        if vote.leadership != self.vote.leadership {
            self.answers.clear();
            let from = self.transfer_from.take();
            let asked_by_last = from.is_some() && from == self.acknowledged.map(|(leader, _)| leader);
            let queued = from.map_or(BootInstant::ZERO, |_| self.transfer_at + queue_empties());
            let granted = match self.acknowledged {
                Some((_, since)) if !asked_by_last => since + drifting().voter_lease(),
                Some(_) | None => BootInstant::ZERO,
            };
            self.hold_from = queued.max(granted);
        }
        self.vote = vote;
        self.gate.vote_changing(vote);
        if vote.leadership == self.older_vote.leadership {
            // Won by a vote that is durable.
            assert_eq!(self.gate.leading(), Some(vote.leadership).filter(|by| by.node == ME));
        } else {
            assert_eq!(self.gate.leading(), None, "not before it is durable");
            assert!(self.gate.arm(&configurations()[0], self.now).is_err(), "nothing old arms after a vote changed");
        }
        self.gate.vote_saved(vote);
    }

    fn arm(&mut self, voters: &[BTreeSet<NodeId>]) {
        let current = Some(self.vote.leadership);
        let sent = self.quorum_sent(voters);
        let deadline = sent.map(|sent| sent + drifting().lease - drifting().margin());
        let may = self.leads()
            && self.applied == current
            && self.enabled == current
            && self.resigned < current
            && self.votes_in_flight == 0
            && self.now >= self.hold_from
            && deadline.is_some_and(|deadline| deadline > self.now);
        match self.gate.arm(voters, self.now) {
            Ok((leadership, armed)) => {
                assert!(may, "armed {leadership} until {armed}, which nothing allows");
                assert_eq!((Some(leadership), Some(armed)), (current, deadline));
                let sent = sent.max(self.armed.map(|(sent, _)| sent)).unwrap();
                self.armed = Some((sent, armed));
            }
            Err(why) => assert!(!may, "{why}, but nothing speaks against it"),
        }
    }

    /// Only the append of a leader with the vote gets so far.
    fn acknowledge(&mut self, ahead: u64, node: u64) {
        let leader = HeldVote { leadership: reign(self.vote.leadership.term + ahead, node), committed: true };
        if leader >= self.vote {
            self.vote_for(leader);
            assert!(self.gate.append_acknowledged(leader.leadership, self.now));
            self.acknowledged = Some((leader.leadership, self.now));
        }
    }

    fn operate(&mut self, operation: Operation) {
        match operation {
            Operation::Acknowledge { term, node } => self.acknowledge(term, node),
            Operation::CheckVote { ahead, node, by_transfer } => {
                let request = self.request(ahead, node, by_transfer);
                assert_eq!(self.gate.check_vote(request, self.now).is_ok(), self.may_vote(request), "{request:?}");
            }
            Operation::BeginVote { ahead, node, by_transfer } => {
                let request = self.request(ahead, node, by_transfer);
                let begun = self.gate.begin_vote(request, self.now).is_ok();
                assert_eq!(begun, self.may_vote(request), "{request:?}");
                self.votes_in_flight += u32::from(begun);
            }
            Operation::EndVote => {
                if self.votes_in_flight > 0 {
                    self.votes_in_flight -= 1;
                    self.gate.end_vote();
                }
            }
            Operation::AcceptTransfer { older } => {
                let from = if older { self.older_vote.leadership } else { self.vote.leadership };
                let accepted = self.gate.accept_transfer(from, self.now).is_ok();
                assert_eq!(accepted, self.own_lease_is_over());
                if accepted {
                    self.transfer_from = Some(from);
                    self.transfer_at = self.now;
                }
            }
            Operation::VoteFor { ahead, node } => {
                self.vote_for(candidate(self.vote.leadership.term + ahead, node));
            }
            Operation::Win => {
                if self.vote.leadership.node == ME {
                    self.vote_for(HeldVote { committed: true, ..self.vote });
                }
            }
            Operation::SaveStale => self.gate.vote_saved(self.older_vote),
            Operation::Apply => {
                self.gate.entry_applied(self.vote.leadership);
                self.applied = Some(self.vote.leadership);
            }
            Operation::Answered { peer, ago, older } => {
                let leadership = if older { self.older_vote.leadership } else { self.vote.leadership };
                let sent = self.now - ms(ago);
                self.gate.append_answered(leadership, NodeId(peer), sent);
                if leadership == self.vote.leadership && NodeId(peer) != ME {
                    self.answers.insert((NodeId(peer), sent));
                }
            }
            Operation::Enable => {
                self.gate.enable(self.vote.leadership);
                self.enabled = Some(self.vote.leadership);
            }
            Operation::Arm { voters } => self.arm(&configurations()[voters]),
            Operation::Resign => {
                assert_eq!(self.gate.resign(self.vote.leadership), self.leads());
                self.resigned = self.resigned.max(Some(self.vote.leadership));
            }
            Operation::Released => {
                // The kernel's deadline is zeroed only after resigning.
                if self.leads() && self.resigned >= Some(self.vote.leadership) {
                    self.gate.released(self.now);
                    self.armed = None;
                    self.queued_until = self.now + queue_empties();
                }
            }
            Operation::Wait(length) => self.now = self.now + ms(length),
        }
    }

    fn check(&self) {
        let may_stand = self.gate.check_campaign(self.now).is_ok();
        assert_eq!(may_stand, self.now >= self.gate.campaign_from(), "the gate foretells when a node may stand");
        if self.armed.is_some_and(|(_, deadline)| self.now < deadline) {
            assert!(!may_stand, "stands while its own lease runs");
            for by_transfer in [false, true] {
                let request = self.request(1, 2, by_transfer);
                assert!(self.gate.check_vote(request, self.now).is_err(), "votes while its own lease runs");
            }
        }
        assert_eq!(self.gate.leading(), self.leads().then_some(self.vote.leadership));
    }
}

/// L = 100 ms, r = 1 %, q = 5 ms: g = 7 ms, and a voter counts 101 ms.
fn drifting() -> LeaseTiming {
    LeaseTiming { lease: ms(100), clock_drift_ppm: 10_000, queue_time: ms(5) }
}

/// q·(1 + r).
fn queue_empties() -> Duration {
    drifting().queue_time + drifting().drift_over(drifting().queue_time)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn the_gate_keeps_every_promise(
        pristine in any::<bool>(),
        operations in prop::collection::vec(operation(), 0..100),
    ) {
        let mut ledger = Ledger::new(pristine);
        for operation in operations {
            ledger.operate(operation);
            ledger.check();
        }
    }
}
