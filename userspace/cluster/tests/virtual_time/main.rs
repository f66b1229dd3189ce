//! Members in virtual time.

mod agent;
mod engine;
mod faults;
mod lives;
mod pair;
mod register;
mod sharing;
mod world;
