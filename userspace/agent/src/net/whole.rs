//! Datagrams of this host's own that its kernel cut for the TUN device, put together again: in transport mode only whole ones are
//! sealed (RFC 4301 7), and cut afterwards where that is needed.
//!
//! They come from one sender on one host, one after the other and in their order. So there is nothing to sort, and no more to keep than
//! the few that are on the way at the same time.

use std::collections::VecDeque;
use std::net::IpAddr;

use super::cut;
use super::frame::{self, IPV6_LEN};

/// Datagrams that may be unfinished at the same time; of more the oldest is given up.
const AT_ONCE: usize = 16;
/// Longest datagram, IP header included.
const LONGEST: usize = 16_000;
const FRAGMENT: u8 = 44;

/// A piece: what its datagram is known by, and where it belongs.
struct Piece<'a> {
    /// Source and destination address, protocol, identification.
    key: (IpAddr, IpAddr, u8, u32),
    /// Octets of payload before it.
    offset: usize,
    more: bool,
    /// The header as it is before a whole datagram, but for its length.
    header: Vec<u8>,
    payload: &'a [u8],
}

struct Unfinished {
    key: (IpAddr, IpAddr, u8, u32),
    packet: Vec<u8>,
    header_len: usize,
}

/// What comes of a packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Gathered {
    /// It is no piece.
    NoPiece,
    /// It was kept, or was the first of something that cannot be kept.
    Kept,
    /// It was the last one: the datagram.
    Whole(Vec<u8>),
}

/// Pieces that wait for the rest.
#[derive(Default)]
pub struct Pieces {
    waiting: VecDeque<Unfinished>,
    /// Datagrams that were given up: too long, or pieces of them missing.
    pub given_up: u64,
}

/// Source and destination of a packet.
pub fn ends(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let four = |at: usize| packet.get(at..)?.first_chunk::<4>().map(|a| IpAddr::from(*a));
    let sixteen = |at: usize| packet.get(at..)?.first_chunk::<16>().map(|a| IpAddr::from(*a));
    match packet.first()? >> 4 {
        4 => Some((four(12)?, four(16)?)),
        6 => Some((sixteen(8)?, sixteen(24)?)),
        _ => None,
    }
}

fn piece(packet: &[u8]) -> Option<Piece<'_>> {
    let (source, destination) = ends(packet)?;
    if packet[0] >> 4 == 4 {
        let header_len = usize::from(packet[0] & 0xf) * 4;
        let field = u16::from_be_bytes([packet[6], packet[7]]);
        let (more, offset) = (field & 0x2000 != 0, usize::from(field & 0x1fff) * 8);
        let (header, payload) = packet.split_at_checked(header_len)?;
        let id = u32::from(u16::from_be_bytes([packet[4], packet[5]]));
        return (more || offset != 0).then(|| Piece {
            key: (source, destination, packet[9], id),
            offset,
            more,
            header: header.to_vec(),
            payload,
        });
    }
    let (header_len, named_at) = cut::per_fragment(packet)?;
    if packet[named_at] != FRAGMENT {
        return None;
    }
    let (header, rest) = packet.split_at_checked(header_len)?;
    let ([next, _, a, b, i, d, e, n], payload) = rest.split_first_chunk::<8>()?;
    let (next, field) = (*next, u16::from_be_bytes([*a, *b]));
    let mut header = header.to_vec();
    header[named_at] = next;
    Some(Piece {
        key: (source, destination, next, u32::from_be_bytes([*i, *d, *e, *n])),
        offset: usize::from(field & !7),
        more: field & 1 != 0,
        header,
        payload,
    })
}

impl Pieces {
    /// Takes a packet of this host's own.
    pub fn gather(&mut self, packet: &[u8]) -> Gathered {
        let Some(piece) = piece(packet) else {
            return Gathered::NoPiece;
        };
        let at = self.waiting.iter().position(|u| u.key == piece.key);
        let mut unfinished = match at.and_then(|at| self.waiting.remove(at)) {
            Some(unfinished) if piece.offset != 0 => unfinished,
            None if piece.offset != 0 => return Gathered::Kept,
            other => {
                self.given_up += u64::from(other.is_some());
                Unfinished {
                    key: piece.key,
                    header_len: piece.header.len(),
                    packet: piece.header,
                }
            }
        };
        let missing = unfinished.packet.len() - unfinished.header_len != piece.offset;
        if missing || unfinished.packet.len() + piece.payload.len() > LONGEST {
            self.given_up += 1;
            return Gathered::Kept;
        }
        unfinished.packet.extend_from_slice(piece.payload);
        if piece.more {
            if self.waiting.len() >= AT_ONCE {
                self.waiting.pop_front();
                self.given_up += 1;
            }
            self.waiting.push_back(unfinished);
            return Gathered::Kept;
        }
        let mut whole = unfinished.packet;
        if whole[0] >> 4 == 6 {
            let length = (whole.len() - IPV6_LEN) as u16;
            whole[4..6].copy_from_slice(&length.to_be_bytes());
            return Gathered::Whole(whole);
        }
        match frame::reassembled(&whole) {
            Some(whole) => Gathered::Whole(whole),
            None => Gathered::Kept,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(v6: bool, size: usize) -> Vec<u8> {
        let payload = (0..size).map(|i| (i * 3) as u8).collect::<Vec<_>>();
        let (from, to) = if v6 {
            ("[2001:db8::1]:7", "[2001:db8::2]:8")
        } else {
            ("192.0.2.1:7", "192.0.2.2:8")
        };
        let packet = frame::udp(from.parse().unwrap(), to.parse().unwrap(), &payload).unwrap();
        if v6 {
            return packet;
        }
        // As a sender that may be cut.
        let mut packet = packet;
        packet[6] = 0;
        frame::reassembled(&packet).unwrap()
    }

    #[test]
    fn pieces_of_both_families_come_together_even_when_they_alternate() {
        let mut pieces = Pieces::default();
        let (four, six) = (datagram(false, 3000), datagram(true, 3000));
        let cut = [
            cut::pieces(&four, 1400).unwrap(),
            cut::pieces(&six, 1400).unwrap(),
        ];
        assert_eq!((cut[0].len(), cut[1].len()), (3, 3));
        let mut whole = Vec::new();
        for at in 0..3 {
            for of in &cut {
                match pieces.gather(&of[at]) {
                    Gathered::Whole(packet) => whole.push(packet),
                    other => assert_eq!((other, at < 2), (Gathered::Kept, true)),
                }
            }
        }
        assert_eq!(whole, [four.clone(), six]);
        assert_eq!((pieces.waiting.len(), pieces.given_up), (0, 0));
        assert_eq!(pieces.gather(&four), Gathered::NoPiece);
        assert_eq!(pieces.gather(&[]), Gathered::NoPiece);
        assert_eq!(pieces.gather(&[0x45; 19]), Gathered::NoPiece);
    }

    #[test]
    fn options_and_extension_headers_come_together_with_the_rest() {
        let mut pieces = Pieces::default();
        let mut four = datagram(false, 3000);
        four.splice(20..20, [0x94, 4, 0, 0]);
        four[0] = 0x46;
        let four = frame::reassembled(&four).unwrap();
        // Hop-by-hop options, and a routing header behind them.
        let mut six = datagram(true, 3000);
        let headers = [
            43, 0, 5, 2, 0, 0, 1, 0, 17, 1, 2, 0, 0, 0, 0, 0, 9, 9, 9, 9, 9, 9, 9, 9,
        ];
        six.splice(IPV6_LEN..IPV6_LEN, headers);
        six[6] = 0;
        let length = (six.len() - IPV6_LEN) as u16;
        six[4..6].copy_from_slice(&length.to_be_bytes());
        for whole in [four, six] {
            let cut = cut::pieces(&whole, 1400).unwrap();
            assert_eq!(cut.len(), 3);
            assert_eq!(pieces.gather(&cut[0]), Gathered::Kept);
            assert_eq!(pieces.gather(&cut[1]), Gathered::Kept);
            assert_eq!(pieces.gather(&cut[2]), Gathered::Whole(whole.clone()));
            assert_eq!(pieces.gather(&whole), Gathered::NoPiece);
        }
        assert_eq!((pieces.waiting.len(), pieces.given_up), (0, 0));
    }

    #[test]
    fn what_is_too_long_incomplete_or_too_much_is_given_up() {
        let mut pieces = Pieces::default();
        let long = cut::pieces(&datagram(false, LONGEST + 100), 1400).unwrap();
        assert!(long.iter().all(|p| pieces.gather(p) == Gathered::Kept));
        assert_eq!((pieces.given_up, pieces.waiting.len()), (1, 0));
        let holed = cut::pieces(&datagram(false, 3000), 1400).unwrap();
        assert_eq!(pieces.gather(&holed[0]), Gathered::Kept);
        assert_eq!(pieces.gather(&holed[2]), Gathered::Kept);
        assert_eq!((pieces.given_up, pieces.waiting.len()), (2, 0));
        // Later pieces of something whose first piece is not here.
        assert_eq!(pieces.gather(&holed[1]), Gathered::Kept);
        assert!(pieces.waiting.is_empty());
        for id in 0..100_u16 {
            let mut first = holed[0].clone();
            first[4..6].copy_from_slice(&id.to_be_bytes());
            assert_eq!(pieces.gather(&first), Gathered::Kept);
        }
        assert_eq!((pieces.given_up, pieces.waiting.len()), (86, AT_ONCE));
    }
}
