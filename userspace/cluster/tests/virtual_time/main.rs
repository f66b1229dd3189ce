//! Members in virtual time.

mod engine;
mod faults;
mod lives;
mod pair;
mod sharing;
mod world;
