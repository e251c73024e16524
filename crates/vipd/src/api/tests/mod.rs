//! The services over a fake node and a real connection.

pub(crate) mod fake;

mod requests;
mod watches;
