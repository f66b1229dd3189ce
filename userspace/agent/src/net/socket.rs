//! IKE sockets on the cluster addresses, and the raw socket that gets reassembled ESP packets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::net::UdpSocket;

/// Marker in front of IKE messages on port 4500 (RFC 3948 2.2).
pub const NON_ESP_MARKER: [u8; 4] = [0; 4];
/// Port of IKE.
pub const IKE_PORT: u16 = 500;
/// Port of IKE and ESP behind a NAT.
pub const NAT_T_PORT: u16 = 4500;

/// A UDP socket on one cluster address. `IP_FREEBIND`, since the address may be put on `lo` later.
fn udp(address: Ipv4Addr, port: u16) -> Result<UdpSocket> {
    let socket =
        Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).context("cannot open a UDP socket")?;
    socket.set_freebind_v4(true)?;
    socket.set_nonblocking(true)?;
    // IKE messages may be larger than the path: the kernel fragments them.
    let off: libc::c_int = libc::IP_PMTUDISC_DONT;
    nix_setsockopt(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, off)?;
    let _ = socket.set_recv_buffer_size(4 << 20);
    socket
        .bind(&SocketAddrV4::new(address, port).into())
        .map_err(|error| bind_error(address, port, &error))?;
    Ok(UdpSocket::from_std(socket.into())?)
}

fn bind_error(address: Ipv4Addr, port: u16, error: &io::Error) -> anyhow::Error {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => "stop the other IKE daemon that uses it (see: ss -ulpn)",
        io::ErrorKind::PermissionDenied => "run as root or with CAP_NET_BIND_SERVICE",
        _ => "check [addresses]",
    };
    anyhow::anyhow!("cannot bind UDP {address}:{port}: {error}; {remedy}")
}

fn nix_setsockopt(
    socket: &Socket,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    use std::os::fd::AsRawFd;
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
    sockets: Vec<(SocketAddrV4, UdpSocket)>,
}

impl IkeSockets {
    /// Opens ports 500 and 4500 on each address.
    ///
    /// # Errors
    /// A port is taken or not permitted.
    pub fn open(addresses: &[Ipv4Addr]) -> Result<Self> {
        let mut sockets = Vec::new();
        for address in addresses {
            for port in [IKE_PORT, NAT_T_PORT] {
                sockets.push((SocketAddrV4::new(*address, port), udp(*address, port)?));
            }
        }
        Ok(Self { sockets })
    }

    /// Waits for a datagram on any of them: our address, the sender, the number of octets in `buffer`.
    pub async fn receive(&self, buffer: &mut [u8]) -> (SocketAddrV4, SocketAddrV4, usize) {
        loop {
            let ready = self.sockets.iter().map(|(_, socket)| Box::pin(socket.readable()));
            let _ = futures_util::future::select_all(ready).await;
            if let Some(found) = self.try_receive(buffer) {
                return found;
            }
        }
    }

    /// A datagram that is there already.
    pub fn try_receive(&self, buffer: &mut [u8]) -> Option<(SocketAddrV4, SocketAddrV4, usize)> {
        for (local, socket) in &self.sockets {
            if let Ok((length, SocketAddr::V4(from))) = socket.try_recv_from(buffer) {
                return Some((*local, from, length));
            }
        }
        None
    }

    /// Sends an IKE message, with the marker on port 4500.
    ///
    /// # Errors
    /// The address is none of ours, or the kernel refuses.
    pub fn send_ike(&self, local: SocketAddr, remote: SocketAddr, message: &[u8]) -> io::Result<()> {
        if local.port() == NAT_T_PORT {
            let mut datagram = Vec::with_capacity(4 + message.len());
            datagram.extend_from_slice(&NON_ESP_MARKER);
            datagram.extend_from_slice(message);
            self.send(local, remote, &datagram)
        } else {
            self.send(local, remote, message)
        }
    }

    /// Sends octets as they are.
    ///
    /// # Errors
    /// The address is none of ours, or the kernel refuses.
    pub fn send(&self, local: SocketAddr, remote: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let socket = self
            .sockets
            .iter()
            .find(|(address, _)| IpAddr::V4(*address.ip()) == local.ip() && address.port() == local.port())
            .ok_or_else(|| io::Error::other(format!("{local} is no address of this cluster")))?;
        // The system call itself: tokio's `try_send_to` fails until its reactor has seen the socket writable for the first time.
        socket2::SockRef::from(&socket.1)
            .send_to(bytes, &remote.into())
            .map(drop)
    }
}

/// The raw socket for ESP. What XDP passes on are fragments; the stack reassembles them. With the socket there, the kernel
/// also sends no ICMP "protocol unreachable".
pub struct EspSocket(AsyncFd<std::os::fd::OwnedFd>);

impl EspSocket {
    /// Opens it.
    ///
    /// # Errors
    /// Not permitted (CAP_NET_RAW).
    pub fn open() -> Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(50)))
            .context("cannot open a raw socket for ESP; run as root")?;
        socket.set_nonblocking(true)?;
        // SAFETY: the descriptor is owned by the `AsyncFd` and stays the same for its life.
        let fd = unsafe { AsyncFd::register(std::os::fd::OwnedFd::from(socket)) }?;
        Ok(Self(fd))
    }

    /// Waits for a packet, IP header included.
    ///
    /// # Errors
    /// The socket fails.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0
            .async_io(tokio::io::Interest::READABLE, |fd| {
                nix::unistd::read(fd, buffer).map_err(io::Error::from)
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_message_goes_out_before_the_event_loop_has_turned() {
        let socket = udp(Ipv4Addr::LOCALHOST, 0).unwrap();
        let SocketAddr::V4(local) = socket.local_addr().unwrap() else {
            panic!("bound to an IPv4 address");
        };
        let sockets = IkeSockets {
            sockets: vec![(local, socket)],
        };
        let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.set_read_timeout(Some(std::time::Duration::from_secs(5)))
            .unwrap();
        sockets
            .send_ike(local.into(), peer.local_addr().unwrap(), b"first")
            .unwrap();
        let mut buffer = [0; 16];
        let (length, from) = peer.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from), (&b"first"[..], local.into()));
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
