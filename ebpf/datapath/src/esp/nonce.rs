//! The explicit IV: which member, in which epoch, with which number (RFC 6054's shape). Two members never share one, even
//! when both believe they are active.
//!
//! An AEAD sends it as it is. For AES-CBC it is the nonce that the IV is made of, since that one must not be foreseen (RFC 3602 3).

use super::header::IV_MAX;

/// Member 8 bits | takeover epoch 16 | sequence number 40; then zeros, which an AEAD does not look at.
#[inline(always)]
pub const fn iv(member: u8, epoch: u16, seq: u64) -> [u8; IV_MAX] {
    let half = ((member as u64) << 56) | ((epoch as u64) << 40) | (seq & ((1 << 40) - 1));
    ((half as u128) << 64).to_be_bytes()
}
