//! What both sides of the kernel boundary agree on: map layouts, names, verdicts.
//!
//! Every struct here is `#[repr(C)]` without padding, proved by `zerocopy::IntoBytes` and by a size assertion
//! beside the declaration. Integers are in host byte order (both sides run on the same host) unless a field
//! says "network order". Addresses are 16 octets: IPv6, or IPv4 mapped as `::ffff:a.b.c.d`.
#![no_std]
#![forbid(unsafe_code)]

pub mod event;
pub mod names;
pub mod sad;
pub mod segment;
pub mod spd;
pub mod steer;
pub mod verdict;
pub mod version;
