//! ESP's fixed parts and sizes.

use crate::headers::{IPV4_LEN, IPV6_LEN, UDP_LEN};

/// Octets of SPI and sequence number.
pub const ESP_LEN: usize = 8;
/// Octets of the explicit IV of every suite here (RFC 4106 3.1, RFC 7634 2).
pub const IV_LEN: usize = 8;
/// Octets of the ICV.
pub const ICV_LEN: usize = 16;
/// Octets of pad length and next header.
pub const TRAILER_LEN: usize = 2;

/// Octets before the ESP header in an outer packet of ours.
#[inline(always)]
pub const fn outer_len(udp_encap: bool, v6: bool) -> usize {
    let ip = if v6 { IPV6_LEN } else { IPV4_LEN };
    if udp_encap { ip + UDP_LEN } else { ip }
}

/// Octets of the outer packet around an inner one of `inner` octets, with [`outer_len`] octets before the ESP header.
#[inline(always)]
pub const fn sealed_len(inner: usize, outer: usize) -> usize {
    outer + ESP_LEN + IV_LEN + super::pad::padded_len(inner) + ICV_LEN
}

/// Largest inner packet whose outer packet has at most `mtu` octets.
#[inline(always)]
pub const fn inner_max(mtu: usize, outer: usize) -> usize {
    let room = mtu.saturating_sub(outer + ESP_LEN + IV_LEN + ICV_LEN);
    (room & !3).saturating_sub(TRAILER_LEN)
}

/// SPI and sequence number in network order, and the AAD's second part with extended numbers: what is authenticated
/// besides the ciphertext (RFC 4106 5, RFC 7634 2). The first 8 octets count without ESN, 12 with.
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

    #[test]
    fn the_largest_inner_packet_fits_and_one_octet_more_does_not() {
        for mtu in 576..1600 {
            for (encap, v6) in [(false, false), (false, true), (true, false), (true, true)] {
                let outer = outer_len(encap, v6);
                let inner = inner_max(mtu, outer);
                assert!(sealed_len(inner, outer) <= mtu);
                assert!(sealed_len(inner + 1, outer) > mtu, "{mtu} {encap} {v6}");
            }
        }
    }
}
