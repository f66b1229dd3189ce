//! ESP (RFC 4303): the rules, in stages. A stage leaves its results in [`crate::env::Work`], so that the
//! 512 octets of stack of a BPF call chain are free for the cipher.

pub mod header;
pub mod inbound;
pub mod nonce;
pub mod outbound;
pub mod pad;
pub mod too_big;
pub mod transport;
