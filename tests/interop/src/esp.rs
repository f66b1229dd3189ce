//! Reading frames, as far as the clear headers tell.

use std::net::Ipv4Addr;

/// What a frame is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ESP (RFC 4303), plain or in UDP (RFC 3948).
    Esp {
        /// Security Parameter Index.
        spi: u32,
        /// The 32 bits of the sequence number that are on the wire.
        seq: u32,
        /// The first 8 octets after the header: the IV of AES-GCM and ChaCha20-Poly1305.
        iv: u64,
        /// Carried in UDP.
        encap: bool,
    },
    /// An IKE message (RFC 7296 3.1).
    Ike {
        /// Initiator's SPI.
        spi_i: u64,
        /// Responder's SPI.
        spi_r: u64,
        /// Exchange type.
        exchange: u8,
        /// Flags.
        flags: u8,
        /// Message ID.
        message_id: u32,
    },
    /// A one-octet NAT keepalive.
    NatKeepalive,
    /// ARP.
    Arp,
    /// ICMP, with its type.
    Icmp(u8),
    /// UDP with its ports.
    Udp(u16, u16),
    /// A later IPv4 fragment (no ports in it).
    Fragment(u8),
    /// Another IPv4 protocol.
    Ip(u8),
    /// Not IPv4 and not ARP.
    Other(u16),
}

/// A frame's headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Destination MAC address.
    pub to: [u8; 6],
    /// Source MAC address.
    pub from: [u8; 6],
    /// Source address, unspecified where there is none.
    pub src: Ipv4Addr,
    /// Destination address.
    pub dst: Ipv4Addr,
    /// What it is.
    pub kind: Kind,
}

/// Exchange types of IKEv2.
pub mod exchange {
    /// IKE_SA_INIT.
    pub const IKE_SA_INIT: u8 = 34;
    /// IKE_AUTH.
    pub const IKE_AUTH: u8 = 35;
    /// CREATE_CHILD_SA.
    pub const CREATE_CHILD_SA: u8 = 36;
    /// INFORMATIONAL.
    pub const INFORMATIONAL: u8 = 37;
}

/// Flag "response".
pub const IKE_RESPONSE: u8 = 0x20;
/// Flag "sent by the original initiator".
pub const IKE_INITIATOR: u8 = 0x08;

/// Reads a frame; none if it is too short for its own headers.
pub fn parse(frame: &[u8]) -> Option<Headers> {
    let to = array::<6>(frame, 0)?;
    let from = array::<6>(frame, 6)?;
    let ethertype = u16::from_be_bytes(array(frame, 12)?);
    let none = Ipv4Addr::UNSPECIFIED;
    match ethertype {
        0x0800 => {}
        0x0806 => {
            return Some(Headers {
                to,
                from,
                src: none,
                dst: none,
                kind: Kind::Arp,
            });
        }
        other => {
            return Some(Headers {
                to,
                from,
                src: none,
                dst: none,
                kind: Kind::Other(other),
            });
        }
    }
    let ip = frame.get(14..)?;
    let header = usize::from(*ip.first()? & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes(array(ip, 2)?));
    let fragment = u16::from_be_bytes(array(ip, 6)?) & 0x1fff;
    let protocol = *ip.get(9)?;
    let src = Ipv4Addr::from(array::<4>(ip, 12)?);
    let dst = Ipv4Addr::from(array::<4>(ip, 16)?);
    let payload = ip.get(header..total.min(ip.len()))?;
    let kind = if fragment != 0 {
        Kind::Fragment(protocol)
    } else {
        match protocol {
            50 => esp(payload, false)?,
            17 => udp(payload)?,
            1 => Kind::Icmp(*payload.first()?),
            other => Kind::Ip(other),
        }
    };
    Some(Headers {
        to,
        from,
        src,
        dst,
        kind,
    })
}

fn udp(payload: &[u8]) -> Option<Kind> {
    let source = u16::from_be_bytes(array(payload, 0)?);
    let destination = u16::from_be_bytes(array(payload, 2)?);
    let data = payload.get(8..)?;
    if source == 4500 || destination == 4500 {
        return match data {
            [0xff] => Some(Kind::NatKeepalive),
            [0, 0, 0, 0, ike @ ..] => self::ike(ike),
            _ => esp(data, true),
        };
    }
    if source == 500 || destination == 500 {
        return ike(data);
    }
    Some(Kind::Udp(source, destination))
}

fn esp(data: &[u8], encap: bool) -> Option<Kind> {
    Some(Kind::Esp {
        spi: u32::from_be_bytes(array(data, 0)?),
        seq: u32::from_be_bytes(array(data, 4)?),
        iv: u64::from_be_bytes(array(data, 8)?),
        encap,
    })
}

fn ike(data: &[u8]) -> Option<Kind> {
    Some(Kind::Ike {
        spi_i: u64::from_be_bytes(array(data, 0)?),
        spi_r: u64::from_be_bytes(array(data, 8)?),
        exchange: *data.get(18)?,
        flags: *data.get(19)?,
        message_id: u32::from_be_bytes(array(data, 20)?),
    })
}

fn array<const N: usize>(data: &[u8], at: usize) -> Option<[u8; N]> {
    data.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut f = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
        f.extend(((20 + payload.len()) as u16).to_be_bytes());
        f.extend([0, 0, 0, 0, 64, protocol, 0, 0, 198, 51, 100, 2, 203, 0, 113, 10]);
        f.extend(payload);
        f
    }

    #[test]
    fn plain_esp_and_esp_in_udp_read_alike() {
        let esp = [0xc0, 0, 0, 1, 0, 0, 0, 7, 1, 0, 1, 0, 0, 0, 0, 7, 0xaa];
        let plain = parse(&frame(50, &esp)).expect("ESP");
        assert_eq!(
            plain.kind,
            Kind::Esp {
                spi: 0xc000_0001,
                seq: 7,
                iv: 0x0100_0100_0000_0007,
                encap: false
            }
        );
        assert_eq!(
            (plain.src, plain.dst),
            (Ipv4Addr::new(198, 51, 100, 2), Ipv4Addr::new(203, 0, 113, 10))
        );
        let mut udp = vec![0x11, 0x94, 0x11, 0x94, 0, 25, 0, 0];
        udp.extend(esp);
        assert!(matches!(
            parse(&frame(17, &udp)).expect("UDP").kind,
            Kind::Esp {
                seq: 7,
                encap: true,
                ..
            }
        ));
    }

    #[test]
    fn a_truncated_packet_is_nothing() {
        assert_eq!(parse(&frame(50, &[1, 2, 3])), None);
        assert_eq!(parse(&[0; 13]), None);
    }

    #[test]
    fn ethernet_padding_is_no_part_of_a_keepalive() {
        let mut f = frame(17, &[0x11, 0x94, 0x11, 0x94, 0, 9, 0, 0, 0xff]);
        f.resize(60, 0);
        assert_eq!(parse(&f).expect("keepalive").kind, Kind::NatKeepalive);
    }
}
