use super::*;

mod election;
mod properties;

const MS: u64 = 1_000_000;
const ME: NodeId = NodeId(1);

fn at(ms: u64) -> BootInstant {
    BootInstant::from_nanos((1_000_000 + ms) * MS)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// L = 100 ms, no drift, q = 5 ms.
fn timing() -> LeaseTiming {
    LeaseTiming { lease: ms(100), clock_drift_ppm: 0, queue_time: ms(5) }
}

fn reign(term: u64, node: u64) -> Leadership {
    Leadership { term, node: NodeId(node) }
}

fn voters() -> Vec<BTreeSet<NodeId>> {
    vec![(1..=3).map(NodeId).collect()]
}

fn candidate(term: u64, node: u64) -> HeldVote {
    HeldVote { leadership: reign(term, node), committed: false }
}

fn winner(term: u64, node: u64) -> HeldVote {
    HeldVote { leadership: reign(term, node), committed: true }
}

fn ask(term: u64, node: u64) -> VoteRequest {
    VoteRequest { leadership: reign(term, node), by_transfer_of: None }
}

fn ask_by_transfer_of(from: Leadership, term: u64, node: u64) -> VoteRequest {
    VoteRequest { leadership: reign(term, node), by_transfer_of: Some(from) }
}

fn pristine() -> LeaseGate {
    LeaseGate::new(ME, timing(), HeldVote::default(), true, at(0))
}

fn change_vote(gate: &mut LeaseGate, vote: HeldVote) {
    gate.vote_changing(vote);
    gate.vote_saved(vote);
}

/// Leads term 1 and may arm.
fn leader() -> LeaseGate {
    let mut gate = pristine();
    change_vote(&mut gate, candidate(1, 1));
    change_vote(&mut gate, winner(1, 1));
    gate.entry_applied(reign(1, 1));
    gate.enable(reign(1, 1));
    gate
}

#[test]
fn the_margin_covers_drift_on_both_sides_and_the_queue() {
    let timing = LeaseTiming { lease: ms(500), clock_drift_ppm: 1000, queue_time: ms(5) };
    assert_eq!(timing.margin(), ms(6));
    assert_eq!(timing.voter_lease(), Duration::from_micros(500_500));
    let tiny = LeaseTiming { lease: Duration::from_nanos(1), clock_drift_ppm: 1, queue_time: Duration::ZERO };
    assert_eq!(tiny.margin(), Duration::from_nanos(2), "rounded up");
}

#[test]
fn r1_the_deadline_counts_from_the_send_time_that_a_quorum_acknowledged() {
    let mut gate = leader();
    assert_eq!(gate.arm(&voters(), at(10)), Err(NotArmed::NoQuorum));
    assert!(gate.append_answered(reign(1, 1), NodeId(2), at(10)));
    assert_eq!(gate.arm(&voters(), at(30)), Ok((reign(1, 1), at(105))));
    // Older news is no news, and another leadership's neither.
    assert!(!gate.append_answered(reign(1, 1), NodeId(2), at(9)));
    assert!(!gate.append_answered(reign(2, 1), NodeId(2), at(20)));
    assert!(!gate.append_answered(reign(1, 1), NodeId(1), at(20)));
    assert_eq!(gate.arm(&voters(), at(105)), Err(NotArmed::NoQuorum), "a deadline that is past is none");
}

#[test]
fn r1_what_the_fence_may_be_late_by_is_taken_off_the_own_deadline_and_nothing_else() {
    let mut exact = leader();
    let mut late = leader().with_fence_slack(ms(24));
    for gate in [&mut exact, &mut late] {
        gate.append_answered(reign(1, 1), NodeId(2), at(10));
    }
    let (_, deadline) = exact.arm(&voters(), at(30)).unwrap();
    assert_eq!(late.arm(&voters(), at(30)), Ok((reign(1, 1), deadline - ms(24))));
    assert_eq!(late.arm(&voters(), deadline - ms(24)), Err(NotArmed::NoQuorum));
    // Promises to others, and those of others to this node, are as long as ever.
    assert_eq!((late.timing(), late.campaign_from()), (exact.timing(), exact.campaign_from()));
}

#[test]
fn r1_a_quorum_is_a_majority_of_every_configuration() {
    let mut gate = leader();
    let five: BTreeSet<_> = (1..=5).map(NodeId).collect();
    let old: BTreeSet<_> = [1, 6, 7].map(NodeId).into();
    gate.append_answered(reign(1, 1), NodeId(2), at(20));
    assert_eq!(gate.quorum_sent(std::slice::from_ref(&five), at(30)), None);
    gate.append_answered(reign(1, 1), NodeId(3), at(10));
    assert_eq!(gate.quorum_sent(std::slice::from_ref(&five), at(30)), Some(at(10)));
    assert_eq!(gate.quorum_sent(&[five.clone(), old.clone()], at(30)), None, "joint: both must agree");
    gate.append_answered(reign(1, 1), NodeId(7), at(5));
    assert_eq!(gate.quorum_sent(&[five, old], at(30)), Some(at(5)));
    assert_eq!(gate.quorum_sent(&[[ME].into()], at(30)), Some(at(30)), "a single voter is its own quorum");
    assert_eq!(gate.quorum_sent(&[[NodeId(2), NodeId(3)].into()], at(30)), Some(at(10)), "not a voter itself");
    assert_eq!(gate.quorum_sent(&[], at(30)), None);
}

#[test]
fn r2_nothing_is_armed_before_the_leadership_is_durable_applied_and_enabled() {
    let mut gate = pristine();
    gate.vote_changing(candidate(1, 1));
    gate.vote_changing(winner(1, 1));
    assert_eq!(gate.arm(&voters(), at(1)), Err(NotArmed::NotLeading), "its vote is not durable yet");
    gate.vote_saved(candidate(1, 1));
    assert_eq!(gate.arm(&voters(), at(1)), Err(NotArmed::NotLeading));
    gate.vote_saved(winner(1, 1));
    assert_eq!(gate.arm(&voters(), at(1)), Err(NotArmed::NothingApplied));
    gate.entry_applied(reign(1, 1));
    assert_eq!(gate.arm(&voters(), at(1)), Err(NotArmed::NotEnabled));
    gate.enable(reign(1, 1));
    assert_eq!(gate.arm(&voters(), at(1)), Err(NotArmed::NoQuorum));
    gate.append_answered(reign(1, 1), NodeId(3), at(1));
    assert!(gate.arm(&voters(), at(2)).is_ok());
}

#[test]
fn r2_a_leadership_that_was_won_by_a_durable_vote_waits_for_no_disk() {
    let mut gate = pristine();
    change_vote(&mut gate, candidate(1, 1));
    gate.vote_changing(candidate(1, 1));
    assert_eq!(gate.leading(), None, "not won");
    gate.vote_changing(winner(1, 1));
    assert_eq!(gate.leading(), Some(reign(1, 1)));
    // A late word of the disk takes nothing back, and another's vote ends it.
    gate.vote_saved(candidate(1, 1));
    assert_eq!(gate.leading(), Some(reign(1, 1)));
    gate.vote_changing(candidate(2, 2));
    assert_eq!(gate.leading(), None);
    gate.vote_changing(winner(2, 1));
    assert_eq!(gate.leading(), None, "another leadership, of which no vote is durable");
    // The vote of an earlier process is not won by this one.
    let mut restarted = LeaseGate::new(ME, timing(), candidate(4, 1), false, at(0));
    restarted.vote_changing(winner(4, 1));
    assert_eq!(restarted.leading(), None);
}

#[test]
fn r3_a_restarted_node_is_silent_for_one_lease_and_a_pristine_one_is_not() {
    let mut restarted = LeaseGate::new(ME, timing(), winner(4, 1), false, at(0));
    for request in [ask(9, 2), ask_by_transfer_of(reign(4, 3), 5, 2)] {
        assert_eq!(restarted.check_vote(request, at(99)), Err(Shut::Restarted { remaining: ms(1) }));
        assert_eq!(restarted.check_vote(request, at(100)), Ok(()));
    }
    assert!(restarted.check_campaign(at(99)).is_err());
    assert!(restarted.accept_transfer(reign(4, 2), at(99)).is_err());
    assert_eq!(restarted.campaign_from(), at(100));
    restarted.entry_applied(reign(4, 1));
    assert_eq!(restarted.check_reign(at(200)), Err(NotArmed::NotLeading), "its old leadership does not come back");
    assert_eq!(pristine().check_vote(ask(1, 2), at(0)), Ok(()));
    assert_eq!(pristine().check_campaign(at(0)), Ok(()));
}

#[test]
fn a_voter_refuses_for_one_lease_after_an_append_whatever_its_vote_is_by_then() {
    let mut gate = pristine();
    change_vote(&mut gate, winner(1, 2));
    assert!(gate.append_acknowledged(reign(1, 2), at(50)));
    assert_eq!(gate.check_vote(ask(2, 3), at(149)), Err(Shut::LeaseGranted { leader: reign(1, 2), remaining: ms(1) }));
    // A higher vote that came in another way does not end the promise.
    change_vote(&mut gate, candidate(7, 3));
    assert!(gate.check_vote(ask(8, 3), at(149)).is_err());
    assert!(gate.check_campaign(at(149)).is_err());
    assert_eq!(gate.campaign_from(), at(150));
    assert_eq!(gate.check_vote(ask(8, 3), at(150)), Ok(()));
}

#[test]
fn an_append_is_not_acknowledged_once_the_vote_has_moved_on() {
    let mut gate = pristine();
    gate.vote_changing(candidate(2, 1));
    assert!(!gate.append_acknowledged(reign(1, 2), at(20)), "the leader would count a promise that is none any more");
    assert_eq!(gate.campaign_from(), BootInstant::ZERO);
}

#[test]
fn a_transfer_vote_passes_only_in_the_name_of_the_leader_acknowledged_last() {
    let mut gate = pristine();
    assert!(gate.append_acknowledged(reign(3, 2), at(10)));
    assert_eq!(gate.check_vote(ask_by_transfer_of(reign(3, 2), 4, 3), at(11)), Ok(()));
    assert!(gate.check_vote(ask_by_transfer_of(reign(2, 2), 4, 3), at(11)).is_err());
    // Another leader was elected meanwhile, in the same term: its lease is not the old leader's to give away.
    assert!(gate.append_acknowledged(reign(3, 4), at(12)));
    assert!(gate.check_vote(ask_by_transfer_of(reign(3, 2), 4, 3), at(13)).is_err());
}

#[test]
fn r4_a_new_leader_waits_for_the_lease_that_it_granted_itself() {
    let mut gate = pristine();
    assert!(gate.append_acknowledged(reign(1, 2), at(0)));
    gate.vote_changing(candidate(2, 1));
    assert_eq!(gate.votes_count_from(), at(100));
    assert!(!gate.append_acknowledged(reign(1, 2), at(50)));
    gate.vote_saved(candidate(2, 1));
    // A lone voter wins at once; it holds nothing, all the same.
    change_vote(&mut gate, winner(2, 1));
    gate.entry_applied(reign(2, 1));
    assert_eq!(gate.check_reign(at(60)), Err(NotArmed::OlderLease { remaining: ms(40) }));
    assert_eq!(gate.check_reign(at(100)), Ok(reign(2, 1)));
}

#[test]
fn r4_a_leader_made_by_a_transfer_from_the_leader_it_acknowledged_last_waits_for_queued_frames_only() {
    let mut gate = pristine();
    assert!(gate.append_acknowledged(reign(1, 2), at(0)));
    gate.accept_transfer(reign(1, 2), at(1)).unwrap();
    change_vote(&mut gate, candidate(2, 1));
    assert_eq!(gate.votes_count_from(), BootInstant::ZERO, "to be elected takes time, too");
    change_vote(&mut gate, winner(2, 1));
    gate.entry_applied(reign(2, 1));
    assert_eq!(gate.transfer_of(reign(2, 1)), Some(reign(1, 2)));
    assert_eq!(gate.check_reign(at(2)), Err(NotArmed::OlderLease { remaining: ms(4) }));
    assert_eq!(gate.check_reign(at(6)), Ok(reign(2, 1)));
}

#[test]
fn r6_what_the_leader_that_gave_up_has_queued_is_waited_for_even_by_who_never_acknowledged_it() {
    let mut gate = pristine();
    change_vote(&mut gate, winner(1, 2));
    gate.accept_transfer(reign(1, 2), at(1)).unwrap();
    change_vote(&mut gate, candidate(2, 1));
    assert_eq!(gate.transfer_of(reign(2, 1)), None);
    change_vote(&mut gate, winner(2, 1));
    gate.entry_applied(reign(2, 1));
    assert!(gate.check_reign(at(5)).is_err());
    assert_eq!(gate.check_reign(at(7)), Ok(reign(2, 1)));
}

#[test]
fn r4_the_exemption_is_for_one_candidacy_and_one_leader() {
    // The first candidacy fails; the next one is an ordinary one.
    let mut gate = pristine();
    assert!(gate.append_acknowledged(reign(1, 2), at(0)));
    gate.accept_transfer(reign(1, 2), at(1)).unwrap();
    change_vote(&mut gate, candidate(2, 1));
    change_vote(&mut gate, candidate(3, 1));
    change_vote(&mut gate, winner(3, 1));
    gate.entry_applied(reign(3, 1));
    assert!(gate.check_reign(at(3)).is_err());
    // A transfer from another leader than the one acknowledged last.
    let mut gate = pristine();
    assert!(gate.append_acknowledged(reign(2, 3), at(0)));
    gate.accept_transfer(reign(1, 2), at(1)).unwrap();
    change_vote(&mut gate, candidate(3, 1));
    change_vote(&mut gate, winner(3, 1));
    gate.entry_applied(reign(3, 1));
    assert!(gate.check_reign(at(2)).is_err());
    // A vote for somebody else in between.
    let mut gate = pristine();
    assert!(gate.append_acknowledged(reign(1, 2), at(0)));
    gate.accept_transfer(reign(1, 2), at(1)).unwrap();
    change_vote(&mut gate, candidate(2, 3));
    change_vote(&mut gate, candidate(3, 1));
    change_vote(&mut gate, winner(3, 1));
    gate.entry_applied(reign(3, 1));
    assert!(gate.check_reign(at(2)).is_err());
}

#[test]
fn r5_a_used_lease_keeps_the_gate_shut_even_after_a_step_down() {
    let mut gate = leader();
    gate.append_answered(reign(1, 1), NodeId(2), at(20));
    gate.arm(&voters(), at(21)).unwrap();
    change_vote(&mut gate, candidate(5, 3));
    assert_eq!(gate.check_vote(ask(6, 2), at(119)), Err(Shut::LeaseUsed { remaining: ms(1) }));
    assert!(gate.check_vote(ask_by_transfer_of(reign(5, 3), 6, 2), at(119)).is_err());
    assert!(gate.check_campaign(at(119)).is_err());
    assert!(gate.accept_transfer(reign(5, 3), at(119)).is_err());
    assert_eq!(gate.check_vote(ask(6, 2), at(120)), Ok(()));
}

#[test]
fn r5_a_vote_or_candidacy_voids_older_acknowledgements() {
    let mut gate = leader();
    gate.append_answered(reign(1, 1), NodeId(2), at(20));
    gate.vote_changing(candidate(2, 3));
    assert_eq!(gate.arm(&voters(), at(21)), Err(NotArmed::NotLeading));
    // Elected again: the acknowledgements of the first reign do not count, nor does its enabling.
    change_vote(&mut gate, candidate(3, 1));
    change_vote(&mut gate, winner(3, 1));
    gate.entry_applied(reign(3, 1));
    assert_eq!(gate.arm(&voters(), at(22)), Err(NotArmed::NotEnabled));
    gate.enable(reign(3, 1));
    assert_eq!(gate.arm(&voters(), at(22)), Err(NotArmed::NoQuorum));
}

#[test]
fn nothing_is_armed_while_a_vote_is_in_flight() {
    let mut gate = leader();
    gate.append_answered(reign(1, 1), NodeId(2), at(20));
    gate.begin_vote(ask(2, 3), at(21)).unwrap();
    assert_eq!(gate.arm(&voters(), at(22)), Err(NotArmed::VoteInFlight));
    gate.end_vote();
    assert!(gate.arm(&voters(), at(23)).is_ok());
    assert!(gate.begin_vote(ask(2, 3), at(24)).is_err());
    assert!(gate.arm(&voters(), at(25)).is_ok(), "a refused vote is not in flight");
}

#[test]
fn r6_a_resigned_leadership_never_arms_again_and_lets_its_successor_stand_at_once() {
    let mut gate = leader();
    gate.append_answered(reign(1, 1), NodeId(2), at(20));
    gate.arm(&voters(), at(21)).unwrap();
    gate.released(at(21));
    assert!(
        gate.check_vote(ask_by_transfer_of(reign(1, 1), 2, 2), at(22)).is_err(),
        "released counts only after resigning"
    );
    assert!(gate.resign(reign(1, 1)));
    gate.append_answered(reign(1, 1), NodeId(2), at(30));
    assert_eq!(gate.arm(&voters(), at(31)), Err(NotArmed::Resigned));
    assert!(
        gate.check_vote(ask_by_transfer_of(reign(1, 1), 2, 2), at(32)).is_err(),
        "the deadline still runs in the kernel"
    );
    assert!(gate.resigned() && !gate.may_transfer(reign(1, 1)));
    gate.released(at(32));
    assert!(gate.may_transfer(reign(1, 1)) && !gate.may_transfer(reign(0, 1)));
    let shut = gate.check_vote(ask_by_transfer_of(reign(1, 1), 2, 2), at(36)).unwrap_err();
    assert!(matches!(shut, Shut::Queued { .. }), "what it sent may be queued yet: {shut}");
    assert_eq!(gate.accept_transfer(reign(1, 1), at(36)), Ok(()), "what itself has queued is no other's");
    assert_eq!(gate.check_vote(ask_by_transfer_of(reign(1, 1), 2, 2), at(38)), Ok(()));
}

#[test]
fn a_stale_save_does_not_bring_an_old_vote_back() {
    let mut gate = leader();
    gate.vote_changing(candidate(2, 3));
    gate.vote_saved(winner(1, 1));
    assert_eq!(gate.leading(), None);
}
