//! Frames of the simulated networks: what is put into them and what is read out again.

use datapath::steer::first_message_segment;
use model::{IkeSpi, SegmentId};
use std::net::{Ipv4Addr, SocketAddr};
use test_packet::frames::{Ip, ethernet, udp};

const MARK: u32 = 0x5349_4d31;

/// A packet of the protected networks, and which one it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Packet {
    /// The peer whose network it goes to or comes from.
    pub peer: u8,
    /// Towards the peer.
    pub outbound: bool,
    /// Which.
    pub number: u32,
}

/// Host of the cluster's inside network.
pub const NEAR_HOST: u32 = 0x0a01_0005;

/// Host behind a peer: 10.2.peer.5.
pub fn far_host(peer: u8) -> u32 {
    0x0a02_0005 | u32::from(peer) << 8
}

impl Packet {
    /// As an IPv4 datagram in an Ethernet frame.
    pub fn frame(self, to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
        let (near, far) = (NEAR_HOST, far_host(self.peer));
        let (source, destination) = if self.outbound { (near, far) } else { (far, near) };
        let payload = [
            &MARK.to_be_bytes()[..],
            &self.number.to_be_bytes(),
            &[self.peer, u8::from(self.outbound)],
        ]
        .concat();
        let ip = Ip::new(source, destination, 17).with(&udp(7, 7, &payload));
        ethernet(to, from, 0x0800, &ip)
    }

    /// Out of a frame in clear.
    pub fn read(frame: &[u8]) -> Option<Self> {
        let at = 14 + 20 + 8;
        let word = |at: usize| Some(u32::from_be_bytes(frame.get(at..at + 4)?.try_into().ok()?));
        if word(at)? != MARK {
            return None;
        }
        Some(Self {
            number: word(at + 4)?,
            peer: *frame.get(at + 8)?,
            outbound: *frame.get(at + 9)? == 1,
        })
    }
}

/// An IKE message with its addresses, seen by its receiver.
pub struct IkeDatagram {
    /// The receiver.
    pub local: SocketAddr,
    /// The sender.
    pub remote: SocketAddr,
    /// The message, without a non-ESP marker.
    pub bytes: Vec<u8>,
}

/// An IKE message as a frame.
pub fn ike(to: [u8; 6], from: [u8; 6], local: SocketAddr, remote: SocketAddr, message: &[u8]) -> Vec<u8> {
    let (SocketAddr::V4(local), SocketAddr::V4(remote)) = (local, remote) else {
        return Vec::new();
    };
    let marked = local.port() == 4500 || remote.port() == 4500;
    let payload = if marked {
        [&[0; 4], message].concat()
    } else {
        message.to_vec()
    };
    let ip = Ip::new(local.ip().to_bits(), remote.ip().to_bits(), 17).with(&udp(
        local.port(),
        remote.port(),
        &payload,
    ));
    ethernet(to, from, 0x0800, &ip)
}

/// The IKE message in a frame.
pub fn read_ike(frame: &[u8]) -> Option<IkeDatagram> {
    let ip = frame.get(14..)?;
    let port = |at: usize| Some(u16::from_be_bytes(ip.get(at..at + 2)?.try_into().ok()?));
    let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?));
    let remote = SocketAddr::new(address(12)?.into(), port(20)?);
    let local = SocketAddr::new(address(16)?.into(), port(22)?);
    let payload = ip.get(28..)?;
    let bytes = if local.port() == 4500 {
        payload.get(4..)?
    } else {
        payload
    };
    Some(IkeDatagram {
        local,
        remote,
        bytes: bytes.to_vec(),
    })
}

/// Destination of the IPv4 datagram in a frame.
pub fn destination(frame: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(frame.get(30..34)?.try_into().ok()?))
}

/// Destination MAC address.
pub fn destination_mac(frame: &[u8]) -> Option<[u8; 6]> {
    frame.get(..6)?.try_into().ok()
}

/// The frame, sent on by a switch or router: with these MAC addresses.
pub fn readdress(frame: &mut [u8], to: [u8; 6], from: [u8; 6]) {
    if frame.len() >= 12 {
        frame[..6].copy_from_slice(&to);
        frame[6..12].copy_from_slice(&from);
    }
}

/// Whether it carries ESP, bare or in UDP.
pub fn is_esp(frame: &[u8]) -> bool {
    match frame.get(23) {
        Some(50) => true,
        Some(17) => {
            let port = |at: usize| frame.get(at..at + 2).map(|p| u16::from_be_bytes([p[0], p[1]]));
            port(36) == Some(4500) && frame.get(42..46).is_some_and(|marker| marker != [0; 4])
        }
        _ => false,
    }
}

/// The segment that an IKE message belongs to, by the rule of the programs.
pub fn segment_of(steer_key: [u64; 2], message: &[u8]) -> Option<SegmentId> {
    let spi = |at: usize| Some(u64::from_be_bytes(message.get(at..at + 8)?.try_into().ok()?));
    let (spi_i, spi_r, flags) = (spi(0)?, spi(8)?, *message.get(19)?);
    let ours = if flags & 0x08 != 0 { spi_r } else { spi_i };
    Some(if ours == 0 {
        SegmentId(first_message_segment(steer_key, spi_i))
    } else {
        IkeSpi(ours).segment()
    })
}

/// The segment of a message that a member sends: that of its own SPI.
pub fn segment_of_sent(message: &[u8]) -> Option<SegmentId> {
    let spi = |at: usize| Some(u64::from_be_bytes(message.get(at..at + 8)?.try_into().ok()?));
    let (spi_i, spi_r, flags) = (spi(0)?, spi(8)?, *message.get(19)?);
    let ours = if flags & 0x08 != 0 { spi_i } else { spi_r };
    Some(IkeSpi(ours).segment())
}
