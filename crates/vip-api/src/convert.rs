//! Between [`v1`] and [`crate::model`]. What comes in is checked here, once, and the error names the field.

use std::time::Duration;

use thiserror::Error;
use vip_core::{Epoch, InterfaceSelector, NodeId, Placement, SpecError, VipName, VipSpec};

use crate::model::{
    Assigned, Consistency, Fence, Header, HolderCount, HolderState, LocalStatus, NodeRef, NodeRole, NodeStatus, Status,
    Timing, Vip, WatchEvent,
};
use crate::v1;

mod inward;
pub use inward::{header, watch_event};
mod outward;

/// A field of a message is missing or malformed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{field}: {reason}")]
pub struct FieldError {
    /// Path of the field, as in the `.proto`.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

impl FieldError {
    /// An error of `field`.
    pub fn new(field: &'static str, reason: impl ToString) -> Self {
        Self { field, reason: reason.to_string() }
    }

    fn missing(field: &'static str) -> Self {
        Self::new(field, "is missing")
    }
}

impl From<FieldError> for tonic::Status {
    fn from(error: FieldError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

/// The VIP that a request declares, validated.
///
/// # Errors
/// Names the first field that is wrong.
pub fn declared(spec: Option<v1::VipSpec>) -> Result<VipSpec, FieldError> {
    let spec = VipSpec::try_from(spec.ok_or_else(|| FieldError::missing("spec"))?)?;
    spec.validate().map_err(|error| {
        let field = match error {
            SpecError::Address { .. } | SpecError::NotAHost { .. } => "spec.address",
            SpecError::PrefixTooLong { .. } => "spec.prefix_len",
            SpecError::Interface { .. } => "spec.interface",
        };
        FieldError::new(field, error)
    })
}

/// The name of a VIP in the field `field`.
///
/// # Errors
/// Where it cannot be one.
pub fn vip_name(field: &'static str, name: String) -> Result<VipName, FieldError> {
    VipName::try_from(name).map_err(|error| FieldError::new(field, error))
}

/// The consistency that a request asks for.
///
/// # Errors
/// Where the number is unknown to this version.
pub fn consistency(value: i32) -> Result<Consistency, FieldError> {
    match v1::Consistency::try_from(value) {
        Ok(v1::Consistency::Unspecified | v1::Consistency::Linearizable) => Ok(Consistency::Linearizable),
        Ok(v1::Consistency::Lease) => Ok(Consistency::Lease),
        Ok(v1::Consistency::Local) => Ok(Consistency::Local),
        Err(_) => Err(FieldError::new("consistency", format!("{value} is not known"))),
    }
}

const NANOS_IN_SECOND: i128 = 1_000_000_000;

/// A duration in the field `field`.
///
/// # Errors
/// Where it is negative or out of range.
pub fn duration(field: &'static str, value: prost_types::Duration) -> Result<Duration, FieldError> {
    // By hand: prost-types negates what is negative, also the least number, which has no opposite.
    let nanos = i128::from(value.seconds) * NANOS_IN_SECOND + i128::from(value.nanos);
    let whole = i64::try_from(nanos.div_euclid(NANOS_IN_SECOND)).ok().and_then(|whole| u64::try_from(whole).ok());
    let part = u32::try_from(nanos.rem_euclid(NANOS_IN_SECOND)).ok();
    whole.zip(part).map(|(whole, part)| Duration::new(whole, part)).ok_or_else(|| {
        let prost_types::Duration { seconds, nanos } = value;
        FieldError::new(field, format!("{seconds} s and {nanos} ns are not a positive duration"))
    })
}

/// For the wire; what does not fit is cut to the largest duration.
#[must_use]
pub fn proto_duration(value: Duration) -> prost_types::Duration {
    prost_types::Duration::try_from(value).unwrap_or(prost_types::Duration { seconds: i64::MAX, nanos: 999_999_999 })
}

#[cfg(test)]
mod tests;
