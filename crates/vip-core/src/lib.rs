//! The pure core of vipd: what is decided, without a clock, a socket or a thread.
//!
//! - [`cluster`]: the replicated machine, the same on every node.
//! - [`gate`]: the lease gate, which says when a node may vote, stand, and act on its lease.
//! - [`agent`]: the node-local machine, which turns agreed state and a running lease into effects, as data.
//!
//! Time comes in as a [`BootInstant`] argument. Nothing here allocates a thread, reads a file or speaks to the kernel.
#![warn(clippy::wildcard_enum_match_arm)]

pub mod agent;
pub mod cluster;
pub mod gate;
pub mod ids;
pub mod kill_point;
pub mod rules;
pub mod spec;
pub mod time;

pub use agent::{Action, Agent, AgentConfig, HolderState, Holding, Input, Reign, Step, VipStatus};
pub use cluster::{Assignment, Claim, Cluster, Command, LeaseKind, Outcome, Refusal, VipRecord};
pub use gate::{HeldVote, LeaseGate, LeaseTiming, NotArmed, Shut, VoteRequest};
pub use ids::{ClusterName, Epoch, Leadership, NameError, NodeId, VipName};
pub use kill_point::KillPoint;
pub use spec::{InterfaceSelector, Placement, SpecError, VipSpec};
pub use time::BootInstant;
