//! A watch that outlives the nodes it watches.

use std::collections::VecDeque;
use std::time::Duration;

use futures::Stream;
use tonic::{Request, Status, Streaming};
use vip_api::{Consistency, Header, WatchEvent, convert, v1};
use vip_core::VipName;

use crate::client::{Client, backoff, order, vips};
use crate::error::{Error, Verdict, explain, judge};

/// What to watch.
#[derive(Clone, Debug)]
pub struct WatchOptions {
    /// The VIPs, existing or not; empty: all.
    pub names: Vec<VipName>,
    /// Resume after this revision; 0: begin with a snapshot.
    pub from_revision: u64,
    /// How new the state must be.
    pub consistency: Consistency,
    /// The server speaks at least this often; three times as long without a word means that the stream is dead. The server
    /// allows 0.1 to 60 s.
    pub progress_interval: Duration,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self {
            names: Vec::new(),
            from_revision: 0,
            consistency: Consistency::default(),
            progress_interval: Duration::from_secs(2),
        }
    }
}

/// What a watch yields.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // nearly all are events; a box would cost an allocation for each
pub enum Update {
    /// Something happened, or is so.
    Event {
        /// Who says so, from which state.
        header: Header,
        /// What.
        event: WatchEvent,
    },
    /// The stream broke; the watch is being resumed, from where it was, at this or another node.
    Interrupted {
        /// Why.
        reason: String,
    },
}

impl Client {
    /// Watches VIPs. Fails where no node can be found within the deadline of a call; after that the watch goes on for good,
    /// and ends only with an error that no other node could help with.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn watch(
        &self,
        options: WatchOptions,
    ) -> Result<impl Stream<Item = Result<Update, Error>> + Send + use<>, Error> {
        let mut watcher = Watcher {
            resume: options.from_revision,
            client: self.clone(),
            options,
            open: None,
            ready: VecDeque::new(),
            snapshots: 0,
            idle_breaks: 0,
            over: false,
        };
        watcher.open().await?;
        Ok(futures::stream::unfold(watcher, async |mut watcher| {
            if watcher.over {
                return None;
            }
            let update = watcher.next().await;
            watcher.over = update.is_err();
            Some((update, watcher))
        }))
    }
}

struct Watcher {
    client: Client,
    options: WatchOptions,
    /// The stream, and the index of its node.
    open: Option<(Streaming<v1::WatchResponse>, usize)>,
    ready: VecDeque<Update>,
    resume: u64,
    /// Snapshots that have begun; each but the first replaces something.
    snapshots: u64,
    /// Streams in a row that broke before they said anything.
    idle_breaks: u32,
    over: bool,
}

impl Watcher {
    async fn open(&mut self) -> Result<(), Error> {
        let request = v1::WatchRequest {
            from_revision: self.resume,
            names: self.options.names.iter().map(ToString::to_string).collect(),
            consistency: v1::Consistency::from(self.options.consistency).into(),
            progress_interval: Some(convert::proto_duration(self.options.progress_interval)),
        };
        // No grpc-timeout: it would be one for the stream, too.
        let call = async |channel, _| vips(channel).watch(Request::new(request.clone())).await;
        self.open = Some(self.client.attempts(order(self.options.consistency), call).await?);
        Ok(())
    }

    async fn next(&mut self) -> Result<Update, Error> {
        loop {
            if let Some(update) = self.ready.pop_front() {
                return Ok(update);
            }
            let Some((stream, index)) = &mut self.open else {
                match self.open().await {
                    // The attempts took their time already.
                    Err(Error::Unavailable { .. }) | Ok(()) => continue,
                    Err(error) => return Err(error),
                }
            };
            let index = *index;
            let silence = self.options.progress_interval.max(Duration::from_millis(100)) * 3;
            match tokio::time::timeout(silence, stream.message()).await {
                Ok(Ok(Some(message))) => self.take(message, index)?,
                Ok(Ok(None)) => self.interrupted(index, None, "the node ended the stream".to_owned()).await,
                Ok(Err(status)) => {
                    if let Verdict::Final(error) = judge(&status, &self.client.pool().candidate(index).name) {
                        return Err(error);
                    }
                    self.interrupted(index, Some(&status), explain(&status)).await;
                }
                Err(_) => {
                    let reason = format!("nothing was heard for {:.1} s", silence.as_secs_f64());
                    self.interrupted(index, None, reason).await;
                }
            }
        }
    }

    fn take(&mut self, message: v1::WatchResponse, index: usize) -> Result<(), Error> {
        self.idle_breaks = 0;
        self.client.pool().answered(index, message.header.as_ref());
        let header = convert::header(message.header)?;
        for event in message.events {
            let Some(mut event) = convert::watch_event(event)? else { continue };
            if let WatchEvent::SnapshotStart { reset } = &mut event {
                // The server cannot know what an earlier stream has told.
                *reset |= self.snapshots > 0;
                self.snapshots += 1;
            }
            self.ready.push_back(Update::Event { header: header.clone(), event });
        }
        self.resume = message.resume_revision;
        Ok(())
    }

    async fn interrupted(&mut self, index: usize, status: Option<&Status>, reason: String) {
        self.open = None;
        let name = {
            let mut pool = self.client.pool();
            pool.failed(index, status);
            pool.candidate(index).name
        };
        self.ready.push_back(Update::Interrupted { reason: format!("{name}: {reason}") });
        if self.idle_breaks > 0 {
            tokio::time::sleep(backoff(self.idle_breaks)).await;
        }
        self.idle_breaks = self.idle_breaks.saturating_add(1);
    }
}
