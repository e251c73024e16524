//! The replicated machine, as openraft wants it: state in memory, snapshots on disk.
//!
//! Applying has no effect but the new state; whoever acts on it watches [`Applied`].

use std::io;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use openraft::OptionalSend;
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use tokio::sync::watch;
use vip_core::{Cluster, KillPoint, Outcome};

use super::writer::{Job, Writer};
use super::{Shared, StoredSnapshot};
use crate::types::{
    Entry, EntryPayload, LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig, leadership_of_log,
};

/// The agreed state, as far as this node has applied it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Applied {
    /// The state.
    pub cluster: Arc<Cluster>,
    /// The last entry that is in it.
    pub last_applied: Option<LogId>,
    /// The newest membership in it.
    pub membership: StoredMembership,
}

impl Applied {
    pub(super) fn apply(&mut self, entry: Entry) -> Outcome {
        let log_id = entry.log_id;
        self.last_applied = Some(log_id);
        match entry.payload {
            // openraft appends it when a leader is elected, and at no other time.
            EntryPayload::Blank => Arc::make_mut(&mut self.cluster).begin(log_id.index, leadership_of_log(&log_id)),
            EntryPayload::Normal(request) => {
                // Copies the state if somebody looks at it, once in a batch.
                let cluster = Arc::make_mut(&mut self.cluster);
                cluster.apply(log_id.index, leadership_of_log(&log_id), request.0)
            }
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(log_id), membership);
                Outcome::Unchanged { revision: self.cluster.revision }
            }
        }
    }
}

/// The state machine.
#[derive(Debug)]
pub struct StateMachine {
    shared: Arc<Shared>,
    writer: Writer,
    state: Applied,
    published: watch::Sender<Applied>,
}

impl StateMachine {
    pub(super) fn new(shared: Arc<Shared>, writer: Writer, state: Applied) -> Self {
        let published = watch::Sender::new(state.clone());
        Self { shared, writer, state, published }
    }

    /// The agreed state, as it is applied.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<Applied> {
        self.published.subscribe()
    }

    fn publish(&self) {
        self.published.send_replace(self.state.clone());
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = Vec<u8>;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.state.last_applied, self.state.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut answers: Vec<(ApplyResponder<TypeConfig>, Outcome)> = Vec::new();
        let mut result = Ok(());
        while let Some(next) = entries.next().await {
            match next {
                Ok((entry, responder)) => {
                    let outcome = self.state.apply(entry);
                    answers.extend(responder.map(|responder| (responder, outcome)));
                }
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        // First published, then answered: who has an answer finds its effect in the state.
        self.publish();
        KillPoint::EntriesApplied.reach();
        for (responder, outcome) in answers {
            responder.send(outcome);
        }
        result
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder { writer: self.writer.clone(), state: self.state.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Vec<u8>) -> io::Result<()> {
        let cluster = serde_json::from_slice::<Cluster>(&snapshot).map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("cannot decode the snapshot {meta}: {error}"))
        })?;
        let stored = Arc::new(StoredSnapshot { meta: meta.clone(), state: snapshot });
        self.writer.write(|done| Job::Snapshot { snapshot: stored, built_here: false, done }).await?;
        self.state = Applied {
            cluster: Arc::new(cluster.restored()),
            last_applied: meta.last_log_id,
            membership: meta.last_membership.clone(),
        };
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let stored = self.shared.snapshot().clone();
        Ok(stored.map(|stored| Snapshot { meta: stored.meta.clone(), snapshot: stored.state.clone() }))
    }
}

/// Makes a snapshot of the state as it was when the builder was made.
#[derive(Debug)]
pub struct SnapshotBuilder {
    writer: Writer,
    state: Applied,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = Vec<u8>;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let cluster = Arc::clone(&self.state.cluster);
        // Megabytes, with ten thousand VIPs: not on a thread that heartbeats wait for.
        let state = tokio::task::spawn_blocking(move || serde_json::to_vec(&*cluster))
            .await
            .map_err(io::Error::other)?
            .map_err(io::Error::other)?;
        let meta =
            SnapshotMeta { last_log_id: self.state.last_applied, last_membership: self.state.membership.clone() };
        let stored = Arc::new(StoredSnapshot { meta, state });
        let snapshot = Snapshot { meta: stored.meta.clone(), snapshot: stored.state.clone() };
        self.writer.write(|done| Job::Snapshot { snapshot: stored, built_here: true, done }).await?;
        Ok(snapshot)
    }
}
