//! Sans-IO cluster: membership, synch channel, journal, leases and ceilings, takeover.
//!
//! [`Node`] is one member: inputs in, outputs out, time as an argument. It holds the peers (detectors, links, heartbeats) and
//! one group machine for each group of segments: owner or standby, journal, raises, handover. What a group decides, it
//! decides by the pure functions of [`rules`] and its neighbours, which `tests/model` explores as well. Who owns is settled between two members
//! (the embedded pair engine) or by an external ownership engine, see [`ownership`].

pub mod detector;
mod group;
pub mod guest;
pub mod io;
pub mod journal;
pub mod layout;
pub mod message;
pub mod node;
pub mod ownership;
pub mod patch;
pub mod raises;
pub mod rules;
pub mod rules_begin;
pub mod rules_doubt;
pub mod rules_guest;
pub mod status;

pub use group::tenure::Tenure;
pub use io::{Command, Event, Input, Output, Refused};
pub use layout::Layout;
pub use message::{Direction, LeaseRest, Link, RaiseItem, SetMember};
pub use node::{EngineKind, Node, NodeConfig};
pub use ownership::{GroupRecord, OwnershipAnswer, OwnershipOp};
pub use rules::{EpochId, Solo, Standing, TakeoverPlan};
pub use status::{GroupStatus, NodeStatus};
