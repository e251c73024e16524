//! What a node keeps on disk: its identity, its vote, the log and the newest snapshot, in one file.
//!
//! An answer means that the disk has it: a vote, an append and a snapshot are answered after the commit that holds
//! them. Three things are not waited for and ride on the next commit: how far the log is committed, purges and
//! truncations. Losing the tail of those in a crash takes nothing back that anybody was told, because the queue keeps
//! their order: what follows a truncation on disk never arrives there without it.
//!
//! One thread writes (see `writer`); nobody reads the file after [`Store::open`], for the whole log and the snapshot
//! are in memory, too: taking over costs no read. Once a write has failed the store refuses every later one, for after
//! a failed fsync nobody knows what the disk holds; only a new process may look.

mod error;
mod file;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod log;
mod machine;
mod writer;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};
use vip_core::{ClusterName, NodeId};

pub use error::OpenError;
pub use file::FORMAT;
pub use log::{LogReader, LogStore};
pub use machine::{Applied, SnapshotBuilder, StateMachine};

use crate::types::{SnapshotMeta, Vote};
use file::StoreFile;
use log::LogMemory;
use writer::Writer;

/// Whose store this is. Written when the store is made, and never changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterName,
    /// The node.
    pub node: NodeId,
    /// Drawn when the store was made, so that a wiped disk under a known node id is noticed.
    pub instance: String,
    /// The format of the file.
    pub format: u32,
}

/// Watches the vote on its way to the disk.
///
/// Both calls must be short: `vote_saved` runs on the writing thread.
pub trait VoteWitness: Send + Sync {
    /// This vote will be written. Called before anything of it leaves for the disk.
    fn vote_changing(&self, vote: &Vote);
    /// This vote is durable. Called before the one who asked is told.
    fn vote_saved(&self, vote: &Vote);
}

/// What the store calls.
#[derive(Clone)]
pub struct Hooks {
    /// Called once, on the writing thread, when a write failed: before anybody is told that theirs did.
    pub on_fatal: Arc<dyn Fn(io::Error) + Send + Sync>,
    /// The witness of votes.
    pub votes: Arc<dyn VoteWitness>,
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks").finish_non_exhaustive()
    }
}

/// An open store.
#[derive(Debug)]
pub struct Store {
    identity: Identity,
    pristine: bool,
    vote: Option<Vote>,
    log: LogStore,
    machine: StateMachine,
    closing: Closing,
}

impl Store {
    /// Opens the store in the directory `dir`, or makes one where there is none.
    ///
    /// Reads the whole file and starts a thread, so it does not belong on a task that others wait for.
    ///
    /// # Errors
    ///
    /// The store is in use, belongs to another node or cluster, is of another format, is damaged, or cannot be read
    /// or written. A store that is there is never replaced.
    pub fn open(dir: &Path, cluster: ClusterName, node: NodeId, hooks: Hooks) -> Result<Self, OpenError> {
        let (file, loaded) = StoreFile::open(dir, &cluster, node)?;
        let memory = LogMemory::new(loaded.vote, loaded.committed, loaded.purged, loaded.entries);
        let pristine = memory.is_pristine() && loaded.snapshot.is_none();
        let shared = Arc::new(Shared {
            log: Mutex::new(memory),
            snapshot: Mutex::new(loaded.snapshot.map(Arc::new)),
            failure: OnceLock::new(),
            hooks,
        });
        let path = file.path().to_owned();
        let (writer, closed) = Writer::start(file, Arc::clone(&shared)).map_err(|source| OpenError::Io {
            attempted: "start the thread that writes",
            path,
            source,
        })?;
        Ok(Self {
            identity: loaded.identity,
            pristine,
            vote: loaded.vote,
            log: LogStore::new(node, Arc::clone(&shared), writer.clone()),
            machine: StateMachine::new(shared, writer, loaded.applied),
            closing: Closing(closed),
        })
    }

    /// Whose store this is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The id that this store drew when it was made.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.identity.instance
    }

    /// Nothing was ever agreed or promised here, as of the opening: no log, no vote, no snapshot.
    #[must_use]
    pub fn is_pristine(&self) -> bool {
        self.pristine
    }

    /// The vote that was on disk at the opening.
    #[must_use]
    pub fn vote(&self) -> Option<Vote> {
        self.vote
    }

    /// The agreed state, as far as it is applied here. At first it is what the snapshot held.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<Applied> {
        self.machine.applied()
    }

    /// What openraft works with. The file is closed once both halves are dropped; [`Closing::wait`] tells when.
    #[must_use]
    pub fn into_parts(self) -> (LogStore, StateMachine, Closing) {
        (self.log, self.machine, self.closing)
    }
}

/// Resolves once the file is closed and may be opened again.
#[derive(Debug)]
pub struct Closing(oneshot::Receiver<()>);

impl Closing {
    /// Waits until the log store, the state machine and what they handed out are dropped and all is written.
    pub async fn wait(self) {
        // An error means that the thread is gone without a word, and the file with it.
        let _ = self.0.await;
    }
}

/// A snapshot as it is stored and kept.
#[derive(Clone, Debug, PartialEq, Eq)]
struct StoredSnapshot {
    meta: SnapshotMeta,
    /// The encoded `Cluster`.
    state: Vec<u8>,
}

/// What the log store, its readers, the state machine and the writer have in common.
struct Shared {
    log: Mutex<LogMemory>,
    /// The newest durable snapshot.
    snapshot: Mutex<Option<Arc<StoredSnapshot>>>,
    /// Why writing ended for good.
    failure: OnceLock<String>,
    hooks: Hooks,
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, LogMemory> {
        locked(&self.log)
    }

    fn snapshot(&self) -> MutexGuard<'_, Option<Arc<StoredSnapshot>>> {
        locked(&self.snapshot)
    }

    /// An error if a write failed before.
    fn check(&self) -> io::Result<()> {
        match self.failure.get() {
            None => Ok(()),
            Some(why) => Err(io::Error::other(format!(
                "refused to write, for an earlier write failed: {why}; find out about the disk and restart the node"
            ))),
        }
    }

    /// Ends all writing. The first failure is the one that is reported.
    fn fail(&self, error: io::Error) {
        if self.failure.set(error.to_string()).is_ok() {
            tracing::error!(%error, "the store failed and takes no more writes");
            (self.hooks.on_fatal)(error);
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("failure", &self.failure).finish_non_exhaustive()
    }
}

/// Every critical section here leaves its data whole, so a panic of another holder does not matter.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
