//! The explicit IV: which member, in which epoch, with which number (RFC 6054's shape). Two members never share one, even
//! when both believe they are active.

/// Member 8 bits | takeover epoch 16 | sequence number 40.
#[inline(always)]
pub const fn iv(member: u8, epoch: u16, seq: u64) -> [u8; 8] {
    (((member as u64) << 56) | ((epoch as u64) << 40) | (seq & ((1 << 40) - 1))).to_be_bytes()
}
