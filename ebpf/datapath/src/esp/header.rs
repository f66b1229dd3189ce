//! ESP's fixed parts and sizes.

use maps_schema::sad::SUITE_CBC;

use crate::headers::{IPV4_LEN, IPV6_LEN, UDP_LEN};

/// Octets of SPI and sequence number.
pub const ESP_LEN: usize = 8;
/// Octets of the longest explicit IV.
pub const IV_MAX: usize = 16;
/// Octets of the ICV of every suite here.
pub const ICV_LEN: usize = 16;
/// Octets of pad length and next header.
pub const TRAILER_LEN: usize = 2;

/// Octets before the ESP header in an outer packet of ours.
#[inline(always)]
pub const fn outer_len(udp_encap: bool, v6: bool) -> usize {
    let ip = if v6 { IPV6_LEN } else { IPV4_LEN };
    if udp_encap { ip + UDP_LEN } else { ip }
}

/// 1 for a suite that chains blocks, 0 for one that is an AEAD. In what follows there is no branch: the verifier would walk all that
/// comes after it once more.
#[inline(always)]
const fn chained(suite: u8) -> usize {
    ((suite / SUITE_CBC) & 1) as usize
}

/// Octets of the explicit IV: 8 (RFC 4106 3.1, RFC 7634 2), or a block (RFC 3602 3).
#[inline(always)]
pub const fn iv_len(suite: u8) -> usize {
    8 << chained(suite)
}

/// Text is a multiple of so many octets: 4 (RFC 4303 2.4), or the cipher's block.
#[inline(always)]
pub const fn block_len(suite: u8) -> usize {
    4 + 12 * chained(suite)
}

/// Octets of the outer packet around an inner one of `inner` octets, with [`outer_len`] octets before the ESP header.
#[inline(always)]
pub const fn sealed_len(suite: u8, inner: usize, outer: usize) -> usize {
    outer + ESP_LEN + iv_len(suite) + super::pad::padded_len(suite, inner) + ICV_LEN
}

/// Largest inner packet whose outer packet has at most `mtu` octets.
#[inline(always)]
pub const fn inner_max(suite: u8, mtu: usize, outer: usize) -> usize {
    let room = mtu.saturating_sub(outer + ESP_LEN + iv_len(suite) + ICV_LEN);
    (room & !(block_len(suite) - 1)).saturating_sub(TRAILER_LEN)
}

/// SPI and sequence number in network order, and the AAD's second part with extended numbers: what is authenticated
/// besides the ciphertext (RFC 4106 5, RFC 7634 2). The first 8 octets count without ESN, 12 with. HMAC takes the same octets in
/// another order (RFC 4303 2.8.1).
#[inline(always)]
pub fn aad(spi: u32, seq: u64, esn: bool) -> [u8; 16] {
    let [a, b, c, d] = spi.to_be_bytes();
    let [e, f, g, h, i, j, k, l] = seq.to_be_bytes();
    if esn {
        [a, b, c, d, e, f, g, h, i, j, k, l, 0, 0, 0, 0]
    } else {
        [a, b, c, d, i, j, k, l, 0, 0, 0, 0, 0, 0, 0, 0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use maps_schema::sad::{SUITE_AES128_GCM, SUITE_LAST};

    #[test]
    fn the_largest_inner_packet_fits_and_one_octet_more_does_not() {
        for mtu in 576..1600 {
            for (encap, v6) in [(false, false), (false, true), (true, false), (true, true)] {
                for suite in SUITE_AES128_GCM..=SUITE_LAST {
                    let outer = outer_len(encap, v6);
                    let inner = inner_max(suite, mtu, outer);
                    assert!(sealed_len(suite, inner, outer) <= mtu);
                    assert!(
                        sealed_len(suite, inner + 1, outer) > mtu,
                        "{suite} {mtu} {encap} {v6}"
                    );
                }
            }
        }
    }

    #[test]
    fn only_suites_that_chain_blocks_have_long_ivs() {
        let lens = (SUITE_AES128_GCM..=SUITE_LAST).map(|suite| (iv_len(suite), block_len(suite)));
        assert!(lens.eq([(8, 4), (8, 4), (8, 4), (16, 16), (16, 16)]));
    }
}
