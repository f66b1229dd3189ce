//! Packets that the agent's slow path takes apart: what peers sealed, what the stack put together, what is to be cut.

use crate::net::{cut, frame};
use std::net::IpAddr;

/// The first two octets are an MTU, the others a packet.
pub fn slow(octets: &[u8]) {
    let Some(([high, low], packet)) = octets.split_first_chunk::<2>() else {
        return;
    };
    let mtu = usize::from(u16::from_be_bytes([*high, *low]));
    frame::udp_source(packet);
    frame::link_len(packet);
    frame::leaves_the_link(packet);
    for ours in [IpAddr::from([10, 1, 0, 1]), IpAddr::from([0xfd; 16])] {
        if let Some(told) = frame::time_exceeded(packet, ours) {
            assert!(told.len() <= 1280);
        }
    }
    if let Some(again) = frame::reassembled(packet) {
        assert_eq!(again.len(), packet.len());
        assert_eq!(frame::reassembled(&again), Some(again));
    }
    let Some(pieces) = cut::pieces(packet, mtu) else {
        return;
    };
    let v6 = packet[0] >> 4 == 6;
    let was_cut = pieces.len() > 1;
    // Of what is in every piece and in the packet.
    let header_len = match v6 {
        true if was_cut => fragment_header_at(&pieces[0]),
        true => 40,
        false => usize::from(packet[0] & 0xf) * 4,
    };
    let mut payload = Vec::new();
    for piece in &pieces {
        assert!(piece.len() <= mtu);
        let length = usize::from(u16::from_be_bytes([piece[2], piece[3]]));
        assert!(v6 || length == piece.len(), "the header says how long a piece is");
        let fragment_len = if v6 && was_cut { 8 } else { 0 };
        payload.extend_from_slice(&piece[header_len + fragment_len..]);
    }
    // Octets behind what the header counts are no part of the packet; one that needs no cut may keep them.
    let whole = &packet[header_len..];
    assert!(whole.starts_with(&payload), "pieces put together give the packet");
}

/// Where the fragment header of an IPv6 piece is: behind hop-by-hop options and a routing header, if there are any.
fn fragment_header_at(piece: &[u8]) -> usize {
    let (mut next, mut at) = (piece[6], 40);
    while next != 44 {
        assert!(
            matches!(next, 0 | 43 | 60),
            "header {next} before the fragment header"
        );
        next = piece[at];
        at += (usize::from(piece[at + 1]) + 1) * 8;
    }
    at
}
