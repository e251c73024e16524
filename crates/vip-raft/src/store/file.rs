//! The file: its tables, how it is made, opened, checked and read. Writing is the business of `writer`.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Database, ReadTransaction, ReadableDatabase as _, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;
use vip_core::{Cluster, ClusterName, NodeId};

use super::error::OpenError;
use super::{Applied, Identity, StoredSnapshot};
use crate::types::{Entry, LogId, SnapshotMeta, Vote};

/// The format that this version writes, and the only one that it reads.
pub const FORMAT: u32 = 1;

const FILE_NAME: &str = "raft.redb";
/// A store is made under this name and renamed when it is whole, so a file called `raft.redb` always is one.
const UNFINISHED_NAME: &str = "raft.redb.new";

pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta.v1");
pub(super) const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log.v1");
pub(super) const SNAPSHOT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshot.v1");

const IDENTITY: &str = "identity";
pub(super) const VOTE: &str = "vote";
pub(super) const COMMITTED: &str = "committed";
pub(super) const PURGED: &str = "purged";
pub(super) const SNAPSHOT_META: &str = "meta";
pub(super) const SNAPSHOT_STATE: &str = "state";

/// Nothing is read after the opening, so redb's cache only has to hold what one commit touches.
const CACHE_BYTES: usize = 16 << 20;

/// A file larger than this is compacted at the opening if most of it is air.
const COMPACT_ABOVE_BYTES: u64 = 8 << 20;

/// The open file, and the lock on its directory.
pub(super) struct StoreFile {
    db: Database,
    path: PathBuf,
    /// Held for as long as the file is open: there is no file to lock yet while a store is being made.
    _lock: File,
}

/// What was on disk.
pub(super) struct Loaded {
    pub(super) identity: Identity,
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
    /// With the encoded size of each.
    pub(super) entries: BTreeMap<u64, (Entry, usize)>,
    pub(super) snapshot: Option<StoredSnapshot>,
    pub(super) applied: Applied,
}

impl StoreFile {
    pub(super) fn open(dir: &Path, cluster: &ClusterName, node: NodeId) -> Result<(Self, Loaded), OpenError> {
        let lock = lock_dir(dir)?;
        let path = dir.join(FILE_NAME);
        let there = path.try_exists().map_err(|source| OpenError::io("look for", &path, source))?;
        if !there {
            make(dir, &path, cluster, node)?;
        }
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let mut db = open_checked(&path)?;
            let loaded = load(&db, &path, cluster, node)?;
            compact_if_wasteful(&mut db, &path)?;
            Ok((db, loaded))
        }));
        // redb asserts what a file that it wrote cannot violate; a file that does is as damaged as one that it refuses.
        let (db, loaded) =
            opened.unwrap_or_else(|_| Err(OpenError::corrupt(&path, "its structure makes no sense, see the panic")))?;
        Ok((Self { db, path, _lock: lock }, loaded))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn db(&self) -> &Database {
        &self.db
    }

    pub(super) fn close(self) -> Result<(), redb::DatabaseError> {
        self.db.close()
    }
}

fn lock_dir(dir: &Path) -> Result<File, OpenError> {
    let handle = File::open(dir).map_err(|source| OpenError::io("open the data directory", dir, source))?;
    match handle.try_lock() {
        Ok(()) => Ok(handle),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked { dir: dir.to_owned() }),
        Err(TryLockError::Error(source)) => Err(OpenError::io("lock the data directory", dir, source)),
    }
}

/// Makes a store that holds an identity and nothing else. All or nothing: it appears under its name when it is durable.
fn make(dir: &Path, path: &Path, cluster: &ClusterName, node: NodeId) -> Result<(), OpenError> {
    let unfinished = dir.join(UNFINISHED_NAME);
    match fs::remove_file(&unfinished) {
        Ok(()) => tracing::warn!(path = %unfinished.display(), "removed what an interrupted first start left"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(OpenError::io("remove", &unfinished, source)),
    }
    let identity =
        Identity { cluster: cluster.clone(), node, instance: uuid::Uuid::new_v4().to_string(), format: FORMAT };
    write_identity(&unfinished, &identity).map_err(|error| OpenError::redb("make", &unfinished, error))?;
    fs::rename(&unfinished, path).map_err(|source| OpenError::io("rename the new store to", path, source))?;
    // The name is in the directory, so it is the directory that has to reach the disk.
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|source| OpenError::io("sync the data directory", dir, source))?;
    tracing::info!(path = %path.display(), instance = identity.instance, "made a new store");
    Ok(())
}

fn write_identity(path: &Path, identity: &Identity) -> Result<(), redb::Error> {
    let encoded = serde_json::to_vec(identity).map_err(io::Error::other)?;
    let db = Database::builder().set_cache_size(CACHE_BYTES).create(path)?;
    let txn = db.begin_write()?;
    txn.open_table(LOG)?;
    txn.open_table(SNAPSHOT)?;
    txn.open_table(META)?.insert(IDENTITY, encoded.as_slice())?;
    txn.commit()?;
    db.close()?;
    Ok(())
}

/// Opens the file with every checksum verified.
///
/// redb falls back to the commit before where the newest one is torn, which is right, for a torn one was never
/// answered. A file that was closed in order ends in a two-phase commit, and there redb refuses instead.
fn open_checked(path: &Path) -> Result<Database, OpenError> {
    let shown = path.to_owned();
    Database::builder()
        .set_cache_size(CACHE_BYTES)
        .set_check_integrity_on_open(true)
        .set_repair_callback(move |repair| {
            // The steps of a repair are told apart by its progress alone: between 0 and 0.6 only the one is reported
            // in which the newest commit has turned out to be torn.
            if repair.progress() > 0.0 && repair.progress() < 0.6 {
                tracing::warn!(path = %shown.display(), "rolled back the commit that the last stop interrupted");
            }
        })
        .open(path)
        .map_err(|error| OpenError::redb("open", path, error.into()))
}

pub(super) fn load(db: &Database, path: &Path, cluster: &ClusterName, node: NodeId) -> Result<Loaded, OpenError> {
    let failed = |error: redb::Error| OpenError::redb("read", path, error);
    let txn = db.begin_read().map_err(|error| failed(error.into()))?;
    let tables = Tables { path, txn };
    let identity = tables.identity(cluster, node)?;
    let snapshot = tables.snapshot()?;
    let applied = match &snapshot {
        None => Applied::default(),
        Some(snapshot) => Applied {
            cluster: Arc::new(tables.decode::<Cluster>("the snapshot's state", &snapshot.state)?.restored()),
            last_applied: snapshot.meta.last_log_id,
            membership: snapshot.meta.last_membership.clone(),
        },
    };
    let loaded = Loaded {
        identity,
        vote: tables.meta(VOTE)?,
        committed: tables.meta(COMMITTED)?,
        purged: tables.meta(PURGED)?,
        entries: tables.entries()?,
        snapshot,
        applied,
    };
    match loaded.contradiction() {
        None => Ok(loaded),
        Some(found) => Err(OpenError::corrupt(path, found)),
    }
}

struct Tables<'a> {
    path: &'a Path,
    txn: ReadTransaction,
}

impl Tables<'_> {
    fn failed(&self, error: impl Into<redb::Error>) -> OpenError {
        OpenError::redb("read", self.path, error.into())
    }

    fn decode<T: DeserializeOwned>(&self, what: &str, bytes: &[u8]) -> Result<T, OpenError> {
        serde_json::from_slice(bytes)
            .map_err(|error| OpenError::corrupt(self.path, format!("{what} cannot be decoded ({error})")))
    }

    fn bytes(&self, table: TableDefinition<'_, &str, &[u8]>, key: &str) -> Result<Option<Vec<u8>>, OpenError> {
        let table = self.txn.open_table(table).map_err(|error| self.failed(error))?;
        let value = table.get(key).map_err(|error| self.failed(error))?;
        Ok(value.map(|value| value.value().to_vec()))
    }

    fn meta<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, OpenError> {
        self.bytes(META, key)?.map(|bytes| self.decode(&format!("the record {key:?}"), &bytes)).transpose()
    }

    fn identity(&self, cluster: &ClusterName, node: NodeId) -> Result<Identity, OpenError> {
        let path = self.path.to_owned();
        let Some(raw) = self.meta::<serde_json::Value>(IDENTITY)? else {
            return Err(OpenError::corrupt(self.path, "it says nowhere whose store it is"));
        };
        // The format comes first: what another one means by the rest is not known here.
        let found = raw.get("format").and_then(serde_json::Value::as_u64);
        match found {
            Some(found) if found == u64::from(FORMAT) => {}
            Some(found) => return Err(OpenError::OtherFormat { path, found, supported: FORMAT }),
            None => return Err(OpenError::corrupt(self.path, "it does not name its format")),
        }
        let identity: Identity = serde_json::from_value(raw)
            .map_err(|error| OpenError::corrupt(self.path, format!("its identity cannot be decoded ({error})")))?;
        if identity.cluster != *cluster {
            return Err(OpenError::OtherCluster { path, found: identity.cluster, configured: cluster.clone() });
        }
        if identity.node != node {
            return Err(OpenError::OtherNode { path, found: identity.node, configured: node });
        }
        Ok(identity)
    }

    fn entries(&self) -> Result<BTreeMap<u64, (Entry, usize)>, OpenError> {
        let table = self.txn.open_table(LOG).map_err(|error| self.failed(error))?;
        let mut entries = BTreeMap::new();
        for record in table.iter().map_err(|error| self.failed(error))? {
            let (key, value) = record.map_err(|error| self.failed(error))?;
            let index = key.value();
            let entry: Entry = self.decode(&format!("log entry {index}"), value.value())?;
            entries.insert(index, (entry, value.value().len()));
        }
        Ok(entries)
    }

    fn snapshot(&self) -> Result<Option<StoredSnapshot>, OpenError> {
        let meta = self.bytes(SNAPSHOT, SNAPSHOT_META)?;
        let state = self.bytes(SNAPSHOT, SNAPSHOT_STATE)?;
        match (meta, state) {
            (None, None) => Ok(None),
            (Some(meta), Some(state)) => {
                let meta: SnapshotMeta = self.decode("the snapshot's description", &meta)?;
                Ok(Some(StoredSnapshot { meta, state }))
            }
            _ => Err(OpenError::corrupt(self.path, "one half of its snapshot is missing")),
        }
    }
}

impl Loaded {
    /// What cannot be true of a store that lost nothing. openraft checks some of this only in debug builds, and would
    /// paper over a missing snapshot by making one of an empty state.
    fn contradiction(&self) -> Option<String> {
        let covered = self.snapshot.as_ref().and_then(|snapshot| snapshot.meta.last_log_id);
        let Some(first) = self.purged.map_or(Some(0), |purged| purged.index.checked_add(1)) else {
            return Some("its log was cut up to the greatest index there is".to_owned());
        };
        let mut last = self.purged;
        for (expected, (index, (entry, _))) in (first..=u64::MAX).zip(&self.entries) {
            if *index != expected || entry.log_id.index != expected {
                return Some(format!("log entry {expected} is missing; found {} in its place", entry.log_id));
            }
            if last.is_some_and(|last| entry.log_id < last) {
                return Some(format!("log entry {} comes after one of a later leader", entry.log_id));
            }
            last = Some(entry.log_id);
        }
        if let Some(purged) = self.purged
            && covered.is_none_or(|covered| covered.index < purged.index)
        {
            return Some(format!("its log was cut up to {purged}, but no snapshot covers that"));
        }
        if let Some(committed) = self.committed
            && last.max(covered).is_none_or(|last| last.index < committed.index)
        {
            return Some(format!("{committed} was committed, but is neither in the log nor in a snapshot"));
        }
        // The vote is written before the entries that it lets in.
        if let Some(last) = last
            && last.leader_id.term > 0
            && self.vote.as_ref().is_none_or(|vote| *vote.leader_id() < last.leader_id)
        {
            return Some(format!("its log holds {last}, but its vote is older than that"));
        }
        None
    }
}

fn compact_if_wasteful(db: &mut Database, path: &Path) -> Result<(), OpenError> {
    let len = fs::metadata(path).map_err(|source| OpenError::io("look at", path, source))?.len();
    if len <= COMPACT_ABOVE_BYTES {
        return Ok(());
    }
    let failed = |error: redb::Error| OpenError::redb("measure", path, error);
    let txn = db.begin_write().map_err(|error| failed(error.into()))?;
    let stats = txn.stats().map_err(|error| failed(error.into()))?;
    txn.abort().map_err(|error| failed(error.into()))?;
    if stats.stored_bytes() + stats.metadata_bytes() < len / 4 {
        db.compact().map_err(|error| OpenError::redb("compact", path, error.into()))?;
        tracing::info!(path = %path.display(), bytes_before = len, "compacted the store");
    }
    Ok(())
}
