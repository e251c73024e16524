//! The one thread that writes, and the queue that leads to it.
//!
//! What waits in the queue goes into one transaction, in its order, so ten appends cost one fsync. redb commits in one
//! phase: data and header in one fsync, told apart from a torn write by checksums (redb's design.md, "1PC+C"). The
//! second phase would guard against an adversary who controls the order of writes, for twice the time of a takeover.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use redb::{Durability, Table, WriteTransaction};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use vip_core::KillPoint;

use super::file::{COMMITTED, LOG, META, PURGED, SNAPSHOT, SNAPSHOT_META, SNAPSHOT_STATE, StoreFile, VOTE};
use super::{Shared, StoredSnapshot};
use crate::types::{IOFlushed, LogId, Vote};

/// How many writes may wait. A leader has a few dozen entries in flight; this many means that the disk stands still,
/// and then those who write shall wait.
const QUEUE_DEPTH: usize = 1024;

/// How many writes go into one transaction, and how many that are not waited for may gather before they get one.
const BATCH: usize = 256;

/// A write.
pub(super) enum Job {
    /// Encoded entries with their indexes.
    Append { entries: Vec<(u64, Vec<u8>)>, done: IOFlushed },
    /// A vote. Not awaited where all that is new is that its candidate won; awaited, but by nobody who wants an answer,
    /// where it is this node's for itself (see [`super::log::LogStore`]).
    Vote { vote: Vote, awaited: bool, done: Option<oneshot::Sender<io::Result<()>>> },
    /// Take out the entries from this index on.
    Truncate { from: u64 },
    /// Take out the entries up to here.
    Purge { upto: LogId },
    /// What is known to be committed.
    Committed { upto: Option<LogId> },
    /// A snapshot. One that was built here gives way to a newer one that was installed meanwhile.
    Snapshot { snapshot: Arc<StoredSnapshot>, built_here: bool, done: oneshot::Sender<io::Result<()>> },
}

impl Job {
    /// Somebody waits for it.
    fn is_awaited(&self) -> bool {
        match self {
            Self::Append { .. } | Self::Snapshot { .. } => true,
            Self::Vote { awaited, .. } => *awaited,
            Self::Truncate { .. } | Self::Purge { .. } | Self::Committed { .. } => false,
        }
    }

    fn answer(self, result: io::Result<()>) {
        match self {
            Self::Append { done, .. } => done.io_completed(result),
            Self::Vote { done: None, .. } => {}
            Self::Vote { done: Some(done), .. } | Self::Snapshot { done, .. } => {
                // Nobody there any more: the task was ended while it waited.
                let _ = done.send(result);
            }
            Self::Truncate { .. } | Self::Purge { .. } | Self::Committed { .. } => {}
        }
    }
}

/// The way into the queue. The thread ends when the last one is dropped.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    jobs: mpsc::Sender<Job>,
    shared: Arc<Shared>,
}

impl Writer {
    /// Starts the thread; the receiver hears when it has closed the file.
    pub(super) fn start(file: StoreFile, shared: Arc<Shared>) -> io::Result<(Self, oneshot::Receiver<()>)> {
        let (jobs, queue) = mpsc::channel(QUEUE_DEPTH);
        let (closed_tx, closed_rx) = oneshot::channel();
        let thread = WriterThread { path: file.path().to_owned(), file, shared: Arc::clone(&shared), queue };
        thread::Builder::new().name("raft-store".to_owned()).spawn(move || {
            thread.run();
            let _ = closed_tx.send(());
        })?;
        Ok((Self { jobs, shared }, closed_rx))
    }

    /// Puts a write into the queue; waits only where that is full.
    pub(super) async fn send(&self, job: Job) -> io::Result<()> {
        self.shared.check()?;
        self.jobs.send(job).await.map_err(|_| gone())
    }

    /// Puts a write into the queue and waits until it is durable.
    pub(super) async fn write(&self, job: impl FnOnce(oneshot::Sender<io::Result<()>>) -> Job) -> io::Result<()> {
        let (done, answer) = oneshot::channel();
        self.send(job(done)).await?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

fn gone() -> io::Error {
    io::Error::other("the thread that writes the store is gone")
}

struct WriterThread {
    file: StoreFile,
    path: PathBuf,
    shared: Arc<Shared>,
    queue: mpsc::Receiver<Job>,
}

impl WriterThread {
    fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH);
        while self.queue.blocking_recv_many(&mut batch, BATCH) > 0 {
            if batch.len() >= BATCH || batch.iter().any(Job::is_awaited) {
                self.commit(&mut batch);
            }
        }
        self.commit(&mut batch);
        if let Err(error) = self.file.close() {
            tracing::error!(path = %self.path.display(), %error, "the store was not closed in order");
        }
    }

    fn commit(&self, batch: &mut Vec<Job>) {
        if batch.is_empty() {
            return;
        }
        let result = self.shared.check().and_then(|()| {
            catch_unwind(AssertUnwindSafe(|| self.write(batch)))
                .unwrap_or_else(|_| Err(io::Error::other("redb panicked")))
                .map_err(|error| {
                    let text = format!("cannot write {}: {error}", self.path.display());
                    self.shared.fail(io::Error::new(error.kind(), text.clone()));
                    io::Error::new(error.kind(), text)
                })
        });
        for job in batch.drain(..) {
            match &result {
                Ok(()) => {
                    self.publish(&job);
                    job.answer(Ok(()));
                }
                Err(error) => job.answer(Err(io::Error::new(error.kind(), error.to_string()))),
            }
        }
    }

    fn write(&self, batch: &[Job]) -> io::Result<()> {
        let mut txn = self.file.db().begin_write().map_err(io_error)?;
        txn.set_durability(Durability::Immediate).map_err(io_error)?;
        txn.set_two_phase_commit(false);
        self.fill(&txn, batch)?;
        KillPoint::StoreFilled.reach();
        txn.commit().map_err(io_error)
    }

    fn fill(&self, txn: &WriteTransaction, batch: &[Job]) -> io::Result<()> {
        let mut log = txn.open_table(LOG).map_err(io_error)?;
        let mut meta = txn.open_table(META).map_err(io_error)?;
        let mut snapshots = txn.open_table(SNAPSHOT).map_err(io_error)?;
        for job in batch {
            match job {
                Job::Append { entries, .. } => {
                    for (index, entry) in entries {
                        log.insert(index, entry.as_slice()).map_err(io_error)?;
                    }
                }
                Job::Vote { vote, .. } => put(&mut meta, VOTE, vote)?,
                Job::Truncate { from } => log.retain_in(*from.., |_, _| false).map_err(io_error)?,
                Job::Purge { upto } => {
                    log.retain_in(..=upto.index, |_, _| false).map_err(io_error)?;
                    put(&mut meta, PURGED, upto)?;
                }
                Job::Committed { upto: Some(upto) } => put(&mut meta, COMMITTED, upto)?,
                Job::Committed { upto: None } => {
                    meta.remove(COMMITTED).map_err(io_error)?;
                }
                Job::Snapshot { snapshot, .. } => {
                    if !self.is_outdated(job, batch) {
                        put(&mut snapshots, SNAPSHOT_META, &snapshot.meta)?;
                        snapshots.insert(SNAPSHOT_STATE, snapshot.state.as_slice()).map_err(io_error)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// A snapshot that was built here and is older than one that is stored, or that is being stored with it.
    fn is_outdated(&self, job: &Job, batch: &[Job]) -> bool {
        let Job::Snapshot { snapshot, built_here: true, .. } = job else {
            return false;
        };
        let stored = self.shared.snapshot().as_ref().and_then(|stored| stored.meta.last_log_id);
        let installed = batch.iter().filter_map(|other| match other {
            Job::Snapshot { snapshot, built_here: false, .. } => snapshot.meta.last_log_id,
            _ => None,
        });
        stored.into_iter().chain(installed).max() > snapshot.meta.last_log_id
    }

    /// Makes known what has become durable.
    fn publish(&self, job: &Job) {
        match job {
            Job::Vote { vote, .. } => {
                KillPoint::StoreVoteWritten.reach();
                self.shared.log().set_vote(*vote);
                self.shared.hooks.votes.vote_saved(vote);
            }
            Job::Snapshot { snapshot, .. } => {
                if !self.is_outdated(job, &[]) {
                    *self.shared.snapshot() = Some(Arc::clone(snapshot));
                }
            }
            Job::Append { .. } => KillPoint::StoreEntriesWritten.reach(),
            Job::Truncate { .. } | Job::Purge { .. } | Job::Committed { .. } => {}
        }
    }
}

fn put(table: &mut Table<'_, &str, &[u8]>, key: &str, value: &impl Serialize) -> io::Result<()> {
    let encoded = serde_json::to_vec(value).map_err(io::Error::other)?;
    table.insert(key, encoded.as_slice()).map_err(io_error)?;
    Ok(())
}

/// Keeps the kind, so that a full disk can be told from a broken one.
fn io_error(error: impl Into<redb::Error>) -> io::Error {
    match error.into() {
        redb::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}
