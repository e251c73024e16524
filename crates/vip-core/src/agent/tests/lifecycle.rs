//! The life of a VIP on a node, step by step.

use super::world::*;
use super::*;
use crate::cluster::Command;

const LONG: Duration = Duration::from_secs(100);

#[test]
fn a_takeover_from_nothing_does_everything_once_and_in_order() {
    let mut world = World::new();
    world.declare(&spec("a", "10.0.0.1", "eth0"));
    world.declare(&spec("b", "fd00::1", "front"));
    world.lead(1);
    world.settle();
    assert_eq!(
        world.take_log(),
        ["know 10.0.0.1", "know fd00::1", "enable 1", "propose 1: a<-new b<-new"],
        "nothing is opened before the lease runs"
    );
    world.renew(LONG);
    world.settle();
    assert_eq!(world.take_log(), ["open a@3 b@3", "add a@3 b@3", "announce a@3 b@3"]);
    assert_eq!(world.answered(), [ip("10.0.0.1"), ip("fd00::1")].into());
}

#[test]
fn announcements_come_in_a_burst_and_then_at_the_refresh_interval() {
    let mut world = World::serving(&["a"]);
    world.renew(LONG);
    world.pass(ms(32_000));
    let announced: Vec<_> = world.kernel.announced.iter().map(|(at, _)| world.since_start(*at)).collect();
    assert_eq!(announced, [0, 5, 100, 1000, 11_000, 21_000, 31_000]);
    let refreshed: Vec<_> = world.kernel.refreshed.iter().map(|(at, _)| world.since_start(*at)).collect();
    assert_eq!(refreshed, [20_000]);
}

#[test]
fn announcements_that_a_stall_made_late_are_not_made_up_for() {
    let mut world = World::serving(&["a"]);
    world.now = world.now + ms(500);
    world.input(Input::Tick);
    world.settle();
    assert_eq!(world.take_log(), ["announce a@2"]);
    assert_eq!(world.agent.next_deadline(), Some(world.kernel.announced[0].0 + ms(1000)));
}

#[test]
fn the_fence_is_not_opened_before_all_of_reign_assignment_and_lease_are_there() {
    let mut world = World::new();
    world.declare(&spec("a", "10.0.0.1", "eth0"));
    world.set_reign(Some(Reign { leadership: my_reign(1), ready: false, successor: false }));
    world.settle();
    assert!(world.renew(LONG), "enabled as soon as nothing of an older leadership is held");
    world.settle();
    assert_eq!(world.take_log(), ["know 10.0.0.1", "enable 1"], "nothing is claimed before the reign is ready");
    world.lead(1);
    world.settle();
    assert_eq!(world.take_log(), ["propose 1: a<-new", "open a@2", "add a@2", "announce a@2"]);
}

#[test]
fn a_follower_acts_on_nothing() {
    let mut world = World::new();
    world.declare(&spec("a", "10.0.0.1", "eth0"));
    world.taken_by_other(3);
    world.tell_state();
    world.pass(LONG);
    assert_eq!(world.take_log(), ["know 10.0.0.1"]);
    assert_eq!(world.agent.next_deadline(), None);
}

#[test]
fn an_assignment_of_an_older_reign_is_claimed_anew() {
    let mut world = World::new();
    world.declare(&spec("a", "10.0.0.1", "eth0"));
    let older = my_reign(1);
    let claims = vec![Claim { vip: name("a"), base: None }];
    world.apply(older, Command::Assign { by: older, owner: ME, kind: LeaseKind::Leader, claims });
    world.tell_state();
    world.lead(4);
    world.settle();
    world.renew(LONG);
    world.settle();
    assert_eq!(
        world.take_log(),
        ["know 10.0.0.1", "enable 4", "propose 4: a<-2", "open a@3", "add a@3", "announce a@3"]
    );
}

// ---- the lease ----

#[test]
fn a_lapsed_lease_ends_everything_and_a_new_epoch_begins() {
    let mut world = World::serving(&["a"]);
    world.renew(ms(500));
    world.now = world.now + ms(500);
    world.input(Input::Tick);
    assert_eq!(world.state("a"), HolderState::Fenced);
    assert_eq!(world.answered(), BTreeSet::new());
    world.settle();
    assert_eq!(world.take_log(), ["shut a@2", "remove a@2", "propose 1: a<-2"]);
    assert_eq!(world.state("a"), HolderState::Standby);
    world.renew(LONG);
    world.settle();
    assert_eq!(world.take_log(), ["open a@3", "add a@3", "announce a@3"]);
}

#[test]
fn the_agent_asks_to_be_called_at_the_lease_s_deadline() {
    let mut world = World::serving(&["a"]);
    world.pass(ms(2000));
    world.renew(ms(300));
    assert_eq!(world.agent.next_deadline(), Some(world.now + ms(300)));
    world.pass(ms(299));
    assert_eq!(world.state("a"), HolderState::Active);
    world.pass(ms(1));
    assert_eq!(world.state("a"), HolderState::Standby);
}

#[test]
fn renewals_keep_everything_as_it_is() {
    let mut world = World::serving(&["a"]);
    world.pass(ms(1500));
    world.take_log();
    for _ in 0..50 {
        world.renew(ms(500));
        world.pass(ms(100));
    }
    assert_eq!(world.take_log(), Vec::<String>::new());
    assert_eq!((world.state("a"), world.status("a").epoch), (HolderState::Active, Some(Epoch(2))));
}

#[test]
fn a_renewal_that_comes_just_after_the_deadline_saves_what_was_not_dropped_yet() {
    let mut world = World::serving(&["a"]);
    world.renew(ms(500));
    world.now = world.now + ms(501);
    world.renew(LONG);
    world.settle();
    assert_eq!(world.status("a").epoch, Some(Epoch(2)));
    assert!(!world.take_log().iter().any(|line| line.starts_with("shut")));
}

#[test]
fn a_lease_that_lapses_while_the_fence_is_opened_adds_nothing() {
    let mut world = World::new();
    world.declare(&spec("a", "10.0.0.1", "eth0"));
    world.lead(1);
    world.settle();
    world.renew(ms(100));
    world.do_all();
    world.now = world.now + ms(100);
    world.take_log();
    world.answer(0);
    world.settle();
    assert_eq!(world.take_log(), ["shut a@2", "remove a@2", "propose 1: a<-2"]);
}

// ---- leadership ----

#[test]
fn a_lost_reign_is_served_until_its_deadline() {
    let mut world = World::serving(&["a"]);
    world.renew(ms(500));
    world.set_reign(None);
    world.pass(ms(499));
    assert_eq!(world.state("a"), HolderState::Active);
    world.take_log();
    world.pass(ms(1));
    assert_eq!(world.take_log(), ["shut a@2", "remove a@2"], "and nothing is claimed");
    assert_eq!(world.agent.next_deadline(), None);
}

#[test]
fn the_assignment_of_another_leader_ends_it_at_once() {
    let mut world = World::serving(&["a"]);
    world.set_reign(None);
    world.taken_by_other(2);
    world.tell_state();
    world.settle();
    assert_eq!(world.take_log(), ["shut a@2", "remove a@2"]);
    assert_eq!(world.state("a"), HolderState::Standby);
}

#[test]
fn a_new_reign_is_enabled_only_when_nothing_of_the_old_one_is_held() {
    let mut world = World::serving(&["a"]);
    world.lead(3);
    world.settle();
    assert_eq!(world.take_log(), ["shut a@2", "remove a@2", "enable 3", "propose 3: a<-2"]);
    world.renew(LONG);
    world.settle();
    assert_eq!(world.take_log(), ["open a@3", "add a@3", "announce a@3"]);
}

#[test]
fn a_reign_that_is_reported_again_goes_on() {
    let mut world = World::serving(&["a"]);
    world.set_reign(None);
    world.lead(1);
    world.declare(&spec("b", "10.0.0.2", "eth0"));
    world.settle();
    assert_eq!(world.take_log(), ["know 10.0.0.2", "propose 1: b<-new", "open b@4", "add b@4", "announce b@4"]);
    assert_eq!(world.status("a").epoch, Some(Epoch(2)));
}

#[test]
fn a_reign_that_was_given_up_stays_so_when_it_is_reported_again() {
    let mut world = World::serving(&["a", "b"]);
    world.set_reign(Some(Reign { leadership: my_reign(1), ready: true, successor: true }));
    world.pass(ms(2000));
    world.link("eth0", false);
    world.settle();
    world.set_reign(None);
    world.link("eth0", true);
    world.take_log();
    world.lead(1);
    world.settle();
    assert_eq!(world.take_log(), Vec::<String>::new());
    world.lead(2);
    world.settle();
    assert_eq!(world.take_log(), ["enable 2", "propose 2: a<-3 b<-3"]);
}

// ---- proposals ----

#[test]
fn a_refused_proposal_is_repeated_after_a_while() {
    let mut world = World::new();
    world.declare(&spec("a", "10.0.0.1", "eth0"));
    world.lead(1);
    world.do_all();
    world.take_log();
    world.refuse_proposal();
    world.pass_with(ms(49), World::do_all);
    assert_eq!(world.take_log(), Vec::<String>::new());
    world.pass_with(ms(1), World::do_all);
    assert_eq!(world.take_log(), ["propose 1: a<-new"]);
}

#[test]
fn one_proposal_at_a_time_and_a_new_reign_does_not_wait_for_the_old_answer() {
    let mut world = World::new();
    world.declare(&spec("a", "10.0.0.1", "eth0"));
    world.lead(1);
    world.declare(&spec("b", "10.0.0.2", "eth0"));
    world.do_all();
    assert_eq!(
        world.take_log(),
        ["know 10.0.0.1", "enable 1", "propose 1: a<-new", "know 10.0.0.2"],
        "b waits for the answer"
    );
    world.lead(2);
    world.do_all();
    assert_eq!(world.take_log(), ["enable 2", "propose 2: a<-new b<-new"]);
}

// ---- deleting and declaring ----

#[test]
fn a_deleted_vip_is_given_back_and_forgotten() {
    let mut world = World::serving(&["a", "b"]);
    world.delete("a");
    world.settle();
    assert_eq!(world.take_log(), ["shut a@3", "remove a@3", "forget 10.0.0.1"]);
    assert_eq!(world.agent.status().keys().map(VipName::as_str).collect::<Vec<_>>(), ["b"]);
}

#[test]
fn a_vip_that_was_never_held_is_forgotten_at_once() {
    let mut world = World::new();
    world.declare(&spec("a", "10.0.0.1", "eth0"));
    world.delete("a");
    world.settle();
    assert_eq!(world.take_log(), ["know 10.0.0.1", "forget 10.0.0.1"]);
}

#[test]
fn a_vip_declared_anew_under_another_address_waits_until_the_old_one_is_gone() {
    let mut world = World::serving(&["a"]);
    world.delete("a");
    world.declare(&spec("a", "10.0.0.9", "eth0"));
    world.settle();
    assert_eq!(
        world.take_log(),
        [
            "shut a@2",
            "know 10.0.0.9",
            "remove a@2",
            "forget 10.0.0.1",
            "propose 1: a<-new",
            "open a@5",
            "add a@5",
            "announce a@5"
        ]
    );
    assert_eq!(world.answered(), [ip("10.0.0.9")].into());
}

#[test]
fn an_address_declared_anew_under_another_name_waits_until_the_old_one_is_gone() {
    let mut world = World::serving(&["a"]);
    world.delete("a");
    world.declare(&spec("b", "10.0.0.1", "eth0"));
    // The claim is agreed on before the old name is out of the way.
    world.do_all();
    world.accept_proposal();
    world.settle();
    assert_eq!(
        world.take_log(),
        ["shut a@2", "propose 1: b<-new", "remove a@2", "open b@5", "add b@5", "announce b@5"]
    );
    assert_eq!(world.answered(), [ip("10.0.0.1")].into());
}

#[test]
fn a_vip_declared_anew_on_another_interface_moves_there() {
    let mut world = World::serving(&["a"]);
    world.delete("a");
    world.declare(&spec("a", "10.0.0.1", "front"));
    world.settle();
    assert_eq!(world.kernel.present[&ip("10.0.0.1")].interface, "eth1");
}

// ---- links ----

#[test]
fn a_link_that_goes_down_ends_its_own_vips_only() {
    let mut world = World::serving(&["a"]);
    world.declare(&spec("f", "10.0.1.1", "front"));
    world.settle();
    world.pass(ms(3000));
    world.take_log();
    world.link("eth1", false);
    world.settle();
    assert_eq!(world.take_log(), ["shut f@4", "remove f@4"], "there is nobody to step aside for");
    assert!(!world.agent.can_carry_all());
    assert_eq!((world.state("a"), world.state("f")), (HolderState::Active, HolderState::Standby));
    world.link("eth1", true);
    world.settle();
    assert_eq!(world.take_log(), ["propose 1: f<-4", "open f@5", "add f@5", "announce f@5"]);
}

#[test]
fn a_link_that_goes_down_makes_the_leader_step_aside_for_a_successor() {
    let mut world = World::serving(&["a"]);
    world.declare(&spec("f", "10.0.1.1", "front"));
    world.settle();
    world.pass(ms(3000));
    world.set_reign(Some(Reign { leadership: my_reign(1), ready: true, successor: true }));
    world.take_log();
    world.link("eth1", false);
    world.settle();
    assert_eq!(world.take_log(), ["resign 1", "shut a@2 f@4", "remove a@2 f@4", "transfer"]);
    assert!(!world.renew(LONG));
    world.pass(LONG);
    assert_eq!(world.take_log(), Vec::<String>::new(), "what was given up is not claimed again");
}

#[test]
fn stepping_aside_is_not_repeated_within_its_interval() {
    let with_successor = |term| Some(Reign { leadership: my_reign(term), ready: true, successor: true });
    let mut world = World::new();
    world.declare(&spec("a", "10.0.0.1", "eth0"));
    world.link("eth0", false);
    world.set_reign(with_successor(1));
    world.pass(ms(1999));
    assert_eq!(world.take_log(), ["know 10.0.0.1", "enable 1"], "not just after the start");
    world.pass(ms(1));
    assert_eq!(world.take_log(), ["resign 1", "transfer"]);
    // It comes back, for want of a better one.
    world.set_reign(with_successor(2));
    world.pass(ms(1999));
    assert_eq!(world.take_log(), ["enable 2"]);
    world.pass(ms(1));
    assert_eq!(world.take_log(), ["resign 2", "transfer"]);
}

#[test]
fn the_interface_map_decides_which_link_counts() {
    let mut world = World::new();
    world.link("front", true);
    world.link("eth1", false);
    world.declare(&spec("f", "10.0.1.1", "front"));
    assert!(!world.agent.can_carry_all());
    world.link("eth1", true);
    assert!(world.agent.can_carry_all());
    world.lead(1);
    world.settle();
    world.renew(LONG);
    world.settle();
    assert_eq!(world.kernel.present[&ip("10.0.1.1")].interface, "eth1");
}

// ---- what breaks ----

#[test]
fn a_broken_fence_ends_everything_and_its_repair_brings_it_back() {
    let mut world = World::serving(&["a", "b"]);
    world.fence(false);
    world.settle();
    assert_eq!(world.take_log(), ["shut a@3 b@3", "remove a@3 b@3"]);
    world.pass(LONG);
    assert_eq!(world.take_log(), Vec::<String>::new());
    world.fence(true);
    world.renew(LONG);
    world.settle();
    assert_eq!(world.take_log(), ["propose 1: a<-3 b<-3", "open a@4 b@4", "add a@4 b@4", "announce a@4 b@4"]);
}

#[test]
fn a_lost_address_is_put_back_and_announced_again() {
    let mut world = World::serving(&["a", "b"]);
    world.pass(ms(1500));
    world.take_log();
    world.lose(ip("10.0.0.2"));
    world.tell_lost(ip("10.0.0.2"));
    world.settle();
    assert_eq!(world.take_log(), ["add b@3", "announce b@3"]);
    world.pass(ms(5));
    assert_eq!(world.take_log(), ["announce b@3"], "the whole burst again");
}

#[test]
fn what_is_on_an_interface_with_another_hardware_address_is_announced_again() {
    let mut world = World::serving(&["a", "b"]);
    world.pass(ms(1500));
    world.take_log();
    world.input(Input::Renewed("eth1".to_owned()));
    world.settle();
    assert_eq!(world.take_log(), Vec::<String>::new(), "nothing is on that one");
    world.input(Input::Renewed("eth0".to_owned()));
    world.settle();
    assert_eq!(world.take_log(), ["announce a@3 b@3"]);
    world.pass(ms(5));
    assert_eq!(world.take_log(), ["announce a@3 b@3"], "the whole burst again");
}

#[test]
fn an_address_that_is_lost_while_it_is_added_is_added_again() {
    let mut world = World::serving(&["a"]);
    world.lose(ip("10.0.0.1"));
    world.tell_lost(ip("10.0.0.1"));
    world.do_all();
    world.lose(ip("10.0.0.1"));
    world.tell_lost(ip("10.0.0.1"));
    world.settle();
    assert_eq!(world.take_log(), ["add a@2", "add a@2", "announce a@2"]);
    assert_eq!(world.answered(), [ip("10.0.0.1")].into());
}

#[test]
fn a_lost_address_of_a_lapsed_lease_is_not_put_back() {
    let mut world = World::serving(&["a"]);
    world.renew(ms(100));
    world.now = world.now + ms(100);
    world.lose(ip("10.0.0.1"));
    world.tell_lost(ip("10.0.0.1"));
    world.settle();
    assert_eq!(world.take_log(), ["shut a@2", "remove a@2", "propose 1: a<-2"]);
}

#[test]
fn a_foreign_address_is_reported_and_tried_again() {
    let mut world = World::new();
    world.kernel.foreign.insert(ip("10.0.0.1"));
    world.declare(&spec("a", "10.0.0.1", "eth0"));
    world.declare(&spec("b", "10.0.0.2", "eth0"));
    world.lead(1);
    world.settle();
    world.renew(LONG);
    world.take_log();
    world.settle();
    assert_eq!(world.take_log(), ["open a@3 b@3", "add a@3 b@3", "shut a@3", "announce b@3", "remove a@3"]);
    assert_eq!(world.state("a"), HolderState::Standby);
    assert!(world.status("a").problem.is_some_and(|problem| problem.contains("not ours")));
    world.pass(ms(99));
    assert!(!world.take_log().iter().any(|line| line.starts_with("propose")));
    world.kernel.foreign.clear();
    world.pass(ms(1));
    assert_eq!(world.take_log(), ["propose 1: a<-3", "announce b@3", "open a@4", "add a@4", "announce a@4"]);
    let status = world.status("a");
    assert_eq!((status.state, status.problem), (HolderState::Active, None));
}

#[test]
fn a_node_on_which_a_vip_fails_again_and_again_leaves_the_lead_to_others() {
    let mut world = World::new();
    world.kernel.foreign.insert(ip("10.0.0.1"));
    world.declare(&spec("a", "10.0.0.1", "eth0"));
    world.lead(1);
    world.settle();
    world.renew(LONG);
    world.settle();
    assert!(world.agent.can_carry_all(), "once may happen");
    world.pass(ms(100));
    assert!(world.agent.can_carry_all(), "twice may happen");
    world.pass(ms(100));
    assert!(!world.agent.can_carry_all());
    world.take_log();
    world.pass(ms(999));
    assert_eq!(world.take_log(), Vec::<String>::new(), "no hurry any more");
    world.kernel.foreign.clear();
    world.pass(ms(1001));
    assert!(world.agent.can_carry_all(), "what was in the way is gone");
    assert_eq!(world.state("a"), HolderState::Active);
}

#[test]
fn a_node_on_which_a_vip_goes_on_failing_may_try_again_after_a_while() {
    let mut world = World::new();
    world.kernel.failing = vec![(Step::Add, name("a"))];
    world.declare(&spec("a", "10.0.0.1", "eth0"));
    world.lead(1);
    world.settle();
    world.renew(LONG);
    world.settle();
    world.pass(ms(300));
    assert!(!world.agent.can_carry_all());
    world.pass(ms(30_001));
    assert!(world.agent.can_carry_all() || world.status("a").problem.is_some(), "it may try again later");
}

#[test]
fn a_fence_that_does_not_open_is_reported_and_tried_again() {
    let mut world = World::new();
    world.kernel.failing = vec![(Step::Open, name("a"))];
    world.declare(&spec("a", "10.0.0.1", "eth0"));
    world.lead(1);
    world.settle();
    world.renew(LONG);
    world.take_log();
    world.settle();
    assert_eq!(world.take_log(), ["open a@2", "shut a@2", "remove a@2"]);
    assert!(world.status("a").problem.is_some());
    world.pass(ms(100));
    assert_eq!(world.take_log(), ["propose 1: a<-2", "open a@3", "shut a@3", "remove a@3"]);
}

#[test]
fn a_fence_that_does_not_shut_does_not_keep_the_address() {
    let mut world = World::serving(&["a"]);
    world.kernel.failing = vec![(Step::Shut, name("a"))];
    world.delete("a");
    world.settle();
    assert_eq!(world.take_log(), ["shut a@2", "remove a@2", "forget 10.0.0.1"]);
}

#[test]
fn an_address_that_does_not_go_stays_in_the_fence_until_it_does() {
    let mut world = World::serving(&["a"]);
    world.kernel.failing = vec![(Step::Remove, name("a"))];
    world.delete("a");
    world.settle();
    assert_eq!(world.take_log(), ["shut a@2", "remove a@2"], "it would be answered for without the fence");
    assert!(world.status("a").problem.is_some_and(|problem| problem.contains("busy")));
    world.pass(ms(100));
    assert_eq!(world.take_log(), ["remove a@2"]);
    world.kernel.failing.clear();
    world.pass(ms(100));
    assert_eq!(world.take_log(), ["remove a@2", "forget 10.0.0.1"]);
    assert_eq!(world.agent.next_deadline(), None);
}

#[test]
fn an_address_that_does_not_go_does_not_hold_up_the_end() {
    let mut world = World::serving(&["a"]);
    world.kernel.failing = vec![(Step::Remove, name("a"))];
    world.shutdown();
    world.settle();
    assert_eq!(world.take_log(), ["resign 1", "shut a@2", "remove a@2", "transfer", "finished"]);
}

// ---- the end ----

#[test]
fn a_leader_gives_everything_back_before_it_ends() {
    let mut world = World::serving(&["a", "b"]);
    world.shutdown();
    world.settle();
    assert_eq!(world.take_log(), ["resign 1", "shut a@3 b@3", "remove a@3 b@3", "transfer", "finished"]);
    world.shutdown();
    world.pass(LONG);
    assert_eq!(world.take_log(), Vec::<String>::new(), "once");
    assert_eq!(world.agent.next_deadline(), None);
}

#[test]
fn a_follower_just_ends() {
    let mut world = World::new();
    world.declare(&spec("a", "10.0.0.1", "eth0"));
    world.shutdown();
    world.settle();
    assert_eq!(world.take_log(), ["know 10.0.0.1", "finished"]);
}

#[test]
fn a_former_leader_gives_back_what_it_still_serves_before_it_ends() {
    let mut world = World::serving(&["a"]);
    world.set_reign(None);
    world.shutdown();
    world.settle();
    assert_eq!(world.take_log(), ["shut a@2", "remove a@2", "finished"]);
}

#[test]
fn the_end_in_the_middle_of_acquiring_waits_for_nothing_but_the_way_back() {
    // After how many answers the end comes: none, that of Open, that of Add.
    for answered in 0..3 {
        let mut world = World::new();
        world.declare(&spec("a", "10.0.0.1", "eth0"));
        world.lead(1);
        world.settle();
        world.renew(LONG);
        world.do_all();
        for _ in 0..answered {
            world.answer(0);
            world.do_all();
        }
        world.take_log();
        world.shutdown();
        world.settle();
        assert_eq!(
            world.take_log(),
            ["resign 1", "shut a@2", "remove a@2", "transfer", "finished"],
            "after {answered} answers"
        );
        assert!(world.kernel.present.is_empty());
    }
}

#[test]
fn a_node_that_is_elected_while_it_ends_hands_over_at_once() {
    let mut world = World::new();
    world.shutdown();
    world.lead(1);
    world.settle();
    assert_eq!(world.take_log(), ["finished", "resign 1", "transfer"]);
}

#[test]
fn a_leader_that_ends_while_it_steps_aside_hands_over_once() {
    let mut world = World::serving(&["a"]);
    world.pass(ms(2000));
    world.set_reign(Some(Reign { leadership: my_reign(1), ready: true, successor: true }));
    world.take_log();
    world.link("eth0", false);
    world.shutdown();
    world.settle();
    assert_eq!(world.take_log(), ["resign 1", "shut a@2", "remove a@2", "transfer", "finished"]);
}

// ---- many ----

#[test]
fn a_thousand_vips_take_one_action_a_step() {
    let mut world = World::new();
    for i in 0..1000 {
        let vip = spec(&format!("v{i}"), &format!("10.0.{}.{}", i / 250, i % 250 + 1), "eth0");
        world.apply(my_reign(1), Command::DeclareVip(vip));
    }
    world.tell_state();
    world.lead(1);
    world.settle();
    world.renew(ms(10_000));
    world.settle();
    world.pass(ms(5));
    world.shutdown();
    world.settle();
    let verbs: Vec<_> = world.take_log().iter().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(
        verbs,
        [
            "know", "enable", "propose", "open", "add", "announce", "announce", "resign", "shut", "remove", "transfer",
            "finished"
        ]
    );
}
