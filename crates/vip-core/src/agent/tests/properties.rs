//! Anything may happen, in any order: the rules hold after every step, and when it calms down every VIP is served.
//!
//! The rules themselves are in [`World`], which checks each action when it is decided and when it is done.

use proptest::prelude::*;

use super::world::*;
use super::*;
use crate::cluster::Command;

/// Three names share four addresses, so that each meets every other.
const NAMES: [&str; 3] = ["a", "b", "c"];
const ADDRESSES: [&str; 4] = ["10.0.0.1", "10.0.0.2", "fd00::1", "10.0.0.4"];
const INTERFACES: [&str; 2] = ["eth0", "front"];

/// What happens around the agent.
#[derive(Clone, Debug)]
enum Event {
    Declare(usize, usize, usize),
    Delete(usize),
    TellState,
    Elected { ready: bool, successor: bool },
    ReignChanges { ready: bool, successor: bool },
    ReignLost,
    OtherElected,
    Renew(u64),
    Link(usize, bool),
    Fence(bool),
    LoseAddress(usize),
    TellLost(usize),
    Foreign(usize, bool),
    Failing(Step, usize, bool),
    Do(usize),
    Answer(usize),
    AnswerTwice(usize),
    AcceptProposal,
    RefuseProposal,
    Settle,
    Wait(u64),
    Oversleep(u64),
    Shutdown,
}

fn event() -> impl Strategy<Value = Event> {
    let step = prop_oneof![Just(Step::Open), Just(Step::Add), Just(Step::Shut), Just(Step::Remove)];
    prop_oneof![
        6 => (0..3usize, 0..4usize, 0..2usize).prop_map(|(name, address, link)| Event::Declare(name, address, link)),
        3 => (0..3usize).prop_map(Event::Delete),
        4 => Just(Event::TellState),
        4 => any::<(bool, bool)>().prop_map(|(ready, successor)| Event::Elected { ready, successor }),
        4 => (prop::bool::weighted(0.8), any::<bool>())
            .prop_map(|(ready, successor)| Event::ReignChanges { ready, successor }),
        2 => Just(Event::ReignLost),
        1 => Just(Event::OtherElected),
        14 => (1..3000u64).prop_map(Event::Renew),
        3 => (0..2usize, prop::bool::weighted(0.7)).prop_map(|(link, up)| Event::Link(link, up)),
        1 => prop::bool::weighted(0.7).prop_map(Event::Fence),
        3 => (0..4usize).prop_map(Event::LoseAddress),
        4 => (0..4usize).prop_map(Event::TellLost),
        1 => (0..4usize, prop::bool::weighted(0.3)).prop_map(|(address, there)| Event::Foreign(address, there)),
        2 => (step, 0..3usize, prop::bool::weighted(0.3)).prop_map(|(step, vip, fails)| Event::Failing(step, vip, fails)),
        14 => (1..4usize).prop_map(Event::Do),
        14 => (0..4usize).prop_map(Event::Answer),
        2 => (0..4usize).prop_map(Event::AnswerTwice),
        6 => Just(Event::AcceptProposal),
        2 => Just(Event::RefuseProposal),
        8 => Just(Event::Settle),
        8 => (0..400u64).prop_map(Event::Wait),
        2 => (0..2500u64).prop_map(Event::Oversleep),
    ]
}

/// Many things, and perhaps the end somewhere in between.
fn events() -> impl Strategy<Value = Vec<Event>> {
    let with_end = (prop::collection::vec(event(), 0..100), prop::option::weighted(0.15, any::<prop::sample::Index>()));
    with_end.prop_map(|(mut events, end)| {
        if let Some(end) = end {
            events.insert(end.index(events.len() + 1), Event::Shutdown);
        }
        events
    })
}

struct Life {
    world: World,
    term: u64,
    ended: bool,
    lost: Vec<IpAddr>,
}

impl Life {
    fn new() -> Self {
        Self { world: World::new(), term: 0, ended: false, lost: Vec::new() }
    }

    fn happen(&mut self, event: Event) {
        let world = &mut self.world;
        match event {
            Event::Declare(vip, address, interface) => {
                let spec = spec(NAMES[vip], ADDRESSES[address], INTERFACES[interface]);
                world.apply(world.leader(), Command::DeclareVip(spec));
            }
            Event::Delete(vip) => world.apply(world.leader(), Command::DeleteVip(name(NAMES[vip]))),
            Event::TellState => world.tell_state(),
            Event::Elected { ready, successor } => {
                self.term += 1;
                world.set_reign(Some(Reign { leadership: my_reign(self.term), ready, successor }));
            }
            Event::ReignChanges { ready, successor } => {
                // Also after it was lost, as long as nobody else was elected.
                let reign = Reign { leadership: my_reign(self.term), ready, successor };
                world.set_reign((self.term > 0).then_some(reign));
            }
            Event::ReignLost => world.set_reign(None),
            Event::OtherElected => {
                // The node may notice later; it never comes back in its old term.
                self.term += 2;
                world.taken_by_other(self.term - 1);
            }
            Event::Renew(length) => {
                world.renew(ms(length));
            }
            Event::Link(interface, up) => world.link(["eth0", "eth1"][interface], up),
            Event::Fence(ok) => world.fence(ok),
            Event::LoseAddress(address) => {
                let address = ip(ADDRESSES[address]);
                self.lost.extend(world.lose(address).then_some(address));
            }
            Event::TellLost(n) if n < self.lost.len() => world.tell_lost(self.lost.remove(n)),
            Event::TellLost(_) => {}
            Event::Foreign(address, there) => world.kernel.set_foreign(ip(ADDRESSES[address]), there),
            Event::Failing(step, vip, fails) => {
                world.kernel.failing.retain(|known| *known != (step, name(NAMES[vip])));
                world.kernel.failing.extend(fails.then(|| (step, name(NAMES[vip]))));
            }
            Event::Do(n) => {
                for _ in 0..n {
                    world.do_next();
                }
            }
            Event::Answer(n) => {
                world.answer(n);
            }
            Event::AnswerTwice(n) => {
                world.answers.extend(world.answers.get(n).cloned());
                world.answer(n);
            }
            Event::AcceptProposal => {
                world.accept_proposal();
            }
            Event::RefuseProposal => {
                world.refuse_proposal();
            }
            Event::Settle => world.settle(),
            Event::Wait(length) => world.pass_with(ms(length), |_| {}),
            Event::Oversleep(length) => {
                world.now = world.now + ms(length);
                world.input(Input::Tick);
            }
            Event::Shutdown => {
                self.ended = true;
                world.shutdown();
            }
        }
    }

    /// Everything that was broken is well again, and this node is elected.
    fn calm_down(&mut self) {
        let world = &mut self.world;
        world.kernel.foreign.clear();
        world.kernel.failing.clear();
        for address in self.lost.drain(..) {
            world.tell_lost(address);
        }
        world.link("eth0", true);
        world.link("eth1", true);
        world.fence(true);
        world.tell_state();
        self.term += 1;
        world.lead(self.term);
        self.serve(ms(3000));
    }

    /// Time passes with a lease that is always renewed in time.
    fn serve(&mut self, duration: Duration) {
        let end = self.world.now + duration;
        while self.world.now < end {
            self.world.settle();
            self.world.renew(ms(500));
            self.world.settle();
            self.world.pass(ms(100));
        }
    }

    fn held(&self) -> BTreeMap<VipName, Option<Epoch>> {
        let active = |(_, status): &(_, VipStatus)| status.state == HolderState::Active;
        self.world.agent.status().into_iter().filter(active).map(|(vip, status)| (vip, status.epoch)).collect()
    }

    fn assert_everything_is_served(&self) {
        let world = &self.world;
        let agreed: BTreeMap<_, _> = world.cluster.vips.keys().map(|vip| (vip.clone(), world.epoch_of(vip))).collect();
        assert_eq!(self.held(), agreed);
        let addresses: BTreeSet<_> = world.cluster.vips.values().map(|vip| vip.spec.address).collect();
        assert_eq!(world.answered(), addresses);
        assert_eq!(world.kernel.known, addresses);
        assert_eq!(world.kernel.present.len(), addresses.len(), "{:?}", world.kernel.present);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn the_rules_hold_whatever_happens_and_in_the_end_everything_is_served(events in events()) {
        let mut life = Life::new();
        for event in events {
            life.happen(event);
        }
        life.calm_down();
        if !life.ended {
            life.assert_everything_is_served();
            let held = life.held();
            life.serve(ms(1000));
            prop_assert_eq!(life.held(), held, "nothing changes any more");
            life.world.shutdown();
            life.world.settle();
        }
        prop_assert!(life.world.finished);
        prop_assert!(life.world.kernel.present.is_empty(), "{:?}", life.world.kernel.present);
        life.world.assert_nothing_held("at the end");
    }
}
