//! The pair engine in virtual time.

mod faults;
mod pair;
mod world;
