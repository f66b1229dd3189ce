//! The only truth about Child SAs on a member: SAD, SPD, SPI allocation, lease and ceiling sizes, lifetimes.
//!
//! Changes go in, [`port::MapPlan`]s come out; a [`port::DataPlane`] carries them out. Nothing here reads a clock,
//! draws randomness or names aya: time, the ownership epoch and the programs' counters are arguments.
#![forbid(unsafe_code)]

mod advance;
mod awaited;
mod configure;
mod handling;
mod handover;
pub mod lifetime;
pub mod limits;
mod linger;
pub mod listing;
pub mod look;
pub mod memory;
pub mod path;
pub mod policy_table;
pub mod port;
pub mod prefix;
mod raises;
pub mod record;
mod roaming;
mod siblings;
pub mod snapshot;
pub mod spd;
pub mod spi;
pub mod store;
mod taint;
pub mod usage;

pub use handling::{DontFragment, Handling};
pub use handover::LeaseRest;
pub use limits::LimitRaise;
pub use linger::{LINGER, LingerUpTo, may_linger_on};
pub use listing::PolicyLine;
pub use look::Look;
pub use port::{DataPlane, Direction, MapOp, MapPlan, PlanError, SaCounters};
pub use raises::{Limited, NamedLimits};
pub use siblings::Key as FamilyKey;
pub use snapshot::SnapshotSa;
pub use spd::{Policy, PolicyAction, selector_pairs};
pub use store::{Context, SaEntry, Sad, SadError, Settings};
pub use usage::{Carried, Usage};
