//! Ethernet frames for the slow path: what is run through the programs looks as if it had arrived on a wire.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use maps_schema::steer::SLOW_PATH_MAC;
use model::EspSpi;

use super::Interface;

/// Octets of an Ethernet header with a tag.
pub const ETH_LEN: usize = 18;
/// Octets of an IPv6 header without extension headers.
pub const IPV6_LEN: usize = 40;

/// A packet as a frame that arrives at an interface.
pub fn ethernet(interface: &Interface, packet: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(ETH_LEN + packet.len());
    frame.extend_from_slice(&interface.mac);
    frame.extend_from_slice(&SLOW_PATH_MAC);
    if interface.vlan != 0 {
        frame.extend_from_slice(&[0x81, 0]);
        frame.extend_from_slice(&interface.vlan.to_be_bytes());
    }
    let v6 = packet.first().is_some_and(|first| first >> 4 == 6);
    frame.extend_from_slice(if v6 { &[0x86, 0xdd] } else { &[8, 0] });
    frame.extend_from_slice(packet);
    frame
}

/// Whether a packet is IPv4, or IPv6 to more than the link.
pub fn leaves_the_link(packet: &[u8]) -> bool {
    match packet.first().map(|first| first >> 4) {
        Some(4) => true,
        Some(6) => packet
            .get(24..40)
            .and_then(|octets| octets.first_chunk::<16>())
            .map(|octets| Ipv6Addr::from(*octets))
            .is_some_and(|to| !to.is_multicast() && !to.is_unicast_link_local()),
        _ => false,
    }
}

/// Source address and port of the UDP datagram in a frame that came from a wire; `None`: there is none.
pub fn udp_source(frame: &[u8]) -> Option<SocketAddr> {
    const UDP: u8 = 17;
    let packet = frame.get(link_len(frame)..)?;
    let (source, header_len) = match packet.first()? >> 4 {
        4 if packet.get(9) == Some(&UDP) => {
            let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
            (IpAddr::from(source), usize::from(packet[0] & 0xf) * 4)
        }
        6 if packet.get(6) == Some(&UDP) => {
            let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            (IpAddr::from(source), 40)
        }
        _ => return None,
    };
    let port: [u8; 2] = packet.get(header_len..header_len + 2)?.try_into().ok()?;
    Some(SocketAddr::new(source, u16::from_be_bytes(port)))
}

/// Octets before the packet of a frame that came from a wire.
pub fn link_len(frame: &[u8]) -> usize {
    if frame.get(12..14) == Some(&[0x81, 0]) {
        18
    } else {
        14
    }
}

/// VLAN of a frame, 0 where it has no tag; `None` where it is too short for a link header.
pub fn vlan(frame: &[u8]) -> Option<u16> {
    match link_len(frame) {
        18 => Some(u16::from_be_bytes(*frame.get(14..18)?.first_chunk()?) & 0xfff),
        _ => frame.get(12..14).map(|_| 0),
    }
}

pub(super) fn checksum(header: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in header.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

pub(super) fn set_checksum(packet: &mut [u8], header_len: usize) {
    packet[10..12].fill(0);
    let sum = checksum(&packet[..header_len]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Option<Vec<u8>> {
    let total = u16::try_from(20 + payload.len()).ok()?;
    let mut packet = vec![0x45, 0];
    packet.extend_from_slice(&total.to_be_bytes());
    packet.extend_from_slice(&[0, 0, 0x40, 0, 64, protocol, 0, 0]);
    packet.extend_from_slice(&source.octets());
    packet.extend_from_slice(&destination.octets());
    set_checksum(&mut packet, 20);
    packet.extend_from_slice(payload);
    Some(packet)
}

/// Checksum of what an IPv6 header stands before (RFC 8200 8.1), with the addresses of that header; 0 where `payload` has the
/// right one in it.
pub fn checksum_v6(header: &[u8], protocol: u8, payload: &[u8]) -> u16 {
    let length = u32::try_from(payload.len()).unwrap_or_default();
    checksum(
        &[
            header.get(8..40).unwrap_or_default(),
            &length.to_be_bytes(),
            &[0, 0, 0, protocol],
            payload,
        ]
        .concat(),
    )
}

fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, payload: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(payload.len()).ok()?;
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(&[protocol, 64]);
    packet.extend_from_slice(&source.octets());
    packet.extend_from_slice(&destination.octets());
    packet.extend_from_slice(payload);
    Some(packet)
}

/// A packet with UDP around `payload`: over IPv4 with checksum 0 (RFC 3948 2.1), over IPv6 with the right one. `None` if it
/// would be too long, or the addresses are of two families.
pub fn udp(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
    const UDP: u8 = 17;
    let length = u16::try_from(8 + payload.len()).ok()?;
    let mut datagram = Vec::with_capacity(8 + payload.len());
    datagram.extend_from_slice(&source.port().to_be_bytes());
    datagram.extend_from_slice(&destination.port().to_be_bytes());
    datagram.extend_from_slice(&length.to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(payload);
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => ipv4(source, destination, UDP, &datagram),
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let header = ipv6(source, destination, UDP, &[])?;
            let sum = match checksum_v6(&header, UDP, &datagram) {
                0 => 0xffff,
                sum => sum,
            };
            datagram[6..8].copy_from_slice(&sum.to_be_bytes());
            ipv6(source, destination, UDP, &datagram)
        }
        _ => None,
    }
}

/// ICMP Time Exceeded (RFC 792, RFC 4443 3.3) about a packet that died here, from this address of ours. `None` where no error is
/// due: about another error, a later fragment, or to what is no single host (RFC 1122 3.2.2, RFC 4443 2.4 (e)).
pub fn time_exceeded(packet: &[u8], from: IpAddr) -> Option<Vec<u8>> {
    /// The longest error, IP header included: RFC 1812 4.3.2.3, RFC 4443 2.4 (c).
    const LONGEST: (usize, usize) = (576, 1280);
    let message = |kind: u8, most: usize| {
        let quoted = packet.get(..most).unwrap_or(packet);
        [&[kind, 0, 0, 0, 0, 0, 0, 0][..], quoted].concat()
    };
    match from {
        IpAddr::V4(from) => {
            let header_len = header_len(packet)?;
            let to = Ipv4Addr::from(*packet.get(12..)?.first_chunk::<4>()?);
            let later = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff != 0;
            let error = packet[9] == 1 && !matches!(packet.get(header_len), Some(0 | 8));
            if later || error || to.is_unspecified() || to.octets()[0] >= 224 {
                return None;
            }
            let mut message = message(11, LONGEST.0 - 28);
            let sum = checksum(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            ipv4(from, to, 1, &message)
        }
        IpAddr::V6(from) => {
            let to = Ipv6Addr::from(*packet.get(8..)?.first_chunk::<16>()?);
            let error = packet[6] == 58 && !matches!(packet.get(40), Some(128..));
            if error || to.is_unspecified() || to.is_multicast() {
                return None;
            }
            let mut message = message(3, LONGEST.1 - 48);
            let header = ipv6(from, to, 58, &[])?;
            let sum = checksum_v6(&header, 58, &message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            ipv6(from, to, 58, &message)
        }
    }
}

/// A packet that a raw socket gave (reassembled, so its fragment fields are history) with a right header again.
pub fn reassembled(packet: &[u8]) -> Option<Vec<u8>> {
    if packet.first().is_some_and(|first| first >> 4 == 6) {
        // Its header was made by the socket, without extension headers.
        return (packet.len() >= 40).then(|| packet.to_vec());
    }
    let header_len = header_len(packet)?;
    let total = u16::try_from(packet.len()).ok()?;
    let mut packet = packet.to_vec();
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet[6..8].fill(0);
    set_checksum(&mut packet, header_len);
    Some(packet)
}

/// A packet behind an Ethernet header from `from` to `to`.
pub fn link(to: [u8; 6], from: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let v6 = packet.first().is_some_and(|first| first >> 4 == 6);
    let ethertype: [u8; 2] = if v6 { [0x86, 0xdd] } else { [8, 0] };
    [&to[..], &from, &ethertype, packet].concat()
}

/// SPI of an ESP packet, as it is or in UDP, without extension headers.
pub fn esp_spi(packet: &[u8]) -> Option<EspSpi> {
    let (at, protocol) = if packet.first()? >> 4 == 6 {
        (IPV6_LEN, *packet.get(6)?)
    } else {
        (header_len(packet)?, packet[9])
    };
    let at = match protocol {
        50 => at,
        17 => at + 8,
        _ => return None,
    };
    let spi = packet.get(at..)?.first_chunk()?;
    Some(EspSpi(u32::from_be_bytes(*spi)))
}

pub(super) fn header_len(packet: &[u8]) -> Option<usize> {
    let first = *packet.first()?;
    let length = usize::from(first & 0xf) * 4;
    (first >> 4 == 4 && length >= 20 && packet.len() >= length).then_some(length)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub fn interface() -> Interface {
        Interface {
            name: "eth0".into(),
            index: 3,
            parent: 3,
            veth: false,
            devices: Vec::new(),
            vlan: 0,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            networks: Vec::new(),
        }
    }

    #[test]
    fn the_source_of_a_datagram_is_found_behind_tags_in_both_families() {
        for (from, to) in [
            ("192.0.2.7:1024", "192.0.2.1:4500"),
            ("[2001:db8::7]:1024", "[2001:db8::1]:4500"),
        ] {
            let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
            let packet = udp(from, to, b"esp").unwrap();
            let tagged = Interface {
                vlan: 10,
                ..interface()
            };
            for port in [interface(), tagged] {
                let frame = ethernet(&port, &packet);
                assert_eq!(udp_source(&frame), Some(from));
                // The header ends before the port.
                let cut = frame.len() - b"esp".len() - 8;
                assert_eq!(udp_source(&frame[..cut + 1]), None);
            }
        }
        assert_eq!(udp_source(&[0; 14]), None);
        assert_eq!(udp_source(&[0; 60]), None);
    }

    #[test]
    fn udp_over_ipv6_has_a_checksum() {
        let from = "[2001:db8::1]:4500".parse().unwrap();
        let to = "[2001:db8::2]:4500".parse().unwrap();
        for payload in [&[1, 2, 3][..], &[0; 1200]] {
            let packet = udp(from, to, payload).unwrap();
            assert_eq!(packet.len(), 48 + payload.len());
            assert_eq!(checksum_v6(&packet[..40], 17, &packet[40..]), 0);
            assert_ne!(&packet[46..48], &[0, 0]);
            assert_eq!(reassembled(&packet).unwrap(), packet);
            assert_eq!(ethernet(&interface(), &packet)[12..14], [0x86, 0xdd]);
        }
        assert!(udp(from, "192.0.2.1:4500".parse().unwrap(), &[1]).is_none());
        assert!(reassembled(&[0x60; 39]).is_none());
        let to = |to: &str| ipv6("2001:db8::1".parse().unwrap(), to.parse().unwrap(), 58, &[]).unwrap();
        assert!(leaves_the_link(&to("2001:db8::2")) && leaves_the_link(&[0x45]));
        for odd in [
            to("ff02::2"),
            to("fe80::1"),
            to("2001:db8::2")[..39].to_vec(),
            Vec::new(),
        ] {
            assert!(!leaves_the_link(&odd), "{odd:02x?}");
        }
    }

    #[test]
    fn a_frame_bears_the_tag_of_the_interface_it_is_for() {
        let mut interface = interface();
        let frame = ethernet(&interface, &[0x45, 1]);
        assert_eq!(&frame[12..], &[8, 0, 0x45, 1]);
        assert_eq!(link_len(&frame), 14);
        interface.vlan = 0x123;
        let frame = ethernet(&interface, &[0x45, 1]);
        assert_eq!(&frame[12..], &[0x81, 0, 1, 0x23, 8, 0, 0x45, 1]);
        assert_eq!(link_len(&frame), 18);
    }

    pub fn packet(payload: usize) -> Vec<u8> {
        let bytes = (0..payload).map(|i| i as u8).collect::<Vec<_>>();
        let mut packet = ipv4(Ipv4Addr::new(10, 2, 0, 5), Ipv4Addr::new(10, 1, 0, 5), 17, &bytes).unwrap();
        packet[6..8].fill(0);
        set_checksum(&mut packet, 20);
        packet
    }

    #[test]
    fn the_sender_of_a_packet_that_died_is_told_unless_it_was_an_error() {
        let ours = IpAddr::from([10, 1, 0, 1]);
        let whole = packet(1000);
        let told = time_exceeded(&whole, ours).unwrap();
        assert_eq!(told.len(), 576);
        assert_eq!((checksum(&told[..20]), checksum(&told[20..])), (0, 0));
        assert_eq!(told[12..20], [10, 1, 0, 1, 10, 2, 0, 5], "from us to its sender");
        assert_eq!(
            (told[9], &told[20..22], &told[28..]),
            (1, &[11, 0][..], &whole[..548])
        );
        let icmp = |kind| {
            let (from, to) = (Ipv4Addr::new(10, 2, 0, 5), Ipv4Addr::new(10, 1, 0, 5));
            ipv4(from, to, 1, &[kind, 0, 0, 0, 0, 0, 0, 0]).unwrap()
        };
        assert!(time_exceeded(&icmp(8), ours).is_some());
        assert!(time_exceeded(&icmp(3), ours).is_none());
        let mut later = whole.clone();
        later[7] = 3;
        assert!(time_exceeded(&later, ours).is_none());
        let mut group = whole;
        group[12] = 239;
        assert!(time_exceeded(&group, ours).is_none());
        assert!(time_exceeded(&[0x45; 10], ours).is_none());

        let ours: IpAddr = "2001:db8:1::1".parse().unwrap();
        let to = "[2001:db8:1::5]:33434".parse().unwrap();
        let whole = udp("[2001:db8:2::5]:1000".parse().unwrap(), to, &[7; 1300]).unwrap();
        let told = time_exceeded(&whole, ours).unwrap();
        assert_eq!((told.len(), told[6], &told[40..42]), (1280, 58, &[3, 0][..]));
        assert_eq!(checksum_v6(&told[..40], 58, &told[40..]), 0);
        assert_eq!(told[24..40], whole[8..24]);
        let mut error = whole;
        (error[6], error[40]) = (58, 1);
        assert!(time_exceeded(&error, ours).is_none());
        assert!(time_exceeded(&[0x60; 20], ours).is_none());
    }

    #[test]
    fn udp_around_esp_has_no_checksum() {
        let from = "203.0.113.10:4500".parse().unwrap();
        let to = "192.0.2.1:4500".parse().unwrap();
        let packet = udp(from, to, &[1, 2, 3]).unwrap();
        assert_eq!(packet.len(), 31);
        assert_eq!(&packet[26..28], &[0, 0]);
        assert_eq!(checksum(&packet[..20]), 0);
        assert!(udp(from, to, &vec![0; 65_535]).is_none());
    }

    #[test]
    fn a_reassembled_packet_is_no_fragment_any_more() {
        let mut whole = packet(2000);
        whole[6] = 0x20;
        let again = reassembled(&whole).unwrap();
        assert_eq!(&again[6..8], &[0, 0]);
        assert_eq!(checksum(&again[..20]), 0);
    }

    #[test]
    fn what_is_no_esp_has_no_spi() {
        for packet in [
            &[][..],
            &[0x45; 20],
            &[0x60; 39],
            &[&[0x60, 0, 0, 0, 0, 0, 50][..], &[0; 33]].concat(),
            &[&[0x45, 0, 0, 23, 0, 0, 0, 0, 64, 50][..], &[0; 13]].concat(),
        ] {
            assert_eq!(esp_spi(packet), None, "{packet:02x?}");
        }
    }
}
