//! vip-raft around the engine: the gate before every handler, the order of appends and votes, the renewing thread,
//! elections, and the tasks that tell the agent.

use std::sync::Arc;
use std::time::Duration;

use vip_core::gate::{Shut, VoteRequest};
use vip_core::{BootInstant, Command, Leadership, NodeId, NotArmed, Outcome, Reign};

use crate::driver::Notice;
use crate::message::{AppendResult, Body, Message};
use crate::omission::Part;
use crate::plan::MS;
use crate::raft::{AppendIn, Input, Responder};
use crate::stall::Moment;
use crate::store::{Job, LogId};
use crate::world::{Step, Waiting, World};

/// How long a vote waits at the gate (`PeerServer::wait_at_the_gate`).
const GATE_PATIENCE: Duration = Duration::from_millis(15);

/// How often is looked for what no event tells.
const IDLE: Duration = Duration::from_millis(50);

impl World {
    // ---- messages ----

    pub(crate) fn deliver(&mut self, message: Message) {
        let node = crate::world::index(message.to);
        let now = self.local(node);
        let process = self.process(node);
        if message.to_life.is_some_and(|life| life != process.life) {
            return;
        }
        if message.to_life.is_some() {
            process.peers.insert(message.from, (now, message.eligible));
        }
        self.trace.line(self.now, || format!("n{} <- n{}: {:?}", message.to, message.from, message.body));
        let (from, to_life) = (message.from, message.from_life);
        match message.body {
            Body::Append { leader, sent_at, sent_mono, lane, rpc, prev, entries, committed } => {
                let append = AppendIn {
                    from,
                    to_life,
                    leader,
                    sent_at,
                    sent_mono,
                    lane,
                    rpc,
                    prev,
                    entries,
                    committed,
                    came_at: now,
                    hung_up: false,
                };
                self.append_comes(node, Box::new(append));
            }
            Body::Vote { .. } | Body::PreVote { .. } => self.wait_at_the_gate(node, message),
            Body::Appended { leader, sent_at, sent_mono, lane, rpc, result } => {
                if !matches!(result, AppendResult::HigherVote(_)) {
                    let sent_at = if self.has(Part::SendTime) { sent_at } else { now };
                    if self.process(node).gate.append_answered(leader, from, sent_at) {
                        self.want_renewal(node);
                    }
                }
                self.engine(node, Input::Appended { from, leader, lane, rpc, sent_mono, result });
            }
            Body::Voted { leadership, granted, vote } => {
                self.engine(node, Input::VoteAnswered { from, leadership, granted, vote });
            }
            // openraft does not ask which round an answer is of.
            Body::PreVoted { granted, vote } => {
                self.engine(node, Input::PreVoteAnswered { from, granted, vote });
            }
            Body::Transfer { from, to, last } => self.transfer_comes(node, from, to, last),
            Body::Propose { request, command } => {
                self.propose_here(node, command, Responder::Peer(from, to_life, request));
            }
            Body::Proposed { request, result } => self.answer(node, Responder::Operator(request), result),
        }
    }

    fn transfer_comes(&mut self, node: usize, from: Leadership, to: NodeId, last: Option<LogId>) {
        let now = self.local(node);
        let me = self.nodes[node].id;
        let process = self.process(node);
        if to != me {
            // Only where the rule is taken out that only the target is told: openraft ends the lease.
            if process.raft.vote.leadership == from {
                process.raft.lease_off = true;
                process.raft.touched = process.raft.touched.map(|(at, _)| (at, 0));
            }
            return;
        }
        if process.eligible && process.gate.accept_transfer(from, now).is_ok() {
            self.engine(node, Input::TransferTo { from, last });
        }
    }

    // ---- the gate before votes ----

    fn asked(message: &Message) -> Option<VoteRequest> {
        match message.body {
            Body::Vote { leadership, by_transfer_of, .. } => Some(VoteRequest { leadership, by_transfer_of }),
            Body::PreVote { leadership, .. } => Some(VoteRequest { leadership, by_transfer_of: None }),
            _ => None,
        }
    }

    fn wait_at_the_gate(&mut self, node: usize, message: Message) {
        let now = self.local(node);
        let Some(asked) = Self::asked(&message) else { return };
        match self.process(node).gate.check_vote(asked, now) {
            Err(shut) if shut.remaining() <= GATE_PATIENCE || matches!(shut, Shut::Queued { .. }) => {
                self.at_local(node, now + shut.remaining(), Step::Vote(Box::new(message), false));
            }
            Err(_) | Ok(()) => self.vote_goes_on(node, message, false),
        }
    }

    /// Before the engine, or `passed` the gate and on the way to it.
    pub(crate) fn vote_goes_on(&mut self, node: usize, message: Message, passed: bool) {
        let now = self.local(node);
        let (from, to_life) = (message.from, message.from_life);
        match message.body {
            Body::PreVote { leadership, last } => {
                let Some(asked) = Self::asked(&message) else { return };
                if self.process(node).gate.check_vote(asked, now).is_ok() {
                    self.engine(node, Input::PreVote { from, to_life, leadership, last });
                }
            }
            Body::Vote { leadership, last, transfer, .. } if passed => {
                self.engine(node, Input::Vote { from, to_life, leadership, last, transfer });
            }
            Body::Vote { .. } => {
                let alone = self.has(Part::VoteAlone);
                let order = &mut self.process(node).order;
                if alone && (order.writer || order.readers > 0) {
                    order.queue.push_back(Waiting::Vote(Box::new(message)));
                } else {
                    self.vote_comes(node, message);
                }
            }
            _ => {}
        }
    }

    fn vote_comes(&mut self, node: usize, message: Message) {
        let now = self.local(node);
        let Some(asked) = Self::asked(&message) else { return };
        if let Err(shut) = self.process(node).gate.begin_vote(asked, now) {
            self.trace.line(self.now, || format!("n{} refuses {asked:?}: {shut}", node + 1));
            self.order_moves(node);
            return;
        }
        self.process(node).order.writer = true;
        if self.plan.slow_votes {
            let after = self.dice.below(self.plan.lease() / 4);
            self.after(node, after, Step::Vote(Box::new(message), true));
        } else {
            self.vote_goes_on(node, message, true);
        }
    }

    /// The engine has answered a vote.
    pub(crate) fn vote_handled(&mut self, node: usize) {
        let process = self.process(node);
        process.gate.end_vote();
        process.order.writer = false;
        self.want_renewal(node);
        self.order_moves(node);
    }

    // ---- the order of appends and votes ----

    fn append_comes(&mut self, node: usize, append: Box<AppendIn>) {
        self.nodes[node].ever_followed = true;
        let alone = self.has(Part::VoteAlone);
        let order = &mut self.process(node).order;
        if alone && (order.writer || !order.queue.is_empty()) {
            order.queue.push_back(Waiting::Append(append));
        } else {
            order.readers += 1;
            self.engine(node, Input::Append(append));
        }
    }

    pub(crate) fn order_moves(&mut self, node: usize) {
        loop {
            let order = &mut self.process(node).order;
            let free = match order.queue.front() {
                None => return,
                Some(Waiting::Append(_)) => !order.writer,
                Some(Waiting::Vote(_)) => !order.writer && order.readers == 0,
            };
            if !free {
                return;
            }
            match order.queue.pop_front() {
                Some(Waiting::Append(append)) => {
                    order.readers += 1;
                    self.engine(node, Input::Append(append));
                }
                Some(Waiting::Vote(message)) => self.vote_comes(node, *message),
                None => return,
            }
        }
    }

    /// An append is answered, or not: `None` is an error, which its leader does not count.
    pub(crate) fn append_done(&mut self, node: usize, append: &AppendIn, result: Option<AppendResult>) {
        if append.hung_up {
            return;
        }
        if let Some(result) = result {
            let &AppendIn { leader, sent_at, sent_mono, lane, rpc, .. } = append;
            let body = Body::Appended { leader, sent_at, sent_mono, lane, rpc, result };
            self.send(node, append.from, Some(append.to_life), body);
        }
        let order = &mut self.process(node).order;
        order.readers = order.readers.saturating_sub(1);
        self.order_moves(node);
    }

    /// The promise begins, and the answer goes out.
    pub(crate) fn acknowledge_one(&mut self, node: usize, append: &AppendIn, result: AppendResult) {
        let now = self.local(node);
        let may = !append.hung_up && self.process(node).gate.append_acknowledged(append.leader, now);
        self.append_done(node, append, may.then_some(result));
    }

    /// What is durable by now is acknowledged.
    pub(crate) fn acknowledge(&mut self, node: usize) {
        loop {
            let process = self.process(node);
            let store = &process.store;
            let Some(at) = process.acknowledging.iter().position(|(ticket, ..)| store.is_durable(*ticket)) else {
                return;
            };
            let (_, append, last) = process.acknowledging.remove(at);
            let after = self.turn();
            self.after(node, after, Step::Acknowledge(append, AppendResult::Success(last)));
        }
    }

    // ---- the disk ----

    pub(crate) fn start_disk(&mut self, node: usize) {
        if !self.process(node).store.start_commit() {
            if self.process(node).store.is_behind() {
                self.stall_comes(node, Moment::Two);
            }
            return;
        }
        let (least, most) = self.plan.disk;
        let mut takes = self.dice.between(least, most);
        if self.nodes[node].slow_disk && self.dice.percent(50) {
            takes += self.dice.below(self.plan.lease());
        }
        takes += self.time_for_two(node);
        self.after(node, takes, Step::Disk);
        let (votes, entries) = self.process(node).store.writes();
        if votes {
            self.stall_comes(node, Moment::Vote);
        }
        if entries {
            self.stall_comes(node, Moment::Entry);
        }
    }

    pub(crate) fn disk_done(&mut self, node: usize) {
        if self.stall_holds(node) {
            return;
        }
        let now = self.local(node);
        let host = &mut self.nodes[node];
        let Some(process) = host.process.as_mut() else { return };
        let votes = process.store.finish_commit(&mut host.disk);
        let any = !votes.is_empty();
        for vote in votes {
            process.gate.vote_saved(vote);
        }
        if process.raft.blocked.is_some_and(|ticket| process.store.is_durable(ticket)) {
            process.raft.blocked = None;
        }
        if process.raft.standing.is_some_and(|ticket| process.store.is_durable(ticket)) {
            process.raft.standing = None;
            // openraft waits for an answer for L; where the process stopped meanwhile it may still take it.
            let late = process.voted_at.replace(now).is_some_and(|asked_at| asked_at + self.plan.timing.lease < now);
            let aside = &mut self.aside;
            let counts = process.raft.early.drain(..).filter(|_| !late || aside.percent(50));
            process.raft.queue.extend(counts);
        }
        let store = &process.store;
        let (flushed, waiting) = process.flushing.drain(..).partition(|(ticket, ..)| store.is_durable(*ticket));
        process.flushing = waiting;
        let flushed: Vec<(u64, Leadership, u64)> = flushed;
        for (_, by, index) in flushed {
            process.raft.queue.push_back(Input::Flushed { by, index });
        }
        if any {
            self.changed(node);
            self.want_renewal(node);
        }
        self.acknowledge(node);
        self.run_engine(node);
        self.start_disk(node);
    }

    // ---- applying ----

    pub(crate) fn commit_upto(&mut self, node: usize, upto: Option<u64>) {
        let process = self.process(node);
        if upto <= process.raft.committed {
            return;
        }
        process.raft.committed = upto;
        if let Some(upto) = upto {
            process.store.write(Job::Committed(upto));
        }
        let first = process.raft.applied.map_or(0, |applied| applied.index + 1);
        for index in first..=upto.unwrap_or(0) {
            let process = self.process(node);
            let Some(entry) = usize::try_from(index).ok().and_then(|at| process.store.log.get(at).cloned()) else {
                break;
            };
            process.raft.applied = Some(entry.id);
            let cluster = Arc::make_mut(&mut process.raft.cluster);
            let outcome = match &entry.command {
                None => cluster.begin(index, entry.id.by),
                Some(command) => cluster.apply(index, entry.id.by, command.clone()),
            };
            let responder = process.raft.responders.remove(&index);
            self.oracle.applied(node, &entry);
            if let Some((by, responder)) = responder {
                self.answer(node, responder, if by == entry.id.by { Ok(outcome) } else { Err(()) });
            }
        }
        let process = self.nodes[node].process.as_ref().expect("it runs");
        self.oracle.compare(node, process.raft.applied, &process.raft.cluster);
        self.notice_soon(node);
    }

    pub(crate) fn notice_soon(&mut self, node: usize) {
        if !std::mem::replace(&mut self.process(node).noticing, true) {
            let after = self.moment();
            self.after(node, after, Step::Applied);
        }
    }

    pub(crate) fn notice_applied(&mut self, node: usize) {
        let process = self.process(node);
        process.noticing = false;
        if let Some(applied) = process.raft.applied {
            process.gate.entry_applied(applied.by);
        }
        let cluster = Arc::clone(&process.raft.cluster);
        self.post(node, |mailbox| mailbox.state = Some(cluster));
        self.changed(node);
        self.want_renewal(node);
    }

    /// `propose_here`.
    pub(crate) fn propose_here(&mut self, node: usize, command: Command, responder: Responder) {
        if self.process(node).gate.resigned() && self.has(Part::SilentAfterResign) {
            self.answer(node, responder, Err(()));
            return;
        }
        self.engine(node, Input::Write { command, responder });
    }

    pub(crate) fn answer(&mut self, node: usize, responder: Responder, result: Result<Outcome, ()>) {
        match responder {
            Responder::Agent => {
                let well = matches!(result, Ok(Outcome::Changed { .. } | Outcome::Unchanged { .. }));
                let after = self.moment();
                self.after(node, after, Step::Notice(Notice::Proposed(well)));
            }
            Responder::Operator(request) => {
                if let Ok(outcome) = result {
                    self.oracle.answered(request, &outcome);
                }
            }
            Responder::Peer(peer, life, request) => {
                self.send(node, peer, Some(life), Body::Proposed { request, result });
            }
        }
    }

    pub(crate) fn unanswered(&mut self, node: usize, index: u64) {
        if let Some((_, responder)) = self.process(node).raft.responders.remove(&index) {
            self.answer(node, responder, Err(()));
        }
    }

    // ---- the renewing thread ----

    pub(crate) fn want_renewal(&mut self, node: usize) {
        if !std::mem::replace(&mut self.process(node).renewing, true) {
            let after = self.moment();
            self.after(node, after, Step::RenewCompute);
        }
    }

    pub(crate) fn renew_compute(&mut self, node: usize) {
        let now = self.local(node);
        let host = &mut self.nodes[node];
        let Some(process) = host.process.as_mut() else { return };
        process.renewing = false;
        if let Ok((leadership, deadline)) = process.gate.arm(&self.voters, now) {
            process.locked = true;
            let after = self.moment();
            self.after(node, after, Step::RenewWrite { leadership, deadline, computed_at: now });
        }
    }

    pub(crate) fn renew_write(
        &mut self,
        node: usize,
        leadership: Leadership,
        deadline: BootInstant,
        computed_at: BootInstant,
    ) {
        let now = self.local(node);
        let fails = self.nodes[node].kernel.failing > 0 && self.dice.percent(self.nodes[node].kernel.failing);
        if fails {
            self.post(node, |mailbox| mailbox.others.push_back(vip_core::Input::Fence(false)));
            let after = self.dice.between(MS, 100 * MS);
            self.after(node, after, Step::Notice(Notice::Fence(true)));
        } else {
            let written = if self.has(Part::AbsoluteDeadline) {
                deadline
            } else {
                now + deadline.saturating_duration_since(computed_at)
            };
            self.arm(node, leadership, written);
            self.post(node, |mailbox| mailbox.lease = Some((leadership, deadline)));
        }
        let process = self.process(node);
        process.locked = false;
        for event in std::mem::take(&mut process.at_lock) {
            self.at(self.now, event);
        }
    }

    // ---- tasks ----

    /// `Lease::changed`: whoever follows it looks.
    pub(crate) fn changed(&mut self, node: usize) {
        let (a, b) = (self.moment(), self.moment());
        let process = self.process(node);
        process.reign_turn += 1;
        process.election += 1;
        let (reign, election) = (process.reign_turn, process.election);
        self.after(node, a, Step::Reign(reign));
        self.after(node, b, Step::Election(election));
    }

    pub(crate) fn follow_reign(&mut self, node: usize, turn: u64) {
        let now = self.local(node);
        let successor = !self.successors(node).is_empty();
        let process = self.process(node);
        if process.reign_turn != turn {
            return;
        }
        let idle = 4 * IDLE;
        let (ready, wait) = match process.gate.check_reign(now) {
            Ok(_) => (true, idle),
            Err(NotArmed::OlderLease { remaining }) => (false, remaining),
            Err(_) => (false, idle),
        };
        let reign = process.gate.leading().map(|leadership| Reign { leadership, ready, successor });
        process.reign_turn += 1;
        let turn = process.reign_turn;
        if process.reign != reign {
            process.reign = reign;
            let cluster = Arc::clone(&process.raft.cluster);
            self.post(node, |mailbox| {
                mailbox.state = Some(cluster);
                mailbox.reign = Some(reign);
            });
            if ready {
                self.want_renewal(node);
            }
        }
        self.at_local(node, now + wait, Step::Reign(turn));
    }

    /// Voters that could carry the VIPs and answered within the last lease.
    pub(crate) fn successors(&mut self, node: usize) -> Vec<NodeId> {
        let now = self.local(node);
        let lease = self.plan.timing.lease;
        let peers = &self.process(node).peers;
        (peers.iter())
            .filter(|(_, (at, eligible))| *eligible && now.saturating_duration_since(*at) < lease)
            .map(|(peer, _)| *peer)
            .collect()
    }

    pub(crate) fn beat(&mut self, node: usize) {
        let now = self.local(node);
        let silent = self.process(node).gate.resigned() && self.has(Part::SilentAfterResign);
        if self.process(node).raft.leader.is_some() && !silent {
            self.engine(node, Input::Beat);
            self.want_renewal(node);
        }
        let heartbeat = self.plan.heartbeat;
        self.at_local(node, now + heartbeat, Step::Beat);
    }

    /// `election::run`, with `ElectionTiming::for_lease`.
    pub(crate) fn election(&mut self, node: usize, turn: u64) {
        const HASTY: u32 = 20;
        let now = self.local(node);
        let lease = self.plan.timing.lease;
        let at = self.stand_at(node);
        let process = self.process(node);
        if process.election != turn {
            return;
        }
        let wait = match at {
            None => IDLE,
            Some(at) if at > now => {
                if process.raft.current_leader().is_some() {
                    process.attempts = 0;
                }
                at.saturating_duration_since(now)
            }
            Some(_) => {
                process.attempts += 1;
                let retry = if process.attempts < HASTY {
                    Duration::from_millis(10)
                } else {
                    (lease / 4).max(Duration::from_millis(25))
                };
                if process.gate.check_campaign(now).is_ok() {
                    self.engine(node, Input::PreElect);
                }
                retry
            }
        };
        let process = self.process(node);
        process.election += 1;
        let turn = process.election;
        self.at_local(node, now + wait, Step::Election(turn));
    }

    fn stand_at(&mut self, node: usize) -> Option<BootInstant> {
        let lease = self.plan.timing.lease;
        let rank_delay = (lease / 20).clamp(Duration::from_millis(8), Duration::from_millis(25));
        let patience = (lease / 4).clamp(Duration::from_millis(40), Duration::from_millis(250));
        let once = self.has(Part::StandOnce);
        let process = self.nodes[node].process.as_ref()?;
        if process.raft.leader.is_some() || process.ending || (once && process.raft.standing.is_some()) {
            return None;
        }
        let me = self.nodes[node].id;
        let lost = process.raft.current_leader();
        let before = (0..self.nodes.len()).map(|peer| self.nodes[peer].id);
        let rank = before.filter(|peer| *peer < me && Some(*peer) != lost).count();
        let handicap = if process.eligible { Duration::ZERO } else { lease };
        let mut at = process.gate.campaign_from();
        at = process.encouraged_at.map_or(at, |encouraged| at.max(encouraged + rank_delay));
        at = process.voted_at.map_or(at, |voted| at.max(voted + patience));
        Some(at + rank_delay * u32::try_from(rank).unwrap_or(u32::MAX) + handicap)
    }
}
