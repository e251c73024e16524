//! `GET /live` and `GET /ready` over HTTP/1.1, for supervisors and load balancers. Nothing else is served.
//!
//! Whoever asks may be anybody, slow, or many: a connection is one answer, has little time, and there are few at once.

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
use tokio::task::JoinSet;
use vip_api::Consistency;

use crate::api::{Backend, BackendError};
use crate::mailbox::Mailbox;

/// How long an answer may take. Less than the second that probes commonly wait: they should hear the reason.
const PATIENCE: Duration = Duration::from_millis(900);

/// How long a connection may last, most of it for a client that is slow to ask or to read.
const CONNECTION: Duration = Duration::from_secs(5);

/// How many connections there are at once; others wait in the kernel. Each costs a file descriptor, which the peers need.
const CONNECTIONS: usize = 32;

/// What a request may take in memory: the least that the library takes, far more than a probe sends.
const REQUEST_BYTES: usize = 8192;

/// Answers for ever.
pub(crate) async fn serve<B: Backend>(listener: TcpListener, backend: Arc<B>, mailbox: Arc<Mailbox>) {
    let router = router(Asked { backend, mailbox });
    // Dropped with this task, and the connections with it.
    let mut connections = JoinSet::new();
    loop {
        if connections.len() >= CONNECTIONS {
            connections.join_next().await;
        }
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Mostly no more file descriptors; to try again at once would only burn the processor.
                tracing::warn!(%error, "http.listen takes no connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        connections.spawn(async move {
            let mut server = http1::Builder::new();
            server.keep_alive(false).max_buf_size(REQUEST_BYTES);
            // Broken off, malformed or too slow: that is for the client to know.
            let _ = tokio::time::timeout(CONNECTION, server.serve_connection(TokioIo::new(stream), service)).await;
        });
    }
}

/// Who knows the answers.
struct Asked<B> {
    backend: Arc<B>,
    mailbox: Arc<Mailbox>,
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
    /// Whether the agent's loop goes on, or why it is taken for stuck.
    async fn lives(&self) -> Result<(), String> {
        if self.mailbox.answers(PATIENCE).await {
            return Ok(());
        }
        Err(format!("the agent, which acts for the VIPs, gave no sign of life within {PATIENCE:?}"))
    }

    /// Whether this node reaches a leader that holds a lease of a majority now, or why not. That this node knows of a leader
    /// would not do: a leader without a majority knows itself.
    async fn has_leader(&self) -> Result<(), String> {
        let read = self.backend.read_barrier(Consistency::Lease);
        let error = match tokio::time::timeout(PATIENCE, read).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => BackendError::Timeout,
        };
        Err(match error {
            BackendError::Timeout => format!("no leader with a quorum answered within {PATIENCE:?}"),
            BackendError::NotReady => "this node starts, stops, or is not in the cluster".to_owned(),
            BackendError::NoLeader { .. } | BackendError::Internal(_) => error.to_string(),
        })
    }
}

#[cfg(test)]
mod tests;
