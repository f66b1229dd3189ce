//! Many IKE SAs and many Child SAs at once: real initiators with the product's own IKEv2 engine, over UDP, in a peer's namespace.
//!
//! One engine for every IKE SA, since an engine brings up one IKE SA by connection. A second IKE SA of the same identities would
//! announce itself with INITIAL_CONTACT, and the gateway would drop the first one. So every engine is lent the record of the first
//! IKE SA while it authenticates: it then knows that there are others, as a peer with several tunnels does.

use crate::clock::{now_ns, wait_for};
use crate::netns::Netns;
use anyhow::{Context, Result, bail};
use ike::{
    Change, ChildConfig, Command, Connection, EndpointConfig, Engine, EngineConfig, EventKind, Identity,
    Input, Output, Proposal, Surroundings, Transmit,
};
use model::{
    ChildSaChange, ChildSaRecord, Epoch, EspSpi, IkeSpi, InitialLimits, Instant, MemberId, SecretBytes,
    TrafficSelector,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Child SAs of one IKE SA.
pub const CHILDREN_PER_IKE_SA: usize = 32;
/// IKE SAs that are set up at the same time: below the gateway's threshold for cookies.
const AT_ONCE: usize = 48;
/// Child SAs with one remote address, told apart by UDP ports: the gateway's policy map holds 8 rules for each prefix.
const PER_ADDRESS: usize = 4;
/// UDP ports of one of them.
const PORTS: u16 = 1000;
/// Records that are kept for probes.
const KEPT: usize = 64;
/// Identity of the fleet's side, and of the gateway's.
pub const NAME: &str = "fleet";

/// What the fleet has brought about.
#[derive(Default)]
struct Shared {
    installed: AtomicUsize,
    removed: AtomicUsize,
    wanted: AtomicUsize,
    stop: AtomicBool,
    records: Mutex<Vec<ChildSaRecord>>,
    complaints: Mutex<Vec<String>>,
}

/// Initiators that run until this is dropped.
pub struct Fleet {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// Addresses of both sides and the key.
#[derive(Clone, Debug)]
pub struct Ends {
    /// The fleet's address.
    pub local: Ipv4Addr,
    /// The cluster's.
    pub remote: Ipv4Addr,
    /// First of the addresses behind the fleet: one for every four Child SAs.
    pub behind: Ipv4Addr,
    /// The network behind the cluster: first and last address.
    pub network: (Ipv4Addr, Ipv4Addr),
}

impl Fleet {
    /// Starts the thread; nothing is initiated before [`Fleet::grow`].
    pub fn start(netns: &Netns, ends: &Ends, psk: &str) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let (ends, psk) = (ends.clone(), psk.as_bytes().to_vec());
        let thread = {
            let shared = shared.clone();
            netns.thread("fleet", move || {
                Crew::new(ends, SecretBytes::new(psk), shared)?.run()
            })?
        };
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Brings up IKE SAs until there are so many Child SAs, a multiple of [`CHILDREN_PER_IKE_SA`] or fewer than that.
    pub fn grow(&self, child_sas: usize, limit: Duration) -> Result<()> {
        self.shared.wanted.store(child_sas, Ordering::Release);
        let done = wait_for(limit, Duration::from_millis(20), || {
            (self.installed() >= child_sas || self.ended()).then_some(())
        });
        if done.is_none() || self.ended() {
            let complaints = self
                .shared
                .complaints
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let last: Vec<&String> = complaints.iter().rev().take(5).collect();
            bail!(
                "{} of {child_sas} Child SAs came up within {limit:?}; last words: {last:?}",
                self.installed()
            );
        }
        Ok(())
    }

    /// Child SAs that were made so far, rekeyed ones included.
    pub fn installed(&self) -> usize {
        self.shared.installed.load(Ordering::Acquire)
    }

    /// Child SAs that are gone, rekeyed ones included.
    pub fn removed(&self) -> usize {
        self.shared.removed.load(Ordering::Acquire)
    }

    /// The first Child SAs, for probes.
    pub fn records(&self) -> Vec<ChildSaRecord> {
        self.shared
            .records
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The remote selector of a Child SA: one address and some UDP ports.
fn selector(behind: Ipv4Addr, number: usize) -> TrafficSelector {
    let address = IpAddr::V4(Ipv4Addr::from(u32::from(behind) + (number / PER_ADDRESS) as u32));
    let first_port = (number % PER_ADDRESS) as u16 * PORTS + 1;
    TrafficSelector {
        first: address,
        last: address,
        protocol: 17,
        first_port,
        last_port: first_port + PORTS - 1,
    }
}

/// One IKE SA's engine.
struct Hand {
    engine: Engine,
    around: Around,
    /// Child SAs that are still to come up.
    missing: usize,
    /// The lent record, until the IKE SA is up.
    lent: Option<IkeSpi>,
    wake: Option<Instant>,
}

/// What an engine asks of its surroundings.
struct Around {
    number: u32,
    next_esp: Arc<AtomicUsize>,
}

impl Around {
    /// The engine's number stands in front, so that messages find it.
    fn spi(&mut self) -> IkeSpi {
        let mut octets = [0; 8];
        self.random(&mut octets);
        octets[..4].copy_from_slice(&self.number.to_be_bytes());
        IkeSpi(u64::from_be_bytes(octets))
    }
}

impl Surroundings for Around {
    fn random(&mut self, out: &mut [u8]) {
        // The system's randomness does not end; a short read would leave zeros, and the exchange would fail.
        if let Ok(mut file) = std::fs::File::open("/dev/urandom") {
            let _ = std::io::Read::read_exact(&mut file, out);
        }
    }
    fn ike_spi(&mut self, _peer: Option<IkeSpi>, _connection: &str) -> IkeSpi {
        self.spi()
    }
    fn successor_ike_spi(&mut self, _old: IkeSpi) -> IkeSpi {
        self.spi()
    }
    fn esp_spi(&mut self, _ike_spi: IkeSpi) -> Option<EspSpi> {
        Some(EspSpi(self.next_esp.fetch_add(1, Ordering::Relaxed) as u32))
    }
    fn release_esp_spi(&mut self, _spi: EspSpi) {}
    fn initial_limits(&mut self) -> InitialLimits {
        InitialLimits {
            lease: u64::from(u32::MAX),
            lease_step: 1,
            ceiling: u64::from(u32::MAX),
            headroom: 1,
        }
    }
    fn iv_prefix(&self, _ike_spi: IkeSpi) -> (MemberId, Epoch) {
        (MemberId(1), Epoch(1))
    }
}

struct Crew {
    ends: Ends,
    psk: SecretBytes,
    shared: Arc<Shared>,
    sockets: [UdpSocket; 2],
    hands: Vec<Hand>,
    /// IKE SAs that are not complete.
    busy: usize,
    next_esp: Arc<AtomicUsize>,
    lent: Option<(IkeSpi, SecretBytes)>,
    wakes: BTreeSet<(Instant, usize)>,
}

fn now() -> Instant {
    Instant(now_ns())
}

impl Crew {
    fn new(ends: Ends, psk: SecretBytes, shared: Arc<Shared>) -> Result<Self> {
        let socket = |port: u16| -> Result<UdpSocket> {
            let socket = UdpSocket::bind((ends.local, port)).with_context(|| format!("UDP port {port}"))?;
            socket.set_nonblocking(true)?;
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(16 << 20))?;
            Ok(socket)
        };
        Ok(Self {
            sockets: [socket(500)?, socket(4500)?],
            ends,
            psk,
            shared,
            hands: Vec::new(),
            busy: 0,
            next_esp: Arc::new(AtomicUsize::new(0x0100_0000)),
            lent: None,
            wakes: BTreeSet::new(),
        })
    }

    fn run(mut self) -> Result<()> {
        let mut buffer = vec![0u8; 65_536];
        while !self.shared.stop.load(Ordering::Acquire) {
            self.begin()?;
            let wake = self
                .wakes
                .first()
                .map_or(20, |(at, _)| at.since(now()).as_millis().min(20) as u16);
            let mut polled = self
                .sockets
                .each_ref()
                .map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN));
            // An interrupted wait is over early, which harms nobody.
            let _ = poll(&mut polled, PollTimeout::from(wake));
            for socket in 0..2 {
                while let Ok((length, from)) = self.sockets[socket].recv_from(&mut buffer) {
                    let local = SocketAddr::from((self.ends.local, [500, 4500][socket]));
                    let bytes = match (socket, &buffer[..length]) {
                        (1, [0, 0, 0, 0, rest @ ..]) => rest.to_vec(),
                        (1, _) => continue,
                        (_, all) => all.to_vec(),
                    };
                    self.datagram(local, from, &bytes);
                }
            }
            while let Some((at, number)) = self.wakes.first().copied().filter(|(at, _)| *at <= now()) {
                self.wakes.remove(&(at, number));
                self.input(number, Input::Timeout { now: now() });
            }
        }
        Ok(())
    }

    /// Begins IKE SAs that are wanted, a few at a time; the first one alone, since its record is lent to the others.
    fn begin(&mut self) -> Result<()> {
        let wanted = self.shared.wanted.load(Ordering::Acquire);
        loop {
            let planned: usize = self.planned();
            let at_once = if self.lent.is_some() { AT_ONCE } else { 1 };
            if planned >= wanted || self.busy >= at_once {
                return Ok(());
            }
            self.begin_one(planned, (wanted - planned).min(CHILDREN_PER_IKE_SA))?;
        }
    }

    /// Child SAs that all engines together have been told to make.
    fn planned(&self) -> usize {
        let missing: usize = if self.busy == 0 {
            0
        } else {
            self.hands.iter().map(|h| h.missing).sum()
        };
        self.shared.installed.load(Ordering::Acquire) + missing
    }

    fn begin_one(&mut self, first: usize, children: usize) -> Result<()> {
        let number = self.hands.len();
        let engine = Engine::new(EngineConfig {
            connections: vec![self.connection(first, children)?],
            endpoint: EndpointConfig::new(SecretBytes::new(vec![7; 32])),
        });
        self.hands.push(Hand {
            engine,
            around: Around {
                number: number as u32 + 1,
                next_esp: self.next_esp.clone(),
            },
            missing: children,
            lent: None,
            wake: None,
        });
        self.busy += 1;
        let connection = NAME.to_owned();
        self.input(
            number,
            Input::Command {
                now: now(),
                command: Command::Initiate { connection },
            },
        );
        if let Some((spi, record)) = &self.lent {
            let hand = &mut self.hands[number];
            hand.engine
                .adopt(now(), *spi, record)
                .context("the lent record of the first IKE SA")?;
            hand.lent = Some(*spi);
        }
        Ok(())
    }

    fn connection(&self, first: usize, children: usize) -> Result<Connection> {
        let mut connection = Connection::new(
            NAME,
            self.ends.local.into(),
            Identity::parse(&format!("peer-{NAME}.example")),
            SecretBytes::new(self.psk.expose().to_vec()),
        );
        connection.remotes = vec![self.ends.remote.into()];
        connection.remote_id = Some(Identity::parse(&format!("gw-{NAME}.example")));
        connection.ike_proposals = vec![Proposal::parse_ike("aes128gcm16-prfsha256-x25519")?];
        connection.dpd_delay = None;
        connection.ike_rekey_time = None;
        connection.child_rekey_time = None;
        let network = TrafficSelector {
            first: self.ends.network.0.into(),
            last: self.ends.network.1.into(),
            protocol: 17,
            first_port: 0,
            last_port: u16::MAX,
        };
        let esp = Proposal::parse_esp("aes128gcm16")?;
        connection.children = (first..first + children)
            .map(|n| {
                let own = vec![selector(self.ends.behind, n)];
                let mut child = ChildConfig::new(&format!("c{n}"), own, vec![network.clone()]);
                child.esp_proposals = vec![esp.clone()];
                child
            })
            .collect();
        Ok(connection)
    }

    fn datagram(&mut self, local: SocketAddr, remote: SocketAddr, bytes: &[u8]) {
        // We are the original initiator of all our IKE SAs, so our SPI is the first one (RFC 7296 3.1).
        let Some(spi) = bytes.first_chunk::<8>() else {
            return;
        };
        let Some(number) = u32::from_be_bytes([spi[0], spi[1], spi[2], spi[3]]).checked_sub(1) else {
            return;
        };
        if (number as usize) < self.hands.len() {
            let input = Input::Datagram {
                now: now(),
                local,
                remote,
                bytes,
            };
            self.input(number as usize, input);
        }
    }

    fn input(&mut self, number: usize, input: Input<'_>) {
        let hand = &mut self.hands[number];
        let was_missing = hand.missing;
        hand.engine.handle(input, &mut hand.around);
        let mut sends: Vec<Transmit> = Vec::new();
        while let Some(output) = hand.engine.poll() {
            match output {
                Output::Commit(commit) => {
                    for change in commit.changes {
                        if let Change::ChildSa(change) = change {
                            note(&self.shared, hand, change);
                        }
                    }
                    sends.extend(commit.transmits);
                }
                Output::Transmit(transmit) => sends.push(transmit),
                Output::Sign(_) | Output::Tls(_) => unreachable!("connections here use pre-shared keys"),
                Output::Compute(_) => unreachable!("this engine computes its key exchanges itself"),
                Output::Event(event) => {
                    if event.kind == EventKind::Established
                        && let Some(lent) = hand.lent.take()
                    {
                        hand.engine.release(lent);
                    }
                    if event.kind.is_warning() {
                        self.shared
                            .complaints
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(event.to_string());
                    }
                }
            }
        }
        if was_missing > 0 && hand.missing == 0 {
            self.busy -= 1;
            if self.lent.is_none() {
                self.lent = hand.engine.export().into_iter().next();
            }
        }
        let wake = hand.engine.next_timeout();
        if wake != hand.wake {
            if let Some(old) = hand.wake {
                self.wakes.remove(&(old, number));
            }
            self.wakes.extend(wake.map(|at| (at, number)));
            hand.wake = wake;
        }
        for transmit in sends {
            self.send(&transmit);
        }
    }

    fn send(&self, transmit: &Transmit) {
        // A datagram that is not sent is repeated by the engine's timer.
        let _ = if transmit.local.port() == 4500 {
            let marked = [&[0u8; 4][..], &transmit.bytes].concat();
            self.sockets[1].send_to(&marked, transmit.remote)
        } else {
            self.sockets[0].send_to(&transmit.bytes, transmit.remote)
        };
    }
}

fn note(shared: &Shared, hand: &mut Hand, change: ChildSaChange) {
    match change {
        ChildSaChange::Install { record, .. } => {
            hand.missing = hand.missing.saturating_sub(1);
            let mut records = shared.records.lock().unwrap_or_else(PoisonError::into_inner);
            if records.len() < KEPT {
                records.push(*record);
            }
            shared.installed.fetch_add(1, Ordering::AcqRel);
        }
        ChildSaChange::Remove { .. } => {
            shared.removed.fetch_add(1, Ordering::AcqRel);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_child_sas_have_the_same_selector() {
        let all: std::collections::HashSet<_> = (0..1000)
            .map(|n| selector(Ipv4Addr::new(10, 64, 0, 0), n))
            .collect();
        assert_eq!(all.len(), 1000);
    }
}
