//! Up to three members and an ownership engine: takeover, leases, ceilings, journal, joins and moves.
//!
//! [`world::World`] is the engine's key, the members, and a network that keeps every record for ever. One direction of one SA
//! is explored at a time, since the two share nothing but the epochs. What may be used is used at once where that is the
//! worst that can happen (outbound numbers, committed octets); what must be free to happen later (inbound packets while
//! a ceiling may go down) is an action.
//!
//! As in the model of the pair there is no clock, and a member that is paused is one that takes no step.

pub mod actor;
pub mod join;
pub mod owner;
pub mod reduce;
pub mod rules;
pub mod state;
pub mod world;
