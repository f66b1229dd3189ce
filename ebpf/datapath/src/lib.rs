#![no_std]
//! Per-packet rules and ciphers, no_std, compiled for BPF and for the host.

pub mod limits;
