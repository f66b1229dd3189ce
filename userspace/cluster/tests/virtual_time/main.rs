//! Members in virtual time.

mod agent;
mod deaf;
mod empty_half;
mod engine;
mod faults;
mod forks;
mod guests;
mod lives;
mod pair;
mod register;
mod sharing;
mod suspects;
mod tenure;
mod world;
