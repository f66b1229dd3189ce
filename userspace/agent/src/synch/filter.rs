//! A socket filter: datagrams of strangers end in the kernel, before they take room in the socket's queue or any of the
//! agent's time.
//!
//! Every member talks from the address and port that it is configured with, so these are all that can be right. While
//! somebody forges one of them and floods, the filter is narrowed for that address to packets of connections that exist
//! (see `gate.rs`).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use socket2::SockFilter;

use super::gate::TOKEN;

/// Offset from which the network header is addressed (linux/filter.h, SKF_NET_OFF).
const NETWORK: u32 = -0x0010_0000_i32 as u32;
/// Offset of the source address in an IPv4 header (RFC 791) and in an IPv6 header (RFC 8200).
const SOURCE_V4: u32 = NETWORK + 12;
const SOURCE_V6: u32 = NETWORK + 8;
/// Octets of a UDP header (RFC 768), which the filter sees first; its first two are the source port.
const UDP_HEADER: u32 = 8;
/// Where the destination connection id begins in a QUIC packet with a short and with a long header.
pub(super) const ID_SHORT: u32 = 1;
pub(super) const ID_LONG: u32 = 6;

/// Instructions of classic BPF (linux/bpf_common.h).
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_OCTET: u16 = 0x30;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_SET: u16 = 0x45;
const RETURN: u16 = 0x06;
const PASS: u32 = u32::MAX;
const DROP: u32 = 0;

/// Accepts UDP datagrams of `sources` only; of those that are `narrowed`, only QUIC packets whose destination connection
/// id begins with `token`. A load beyond the end of the datagram drops it.
pub(super) fn program(
    sources: &[SocketAddr],
    narrowed: &BTreeSet<SocketAddr>,
    token: [u8; TOKEN],
) -> Vec<SockFilter> {
    let verdict = |narrow: bool| {
        if !narrow {
            return vec![SockFilter::new(RETURN, 0, 0, PASS)];
        }
        vec![
            SockFilter::new(LOAD_OCTET, 0, 0, UDP_HEADER),
            SockFilter::new(JUMP_SET, 2, 0, 0x80),
            SockFilter::new(LOAD_WORD, 0, 0, UDP_HEADER + ID_SHORT),
            SockFilter::new(JUMP, 0, 0, 1),
            SockFilter::new(LOAD_WORD, 0, 0, UDP_HEADER + ID_LONG),
            SockFilter::new(JUMP_EQUAL, 0, 1, u32::from_be_bytes(token)),
            SockFilter::new(RETURN, 0, 0, PASS),
            SockFilter::new(RETURN, 0, 0, DROP),
        ]
    };
    let mut program = Vec::new();
    for source in sources {
        let (first, words) = match source.ip() {
            IpAddr::V4(address) => (SOURCE_V4, vec![address.to_bits()]),
            IpAddr::V6(address) => {
                let bits = address.to_bits();
                let words = [96, 64, 32, 0].map(|shift| (bits >> shift) as u32);
                (SOURCE_V6, words.to_vec())
            }
        };
        let verdict = verdict(narrowed.contains(source));
        // A comparison that fails skips what is left of this source: two instructions for each further comparison, the
        // port's among them, and the verdict.
        let mut left = 2 * words.len() as u8 + verdict.len() as u8;
        for (at, word) in words.into_iter().enumerate() {
            program.push(SockFilter::new(LOAD_WORD, 0, 0, first + 4 * at as u32));
            program.push(SockFilter::new(JUMP_EQUAL, 0, left, word));
            left -= 2;
        }
        program.push(SockFilter::new(LOAD_HALF, 0, 0, 0));
        program.push(SockFilter::new(JUMP_EQUAL, 0, left, u32::from(source.port())));
        program.extend(verdict);
    }
    program.push(SockFilter::new(RETURN, 0, 0, DROP));
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::time::Duration;

    const TOKEN_HERE: [u8; TOKEN] = [1, 2, 3, 4];

    fn check(host: &str) {
        let bind = || UdpSocket::bind((host, 0)).unwrap();
        let (one, two, stranger, receiver) = (bind(), bind(), bind(), bind());
        let members = [&one, &two].map(|s| s.local_addr().unwrap());
        let to = receiver.local_addr().unwrap();
        let receiver = socket2::Socket::from(receiver);
        let narrow = |which: &[SocketAddr]| {
            let narrowed = which.iter().copied().collect();
            receiver
                .attach_filter(&program(&members, &narrowed, TOKEN_HERE))
                .unwrap();
        };
        narrow(&[]);
        let heard = receiver.try_clone().unwrap();
        let heard = UdpSocket::from(heard);
        heard.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let next = || {
            let mut octets = [0; 64];
            let (length, from) = heard.recv_from(&mut octets).unwrap();
            (octets[..length].to_vec(), from)
        };
        // Loopback keeps the order: what is dropped would have come first.
        stranger.send_to(b"stranger", to).unwrap();
        for member in [&one, &two] {
            member.send_to(b"member", to).unwrap();
            assert_eq!(next(), (b"member".to_vec(), member.local_addr().unwrap()));
        }
        // Now member 1's address is flooded.
        narrow(&members[..1]);
        let short = [0x40, 1, 2, 3, 4, 5];
        let long = [0xc0, 0, 0, 0, 1, 12, 1, 2, 3, 4, 5];
        for dropped in [
            &b"member"[..],
            &[0x40, 1, 2, 3, 5],
            &[0xc0, 1, 2, 3, 4, 12, 9, 9, 9, 9],
            &[0x40],
            &[],
        ] {
            one.send_to(dropped, to).unwrap();
        }
        for passed in [&short[..], &long] {
            one.send_to(passed, to).unwrap();
            assert_eq!(next(), (passed.to_vec(), members[0]));
        }
        two.send_to(b"member", to).unwrap();
        assert_eq!(next(), (b"member".to_vec(), members[1]));
        narrow(&[]);
        one.send_to(b"member", to).unwrap();
        assert_eq!(next(), (b"member".to_vec(), members[0]));
    }

    #[test]
    fn only_members_reach_the_socket_over_ipv4() {
        check("127.0.0.1");
    }

    #[test]
    fn only_members_reach_the_socket_over_ipv6() {
        check("::1");
    }
}
