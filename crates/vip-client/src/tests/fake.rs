//! A node that does what a test tells it to.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use vip_api::v1;
use vip_api::v1::vip_service_server::{VipService, VipServiceServer};

use crate::Endpoint;

/// What a node does with its calls.
#[derive(Clone, Debug)]
pub(super) enum Mood {
    /// Answers.
    Well,
    /// Answers UNAVAILABLE and names a leader.
    NoLeader(Option<String>),
    /// Refuses with this code.
    Refuses(tonic::Code),
    /// Never answers.
    Hangs,
}

/// How a stream ends after its messages.
#[derive(Clone, Debug)]
pub(super) enum End {
    /// The connection stays, and nothing comes.
    Silence,
    /// The stream is over.
    Over,
    /// With this error.
    Error(tonic::Code),
}

/// The messages of a stream, and its end.
type Script = (Vec<v1::WatchResponse>, End);

#[derive(Clone)]
pub(super) struct Node {
    pub(super) id: u64,
    pub(super) endpoint: Endpoint,
    mood: Arc<Mutex<Mood>>,
    leader: Arc<Mutex<Option<u64>>>,
    /// What was called, in order.
    calls: Arc<Mutex<Vec<String>>>,
    /// What the next watches say.
    streams: Arc<Mutex<VecDeque<Script>>>,
}

impl Node {
    /// Starts a node that is well and takes itself for the leader.
    pub(super) async fn start(id: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let node = Self {
            id,
            endpoint: listener.local_addr().unwrap().to_string().parse().unwrap(),
            mood: Arc::new(Mutex::new(Mood::Well)),
            leader: Arc::new(Mutex::new(Some(id))),
            calls: Arc::default(),
            streams: Arc::default(),
        };
        let server = Server::builder().add_service(VipServiceServer::new(node.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        node
    }

    pub(super) fn feels(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    pub(super) fn follows(&self, leader: Option<u64>) {
        *self.leader.lock().unwrap() = leader;
    }

    pub(super) fn will_stream(&self, messages: Vec<v1::WatchResponse>, end: End) {
        self.streams.lock().unwrap().push_back((messages, end));
    }

    pub(super) fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    pub(super) fn header(&self, revision: u64) -> v1::ResponseHeader {
        v1::ResponseHeader {
            cluster: "test".to_owned(),
            node_id: self.id,
            term: 1,
            leader_id: *self.leader.lock().unwrap(),
            revision,
            consistency: v1::Consistency::Linearizable.into(),
        }
    }

    async fn act(&self, call: String) -> Result<Option<v1::ResponseHeader>, Status> {
        self.calls.lock().unwrap().push(call);
        let mood = self.mood.lock().unwrap().clone();
        match mood {
            Mood::Well => Ok(Some(self.header(1))),
            Mood::NoLeader(leader) => {
                let mut status = Status::unavailable("no leader");
                if let Some(leader) = leader {
                    status.metadata_mut().insert(vip_api::LEADER_METADATA, leader.parse().unwrap());
                }
                Err(status)
            }
            Mood::Refuses(code) => Err(Status::new(code, "as told")),
            Mood::Hangs => std::future::pending().await,
        }
    }
}

#[tonic::async_trait]
impl VipService for Node {
    async fn list(&self, _: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        let header = self.act("list".to_owned()).await?;
        Ok(Response::new(v1::ListResponse { header, vips: Vec::new() }))
    }

    async fn get(&self, _: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let header = self.act("get".to_owned()).await?;
        Ok(Response::new(v1::GetResponse { header, vip: None }))
    }

    type WatchStream = ReceiverStream<Result<v1::WatchResponse, Status>>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.act(format!("watch from {}", request.into_inner().from_revision)).await?;
        let next = self.streams.lock().unwrap().pop_front();
        let (messages, end) = next.ok_or_else(|| Status::unavailable("nothing to stream"))?;
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            for message in messages {
                let _ = sender.send(Ok(message)).await;
            }
            match end {
                End::Silence => sender.closed().await,
                End::Over => {}
                End::Error(code) => drop(sender.send(Err(Status::new(code, "as told"))).await),
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn declare(&self, _: Request<v1::DeclareRequest>) -> Result<Response<v1::DeclareResponse>, Status> {
        let header = self.act("declare".to_owned()).await?;
        Ok(Response::new(v1::DeclareResponse { header, created: true }))
    }

    async fn delete(&self, _: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteResponse>, Status> {
        let header = self.act("delete".to_owned()).await?;
        Ok(Response::new(v1::DeleteResponse { header, deleted: true }))
    }
}

pub(super) fn endpoints(nodes: &[&Node]) -> Vec<Endpoint> {
    nodes.iter().map(|node| node.endpoint.clone()).collect()
}

/// An endpoint where nothing listens.
pub(super) fn nobody() -> Endpoint {
    // Bound and closed: taken by nothing else for a while.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string().parse().unwrap()
}

pub(super) fn put(name: &str, revision: u64) -> v1::WatchEvent {
    let vip = v1::Vip {
        spec: Some(v1::VipSpec {
            name: name.to_owned(),
            address: "10.0.0.1".to_owned(),
            interface: "eth0".to_owned(),
            ..v1::VipSpec::default()
        }),
        revision,
        declared_revision: revision,
        ..v1::Vip::default()
    };
    v1::WatchEvent { event: Some(v1::watch_event::Event::Put(vip)) }
}
