//! A node's store: what the disk holds, what the process sees, and the one queue between them.

use std::sync::Arc;

use vip_core::{Command, HeldVote, Leadership};

/// Names an entry. Ordered as openraft orders them: by leadership, then by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LogId {
    /// Who appended it.
    pub(crate) by: Leadership,
    /// Where.
    pub(crate) index: u64,
}

/// A log entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its name.
    pub(crate) id: LogId,
    /// What it says; nothing where a leader begins.
    pub(crate) command: Option<Command>,
}

/// The entries from index 0.
pub(crate) type Log = Vec<Arc<Entry>>;

/// What survives.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    /// The vote.
    pub(crate) vote: Option<HeldVote>,
    /// The log.
    pub(crate) log: Log,
    /// How far it is known to be committed; `None` before the first.
    pub(crate) committed: Option<u64>,
}

/// A write.
#[derive(Clone, Debug)]
pub(crate) enum Job {
    /// Entries that follow each other.
    Append(Log),
    /// A vote, and whether anybody waits for it.
    Vote(HeldVote, bool),
    /// Take out the entries from here on.
    Truncate(u64),
    /// So far it is committed.
    Committed(u64),
}

/// The store as its process sees it.
#[derive(Debug)]
pub(crate) struct Store {
    /// The whole log, also what is not durable yet.
    pub(crate) log: Log,
    queue: Vec<Job>,
    writing: Vec<Job>,
    awaited: u64,
    awaited_writing: u64,
    durable: u64,
}

impl Store {
    /// What the process finds at start.
    #[must_use]
    pub(crate) fn open(disk: &Disk) -> Self {
        Self {
            log: disk.log.clone(),
            queue: Vec::new(),
            writing: Vec::new(),
            awaited: 0,
            awaited_writing: 0,
            durable: 0,
        }
    }

    /// The last entry.
    #[must_use]
    pub(crate) fn last(&self) -> Option<LogId> {
        self.log.last().map(|entry| entry.id)
    }

    /// The entry at `index`.
    #[must_use]
    pub(crate) fn id_at(&self, index: u64) -> Option<LogId> {
        self.log.get(usize::try_from(index).ok()?).map(|entry| entry.id)
    }

    /// Puts a write into the queue. What waits for it waits for [`Self::ticket`].
    pub(crate) fn write(&mut self, job: Job) {
        match &job {
            Job::Append(entries) => {
                self.awaited += 1;
                self.log.extend(entries.iter().cloned());
            }
            Job::Vote(_, true) => self.awaited += 1,
            Job::Truncate(from) => self.log.truncate(usize::try_from(*from).unwrap_or(usize::MAX)),
            Job::Vote(_, false) | Job::Committed(_) => {}
        }
        self.queue.push(job);
    }

    /// The number of the newest write that anybody waits for.
    #[must_use]
    pub(crate) const fn ticket(&self) -> u64 {
        self.awaited
    }

    /// Whether that write is durable.
    #[must_use]
    pub(crate) const fn is_durable(&self, ticket: u64) -> bool {
        self.durable >= ticket
    }

    /// Takes the queue to the disk if somebody waits for it and the disk is free; returns whether it did.
    pub(crate) fn start_commit(&mut self) -> bool {
        if !self.writing.is_empty() || self.awaited_writing == self.awaited {
            return false;
        }
        self.writing = std::mem::take(&mut self.queue);
        self.awaited_writing = self.awaited;
        true
    }

    /// Whether what is being written has votes in it, and entries.
    #[must_use]
    pub(crate) fn writes(&self) -> (bool, bool) {
        let any = |is: fn(&Job) -> bool| self.writing.iter().any(is);
        (any(|job| matches!(job, Job::Vote(..))), any(|job| matches!(job, Job::Append(_))))
    }

    /// Whether something is being written, and somebody waits for more.
    #[must_use]
    pub(crate) fn is_behind(&self) -> bool {
        !self.writing.is_empty() && self.awaited_writing < self.awaited
    }

    /// The commit is done; returns the votes that are durable now.
    pub(crate) fn finish_commit(&mut self, disk: &mut Disk) -> Vec<HeldVote> {
        self.durable = self.awaited_writing;
        let jobs = std::mem::take(&mut self.writing);
        disk.take(&jobs);
        jobs.iter().filter_map(|job| if let Job::Vote(vote, _) = job { Some(*vote) } else { None }).collect()
    }

    /// The process is gone: what was being written is there or not, the rest is not.
    pub(crate) fn crash(&self, disk: &mut Disk, written: bool) {
        if written {
            disk.take(&self.writing);
        }
    }

    /// The process ended in order: all is written.
    pub(crate) fn close(&self, disk: &mut Disk) {
        disk.take(&self.writing);
        disk.take(&self.queue);
    }
}

impl Disk {
    fn take(&mut self, jobs: &[Job]) {
        for job in jobs {
            match job {
                Job::Append(entries) => self.log.extend(entries.iter().cloned()),
                Job::Vote(vote, _) => self.vote = Some(*vote),
                Job::Truncate(from) => self.log.truncate(usize::try_from(*from).unwrap_or(usize::MAX)),
                Job::Committed(upto) => self.committed = Some(*upto),
            }
        }
    }
}
