//! stateright models of leases, ceilings, journal, join and takeover on the product's decision code.
//!
//! [`world::World`] is a pair of members, the network between them, one SA and a peer that may send any sequence number
//! at any time. What members decide comes from [`rules::Rules`], whose default is `cluster::rules` and
//! `datapath::limits`; the mutation tests replace one decision at a time by a broken one and expect a violation.
//!
//! There is no clock in the model: every step may be delayed for ever, so a stalled owner that wakes up after a
//! takeover and goes on sending is one of the interleavings. What holds here does not rest on time.

pub mod group;
pub mod guest;
pub mod rules;
pub mod state;
pub mod steps;
pub mod world;
