//! Padding, pad length and next header (RFC 4303 2.4 to 2.6).

use super::header::{TRAILER_LEN, block_len};
use crate::aead::TEXT_MAX;
use crate::bytes::{Bounded, PacketRead};
use crate::opaque::opaque;

/// Most octets that padding and trailer add.
pub const TAIL_MAX: usize = 17;
/// Largest inner packet whose text fits.
pub const INNER_MAX: usize = TEXT_MAX - TAIL_MAX - 7;

/// Octets of inner packet, padding and trailer: a multiple of the suite's [`block_len`].
#[inline(always)]
pub const fn padded_len(suite: u8, inner: usize) -> usize {
    let mask = block_len(suite) - 1;
    (inner + TRAILER_LEN + mask) & !mask
}

/// Writes padding 1, 2, 3 ..., pad length and next header behind `inner` octets of text. Returns the text's length, or
/// `None` where it does not fit.
#[inline(always)]
pub fn append(suite: u8, text: &mut [u8; TEXT_MAX], inner: usize, next_header: u8) -> Option<usize> {
    let inner = opaque(inner as u64) as usize;
    if inner > INNER_MAX {
        return None;
    }
    let end = opaque(padded_len(suite, inner) as u64) as usize;
    if !(TRAILER_LEN..=TEXT_MAX).contains(&end) {
        return None;
    }
    // All that padding may be, and the trailer over it: what lies behind the text is not looked at, and there is no loop for the verifier.
    *text.get_mut(inner..)?.first_chunk_mut::<16>()? =
        [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    let pad = (end - TRAILER_LEN - inner) as u8;
    *text.get_mut(end - TRAILER_LEN..)?.first_chunk_mut::<2>()? = [pad, next_header];
    Some(end)
}

/// Octets of payload and the next header of a decrypted text, or `None` where the padding is wrong.
///
/// RFC 4303 2.4: padding octets are 1, 2, 3, ..., and the receiver SHOULD inspect them.
#[inline(always)]
pub fn strip(text: &[u8; TEXT_MAX], len: usize) -> Option<(usize, u8)> {
    let packet = Bounded { octets: text, len };
    let [pad, next_header] = packet.read::<2>(len.checked_sub(TRAILER_LEN)?)?;
    let payload = (len - TRAILER_LEN).checked_sub(pad as usize)?;
    let mut i = 0usize;
    while i < 255 {
        if i >= pad as usize {
            break;
        }
        if packet.u8(payload + i)? != i as u8 + 1 {
            return None;
        }
        i += 1;
    }
    Some((payload, next_header))
}

#[cfg(test)]
mod tests {
    use super::*;
    use maps_schema::sad::{SUITE_AES128_GCM, SUITE_LAST};

    #[test]
    fn what_is_appended_is_stripped() {
        for suite in SUITE_AES128_GCM..=SUITE_LAST {
            for inner in (0..64).chain(INNER_MAX - 32..=INNER_MAX) {
                let mut text = [0xee; TEXT_MAX];
                let len = append(suite, &mut text, inner, 4).unwrap();
                assert!(len.is_multiple_of(block_len(suite)) && len - inner <= TAIL_MAX);
                assert_eq!(
                    strip(&text, len),
                    Some((inner, 4)),
                    "suite {suite}, {inner} octets"
                );
            }
            let mut text = [0; TEXT_MAX];
            assert_eq!(append(suite, &mut text, INNER_MAX + 1, 4), None);
        }
    }

    #[test]
    fn wrong_padding_is_refused() {
        let mut text = [0; TEXT_MAX];
        assert_eq!(strip(&text, 1), None);
        text[..6].copy_from_slice(&[9, 1, 2, 9, 3, 4]);
        assert_eq!(strip(&text, 6), None);
        text[3] = 3;
        assert_eq!(strip(&text, 6), Some((1, 4)));
        text[4] = 5;
        assert_eq!(strip(&text, 6), None);
    }
}
