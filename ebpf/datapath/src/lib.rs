#![no_std]
#![cfg_attr(
    target_arch = "bpf",
    feature(core_intrinsics, adt_const_params, asm_experimental_arch),
    allow(internal_features)
)]
//! Per-packet rules and ciphers, no_std, compiled for BPF and for the host.
//!
//! Rules are generic over [`env::Env`], so that the XDP programs and the host's tests run the same code. No function has a
//! reachable panic: in BPF one would fail at load.

pub mod aead;
pub mod arp;
pub mod bytes;
pub mod checksum;
pub mod clear;
pub mod control;
pub mod counter;
pub mod ecn;
pub mod env;
pub mod esp;
pub mod headers;
pub mod icmp;
pub mod limits;
pub mod link;
pub mod mss;
pub mod nd;
pub mod opaque;
pub mod replay;
pub mod selectors;
pub mod spd;
pub mod steer;
pub mod ttl;
