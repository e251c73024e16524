//! Rules that cover for each other, and mistakes of the past, by hand: what is left out must be seen where its neighbour is
//! left out, too, and not where the neighbour is in force.

use std::time::Duration;

use vip_core::LeaseTiming;
use vip_core::rules::Rule;
use vip_simulation::omission::{Omission, Part};
use vip_simulation::plan::{MS, Plan};
use vip_simulation::script::Script;

const fn core(rule: Rule) -> Omission {
    Omission::Core(rule)
}

const fn model(part: Part) -> Omission {
    Omission::Model(part)
}

/// L = 100 ms, and frames that are queued for 20 ms.
fn plan() -> Plan {
    Plan::quiet(LeaseTiming {
        lease: Duration::from_millis(100),
        clock_drift_ppm: 1000,
        queue_time: Duration::from_millis(20),
    })
}

fn serving(without: &[Omission]) -> (Script, usize, usize, usize) {
    Script::serving_three(plan(), without)
}

#[track_caller]
fn assert_found(without: &[Omission], says: &[&str], play: impl Fn(&[Omission]) -> Script) {
    let mut script = play(without);
    let found = script.violation().map(str::to_owned);
    let lines = script.lines();
    let tail = lines[lines.len().saturating_sub(900)..].join("\n");
    let seen = found.as_ref().is_some_and(|found| says.iter().any(|says| found.starts_with(says)));
    assert!(seen, "not found without {without:?}, but {found:?}:\n{tail}");
}

#[track_caller]
fn assert_nothing(without: &[Omission], play: impl Fn(&[Omission]) -> Script) {
    let mut script = play(without);
    let found = script.violation().map(str::to_owned);
    assert_eq!(found, None, "without {without:?}:\n{}", script.lines().join("\n"));
}

/// `missing` alone is seen.
#[track_caller]
fn assert_seen(missing: Omission, says: &[&str], play: impl Fn(&[Omission]) -> Script) {
    assert_nothing(&[], &play);
    assert_found(&[missing], says, &play);
}

/// `missing` is seen without `neighbour` only, and `neighbour` alone is not missed here.
#[track_caller]
fn assert_masked(missing: Omission, neighbour: Omission, says: &[&str], play: impl Fn(&[Omission]) -> Script) {
    for without in [&[][..], &[missing], &[neighbour]] {
        assert_nothing(without, &play);
    }
    assert_found(&[missing, neighbour], says, &play);
}

/// R4. An entry is on its way to a candidate's disk while it asks whether others would vote for it, and is acknowledged before
/// they have answered: it has their votes while that lease runs. By its first entry it is named the owner at once.
#[test]
fn r4_elected_while_the_lease_that_it_granted_runs() {
    assert_seen(model(Part::CountAfterGrant), &["token", "one lease"], |without| {
        let slow_disks = Plan { disk: (5 * MS, 5 * MS), ..plan() };
        let mut script = Script::serving(slow_disks, without);
        let (leader, others) = (script.leader(), script.others());
        let (candidate, voter) = (others[0], others[1]);
        script.cut_way(leader, candidate);
        script.pass_ms(30);
        script.cut_way(leader, voter);
        script.pass_ms(42);
        script.mend(leader, candidate);
        script.slow(leader, candidate, 10);
        script.declare(leader, "db", 2);
        script.cut_way(leader, candidate);
        // The voter hears of the candidate when its own promise is over, too.
        script.slow(candidate, voter, 42);
        script.pass_ms(18);
        script.slow(candidate, voter, 0);
        script.cut_way(candidate, leader);
        script.pass_ms(80);
        script
    });
}

/// R6. A leader that gave up is asked for its vote by one that it has not asked, and that never heard of it for a lease. What
/// the leader sent before may be queued yet.
#[test]
fn r6_who_gave_up_votes_before_its_frames_have_left() {
    assert_seen(core(Rule::ReleasedQueue), &["one lease"], |without| {
        let (mut script, leader, asked, other) = serving(without);
        script.cut(leader, other);
        script.cut(asked, other);
        script.pass_ms(150);
        script.slow(leader, asked, 500);
        script.terminate(leader);
        assert!(script.pass_until(10, |script| script.hands_over(leader)));
        script.mend(leader, other);
        assert!(script.stand(other), "its promise is over");
        script.pass_ms(60);
        script
    });
}

/// R6. Who is asked to stand was restarted since it last acknowledged anything. It waits for frames of the leader before all
/// the same; so does that leader before it votes, and alone each of the two is enough.
#[test]
fn r6_asked_by_a_leader_that_it_never_followed() {
    let (asked, vote) = (core(Rule::QueueOfAnyone), core(Rule::ReleasedQueue));
    assert_masked(asked, vote, &["one lease"], |without| {
        let (mut script, leader, target, other) = serving(without);
        // The leader hears from before the restart for long enough to take it for alive.
        script.slow(target, leader, 130);
        script.pass_ms(150);
        script.cut_way(leader, target);
        script.carrier(other, false);
        script.restart(target);
        script.pass_ms(122);
        script.slow(target, leader, 0);
        script.terminate(leader);
        assert!(script.pass_until(10, |script| !script.armed(leader)));
        script.mend(leader, target);
        assert!(script.pass_until(10, |script| script.hands_over(leader)), "nobody is asked");
        script.pass_ms(60);
        script
    });
}

/// R2, R3. A candidate is elected while its own vote is not durable, and is killed. It has forgotten that, stands for the same
/// leadership once more, and makes other entries of the same names.
fn elected_twice(first_of_all: bool, without: &[Omission]) -> Script {
    let (mut script, third, candidate, voter) =
        if first_of_all { (Script::beginning(plan(), without), 2, 0, 1) } else { serving(without) };
    for (a, b) in [(third, candidate), (third, voter), (candidate, voter)] {
        script.cut(a, b);
    }
    script.pass_ms(120);
    script.disk_stands_still(candidate, true);
    script.mend(candidate, voter);
    assert!(script.stand(candidate));
    // The voter hears that it stands, and nothing more; the third has what it does as the leader.
    script.cut_way(candidate, voter);
    script.mend(candidate, third);
    script.cut_way(third, candidate);
    script.pass_ms(1);
    script.mend(candidate, third);
    script.pass_ms(50);
    script.declare(candidate, "first", 7);
    script.pass_ms(5);
    script.cut(candidate, third);
    script.cut(candidate, voter);
    script.restart_with_nothing_written(candidate);
    script.pass_ms(if first_of_all { 20 } else { 120 });
    script.mend(candidate, voter);
    // One that asks first keeps a voter without a promise from standing itself.
    if first_of_all {
        script.ask(candidate);
    } else {
        script.stand(candidate);
    }
    script.pass_ms(5);
    script.declare(candidate, "second", 8);
    script.pass_ms(50);
    script.mend(candidate, third);
    script.pass_ms(300);
    script
}

#[test]
fn r2_a_candidate_that_counts_votes_before_its_own_is_durable() {
    assert_seen(model(Part::OwnVoteFirst), &["log", "n1", "n2", "n3", "lost"], |without| elected_twice(false, without));
}

/// A node that lost its first vote of all in a crash is pristine again: silence does not keep it.
#[test]
fn r2_the_first_vote_of_all() {
    let (first, own) = (model(Part::FirstVoteAwaited), model(Part::OwnVoteFirst));
    let says = ["log", "n1", "n2", "n3", "lost"];
    assert_masked(first, own, &says, |without| elected_twice(true, without));
}

/// R3. A leader that gave up is restarted, has forgotten that, leads on, and is acknowledged by a voter that then votes for the
/// successor, whom that very leadership asked.
#[test]
fn r3_a_leadership_of_the_process_before() {
    assert_seen(core(Rule::NoLeaderRestored), &["one lease", "token"], |without| {
        let (mut script, leader, target, voter) = serving(without);
        // Something has to be written for it to be durable that it won.
        script.declare(leader, "db", 2);
        script.pass_ms(100);
        script.slow(target, voter, 30);
        script.cut_way(target, leader);
        script.terminate(leader);
        assert!(script.pass_until(10, |script| script.hands_over(leader)));
        assert!(script.pass_until(10, |script| script.stands(target)));
        script.slow(target, voter, 0);
        script.restart(leader);
        script.pass_ms(150);
        script
    });
}

/// R6. A target hears late that it shall stand: another leader was elected meanwhile. The voter knows by the name of who asked
/// that its promise to the new one stands; and Raft's own rule, that the target's log is older, keeps it out, too.
#[test]
fn r6_a_transfer_vote_in_the_name_of_another() {
    let (name, log) = (core(Rule::TransferName), model(Part::LogRule));
    assert_masked(name, log, &["one lease", "token", "log", "lost", "n1", "n2", "n3"], |without| {
        let (mut script, leader, first, last) = serving(without);
        script.carrier(first, false);
        script.pass_ms(100);
        script.slow(leader, last, 300);
        script.terminate(leader);
        assert!(script.pass_until(10, |script| script.hands_over(leader)));
        script.slow(leader, last, 0);
        script.cut_way(leader, last);
        script.cut_way(first, last);
        script.carrier(first, true);
        assert!(script.pass_until(280, |script| script.serves(first)), "nobody else is elected");
        assert!(script.pass_until(320, |script| script.stands(last)), "it does not stand");
        script.mend(leader, last);
        script.pass_ms(60);
        script
    });
}
