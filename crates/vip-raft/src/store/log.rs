//! The log, as openraft wants it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use openraft::OptionalSend;
use openraft::storage::{RaftLogReader, RaftLogStorage};
use vip_core::NodeId;

use super::Shared;
use super::writer::{Job, Writer};
use crate::types::{Entry, IOFlushed, LogId, LogState, TypeConfig, Vote};

/// How many encoded bytes are read at a time for a peer, unless one entry alone is larger: what a message may hold.
const READ_BYTES: usize = 1 << 20;

/// The whole log in memory. The snapshot policy keeps it at a few thousand entries.
pub(super) struct LogMemory {
    /// The durable vote; that its candidate won may be on its way yet, and so may a newer vote for this node itself.
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    /// With the encoded size of each; no gaps.
    entries: BTreeMap<u64, (Entry, usize)>,
}

impl LogMemory {
    pub(super) fn new(
        vote: Option<Vote>,
        committed: Option<LogId>,
        purged: Option<LogId>,
        entries: BTreeMap<u64, (Entry, usize)>,
    ) -> Self {
        Self { vote, committed, purged, entries }
    }

    pub(super) fn is_pristine(&self) -> bool {
        self.vote.is_none() && self.purged.is_none() && self.entries.is_empty()
    }

    pub(super) fn set_vote(&mut self, vote: Vote) {
        self.vote = Some(vote);
    }

    fn last(&self) -> Option<LogId> {
        self.entries.last_key_value().map(|(_, (entry, _))| entry.log_id).or(self.purged)
    }

    fn append(&mut self, entry: Entry, size: usize) -> io::Result<()> {
        let index = entry.log_id.index;
        if let Some(last) = self.last()
            && index != last.index + 1
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("entry {} cannot follow entry {last} in the log", entry.log_id),
            ));
        }
        self.entries.insert(index, (entry, size));
        Ok(())
    }

    fn read(&self, range: impl RangeBounds<u64>) -> impl Iterator<Item = &(Entry, usize)> {
        let start = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(index) => index.saturating_add(1),
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        // BTreeMap::range panics on an inverted range, which openraft may ask for.
        self.entries.range(start..end.max(start)).map(|(_, entry)| entry)
    }
}

/// Reads the log, and the vote, from memory.
#[derive(Clone, Debug)]
pub struct LogReader {
    shared: Arc<Shared>,
}

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        Ok(self.shared.log().read(range).map(|(entry, _)| entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.shared.log().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let log = self.shared.log();
        let mut bytes = 0;
        let within = log.read(start..end).take_while(|(_, size)| {
            let first = bytes == 0;
            bytes += size;
            first || bytes <= READ_BYTES
        });
        Ok(within.map(|(entry, _)| entry.clone()).collect())
    }
}

/// The log and the vote.
#[derive(Debug)]
pub struct LogStore {
    me: NodeId,
    shared: Arc<Shared>,
    writer: Writer,
}

impl LogStore {
    pub(super) fn new(me: NodeId, shared: Arc<Shared>, writer: Writer) -> Self {
        Self { me, shared, writer }
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> io::Result<LogState> {
        let log = self.shared.log();
        Ok(LogState { last_purged_log_id: log.purged, last_log_id: log.last() })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader { shared: Arc::clone(&self.shared) }
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.shared.check()?;
        self.shared.hooks.votes.vote_changing(vote);
        // That the candidate of a durable vote won promises nothing new: no vote lies between the two, so after a crash
        // the older one refuses all that the newer one would. It rides on the next commit, which is that of the leader's
        // first entry, and saves a takeover one fsync on each node.
        let (won, first) = {
            let mut log = self.shared.log();
            let won =
                log.vote.is_some_and(|held| held.leader_id == vote.leader_id && !held.committed && vote.committed);
            if won {
                log.set_vote(*vote);
            }
            (won, log.vote.is_none())
        };
        if won {
            return self.writer.send(Job::Vote { vote: *vote, awaited: false, done: None }).await;
        }
        // A node's vote for itself is written while the others are asked for theirs, which saves a takeover another
        // fsync. It counts no sooner: what the others answer reaches openraft when it is durable (`PeerClient::vote`). A
        // lone voter has nobody to ask; that it won is awaited below, and so is this. The first vote of all is awaited,
        // since it goes with the entry that forms the cluster: others who know of that must not be alone with it.
        //
        // openraft takes the vote for durable, and with it all that it handed over before, entries of the leader before
        // among them. What it says of those is held back by the gate (`LeaseGate::append_acknowledged`), which knows the
        // newer vote since `vote_changing`.
        if !vote.committed && vote.leader_id.node_id == self.me.0 && !first {
            return self.writer.send(Job::Vote { vote: *vote, awaited: true, done: None }).await;
        }
        self.writer.write(|done| Job::Vote { vote: *vote, awaited: true, done: Some(done) }).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.shared.log().committed = committed;
        self.writer.send(Job::Committed { upto: committed }).await
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.shared.log().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        // Before the memory takes them: entries that cannot become durable must not be read.
        self.shared.check()?;
        let entries = entries
            .into_iter()
            .map(|entry| Ok((serde_json::to_vec(&entry).map_err(io::Error::other)?, entry)))
            .collect::<io::Result<Vec<_>>>()?;
        let mut encoded = Vec::with_capacity(entries.len());
        {
            let mut log = self.shared.log();
            for (bytes, entry) in entries {
                let index = entry.log_id.index;
                log.append(entry, bytes.len())?;
                encoded.push((index, bytes));
            }
        }
        self.writer.send(Job::Append { entries: encoded, done: callback }).await
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let from = last_log_id.map_or(0, |last| last.index + 1);
        self.shared.log().entries.split_off(&from);
        self.writer.send(Job::Truncate { from }).await
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        {
            let mut log = self.shared.log();
            log.entries = log.entries.split_off(&(log_id.index + 1));
            log.purged = Some(log_id);
        }
        self.writer.send(Job::Purge { upto: log_id }).await
    }
}
