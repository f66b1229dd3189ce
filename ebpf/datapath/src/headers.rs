//! Ethernet, VLAN, ARP, IPv4, UDP: lengths are checked once, here.

use crate::bytes::PacketRead;

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of a VLAN tag (IEEE 802.1Q).
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// EtherType of a service provider's tag (IEEE 802.1ad).
pub const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;
/// Octets of an Ethernet header without tag.
pub const ETHERNET_LEN: usize = 14;
/// Octets of a VLAN tag.
pub const VLAN_LEN: usize = 4;
/// Octets of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// Octets of a UDP header.
pub const UDP_LEN: usize = 8;
/// IP protocol ICMP.
pub const PROTOCOL_ICMP: u8 = 1;
/// IP protocol IPv4 in IP (RFC 2003), next header of tunnel mode.
pub const PROTOCOL_IPV4: u8 = 4;
/// IP protocol TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// IP protocol UDP.
pub const PROTOCOL_UDP: u8 = 17;
/// IP protocol IPv6 in IP.
pub const PROTOCOL_IPV6: u8 = 41;
/// IP protocol ESP (RFC 4303).
pub const PROTOCOL_ESP: u8 = 50;
/// "No next header": a dummy packet of traffic flow confidentiality (RFC 4303 2.6).
pub const PROTOCOL_NONE: u8 = 59;
/// IP protocol SCTP.
pub const PROTOCOL_SCTP: u8 = 132;

/// What the link layer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Destination MAC address.
    pub destination: [u8; 6],
    /// Source MAC address.
    pub source: [u8; 6],
    /// EtherType, behind a VLAN tag if there is one.
    pub ethertype: u16,
    /// VLAN of the tag; 0 without one, and for a tag that carries a priority only (IEEE 802.1Q 9.6).
    pub vlan: u16,
    /// Octets before the network layer.
    pub len: usize,
}

impl Link {
    /// Whether there are more tags, or one of another kind, than this program looks behind.
    #[inline(always)]
    pub const fn is_stacked(&self) -> bool {
        self.ethertype == ETHERTYPE_VLAN || self.ethertype == ETHERTYPE_SERVICE_VLAN
    }
}

/// Mask of the VLAN identifier in a tag.
pub const VLAN_ID: u16 = 0x0fff;

/// Parses an Ethernet header with at most one VLAN tag.
#[inline(always)]
pub fn link(packet: &impl PacketRead) -> Option<Link> {
    let destination = packet.read(0)?;
    let source = packet.read(6)?;
    let outer = packet.u16(12)?;
    let (ethertype, vlan, len) = if outer == ETHERTYPE_VLAN {
        let vlan = packet.u16(14)? & VLAN_ID;
        (packet.u16(16)?, vlan, ETHERNET_LEN + VLAN_LEN)
    } else {
        (outer, 0, ETHERNET_LEN)
    };
    Some(Link {
        destination,
        source,
        ethertype,
        vlan,
        len,
    })
}

/// An IPv4 header's meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Ipv4 {
    /// Source address, as a number.
    pub source: u32,
    /// Destination address, as a number.
    pub destination: u32,
    /// Octets of the header.
    pub header_len: u32,
    /// Octets of the datagram.
    pub total_len: u32,
    /// Flags and fragment offset as they stand in the header.
    pub fragment: u16,
    /// Checksum as it stands in the header.
    pub checksum: u16,
    /// Type of service.
    pub tos: u8,
    /// Time to live.
    pub ttl: u8,
    /// Protocol.
    pub protocol: u8,
    /// Not used.
    pub reserved: u8,
}

/// The "don't fragment" bit within [`Ipv4::fragment`].
pub const DONT_FRAGMENT: u16 = 0x4000;
/// The "more fragments" bit within [`Ipv4::fragment`].
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// Mask of the fragment offset.
pub const FRAGMENT_OFFSET: u16 = 0x1fff;

impl Ipv4 {
    /// Whether it is a piece of a datagram.
    #[inline(always)]
    pub const fn is_fragment(&self) -> bool {
        self.fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0
    }

    /// Whether it is a piece other than the first: no ports in it.
    #[inline(always)]
    pub const fn is_later_fragment(&self) -> bool {
        self.fragment & FRAGMENT_OFFSET != 0
    }
}

/// Parses an IPv4 header at `offset` of a packet that has `available` octets from there on.
#[inline(always)]
pub fn ipv4(packet: &impl PacketRead, offset: usize, available: usize) -> Option<Ipv4> {
    let [
        first,
        tos,
        len_a,
        len_b,
        _,
        _,
        frag_a,
        frag_b,
        ttl,
        protocol,
        sum_a,
        sum_b,
    ] = packet.read::<12>(offset)?;
    if first >> 4 != 4 {
        return None;
    }
    let header_len = (first & 0xf) as u32 * 4;
    let total_len = u16::from_be_bytes([len_a, len_b]) as u32;
    if header_len < IPV4_LEN as u32 || total_len < header_len || total_len as usize > available {
        return None;
    }
    Some(Ipv4 {
        source: packet.u32(offset + 12)?,
        destination: packet.u32(offset + 16)?,
        header_len,
        total_len,
        fragment: u16::from_be_bytes([frag_a, frag_b]),
        checksum: u16::from_be_bytes([sum_a, sum_b]),
        tos,
        ttl,
        protocol,
        reserved: 0,
    })
}

/// Source and destination port of a TCP, UDP or SCTP packet at `offset`.
#[inline(always)]
pub fn ports(packet: &impl PacketRead, protocol: u8, offset: usize) -> Option<(u16, u16)> {
    if protocol != PROTOCOL_TCP && protocol != PROTOCOL_UDP && protocol != PROTOCOL_SCTP {
        return None;
    }
    Some((packet.u16(offset)?, packet.u16(offset + 2)?))
}

/// `::ffff:0:0/96`, the low word's upper half: how maps hold an IPv4 address.
const MAPPED: u64 = 0x0000_ffff_0000_0000;

/// The two halves, as numbers, of an IPv4 address in the form that maps use.
#[inline(always)]
pub const fn mapped_halves(address: u32) -> (u64, u64) {
    (0, MAPPED | address as u64)
}

/// An IPv4 address in the form that maps use.
#[inline(always)]
pub const fn mapped(address: u32) -> [u8; 16] {
    (MAPPED as u128 | address as u128).to_be_bytes()
}

/// The IPv4 address behind 16 octets that hold a mapped one.
#[inline(always)]
pub const fn unmapped(octets: &[u8; 16]) -> u32 {
    let [.., a, b, c, d] = *octets;
    u32::from_be_bytes([a, b, c, d])
}
