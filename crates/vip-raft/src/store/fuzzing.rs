//! What `fuzz/` reaches of the store. Only with the feature `fuzzing`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use openraft::storage::{RaftLogStorage as _, RaftLogStorageExt as _, RaftSnapshotBuilder as _, RaftStateMachine as _};
use redb::Database;
use redb::backends::InMemoryBackend;
use vip_core::{Assignment, Cluster, ClusterName, Command, Epoch, LeaseKind, NodeId, VipSpec};

use super::file::{FORMAT, LOG, Loaded, META, SNAPSHOT, StoreFile, load};
use super::log::LogMemory;
use super::{Hooks, Identity, OpenError, Store, VoteWitness};
use crate::types::{Entry, EntryPayload, LeaderId, LogId, Vote, leadership_of_log};

const NODE: NodeId = NodeId(1);

fn cluster_name() -> ClusterName {
    "web".parse().expect("a name")
}

/// Reads a store whose records are the lines of `text`: a key, a space, and the value. A number is the key of a log
/// entry, `meta` and `state` are the snapshot, and whatever else stands beside the vote. Identity and format are given
/// where no line says otherwise.
///
/// A store that is not refused must behave: its entries are applied, and what would be written of it reads as the same.
pub fn records(text: &[u8]) {
    let db = Database::builder().create_with_backend(InMemoryBackend::new()).expect("a database in memory");
    fill(&db, text).expect("a database in memory takes everything");
    let Ok(loaded) = load(&db, Path::new("records"), &cluster_name(), NODE) else { return };
    let _ = format!("{:?} {:?} {:?}", loaded.vote, loaded.committed, loaded.purged);
    let given = loaded.snapshot.is_some();
    let mut applied = loaded.applied;
    let covered = applied.last_applied.map(|last| last.index);
    // What a snapshot says of itself is taken as it is, so the state of a wrong one may already be ahead.
    let honest = covered.map_or(0, |covered| covered) >= applied.cluster.revision;
    for (entry, _) in loaded.entries.values() {
        let encoded = serde_json::to_vec(entry).expect("an entry encodes");
        assert_eq!(serde_json::from_slice::<Entry>(&encoded).ok().as_ref(), Some(entry), "an entry changed");
        let _ = (leadership_of_log(&entry.log_id), format!("{entry}"));
        if covered.is_some_and(|covered| entry.log_id.index <= covered) {
            continue;
        }
        let before = applied.cluster.revision;
        applied.apply(entry.clone());
        assert!(!honest || applied.cluster.revision >= before, "the revision went back from {before}");
    }
    let state = serde_json::to_vec(&*applied.cluster).expect("a state encodes");
    let again = serde_json::from_slice::<Cluster>(&state).expect("a state decodes").restored();
    assert!(given || again == *applied.cluster, "the state changed on its way to the disk");
    let memory = LogMemory::new(loaded.vote, loaded.committed, loaded.purged, loaded.entries);
    let _ = memory.is_pristine();
}

fn fill(db: &Database, text: &[u8]) -> Result<(), redb::Error> {
    let mut txn = db.begin_write()?;
    txn.set_durability(redb::Durability::None)?;
    {
        let mut log = txn.open_table(LOG)?;
        let mut meta = txn.open_table(META)?;
        let mut snapshot = txn.open_table(SNAPSHOT)?;
        let identity = Identity { cluster: cluster_name(), node: NODE, instance: "store-1".into(), format: FORMAT };
        let identity = serde_json::to_vec(&identity).map_err(io::Error::other)?;
        meta.insert("identity", identity.as_slice())?;
        for line in text.split(|byte| *byte == b'\n') {
            let Some(space) = line.iter().position(|byte| *byte == b' ') else { continue };
            let (Ok(key), value) = (str::from_utf8(&line[..space]), &line[space + 1..]) else { continue };
            match key.parse::<u64>() {
                Ok(index) => log.insert(index, value)?,
                Err(_) if matches!(key, "meta" | "state") => snapshot.insert(key, value)?,
                Err(_) => meta.insert(key, value)?,
            };
        }
    }
    txn.commit()?;
    Ok(())
}

/// Store files of one life, one after each commit, and the file that was closed in order.
#[derive(Debug)]
pub struct StoreFiles {
    dir: PathBuf,
    /// The bytes and what they hold. The last one was closed in order, and holds what the one before it does.
    files: Vec<(Vec<u8>, String)>,
    /// Where the files have anything but zeros, or are near to it: what is worth damaging.
    lively: Vec<usize>,
}

impl StoreFiles {
    /// Makes a store in `dir`, which must be empty; each case is opened there.
    ///
    /// # Panics
    ///
    /// Where that fails.
    #[must_use]
    pub fn make(dir: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let images = runtime.block_on(live(dir));
        let mut files = Self { dir: dir.to_owned(), files: Vec::new(), lively: Vec::new() };
        for bytes in images {
            let holds = files.opened(&bytes).expect("a whole file");
            files.files.push((bytes, holds));
        }
        let (last, _) = files.files.last().expect("files");
        let is_lively = |at: &usize| last[at.saturating_sub(16)..last.len().min(at + 16)].iter().any(|byte| *byte != 0);
        files.lively = (0..last.len()).filter(is_lively).collect();
        files
    }

    /// Damages a file as `recipe` says and opens it. What was committed must be there, or the file be refused: only the
    /// newest commit may be missing, and only where the file was not closed. A header whose write was lost is that of an
    /// older file, which may miss its own newest commit; but what is there is always what some commit left.
    ///
    /// # Panics
    ///
    /// Where something else came of it.
    pub fn damage(&self, recipe: &[u8]) {
        let Some((which, steps)) = recipe.split_first() else { return };
        let newest = self.files.len() - 1 - usize::from(which % 4).min(self.files.len() - 1);
        let closed = newest + 1 == self.files.len();
        let mut bytes = self.files[newest].0.clone();
        let mut header = newest;
        for step in steps.chunks_exact(4) {
            header = header.min(self.step(&mut bytes, newest, [step[0], step[1], step[2], step[3]]));
        }
        let oldest = if header == newest && closed { newest } else { header.saturating_sub(1) };
        match self.opened(&bytes) {
            Ok(holds) => {
                let committed = self.files[oldest..=newest].iter().any(|(_, then)| *then == holds);
                assert!(
                    committed,
                    "the store opened with something else in it than files {oldest} to {newest}: {holds}"
                );
            }
            Err(OpenError::Corrupt { .. }) => {}
            Err(other) => panic!("a damaged file is refused as something else: {other}"),
        }
    }

    /// Byte 0 says what, bytes 1 and 2 where, byte 3 is the value. Returns of which file the header is now: of an older one
    /// when the write of the first page was lost.
    fn step(&self, bytes: &mut Vec<u8>, newest: usize, [what, high, low, value]: [u8; 4]) -> usize {
        const PAGE: usize = 4096;
        let at = usize::from(high) << 8 | usize::from(low);
        let at = self.lively[at * self.lively.len() / 0x1_0000];
        if at >= bytes.len() {
            return newest;
        }
        let page = at / PAGE * PAGE..(at / PAGE * PAGE + PAGE).min(bytes.len());
        match what % 6 {
            0 => bytes[at] ^= value,
            1 => bytes[at] = value,
            // A write that never came: the page as it was a few commits ago.
            2 => {
                let older = newest.saturating_sub(1 + usize::from(value % 4));
                let old = &self.files[older].0;
                if let (Some(old), Some(now)) = (old.get(page.clone()), bytes.get_mut(page)) {
                    now.copy_from_slice(old);
                    if at < PAGE {
                        return older;
                    }
                }
            }
            // A write that went to another place.
            3 => {
                let to = usize::from(value) * PAGE;
                if page.end <= bytes.len() && to + page.len() <= bytes.len() {
                    bytes.copy_within(page, to);
                }
            }
            // A page of zeros.
            4 => {
                if let Some(page) = bytes.get_mut(page) {
                    page.fill(0);
                }
            }
            _ => bytes.truncate(at.max(bytes.len() * usize::from(value) / 256)),
        }
        newest
    }

    fn opened(&self, bytes: &[u8]) -> Result<String, OpenError> {
        fs::write(self.dir.join("raft.redb"), bytes).expect("a file in the directory of this target");
        let (file, loaded) = StoreFile::open(&self.dir, &cluster_name(), NODE)?;
        drop(file);
        let Loaded { identity, vote, committed, purged, entries, snapshot, applied } = loaded;
        Ok(format!(
            "{} {vote:?} {committed:?} {purged:?} {entries:?} {snapshot:?} {applied:?}",
            identity.cluster.as_str()
        ))
    }
}

struct NoWitness;

impl VoteWitness for NoWitness {
    fn vote_changing(&self, _: &Vote) {}
    fn vote_saved(&self, _: &Vote) {}
}

/// The file after each of a few writes that were waited for, and after the close.
async fn live(dir: &Path) -> Vec<Vec<u8>> {
    let hooks = Hooks { on_fatal: Arc::new(|error| panic!("{error}")), votes: Arc::new(NoWitness) };
    let read = || fs::read(dir.join("raft.redb")).expect("the store");
    let store = Store::open(dir, cluster_name(), NODE, hooks).expect("a new store");
    let (mut log, mut machine, closing) = store.into_parts();
    let mut images = Vec::new();
    log.save_vote(&Vote::new(2, 1)).await.expect("a vote");
    images.push(read());
    log.blocking_append((0..6).map(entry)).await.expect("entries");
    images.push(read());
    let applied: Vec<_> = (0..4).map(|index| Ok((entry(index), None))).collect();
    machine.apply(futures::stream::iter(applied)).await.expect("applied");
    machine.get_snapshot_builder().await.build_snapshot().await.expect("a snapshot");
    images.push(read());
    log.purge(log_id(1)).await.expect("a purge");
    log.save_committed(Some(log_id(4))).await.expect("what is committed");
    // For another node: one's own is not waited for.
    log.save_vote(&Vote::new(3, 2)).await.expect("a vote");
    images.push(read());
    drop((log, machine));
    closing.wait().await;
    images.push(read());
    images
}

fn log_id(index: u64) -> LogId {
    LogId::new(LeaderId { term: 2, node_id: 1 }, index)
}

fn entry(index: u64) -> Entry {
    let command = Command::RegisterNode { node: NodeId(index), instance: format!("store-{index}") };
    Entry { log_id: log_id(index), payload: EntryPayload::Normal(command.into()) }
}

/// A state with a VIP that is assigned.
pub(crate) fn example_state() -> Cluster {
    let mut cluster = Cluster::default();
    let by = leadership_of_log(&log_id(0));
    let spec: VipSpec =
        serde_json::from_str(r#"{"name":"a","address":"10.0.0.100","prefix_len":32,"interface":"eth0"}"#)
            .expect("a spec");
    cluster.apply(4, by, Command::DeclareVip(spec));
    for vip in cluster.vips.values_mut() {
        vip.assignment = Some(Assignment { owner: by.node, epoch: Epoch(5), by, kind: LeaseKind::Leader });
    }
    cluster.revision = 5;
    cluster
}

/// Records to begin with, by name: a store after a while, one with a snapshot, and some that contradict themselves.
#[must_use]
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let at = |index| json(&log_id(index));
    let vote = json(&Vote::new_committed(2, 1));
    let line = |index| format!("{index} {}\n", json(&entry(index)));
    let log = |from: u64, to: u64| (from..to).map(line).collect::<String>();
    let blank = json(&Entry { log_id: log_id(6), payload: EntryPayload::Blank });
    let members = r#"{"configs":[[1,2,3]],"nodes":{"1":{"name":"n1","address":"10.0.0.1:7400"},"2":{"name":"n2","address":"10.0.0.2:7400"},"3":{"name":"n3","address":"10.0.0.3:7400"}}}"#;
    let leader = json(&log_id(7).leader_id);
    let membership =
        format!(r#"7 {{"log_id":{{"leader_id":{leader},"index":7}},"payload":{{"Membership":{members}}}}}"#);
    let meta = format!(r#"{{"last_log_id":{},"last_membership":{{"log_id":null,"membership":{members}}}}}"#, at(5));
    let state = json(&example_state());
    let snapshot = format!("meta {meta}\nstate {state}\n");
    let cases = [
        ("log", format!("vote {vote}\ncommitted {}\n{}6 {blank}\n{membership}\n", at(7), log(0, 6))),
        ("snapshot", format!("vote {vote}\n{snapshot}committed {}\npurged {}\n{}", at(8), at(3), log(4, 10))),
        ("only-a-vote", format!("vote {}\n", json(&Vote::new(7, 3)))),
        ("only-a-snapshot", snapshot.clone()),
        ("half-a-snapshot", format!("state {state}\n")),
        ("a-gap", format!("vote {vote}\n{}{}", log(0, 3), log(4, 6))),
        ("no-vote", log(0, 3)),
        ("purged-without-snapshot", format!("vote {vote}\npurged {}\n{}", at(2), log(3, 5))),
        ("committed-too-far", format!("vote {vote}\n{}committed {}\n", log(0, 2), at(9))),
        ("another-format", "identity {\"format\":2}\n".to_owned()),
        (
            "another-node",
            "identity {\"cluster\":\"web\",\"node\":2,\"instance\":\"store-2\",\"format\":1}\n".to_owned(),
        ),
    ];
    cases.into_iter().map(|(name, text)| (name, text.into_bytes())).collect()
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("own types encode")
}
