//! Event loop, sockets, configuration, metrics: moves values between the crates that decide.

pub mod config;
pub mod pki;
pub mod synch;
