//! The pair engine in virtual time.

mod faults;
mod lives;
mod pair;
mod world;
