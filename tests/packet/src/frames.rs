//! Frames as built layers, and ESP by an independent provider (aws-lc-rs) as the oracle.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use maps_schema::sad::{SUITE_AES128_GCM, SUITE_AES256_GCM, SUITE_CBC};

use crate::cbc;
use crate::world::*;

/// One's complement sum of 16-bit words.
pub fn checksum(octets: &[u8]) -> u16 {
    let mut sum: u32 = octets
        .chunks(2)
        .map(|c| u32::from(c[0]) << 8 | c.get(1).map_or(0, |b| u32::from(*b)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Ethernet frame.
pub fn ethernet(to: [u8; 6], from: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &ethertype.to_be_bytes(), payload].concat()
}

/// The frame with an 802.1Q tag.
pub fn tagged(tag: u16, frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0], &tag.to_be_bytes(), &frame[12..]].concat()
}

/// IPv4 with the fields that cases vary.
#[derive(Clone, Copy)]
pub struct Ip {
    /// Source.
    pub source: u32,
    /// Destination.
    pub destination: u32,
    /// Protocol.
    pub protocol: u8,
    /// TTL.
    pub ttl: u8,
    /// Type of service.
    pub tos: u8,
    /// Flags and fragment offset.
    pub fragment: u16,
    /// Identification.
    pub id: u16,
}

impl Ip {
    /// Usual values.
    pub fn new(source: u32, destination: u32, protocol: u8) -> Self {
        Self {
            source,
            destination,
            protocol,
            ttl: 64,
            tos: 0,
            fragment: 0x4000,
            id: 0,
        }
    }

    /// The datagram.
    pub fn with(self, payload: &[u8]) -> Vec<u8> {
        self.with_options(&[], payload)
    }

    /// The datagram, with options: a multiple of four octets.
    pub fn with_options(self, options: &[u8], payload: &[u8]) -> Vec<u8> {
        let header_len = 20 + options.len();
        let mut out = vec![0x40 | (header_len / 4) as u8, self.tos];
        out.extend(((header_len + payload.len()) as u16).to_be_bytes());
        out.extend(self.id.to_be_bytes());
        out.extend(self.fragment.to_be_bytes());
        out.extend([self.ttl, self.protocol, 0, 0]);
        out.extend(self.source.to_be_bytes());
        out.extend(self.destination.to_be_bytes());
        out.extend(options);
        let sum = checksum(&out);
        out[10..12].copy_from_slice(&sum.to_be_bytes());
        out.extend(payload);
        out
    }
}

/// IPv6 with the fields that cases vary.
#[derive(Clone, Copy)]
pub struct Ip6 {
    /// Source.
    pub source: [u8; 16],
    /// Destination.
    pub destination: [u8; 16],
    /// Next header.
    pub protocol: u8,
    /// Hop limit.
    pub ttl: u8,
    /// Traffic class.
    pub tos: u8,
}

impl Ip6 {
    /// Usual values.
    pub fn new(source: [u8; 16], destination: [u8; 16], protocol: u8) -> Self {
        Self {
            source,
            destination,
            protocol,
            ttl: 64,
            tos: 0,
        }
    }

    /// The datagram.
    pub fn with(self, payload: &[u8]) -> Vec<u8> {
        let len = (payload.len() as u16).to_be_bytes();
        [
            &[0x60 | self.tos >> 4, self.tos << 4, 0, 0][..],
            &len,
            &[self.protocol, self.ttl],
            &self.source,
            &self.destination,
            payload,
        ]
        .concat()
    }

    /// The datagram, with the checksum of its payload at octet `at` of it.
    pub fn with_checksum(self, payload: &[u8], at: usize) -> Vec<u8> {
        let mut payload = payload.to_vec();
        payload[at..at + 2].fill(0);
        let sum = self.checksum(&payload);
        payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        self.with(&payload)
    }

    /// Checksum over pseudo header and payload (RFC 8200 8.1); 0 where the payload has the right one in it.
    pub fn checksum(&self, payload: &[u8]) -> u16 {
        let len = (payload.len() as u32).to_be_bytes();
        checksum(
            &[
                &self.source[..],
                &self.destination,
                &len,
                &[0, 0, 0, self.protocol],
                payload,
            ]
            .concat(),
        )
    }
}

/// IPv6 extension headers (RFC 8200 4), each its type and what follows next header and length, before something of type `next`: the
/// type of the first, and the octets.
pub fn extensions(headers: &[(u8, &[u8])], next: u8) -> (u8, Vec<u8>) {
    let mut octets = Vec::new();
    for (at, (_, body)) in headers.iter().enumerate() {
        let following = headers.get(at + 1).map_or(next, |(kind, _)| *kind);
        assert!((body.len() + 2).is_multiple_of(8), "whole units of eight octets");
        octets.extend([following, ((body.len() + 2) / 8 - 1) as u8]);
        octets.extend(*body);
    }
    (headers.first().map_or(next, |(kind, _)| *kind), octets)
}

/// Neighbour solicitation for `target` with options, from a port of this MAC address, to its solicited-node group.
pub fn solicitation(mac: [u8; 6], source: [u8; 16], target: [u8; 16], options: &[u8]) -> Vec<u8> {
    let mut group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
    group[13..].copy_from_slice(&target[13..]);
    let message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target, options].concat();
    let ip = Ip6 {
        ttl: 255,
        ..Ip6::new(source, group, 58)
    };
    let to = [0x33, 0x33, 0xff, target[13], target[14], target[15]];
    ethernet(to, mac, 0x86dd, &ip.with_checksum(&message, 2))
}

/// Neighbour advertisement: `target` is at `mac`.
pub fn advertisement(mac: [u8; 6], target: [u8; 16], to_mac: [u8; 6], to: [u8; 16], flags: u8) -> Vec<u8> {
    let message = [&[136, 0, 0, 0, flags, 0, 0, 0][..], &target, &[2, 1], &mac].concat();
    let ip = Ip6 {
        ttl: 255,
        ..Ip6::new(target, to, 58)
    };
    ethernet(to_mac, mac, 0x86dd, &ip.with_checksum(&message, 2))
}

/// UDP without checksum.
pub fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let len = 8 + payload.len() as u16;
    [
        &source.to_be_bytes()[..],
        &destination.to_be_bytes(),
        &len.to_be_bytes(),
        &[0, 0],
        payload,
    ]
    .concat()
}

/// Octets that differ from place to place.
pub fn noise(len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(13) ^ (i >> 8) as u8)
        .collect()
}

fn key(suite: u8, direction: u8) -> LessSafeKey {
    let algorithm = match suite {
        SUITE_AES128_GCM => &AES_128_GCM,
        SUITE_AES256_GCM => &AES_256_GCM,
        _ => &CHACHA20_POLY1305,
    };
    LessSafeKey::new(
        UnboundKey::new(algorithm, &key_octets(suite, direction)).expect("key length of the suite"),
    )
}

fn nonce(iv: &[u8]) -> Nonce {
    Nonce::try_assume_unique_for_key(&[&SALT[..], iv].concat()).expect("12 octets")
}

fn aad(spi: u32, seq: u64, esn: bool) -> Aad<Vec<u8>> {
    let high = if esn { (seq >> 32) as u32 } else { 0 }.to_be_bytes();
    let high = if esn { &high[..] } else { &[] };
    Aad::from([&spi.to_be_bytes()[..], high, &(seq as u32).to_be_bytes()].concat())
}

/// How the peer seals.
#[derive(Clone, Copy)]
pub struct Sealer {
    /// Suite.
    pub suite: u8,
    /// Extended numbers.
    pub esn: bool,
    /// In UDP 4500.
    pub encap: bool,
    /// SPI.
    pub spi: u32,
    /// Next header in the trailer.
    pub next_header: u8,
    /// Over IPv6.
    pub v6: bool,
}

impl Sealer {
    /// The peer of [`World::base`].
    pub fn peer(suite: u8, esn: bool, encap: bool) -> Self {
        Self {
            suite,
            esn,
            encap,
            spi: SPI_IN,
            next_header: 4,
            v6: false,
        }
    }

    /// The peer, over IPv6.
    pub fn over_v6(suite: u8, esn: bool, encap: bool) -> Self {
        Self {
            v6: true,
            ..Self::peer(suite, esn, encap)
        }
    }

    /// What is inside is IPv6.
    pub fn around_v6(self) -> Self {
        Self {
            next_header: 41,
            ..self
        }
    }

    /// ESP payload of `inner` with this number: default padding.
    pub fn esp(&self, seq: u64, inner: &[u8]) -> Vec<u8> {
        let block = if self.suite < SUITE_CBC { 4 } else { cbc::BLOCK };
        let pad = (inner.len() + 2).next_multiple_of(block) - inner.len() - 2;
        let mut text = inner.to_vec();
        text.extend(1..=pad as u8);
        text.extend([pad as u8, self.next_header]);
        self.esp_of_text(seq, text)
    }

    /// ESP payload of a text that has its trailer already.
    pub fn esp_of_text(&self, seq: u64, mut text: Vec<u8>) -> Vec<u8> {
        let iv = seq.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
        if self.suite >= SUITE_CBC {
            let iv = [iv, iv.map(|octet| !octet)].concat();
            let keys = cbc::Keys::of(self.suite, IN);
            keys.encrypt(iv[..].try_into().expect("16 octets"), &mut text);
            let header = [self.spi.to_be_bytes(), (seq as u32).to_be_bytes()].concat();
            let mut packet = [header, iv, text].concat();
            let icv = keys.icv(&packet, self.esn.then_some((seq >> 32) as u32));
            packet.extend(icv);
            return packet;
        }
        let tag = key(self.suite, IN)
            .seal_in_place_separate_tag(nonce(&iv), aad(self.spi, seq, self.esn), &mut text)
            .expect("sealed");
        [
            &self.spi.to_be_bytes()[..],
            &(seq as u32).to_be_bytes(),
            &iv,
            &text,
            tag.as_ref(),
        ]
        .concat()
    }

    /// The frame that carries an ESP payload from the peer to this member.
    pub fn frame_of(&self, esp: &[u8]) -> Vec<u8> {
        if self.v6 {
            let ip = if self.encap {
                Ip6::new(PEER_V6, CLUSTER_V6, 17).with_checksum(&udp(4500, 4500, esp), 6)
            } else {
                Ip6::new(PEER_V6, CLUSTER_V6, 50).with(esp)
            };
            return ethernet(OUTSIDE_MAC, PEER_MAC, 0x86dd, &ip);
        }
        let ip = if self.encap {
            Ip::new(PEER, CLUSTER, 17).with(&udp(4500, 4500, esp))
        } else {
            Ip::new(PEER, CLUSTER, 50).with(esp)
        };
        ethernet(OUTSIDE_MAC, PEER_MAC, 0x0800, &ip)
    }

    /// The frame of a sealed packet.
    pub fn frame(&self, seq: u64, inner: &[u8]) -> Vec<u8> {
        self.frame_of(&self.esp(seq, inner))
    }
}

/// What the peer finds in a frame of ours: number, IV, inner packet (in transport mode what follows the header).
pub struct OpenedFrame {
    /// Outer datagram.
    pub outer: Vec<u8>,
    /// Octets of its header, with options or extension headers.
    pub header_len: usize,
    /// Low half of the number.
    pub seq_low: u32,
    /// IV; with AES-CBC the nonce that it was made of.
    pub iv: [u8; 8],
    /// Inner packet.
    pub inner: Vec<u8>,
}

/// Opens a frame of ours as the peer would.
///
/// # Errors
/// What is wrong with it.
pub fn open_ours(frame: &[u8], suite: u8, esn_high: Option<u32>, encap: bool) -> Result<OpenedFrame, String> {
    open_ours_of(SPI_OUT, frame, suite, esn_high, encap)
}

/// [`open_ours`] of another SA with the same key octets.
///
/// # Errors
/// What is wrong with it.
pub fn open_ours_of(
    spi: u32,
    frame: &[u8],
    suite: u8,
    esn_high: Option<u32>,
    encap: bool,
) -> Result<OpenedFrame, String> {
    let (opened, next) = open_sealed(spi, frame, suite, esn_high, encap)?;
    let wanted = if opened.inner.first().is_some_and(|first| first >> 4 == 6) {
        41
    } else {
        4
    };
    if next != wanted {
        return Err(format!("next header {next}"));
    }
    Ok(opened)
}

/// What is sealed in a frame of ours, whatever it is, and the next header that names it.
///
/// # Errors
/// What is wrong with the frame.
pub fn open_sealed(
    spi: u32,
    frame: &[u8],
    suite: u8,
    esn_high: Option<u32>,
    encap: bool,
) -> Result<(OpenedFrame, u8), String> {
    let outer = frame.get(14..).ok_or("no Ethernet header")?.to_vec();
    let v6 = outer[0] >> 4 == 6;
    let (ip_len, protocol) = if v6 {
        behind_extensions(&outer)?
    } else {
        (usize::from(outer[0] & 0xf) * 4, outer[9])
    };
    let header = outer.get(..ip_len).ok_or("no header")?;
    let stated = if v6 {
        usize::from(u16::from_be_bytes([outer[4], outer[5]])) + 40
    } else {
        if ip_len < 20 || checksum(header) != 0 {
            return Err("outer checksum wrong".into());
        }
        usize::from(u16::from_be_bytes([outer[2], outer[3]]))
    };
    if stated != outer.len() {
        return Err(format!("outer length {stated} for {} octets", outer.len()));
    }
    let mut at = ip_len;
    if encap {
        let datagram = &outer[ip_len..];
        if protocol != 17 || datagram[..4] != [0x11, 0x94, 0x11, 0x94] {
            return Err("UDP header wrong".into());
        }
        if u16::from_be_bytes([datagram[4], datagram[5]]) as usize != datagram.len() {
            return Err("UDP length wrong".into());
        }
        let pseudo = v6.then(|| {
            let address = |at: usize| outer[at..at + 16].try_into().expect("16 octets");
            Ip6::new(address(8), address(24), 17)
        });
        // Over IPv4 none; over IPv6 there must be one.
        let right = match pseudo {
            Some(ip) => ip.checksum(datagram) == 0 && datagram[6..8] != [0, 0],
            None => datagram[6..8] == [0, 0],
        };
        if !right {
            return Err(format!("UDP checksum {:02x?}", &datagram[6..8]));
        }
        at += 8;
    } else if protocol != 50 {
        return Err("not ESP".into());
    }
    let esp = &outer[at..];
    if esp[..4] != spi.to_be_bytes() {
        return Err("SPI wrong".into());
    }
    let seq_low = u32::from_be_bytes([esp[4], esp[5], esp[6], esp[7]]);
    let seq = u64::from(esn_high.unwrap_or(0)) << 32 | u64::from(seq_low);
    let iv;
    let mut text;
    let opened = if suite >= SUITE_CBC {
        let nonce;
        (nonce, text) = open_cbc(suite, esp, esn_high)?;
        iv = nonce;
        &text[..]
    } else {
        iv = esp[8..16].try_into().expect("8 octets");
        text = esp[16..].to_vec();
        if (text.len() - 16) % 4 != 0 {
            return Err("text not a multiple of four".into());
        }
        key(suite, OUT)
            .open_in_place(nonce(&iv), aad(spi, seq, esn_high.is_some()), &mut text)
            .map_err(|_| "the peer's provider does not open it")?
    };
    let [rest @ .., pad, next] = opened else {
        return Err("no trailer".into());
    };
    let (inner, padding) = rest.split_at(rest.len() - *pad as usize);
    if padding.iter().enumerate().any(|(i, p)| *p != i as u8 + 1) {
        return Err("trailer wrong".into());
    }
    let opened = OpenedFrame {
        seq_low,
        iv,
        inner: inner.to_vec(),
        outer,
        header_len: ip_len,
    };
    Ok((opened, *next))
}

/// Octets of an IPv6 header with what a peer has done with before it comes to ESP or UDP (RFC 8200 4.1), and the protocol behind it.
fn behind_extensions(packet: &[u8]) -> Result<(usize, u8), String> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const DESTINATION: u8 = 60;
    let mut next = *packet.get(6).ok_or("no IPv6 header")?;
    let mut at = 40;
    while matches!(next, HOP_BY_HOP | ROUTING | DESTINATION) {
        // RFC 8200 4.3: hop-by-hop options are the first or not there.
        if next == HOP_BY_HOP && at != 40 {
            return Err(format!("hop-by-hop options at octet {at}"));
        }
        let header = packet
            .get(at..at + 2)
            .ok_or("extension headers beyond the packet")?;
        next = header[0];
        at += (usize::from(header[1]) + 1) * 8;
    }
    Ok((at, next))
}

/// The nonce that the IV was made of, and the plaintext.
fn open_cbc(suite: u8, esp: &[u8], esn_high: Option<u32>) -> Result<([u8; 8], Vec<u8>), String> {
    let keys = cbc::Keys::of(suite, OUT);
    let (covered, icv) = esp.split_at(esp.len() - cbc::BLOCK);
    if keys.icv(covered, esn_high) != *icv {
        return Err("the peer's provider finds another ICV".into());
    }
    let (iv, text) = covered[8..].split_at(cbc::BLOCK);
    if text.is_empty() || !text.len().is_multiple_of(cbc::BLOCK) {
        return Err(format!("a text of {} octets", text.len()));
    }
    let iv: [u8; cbc::BLOCK] = iv.try_into().expect("16 octets");
    let mut text = text.to_vec();
    keys.decrypt(iv, &mut text);
    // SP 800-38A, appendix C: the IV is a nonce, encrypted.
    let mut nonce = iv;
    keys.decrypt([0; cbc::BLOCK], &mut nonce);
    let (half, zeros) = nonce.split_first_chunk::<8>().expect("16 octets");
    if zeros != [0; 8] {
        return Err(format!("the IV was made of {nonce:02x?}"));
    }
    Ok((*half, text))
}

/// An IKE message's header and some octets.
pub fn ike(spi_i: u64, spi_r: u64, from_initiator: bool) -> Vec<u8> {
    let flags = if from_initiator { 0x08 } else { 0x20 };
    [
        &spi_i.to_be_bytes()[..],
        &spi_r.to_be_bytes(),
        &[33, 0x20, 34, flags],
        &[0; 4],
        &28u32.to_be_bytes(),
    ]
    .concat()
}

/// ARP request for `target`.
pub fn arp_request(from: [u8; 6], sender: u32, target: u32) -> Vec<u8> {
    let body = [
        &[0, 1, 8, 0, 6, 4, 0, 1][..],
        &from,
        &sender.to_be_bytes(),
        &[0; 6],
        &target.to_be_bytes(),
    ]
    .concat();
    ethernet([0xff; 6], from, 0x0806, &body)
}

/// ARP reply: `address` is at `mac`, to `to`.
pub fn arp_reply(mac: [u8; 6], address: u32, to: [u8; 6], asked_by: u32) -> Vec<u8> {
    let body = [
        &[0, 1, 8, 0, 6, 4, 0, 2][..],
        &mac,
        &address.to_be_bytes(),
        &to,
        &asked_by.to_be_bytes(),
    ]
    .concat();
    ethernet(to, mac, 0x0806, &body)
}
