//! Gratuitous ARP and unsolicited neighbour advertisements: tell the networks where a cluster address is now.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use socket2::{Domain, Socket, Type};

use super::{Interface, frame};

const ETH_P_ARP: u16 = 0x0806;
const ICMPV6: u8 = 58;

/// A raw socket for announcements, and one that is in the solicited-node groups of the cluster addresses.
pub struct Announcer {
    socket: OwnedFd,
    groups: Option<Socket>,
}

/// The group that solicitations for an address go to (RFC 4291 2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// One unsolicited neighbour advertisement that says "`address` is at `mac`" to all nodes (RFC 4861 7.2.6): from a router,
/// not solicited, to replace what is known.
pub fn advertisement(mac: [u8; 6], address: Ipv6Addr) -> [u8; 86] {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut frame = [0; 86];
    frame[..6].copy_from_slice(&[0x33, 0x33, 0, 0, 0, 1]);
    frame[6..12].copy_from_slice(&mac);
    frame[12..14].copy_from_slice(&[0x86, 0xdd]);
    frame[14..22].copy_from_slice(&[0x60, 0, 0, 0, 0, 32, ICMPV6, 255]);
    frame[22..38].copy_from_slice(&address.octets());
    frame[38..54].copy_from_slice(&ALL_NODES.octets());
    frame[54..62].copy_from_slice(&[136, 0, 0, 0, 0xa0, 0, 0, 0]);
    frame[62..78].copy_from_slice(&address.octets());
    frame[78..80].copy_from_slice(&[2, 1]);
    frame[80..86].copy_from_slice(&mac);
    let sum = frame::checksum_v6(&frame[14..54], ICMPV6, &frame[54..]);
    frame[56..58].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// One ARP frame that says "`address` is at `mac`": as request, or as reply (some hosts heed only one form).
pub fn arp(mac: [u8; 6], address: Ipv4Addr, reply: bool) -> [u8; 42] {
    let mut frame = [0; 42];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    frame[12..14].copy_from_slice(&ETH_P_ARP.to_be_bytes());
    // Ethernet, IPv4, 6 and 4 octets, operation.
    frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, if reply { 2 } else { 1 }]);
    frame[22..28].copy_from_slice(&mac);
    frame[28..32].copy_from_slice(&address.octets());
    if reply {
        frame[32..38].fill(0xff);
    }
    frame[38..42].copy_from_slice(&address.octets());
    frame
}

impl Announcer {
    /// Opens the socket.
    ///
    /// # Errors
    /// Not permitted (CAP_NET_RAW).
    pub fn open() -> io::Result<Self> {
        // Protocol 0: the socket only sends.
        // SAFETY: plain system call without pointers.
        let fd = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                0,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just made and belongs to nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { socket, groups: None })
    }

    /// Joins the solicited-node group of an address on an interface: without it neither the card nor a switch that snoops lets
    /// solicitations through to the program.
    ///
    /// # Errors
    /// No IPv6, or the interface is gone.
    pub fn join(&mut self, interface: &Interface, address: IpAddr) -> io::Result<()> {
        let IpAddr::V6(v6) = address else { return Ok(()) };
        let groups = match &mut self.groups {
            Some(groups) => groups,
            none => none.insert(Socket::new(Domain::IPV6, Type::DGRAM, None)?),
        };
        match groups.join_multicast_v6(&solicited_node(v6), interface.index) {
            // Two addresses with the same last octets share a group.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(()),
            other => other,
        }
    }

    /// Sends a frame out of an interface.
    ///
    /// # Errors
    /// The interface is gone or down.
    pub fn send(&self, interface: &Interface, frame: &[u8]) -> io::Result<()> {
        let [a, b] = *frame
            .get(12..14)
            .and_then(|f| f.first_chunk())
            .ok_or(io::ErrorKind::InvalidInput)?;
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: u16::from_ne_bytes([a, b]),
            sll_ifindex: interface.index as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0],
        };
        // SAFETY: buffer and address live through the call, and their true lengths are given.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Announces on an interface that an address is at `mac`: ARP in both forms, or a neighbour advertisement.
    pub fn announce(&self, interface: &Interface, mac: [u8; 6], address: IpAddr) {
        let sent = match address {
            IpAddr::V4(v4) => [false, true]
                .iter()
                .try_for_each(|reply| self.send(interface, &arp(mac, v4, *reply))),
            IpAddr::V6(v6) => self.send(interface, &advertisement(mac, v6)),
        };
        if let Err(error) = sent {
            tracing::warn!(interface = interface.name, %address, %error, "cannot announce the address");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advertisement_tells_all_nodes_to_replace_what_they_know() {
        let address: Ipv6Addr = "2001:db8::1:2345:6789".parse().unwrap();
        let mac = [2, 0, 0, 0, 0, 1];
        let frame = advertisement(mac, address);
        assert_eq!(&frame[..12], &[0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 1]);
        assert_eq!((frame[21], frame[54], frame[58]), (255, 136, 0xa0));
        assert_eq!(&frame[62..78], &address.octets());
        assert_eq!(&frame[78..], &[2, 1, 2, 0, 0, 0, 0, 1]);
        assert_eq!(frame::checksum_v6(&frame[14..54], ICMPV6, &frame[54..]), 0);
        assert_eq!(
            solicited_node(address),
            "ff02::1:ff45:6789".parse::<Ipv6Addr>().unwrap()
        );
    }

    #[test]
    fn a_solicited_node_group_is_joined_once() {
        let mut announcer = Announcer {
            // Any descriptor will do: nothing is sent.
            socket: std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into(),
            groups: None,
        };
        let mut lo = crate::net::frame::tests::interface();
        lo.index = 1;
        for address in ["2001:db8::1", "2001:db8:1::1", "192.0.2.1"] {
            announcer.join(&lo, address.parse().unwrap()).unwrap();
        }
        lo.index = 0x7fff_fff0;
        assert!(announcer.join(&lo, "2001:db8::2".parse().unwrap()).is_err());
    }

    #[test]
    fn an_announcement_names_the_address_as_sender_and_target() {
        let frame = arp([2, 0, 0, 0, 0, 1], Ipv4Addr::new(192, 0, 2, 1), false);
        assert_eq!(
            &frame[..14],
            &[255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 8, 6]
        );
        assert_eq!(frame[21], 1);
        assert_eq!(&frame[28..32], &frame[38..42]);
        assert_eq!(arp([2, 0, 0, 0, 0, 1], Ipv4Addr::new(192, 0, 2, 1), true)[21], 2);
    }
}
