//! The store on real files: what it promises, what it refuses, and what it survives.
// All of this is test code; clippy.toml's exception only knows functions that are marked as tests.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use openraft::StorageError;
use openraft::storage::{
    RaftLogReader as _, RaftLogStorage as _, RaftLogStorageExt as _, RaftSnapshotBuilder as _, RaftStateMachine as _,
};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt as _;
use redb::{Database, TableDefinition};
use tempfile::TempDir;
use vip_core::{ClusterName, Command, NodeId};
use vip_raft::store::{Closing, Hooks, LogStore, OpenError, StateMachine, Store, VoteWitness};
use vip_raft::types::{Entry, EntryPayload, IOFlushed, LeaderId, LogId, Membership, TypeConfig, Vote};

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta.v1");
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log.v1");
const SNAPSHOT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshot.v1");

struct NoWitness;

impl VoteWitness for NoWitness {
    fn vote_changing(&self, _: &Vote) {}
    fn vote_saved(&self, _: &Vote) {}
}

fn hooks() -> Hooks {
    Hooks { on_fatal: Arc::new(|error| panic!("the store failed: {error}")), votes: Arc::new(NoWitness) }
}

fn name(name: &str) -> ClusterName {
    name.parse().unwrap()
}

fn open(dir: &Path) -> Result<Store, OpenError> {
    Store::open(dir, name("test"), NodeId(1), hooks())
}

fn file_of(dir: &Path) -> PathBuf {
    dir.join("raft.redb")
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(LeaderId { term, node_id: 1 }, index)
}

fn entry(term: u64, index: u64) -> Entry {
    let command = Command::RegisterNode { node: NodeId(index), instance: format!("instance-{index}") };
    Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(command.into()) }
}

async fn apply(machine: &mut StateMachine, entries: impl IntoIterator<Item = Entry>) {
    let items: Vec<_> = entries.into_iter().map(|entry| Ok((entry, None))).collect();
    machine.apply(futures::stream::iter(items)).await.unwrap();
}

async fn snapshot(machine: &mut StateMachine) -> LogId {
    let mut builder = machine.try_create_snapshot_builder(true).await.unwrap();
    builder.build_snapshot().await.unwrap().meta.last_log_id.unwrap()
}

async fn close(log: LogStore, machine: StateMachine, closing: Closing) {
    drop((log, machine));
    closing.wait().await;
}

/// A closed store with a vote, entries 3 to 9, a snapshot up to 4, and all up to 7 committed.
async fn filled(dir: &Path) {
    let (mut log, mut machine, closing) = open(dir).unwrap().into_parts();
    log.save_vote(&Vote::new_committed(2, 1)).await.unwrap();
    log.blocking_append((0..10).map(|index| entry(2, index))).await.unwrap();
    apply(&mut machine, (0..5).map(|index| entry(2, index))).await;
    assert_eq!(snapshot(&mut machine).await, log_id(2, 4));
    log.purge(log_id(2, 2)).await.unwrap();
    log.save_committed(Some(log_id(2, 7))).await.unwrap();
    close(log, machine, closing).await;
}

async fn assert_filled(store: Store, what: &str) {
    assert!(!store.is_pristine(), "{what}");
    assert_eq!(store.vote(), Some(Vote::new_committed(2, 1)), "{what}");
    let (mut log, mut machine, closing) = store.into_parts();
    let state = log.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(log_id(2, 2)), "{what}");
    assert_eq!(state.last_log_id, Some(log_id(2, 9)), "{what}");
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(2, 7)), "{what}");
    let entries = log.get_log_reader().await.try_get_log_entries(..).await.unwrap();
    assert_eq!(entries, (3..10).map(|index| entry(2, index)).collect::<Vec<_>>(), "{what}");
    let applied = machine.applied().borrow().clone();
    assert_eq!(applied.last_applied, Some(log_id(2, 4)), "{what}");
    assert_eq!(applied.cluster.instances.len(), 5, "{what}");
    let current = machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(current.meta.last_log_id, Some(log_id(2, 4)), "{what}");
    close(log, machine, closing).await;
}

/// Changes a closed store behind its back.
fn tamper(dir: &Path, change: impl FnOnce(&redb::WriteTransaction)) {
    let db = Database::open(file_of(dir)).unwrap();
    let txn = db.begin_write().unwrap();
    change(&txn);
    txn.commit().unwrap();
}

#[track_caller]
fn refused(dir: &Path, words: &[&str]) -> OpenError {
    let error = open(dir).map(|_| ()).expect_err("must be refused");
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
    error
}

/// redb's panics on what it believes impossible are part of a test; their text is not.
fn hush_redb() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !panic.location().is_some_and(|location| location.file().contains("/redb-")) {
                report(panic);
            }
        }));
    });
}

struct InTempDir;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for InTempDir {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let (log, machine, _) = open(dir.path()).unwrap().into_parts();
        Ok((dir, log, machine))
    }
}

#[tokio::test]
async fn passes_the_conformance_suite() {
    Suite::test_all(InTempDir).await.unwrap();
}

#[tokio::test]
async fn reopening_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    for round in 0..3 {
        assert_filled(open(dir.path()).unwrap(), &format!("round {round}")).await;
    }
    // Re-applied as openraft does it at its start, the state is what it was.
    let (mut log, mut machine, closing) = open(dir.path()).unwrap().into_parts();
    openraft::StorageHelper::new(&mut log, &mut machine).with_id(1).get_initial_state().await.unwrap();
    assert_eq!(machine.applied().borrow().cluster.instances.len(), 8);
    close(log, machine, closing).await;
}

#[tokio::test]
async fn a_truncation_reaches_the_disk_with_what_follows_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, machine, closing) = open(dir.path()).unwrap().into_parts();
    log.save_vote(&Vote::new_committed(1, 1)).await.unwrap();
    log.blocking_append((0..10).map(|index| entry(1, index))).await.unwrap();
    log.save_vote(&Vote::new_committed(2, 1)).await.unwrap();
    log.truncate_after(Some(log_id(1, 3))).await.unwrap();
    log.blocking_append([entry(2, 4)]).await.unwrap();
    log.truncate_after(Some(log_id(2, 4))).await.unwrap();
    close(log, machine, closing).await;
    let (mut log, ..) = open(dir.path()).unwrap().into_parts();
    let entries = log.get_log_reader().await.try_get_log_entries(..).await.unwrap();
    assert_eq!(entries.last(), Some(&entry(2, 4)));
    assert_eq!(entries.len(), 5);
}

#[tokio::test]
async fn only_an_empty_store_is_pristine() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    assert!(store.is_pristine());
    let instance = store.instance().to_owned();
    let (log, machine, closing) = store.into_parts();
    close(log, machine, closing).await;

    let store = open(dir.path()).unwrap();
    assert!(store.is_pristine(), "opening it is no promise");
    assert_eq!(store.instance(), instance, "drawn once");
    let (mut log, machine, closing) = store.into_parts();
    log.save_vote(&Vote::new(1, 2)).await.unwrap();
    close(log, machine, closing).await;
    assert!(!open(dir.path()).unwrap().is_pristine(), "a vote");

    let dir = tempfile::tempdir().unwrap();
    let (mut log, machine, closing) = open(dir.path()).unwrap().into_parts();
    log.blocking_append([entry(0, 0)]).await.unwrap();
    close(log, machine, closing).await;
    let store = open(dir.path()).unwrap();
    assert!(!store.is_pristine(), "an entry");
    assert_ne!(store.instance(), instance);

    let dir = tempfile::tempdir().unwrap();
    let (log, mut machine, closing) = open(dir.path()).unwrap().into_parts();
    apply(&mut machine, [entry(0, 0)]).await;
    snapshot(&mut machine).await;
    close(log, machine, closing).await;
    assert!(!open(dir.path()).unwrap().is_pristine(), "a snapshot");
}

#[tokio::test]
async fn refuses_the_store_of_another() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let other = |cluster, node| Store::open(dir.path(), name(cluster), NodeId(node), hooks()).map(|_| ()).unwrap_err();
    let error = other("test", 7);
    assert!(matches!(error, OpenError::OtherNode { found: NodeId(1), configured: NodeId(7), .. }));
    assert!(error.to_string().contains("store of node 1, but this is node 7"), "{error}");
    let error = other("prod", 1);
    assert!(error.to_string().contains("of cluster test, but this node is of cluster prod"), "{error}");

    assert_filled(open(dir.path()).unwrap(), "refusals change nothing").await;
    tamper(dir.path(), |txn| {
        let identity = br#"{"format":2,"owner":"what a later version knows"}"#.as_slice();
        txn.open_table(META).unwrap().insert("identity", identity).unwrap();
    });
    let error = refused(dir.path(), &["format 2", "format 1"]);
    assert!(matches!(error, OpenError::OtherFormat { found: 2, supported: 1, .. }));
}

#[tokio::test]
async fn refuses_a_store_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let error = refused(dir.path(), &["another vipd", &dir.path().display().to_string()]);
    assert!(matches!(error, OpenError::Locked { .. }));
    let (log, machine, closing) = store.into_parts();
    close(log, machine, closing).await;
    open(dir.path()).unwrap();
}

#[test]
fn refuses_a_directory_that_it_cannot_use() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    refused(&missing, &["missing", "must exist"]);
    std::fs::write(dir.path().join("file"), "").unwrap();
    refused(&dir.path().join("file"), &["file"]);
    std::fs::create_dir(file_of(dir.path())).unwrap();
    refused(dir.path(), &["raft.redb"]);
}

#[tokio::test]
async fn an_interrupted_first_start_is_repeated() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("raft.redb.new"), "half").unwrap();
    assert!(open(dir.path()).unwrap().is_pristine());
    assert!(!dir.path().join("raft.redb.new").exists());
}

#[tokio::test]
async fn a_flipped_bit_is_refused_or_harmless() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let good = std::fs::read(file_of(dir.path())).unwrap();
    hush_redb();
    let (mut refusals, mut harmless) = (0, 0);
    // A bit of every byte of the header, every bit of the byte that chooses the newest commit (redb's "god byte"),
    // then a bit of one byte in a hundred.
    let flips = (0..320).map(|at| (at, at % 8)).chain((0..8).map(|bit| (9, bit)));
    for (at, bit) in flips.chain((320..good.len()).step_by(101).map(|at| (at, at % 8))) {
        let damaged = tempfile::tempdir().unwrap();
        let mut bytes = good.clone();
        bytes[at] ^= 1 << bit;
        std::fs::write(file_of(damaged.path()), bytes).unwrap();
        match open(damaged.path()) {
            Err(error) => {
                assert!(matches!(error, OpenError::Corrupt { .. }), "byte {at} bit {bit}: {error}");
                refusals += 1;
            }
            Ok(store) => {
                assert_filled(store, &format!("byte {at} bit {bit}")).await;
                harmless += 1;
            }
        }
    }
    println!("{refusals} refused, {harmless} harmless, in a file of {} bytes", good.len());
    assert!(refusals > 50);
}

#[tokio::test]
async fn a_short_or_foreign_file_is_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    let good = std::fs::read(file_of(dir.path())).unwrap();
    hush_redb();
    for len in [0, 1, 9, 100, 319, 320, 4096, 8192, good.len() / 2, good.len() - 4096, good.len() - 1] {
        std::fs::write(file_of(dir.path()), &good[..len]).unwrap();
        let error = refused(dir.path(), &["raft.redb", "new node id"]);
        assert!(matches!(error, OpenError::Corrupt { .. }), "{len}: {error}");
        assert_eq!(std::fs::read(file_of(dir.path())).unwrap(), good[..len], "untouched");
    }
    std::fs::write(file_of(dir.path()), "no database at all").unwrap();
    refused(dir.path(), &["new node id"]);
    std::fs::write(file_of(dir.path()), good).unwrap();
    assert_filled(open(dir.path()).unwrap(), "brought back").await;
}

#[tokio::test]
async fn records_that_make_no_sense_are_refused() {
    type Change = fn(&redb::WriteTransaction);
    let changes: [(&str, Change); 10] = [
        ("log entry 5 cannot be decoded", |txn| {
            txn.open_table(LOG).unwrap().insert(5, b"{garbage".as_slice()).unwrap();
        }),
        ("log entry 5 is missing", |txn| {
            txn.open_table(LOG).unwrap().remove(5).unwrap();
        }),
        ("log entry 3 is missing", |txn| {
            txn.open_table(LOG).unwrap().remove(3).unwrap();
        }),
        ("comes after one of a later leader", |txn| {
            let old = serde_json::to_vec(&entry(1, 6)).unwrap();
            txn.open_table(LOG).unwrap().insert(6, old.as_slice()).unwrap();
        }),
        ("\"vote\" cannot be decoded", |txn| {
            txn.open_table(META).unwrap().insert("vote", [0xff, 0].as_slice()).unwrap();
        }),
        ("its vote is older", |txn| {
            txn.open_table(META).unwrap().remove("vote").unwrap();
        }),
        ("T2-N1.7 was committed", |txn| {
            txn.open_table(LOG).unwrap().retain_in(5.., |_, _| false).unwrap();
        }),
        ("no snapshot covers that", |txn| {
            txn.open_table(SNAPSHOT).unwrap().retain(|_, _| false).unwrap();
        }),
        ("the greatest index there is", |txn| {
            let purged = serde_json::to_vec(&log_id(2, u64::MAX)).unwrap();
            txn.open_table(META).unwrap().insert("purged", purged.as_slice()).unwrap();
        }),
        ("whose store it is", |txn| {
            txn.open_table(META).unwrap().remove("identity").unwrap();
        }),
    ];
    for (words, change) in changes {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path()).await;
        tamper(dir.path(), change);
        let error = refused(dir.path(), &[words, "raft.redb", "new node id"]);
        assert!(matches!(error, OpenError::Corrupt { .. }));
    }
}

#[derive(Default)]
struct Recorder {
    seen: Mutex<Vec<String>>,
}

impl VoteWitness for Recorder {
    fn vote_changing(&self, vote: &Vote) {
        self.seen.lock().unwrap().push(format!("changing {vote}"));
    }
    fn vote_saved(&self, vote: &Vote) {
        self.seen.lock().unwrap().push(format!("saved {vote}"));
    }
}

#[tokio::test]
async fn the_witness_hears_of_a_vote_before_and_after() {
    let dir = tempfile::tempdir().unwrap();
    let witness = Arc::new(Recorder::default());
    let hooks = Hooks { votes: Arc::clone(&witness) as Arc<dyn VoteWitness>, ..hooks() };
    let store = Store::open(dir.path(), name("test"), NodeId(1), hooks).unwrap();
    let (mut log, ..) = store.into_parts();
    let vote = Vote::new(3, 2);
    log.save_vote(&vote).await.unwrap();
    let expected = [format!("changing {vote}"), format!("saved {vote}")];
    assert_eq!(*witness.seen.lock().unwrap(), expected);
    assert_eq!(log.get_log_reader().await.read_vote().await.unwrap(), Some(vote));
}

/// Holds every vote up after it is written.
struct Hurdle(Mutex<std::sync::mpsc::Receiver<()>>);

impl VoteWitness for Hurdle {
    fn vote_changing(&self, _: &Vote) {}
    fn vote_saved(&self, _: &Vote) {
        self.0.lock().unwrap().recv().unwrap();
    }
}

#[tokio::test]
async fn only_a_vote_for_itself_is_not_waited_for_and_that_not_at_first() {
    const SOON: Duration = Duration::from_millis(300);
    let dir = tempfile::tempdir().unwrap();
    let (go_on, hurdle) = std::sync::mpsc::channel();
    let hooks = Hooks { votes: Arc::new(Hurdle(Mutex::new(hurdle))), ..hooks() };
    let (mut log, machine, closing) = Store::open(dir.path(), name("test"), NodeId(1), hooks).unwrap().into_parts();
    for (vote, waits) in [
        (Vote::new(1, 1), true),
        (Vote::new(2, 2), true),
        (Vote::new_committed(2, 2), false),
        (Vote::new(3, 1), false),
        (Vote::new_committed(4, 3), true),
    ] {
        let mut saving = Box::pin(log.save_vote(&vote));
        let answered = tokio::time::timeout(SOON, &mut saving).await;
        assert_eq!(answered.is_err(), waits, "{vote}");
        go_on.send(()).unwrap();
        if waits {
            saving.await.unwrap();
        }
    }
    drop((log, machine));
    closing.wait().await;
    assert_eq!(open(dir.path()).unwrap().vote(), Some(Vote::new_committed(4, 3)));
}

#[tokio::test]
async fn applying_publishes_once_in_a_batch() {
    let dir = tempfile::tempdir().unwrap();
    let (_log, mut machine, _) = open(dir.path()).unwrap().into_parts();
    let mut applied = machine.applied();
    let members = Membership::new_with_defaults(vec![[1, 2, 3].into()], []);
    let membership = Entry { log_id: log_id(1, 2), payload: EntryPayload::Membership(members.clone()) };
    let blank = Entry { log_id: log_id(1, 0), payload: EntryPayload::Blank };
    apply(&mut machine, [blank, entry(1, 1), membership]).await;
    assert!(applied.has_changed().unwrap());
    let seen = applied.borrow_and_update().clone();
    assert_eq!(seen.last_applied, Some(log_id(1, 2)));
    assert_eq!(seen.cluster.revision, 1);
    assert_eq!(seen.membership.membership(), &members);
    // Who looks on keeps what they have.
    apply(&mut machine, [entry(1, 3)]).await;
    assert_eq!(seen.cluster.revision, 1);
    assert_eq!(applied.borrow_and_update().cluster.revision, 3);
}

#[tokio::test]
async fn a_snapshot_built_here_gives_way_to_a_newer_one() {
    let leader_dir = tempfile::tempdir().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (_leader_log, mut leader, _) = open(leader_dir.path()).unwrap().into_parts();
    apply(&mut leader, (0..20).map(|index| entry(1, index))).await;
    snapshot(&mut leader).await;
    let newer = leader.get_current_snapshot().await.unwrap().unwrap();

    let (log, mut machine, closing) = open(dir.path()).unwrap().into_parts();
    apply(&mut machine, (0..5).map(|index| entry(1, index))).await;
    let mut late = machine.try_create_snapshot_builder(true).await.unwrap();
    machine.install_snapshot(&newer.meta, newer.snapshot).await.unwrap();
    assert_eq!(late.build_snapshot().await.unwrap().meta.last_log_id, Some(log_id(1, 4)));
    let current = machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(current.meta.last_log_id, Some(log_id(1, 19)));
    drop(late);
    close(log, machine, closing).await;

    let store = open(dir.path());
    // A snapshot alone, without the vote that let it in, is what the order of writes rules out.
    let applied = store.unwrap().applied().borrow().clone();
    assert_eq!(applied.last_applied, Some(log_id(1, 19)));
    assert_eq!(applied.cluster.instances.len(), 20);
    assert!(applied.cluster.instances.contains_key(&NodeId(19)));
}

#[tokio::test]
async fn committing_costs_no_write() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, machine, closing) = open(dir.path()).unwrap().into_parts();
    log.save_vote(&Vote::new_committed(1, 1)).await.unwrap();
    log.blocking_append((0..100).map(|index| entry(1, index))).await.unwrap();
    let before = std::fs::read(file_of(dir.path())).unwrap();
    for index in 0..100 {
        log.save_committed(Some(log_id(1, index))).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(std::fs::read(file_of(dir.path())).unwrap() == before, "the file was written");
    close(log, machine, closing).await;
    let (mut log, ..) = open(dir.path()).unwrap().into_parts();
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(1, 99)), "closing writes it");
}

#[tokio::test]
async fn nothing_committed_is_remembered_as_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, machine, closing) = open(dir.path()).unwrap().into_parts();
    log.blocking_append([entry(0, 0)]).await.unwrap();
    log.save_committed(Some(log_id(0, 0))).await.unwrap();
    log.save_committed(None).await.unwrap();
    close(log, machine, closing).await;
    let (mut log, ..) = open(dir.path()).unwrap().into_parts();
    assert_eq!(log.read_committed().await.unwrap(), None);
}

#[tokio::test]
async fn a_read_for_a_peer_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, ..) = open(dir.path()).unwrap().into_parts();
    let large = |index| {
        let command = Command::RegisterNode { node: NodeId(index), instance: "x".repeat(600_000) };
        Entry { log_id: log_id(1, index), payload: EntryPayload::Normal(command.into()) }
    };
    log.blocking_append((0..4).map(large)).await.unwrap();
    let mut reader = log.get_log_reader().await;
    assert_eq!(reader.limited_get_log_entries(0, 4).await.unwrap().len(), 1);
    assert_eq!(reader.try_get_log_entries(0..4).await.unwrap().len(), 4);
    log.blocking_append((4..300).map(|index| entry(1, index))).await.unwrap();
    assert_eq!(reader.limited_get_log_entries(4, 300).await.unwrap().len(), 296);
    assert!(reader.limited_get_log_entries(7, 7).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_gap_in_the_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, ..) = open(dir.path()).unwrap().into_parts();
    log.blocking_append([entry(0, 0)]).await.unwrap();
    let error = log.blocking_append([entry(1, 2)]).await.unwrap_err();
    assert!(error.to_string().contains("cannot follow"), "{error}");
}

#[tokio::test]
async fn the_file_stays_small() {
    const ENTRIES: u64 = 100_000;
    let dir = tempfile::tempdir().unwrap();
    let (mut log, mut machine, closing) = open(dir.path()).unwrap().into_parts();
    log.save_vote(&Vote::new_committed(1, 1)).await.unwrap();
    let mut largest = 0;
    let same = |index| {
        let command = Command::RegisterNode { node: NodeId(index % 100), instance: "instance".to_owned() };
        Entry { log_id: log_id(1, index), payload: EntryPayload::Normal(command.into()) }
    };
    for from in (0..ENTRIES).step_by(50) {
        log.blocking_append((from..from + 50).map(same)).await.unwrap();
        log.save_committed(Some(log_id(1, from + 49))).await.unwrap();
        apply(&mut machine, (from..from + 50).map(same)).await;
        if (from + 50) % 1000 == 0 {
            let covered = snapshot(&mut machine).await;
            log.purge(log_id(1, covered.index.saturating_sub(200))).await.unwrap();
            largest = largest.max(std::fs::metadata(file_of(dir.path())).unwrap().len());
        }
    }
    close(log, machine, closing).await;
    let closed = std::fs::metadata(file_of(dir.path())).unwrap().len();
    println!("largest {largest} bytes, closed {closed} bytes");
    assert!(largest < 4 << 20, "the file grew to {largest} bytes");
    let (mut log, ..) = open(dir.path()).unwrap().into_parts();
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(log_id(1, ENTRIES - 1)));
}

#[tokio::test]
async fn a_wasteful_file_is_compacted_at_the_opening() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, mut machine, closing) = open(dir.path()).unwrap().into_parts();
    log.save_vote(&Vote::new_committed(1, 1)).await.unwrap();
    for from in (0..400).step_by(20) {
        let large = |index| {
            let command = Command::RegisterNode { node: NodeId(1), instance: "x".repeat(60_000) };
            Entry { log_id: log_id(1, index), payload: EntryPayload::Normal(command.into()) }
        };
        log.blocking_append((from..from + 20).map(large)).await.unwrap();
    }
    apply(&mut machine, (0..400).map(|index| Entry { log_id: log_id(1, index), payload: EntryPayload::Blank })).await;
    snapshot(&mut machine).await;
    let before = std::fs::metadata(file_of(dir.path())).unwrap().len();
    log.purge(log_id(1, 399)).await.unwrap();
    close(log, machine, closing).await;
    let store = open(dir.path()).unwrap();
    let after = std::fs::metadata(file_of(dir.path())).unwrap().len();
    println!("{before} bytes, compacted {after} bytes");
    assert!(before > 16 << 20 && after < 2 << 20, "{before} -> {after}");
    assert_eq!(store.applied().borrow().last_applied, Some(log_id(1, 399)));
}

const CHILD_DIR: &str = "VIP_RAFT_TEST_STORE";

/// Not a test of its own: the process that `an_acknowledged_write_survives_a_kill` kills.
#[tokio::test]
async fn child_that_writes_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let (mut log, mut machine, _) = open(Path::new(&dir)).unwrap().into_parts();
    openraft::StorageHelper::new(&mut log, &mut machine).with_id(1).get_initial_state().await.unwrap();
    let mut term = log.get_log_reader().await.read_vote().await.unwrap().map_or(0, |vote| vote.leader_id().term);
    let mut next = log.get_log_state().await.unwrap().last_log_id.map_or(0, |last| last.index + 1);
    loop {
        term += 1;
        log.save_vote(&Vote::new_committed(term, 1)).await.unwrap();
        println!("ack vote {term}");
        for size in [1, 3, 20] {
            let batch: Vec<Entry> = (next..next + size).map(|index| entry(term, index)).collect();
            next += size;
            log.blocking_append(batch).await.unwrap();
            println!("ack entry {}", next - 1);
            log.save_committed(Some(log_id(term, next - 1))).await.unwrap();
            let from = machine.applied_state().await.unwrap().0.map_or(0, |last| last.index + 1);
            let read = log.get_log_reader().await.try_get_log_entries(from..next).await.unwrap();
            apply(&mut machine, read).await;
        }
        if term % 3 == 0 {
            let covered = snapshot(&mut machine).await;
            println!("ack snapshot {}", covered.index);
            log.purge(covered).await.unwrap();
        }
    }
}

#[tokio::test]
async fn an_acknowledged_write_survives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..12_u64 {
        let mut child = Process::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_writes_until_it_is_killed", "--nocapture"])
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut acks = String::new();
        while !acks.contains("ack entry") {
            assert_ne!(lines.read_line(&mut acks).unwrap(), 0, "the child ended by itself: {acks}");
        }
        std::thread::sleep(Duration::from_micros(1000 + round * 17_171));
        child.kill().unwrap();
        child.wait().unwrap();
        lines.read_to_string(&mut acks).unwrap();
        let newest = |what: &str| {
            let whole = acks.rsplit_once('\n').map_or("", |(whole, _)| whole);
            whole.lines().rev().find_map(|line| line.split_once(what)?.1.parse::<u64>().ok())
        };

        let store = open(dir.path()).unwrap();
        assert!(store.vote().map(|vote| vote.leader_id().term) >= newest("ack vote "), "round {round}: vote");
        let (mut log, mut machine, closing) = store.into_parts();
        let last = log.get_log_state().await.unwrap().last_log_id;
        assert!(last.map(|last| last.index) >= newest("ack entry "), "round {round}: entry");
        let covered = machine.get_current_snapshot().await.unwrap().and_then(|snapshot| snapshot.meta.last_log_id);
        assert!(covered.map(|covered| covered.index) >= newest("ack snapshot "), "round {round}: snapshot");
        close(log, machine, closing).await;
    }
}

/// The file as a power cut leaves it: of a commit under way, some sectors are on disk and some are not.
#[tokio::test]
async fn a_torn_commit_is_taken_back_whole() {
    const SECTOR: usize = 512;
    let dir = tempfile::tempdir().unwrap();
    let (mut log, mut machine, _) = open(dir.path()).unwrap().into_parts();
    log.save_vote(&Vote::new_committed(1, 1)).await.unwrap();
    log.blocking_append((0..300).map(|index| entry(1, index))).await.unwrap();
    let mut before = std::fs::read(file_of(dir.path())).unwrap();
    let mut seed = 88_172_645_463_325_252_u64;
    let (mut old, mut new) = (0, 0);
    for round in 0..40_u64 {
        let term = 2 + round;
        log.save_vote(&Vote::new_committed(term, 1)).await.unwrap();
        let first = log.get_log_state().await.unwrap().last_log_id.unwrap().index + 1;
        let voted = std::fs::read(file_of(dir.path())).unwrap();
        let from = if round % 2 == 0 { &before } else { &voted };
        log.blocking_append((first..first + 1 + round % 7 * 20).map(|index| entry(term, index))).await.unwrap();
        let after = std::fs::read(file_of(dir.path())).unwrap();
        // Even rounds tear the vote's commit, odd ones the append's.
        let to = if round % 2 == 0 { &voted } else { &after };
        for keep_one_in in [2, 3, 9] {
            let mut torn = to.clone();
            for (at, sector) in from[..from.len().min(to.len())].chunks(SECTOR).enumerate() {
                // xorshift64: the same tears in every run.
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                if seed.is_multiple_of(keep_one_in) {
                    torn[at * SECTOR..][..sector.len()].copy_from_slice(sector);
                }
            }
            let copy = tempfile::tempdir().unwrap();
            std::fs::write(file_of(copy.path()), torn).unwrap();
            let store = open(copy.path()).unwrap();
            let voted = store.vote().unwrap().leader_id().term;
            let last = store.into_parts().0.get_log_state().await.unwrap().last_log_id.unwrap();
            let is_new = if round % 2 == 0 { voted == term } else { last.index >= first };
            if is_new {
                new += 1
            } else {
                old += 1
            }
            if round % 2 == 0 {
                assert!(voted == term || voted + 1 == term, "round {round}: vote {voted}");
                assert_eq!(last.index, first - 1, "round {round}");
            } else {
                assert_eq!(voted, term, "round {round}: the vote was acknowledged");
                assert!(last.index == first - 1 || last.index == first + round % 7 * 20, "round {round}: {last}");
            }
        }
        before = after;
        if round % 10 == 9 {
            let from = machine.applied_state().await.unwrap().0.map_or(0, |last| last.index + 1);
            let entries = log.get_log_reader().await.try_get_log_entries(from..).await.unwrap();
            apply(&mut machine, entries).await;
            let covered = snapshot(&mut machine).await;
            log.purge(covered).await.unwrap();
            before = std::fs::read(file_of(dir.path())).unwrap();
        }
    }
    println!("{old} rolled back, {new} whole");
    assert!(old > 0);
}

/// Runs `body` with a file system of `size` bytes that nobody else sees; not at all where that is not allowed.
fn on_tiny_disk(size: &str, body: impl FnOnce(&Path) + Send + 'static) {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};

    let size = format!("size={size}");
    let thread = std::thread::spawn(move || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNS) {
            let _ = writeln!(io::stderr(), "\nSKIPPED: a mount namespace of its own needs root: {error}");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
        body(dir.path());
        // The file may still be open for a moment after the last writer is gone.
        nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    });
    thread.join().unwrap();
}

#[test]
fn a_failing_write_ends_all_writing() {
    on_tiny_disk("8m", |dir| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(fill_the_disk(dir));
    });
}

async fn fill_the_disk(dir: &Path) {
    let failures = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&failures);
    let on_fatal = Arc::new(move |error: io::Error| {
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
        seen.fetch_add(1, Ordering::SeqCst);
    });
    let witness = Arc::new(Recorder::default());
    let hooks = Hooks { on_fatal, votes: Arc::clone(&witness) as Arc<dyn VoteWitness> };
    let (mut log, mut machine, closing) = Store::open(dir, name("test"), NodeId(1), hooks).unwrap().into_parts();
    log.save_vote(&Vote::new_committed(1, 1)).await.unwrap();
    let large = |index| {
        let command = Command::RegisterNode { node: NodeId(1), instance: "x".repeat(100_000) };
        Entry { log_id: log_id(1, index), payload: EntryPayload::Normal(command.into()) }
    };
    let mut durable = None;
    let error = loop {
        let index = durable.map_or(0, |index: u64| index + 1);
        match log.blocking_append([large(index)]).await {
            Ok(()) => durable = Some(index),
            Err(error) => break error,
        }
    };
    println!("entry {durable:?} was the last: {error}");
    assert_eq!(failures.load(Ordering::SeqCst), 1, "told before the answer");

    let heard = witness.seen.lock().unwrap().len();
    for error in [
        log.save_vote(&Vote::new(9, 1)).await.unwrap_err(),
        log.blocking_append([large(durable.unwrap() + 2)]).await.unwrap_err().into(),
        log.truncate_after(None).await.unwrap_err(),
        log.purge(log_id(1, 0)).await.unwrap_err(),
        log.save_committed(None).await.unwrap_err(),
        machine.try_create_snapshot_builder(true).await.unwrap().build_snapshot().await.unwrap_err(),
    ] {
        assert!(error.to_string().contains("an earlier write failed"), "{error}");
    }
    assert_eq!(failures.load(Ordering::SeqCst), 1, "told once");
    assert_eq!(witness.seen.lock().unwrap().len(), heard, "a vote that cannot be written changes nothing");
    close(log, machine, closing).await;

    // What was acknowledged is there. The disk is as full as before, and reading needs no room.
    let copy = tempfile::tempdir_in("/var/tmp").unwrap();
    std::fs::copy(file_of(dir), file_of(copy.path())).unwrap();
    let (mut log, ..) = open(copy.path()).unwrap().into_parts();
    assert!(log.get_log_state().await.unwrap().last_log_id.map(|last| last.index) >= durable);
}

#[test]
fn a_full_disk_at_the_first_start_is_named() {
    on_tiny_disk("32k", |dir| {
        let error = refused(dir, &["no space is left"]);
        assert!(matches!(error, OpenError::Full { .. }), "{error}");
        println!("{error}");
    });
}

/// `cargo test -p vip-raft --test storage -- --ignored --nocapture commit_latency`
#[tokio::test]
#[ignore = "a measurement, not a test"]
async fn commit_latency() {
    const ROUNDS: u64 = 2000;
    let dir = tempfile::tempdir_in(std::env::var_os("VIP_RAFT_BENCH_DIR").unwrap_or_else(|| ".".into())).unwrap();
    let (mut log, ..) = open(dir.path()).unwrap().into_parts();
    let report = |what: &str, mut times: Vec<Duration>| {
        times.sort();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        println!("{what}: p50 {:?} p95 {:?} p99 {:?} max {:?}", at(50), at(95), at(99), at(100));
    };
    let mut times = Vec::new();
    for term in 1..=ROUNDS {
        let start = Instant::now();
        log.save_vote(&Vote::new(term, 1)).await.unwrap();
        times.push(start.elapsed());
    }
    report("save_vote", times);
    let mut times = Vec::new();
    for index in 0..ROUNDS {
        let start = Instant::now();
        log.blocking_append([entry(ROUNDS, index)]).await.unwrap();
        times.push(start.elapsed());
    }
    report("append", times);
    let start = Instant::now();
    let mut waiting = Vec::new();
    for index in ROUNDS..2 * ROUNDS {
        let (done, flushed) = TypeConfig::oneshot();
        log.append([entry(ROUNDS, index)], IOFlushed::signal(done)).await.unwrap();
        waiting.push(flushed);
    }
    for flushed in waiting {
        flushed.await.unwrap().unwrap();
    }
    println!("{ROUNDS} appends that wait for nothing: {:?}", start.elapsed());
    // The floor: one small overwrite and fdatasync.
    let file = std::fs::File::create(dir.path().join("plain")).unwrap();
    file.write_all_at(&[0; 65536], 0).unwrap();
    file.sync_all().unwrap();
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let start = Instant::now();
        file.write_all_at(&round.to_le_bytes(), 4096 * (round % 16)).unwrap();
        file.sync_data().unwrap();
        times.push(start.elapsed());
    }
    report("pwrite + fdatasync", times);
}
