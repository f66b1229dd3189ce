//! Padding, pad length and next header (RFC 4303 2.4 to 2.6).

use super::header::TRAILER_LEN;
use crate::aead::TEXT_MAX;
use crate::bytes::{Bounded, PacketRead};
use crate::opaque::opaque;

/// Octets of inner packet, padding and trailer: a multiple of four.
#[inline(always)]
pub const fn padded_len(inner: usize) -> usize {
    (inner + TRAILER_LEN + 3) & !3
}

/// Writes padding 1, 2, 3 ..., pad length and next header behind `inner` octets of text. Returns the text's length, or
/// `None` where it does not fit.
#[inline(always)]
pub fn append(text: &mut [u8; TEXT_MAX], inner: usize, next_header: u8) -> Option<usize> {
    let inner = opaque(inner as u64) as usize;
    if inner > TEXT_MAX - 8 {
        return None;
    }
    let pad = padded_len(inner) - TRAILER_LEN - inner;
    // Always five octets: what lies behind the text is not looked at, and there is no loop for the verifier.
    let tail = match pad {
        0 => [0, next_header, 0, 0, 0],
        1 => [1, 1, next_header, 0, 0],
        2 => [1, 2, 2, next_header, 0],
        _ => [1, 2, 3, 3, next_header],
    };
    *text.get_mut(inner..)?.first_chunk_mut::<5>()? = tail;
    Some(inner + pad + TRAILER_LEN)
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

    #[test]
    fn what_is_appended_is_stripped() {
        for inner in 0..64 {
            let mut text = [0xee; TEXT_MAX];
            let len = append(&mut text, inner, 4).unwrap();
            assert_eq!(len % 4, 0);
            assert_eq!(strip(&text, len), Some((inner, 4)));
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
