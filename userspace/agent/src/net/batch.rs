//! Many datagrams in one system call, on sockets that do not block.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use socket2::{SockAddr, SockAddrStorage};

/// Datagrams in one call.
const COUNT: usize = 32;
/// Longest datagram.
const LONGEST: usize = 65_536;

/// Room for what one call receives.
pub struct Inbox {
    octets: Vec<u8>,
}

impl Default for Inbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Inbox {
    /// Datagrams that one call receives at most.
    pub const ROOM: usize = COUNT;

    /// Memory that no datagram has needed yet is not there.
    pub fn new() -> Self {
        Self {
            octets: vec![0; COUNT * LONGEST],
        }
    }

    /// Receives what is there, up to 32 datagrams, and gives each with its sender. Returns how many.
    ///
    /// # Errors
    /// `WouldBlock`: nothing is there.
    pub fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        mut each: impl FnMut(SocketAddr, &[u8]),
    ) -> io::Result<usize> {
        let mut senders: [_; COUNT] = std::array::from_fn(|_| SockAddrStorage::zeroed());
        let mut pieces = [libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        }; COUNT];
        for (piece, room) in pieces.iter_mut().zip(self.octets.chunks_exact_mut(LONGEST)) {
            piece.iov_base = room.as_mut_ptr().cast();
            piece.iov_len = room.len();
        }
        let mut messages = [const { message() }; COUNT];
        for ((message, piece), sender) in messages.iter_mut().zip(&mut pieces).zip(&mut senders) {
            message.msg_hdr.msg_iov = piece;
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_name = std::ptr::from_mut(sender).cast();
            message.msg_hdr.msg_namelen = sender.size_of();
        }
        // SAFETY: every header names one piece and one address that live through the call, with their true lengths.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                messages.as_mut_ptr(),
                COUNT as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        let received = messages
            .iter()
            .zip(senders)
            .zip(self.octets.chunks_exact(LONGEST));
        for ((message, sender), octets) in received.take(count) {
            // SAFETY: the kernel has written an address of this length.
            let sender = unsafe { SockAddr::new(sender, message.msg_hdr.msg_namelen) };
            let length = message.msg_len as usize;
            if let (Some(sender), Some(octets)) = (sender.as_socket(), octets.get(..length)) {
                each(sender, octets);
            }
        }
        Ok(count)
    }
}

/// A datagram to send: pieces that stand one behind the other, and to whom.
pub struct Outgoing<'a> {
    /// The pieces; one may be empty.
    pub pieces: [&'a [u8]; 2],
    /// The receiver.
    pub to: SocketAddr,
}

/// Sends datagrams on one socket, in their order. What the kernel refuses is told by its index, and the rest goes on.
pub fn send(socket: BorrowedFd<'_>, all: &[Outgoing<'_>], mut failed: impl FnMut(usize, io::Error)) {
    for (nth, chunk) in all.chunks(COUNT).enumerate() {
        let mut addresses: [Option<SockAddr>; COUNT] = [const { None }; COUNT];
        let mut pieces = [[libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        }; 2]; COUNT];
        let mut messages = [const { message() }; COUNT];
        for (at, outgoing) in chunk.iter().enumerate() {
            for (piece, octets) in pieces[at].iter_mut().zip(outgoing.pieces) {
                piece.iov_base = octets.as_ptr().cast_mut().cast();
                piece.iov_len = octets.len();
            }
            let address = addresses[at].insert(outgoing.to.into());
            let header = &mut messages[at].msg_hdr;
            header.msg_iov = pieces[at].as_mut_ptr();
            header.msg_iovlen = 2;
            header.msg_name = address.as_ptr().cast_mut().cast();
            header.msg_namelen = address.len();
        }
        let mut at = 0;
        while at < chunk.len() {
            // SAFETY: every header names pieces and an address that live through the call, with their true lengths; the kernel
            // only reads them.
            let sent = unsafe {
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    messages[at..].as_mut_ptr(),
                    (chunk.len() - at) as libc::c_uint,
                    libc::MSG_DONTWAIT,
                )
            };
            match usize::try_from(sent) {
                // An error is that of the first one that was not sent.
                Err(_) => {
                    failed(nth * COUNT + at, io::Error::last_os_error());
                    at += 1;
                }
                Ok(sent) => at += sent.max(1),
            }
        }
    }
}

const fn message() -> libc::mmsghdr {
    // SAFETY: all zero is a valid header: no address, no pieces, no control data.
    unsafe { std::mem::zeroed() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    #[test]
    fn datagrams_arrive_in_their_order_with_their_sender_and_one_that_is_refused_holds_up_nobody() {
        for loopback in ["127.0.0.1:0", "[::1]:0"] {
            let (from, to) = (
                UdpSocket::bind(loopback).unwrap(),
                UdpSocket::bind(loopback).unwrap(),
            );
            let marker = [0; 4];
            let bodies: Vec<Vec<u8>> = (0..70u8).map(|n| vec![n; 100 + usize::from(n)]).collect();
            let refused = vec![0; 70_000];
            let mut all: Vec<_> = bodies
                .iter()
                .map(|body| Outgoing {
                    pieces: [&marker, body],
                    to: to.local_addr().unwrap(),
                })
                .collect();
            // Longer than any datagram.
            all[40].pieces = [&[], &refused];
            let mut failures = Vec::new();
            send(from.as_fd(), &all, |at, error| {
                failures.push((at, error.raw_os_error()))
            });
            assert_eq!(failures, [(40, Some(libc::EMSGSIZE))]);
            let mut inbox = Inbox::new();
            let mut seen = Vec::new();
            while seen.len() < 69 {
                let mut waited = [0; 1];
                to.set_read_timeout(Some(std::time::Duration::from_secs(5)))
                    .unwrap();
                to.peek(&mut waited).unwrap();
                inbox
                    .receive(to.as_fd(), |sender, octets| {
                        assert_eq!(sender, from.local_addr().unwrap());
                        assert_eq!(octets[..4], marker);
                        seen.push(octets[4..].to_vec());
                    })
                    .unwrap();
            }
            let mut expected = bodies;
            expected.remove(40);
            assert_eq!(seen, expected);
            let nothing = inbox.receive(to.as_fd(), |_, _| panic!("nothing was sent"));
            assert_eq!(nothing.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }
}
