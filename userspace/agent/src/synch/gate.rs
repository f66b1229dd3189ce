//! A gate in front of QUIC: who forges a member's address and floods the port takes neither the time nor the room of the
//! members' connections.
//!
//! Every connection id that this member gives out begins with a token that only it can derive. A packet of a connection
//! carries it and passes at once. What does not is the first packet of a connection, a stateless reset, or garbage: of
//! these each address may send a burst and then so many a second, the rest is dropped before any cryptography. And whoever
//! sends more has the kernel drop them for a while, so that they do not even wake the agent.

use std::collections::{BTreeSet, HashMap};
use std::fmt::{Debug, Formatter};
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, ConnectionId, ConnectionIdGenerator, UdpPoller};

use super::filter::{self, ID_LONG, ID_SHORT};
use super::refusal::{Refusal, Refusals};

/// Octets of the token.
pub(super) const TOKEN: usize = 4;
/// Octets of a connection id.
const LENGTH: usize = 12;
/// Packets without the token at once, and in a second.
const BURST: f64 = 64.0;
const PER_SECOND: f64 = 200.0;

/// For so long only packets of connections are let through, from an address that has sent too much.
const NARROWED: Duration = Duration::from_millis(250);

/// The socket's filter, which can be narrowed.
pub(super) struct Shutter {
    socket: socket2::Socket,
    members: Vec<SocketAddr>,
    token: [u8; TOKEN],
    narrowed: Mutex<BTreeSet<SocketAddr>>,
}

impl Shutter {
    /// Attaches the filter to a socket.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn attach(socket: &socket2::Socket, members: &[SocketAddr], token: [u8; TOKEN]) -> io::Result<Self> {
        let shutter = Self {
            socket: socket.try_clone()?,
            members: members.to_vec(),
            token,
            narrowed: Mutex::default(),
        };
        shutter.change(|_| true)?;
        Ok(shutter)
    }

    /// Changes the set of narrowed addresses, and the filter if `change` says that it has.
    fn change(&self, change: impl FnOnce(&mut BTreeSet<SocketAddr>) -> bool) -> io::Result<bool> {
        let mut narrowed = self.narrowed.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut narrowed);
        if changed {
            self.socket
                .attach_filter(&filter::program(&self.members, &narrowed, self.token))?;
        }
        Ok(changed)
    }

    /// Narrows the filter for an address, for a while.
    fn narrow(self: &Arc<Self>, from: SocketAddr) {
        match self.change(|narrowed| narrowed.insert(from)) {
            Ok(true) => {
                let this = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(NARROWED).await;
                    if let Err(error) = this.change(|narrowed| narrowed.remove(&from)) {
                        tracing::warn!(%from, %error, "the filter of the synch channel cannot be widened again");
                    }
                });
            }
            Ok(false) => {}
            // The gate itself does the work then.
            Err(error) => tracing::debug!(%error, "cannot narrow the filter of the synch channel"),
        }
    }
}

/// What is left of something that may happen in a burst and then so many times a second.
pub(super) struct Budget {
    left: f64,
    at: Instant,
}

impl Budget {
    pub fn full(burst: f64) -> Self {
        Self {
            left: burst,
            at: Instant::now(),
        }
    }

    /// Takes one, if there is one.
    pub fn take(&mut self, burst: f64, per_second: f64, now: Instant) -> bool {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * per_second;
        self.left = (self.left + gained).min(burst);
        self.at = now;
        let may = self.left >= 1.0;
        if may {
            self.left -= 1.0;
        }
        may
    }
}

/// Whether a packet carries the token where its destination connection id begins: after the first octet in a short
/// header (RFC 9000 section 17.3), after version and length in a long one (RFC 8999 section 5.1).
fn is_ours(packet: &[u8], token: [u8; TOKEN]) -> bool {
    let long = packet.first().is_some_and(|first| first & 0x80 != 0);
    let at = if long { ID_LONG } else { ID_SHORT } as usize;
    packet.get(at..at + TOKEN) == Some(&token[..])
}

/// Connection ids with the token in front.
pub(super) struct Ids {
    pub token: [u8; TOKEN],
}

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; LENGTH];
        id[..TOKEN].copy_from_slice(&self.token);
        // 64 random bits. Without randomness the handshake fails by itself.
        let _ = getrandom::fill(&mut id[TOKEN..]);
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        LENGTH
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// The socket, with the gate in front.
pub(super) struct Gate {
    socket: Arc<dyn AsyncUdpSocket>,
    shutter: Arc<Shutter>,
    /// By address. The kernel lets only members' addresses through, so there are few.
    budgets: Mutex<HashMap<SocketAddr, Budget>>,
    refusals: Arc<Refusals>,
    link: &'static str,
}

impl Gate {
    pub fn new(
        socket: Arc<dyn AsyncUdpSocket>,
        shutter: Shutter,
        refusals: Arc<Refusals>,
        link: &'static str,
    ) -> Self {
        let members = shutter.members.iter();
        let budgets = members.map(|address| (*address, Budget::full(BURST)));
        Self {
            socket,
            budgets: Mutex::new(budgets.collect()),
            shutter: Arc::new(shutter),
            refusals,
            link,
        }
    }

    /// Leaves in a buffer what may pass. Returns the octets that are left; packets other than the last keep their length.
    fn sift(&self, octets: &mut [u8], meta: &RecvMeta, now: Instant) -> usize {
        let stride = meta.stride.clamp(1, meta.len.max(1));
        let (mut from, mut kept) = (0, 0);
        while from < meta.len {
            let to = (from + stride).min(meta.len);
            if is_ours(&octets[from..to], self.shutter.token) || self.may_pass(meta.addr, now) {
                octets.copy_within(from..to, kept);
                kept += to - from;
            }
            from = to;
        }
        kept
    }

    fn may_pass(&self, from: SocketAddr, now: Instant) -> bool {
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        let may = budgets
            .get_mut(&from)
            .is_some_and(|budget| budget.take(BURST, PER_SECOND, now));
        drop(budgets);
        if !may {
            self.refusals.note(Refusal::Flood, &from, self.link, "");
            self.shutter.narrow(from);
        }
        may
    }
}

impl Debug for Gate {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for Gate {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.socket.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.socket.poll_recv(cx, bufs, meta))?;
        let now = Instant::now();
        for (octets, meta) in bufs.iter_mut().zip(meta.iter_mut()).take(count) {
            // An empty buffer is one without a packet.
            meta.len = self.sift(octets, meta, now);
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: [u8; TOKEN] = [1, 2, 3, 4];

    #[test]
    fn the_token_is_found_in_short_and_long_headers() {
        for (packet, ours, what) in [
            (&[0x40, 1, 2, 3, 4, 9][..], true, "short"),
            (&[0x40, 1, 2, 3, 5, 9], false, "short, another one's"),
            (&[0xc0, 0, 0, 0, 1, 12, 1, 2, 3, 4], true, "long"),
            (
                &[0xc0, 1, 2, 3, 4, 12, 9, 9, 9, 9],
                false,
                "long, in the wrong place",
            ),
            (&[0x40, 1, 2, 3], false, "cut off"),
            (&[], false, "empty"),
        ] {
            assert_eq!(is_ours(packet, OURS), ours, "{what}");
        }
        let id = Ids { token: OURS }.generate_cid();
        assert_eq!((id[..TOKEN].to_vec(), id.len()), (OURS.to_vec(), LENGTH));
    }

    #[tokio::test]
    async fn of_packets_that_came_together_those_of_connections_are_kept() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let raw = socket2::Socket::from(socket.try_clone().unwrap());
        let shutter = Shutter::attach(&raw, &[address], OURS).unwrap();
        let socket = quinn::Runtime::wrap_udp_socket(&quinn::TokioRuntime, socket).unwrap();
        let refusals = Arc::new(Refusals::default());
        let gate = Gate::new(socket, shutter, refusals.clone(), "synch");
        let now = Instant::now();
        while gate.may_pass(address, now) {}
        let (ours, other) = ([0x40, 1, 2, 3, 4, 7], [0x40, 9, 9, 9, 9, 9]);
        let mut octets = [&other[..], &ours, &other, &ours[..5]].concat();
        let meta = RecvMeta {
            addr: address,
            len: octets.len(),
            stride: 6,
            ecn: None,
            dst_ip: None,
        };
        let kept = gate.sift(&mut octets, &meta, now);
        assert_eq!(&octets[..kept], [&ours[..], &ours[..5]].concat());
        assert_eq!(refusals.count(Refusal::Flood), 3);
        // A second later it may say something again.
        assert!(gate.may_pass(address, now + Duration::from_secs(1)));
    }
}
