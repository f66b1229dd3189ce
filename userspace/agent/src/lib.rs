//! Event loop, sockets, configuration, metrics: moves values between the crates that decide.

pub mod config;
