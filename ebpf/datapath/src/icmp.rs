//! ICMP "fragmentation needed and DF set" (RFC 792, RFC 1191 4), ICMPv6 Packet Too Big (RFC 4443 3.2).

use crate::aead::TEXT_MAX;
use crate::checksum;
use crate::headers::{Address, IPV4_LEN, PROTOCOL_ICMP, PROTOCOL_ICMPV6};

/// Octets of the offending datagram that are quoted: a header of any length and its first 64 bits.
pub const QUOTED: usize = 68;
/// Octets of the whole IP datagram that carries the error.
pub const ERROR_LEN: usize = IPV4_LEN + 8 + QUOTED;

/// Turns an area that holds the first [`QUOTED`] octets of a datagram at [`QUOTE_AT`] into the IP datagram, from
/// octet 0 on, that tells `destination` to send at most `mtu` octets.
#[inline(always)]
pub fn fragmentation_needed(area: &mut [u8; TEXT_MAX], source: u32, destination: u32, mtu: u16) {
    let ip = header_v4(source, destination, ERROR_LEN - IPV4_LEN);
    // Type 3, code 4, checksum, 16 unused bits, next-hop MTU.
    let mut sum = 0x0304 + mtu as u32;
    let mut at = QUOTE_AT;
    while at < QUOTE_AT + QUOTED {
        sum += u16::from_be_bytes([area[at], area[at + 1]]) as u32;
        at += 2;
    }
    let [k0, k1] = checksum::fold(sum).to_be_bytes();
    let [m0, m1] = mtu.to_be_bytes();
    area[..IPV4_LEN].copy_from_slice(&ip);
    area[IPV4_LEN..QUOTE_AT].copy_from_slice(&[3, 4, k0, k1, 0, 0, m0, m1]);
}

/// Where the quoted octets lie.
pub const QUOTE_AT: usize = IPV4_LEN + 8;

/// Octets of an ICMP or ICMPv6 error before what it quotes.
pub const V6_LEN: usize = 8;

/// The header of an ICMPv6 error of a type and code, with its 32-bit field, about `quoted_len` octets whose words sum up to `quoted`.
#[inline(always)]
pub const fn error_v6(
    from: Address,
    to: Address,
    kind: u16,
    field: u32,
    quoted_len: usize,
    quoted: u16,
) -> [u8; V6_LEN] {
    let sum = checksum::words(from[0])
        + checksum::words(from[1])
        + checksum::words(to[0])
        + checksum::words(to[1])
        + (quoted_len + V6_LEN) as u32
        + PROTOCOL_ICMPV6 as u32
        + kind as u32
        + checksum::words(field as u64)
        + quoted as u32;
    let [k0, k1] = checksum::fold(sum).to_be_bytes();
    let [kind, code] = kind.to_be_bytes();
    let [a, b, c, d] = field.to_be_bytes();
    [kind, code, k0, k1, a, b, c, d]
}

/// "Fragmentation needed and DF set" (RFC 792): type 3, code 4.
pub const FRAGMENTATION_NEEDED: u16 = 0x0304;
/// Packet Too Big (RFC 4443 3.2): type 2, code 0; its field is the MTU.
pub const PACKET_TOO_BIG: u16 = 0x0200;

/// The IPv4 header before an ICMP message of `len` octets.
#[inline(always)]
pub fn header_v4(from: u32, to: u32, len: usize) -> [u8; IPV4_LEN] {
    let [l0, l1] = ((IPV4_LEN + len) as u16).to_be_bytes();
    let [s0, s1, s2, s3] = from.to_be_bytes();
    let [d0, d1, d2, d3] = to.to_be_bytes();
    let mut ip = [
        0x45,
        0,
        l0,
        l1,
        0,
        0,
        0,
        0,
        64,
        PROTOCOL_ICMP,
        0,
        0,
        s0,
        s1,
        s2,
        s3,
        d0,
        d1,
        d2,
        d3,
    ];
    let [c0, c1] = checksum::internet(&ip).to_be_bytes();
    ip[10] = c0;
    ip[11] = c1;
    ip
}
