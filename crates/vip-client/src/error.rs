//! What a call can fail with.

use std::error;
use std::time::Duration;

use thiserror::Error;
use tonic::{Code, Status};
use vip_api::FieldError;

use crate::endpoint::BadEndpoint;

/// Why a call failed.
#[derive(Clone, Debug, Error)]
pub enum Error {
    /// No endpoint was given.
    #[error("no endpoint was given")]
    NoEndpoint,
    /// An endpoint cannot be used.
    #[error(transparent)]
    BadEndpoint(#[from] BadEndpoint),
    /// The cluster understood, and said no. Repeating does not help.
    #[error("{message}")]
    Refused {
        /// What sort of no.
        kind: Refusal,
        /// The reason, for a human.
        message: String,
    },
    /// In the time given no node could do it: none was reached, or those that were have no leader or no quorum. A change may
    /// or may not have been made.
    #[error("no answer within {:.1} s: {last}", timeout.as_secs_f64())]
    Unavailable {
        /// The time that was given.
        timeout: Duration,
        /// What the last attempt failed with, and at which endpoint.
        last: String,
    },
    /// A node failed in a way that is none of the above.
    #[error("{endpoint} failed ({code:?}): {message}")]
    Failed {
        /// Which one.
        endpoint: String,
        /// The gRPC code.
        code: Code,
        /// What it said.
        message: String,
    },
    /// An answer makes no sense to this version.
    #[error("the answer cannot be understood: {0}")]
    Malformed(#[from] FieldError),
}

/// Why the cluster says no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// A field is malformed.
    Invalid,
    /// There is no such thing.
    NotFound,
    /// The name or the address is taken.
    AlreadyExists,
    /// The state of the cluster forbids it.
    FailedPrecondition,
    /// There are too many.
    ResourceExhausted,
}

/// What to do after an attempt failed.
pub(crate) enum Verdict {
    /// Another attempt may succeed.
    Retry,
    /// None will.
    Final(Error),
}

/// Judges `status`, which came from, or of the attempt to reach, `endpoint`.
pub(crate) fn judge(status: &Status, endpoint: &str) -> Verdict {
    let refused = |kind| Verdict::Final(Error::Refused { kind, message: status.message().to_owned() });
    match status.code() {
        Code::InvalidArgument => refused(Refusal::Invalid),
        Code::NotFound => refused(Refusal::NotFound),
        Code::AlreadyExists => refused(Refusal::AlreadyExists),
        Code::FailedPrecondition => refused(Refusal::FailedPrecondition),
        Code::ResourceExhausted => refused(Refusal::ResourceExhausted),
        Code::Unavailable | Code::DeadlineExceeded => Verdict::Retry,
        // Made on this side of a connection that broke; one that a server sent has no source.
        Code::Unknown | Code::Cancelled | Code::Internal if error::Error::source(status).is_some() => Verdict::Retry,
        code => Verdict::Final(Error::Failed { endpoint: endpoint.to_owned(), code, message: explain(status) }),
    }
}

/// The message with its causes: a transport error alone says only that it is one.
pub(crate) fn explain(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = error::Error::source(status);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// Whether time ran out on this side.
pub(crate) fn timed_out(status: &Status) -> bool {
    let first = error::Error::source(status);
    std::iter::successors(first, |error| error.source()).any(|error| error.is::<tonic::TimeoutExpired>())
}
