//! Ethernet, VLAN, IPv4, IPv6, UDP: lengths are checked once, here.

use crate::bytes::PacketRead;

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
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
/// Octets of an IPv6 header without extension headers.
pub const IPV6_LEN: usize = 40;
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
/// IP protocol ICMPv6.
pub const PROTOCOL_ICMPV6: u8 = 58;
/// Next header: hop-by-hop options (RFC 8200 4.3).
pub const PROTOCOL_HOP_BY_HOP: u8 = 0;
/// Next header: routing header (RFC 8200 4.4).
pub const PROTOCOL_ROUTING: u8 = 43;
/// Next header: fragment header (RFC 8200 4.5).
pub const PROTOCOL_FRAGMENT: u8 = 44;
/// Next header: destination options (RFC 8200 4.6).
pub const PROTOCOL_DESTINATION: u8 = 60;
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

/// An IP address, as two numbers: IPv6, or IPv4 mapped as `::ffff:a.b.c.d`, which is how maps hold it.
pub type Address = [u64; 2];

/// What an IPv4 or IPv6 header means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Ip {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Octets of the header; of IPv6 with the extension headers that were looked behind.
    pub header_len: u32,
    /// Octets of the datagram.
    pub total_len: u32,
    /// Flags and fragment offset as an IPv4 header has them. Of IPv6 "don't fragment" is always set, and the rest comes
    /// from the fragment header.
    pub fragment: u16,
    /// Checksum as it stands in the IPv4 header.
    pub checksum: u16,
    /// Type of service, traffic class.
    pub tos: u8,
    /// Time to live, hop limit.
    pub ttl: u8,
    /// Protocol; of IPv6 that behind the extension headers that were looked behind.
    pub protocol: u8,
    /// 4 or 6.
    pub version: u8,
}

/// The "don't fragment" bit within [`Ip::fragment`].
pub const DONT_FRAGMENT: u16 = 0x4000;
/// The "more fragments" bit within [`Ip::fragment`].
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// Mask of the fragment offset.
pub const FRAGMENT_OFFSET: u16 = 0x1fff;

impl Ip {
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
pub fn ipv4(packet: &impl PacketRead, offset: usize, available: usize) -> Option<Ip> {
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
    Some(Ip {
        source: v4(packet.u32(offset + 12)?),
        destination: v4(packet.u32(offset + 16)?),
        header_len,
        total_len,
        fragment: u16::from_be_bytes([frag_a, frag_b]),
        checksum: u16::from_be_bytes([sum_a, sum_b]),
        tos,
        ttl,
        protocol,
        version: 4,
    })
}

/// Parses an IPv6 header (RFC 8200 3) at `offset` of a packet that has `available` octets from there on; extension headers
/// are not looked behind. Mapped IPv4 addresses are not for the wire (RFC 4942 2.2): here they would pass for IPv4.
#[inline(always)]
pub fn ipv6(packet: &impl PacketRead, offset: usize, available: usize) -> Option<Ip> {
    let [first, second, _, _, len_a, len_b, protocol, ttl] = packet.read::<8>(offset)?;
    if first >> 4 != 6 {
        return None;
    }
    let total_len = u16::from_be_bytes([len_a, len_b]) as u32 + IPV6_LEN as u32;
    if total_len as usize > available {
        return None;
    }
    let source = [packet.u64(offset + 8)?, packet.u64(offset + 16)?];
    let destination = [packet.u64(offset + 24)?, packet.u64(offset + 32)?];
    if is_v4(source) || is_v4(destination) {
        return None;
    }
    Some(Ip {
        source,
        destination,
        header_len: IPV6_LEN as u32,
        total_len,
        fragment: DONT_FRAGMENT,
        checksum: 0,
        tos: first << 4 | second >> 4,
        ttl,
        protocol,
        version: 6,
    })
}

/// Extension headers that are looked behind.
pub(crate) const EXTENSIONS: usize = 4;

/// Whether a next header is an extension header that [`skip_extensions`] looks behind.
#[inline(always)]
pub const fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        PROTOCOL_HOP_BY_HOP | PROTOCOL_ROUTING | PROTOCOL_FRAGMENT | PROTOCOL_DESTINATION
    )
}

/// Looks behind the extension headers of an IPv6 packet at `offset`, so that protocol and ports are those that selectors
/// mean (RFC 4301 4.4.1.1). `None` where there are too many, or they reach beyond the packet or what is readable of it.
#[inline(always)]
pub fn skip_extensions(packet: &impl PacketRead, offset: usize, ip: &mut Ip) -> Option<()> {
    let mut left = EXTENSIONS;
    while is_extension(ip.protocol) && !ip.is_later_fragment() {
        left = left.checked_sub(1)?;
        let [next, len, a, b] = packet.read::<4>(offset + ip.header_len as usize)?;
        if ip.protocol == PROTOCOL_FRAGMENT {
            let field = u16::from_be_bytes([a, b]);
            ip.fragment |= field >> 3;
            if field & 1 != 0 {
                ip.fragment |= MORE_FRAGMENTS;
            }
            ip.header_len += 8;
        } else {
            ip.header_len += (len as u32 + 1) * 8;
        }
        ip.protocol = next;
        if ip.header_len > ip.total_len {
            return None;
        }
    }
    Some(())
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

/// An IPv4 address.
#[inline(always)]
pub const fn v4(address: u32) -> Address {
    [0, MAPPED | address as u64]
}

/// Whether an address is IPv4.
#[inline(always)]
pub const fn is_v4(address: Address) -> bool {
    address[0] == 0 && address[1] >> 32 == MAPPED >> 32
}

/// Whether an IPv6 address is multicast, or of one link only.
#[inline(always)]
pub const fn is_of_link(address: Address) -> bool {
    address[0] >> 56 == 0xff || address[0] >> 54 == 0xfe80 >> 6
}

/// The IPv4 address behind a mapped one.
#[inline(always)]
pub const fn to_v4(address: Address) -> u32 {
    address[1] as u32
}

/// An address in the form of map keys.
#[inline(always)]
pub const fn octets(address: Address) -> [u8; 16] {
    let [a, b, c, d, e, f, g, h] = address[0].to_be_bytes();
    let [i, j, k, l, m, n, o, p] = address[1].to_be_bytes();
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

/// An address in map form as numbers.
#[inline(always)]
pub const fn address(octets: &[u8; 16]) -> Address {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *octets;
    [
        u64::from_be_bytes([a, b, c, d, e, f, g, h]),
        u64::from_be_bytes([i, j, k, l, m, n, o, p]),
    ]
}

/// An IPv4 address in the form that maps use.
#[inline(always)]
pub const fn mapped(address: u32) -> [u8; 16] {
    octets(v4(address))
}
