//! R11: IKE and ESP come from the address that the peer expects.

use std::net::{IpAddr, Ipv4Addr};

pub(super) fn esp(address: u32, frame: &[u8]) -> Result<(), String> {
    match frame.get(26..30) {
        Some(source) if source == address.to_be_bytes() => Ok(()),
        source => Err(format!("ESP from {source:?}")),
    }
}

pub(super) fn ike(address: u32, local: IpAddr) -> Result<(), String> {
    if local == IpAddr::V4(Ipv4Addr::from_bits(address)) {
        return Ok(());
    }
    Err(format!("IKE from {local}"))
}
