use super::*;
use std::net::Ipv4Addr;

const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 100));
const A: HostId = HostId::Node(1);
const B: HostId = HostId::Node(2);
const C: HostId = HostId::Node(3);

fn answer(host: HostId, at_ms: u64) -> Answer {
    Answer { at: Stamp::from_millis(at_ms), vip: VIP, host, kind: AnswerKind::Arp, echo_sent: None }
}

/// A host that answers every 5 ms.
fn holds(host: HostId, from_ms: u64, to_ms: u64) -> impl Iterator<Item = Answer> {
    (from_ms..=to_ms).step_by(5).map(move |at| answer(host, at))
}

fn overlap_ms(answers: impl IntoIterator<Item = Answer>) -> f64 {
    crate::clock::millis(judge(&answers.into_iter().collect::<Vec<_>>()).overlap)
}

#[test]
fn nothing_heard_is_clean() {
    assert!(judge(&[]).is_clean());
}

#[test]
fn one_holder_is_clean() {
    assert_eq!(overlap_ms(holds(A, 0, 500)), 0.0);
}

#[test]
fn a_clean_hand_over_is_clean_however_quick() {
    let verdict = judge(&holds(A, 0, 100).chain(holds(B, 101, 200)).collect::<Vec<_>>());
    assert!(verdict.is_clean());
    let turns: Vec<_> = verdict.succession(VIP).iter().map(|turn| (turn.host, turn.first, turn.last)).collect();
    assert_eq!(
        turns,
        [(A, Stamp::from_millis(0), Stamp::from_millis(100)), (B, Stamp::from_millis(101), Stamp::from_millis(196)),]
    );
}

#[test]
fn the_old_holder_that_goes_on_is_an_overlap_of_that_length() {
    assert_eq!(overlap_ms(holds(A, 0, 150).chain(holds(B, 100, 300))), 50.0);
}

#[test]
fn two_that_answer_in_turns_overlap_from_the_second_ones_first_frame() {
    let frames = (0..100).map(|i| answer(if i % 2 == 0 { A } else { B }, i * 5));
    assert_eq!(overlap_ms(frames), 485.0, "from B at 5 ms to A's last at 490 ms");
}

#[test]
fn a_clean_hand_back_is_clean() {
    assert_eq!(overlap_ms(holds(A, 0, 100).chain(holds(B, 110, 300)).chain(holds(A, 310, 400))), 0.0);
}

#[test]
fn a_hand_back_that_is_too_quick_to_tell_counts_as_overlap() {
    assert_eq!(overlap_ms(holds(A, 0, 100).chain(holds(B, 105, 115)).chain(holds(A, 120, 300))), 10.0);
}

#[test]
fn one_stray_frame_is_an_overlap() {
    let frames = holds(A, 0, 100).chain(holds(B, 200, 500)).chain([answer(A, 402)]);
    assert_eq!(overlap_ms(frames), crate::clock::millis(LEAST_OVERLAP));
}

#[test]
fn a_stray_announcement_counts_like_an_answer() {
    let mut stray = answer(B, 52);
    stray.kind = AnswerKind::Announcement;
    let verdict = judge(&holds(A, 0, 100).chain([stray]).collect::<Vec<_>>());
    assert_eq!(verdict.overlap, LEAST_OVERLAP);
    assert_eq!(verdict.overlaps[0].hosts, (A, B));
}

#[test]
fn three_at_once_count_once() {
    let frames = holds(A, 0, 200).chain(holds(B, 100, 200)).chain(holds(C, 100, 200));
    assert_eq!(overlap_ms(frames), 100.0);
}

#[test]
fn the_order_of_the_list_does_not_matter() {
    let mut frames: Vec<_> = holds(A, 0, 150).chain(holds(B, 100, 300)).collect();
    let sorted = judge(&frames);
    frames.reverse();
    assert_eq!(judge(&frames), sorted);
}

#[test]
fn different_addresses_are_judged_apart() {
    let other = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 101));
    let frames = holds(A, 0, 100).chain(holds(B, 0, 100).map(|frame| Answer { vip: other, ..frame }));
    assert_eq!(overlap_ms(frames), 0.0);
}

#[test]
fn an_outage_is_not_an_overlap_and_keeps_one_turn() {
    let verdict = judge(&holds(A, 0, 100).chain(holds(A, 400, 500)).collect::<Vec<_>>());
    assert!(verdict.is_clean());
    assert_eq!(verdict.holdings.len(), 2);
    assert_eq!(verdict.succession(VIP).len(), 1);
}

#[test]
fn a_vip_that_is_asked_about_less_often_needs_a_longer_silence() {
    let frames: Vec<_> = (0..10).flat_map(|i| [answer(A, i * 200), answer(B, i * 200 + 1)]).collect();
    assert!(judge(&frames).is_clean(), "each answer looks like a turn of its own");
    assert!(!judge_with(&frames, |_| Duration::from_millis(600)).is_clean());
}
