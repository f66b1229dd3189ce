//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

/// Checksum of a header of `N` octets (even), whose checksum field is zero.
#[inline(always)]
pub fn internet<const N: usize>(octets: &[u8; N]) -> u16 {
    let mut sum = 0u32;
    for pair in octets.as_chunks::<2>().0 {
        sum += u16::from_be_bytes(*pair) as u32;
    }
    fold(sum)
}

/// Sum of the four 16-bit words of a number.
#[inline(always)]
pub const fn words(number: u64) -> u32 {
    ((number >> 48) + (number >> 32 & 0xffff) + (number >> 16 & 0xffff) + (number & 0xffff)) as u32
}

/// Folds a sum of 16-bit words and complements it.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// The checksum after one 16-bit word of what it covers changed (RFC 1624 3, equation 3).
#[inline(always)]
pub const fn updated(checksum: u16, old: u16, new: u16) -> u16 {
    fold((!checksum) as u32 + (!old) as u32 + new as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_with_its_checksum_sums_to_zero() {
        let mut header = [
            0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7,
        ];
        assert_eq!(internet(&header), 0xb861);
        header[10..12].copy_from_slice(&0xb861u16.to_be_bytes());
        assert_eq!(internet(&header), 0);
    }

    #[test]
    fn an_update_equals_a_new_sum_for_every_ttl() {
        for ttl in 1..=255u8 {
            let mut header = [
                0x45, 0, 0, 0x73, 0, 0, 0, 0, ttl, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7,
            ];
            let before = internet(&header);
            header[8] = ttl - 1;
            let words = (
                u16::from_be_bytes([ttl, 0x11]),
                u16::from_be_bytes([ttl - 1, 0x11]),
            );
            assert_eq!(updated(before, words.0, words.1), internet(&header));
        }
    }
}
