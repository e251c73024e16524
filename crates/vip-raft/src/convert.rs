//! The peers' messages from and to openraft's types. Wire types stop here.

use tonic::Status;

use crate::types;

/// What `vip/raft/v1/raft.proto` generates.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    missing_debug_implementations,
    clippy::all,
    clippy::use_self,
    clippy::too_many_lines
)]
pub(crate) mod proto {
    tonic::include_proto!("vip.raft.v1");
}

/// A message of a peer that makes no sense.
fn malformed(what: &str) -> Status {
    Status::invalid_argument(format!("malformed message of a peer: {what}"))
}

/// A field that protobuf makes optional and the protocol does not.
pub(crate) fn required<T>(field: Option<T>, name: &'static str) -> Result<T, Status> {
    field.ok_or_else(|| malformed(&format!("{name} is missing")))
}

pub(crate) fn from_json<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, Status> {
    serde_json::from_slice(bytes).map_err(|error| malformed(&format!("{what}: {error}")))
}

/// JSON of a type whose encoding cannot fail: no map with other keys than text or numbers, no failing `Serialize`.
#[allow(clippy::expect_used, reason = "the types are our own and tested to encode")]
pub(crate) fn to_json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("own types encode as JSON")
}

impl From<&types::Vote> for proto::Vote {
    fn from(vote: &types::Vote) -> Self {
        Self { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
    }
}

impl From<proto::Vote> for types::Vote {
    fn from(vote: proto::Vote) -> Self {
        if vote.committed { Self::new_committed(vote.term, vote.node) } else { Self::new(vote.term, vote.node) }
    }
}

impl From<&types::LogId> for proto::LogId {
    fn from(id: &types::LogId) -> Self {
        let leader = id.committed_leader_id();
        Self { term: leader.term, node: leader.node_id, index: id.index() }
    }
}

impl From<proto::LogId> for types::LogId {
    fn from(id: proto::LogId) -> Self {
        Self::new(types::LeaderId { term: id.term, node_id: id.node }, id.index)
    }
}

impl From<&types::Entry> for proto::Entry {
    fn from(entry: &types::Entry) -> Self {
        let payload = match &entry.payload {
            openraft::EntryPayload::Blank => None,
            openraft::EntryPayload::Normal(request) => Some(proto::entry::Payload::Command(to_json(request))),
            openraft::EntryPayload::Membership(membership) => {
                Some(proto::entry::Payload::Membership(to_json(membership)))
            }
        };
        Self { log_id: Some((&entry.log_id).into()), payload }
    }
}

#[allow(clippy::result_large_err, reason = "tonic's own error type")]
fn entry(entry: proto::Entry) -> Result<types::Entry, Status> {
    let payload = match entry.payload {
        None => openraft::EntryPayload::Blank,
        Some(proto::entry::Payload::Command(bytes)) => {
            openraft::EntryPayload::Normal(from_json(&bytes, "an entry's command")?)
        }
        Some(proto::entry::Payload::Membership(bytes)) => {
            openraft::EntryPayload::Membership(from_json(&bytes, "an entry's membership")?)
        }
    };
    Ok(types::Entry { log_id: required(entry.log_id, "an entry's log_id")?.into(), payload })
}

/// The entries follow `prev_log_id` and each other, and none is of a later leader than the one that sends them. openraft
/// asserts it in debug builds only; a log that took others would not open again.
#[allow(clippy::result_large_err, reason = "tonic's own error type")]
fn check_order(rpc: &types::AppendEntriesRequest) -> Result<(), Status> {
    let mut last = rpc.prev_log_id;
    for entry in &rpc.entries {
        let id = entry.log_id;
        let next = last.map_or(Some(0), |last| last.index.checked_add(1));
        if next != Some(id.index) || last.is_some_and(|last| id < last) {
            let after = last.map_or_else(|| "nothing".to_owned(), |last| last.to_string());
            return Err(malformed(&format!("entry {id} cannot follow {after}")));
        }
        last = Some(id);
    }
    match rpc.entries.last() {
        Some(newest) if *rpc.vote.leader_id() < newest.log_id.leader_id => {
            Err(malformed(&format!("entry {} is of a later leader than {}", newest.log_id, rpc.vote)))
        }
        _ => Ok(()),
    }
}

pub(crate) fn append_request(rpc: &types::AppendEntriesRequest) -> proto::AppendEntriesRequest {
    proto::AppendEntriesRequest {
        sender: None,
        vote: Some((&rpc.vote).into()),
        prev_log_id: rpc.prev_log_id.as_ref().map(Into::into),
        leader_commit: rpc.leader_commit.as_ref().map(Into::into),
        entries: rpc.entries.iter().map(Into::into).collect(),
    }
}

impl TryFrom<proto::AppendEntriesRequest> for types::AppendEntriesRequest {
    type Error = Status;

    fn try_from(rpc: proto::AppendEntriesRequest) -> Result<Self, Status> {
        let rpc = Self {
            vote: required(rpc.vote, "vote")?.into(),
            prev_log_id: rpc.prev_log_id.map(Into::into),
            leader_commit: rpc.leader_commit.map(Into::into),
            entries: rpc.entries.into_iter().map(entry).collect::<Result<_, _>>()?,
        };
        check_order(&rpc)?;
        Ok(rpc)
    }
}

impl From<types::AppendEntriesResponse> for proto::append_entries_response::Result {
    fn from(response: types::AppendEntriesResponse) -> Self {
        match response {
            types::AppendEntriesResponse::Success => Self::Success(proto::Empty {}),
            types::AppendEntriesResponse::PartialSuccess(matching) => {
                Self::PartialSuccess(proto::PartialSuccess { matching: matching.as_ref().map(Into::into) })
            }
            types::AppendEntriesResponse::Conflict => Self::Conflict(proto::Empty {}),
            types::AppendEntriesResponse::HigherVote(vote) => Self::HigherVote((&vote).into()),
        }
    }
}

impl From<proto::append_entries_response::Result> for types::AppendEntriesResponse {
    fn from(result: proto::append_entries_response::Result) -> Self {
        use proto::append_entries_response::Result as Wire;
        match result {
            Wire::Success(_) => Self::Success,
            Wire::PartialSuccess(partial) => Self::PartialSuccess(partial.matching.map(Into::into)),
            Wire::Conflict(_) => Self::Conflict,
            Wire::HigherVote(vote) => Self::HigherVote(vote.into()),
        }
    }
}

pub(crate) fn vote_request(rpc: &types::VoteRequest) -> proto::VoteRequest {
    proto::VoteRequest {
        sender: None,
        vote: Some((&rpc.vote).into()),
        last_log_id: rpc.last_log_id.as_ref().map(Into::into),
        leadership_transfer: rpc.leadership_transfer,
        transfer_of: None,
    }
}

impl TryFrom<proto::VoteRequest> for types::VoteRequest {
    type Error = Status;

    fn try_from(rpc: proto::VoteRequest) -> Result<Self, Status> {
        let mut request = Self::new(required(rpc.vote, "vote")?.into(), rpc.last_log_id.map(Into::into));
        request.leadership_transfer = rpc.leadership_transfer;
        Ok(request)
    }
}

pub(crate) fn vote_response(response: &types::VoteResponse) -> proto::VoteResponse {
    proto::VoteResponse {
        sender: None,
        vote: Some((&response.vote).into()),
        last_log_id: response.last_log_id.as_ref().map(Into::into),
        granted: response.vote_granted,
    }
}

impl TryFrom<proto::VoteResponse> for types::VoteResponse {
    type Error = Status;

    fn try_from(response: proto::VoteResponse) -> Result<Self, Status> {
        let vote: types::Vote = required(response.vote, "vote")?.into();
        Ok(Self::new(vote, response.last_log_id.map(Into::into), response.granted))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn an_append_survives_the_wire() {
        let log_id = |index| types::LogId::new(types::LeaderId { term: 3, node_id: 2 }, index);
        let node = types::PeerNode { name: "n1".to_owned(), address: "10.0.0.1:7400".to_owned() };
        let membership = types::Membership::new(vec![BTreeSet::from([1])], BTreeMap::from([(1, node)])).unwrap();
        let command = vip_core::Command::DeleteVip("a".parse().unwrap());
        let rpc = types::AppendEntriesRequest {
            vote: types::Vote::new_committed(3, 2),
            prev_log_id: Some(log_id(4)),
            leader_commit: None,
            entries: vec![
                types::Entry { log_id: log_id(5), payload: openraft::EntryPayload::Blank },
                types::Entry { log_id: log_id(6), payload: openraft::EntryPayload::Normal(types::Request(command)) },
                types::Entry { log_id: log_id(7), payload: openraft::EntryPayload::Membership(membership) },
            ],
        };
        let back = types::AppendEntriesRequest::try_from(append_request(&rpc)).unwrap();
        assert_eq!(format!("{rpc:?}"), format!("{back:?}"));
    }

    #[test]
    fn entries_that_do_not_follow_each_other_are_refused() {
        let log_id = |term, index| types::LogId::new(types::LeaderId { term, node_id: 2 }, index);
        let append = |prev: Option<types::LogId>, ids: &[types::LogId]| {
            let blank = |id: &types::LogId| types::Entry { log_id: *id, payload: openraft::EntryPayload::Blank };
            let rpc = types::AppendEntriesRequest {
                vote: types::Vote::new_committed(3, 2),
                prev_log_id: prev,
                leader_commit: None,
                entries: ids.iter().map(blank).collect(),
            };
            types::AppendEntriesRequest::try_from(append_request(&rpc)).map_err(|status| status.message().to_owned())
        };
        for (prev, ids) in [
            (None, vec![log_id(0, 0), log_id(1, 1)]),
            (Some(log_id(2, 4)), vec![log_id(2, 5), log_id(3, 6)]),
            (Some(log_id(3, u64::MAX)), vec![]),
        ] {
            assert!(append(prev, &ids).is_ok(), "{prev:?} {ids:?}");
        }
        for (prev, ids, says) in [
            (None, vec![log_id(1, 1)], "cannot follow nothing"),
            (Some(log_id(2, 4)), vec![log_id(2, 6)], "cannot follow"),
            (Some(log_id(2, 4)), vec![log_id(2, 5), log_id(2, 5)], "cannot follow"),
            (Some(log_id(2, 4)), vec![log_id(1, 5)], "cannot follow"),
            (Some(log_id(2, u64::MAX)), vec![log_id(2, 0)], "cannot follow"),
            (Some(log_id(2, 4)), vec![log_id(4, 5)], "later leader"),
        ] {
            let error = append(prev, &ids).expect_err("must be refused");
            assert!(error.contains(says), "{prev:?} {ids:?}: {error}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_the_field() {
        let empty = proto::AppendEntriesRequest::default();
        let error = types::AppendEntriesRequest::try_from(empty).unwrap_err();
        assert!(error.message().contains("vote is missing"), "{error}");
        let bad = proto::Entry {
            log_id: Some(proto::LogId::default()),
            payload: Some(proto::entry::Payload::Command(b"{".to_vec())),
        };
        assert!(entry(bad).unwrap_err().message().contains("command"));
    }
}
