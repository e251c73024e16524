//! The client against nodes that misbehave.

mod calls;
mod fake;
mod watches;
