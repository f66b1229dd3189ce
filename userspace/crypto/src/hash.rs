//! Hashes and comparison that need no negotiated algorithm.

use crate::prf::mac;
use aws_lc_rs::{digest, hmac};
use model::IkeSpi;
use std::net::{IpAddr, SocketAddr};
use subtle::ConstantTimeEq;

/// SHA-256 of the concatenated parts.
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(hash(&digest::SHA256, parts).as_ref());
    out
}

/// HMAC-SHA-256, full length: for cookies and other tokens of our own.
pub fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(mac(&hmac::Key::new(hmac::HMAC_SHA256, key), parts).as_ref());
    out
}

/// Data of NAT_DETECTION_SOURCE_IP and NAT_DETECTION_DESTINATION_IP: SHA-1 of SPIs, address and port (RFC 7296 2.23).
/// An IPv4-mapped address counts as IPv4, which is what the packet carried.
pub fn nat_detection_hash(spi_i: IkeSpi, spi_r: IkeSpi, address: SocketAddr) -> [u8; 20] {
    let (spi_i, spi_r) = (spi_i.0.to_be_bytes(), spi_r.0.to_be_bytes());
    let port = address.port().to_be_bytes();
    let digest = match address.ip().to_canonical() {
        IpAddr::V4(ip) => hash(
            &digest::SHA1_FOR_LEGACY_USE_ONLY,
            &[&spi_i, &spi_r, &ip.octets(), &port],
        ),
        IpAddr::V6(ip) => hash(
            &digest::SHA1_FOR_LEGACY_USE_ONLY,
            &[&spi_i, &spi_r, &ip.octets(), &port],
        ),
    };
    let mut out = [0; 20];
    out.copy_from_slice(digest.as_ref());
    out
}

/// Compares in time that depends on the lengths only.
pub fn ct_eq(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

fn hash(algorithm: &'static digest::Algorithm, parts: &[&[u8]]) -> digest::Digest {
    let mut context = digest::Context::new(algorithm);
    for part in parts {
        context.update(part);
    }
    context.finish()
}
