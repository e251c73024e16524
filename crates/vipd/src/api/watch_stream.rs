//! One watch: a task that follows the history at the pace of its reader.
//!
//! Nothing is pushed to it: it pulls from the one [`super::history::History`] when its reader has taken what was sent. So a
//! slow reader costs a few queued messages, and when the history has moved past it, it gets a snapshot again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{Fuse, FusedFuture};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use vip_api::{Consistency, FieldError, Vip, WatchEvent, convert, v1};
use vip_core::{Cluster, VipName, VipRecord, cluster::MAX_VIPS};

use super::door::{Answer, Door};
use super::history::{Batch, Change, Since};
use super::{Backend, BackendError, StateView};

/// Messages that may wait for the reader; it only has to bridge the time that a task takes to wake.
const QUEUE: usize = 4;
const PROGRESS_DEFAULT: Duration = Duration::from_secs(5);
const PROGRESS_SHORTEST: Duration = Duration::from_millis(100);
const PROGRESS_LONGEST: Duration = Duration::from_secs(60);

pub(super) type Message = Result<v1::WatchResponse, Status>;

/// Opens a watch. Fails before the stream begins where the request is malformed or the state is not to be had.
pub(super) async fn open<B: Backend>(
    door: &Arc<Door<B>>,
    request: v1::WatchRequest,
) -> Result<ReceiverStream<Message>, Status> {
    let consistency = convert::consistency(request.consistency)?;
    let progress = match request.progress_interval {
        Some(interval) => convert::duration("progress_interval", interval)?.clamp(PROGRESS_SHORTEST, PROGRESS_LONGEST),
        None => PROGRESS_DEFAULT,
    };
    let names = names(request.names)?;
    let permit = Arc::clone(&door.watchers).try_acquire_owned();
    let permit = permit.map_err(|_| {
        Status::resource_exhausted(format!("this node serves {} watches already", door.limits.watchers))
    })?;
    let mut states = door.backend().state();
    let beginning = begin(door.backend(), &mut states, consistency, request.from_revision);
    Door::<B>::in_time(door.limits.request_timeout, beginning).await.map_err(|error| {
        // A resume that waits for a state in vain: another node has it.
        if error == BackendError::Timeout { Status::unavailable(error.to_string()) } else { error.into() }
    })?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    let watch = Watch {
        door: Arc::clone(door),
        states,
        consistency,
        names,
        progress,
        position: Some(request.from_revision).filter(|revision| *revision > 0),
        sender,
        last_sent: Instant::now(),
        _permit: permit,
    };
    // Ends when the reader is gone, stalls, or the node stops.
    tokio::spawn(watch.run());
    Ok(ReceiverStream::new(receiver))
}

fn names(names: Vec<String>) -> Result<BTreeSet<VipName>, FieldError> {
    if names.len() > MAX_VIPS {
        return Err(FieldError::new("names", format!("{} names are too many; at most {MAX_VIPS}", names.len())));
    }
    names.into_iter().map(|name| convert::vip_name("names", name)).collect()
}

/// Waits for a state to begin with.
async fn begin<B: Backend>(
    backend: &B,
    states: &mut watch::Receiver<Arc<StateView>>,
    consistency: Consistency,
    from_revision: u64,
) -> Result<(), BackendError> {
    backend.read_barrier(consistency).await?;
    if consistency == Consistency::Local {
        // The client has seen more than this node has: do not take it back in time. (After a real barrier a revision that
        // lies ahead belongs to another history, and a snapshot is the answer.)
        let reached = states.wait_for(|state| state.cluster.revision >= from_revision).await;
        reached.map_err(|_| BackendError::NotReady)?;
    }
    Ok(())
}

struct Watch<B> {
    door: Arc<Door<B>>,
    states: watch::Receiver<Arc<StateView>>,
    consistency: Consistency,
    /// Empty: all.
    names: BTreeSet<VipName>,
    progress: Duration,
    /// The revision that the reader has; none before the first snapshot.
    position: Option<u64>,
    sender: mpsc::Sender<Message>,
    last_sent: Instant,
    _permit: OwnedSemaphorePermit,
}

/// The stream is over; nothing more can be said to the reader.
struct Over;

impl<B: Backend> Watch<B> {
    async fn run(mut self) {
        if let Err(Over) = self.follow().await {
            tracing::debug!(revision = ?self.position, "watch over");
        }
    }

    async fn follow(&mut self) -> Result<(), Over> {
        if self.position.is_some() {
            // Where that had to become a snapshot, this is a second `synced`, which says nothing wrong.
            self.catch_up().await?;
            self.send(WatchEvent::Synced).await?;
        } else {
            self.snapshot(false).await?;
        }
        let door = Arc::clone(&self.door);
        let mut probe = std::pin::pin!(Fuse::terminated());
        let mut next_probe = self.last_sent + self.progress;
        loop {
            let probing = !probe.is_terminated();
            tokio::select! {
                () = self.sender.closed() => return Err(Over),
                changed = self.states.changed() => match changed {
                    Ok(()) => self.catch_up().await?,
                    Err(_) => return self.fail(BackendError::NotReady).await,
                },
                // A change that came meanwhile is as good as progress, but the result of the barrier still counts.
                result = &mut probe => match result {
                    Ok(()) => self.send(WatchEvent::Progress).await?,
                    // An election takes less than this; whoever is cut off for longer must not look alive.
                    Err(error) if self.last_sent.elapsed() > self.progress * 2 => return self.fail(error).await,
                    Err(_) => {
                        next_probe = Instant::now() + self.progress / 4;
                        continue;
                    }
                },
                () = tokio::time::sleep_until(next_probe), if !probing => {
                    let barrier = door.backend().read_barrier(self.consistency);
                    probe.set(Door::<B>::in_time(door.limits.request_timeout, barrier).fuse());
                    continue;
                }
            }
            next_probe = self.last_sent + self.progress;
        }
    }

    /// Sends what the history has beyond the position, or a snapshot where it has lost that.
    async fn catch_up(&mut self) -> Result<(), Over> {
        let state = Arc::clone(&self.states.borrow_and_update());
        let since = self.door.history(&state).since(self.position.unwrap_or(0));
        match since {
            Since::Lost => self.snapshot(true).await,
            Since::Changes(batches, revision) => {
                for batch in batches {
                    self.send_batch(&batch).await?;
                }
                self.position = Some(revision);
                Ok(())
            }
        }
    }

    async fn snapshot(&mut self, reset: bool) -> Result<(), Over> {
        let state = Arc::clone(&self.states.borrow_and_update());
        let cluster: Arc<Cluster> = Arc::clone(self.door.history(&state).latest());
        let records: Vec<_> = cluster.vips.values().filter(|vip| self.wants(&vip.spec.name)).collect();
        let mut events = vec![WatchEvent::SnapshotStart { reset }];
        for records in records.chunks(self.door.limits.watch_batch) {
            let answer = self.answer();
            events.extend(records.iter().map(|record| WatchEvent::Put(answer.vip(record))));
            self.send_from(&answer, std::mem::take(&mut events), cluster.revision, 0).await?;
        }
        events.push(WatchEvent::Synced);
        self.send_from(&self.answer(), events, cluster.revision, cluster.revision).await?;
        self.position = Some(cluster.revision);
        Ok(())
    }

    async fn send_batch(&mut self, batch: &Batch) -> Result<(), Over> {
        let changes: Vec<_> = batch.changes.iter().filter(|change| self.wants(name_of(change))).collect();
        let mut chunks = changes.chunks(self.door.limits.watch_batch).peekable();
        while let Some(chunk) = chunks.next() {
            let answer = self.answer();
            let vip = |record: &VipRecord| -> Vip { answer.vip(record) };
            let event = |change: &&Change| match change {
                Change::Put(record) => WatchEvent::Put(vip(record)),
                Change::Delete(name, revision) => WatchEvent::Delete { name: name.clone(), revision: *revision },
            };
            let events = chunk.iter().map(event).collect();
            // Whoever resumes from inside a batch must get all of it again.
            let resume = if chunks.peek().is_some() { self.position.unwrap_or(0) } else { batch.revision };
            self.send_from(&answer, events, batch.revision, resume).await?;
        }
        self.position = Some(batch.revision);
        Ok(())
    }

    fn wants(&self, name: &VipName) -> bool {
        self.names.is_empty() || self.names.contains(name)
    }

    fn answer(&self) -> Answer {
        self.door.answer(self.consistency)
    }

    async fn send(&mut self, event: WatchEvent) -> Result<(), Over> {
        let position = self.position.unwrap_or(0);
        self.send_from(&self.answer(), vec![event], position, position).await
    }

    async fn send_from(
        &mut self,
        answer: &Answer,
        events: Vec<WatchEvent>,
        revision: u64,
        resume_revision: u64,
    ) -> Result<(), Over> {
        let message = v1::WatchResponse {
            header: Some(answer.header_at(revision).into()),
            events: events.into_iter().map(Into::into).collect(),
            resume_revision,
        };
        self.sender.send_timeout(Ok(message), self.door.limits.watch_stall).await.map_err(|_| Over)?;
        self.last_sent = Instant::now();
        Ok(())
    }

    /// Ends the stream; the reader should go on at another node, so this is `UNAVAILABLE` whatever failed.
    async fn fail(&mut self, error: BackendError) -> Result<(), Over> {
        let status = match error {
            BackendError::Timeout => Status::unavailable("this node could not reach the leader in time"),
            other => other.into(),
        };
        let _ = self.sender.send_timeout(Err(status), self.door.limits.watch_stall).await;
        Err(Over)
    }
}

fn name_of(change: &Change) -> &VipName {
    match change {
        Change::Put(record) => &record.spec.name,
        Change::Delete(name, _) => name,
    }
}
