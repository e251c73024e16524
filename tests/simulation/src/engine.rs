//! What the engine does with each input. The state is in [`crate::raft`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use vip_core::{BootInstant, Command, HeldVote, Leadership, NodeId, Outcome};

use crate::message::{AppendResult, Body, Lane};
use crate::omission::Part;
use crate::plan::{MS, nanos};
use crate::raft::{AppendIn, Candidate, Follower, Input, Leader, Responder};
use crate::store::{Entry, Job, LogId};
use crate::world::{Step, World};

/// How many entries an append carries at most.
const ENTRIES: usize = 16;

impl World {
    /// Gives the engine an input. It takes it in when it is not waiting for the disk.
    pub(crate) fn engine(&mut self, node: usize, input: Input) {
        self.process(node).raft.queue.push_back(input);
        self.run_engine(node);
    }

    pub(crate) fn run_engine(&mut self, node: usize) {
        loop {
            let Some(process) = self.nodes[node].process.as_mut() else { return };
            if process.raft.blocked.is_some() {
                return;
            }
            let Some(input) = process.raft.queue.pop_front() else { return };
            self.take_in(node, input);
        }
    }

    fn take_in(&mut self, node: usize, input: Input) {
        match input {
            Input::Append(append) => self.on_append(node, append),
            Input::AppendLog(append) => self.on_append_log(node, append),
            Input::Vote { from, to_life, leadership, last, transfer } => {
                let granted = self.would_vote(node, leadership, last, transfer)
                    && self.update_vote(node, HeldVote { leadership, committed: false });
                self.then(node, Input::AnswerVote { from, to_life, leadership, granted });
            }
            Input::AnswerVote { from, to_life, leadership, granted } => {
                let vote = self.process(node).raft.vote;
                self.send(node, from, Some(to_life), Body::Voted { leadership, granted, vote });
                self.vote_handled(node);
            }
            Input::PreVote { from, to_life, leadership, last } => {
                let vote = self.process(node).raft.vote;
                let granted =
                    self.would_vote(node, leadership, last, false) && HeldVote { leadership, committed: false } >= vote;
                if granted {
                    let now = self.local(node);
                    self.process(node).encouraged_at = Some(now);
                }
                self.send(node, from, Some(to_life), Body::PreVoted { granted, vote });
            }
            Input::VoteAnswered { from, leadership, granted, vote } => {
                self.on_vote_answered(node, from, leadership, granted, vote);
            }
            Input::PreVoteAnswered { from, granted, vote } => {
                self.on_pre_vote_answered(node, from, granted, vote);
            }
            Input::Appended { from, leader, lane, rpc, sent_mono, result } => {
                self.on_appended(node, from, (leader, lane, rpc), sent_mono, result);
            }
            Input::Flushed { by, index } => {
                if let Some(leader) = self.process(node).raft.leader.as_mut().filter(|leader| leader.by == by) {
                    leader.flushed = leader.flushed.max(Some(index));
                    self.try_commit(node);
                }
            }
            Input::PreElect => self.pre_elect(node),
            Input::Stand => self.elect(node, false),
            Input::AskForVotes { leadership, transfer } => self.ask_for_votes(node, leadership, transfer),
            Input::TransferTo { from, last } => self.on_transfer_to(node, from, last),
            Input::Transfer { to } => self.on_transfer(node, to),
            Input::Write { command, responder } => self.on_write(node, command, responder),
            Input::Beat => self.on_beat(node),
            Input::Replicate { peer } => self.replicate(node, peer, false),
            Input::TimedOut { peer, lane, rpc } => self.on_timed_out(node, peer, lane, rpc),
        }
    }

    /// At once, or when the vote that was just changed is durable.
    fn then(&mut self, node: usize, input: Input) {
        if self.process(node).raft.blocked.is_some() {
            self.process(node).raft.queue.push_front(input);
        } else {
            self.take_in(node, input);
        }
    }

    // ---- votes ----

    /// `VoteHandler::update_vote`.
    fn update_vote(&mut self, node: usize, vote: HeldVote) -> bool {
        let mono = self.mono(node);
        let lease = if vote.committed { nanos(self.plan.timing.lease) } else { 0 };
        let me = self.nodes[node].id;
        let raft = &mut self.process(node).raft;
        if vote < raft.vote {
            return false;
        }
        if vote > raft.vote {
            raft.touched = Some((mono, lease));
            raft.lease_off = false;
            self.save_vote(node, vote);
        } else {
            let lease = if raft.lease_off { 0 } else { lease };
            raft.touched = Some((mono, lease));
        }
        let raft = &mut self.process(node).raft;
        if vote.leadership.node != me {
            raft.leader = None;
            raft.candidate = None;
            raft.pre_candidate = None;
        }
        true
    }

    /// `LogStore::save_vote` of vip-raft, and the gate's witness of it.
    fn save_vote(&mut self, node: usize, vote: HeldVote) {
        let now = self.local(node);
        let durable = self.has(Part::DurableVote);
        let me = self.nodes[node].id;
        let held = self.process(node).raft.vote;
        let awaited = held == HeldVote::default() && self.has(Part::FirstVoteAwaited);
        let process = self.process(node);
        process.gate.vote_changing(vote);
        if !vote.committed {
            process.voted_at = Some(now);
        }
        let won = held.leadership == vote.leadership && !held.committed && vote.committed;
        let stands = vote.leadership.node == me && !vote.committed && !awaited;
        process.raft.vote = vote;
        process.store.write(Job::Vote(vote, durable && !won));
        if durable && stands {
            // The others are asked meanwhile; what they answer has to wait. openraft takes all that was written before for
            // durable, too (`Notification::LocalIO`), and answers; the gate stands before that.
            process.raft.standing = Some(process.store.ticket());
            for (ticket, ..) in &mut process.acknowledging {
                *ticket = 0;
            }
        } else if durable && !won {
            process.raft.blocked = Some(process.store.ticket());
        } else if !durable {
            process.gate.vote_saved(vote);
        }
        self.trace.line(self.now, || format!("n{} vote {vote:?}", node + 1));
        self.start_disk(node);
        self.acknowledge(node);
    }

    /// The checks of `handle_vote_req` and `handle_pre_vote_req` before the vote itself.
    fn would_vote(&mut self, node: usize, _stands: Leadership, last: Option<LogId>, transfer: bool) -> bool {
        let mono = self.mono(node);
        let leased = self.plan.raft_lease && self.has(Part::RaftLease) && !transfer;
        let lease = nanos(self.plan.timing.lease);
        let voters = self.plan.nodes;
        let any_log = !self.has(Part::LogRule);
        let process = self.process(node);
        if leased && process.raft.lease_runs(mono) {
            return false;
        }
        let acked = process.raft.leader.as_ref().and_then(|leader| leader.quorum_acked(voters));
        if leased && acked.is_some_and(|acked| mono < acked + lease) {
            return false;
        }
        any_log || last >= process.store.last()
    }

    fn pre_elect(&mut self, node: usize) {
        let mono = self.mono(node);
        let leased = self.plan.raft_lease && self.has(Part::RaftLease);
        let me = self.nodes[node].id;
        let process = self.process(node);
        if process.raft.leader.is_some() || (leased && process.raft.lease_runs(mono)) {
            return;
        }
        let leadership = Leadership { term: process.raft.vote.leadership.term + 1, node: me };
        process.raft.pre_candidate = Some(Candidate { leadership, grants: BTreeSet::from([me]) });
        let last = process.store.last();
        self.trace.line(self.now, || format!("n{} asks whether to stand for {leadership}", node + 1));
        for peer in self.peers_of(node) {
            self.send(node, peer, None, Body::PreVote { leadership, last });
        }
    }

    /// `do_elect`.
    fn elect(&mut self, node: usize, transfer: bool) {
        let me = self.nodes[node].id;
        let raft = &mut self.process(node).raft;
        raft.pre_candidate = None;
        if raft.leader.is_some() {
            return;
        }
        let leadership = Leadership { term: raft.vote.leadership.term + 1, node: me };
        raft.candidate = Some(Candidate { leadership, grants: BTreeSet::new() });
        self.trace.line(self.now, || format!("n{} stands for {leadership}, transfer {transfer}", node + 1));
        self.update_vote(node, HeldVote { leadership, committed: false });
        self.then(node, Input::AskForVotes { leadership, transfer });
    }

    fn ask_for_votes(&mut self, node: usize, leadership: Leadership, transfer: bool) {
        let me = self.nodes[node].id;
        let process = self.process(node);
        let Some(candidate) = process.raft.candidate.as_mut().filter(|at| at.leadership == leadership) else { return };
        candidate.grants.insert(me);
        let last = process.store.last();
        let by_transfer_of = process.gate.transfer_of(leadership).filter(|_| transfer);
        for peer in self.peers_of(node) {
            self.send(node, peer, None, Body::Vote { leadership, last, transfer, by_transfer_of });
        }
    }

    fn on_vote_answered(&mut self, node: usize, from: NodeId, leadership: Leadership, granted: bool, vote: HeldVote) {
        let quorum = self.plan.nodes / 2 + 1;
        let now = self.local(node);
        let any_time = !self.has(Part::OwnVoteFirst);
        let granted_counts = self.has(Part::CountAfterGrant);
        let process = self.process(node);
        let count_from = if granted_counts { process.gate.votes_count_from() } else { BootInstant::ZERO };
        let durable = any_time || process.raft.standing.is_none_or(|ticket| process.store.is_durable(ticket));
        if !durable || now < count_from {
            process.raft.early.push(Input::VoteAnswered { from, leadership, granted, vote });
            if durable {
                self.at_local(node, count_from, Step::CountVotes);
            }
            return;
        }
        let Some(candidate) = process.raft.candidate.as_mut() else { return };
        let mine = HeldVote { leadership: candidate.leadership, committed: false };
        if granted && vote == mine && leadership == candidate.leadership {
            candidate.grants.insert(from);
            if candidate.grants.len() >= quorum {
                self.establish(node);
            }
            return;
        }
        self.update_vote(node, HeldVote { committed: false, ..vote });
    }

    /// Those that came too early, once more.
    pub(crate) fn count_votes(&mut self, node: usize) {
        let raft = &mut self.process(node).raft;
        raft.queue.extend(raft.early.drain(..));
        self.run_engine(node);
    }

    fn on_pre_vote_answered(&mut self, node: usize, from: NodeId, granted: bool, vote: HeldVote) {
        let quorum = self.plan.nodes / 2 + 1;
        let raft = &mut self.process(node).raft;
        let Some(candidate) = raft.pre_candidate.as_mut() else { return };
        if granted {
            candidate.grants.insert(from);
            if candidate.grants.len() >= quorum {
                self.elect(node, false);
            }
        } else if vote > raft.vote {
            self.update_vote(node, HeldVote { committed: false, ..vote });
        }
    }

    /// `establish_leader`.
    fn establish(&mut self, node: usize) {
        let since = self.mono(node);
        let peers = self.peers_of(node);
        let process = self.process(node);
        let Some(candidate) = process.raft.candidate.take() else { return };
        let by = candidate.leadership;
        let next = process.store.log.len() as u64;
        let followers: BTreeMap<_, _> =
            peers.into_iter().map(|peer| (peer, Follower { next, ..Follower::default() })).collect();
        process.raft.leader = Some(Leader { by, transfer_to: None, followers, flushed: None, since });
        process.raft.pre_candidate = None;
        self.counts.elections += 1;
        self.trace.line(self.now, || format!("n{} wins {by}", node + 1));
        self.update_vote(node, HeldVote { leadership: by, committed: true });
        self.leader_append(node, None);
        self.changed(node);
    }

    /// `Engine::startup` where `enable_leader_restore` is on.
    pub(crate) fn restore_leader(&mut self, node: usize) {
        let since = self.mono(node);
        let me = self.nodes[node].id;
        let peers = self.peers_of(node);
        let process = self.process(node);
        let vote = process.raft.vote;
        if !vote.committed || vote.leadership.node != me {
            return;
        }
        let next = process.store.log.len() as u64;
        let followers = peers.into_iter().map(|peer| (peer, Follower { next, ..Follower::default() })).collect();
        let flushed = process.store.last().map(|last| last.index);
        process.raft.leader = Some(Leader { by: vote.leadership, transfer_to: None, followers, flushed, since });
        if process.store.last().is_none_or(|last| last.by != vote.leadership) {
            self.leader_append(node, None);
        }
    }

    // ---- transfers ----

    fn on_transfer(&mut self, node: usize, to: NodeId) {
        let told_all = !self.has(Part::TellTargetOnly);
        let process = self.process(node);
        let Some(leader) = process.raft.leader.as_mut() else { return };
        leader.transfer_to = Some(to);
        let from = leader.by;
        process.raft.lease_off = true;
        process.raft.touched = process.raft.touched.map(|(at, _)| (at, 0));
        let last = process.store.last();
        if !process.gate.may_transfer(from) {
            return;
        }
        self.counts.transfers += 1;
        self.trace.line(self.now, || format!("n{} hands {from} over to n{to}", node + 1));
        for peer in self.peers_of(node) {
            if peer == to || told_all {
                self.send(node, peer, None, Body::Transfer { from, to, last });
            }
        }
    }

    fn on_transfer_to(&mut self, node: usize, from: Leadership, last: Option<LogId>) {
        let any = !self.has(Part::TransferOfPresentVote);
        let process = self.process(node);
        if process.raft.vote != (HeldVote { leadership: from, committed: true }) && !any {
            return;
        }
        process.raft.lease_off = true;
        process.raft.touched = process.raft.touched.map(|(at, _)| (at, 0));
        if last <= process.store.last() {
            self.elect(node, true);
        }
    }

    // ---- the follower's log ----

    fn on_append(&mut self, node: usize, append: Box<AppendIn>) {
        let vote = HeldVote { leadership: append.leader, committed: true };
        if !self.update_vote(node, vote) {
            let higher = self.process(node).raft.vote;
            self.append_done(node, &append, Some(AppendResult::HigherVote(higher)));
            return;
        }
        self.then(node, Input::AppendLog(append));
    }

    fn on_append_log(&mut self, node: usize, append: Box<AppendIn>) {
        if let Some(prev) = append.prev
            && self.process(node).store.id_at(prev.index) != Some(prev)
        {
            if self.process(node).store.id_at(prev.index).is_some() {
                self.truncate(node, prev.index);
            }
            self.acknowledge_one(node, &append, AppendResult::Conflict(prev.index));
            return;
        }
        let first = append.prev.map_or(0, |prev| prev.index + 1);
        let store = &mut self.process(node).store;
        let fresh = (append.entries.iter()).position(|entry| store.id_at(entry.id.index) != Some(entry.id));
        if let Some(fresh) = fresh {
            let from = first + fresh as u64;
            if store.id_at(from).is_some() {
                self.truncate(node, from);
            }
            let process = self.process(node);
            process.store.write(Job::Append(append.entries[fresh..].to_vec()));
        }
        let last = append.entries.last().map(|entry| entry.id).or(append.prev);
        let process = self.process(node);
        let reached = last.map(|id| id.index);
        process.raft.verified = match process.raft.verified {
            Some((by, upto)) if by == append.leader => Some((by, upto.max(reached))),
            Some(_) | None => Some((append.leader, reached)),
        };
        let verified = process.raft.verified.and_then(|(_, upto)| upto);
        let committed = append.committed.map(|id| id.index).min(verified);
        let ticket = process.store.ticket();
        process.acknowledging.push((ticket, append, last));
        self.commit_upto(node, committed);
        self.start_disk(node);
        self.acknowledge(node);
    }

    fn truncate(&mut self, node: usize, from: u64) {
        if self.process(node).raft.committed.is_some_and(|committed| committed >= from) {
            self.oracle.found(format!("n{} truncates its log from {from}, which is committed", node + 1));
        }
        let process = self.process(node);
        process.store.write(Job::Truncate(from));
        let lost = process.raft.responders.split_off(&from);
        for (_, responder) in lost.into_values() {
            self.answer(node, responder, Err(()));
        }
    }

    // ---- the leader's log ----

    fn on_write(&mut self, node: usize, command: Command, responder: Responder) {
        let mono = self.mono(node);
        let lease = nanos(self.plan.timing.lease);
        let voters = self.plan.nodes;
        let raft = &mut self.process(node).raft;
        let writable = raft.leader.as_ref().is_some_and(|leader| {
            leader.transfer_to.is_none() && leader.quorum_acked(voters).is_some_and(|acked| mono < acked + lease)
        });
        if !writable {
            self.answer(node, responder, Err(()));
            return;
        }
        let by = raft.vote.leadership;
        let known = matches!(&command, Command::DeclareVip(spec)
            if raft.cluster.vips.get(&spec.name).is_some_and(|vip| vip.spec == *spec));
        let stands = raft.cluster.revision;
        let of_operator = !matches!(responder, Responder::Agent);
        if known && !self.has(Part::AnswerFromLog) {
            return self.answer(node, responder, Ok(Outcome::Unchanged { revision: stands }));
        }
        let index = self.leader_append(node, Some(command));
        if of_operator && !self.has(Part::AnswerApplied) {
            return self.answer(node, responder, Ok(Outcome::Changed { revision: index }));
        }
        self.process(node).raft.responders.insert(index, (by, responder));
        self.after(node, 3000 * MS, Step::Unanswered(index));
    }

    fn leader_append(&mut self, node: usize, command: Option<Command>) -> u64 {
        let process = self.process(node);
        let Some(by) = process.raft.leader.as_ref().map(|leader| leader.by) else { return 0 };
        let id = LogId { by, index: process.store.log.len() as u64 };
        process.store.write(Job::Append(vec![Arc::new(Entry { id, command })]));
        let ticket = process.store.ticket();
        process.flushing.push((ticket, by, id.index));
        self.start_disk(node);
        for peer in self.peers_of(node) {
            self.replicate(node, peer, false);
        }
        id.index
    }

    /// Sends what a follower does not have; `anyway` also if that is nothing but how far all is committed.
    fn replicate(&mut self, node: usize, peer: NodeId, anyway: bool) {
        let process = self.process(node);
        let committed = process.raft.committed.and_then(|index| process.store.id_at(index));
        let rpc = process.raft.call();
        let Some(leader) = process.raft.leader.as_mut() else { return };
        let by = leader.by;
        let Some(follower) = leader.followers.get_mut(&peer) else { return };
        let log = &process.store.log;
        let next = usize::try_from(follower.next).unwrap_or(usize::MAX).min(log.len());
        if follower.data.is_some() || (next == log.len() && !anyway) {
            return;
        }
        follower.data = Some(rpc);
        let entries: Vec<_> = log[next..].iter().take(ENTRIES).cloned().collect();
        let prev = next.checked_sub(1).map(|prev| log[prev].id);
        self.send_append(node, peer, (by, Lane::Replication, rpc), prev, entries, committed);
    }

    fn send_append(
        &mut self,
        node: usize,
        peer: NodeId,
        (leader, lane, rpc): (Leadership, Lane, u64),
        prev: Option<LogId>,
        entries: Vec<Arc<Entry>>,
        committed: Option<LogId>,
    ) {
        let (sent_at, sent_mono) = (self.local(node), self.mono(node));
        let body = Body::Append { leader, sent_at, sent_mono, lane, rpc, prev, entries, committed };
        self.send(node, peer, None, body);
        let patience = nanos(self.plan.heartbeat);
        self.after(node, patience, Step::TimedOut { peer, lane, rpc });
    }

    fn on_timed_out(&mut self, node: usize, peer: NodeId, lane: Lane, rpc: u64) {
        let backoff = nanos(self.plan.heartbeat).clamp(5 * MS, 100 * MS);
        let Some(leader) = self.process(node).raft.leader.as_mut() else { return };
        let Some(follower) = leader.followers.get_mut(&peer) else { return };
        match lane {
            Lane::Replication if follower.data == Some(rpc) => {
                follower.data = None;
                self.after(node, backoff, Step::Replicate(peer));
            }
            Lane::Heartbeat if follower.beat == Some(rpc) => follower.beat = None,
            Lane::Replication | Lane::Heartbeat => {}
        }
    }

    fn on_appended(
        &mut self,
        node: usize,
        from: NodeId,
        (by, lane, rpc): (Leadership, Lane, u64),
        sent_mono: u64,
        result: AppendResult,
    ) {
        let Some(leader) = self.process(node).raft.leader.as_mut().filter(|leader| leader.by == by) else { return };
        let Some(follower) = leader.followers.get_mut(&from) else { return };
        let call = match lane {
            Lane::Replication => &mut follower.data,
            Lane::Heartbeat => &mut follower.beat,
        };
        if *call != Some(rpc) {
            // openraft has stopped waiting for it.
            return;
        }
        *call = None;
        match result {
            AppendResult::HigherVote(higher) => {
                self.update_vote(node, higher);
            }
            AppendResult::Success(last) => {
                follower.acked = follower.acked.max(Some(sent_mono));
                if lane == Lane::Replication {
                    follower.matched = follower.matched.max(last);
                    follower.next = last.map_or(0, |last| last.index + 1);
                    self.try_commit(node);
                    self.replicate(node, from, false);
                }
            }
            AppendResult::Conflict(at) => {
                follower.acked = follower.acked.max(Some(sent_mono));
                if lane == Lane::Replication {
                    follower.next = follower.next.min(at);
                    self.replicate(node, from, false);
                }
            }
        }
    }

    fn try_commit(&mut self, node: usize) {
        let quorum = self.plan.nodes / 2 + 1;
        let process = self.process(node);
        let Some(leader) = &process.raft.leader else { return };
        let mut reached: Vec<_> = leader.followers.values().map(|at| at.matched.map(|id| id.index)).collect();
        reached.push(leader.flushed);
        reached.sort_unstable_by(|a, b| b.cmp(a));
        let Some(upto) = reached[quorum - 1] else { return };
        let own = process.store.id_at(upto).is_some_and(|id| id.by == leader.by);
        if own && process.raft.committed < Some(upto) {
            self.commit_upto(node, Some(upto));
            for peer in self.peers_of(node) {
                self.replicate(node, peer, true);
            }
        }
    }

    fn on_beat(&mut self, node: usize) {
        let mono = self.mono(node);
        let lease = nanos(self.plan.timing.lease);
        let voters = self.plan.nodes;
        let peers = self.peers_of(node);
        let process = self.process(node);
        let committed = process.raft.committed.and_then(|index| process.store.id_at(index));
        let Some(leader) = process.raft.leader.as_ref() else { return };
        // Without a quorum only a probe now and then (`quorum_loss_probe_interval`, 2 L).
        let age = mono - leader.quorum_acked(voters).unwrap_or(leader.since);
        let allowed = age < lease || ((age - lease) / (2 * lease)) % 2 == 1;
        if !allowed || leader.transfer_to.is_some() {
            return;
        }
        for peer in peers {
            let raft = &mut self.process(node).raft;
            let rpc = raft.call();
            let Some(leader) = raft.leader.as_mut() else { return };
            let by = leader.by;
            let Some(follower) = leader.followers.get_mut(&peer).filter(|at| at.beat.is_none()) else { continue };
            follower.beat = Some(rpc);
            let prev = follower.matched;
            self.send_append(node, peer, (by, Lane::Heartbeat, rpc), prev, Vec::new(), committed);
        }
    }

    fn peers_of(&self, node: usize) -> Vec<NodeId> {
        (0..self.nodes.len()).filter(|peer| *peer != node).map(|peer| self.nodes[peer].id).collect()
    }
}
