//! The nodes that a client knows, and which of them to ask first.

use tonic::Status;
use tonic::transport::Channel;
use vip_api::v1::ResponseHeader;

use crate::endpoint::{BadEndpoint, Endpoint};

/// Endpoints learnt from answers are not kept without end.
const MOST: usize = 64;

/// In which order nodes are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// The leader, if known, then the one that answered last, then the others.
    LeaderFirst,
    /// As given: what one node says of itself depends on which it is.
    AsGiven,
}

/// One node to ask.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) index: usize,
    pub(crate) name: String,
    pub(crate) channel: Channel,
}

#[derive(Debug)]
struct Peer {
    endpoint: Endpoint,
    channel: Channel,
    /// The node that answered there last.
    node: Option<u64>,
}

#[derive(Debug)]
pub(crate) struct Pool {
    peers: Vec<Peer>,
    leader: Option<u64>,
    /// Where to go while the leader is not known.
    preferred: usize,
}

impl Pool {
    pub(crate) fn new(endpoints: Vec<Endpoint>) -> Result<Self, BadEndpoint> {
        let mut pool = Self { peers: Vec::new(), leader: None, preferred: 0 };
        for endpoint in endpoints {
            pool.add(endpoint)?;
        }
        Ok(pool)
    }

    /// The index of `endpoint`, which is added where it is new.
    fn add(&mut self, endpoint: Endpoint) -> Result<usize, BadEndpoint> {
        if let Some(known) = self.peers.iter().position(|peer| peer.endpoint == endpoint) {
            return Ok(known);
        }
        let channel = endpoint.channel()?;
        self.peers.push(Peer { endpoint, channel, node: None });
        Ok(self.peers.len() - 1)
    }

    pub(crate) fn candidate(&self, index: usize) -> Candidate {
        let peer = &self.peers[index];
        Candidate { index, name: peer.endpoint.to_string(), channel: peer.channel.clone() }
    }

    /// Everybody, in the order in which to ask.
    pub(crate) fn candidates(&self, order: Order) -> Vec<Candidate> {
        let count = self.peers.len();
        let mut indices: Vec<usize> = match order {
            Order::AsGiven => (0..count).collect(),
            Order::LeaderFirst => (0..count).map(|offset| (self.preferred + offset) % count).collect(),
        };
        if order == Order::LeaderFirst && self.leader.is_some() {
            // Stable: the rest keeps its order.
            indices.sort_by_key(|index| self.peers[*index].node != self.leader);
        }
        indices.into_iter().map(|index| self.candidate(index)).collect()
    }

    /// Takes note of an answer.
    pub(crate) fn answered(&mut self, index: usize, header: Option<&ResponseHeader>) {
        self.preferred = index;
        if let Some(header) = header {
            self.peers[index].node = Some(header.node_id);
            self.leader = header.leader_id;
        }
    }

    /// Takes note of a failure; gives the leader to ask instead, if the node named one.
    pub(crate) fn failed(&mut self, index: usize, status: Option<&Status>) -> Option<usize> {
        if self.leader.is_some() && self.peers[index].node == self.leader {
            self.leader = None;
        }
        if self.preferred == index {
            self.preferred = (index + 1) % self.peers.len();
        }
        let hint = status?.metadata().get(vip_api::LEADER_METADATA)?.to_str().ok()?;
        // A socket on another host's disk is no address; anything else can be tried.
        let endpoint: Endpoint = hint.parse().ok().filter(|_| !hint.starts_with("unix:"))?;
        if self.peers.len() >= MOST && self.peers.iter().all(|peer| peer.endpoint != endpoint) {
            return None;
        }
        self.add(endpoint).ok().filter(|leader| *leader != index)
    }
}
