#![no_std]
//! Per-packet rules and ciphers, no_std, compiled for BPF and for the host.

pub mod aead;
pub mod limits;
