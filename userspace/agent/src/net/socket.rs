//! IKE sockets on the cluster addresses, and the raw socket that gets reassembled ESP packets.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::task::Poll;

use anyhow::{Context, Result};
use ike::Transmit;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UdpSocket;

use super::batch::{Inbox, Outgoing};

/// Marker in front of IKE messages on port 4500 (RFC 3948 2.2).
pub const NON_ESP_MARKER: [u8; 4] = [0; 4];
/// Port of IKE.
pub const IKE_PORT: u16 = 500;
/// Port of IKE and ESP behind a NAT.
pub const NAT_T_PORT: u16 = 4500;

/// A UDP socket on one cluster address. Free to bind, since the address may be put on `lo` later.
fn udp(address: IpAddr, port: u16) -> Result<UdpSocket> {
    let domain = if address.is_ipv4() {
        Domain::IPV4
    } else {
        Domain::IPV6
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)).context("cannot open a UDP socket")?;
    socket.set_nonblocking(true)?;
    // IKE messages may be larger than the path: the kernel fragments them.
    match address {
        IpAddr::V4(_) => {
            socket.set_freebind_v4(true)?;
            let off = libc::IP_PMTUDISC_DONT;
            nix_setsockopt(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, off)?;
        }
        IpAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_freebind_v6(true)?;
            let off = libc::IPV6_PMTUDISC_DONT;
            nix_setsockopt(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, off)?;
        }
    }
    let _ = socket.set_recv_buffer_size(4 << 20);
    socket
        .bind(&SocketAddr::new(address, port).into())
        .map_err(|error| bind_error(address, port, &error))?;
    Ok(UdpSocket::from_std(socket.into())?)
}

fn bind_error(address: IpAddr, port: u16, error: &io::Error) -> anyhow::Error {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => "stop the other IKE daemon that uses it (see: ss -ulpn)",
        io::ErrorKind::PermissionDenied => "run as root or with CAP_NET_BIND_SERVICE",
        _ => "check [addresses]",
    };
    let place = SocketAddr::new(address, port);
    anyhow::anyhow!("cannot bind UDP {place}: {error}; {remedy}")
}

fn nix_setsockopt(
    socket: &Socket,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the value lives through the call, and its true length is given.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// What a datagram on an IKE port is.
#[derive(Debug, PartialEq, Eq)]
pub enum Datagram<'a> {
    /// An IKE message, without marker.
    Ike(&'a [u8]),
    /// ESP in UDP.
    Esp(&'a [u8]),
    /// A NAT keepalive, or too short for anything.
    Nothing,
}

/// Tells IKE from ESP (RFC 3948 2).
pub fn classify(port: u16, bytes: &[u8]) -> Datagram<'_> {
    if port == IKE_PORT {
        return if bytes.len() < 28 {
            Datagram::Nothing
        } else {
            Datagram::Ike(bytes)
        };
    }
    match bytes.strip_prefix(&NON_ESP_MARKER) {
        Some(message) if message.len() >= 28 => Datagram::Ike(message),
        Some(_) => Datagram::Nothing,
        None if bytes.len() > 8 => Datagram::Esp(bytes),
        None => Datagram::Nothing,
    }
}

/// All IKE sockets.
pub struct IkeSockets {
    sockets: Vec<(SocketAddr, UdpSocket)>,
}

impl IkeSockets {
    /// Opens ports 500 and 4500 on each address.
    ///
    /// # Errors
    /// A port is taken or not permitted.
    pub fn open(addresses: &[IpAddr]) -> Result<Self> {
        let mut sockets = Vec::new();
        for address in addresses {
            for port in [IKE_PORT, NAT_T_PORT] {
                sockets.push((SocketAddr::new(*address, port), udp(*address, port)?));
            }
        }
        Ok(Self { sockets })
    }

    /// Waits until there is a datagram on any of them.
    pub async fn readable(&self) {
        std::future::poll_fn(|cx| {
            // Each of them has to be asked, so that each wakes the task.
            let ready = self
                .sockets
                .iter()
                .filter(|(_, socket)| socket.poll_recv_ready(cx).is_ready());
            match ready.count() {
                0 => Poll::Pending,
                _ => Poll::Ready(()),
            }
        })
        .await;
    }

    /// Gives what is there: our address, the sender, the octets. At most one call's worth of each socket, so that none waits for
    /// another. Returns whether there was anything; where nothing has come since, no system call asks for it.
    pub fn receive(&self, inbox: &mut Inbox, mut each: impl FnMut(SocketAddr, SocketAddr, &[u8])) -> bool {
        let mut any = false;
        for (local, socket) in &self.sockets {
            // Errors are those of the past: ICMP messages about datagrams that were sent.
            let _ = socket.try_io(Interest::READABLE, || {
                let count = inbox.receive(socket.as_fd(), |from, octets| each(*local, from, octets))?;
                any |= count > 0;
                match count < Inbox::ROOM {
                    // It was emptied: another call would only say so. What comes from now on wakes us.
                    true => Err(io::ErrorKind::WouldBlock.into()),
                    false => Ok(()),
                }
            });
        }
        any
    }

    /// Sends IKE messages in their order, with the marker on port 4500, and tells which could not be sent.
    pub fn send_all(&self, all: &[Transmit], mut failed: impl FnMut(&Transmit, io::Error)) {
        let of_socket = |a: &Transmit, b: &Transmit| a.local == b.local;
        for same in all.chunk_by(of_socket) {
            let Some(first) = same.first() else { continue };
            let socket = match self.of(first.local) {
                Ok(socket) => socket,
                Err(error) => {
                    failed(first, error);
                    continue;
                }
            };
            let marker: &[u8] = match first.local.port() {
                NAT_T_PORT => &NON_ESP_MARKER,
                _ => &[],
            };
            let outgoing = same.iter().map(|transmit| Outgoing {
                pieces: [marker, &transmit.bytes],
                to: transmit.remote,
            });
            let outgoing = outgoing.collect::<Vec<_>>();
            super::batch::send(socket.as_fd(), &outgoing, |at, error| {
                if let Some(transmit) = same.get(at) {
                    failed(transmit, error);
                }
            });
        }
    }

    fn of(&self, local: SocketAddr) -> io::Result<&UdpSocket> {
        self.sockets
            .iter()
            .find(|(address, _)| address.ip() == local.ip() && address.port() == local.port())
            .map(|(_, socket)| socket)
            .ok_or_else(|| io::Error::other(format!("{local} is no address of this cluster")))
    }

    /// Sends octets as they are.
    ///
    /// # Errors
    /// The address is none of ours, or the kernel refuses.
    pub fn send(&self, local: SocketAddr, remote: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        // The system call itself: tokio's `try_send_to` fails until its reactor has seen the socket writable for the first time.
        socket2::SockRef::from(self.of(local)?)
            .send_to(bytes, &remote.into())
            .map(drop)
    }
}

/// The raw sockets for ESP. What XDP passes on are fragments, and IPv6 packets with extension headers; the stack puts them
/// together and looks behind the headers. With the socket there, the kernel also sends no ICMP "protocol unreachable".
pub struct EspSocket {
    v4: AsyncFd<OwnedFd>,
    /// `None` on a host without IPv6.
    v6: Option<AsyncFd<OwnedFd>>,
}

const ESP: libc::c_int = 50;

fn raw(domain: Domain) -> Result<Socket> {
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(ESP)))
        .context("cannot open a raw socket for ESP; run as root")?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn register(socket: Socket) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the `AsyncFd` and stays the same for its life.
    unsafe { AsyncFd::register(OwnedFd::from(socket)) }.map_err(io::Error::from)
}

impl EspSocket {
    /// Opens them.
    ///
    /// # Errors
    /// Not permitted (CAP_NET_RAW).
    pub fn open() -> Result<Self> {
        let v6 = match raw(Domain::IPV6) {
            Ok(socket) => {
                // The kernel gives no header: the address that a packet was sent to comes beside it.
                nix_setsockopt(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
                Some(register(socket)?)
            }
            Err(error) => {
                tracing::debug!(%error, "no raw socket for ESP over IPv6");
                None
            }
        };
        Ok(Self {
            v4: register(raw(Domain::IPV4)?)?,
            v6,
        })
    }

    /// Waits for a packet, IP header included.
    ///
    /// # Errors
    /// A socket fails.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        std::future::poll_fn(|cx| {
            let v4 = poll_packet(&self.v4, cx, |socket| match nix::unistd::read(socket, buffer) {
                Ok(length) => Ok(Some(length)),
                Err(nix::errno::Errno::EAGAIN) => Ok(None),
                Err(error) => Err(error.into()),
            });
            match &self.v6 {
                Some(v6) if v4.is_pending() => poll_packet(v6, cx, |socket| receive_v6(socket, buffer)),
                _ => v4,
            }
        })
        .await
    }
}

/// Reads what a socket has; none is asked before it has said that there is something.
fn poll_packet(
    socket: &AsyncFd<OwnedFd>,
    cx: &mut std::task::Context<'_>,
    mut read: impl FnMut(BorrowedFd<'_>) -> io::Result<Option<usize>>,
) -> Poll<io::Result<usize>> {
    loop {
        let mut ready = std::task::ready!(socket.poll_read_ready(cx))?;
        match read(socket.as_fd())? {
            Some(length) => return Poll::Ready(Ok(length)),
            None => ready.clear_ready(),
        }
    }
}

/// Raw sockets for whole packets of this host's own: pieces of sealed ones.
pub struct PieceSocket {
    v4: Socket,
    /// `None` on a host without IPv6.
    v6: Option<Socket>,
}

impl PieceSocket {
    /// Opens them.
    ///
    /// # Errors
    /// Not permitted (CAP_NET_RAW).
    pub fn open() -> Result<Self> {
        let open = |domain| -> Result<Socket> {
            let raw = Protocol::from(libc::IPPROTO_RAW);
            let socket =
                Socket::new(domain, Type::RAW, Some(raw)).context("cannot open a raw socket; run as root")?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        // With this protocol the header is the sender's: always over IPv4, and over IPv6 since Linux 4.5 by the option.
        let v6 = open(Domain::IPV6).and_then(|socket| {
            nix_setsockopt(&socket, libc::IPPROTO_IPV6, libc::IPV6_HDRINCL, 1)?;
            Ok(socket)
        });
        Ok(Self {
            v4: open(Domain::IPV4)?,
            v6: v6.ok(),
        })
    }

    /// Sends a packet to the destination in its header.
    ///
    /// # Errors
    /// It is no IP packet, or the kernel refuses.
    pub fn send(&self, packet: &[u8]) -> io::Result<()> {
        let short = || io::Error::from(io::ErrorKind::InvalidInput);
        let v6 = packet.first().ok_or_else(short)? >> 4 == 6;
        let (socket, destination) = if v6 {
            let octets = packet.get(24..40).and_then(|a| a.first_chunk::<16>());
            let socket = self
                .v6
                .as_ref()
                .ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
            (socket, IpAddr::from(*octets.ok_or_else(short)?))
        } else {
            let octets = packet.get(16..20).and_then(|a| a.first_chunk::<4>());
            (&self.v4, IpAddr::from(*octets.ok_or_else(short)?))
        };
        socket
            .send_to(packet, &SocketAddr::new(destination, 0).into())
            .map(drop)
    }
}

/// A packet of the raw IPv6 socket, with a header made of what the kernel says; `None` where there is none, or not all of it.
fn receive_v6(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg};
    const HEADER: usize = 40;
    let Some((header, payload)) = buffer.split_first_chunk_mut::<HEADER>() else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    let mut pieces = [io::IoSliceMut::new(payload)];
    let received = recvmsg::<SockaddrIn6>(
        socket.as_raw_fd(),
        &mut pieces,
        Some(&mut control),
        MsgFlags::MSG_DONTWAIT,
    );
    let message = match received {
        Err(nix::errno::Errno::EAGAIN) => return Ok(None),
        other => other?,
    };
    let destination = message.cmsgs()?.find_map(|c| match c {
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(info.ipi6_addr.s6_addr),
        _ => None,
    });
    let (Some(source), Some(destination), Ok(length)) =
        (message.address, destination, u16::try_from(message.bytes))
    else {
        return Ok(None);
    };
    header.fill(0);
    header[0] = 0x60;
    header[4..6].copy_from_slice(&length.to_be_bytes());
    (header[6], header[7]) = (ESP as u8, 64);
    header[8..24].copy_from_slice(&source.ip().octets());
    header[24..].copy_from_slice(&destination);
    Ok(Some(HEADER + usize::from(length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_message_goes_out_before_the_event_loop_has_turned() {
        for loopback in ["127.0.0.1", "::1"] {
            let loopback: IpAddr = loopback.parse().unwrap();
            let socket = udp(loopback, 0).unwrap();
            let local = socket.local_addr().unwrap();
            let sockets = IkeSockets {
                sockets: vec![(local, socket)],
            };
            let peer = std::net::UdpSocket::bind((loopback, 0)).unwrap();
            peer.set_read_timeout(Some(std::time::Duration::from_secs(5)))
                .unwrap();
            let first = Transmit {
                local,
                remote: peer.local_addr().unwrap(),
                ike_spi: None,
                bytes: b"first".to_vec(),
            };
            sockets.send_all(&[first], |_, error| panic!("{error}"));
            let mut buffer = [0; 16];
            let (length, from) = peer.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..length], from), (&b"first"[..], local));
        }
    }

    /// Needs CAP_NET_RAW, as the agent does.
    #[tokio::test]
    async fn an_esp_packet_over_ipv6_comes_with_a_header_again() {
        let Ok(sockets) = EspSocket::open() else {
            eprintln!("skipped: no raw socket");
            return;
        };
        let sender = raw(Domain::IPV6).unwrap();
        let to = SocketAddr::new("::1".parse().unwrap(), 0);
        let payload = [7, 0, 0, 1, 0, 0, 0, 9, 1, 2, 3, 4];
        sender.send_to(&payload, &to.into()).unwrap();
        let mut buffer = [0; 256];
        let length = sockets.receive(&mut buffer).await.unwrap();
        let loopback = std::net::Ipv6Addr::LOCALHOST.octets();
        assert_eq!(length, 40 + payload.len());
        assert_eq!(&buffer[..8], &[0x60, 0, 0, 0, 0, 12, 50, 64]);
        assert_eq!((&buffer[8..24], &buffer[24..40]), (&loopback[..], &loopback[..]));
        assert_eq!(&buffer[40..length], &payload);
    }

    #[test]
    fn port_4500_carries_ike_behind_a_marker_and_esp_without() {
        let ike = [7; 28];
        let marked = [&NON_ESP_MARKER[..], &ike].concat();
        assert_eq!(classify(4500, &marked), Datagram::Ike(&ike));
        assert_eq!(classify(4500, &ike), Datagram::Esp(&ike));
        assert_eq!(classify(500, &ike), Datagram::Ike(&ike));
        for (port, bytes) in [
            (4500, &[0xff_u8][..]),
            (4500, &[]),
            (4500, &marked[..20]),
            (500, &ike[..27]),
        ] {
            assert_eq!(classify(port, bytes), Datagram::Nothing, "{port} {bytes:?}");
        }
    }
}
