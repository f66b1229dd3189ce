//! Deterministic simulation of whole clusters: the real crates `ike`, `sad`, `cluster` and `datapath` under virtual time, faults drawn
//! from a seed, and checkers that know nothing of the code under test. docs/SIMULATION.md says what is simulated.

mod around;
pub mod check;
mod entry;
mod etcd;
pub mod faults;
mod frames;
mod member;
mod net;
mod peer;
mod plane;
pub mod rng;
pub mod run;
pub mod sabotage;
pub mod scenarios;
pub mod setup;
mod trace;
mod world;

pub use run::{Options, Outcome, run_seed};
pub use sabotage::Sabotage;
pub use world::Ran;
