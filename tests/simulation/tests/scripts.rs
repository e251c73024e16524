//! Counterexamples by hand: the first thing that goes wrong without a rule, in a world in which nothing else does. Each
//! goes well with every rule.

use std::time::Duration;

use vip_core::LeaseTiming;
use vip_core::rules::Rule;
use vip_simulation::omission::{Omission, Part};
use vip_simulation::plan::Plan;
use vip_simulation::script::Script;

/// L = 100 ms.
fn plan() -> Plan {
    Plan::quiet(LeaseTiming {
        lease: Duration::from_millis(100),
        clock_drift_ppm: 1000,
        queue_time: Duration::from_millis(5),
    })
}

fn serving(without: &[Omission]) -> (Script, usize, usize, usize) {
    Script::serving_three(plan(), without)
}

#[track_caller]
fn assert_only_without(without: &[Omission], play: impl Fn(&[Omission]) -> Script) {
    let script = play(&[]);
    assert_eq!(script.violation(), None, "with every rule");
    let mut script = play(without);
    let found = script.violation().map(str::to_owned);
    let lines = script.lines();
    let tail = lines[lines.len().saturating_sub(60)..].join("\n");
    // "token": a new leader owns the VIP by its first entry, moments before it would arm, while the older one answers.
    let says = ["one lease", "state", "token"];
    assert!(
        found.is_some_and(|found| says.iter().any(|says| found.starts_with(says))),
        "nothing is found without {without:?}:\n{tail}"
    );
}

/// R1. V's answers take long, so their receipt says little of when V's promise began.
#[test]
fn r1_receive_time_instead_of_send_time() {
    assert_only_without(&[Omission::Model(Part::SendTime)], |without| {
        let (mut script, leader, voter, third) = serving(without);
        script.cut(leader, third);
        script.slow(voter, leader, 15);
        script.pass_ms(300);
        script.cut_way(leader, voter);
        script.pass_ms(200);
        script
    });
}

/// R3. V acknowledges, is restarted, has forgotten it, and votes for the third while the leader's lease runs.
#[test]
fn r3_a_restarted_voter_votes() {
    assert_only_without(&[Omission::Core(Rule::RestartSilence)], |without| {
        let (mut script, leader, voter, third) = serving(without);
        script.cut(leader, third);
        script.pass_ms(300);
        script.cut(leader, voter);
        script.restart(voter);
        script.pass_ms(300);
        script
    });
}

/// R5. The leader is armed by V's answers; the third, whose promise is long over, has a higher vote. Its reject makes the
/// leader step down at once, and vote it in while its own deadline runs on.
#[test]
fn r5_a_leader_steps_down_and_votes() {
    assert_only_without(&[Omission::Core(Rule::Used)], |without| {
        let (mut script, leader, voter, third) = serving(without);
        script.cut(voter, third);
        script.cut(leader, third);
        script.pass_ms(150);
        assert!(script.stand(third), "its promise is over");
        script.pass_ms(60);
        script.mend(leader, third);
        script.pass_ms(60);
        script.cut(leader, voter);
        script.pass_ms(300);
        script
    });
}

/// R6. Leadership is handed over with the lease in place.
#[test]
fn r6_a_target_is_elected_while_the_lease_runs() {
    let without = [Omission::Model(Part::ResignFirst), Omission::Core(Rule::TransferAfterRelease)];
    assert_only_without(&without, |without| {
        let (mut script, leader, ..) = serving(without);
        script.terminate(leader);
        script.pass_ms(90);
        script
    });
}

/// R7, and R3's exemption. The owner is restarted and would vote at once for one who never acknowledged it: it must not
/// leave its own deadline behind in the kernel. With R3 as it is the restarted one is silent for longer than that.
#[test]
fn r7_a_deadline_of_the_process_before() {
    // Without the wait for the end of that lease, too, which is there for the clients, and comes before all this.
    let at_once = Omission::Model(Part::AwaitPredecessor);
    let without = [at_once, Omission::Core(Rule::RestartSilence), Omission::Model(Part::ZeroAtStart)];
    let play = |without: &[Omission]| {
        let (mut script, leader, voter, third) = serving(without);
        script.cut(leader, third);
        script.cut(voter, third);
        script.pass_ms(300);
        script.mend(leader, third);
        script.cut(leader, voter);
        script.restart(leader);
        // The third stands as soon as the other is there.
        for _ in 0..15 {
            script.stand(third);
            script.pass_ms(1);
        }
        script.pass_ms(300);
        script
    };
    assert_only_without(&without, play);
    assert_eq!(play(&without[..2]).violation(), None, "a zeroed deadline is enough here");
    assert_eq!(play(&without[1..]).violation(), None, "and so is the wait");
    let loose = [at_once, Omission::Model(Part::StrictPristine), Omission::Model(Part::ZeroAtStart)];
    assert_only_without(&loose, play);
    assert_eq!(play(&[loose[0], loose[2]]).violation(), None, "and so is the silence");
}

/// R11. The leader's process stops between computing a deadline and writing it: a
/// time from now on would be counted from the moment it wakes.
#[test]
fn r11_a_time_from_now_on() {
    let play = |without: &[Omission]| {
        let mut script = Script::serving(plan(), without);
        for _ in 0..5 {
            if script.violation().is_some() {
                break;
            }
            let leader = script.leader();
            script.freeze_while_renewing(leader, 130);
            script.pass_ms(400);
        }
        script
    };
    assert_only_without(&[Omission::Model(Part::AbsoluteDeadline)], play);
}

/// R10. A proposal that waited while leadership was lost and won again is appended by another leadership than decided it.
#[test]
fn r10_decided_in_another_leadership() {
    assert_only_without(&[Omission::Core(Rule::AssignByDecider)], |without| {
        let (mut script, ..) = serving(without);
        script.assign_in_another_name();
        script.pass_ms(100);
        script
    });
}

/// Who serves two seconds after the leader was killed and started again, where the disk of the most preferred of the
/// others stands still from its first vote on, or from its first entry as the leader.
fn served_with_a_disk_that_stands_still(with_a_vote: bool, without: &[Omission]) -> Option<usize> {
    let (mut script, first, ..) = serving(without);
    // Not the most preferred of all leads.
    script.restart(first);
    script.pass_ms(1000);
    let (leader, others) = (script.leader(), script.others());
    let (preferred, third) = (others[0], others[1]);
    assert_eq!(preferred, 0);
    script.disk_stands_still(preferred, with_a_vote);
    script.restart(leader);
    script.pass_ms(2000);
    assert_eq!(script.violation(), None);
    assert!(script.disk_stands(preferred));
    [leader, preferred, third].into_iter().find(|node| script.serves(*node)).inspect(|node| {
        assert_eq!(*node == preferred, !with_a_vote, "it has won, or not");
    })
}

/// R2. The first of three wins, and its disk stands still before its first entry, and with it that it won, is durable. The
/// others have that entry, follow it, and elect nobody else.
#[test]
fn r2_a_leader_whose_disk_stands_still() {
    assert!(served_with_a_disk_that_stands_still(false, &[]).is_some());
    assert_eq!(served_with_a_disk_that_stands_still(false, &[Omission::Core(Rule::WonByDurableVote)]), None);
}

/// A candidate whose own vote does not become durable has the others' votes each time that it stands, and is not elected.
#[test]
fn a_candidate_whose_disk_stands_still() {
    assert!(served_with_a_disk_that_stands_still(true, &[]).is_some());
    assert_eq!(served_with_a_disk_that_stands_still(true, &[Omission::Model(Part::StandOnce)]), None);
}
