//! Congestion notification through a tunnel (RFC 6040, normal mode): copied on the way out, merged on the way in.

use crate::aead::TEXT_MAX;
use crate::checksum;
use crate::headers::Ip;

/// The two bits of type of service and traffic class.
pub const MASK: u8 = 3;
/// The transport does not take part.
pub const NOT_ECT: u8 = 0;
/// The transport takes part; the codepoint that counts as the stronger signal.
pub const ECT_1: u8 = 1;
/// The transport takes part.
pub const ECT_0: u8 = 2;
/// Congestion was met.
pub const CE: u8 = 3;

/// What the inner packet says once it left the tunnel (RFC 6040 4.2, figure 4). `None`: it is dropped, because that is the
/// only signal of congestion that its transport understands.
#[inline(always)]
pub const fn merged(inner: u8, outer: u8) -> Option<u8> {
    let (inner, outer) = (inner & MASK, outer & MASK);
    if outer == CE {
        return if inner == NOT_ECT { None } else { Some(CE) };
    }
    if outer == ECT_1 && inner == ECT_0 {
        return Some(ECT_1);
    }
    Some(inner)
}

/// Writes `field` to the datagram in `text` whose header was parsed to `ip`, with IPv4's checksum.
#[inline(always)]
pub fn write(text: &mut [u8; TEXT_MAX], ip: &Ip, field: u8) {
    if ip.version == 6 {
        text[1] = text[1] & !(MASK << 4) | (field & MASK) << 4;
        return;
    }
    let first = text[0];
    let tos = ip.tos & !MASK | field & MASK;
    let (old, new) = (
        u16::from_be_bytes([first, ip.tos]),
        u16::from_be_bytes([first, tos]),
    );
    text[1] = tos;
    let checksum = u16::from_be_bytes([text[10], text[11]]);
    let [a, b] = checksum::updated(checksum, old, new).to_be_bytes();
    text[10] = a;
    text[11] = b;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_table_of_rfc_6040() {
        // Rows: inner Not-ECT, ECT(0), ECT(1), CE. Columns: outer Not-ECT, ECT(0), ECT(1), CE.
        let all = [NOT_ECT, ECT_0, ECT_1, CE];
        let table = [
            [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None],
            [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)],
            [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)],
            [Some(CE), Some(CE), Some(CE), Some(CE)],
        ];
        for (inner, row) in all.iter().zip(table) {
            for (outer, want) in all.iter().zip(row) {
                // DSCP has no part in it.
                assert_eq!(
                    merged(inner | 0xb8, outer | 0x20),
                    want,
                    "inner {inner} outer {outer}"
                );
            }
        }
    }
}
