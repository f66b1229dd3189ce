//! Cutting packets into pieces (RFC 791 2.3, RFC 8200 4.5), and which headers each piece has.

use super::frame::{IPV6_LEN, header_len, set_checksum};

/// Where the next header is in an IPv6 header.
const IPV6_NEXT_HEADER: usize = 6;

/// Cuts an IPv4 packet into fragments of at most `mtu` octets (RFC 791 2.3). `None` if it is no IPv4 packet, must not
/// be cut, or `mtu` leaves no room.
pub fn fragments(packet: &[u8], mtu: usize) -> Option<Vec<Vec<u8>>> {
    let header_len = header_len(packet)?;
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    let packet = packet.get(..total).filter(|_| total >= header_len)?;
    let field = u16::from_be_bytes([packet[6], packet[7]]);
    if field & 0x4000 != 0 {
        return None;
    }
    if total <= mtu {
        return Some(vec![packet.to_vec()]);
    }
    let room = mtu.checked_sub(header_len)? / 8 * 8;
    if room == 0 {
        return None;
    }
    let (more, base) = (field & 0x2000, field & 0x1fff);
    let mut out = Vec::new();
    for (i, piece) in packet[header_len..].chunks(room).enumerate() {
        let at = i * room;
        let last = header_len + at + piece.len() == total;
        let mut fragment = packet[..header_len].to_vec();
        if at > 0 {
            // Options that are not copied (RFC 791 3.1) become "no operation".
            blank_uncopied_options(&mut fragment[20..]);
        }
        fragment[2..4].copy_from_slice(&((header_len + piece.len()) as u16).to_be_bytes());
        let flags = if last { more } else { 0x2000 };
        let offset = base.checked_add(u16::try_from(at / 8).ok()?)?;
        if offset > 0x1fff {
            return None;
        }
        fragment[6..8].copy_from_slice(&(flags | offset).to_be_bytes());
        set_checksum(&mut fragment, header_len);
        fragment.extend_from_slice(piece);
        out.push(fragment);
    }
    Some(out)
}

/// Octets of an IPv6 packet that stand before the fragment header in each of its pieces (RFC 8200 4.5): all up to the last routing header,
/// otherwise hop-by-hop options, otherwise the fixed header alone. And where the next header of the last of them is. `None`: the
/// headers reach beyond the packet.
//= rfc8200#4.5
// The Per-Fragment headers must consist of the IPv6 header plus any extension headers that must be processed by nodes en route to the
// destination, that is, all headers up to and including the Routing header if present, else the Hop-by-Hop Options header if present, else
// no extension headers.
pub fn per_fragment(packet: &[u8]) -> Option<(usize, usize)> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const DESTINATION: u8 = 60;
    let (mut stay, mut named_at) = (IPV6_LEN, IPV6_NEXT_HEADER);
    let (mut next, mut at) = (*packet.get(named_at)?, IPV6_LEN);
    while matches!(next, HOP_BY_HOP | ROUTING | DESTINATION) {
        let [following, units] = *packet.get(at..)?.first_chunk::<2>()?;
        let end = at + (usize::from(units) + 1) * 8;
        if next != DESTINATION {
            (stay, named_at) = (end, at);
        }
        (next, at) = (following, end);
    }
    (packet.len() >= at).then_some((stay, named_at))
}

/// Cuts a packet of this host's own into pieces of at most `mtu` octets: IPv4 as [`fragments`] does, IPv6 with a fragment
/// header behind what [`per_fragment`] says, whose identification is what ESP has for its sequence number. `None` as there.
pub fn pieces(packet: &[u8], mtu: usize) -> Option<Vec<Vec<u8>>> {
    if packet.first()? >> 4 != 6 {
        return fragments(packet, mtu);
    }
    let (stay, named_at) = per_fragment(packet)?;
    // Behind a UDP header, or at once: SPI, then the number.
    let number_at = stay + if packet[named_at] == 17 { 12 } else { 4 };
    let id = packet.get(number_at..)?.first_chunk()?;
    fragments_v6(packet, mtu, u32::from_be_bytes(*id))
}

/// As [`pieces`], of a packet that its sender had cut and that was put together here, with an identification of ours.
pub fn pieces_again(packet: &[u8], mtu: usize, id: u32) -> Option<Vec<Vec<u8>>> {
    if packet.first()? >> 4 == 6 {
        return fragments_v6(packet, mtu, id);
    }
    let header_len = header_len(packet)?;
    let mut packet = packet.to_vec();
    packet[4..6].copy_from_slice(&(id as u16).to_be_bytes());
    // "Don't fragment" is of the header that was made for what the stack gave.
    packet[6] &= !0x40;
    set_checksum(&mut packet, header_len);
    fragments(&packet, mtu)
}

fn fragments_v6(packet: &[u8], mtu: usize, id: u32) -> Option<Vec<Vec<u8>>> {
    const FRAGMENT: usize = 8;
    let length = usize::from(u16::from_be_bytes(*packet.get(4..)?.first_chunk::<2>()?));
    // What stands behind it is no part of it.
    let packet = packet.get(..IPV6_LEN + length)?;
    if packet.len() <= mtu {
        return Some(vec![packet.to_vec()]);
    }
    let (stay, named_at) = per_fragment(packet)?;
    let (header, payload) = packet.split_at_checked(stay)?;
    let room = mtu.checked_sub(stay + FRAGMENT)? / 8 * 8;
    if room == 0 {
        return None;
    }
    let mut out = Vec::new();
    for (i, piece) in payload.chunks(room).enumerate() {
        let at = i * room;
        let more = u16::from(at + piece.len() < payload.len());
        let mut packet = header.to_vec();
        let length = stay - IPV6_LEN + FRAGMENT + piece.len();
        packet[4..6].copy_from_slice(&(length as u16).to_be_bytes());
        packet[named_at] = 44;
        packet.extend_from_slice(&[header[named_at], 0]);
        packet.extend_from_slice(&(u16::try_from(at).ok()? | more).to_be_bytes());
        packet.extend_from_slice(&id.to_be_bytes());
        packet.extend_from_slice(piece);
        out.push(packet);
    }
    Some(out)
}

fn blank_uncopied_options(options: &mut [u8]) {
    let mut at = 0;
    while at < options.len() {
        let length = match options[at] {
            0 => return,
            1 => 1,
            _ => options.get(at + 1).map_or(0, |l| usize::from(*l)),
        };
        if length == 0 || at + length > options.len() {
            return;
        }
        if options[at] & 0x80 == 0 {
            options[at..at + length].fill(1);
        }
        at += length;
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame::tests::packet;
    use super::super::frame::{checksum, esp_spi, udp};
    use super::*;
    use model::EspSpi;
    use std::net::SocketAddr;

    #[test]
    fn fragments_put_together_give_the_packet() {
        for (size, mtu) in [(3000, 1400), (1380, 1400), (1381, 1400), (4000, 576), (100, 68)] {
            let whole = packet(size);
            let pieces = fragments(&whole, mtu).unwrap();
            let mut again = Vec::new();
            for (i, piece) in pieces.iter().enumerate() {
                assert!(piece.len() <= mtu, "{size} {mtu}");
                assert_eq!(checksum(&piece[..20]), 0, "the header's checksum is right");
                let field = u16::from_be_bytes([piece[6], piece[7]]);
                assert_eq!(usize::from(field & 0x1fff) * 8, again.len());
                assert_eq!(field & 0x2000 != 0, i + 1 < pieces.len());
                again.extend_from_slice(&piece[20..]);
            }
            assert_eq!(again, whole[20..]);
        }
    }

    #[test]
    fn ipv6_pieces_put_together_give_the_packet() {
        let from = "[2001:db8::1]:4500".parse().unwrap();
        let to = "[2001:db8::2]:4500".parse().unwrap();
        for (size, mtu) in [(3000, 1280), (1300, 1280), (1233, 1280), (1500, 1400)] {
            let payload = (0..size).map(|i| i as u8).collect::<Vec<_>>();
            let whole = udp(from, to, &payload).unwrap();
            let parts = pieces(&whole, mtu).unwrap();
            assert!(parts.len() > 1);
            let mut again = Vec::new();
            for (i, piece) in parts.iter().enumerate() {
                assert!(piece.len() <= mtu, "{size} {mtu}");
                assert_eq!(
                    piece.len(),
                    40 + usize::from(u16::from_be_bytes([piece[4], piece[5]]))
                );
                assert_eq!((piece[6], piece[40]), (44, 17));
                assert_eq!(piece[8..40], whole[8..40]);
                assert_eq!(
                    piece[44..48],
                    [4, 5, 6, 7],
                    "the same in all: octets 4 to 7 behind UDP"
                );
                let field = u16::from_be_bytes([piece[42], piece[43]]);
                assert_eq!(usize::from(field & !7), again.len());
                assert_eq!(field & 1 != 0, i + 1 < parts.len());
                again.extend_from_slice(&piece[48..]);
            }
            assert_eq!(again, whole[40..]);
        }
        let small = udp(from, to, &[1; 20]).unwrap();
        assert_eq!(pieces(&small, 1280).unwrap(), std::slice::from_ref(&small));
        let trailed = [&small[..], &[0; 2000]].concat();
        assert_eq!(
            pieces(&trailed, 1280).unwrap(),
            [small],
            "no fragment of one piece"
        );
        assert!(pieces(&udp(from, to, &[1; 2000]).unwrap(), 50).is_none());
        assert!(pieces(&[0x60; 30], 20).is_none());
        // IPv4 is cut as before.
        assert_eq!(pieces(&packet(3000), 1400), fragments(&packet(3000), 1400));
    }

    #[test]
    fn what_must_not_be_cut_is_not() {
        let mut whole = packet(3000);
        whole[6] = 0x40;
        assert!(fragments(&whole, 1400).is_none());
        assert!(fragments(&packet(3000), 24).is_none());
        assert!(fragments(&[0x60; 60], 40).is_none());
        assert!(fragments(&[], 1400).is_none());
    }

    #[test]
    fn a_packet_that_says_it_is_shorter_than_its_header_is_not_cut() {
        for total in 0..20 {
            let mut whole = packet(3000);
            whole[3] = total;
            whole[2] = 0;
            assert_eq!(fragments(&whole, 1400), None, "{total}");
        }
    }

    /// An IPv6 packet of `payload` octets behind a chain of extension headers that ends with ESP.
    fn chained(chain: &[&[u8]], first: u8, payload: &[u8]) -> Vec<u8> {
        let behind = [&chain.concat()[..], payload].concat();
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend_from_slice(&(behind.len() as u16).to_be_bytes());
        packet.extend_from_slice(&[first, 64]);
        packet.extend_from_slice(&[7; 32]);
        packet.extend_from_slice(&behind);
        packet
    }

    #[test]
    fn options_that_are_not_copied_are_in_the_first_piece_only() {
        // Record route, router alert (copied), end of the list.
        let options = [7, 7, 4, 0, 0, 0, 0, 0x94, 4, 0, 0, 0];
        let mut whole = packet(3000);
        whole.splice(20..20, options);
        whole[0] = 0x48;
        let total = whole.len() as u16;
        whole[2..4].copy_from_slice(&total.to_be_bytes());
        set_checksum(&mut whole, 32);
        let parts = fragments(&whole, 1400).unwrap();
        assert_eq!(parts.len(), 3);
        let mut again = Vec::new();
        for (i, piece) in parts.iter().enumerate() {
            assert_eq!((piece[0], checksum(&piece[..32])), (0x48, 0));
            let wanted = if i == 0 {
                options
            } else {
                [1, 1, 1, 1, 1, 1, 1, 0x94, 4, 0, 0, 0]
            };
            assert_eq!(piece[20..32], wanted);
            again.extend_from_slice(&piece[32..]);
        }
        assert_eq!(again, whole[32..]);
    }

    #[test]
    fn each_ipv6_piece_has_what_nodes_on_the_way_look_at() {
        let (esp, by_udp) = (50, 17);
        let alert = |next| [next, 0, 5, 2, 0, 0, 1, 0];
        let padding = |next| [next, 0, 1, 4, 0, 0, 0, 0];
        let route = |next| [[next, 1, 2, 0, 0, 0, 0, 0], [9; 8]].concat();
        let payload = (0..3000).map(|i| (i * 7) as u8).collect::<Vec<_>>();
        // The octets that stay, and where the last of their headers begins.
        for (whole, stay, named_at) in [
            (chained(&[&alert(esp)], 0, &payload), 48, 40),
            (chained(&[&route(by_udp)], 43, &payload), 56, 40),
            (chained(&[&padding(43), &route(esp)], 60, &payload), 64, 48),
            (
                chained(&[&alert(60), &padding(43), &route(esp)], 0, &payload),
                72,
                56,
            ),
            (chained(&[&alert(60), &padding(esp)], 0, &payload), 48, 40),
            (chained(&[&padding(esp)], 60, &payload), 40, 6),
        ] {
            assert_eq!(per_fragment(&whole), Some((stay, named_at)));
            let next = whole[named_at];
            let number_at = stay + if next == by_udp { 12 } else { 4 };
            let parts = pieces(&whole, 1280).unwrap();
            assert_eq!(parts.len(), 3);
            let mut again = Vec::new();
            for (i, piece) in parts.iter().enumerate() {
                assert!(piece.len() <= 1280);
                let length = usize::from(u16::from_be_bytes([piece[4], piece[5]]));
                assert_eq!(piece.len(), IPV6_LEN + length);
                // But for length and next header they are the packet's own.
                let mut headers = piece[..stay].to_vec();
                headers[4..6].copy_from_slice(&whole[4..6]);
                assert_eq!(headers[named_at], 44);
                headers[named_at] = next;
                assert_eq!(headers, whole[..stay]);
                assert_eq!(piece[stay..stay + 2], [next, 0]);
                assert_eq!(piece[stay + 4..stay + 8], whole[number_at..number_at + 4]);
                let field = u16::from_be_bytes([piece[stay + 2], piece[stay + 3]]);
                assert_eq!(usize::from(field & !7), again.len());
                assert_eq!(field & 1 != 0, i + 1 < parts.len());
                again.extend_from_slice(&piece[stay + 8..]);
            }
            assert_eq!(again, whole[stay..]);
        }
        let beyond = chained(&[&[esp, 9, 1, 4, 0, 0, 0, 0]], 60, &payload[..20]);
        assert_eq!((per_fragment(&beyond), pieces(&beyond, 50)), (None, None));
        assert_eq!(per_fragment(&[0x60; 6]), None);
    }

    #[test]
    fn what_was_put_together_is_cut_again_with_an_identification_of_ours() {
        let (v4, v6) = (
            ["198.51.100.1:4500", "203.0.113.10:4500"],
            ["[2001:db8::1]:4500", "[2001:db8::2]:4500"],
        );
        let esp = [&[0xaa, 0xbb, 0xcc, 0xdd][..], &[7; 3000]].concat();
        for [from, to] in [v4, v6] {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let packet = udp(from, to, &esp).unwrap();
            assert_eq!(esp_spi(&packet), Some(EspSpi(0xaabb_ccdd)));
            let pieces = pieces_again(&packet, 1500, 0x0102_0304).unwrap();
            assert_eq!(pieces.len(), 3);
            let (header, id_at, id): (_, _, &[u8]) = if from.is_ipv4() {
                (20, 4, &[3, 4])
            } else {
                (48, 44, &[1, 2, 3, 4])
            };
            let payload: Vec<u8> = pieces.iter().flat_map(|piece| piece[header..].to_vec()).collect();
            assert_eq!(payload, packet[packet.len() - 8 - esp.len()..]);
            for piece in &pieces {
                assert!(piece.len() <= 1500);
                assert_eq!(piece.get(id_at..id_at + id.len()), Some(id));
            }
            // What fits is one packet, and no piece.
            assert_eq!(pieces_again(&packet, 9000, 1).unwrap()[0].len(), packet.len());
        }
    }
}
