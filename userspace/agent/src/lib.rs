//! Event loop, sockets, configuration, metrics: moves values between the crates that decide.

pub mod clock;
pub mod config;
pub mod control;
pub mod events;
pub mod metrics;
pub mod net;
pub mod pki;
pub mod status;
pub mod synch;
