//! Sans-IO cluster: membership, synch channel, journal, leases and ceilings, takeover, the pair engine.
//!
//! [`Node`] is one member: inputs in, outputs out, time as an argument. What it decides, it decides by the pure
//! functions of [`rules`], which `tests/model` explores as well.

pub mod detector;
pub mod io;
pub mod journal;
pub mod message;
pub mod node;
pub mod raises;
pub mod rules;
pub mod status;

pub use io::{Command, Event, Input, Output, Refused};
pub use message::{Direction, Link, RaiseItem, SetMember};
pub use node::{Node, NodeConfig};
pub use rules::{EpochId, Solo, Standing, TakeoverPlan};
pub use status::NodeStatus;
