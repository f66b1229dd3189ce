//! ARP (RFC 826): requests for cluster addresses, answered by the program.

use crate::bytes::PacketRead;

/// Octets of an ARP message for Ethernet and IPv4.
pub const ARP_LEN: usize = 28;

/// An ARP request for an IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArpRequest {
    /// Who asks.
    pub sender_mac: [u8; 6],
    /// Its address.
    pub sender: u32,
    /// The address asked for.
    pub target: u32,
}

/// Parses an ARP request at `offset`; anything else (replies too) is `None`.
#[inline(always)]
pub fn request(packet: &impl PacketRead, offset: usize) -> Option<ArpRequest> {
    // Ethernet, IPv4, lengths 6 and 4, opcode request.
    if packet.u64(offset)? != 0x0001_0800_0604_0001 {
        return None;
    }
    Some(ArpRequest {
        sender_mac: packet.read(offset + 8)?,
        sender: packet.u32(offset + 14)?,
        target: packet.u32(offset + 24)?,
    })
}

/// The reply that says: `request.target` is at `mac`.
#[inline(always)]
pub fn reply(request: &ArpRequest, mac: [u8; 6]) -> [u8; ARP_LEN] {
    let [m0, m1, m2, m3, m4, m5] = mac;
    let [s0, s1, s2, s3, s4, s5] = request.sender_mac;
    let [t0, t1, t2, t3] = request.target.to_be_bytes();
    let [a0, a1, a2, a3] = request.sender.to_be_bytes();
    [
        0, 1, 8, 0, 6, 4, 0, 2, m0, m1, m2, m3, m4, m5, t0, t1, t2, t3, s0, s1, s2, s3, s4, s5, a0, a1, a2,
        a3,
    ]
}
