//! Event loop, sockets, configuration, metrics: moves values between the crates that decide.

pub mod api;
pub mod clock;
pub mod config;
pub mod control;
mod core;
pub mod credentials;
pub mod events;
mod exchange;
pub mod metrics;
pub mod net;
pub mod pki;
pub mod synch;
mod text;

pub use core::run;
