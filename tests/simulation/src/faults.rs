//! What goes wrong, what comes right, and what operators do.

use std::net::{IpAddr, Ipv4Addr};

use vip_core::{Command, Placement, VipName, VipSpec};

use crate::driver::Notice;
use crate::host::Kernel;
use crate::message::Body;
use crate::omission::Part;
use crate::plan::{Fault, MS, Nanos};
use crate::raft::Responder;
use crate::world::{Event, LINKS, Repair, Step, World};

/// Names that operators use.
const NAMES: [&str; 4] = ["web", "db", "mail", "dns"];

impl World {
    /// Something goes wrong, and the next time is set.
    pub(crate) fn trouble(&mut self) {
        if self.healed.is_some() {
            return;
        }
        // The first thing an operator does is to declare something.
        let fault = if self.declared == 0 {
            Fault::Operate
        } else {
            let all: u64 = self.plan.faults.iter().map(|(_, weight)| weight).sum();
            let mut at = self.dice.below(all);
            let found = self.plan.faults.iter().find(|(_, weight)| {
                let here = at < *weight;
                at = at.saturating_sub(*weight);
                here
            });
            found.map_or(Fault::Operate, |(fault, _)| *fault)
        };
        self.counts.faults += 1;
        self.cause(fault);
        let (least, most) = self.plan.pace;
        let after = self.dice.between(least, most);
        self.at(self.now + after, Event::Trouble);
    }

    fn cause(&mut self, fault: Fault) {
        let count = self.nodes.len();
        let node = self.dice.index(count);
        let peer = (node + 1 + self.dice.index(count - 1)) % count;
        let leader = self.leading_node().unwrap_or(node);
        let while_ = self.dice.below(self.plan.lease() * 2);
        self.trace.line(self.now, || format!("** {fault:?} (n{}, n{}, leader n{})", node + 1, peer + 1, leader + 1));
        match fault {
            Fault::CutOneWay => self.cut_way(node, peer),
            Fault::CutBoth => {
                self.cut_way(node, peer);
                self.cut_way(peer, node);
            }
            Fault::Isolate => (0..count).filter(|other| *other != node).for_each(|other| self.cut_both(node, other)),
            Fault::LeaveOne => {
                let friend = (leader + 1 + self.dice.index(count - 1)) % count;
                (0..count).filter(|at| *at != leader && *at != friend).for_each(|at| self.cut_both(leader, at));
            }
            Fault::Mend => self.cut.clear(),
            Fault::Freeze => self.freeze(node, while_),
            Fault::FreezeLeader => self.freeze(leader, while_),
            Fault::Crash => self.crash_and_start(node),
            Fault::CrashLeader => self.crash_and_start(leader),
            Fault::HostDies => self.host_dies(node, while_),
            Fault::Suspend => self.suspend(node, while_),
            Fault::SlowDisk => {
                self.nodes[node].slow_disk = true;
                self.at(self.now + while_, Event::Repair(Repair::Disk(node)));
            }
            Fault::Rate => self.change_rate(node),
            Fault::LinkDown => self.link_down(node, while_),
            Fault::LeaderLinkDown => self.link_down(leader, while_),
            Fault::Terminate => self.terminate(node),
            Fault::TerminateLeader => self.terminate(leader),
            Fault::LoseAddress => self.lose_address(leader),
            Fault::FailKernel => {
                self.nodes[node].kernel.failing = 40;
                self.at(self.now + while_, Event::Repair(Repair::Kernel(node)));
            }
            Fault::FenceVanishes => self.fence_vanishes(leader),
            Fault::BadNetwork => {
                self.bad_network = true;
                self.at(self.now + while_ / 2, Event::Repair(Repair::Network));
            }
            Fault::Operate => self.operate(),
            Fault::CutLeaderRestartVoter => {
                self.cut_both(leader, peer);
                self.crash_and_start(peer);
                let third = (0..count).find(|at| *at != leader && *at != peer).unwrap_or(peer);
                self.cut_both(leader, third);
            }
            Fault::CutVoterThenMend => {
                // One voter elects nobody, but hears of higher terms once it is back.
                (0..count).filter(|at| *at != peer).for_each(|at| self.cut_both(peer, at));
                self.at(self.now + while_ / 2, Event::Repair(Repair::Mend));
            }
        }
    }

    pub(crate) fn cut_way(&mut self, from: usize, to: usize) {
        self.cut.insert((from, to));
    }

    pub(crate) fn cut_both(&mut self, a: usize, b: usize) {
        self.cut.insert((a, b));
        self.cut.insert((b, a));
    }

    pub(crate) fn freeze(&mut self, node: usize, while_: Nanos) {
        if self.nodes[node].power && !self.nodes[node].frozen {
            self.nodes[node].frozen = true;
            self.at(self.now + while_, Event::Repair(Repair::Thaw(node)));
        }
    }

    pub(crate) fn crash_and_start(&mut self, node: usize) {
        if !self.nodes[node].power {
            return;
        }
        self.crash(node);
        self.oracle.restarted(node);
        let swift = self.dice.percent(70);
        let most = if swift { self.plan.lease() / 4 } else { self.plan.lease() * 2 };
        let after = self.dice.below(most);
        self.at(self.now + after, Event::Start { node });
    }

    fn host_dies(&mut self, node: usize, while_: Nanos) {
        if self.nodes[node].power && self.nodes[node].asleep.is_none() {
            self.crash(node);
            self.oracle.restarted(node);
            self.nodes[node].power = false;
            self.at(self.now + while_, Event::Repair(Repair::Boot(node)));
        }
    }

    fn suspend(&mut self, node: usize, while_: Nanos) {
        if self.nodes[node].power && self.nodes[node].asleep.is_none() {
            self.nodes[node].asleep = Some(self.local(node));
            self.at(self.now + while_, Event::Repair(Repair::Wake(node)));
        }
    }

    fn change_rate(&mut self, node: usize) {
        let ppm = self.random_rate();
        let passed = self.nodes[node].kernel.deadline <= self.local(node);
        let ended = self.lease_ends(node).filter(|_| passed);
        let host = &mut self.nodes[node];
        host.kernel.lapsed = ended;
        host.clock.set_rate(self.now, ppm);
    }

    fn link_down(&mut self, node: usize, while_: Nanos) {
        let link = self.dice.index(LINKS.len());
        self.nodes[node].kernel.links.insert(LINKS[link].to_owned(), false);
        let after = self.dice.below(5 * MS);
        self.tell_links(node, after);
        self.at(self.now + while_, Event::Repair(Repair::Link(node, link)));
    }

    pub(crate) fn terminate(&mut self, node: usize) {
        self.after(node, 0, Step::Notice(Notice::Terminate));
    }

    fn lose_address(&mut self, node: usize) {
        let addresses: Vec<_> = self.nodes[node].kernel.addresses.keys().copied().collect();
        if addresses.is_empty() {
            return;
        }
        let address = self.dice.pick(&addresses);
        self.nodes[node].kernel.addresses.remove(&address);
        let after = self.dice.below(5 * MS);
        self.after(node, after, Step::Notice(Notice::Lost(address)));
    }

    /// Somebody with root takes the filter away. What the host sends until the daemon hears of it is outside the promise;
    /// here only what the daemon does then.
    fn fence_vanishes(&mut self, node: usize) {
        self.after(node, 0, Step::Notice(Notice::Fence(false)));
        let after = self.dice.between(MS, 50 * MS);
        self.after(node, after, Step::Notice(Notice::Fence(true)));
    }

    // ---- operators ----

    pub(crate) fn operate(&mut self) {
        let known = self.oracle.names();
        let delete = known.len() > 1 && self.dice.percent(40);
        let command = if delete {
            let at = self.dice.index(known.len());
            Command::DeleteVip(known[at].clone())
        } else {
            let at = self.dice.index(NAMES.len());
            // The same name with other addresses and interfaces, the same address under other names.
            let last = u8::try_from(self.dice.between(1, 5)).unwrap_or(1);
            let link = LINKS[self.dice.index(LINKS.len())];
            Command::DeclareVip(spec(NAMES[at], last, link))
        };
        let node = self.dice.index(self.nodes.len());
        self.request(node, command);
    }

    /// Asks through the API of `node`.
    pub(crate) fn request(&mut self, node: usize, command: Command) {
        let Some(process) = &self.nodes[node].process else { return };
        if self.nodes[node].frozen || self.nodes[node].asleep.is_some() || process.locked {
            return;
        }
        let (leads, leader) = (process.raft.leader.is_some(), process.raft.current_leader());
        self.requests += 1;
        self.declared += u64::from(matches!(command, Command::DeclareVip(_)));
        let request = self.requests;
        self.oracle.asked.insert(request, command.clone());
        match leader {
            _ if leads => self.propose_here(node, command, Responder::Operator(request)),
            Some(leader) if crate::world::index(leader) != node => {
                self.send(node, leader, None, Body::Propose { request, command });
            }
            Some(_) | None => {}
        }
    }

    // ---- what comes right ----

    pub(crate) fn repair(&mut self, repair: Repair) {
        match repair {
            Repair::Thaw(node) => {
                if std::mem::take(&mut self.nodes[node].frozen) && self.nodes[node].asleep.is_none() {
                    self.catch_up(node);
                }
            }
            Repair::Wake(node) => {
                let host = &mut self.nodes[node];
                if let Some(since) = host.asleep.take() {
                    host.clock.woke(since, self.now);
                    if !host.frozen {
                        self.catch_up(node);
                    }
                }
            }
            Repair::Kill(node, number) => self.kill_while_it_stands(node, number),
            Repair::Stall(node, number) => self.stall_is_over(node, number),
            Repair::Disk(node) => self.nodes[node].slow_disk = false,
            Repair::Link(node, link) => {
                self.nodes[node].kernel.links.insert(LINKS[link].to_owned(), true);
                let after = self.dice.below(5 * MS);
                self.tell_links(node, after);
            }
            Repair::Kernel(node) => self.nodes[node].kernel.failing = 0,
            Repair::Fence(node) => self.after(node, 0, Step::Notice(Notice::Fence(true))),
            Repair::Network => self.bad_network = false,
            Repair::Mend => self.cut.clear(),
            Repair::Boot(node) => self.boot(node),
        }
    }

    fn boot(&mut self, node: usize) {
        if self.nodes[node].power {
            return;
        }
        let no_clock = !self.has(Part::KernelFence);
        let ppm = self.random_rate();
        let local = self.dice.between(1_000_000, 100_000_000);
        let host = &mut self.nodes[node];
        host.power = true;
        host.kernel = Kernel::booted(&LINKS, no_clock);
        host.clock = crate::host::Clock::new(self.now, local, ppm);
        self.trace.line(self.now, || format!("n{} boots", node + 1));
        self.at(self.now, Event::Start { node });
    }

    /// All faults end, and every daemon runs or is started.
    pub(crate) fn heal(&mut self) {
        self.trace.line(self.now, || "** healed".to_owned());
        self.cut.clear();
        self.bad_network = false;
        self.plan.loss = 0;
        self.healed = Some(self.now);
        self.begin_phase();
        for node in 0..self.nodes.len() {
            self.boot(node);
            self.nodes[node].slow_disk = false;
            self.nodes[node].kernel.failing = 0;
            self.repair(Repair::Wake(node));
            self.repair(Repair::Thaw(node));
            for link in 0..LINKS.len() {
                self.repair(Repair::Link(node, link));
            }
            if self.nodes[node].process.as_ref().is_some_and(|process| process.ending) {
                self.crash(node);
                self.oracle.restarted(node);
            }
            if self.nodes[node].process.is_none() {
                self.at(self.now, Event::Start { node });
            }
            self.repair(Repair::Fence(node));
        }
        self.heal_disks();
    }
}

/// A VIP.
#[must_use]
pub(crate) fn spec(name: &str, last: u8, link: &str) -> VipSpec {
    let address = IpAddr::V4(Ipv4Addr::new(10, 0, 0, last));
    VipSpec {
        name: name.parse::<VipName>().expect("a valid name"),
        address,
        prefix_len: 32,
        interface: link.to_owned().try_into().expect("a valid interface"),
        placement: Placement::Leader,
    }
}
