//! `GET /live` and `GET /ready` over HTTP/1.1, for supervisors and load balancers. Nothing else is served.
//!
//! Whoever asks may be anybody, slow, or many: a connection is one answer, has little time, and there are few at once. They
//! have a thread of their own at ordinary priority; what they ask of the rest of the daemon is asked for all of them at
//! once, ten times a second at most.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{Mutex, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use vip_api::Consistency;

use crate::api::{Backend, BackendError};
use crate::mailbox::Mailbox;
use crate::process;

/// How long an answer may take. Less than the second that probes commonly wait: they should hear the reason.
const PATIENCE: Duration = Duration::from_millis(900);

/// How long an answer is good for others, too.
const REUSE: Duration = Duration::from_millis(100);

/// How long a connection may last, most of it for a client that is slow to ask or to read.
const CONNECTION: Duration = Duration::from_secs(2);

/// How many connections there are at once; with one more the oldest ends. Each costs a file descriptor, which the peers need.
const CONNECTIONS: usize = 32;

/// What a request may take in memory: the least that the library takes, far more than a probe sends.
const REQUEST_BYTES: usize = 8192;

/// Answers for ever, in a thread of its own. What is returned waits for the end of that.
///
/// # Errors
/// When the thread cannot be started.
pub(crate) fn start<B: Backend>(
    listener: TcpListener,
    backend: Arc<B>,
    mailbox: Arc<Mailbox>,
) -> io::Result<impl Future<Output = ()> + use<B>> {
    let daemon = Handle::current();
    let listener = listener.into_std()?;
    let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
    let (alive, ended) = oneshot::channel::<()>();
    std::thread::Builder::new().name("vipd-http".to_owned()).spawn(move || {
        let _alive = alive;
        process::ordinary();
        runtime.block_on(async {
            match TcpListener::from_std(listener) {
                Ok(listener) => serve(listener, Asked::new(backend, mailbox, daemon)).await,
                Err(error) => tracing::error!(%error, "http.listen cannot be used"),
            }
        });
    })?;
    Ok(async move {
        // It says nothing; it is dropped.
        let _ = ended.await;
    })
}

async fn serve<B: Backend>(listener: TcpListener, asked: Asked<B>) {
    let router = router(asked);
    // Dropped with this task, and the connections with it.
    let mut connections = JoinSet::new();
    let mut by_age: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Mostly no more file descriptors; to try again at once would only burn the processor.
                tracing::warn!(%error, "http.listen takes no connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        by_age.retain(|connection| !connection.is_finished());
        if by_age.len() >= CONNECTIONS
            && let Some(oldest) = by_age.pop_front()
        {
            oldest.abort();
        }
        let service = TowerToHyperService::new(router.clone());
        by_age.push_back(connections.spawn(async move {
            let mut server = http1::Builder::new();
            server.keep_alive(false).max_buf_size(REQUEST_BYTES);
            // Broken off, malformed or too slow: that is for the client to know.
            let _ = tokio::time::timeout(CONNECTION, server.serve_connection(TokioIo::new(stream), service)).await;
        }));
    }
}

/// An answer for all who ask within [`REUSE`]; while it is being found the others wait for it.
struct Shared(Mutex<Option<(Instant, Result<(), String>)>>);

impl Shared {
    async fn get(&self, find: impl Future<Output = Result<(), String>>) -> Result<(), String> {
        let mut last = self.0.lock().await;
        if let Some((found, answer)) = &*last
            && found.elapsed() < REUSE
        {
            return answer.clone();
        }
        let answer = find.await;
        *last = Some((Instant::now(), answer.clone()));
        answer
    }
}

/// Who knows the answers.
struct Asked<B> {
    backend: Arc<B>,
    mailbox: Arc<Mailbox>,
    /// Where the daemon's own work is done: a connection to a peer that a question opens must not live here, and a lock that
    /// the agent wants must not be held by a thread that waits for its turn behind others.
    daemon: Handle,
    life: Shared,
    leader: Shared,
}

fn router<B: Backend>(asked: Asked<B>) -> Router {
    Router::new()
        .route("/live", get(live::<B>))
        .route("/ready", get(ready::<B>))
        .fallback(async || answer(StatusCode::NOT_FOUND, &json!({ "reason": "there are /live and /ready" })))
        .with_state(Arc::new(asked))
}

async fn live<B: Backend>(State(asked): State<Arc<Asked<B>>>) -> Response {
    match asked.lives().await {
        Ok(()) => answer(StatusCode::OK, &json!({ "live": true })),
        Err(reason) => answer(StatusCode::SERVICE_UNAVAILABLE, &json!({ "live": false, "reason": reason })),
    }
}

async fn ready<B: Backend>(State(asked): State<Arc<Asked<B>>>) -> Response {
    let both = tokio::join!(asked.lives(), asked.has_leader());
    match both.0.and(both.1) {
        Ok(()) => {
            let leader = asked.backend.state().borrow().leader;
            answer(StatusCode::OK, &json!({ "ready": true, "leader": leader.map(|leader| leader.0) }))
        }
        Err(reason) => answer(StatusCode::SERVICE_UNAVAILABLE, &json!({ "ready": false, "reason": reason })),
    }
}

fn answer(status: StatusCode, body: &Value) -> Response {
    let headers = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")];
    (status, headers, format!("{body}\n")).into_response()
}

impl<B: Backend> Asked<B> {
    fn new(backend: Arc<B>, mailbox: Arc<Mailbox>, daemon: Handle) -> Self {
        let shared = || Shared(Mutex::new(None));
        Self { backend, mailbox, daemon, life: shared(), leader: shared() }
    }

    /// Whether the agent's loop goes on, or why it is taken for stuck.
    async fn lives(&self) -> Result<(), String> {
        let mailbox = Arc::clone(&self.mailbox);
        let asking = async move { mailbox.answers(PATIENCE).await };
        self.life
            .get(async {
                if matches!(self.daemon.spawn(asking).await, Ok(true)) {
                    return Ok(());
                }
                Err(format!("the agent, which acts for the VIPs, gave no sign of life within {PATIENCE:?}"))
            })
            .await
    }

    /// Whether this node reaches a leader that holds a lease of a majority now, or why not. That this node knows of a leader
    /// would not do: a leader without a majority knows itself.
    async fn has_leader(&self) -> Result<(), String> {
        let backend = Arc::clone(&self.backend);
        let read = async move { tokio::time::timeout(PATIENCE, backend.read_barrier(Consistency::Lease)).await };
        self.leader
            .get(async {
                let error = match self.daemon.spawn(read).await {
                    Ok(Ok(Ok(()))) => return Ok(()),
                    Ok(Ok(Err(error))) => error,
                    Ok(Err(_)) => BackendError::Timeout,
                    Err(error) => BackendError::Internal(error.to_string()),
                };
                Err(match error {
                    BackendError::Timeout => format!("no leader with a quorum answered within {PATIENCE:?}"),
                    BackendError::NotReady => "this node starts, stops, or is not in the cluster".to_owned(),
                    BackendError::NoLeader { .. } | BackendError::Internal(_) => error.to_string(),
                })
            })
            .await
    }
}

#[cfg(test)]
mod tests;
