//! Gratuitous ARP: tells the networks where a cluster address is now.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::Interface;

const ETH_P_ARP: u16 = 0x0806;

/// A raw socket for ARP frames.
pub struct Announcer {
    socket: OwnedFd,
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
        Ok(Self { socket })
    }

    /// Sends a frame out of an interface.
    ///
    /// # Errors
    /// The interface is gone or down.
    pub fn send(&self, interface: &Interface, frame: &[u8]) -> io::Result<()> {
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: ETH_P_ARP.to_be(),
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

    /// Announces an address on an interface: ARP in both forms.
    pub fn announce(&self, interface: &Interface, address: IpAddr) {
        let IpAddr::V4(v4) = address else { return };
        for reply in [false, true] {
            if let Err(error) = self.send(interface, &arp(interface.mac, v4, reply)) {
                tracing::warn!(interface = interface.name, %address, %error, "cannot announce the address");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
