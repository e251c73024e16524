//! `GET /live` and `GET /ready` over HTTP/1.1, for supervisors and load balancers. Nothing else is served.
//!
//! Whoever asks may be anybody, slow, or many: a connection is one answer, has little time, and there are few at once. They
//! are served by a thread of their own, at ordinary priority; what they cost the threads that hold the VIPs is one question at a
//! time to the agent and to Raft, ten times a second at most.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use vip_api::Consistency;

use crate::api::{Backend, BackendError};
use crate::mailbox::Mailbox;
use crate::process;

/// How long an answer may take. Less than the second that probes commonly wait: they should hear the reason.
const PATIENCE: Duration = Duration::from_millis(900);

/// How long an answer is good for others, too.
const REUSE: Duration = Duration::from_millis(100);

/// How long a client may take to ask.
const REQUEST: Duration = Duration::from_millis(500);

/// How long a connection may last, most of it for a client that is slow to read.
const CONNECTION: Duration = Duration::from_secs(2);

/// How many connections there are at once; with one more the oldest ends. Each costs a file descriptor, which the peers need.
const CONNECTIONS: usize = 32;

/// What a request may take in memory: the least that the library takes, far more than a probe sends.
const REQUEST_BYTES: usize = 8192;

/// Answers for ever, in a thread of its own, which ends when what is returned is dropped.
///
/// # Errors
/// When the thread cannot be started.
pub(crate) fn start<B: Backend>(
    listener: TcpListener,
    backend: Arc<B>,
    mailbox: Arc<Mailbox>,
) -> io::Result<impl Future<Output = ()> + use<B>> {
    let (life, life_asked) = Question::new();
    let (leader, leader_asked) = Question::new();
    let listener = listener.into_std()?;
    let (alive, ended) = oneshot::channel();
    let thread = std::thread::Builder::new().name("vipd-http".to_owned());
    thread.spawn(move || {
        process::ordinary();
        if let Err(error) = run(listener, Asked { life, leader }, alive) {
            tracing::error!(%error, "http.listen cannot be used");
        }
    })?;
    Ok(async move {
        tokio::select! {
            _ = ended => {}
            () = answer_each(life_asked, || agent_lives(&mailbox)) => {}
            () = answer_each(leader_asked, || reached_leader(&*backend)) => {}
        }
    })
}

fn run(listener: std::net::TcpListener, asked: Asked, mut daemon: oneshot::Sender<()>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        tokio::select! {
            () = serve(listener, asked) => {}
            () = daemon.closed() => {}
        }
        Ok(())
    })
}

async fn serve(listener: TcpListener, asked: Asked) {
    let router = router(asked);
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(REQUEST).keep_alive(false).max_buf_size(REQUEST_BYTES);
    // The oldest first.
    let mut connections = VecDeque::<AbortHandle>::new();
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
        connections.retain(|connection| !connection.is_finished());
        // Probes are answered within milliseconds: it is one that asks slowly, or not at all.
        if connections.len() >= CONNECTIONS
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
        }
        let connection = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
        // Broken off, malformed or too slow: that is for the client to know.
        let connection = tokio::spawn(async move { drop(tokio::time::timeout(CONNECTION, connection).await) });
        connections.push_back(connection.abort_handle());
        // Each may ask before the next one, of many that wait, could end it.
        tokio::task::yield_now().await;
    }
}

/// What can be asked.
struct Asked {
    /// Whether the agent's loop goes on.
    life: Question<()>,
    /// Who leads, if this node reaches a leader that holds a lease of a majority now.
    leader: Question<Option<u64>>,
}

/// An answer, or why there is none that is good.
type Answer<T> = Result<T, String>;

/// What waits on the daemon's side for an answer.
type Asking<T> = mpsc::UnboundedReceiver<oneshot::Sender<Answer<T>>>;

/// An answer that many wait for, and when it came.
type Awaited<T> = Shared<BoxFuture<'static, (Instant, Answer<T>)>>;

/// A question of which one is on its way to the daemon at most, and none while the last answer is fresh.
///
/// By channels: no thread of the daemon may wait for a lock that a thread at ordinary priority holds, and a connection to a
/// peer that a question opens must not live in that thread.
struct Question<T> {
    way: mpsc::UnboundedSender<oneshot::Sender<Answer<T>>>,
    last: Mutex<Option<Awaited<T>>>,
}

impl<T: Clone + Send + Sync + 'static> Question<T> {
    fn new() -> (Self, Asking<T>) {
        let (way, asking) = mpsc::unbounded_channel();
        (Self { way, last: Mutex::default() }, asking)
    }

    async fn answer(&self) -> Answer<T> {
        let answer = {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            match &*last {
                Some(answer) if answer.peek().is_none_or(|(came, _)| came.elapsed() < REUSE) => answer.clone(),
                Some(_) | None => last.insert(self.ask()).clone(),
            }
        };
        answer.await.1
    }

    fn ask(&self) -> Awaited<T> {
        let (asking, answer) = oneshot::channel();
        // Where nobody is there any more, the answer says so.
        let _ = self.way.send(asking);
        let answer = async move {
            let answer = answer.await.unwrap_or_else(|_| Err("this node stops".to_owned()));
            (Instant::now(), answer)
        };
        let answer = answer.boxed().shared();
        // To its end, whoever of those who wait for it goes.
        tokio::spawn(answer.clone());
        answer
    }
}

/// The daemon's side of a question.
async fn answer_each<T, F: Future<Output = Answer<T>>>(mut asking: Asking<T>, find: impl Fn() -> F) {
    while let Some(asking) = asking.recv().await {
        let _ = asking.send(find().await);
    }
}

fn router(asked: Asked) -> Router {
    Router::new()
        .route("/live", get(live))
        .route("/ready", get(ready))
        .fallback(async || answer(StatusCode::NOT_FOUND, &json!({ "reason": "there are /live and /ready" })))
        .with_state(Arc::new(asked))
}

async fn live(State(asked): State<Arc<Asked>>) -> Response {
    match asked.life.answer().await {
        Ok(()) => answer(StatusCode::OK, &json!({ "live": true })),
        Err(reason) => answer(StatusCode::SERVICE_UNAVAILABLE, &json!({ "live": false, "reason": reason })),
    }
}

async fn ready(State(asked): State<Arc<Asked>>) -> Response {
    let (life, leader) = tokio::join!(asked.life.answer(), asked.leader.answer());
    match life.and(leader) {
        Ok(leader) => answer(StatusCode::OK, &json!({ "ready": true, "leader": leader })),
        Err(reason) => answer(StatusCode::SERVICE_UNAVAILABLE, &json!({ "ready": false, "reason": reason })),
    }
}

fn answer(status: StatusCode, body: &Value) -> Response {
    let headers = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")];
    (status, headers, format!("{body}\n")).into_response()
}

async fn agent_lives(mailbox: &Mailbox) -> Answer<()> {
    if mailbox.answers(PATIENCE).await {
        return Ok(());
    }
    Err(format!("the agent, which acts for the VIPs, gave no sign of life within {PATIENCE:?}"))
}

/// That this node knows of a leader would not do: a leader without a majority knows itself.
async fn reached_leader<B: Backend>(backend: &B) -> Answer<Option<u64>> {
    let read = backend.read_barrier(Consistency::Lease);
    let error = match tokio::time::timeout(PATIENCE, read).await {
        Ok(Ok(())) => return Ok(backend.state().borrow().leader.map(|leader| leader.0)),
        Ok(Err(error)) => error,
        Err(_) => BackendError::Timeout,
    };
    Err(match error {
        BackendError::Timeout => format!("no leader with a quorum answered within {PATIENCE:?}"),
        BackendError::NotReady => "this node starts, stops, or is not in the cluster".to_owned(),
        BackendError::NoLeader { .. } | BackendError::Internal(_) => error.to_string(),
    })
}

#[cfg(test)]
mod tests;
