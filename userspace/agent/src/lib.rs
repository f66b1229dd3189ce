//! Event loop, sockets, configuration, metrics: moves values between the crates that decide.

pub mod api;
pub mod config;
pub mod net;
pub mod pki;
pub mod synch;
