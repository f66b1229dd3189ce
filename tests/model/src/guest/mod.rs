//! Guests (ADR 11): Child SAs on the segments of another group than their IKE SA's. Two groups in one world, each with a journal and
//! owners that follow each other; an old owner goes on with its old view for as long as it likes.
//!
//! What the members decide is `cluster::rules_guest`; what surrounds it (`cluster::guest`) is rewritten in short in [`world`].

pub mod rules;
pub mod state;
pub mod world;
