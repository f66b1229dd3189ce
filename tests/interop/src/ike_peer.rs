//! The product's IKEv2 engine alone, over UDP, in a namespace: what is agreed on with a real peer, without a data plane.

use crate::clock::{now_ns, wait_for};
use crate::netns::Netns;
use anyhow::{Context, Result};
use ike::{
    Change, Command, Engine, EngineConfig, Event, EventKind, IkeSaStatus, Input, Output, SignRequest,
    Surroundings, TlsOutcome, TlsRequest, Transmit,
};
use model::{ChildSaChange, ChildSaRecord, Epoch, EspSpi, IkeSpi, InitialLimits, Instant, MemberId};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

/// Next Payload of a message that is one fragment (RFC 7383 2.5).
const SKF: u8 = 53;
/// Of IKE, and of IKE and ESP behind a NAT.
const PORTS: [u16; 2] = [500, NAT_T];
/// See [`PORTS`].
const NAT_T: u16 = 4500;

/// What an engine has seen and done.
#[derive(Clone, Default)]
pub struct Seen {
    /// Its IKE SAs.
    pub ike_sas: Vec<IkeSaStatus>,
    /// Its Child SAs.
    pub children: BTreeMap<EspSpi, ChildSaRecord>,
    /// Events, in their order.
    pub events: Vec<Event>,
    /// Those that an operator should look at.
    pub warnings: Vec<String>,
    /// Fragments sent and received.
    pub fragments: (usize, usize),
}

impl Seen {
    /// The established IKE SAs of a connection that nothing replaces.
    pub fn established(&self, connection: &str) -> Vec<&IkeSaStatus> {
        let is =
            |sa: &&IkeSaStatus| sa.connection.as_deref() == Some(connection) && sa.phase == "established";
        self.ike_sas.iter().filter(is).collect()
    }
}

/// What an engine asks of whoever has its private keys.
pub trait Answers: Send {
    /// Signs, or says why not.
    fn sign(&mut self, request: &SignRequest) -> Result<Vec<u8>, String>;
    /// Goes on with a session of EAP-TLS.
    fn tls(&mut self, request: &TlsRequest) -> TlsOutcome;
}

/// Of an engine whose connections use pre-shared keys.
#[derive(Debug)]
pub struct NoKeys;

impl Answers for NoKeys {
    fn sign(&mut self, request: &SignRequest) -> Result<Vec<u8>, String> {
        Err(format!("there is no key {} here", request.key))
    }
    fn tls(&mut self, request: &TlsRequest) -> TlsOutcome {
        TlsOutcome::Failed {
            alert: Vec::new(),
            why: format!("connection {} has no certificate here", request.connection),
        }
    }
}

/// An engine that runs until this is dropped.
pub struct IkePeer {
    seen: Arc<Mutex<Seen>>,
    commands: Sender<Command>,
    mute: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl IkePeer {
    /// Starts it with its address; its connections use pre-shared keys.
    pub fn start(netns: &Netns, local: Ipv4Addr, config: EngineConfig) -> Result<Self> {
        Self::answering(netns, &[local.into()], config, NoKeys)
    }

    /// Starts it with its addresses, and with whoever has its keys.
    pub fn answering(
        netns: &Netns,
        locals: &[IpAddr],
        config: EngineConfig,
        answers: impl Answers + 'static,
    ) -> Result<Self> {
        let (commands, told) = channel();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let mute = Arc::new(AtomicBool::new(false));
        let thread = {
            let (seen, stop, locals) = (seen.clone(), stop.clone(), locals.to_vec());
            let mute = mute.clone();
            let answers = Box::new(answers);
            netns.thread("ike", move || {
                let sockets = sockets(&locals)?;
                let works = Loop {
                    sockets,
                    engine: Engine::new(config),
                    around: Around::new(0x0100_0000)?,
                    answers,
                    seen,
                    told,
                    mute,
                    kept: Vec::new(),
                };
                works.run(&stop)
            })?
        };
        Ok(Self {
            seen,
            commands,
            mute,
            stop,
            thread: Some(thread),
        })
    }

    /// Gives the engine a command.
    pub fn command(&self, command: Command) -> Result<()> {
        self.commands.send(command).context("the engine has ended")
    }

    /// What it sends is kept until it may speak again, and goes out then.
    pub fn mute(&self, mute: bool) {
        self.mute.store(mute, Ordering::Release);
    }

    /// What it has seen so far.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for something to be seen.
    pub fn wait<T>(&self, what: &str, mut done: impl FnMut(&Seen) -> Option<T>) -> Result<T> {
        wait_for(Duration::from_secs(20), Duration::from_millis(5), || {
            done(&self.seen())
        })
        .with_context(|| {
            let sas = self.seen().ike_sas;
            format!("{what} did not happen: {sas:#?}; it says:\n{}", self.story())
        })
    }

    /// Its Child SAs.
    pub fn children(&self) -> Vec<ChildSaRecord> {
        self.seen().children.into_values().collect()
    }

    /// Its IKE SAs.
    pub fn status(&self) -> Vec<IkeSaStatus> {
        self.seen().ike_sas
    }

    /// All events so far, as text.
    pub fn story(&self) -> String {
        let line = |event: &Event| format!("[{}] {event}", event.kind.name());
        self.seen().events.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    /// What happens from here on is told by [`IkePeer::story`] and [`IkePeer::event`] alone.
    pub fn forget_events(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.events.clear();
    }

    /// Waits for an event of this kind.
    pub fn event(&self, kind: EventKind) -> Result<String> {
        self.wait(kind.name(), |seen| {
            let found = seen.events.iter().find(|event| event.kind == kind);
            found.map(ToString::to_string)
        })
    }

    /// Waits until a child of this name is installed, or none is.
    pub fn child(&self, name: &str, there: bool) -> Result<()> {
        self.wait(&format!("child {name} up: {there}"), |seen| {
            let found = seen.children.values().any(|record| record.child == name);
            (found == there).then_some(())
        })
    }
}

impl Drop for IkePeer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What an engine outside of a cluster asks of its surroundings.
#[derive(Debug)]
pub struct Around {
    random: std::fs::File,
    next_esp: u32,
}

impl Around {
    /// With SPIs for ESP from `first_esp` + 1 on.
    pub fn new(first_esp: u32) -> Result<Self> {
        Ok(Self {
            random: std::fs::File::open("/dev/urandom").context("/dev/urandom")?,
            next_esp: first_esp,
        })
    }

    fn spi(&mut self) -> IkeSpi {
        let mut octets = [0; 8];
        self.random(&mut octets);
        IkeSpi(u64::from_be_bytes(octets) | 1)
    }
}

impl Surroundings for Around {
    fn random(&mut self, out: &mut [u8]) {
        // The system's randomness does not end; a short read would leave zeros, and the exchange would fail.
        let _ = std::io::Read::read_exact(&mut self.random, out);
    }
    fn ike_spi(&mut self, _peer: Option<IkeSpi>, _connection: &str) -> IkeSpi {
        self.spi()
    }
    fn successor_ike_spi(&mut self, _old: IkeSpi) -> IkeSpi {
        self.spi()
    }
    fn esp_spi(&mut self, _ike_spi: IkeSpi) -> Option<EspSpi> {
        self.next_esp += 1;
        Some(EspSpi(self.next_esp))
    }
    fn release_esp_spi(&mut self, _spi: EspSpi) {}
    fn initial_limits(&mut self) -> InitialLimits {
        InitialLimits {
            lease: 4096,
            lease_step: 4096,
            ceiling: 64,
            headroom: 64,
        }
    }
    fn iv_prefix(&self, _ike_spi: IkeSpi) -> (MemberId, Epoch) {
        (MemberId(1), Epoch(1))
    }
    fn unix_time(&self) -> Option<u64> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.ok().map(|since| since.as_secs())
    }
}

/// The ports of IKE at each of these addresses.
fn sockets(locals: &[IpAddr]) -> Result<Vec<(SocketAddr, UdpSocket)>> {
    let all = locals
        .iter()
        .flat_map(|address| PORTS.map(|port| (*address, port)));
    let socket = |(address, port)| {
        let local = SocketAddr::new(address, port);
        let socket = UdpSocket::bind(local).with_context(|| format!("UDP {local}"))?;
        socket.set_nonblocking(true)?;
        Ok((local, socket))
    };
    all.map(socket).collect()
}

struct Loop {
    sockets: Vec<(SocketAddr, UdpSocket)>,
    engine: Engine,
    around: Around,
    answers: Box<dyn Answers>,
    seen: Arc<Mutex<Seen>>,
    told: Receiver<Command>,
    mute: Arc<AtomicBool>,
    kept: Vec<Transmit>,
}

fn now() -> Instant {
    Instant(now_ns())
}

impl Loop {
    fn run(mut self, stop: &AtomicBool) -> Result<()> {
        let mut buffer = vec![0; 65_536];
        while !stop.load(Ordering::Acquire) {
            let polled = self.sockets.iter();
            let polled = polled.map(|(_, socket)| PollFd::new(socket.as_fd(), PollFlags::POLLIN));
            // An interrupted wait is over early, which harms nobody.
            let _ = poll(&mut polled.collect::<Vec<_>>(), PollTimeout::from(5u8));
            while let Ok(command) = self.told.try_recv() {
                self.input(Input::Command { now: now(), command });
            }
            for index in 0..self.sockets.len() {
                while let Ok((length, remote)) = self.sockets[index].1.recv_from(&mut buffer) {
                    let local = self.sockets[index].0;
                    let bytes = match (local.port(), &buffer[..length]) {
                        (NAT_T, [0, 0, 0, 0, rest @ ..]) => rest,
                        // ESP in UDP, or a keepalive.
                        (NAT_T, _) => continue,
                        (_, all) => all,
                    };
                    if bytes.get(16) == Some(&SKF) {
                        self.note(|seen| seen.fragments.1 += 1);
                    }
                    let bytes = bytes.to_vec();
                    let now = now();
                    self.input(Input::Datagram {
                        now,
                        local,
                        remote,
                        bytes: &bytes,
                    });
                }
            }
            if self.engine.next_timeout().is_some_and(|at| at <= now()) {
                self.input(Input::Timeout { now: now() });
            }
            if !self.mute.load(Ordering::Acquire) {
                for transmit in std::mem::take(&mut self.kept) {
                    self.send(transmit);
                }
            }
            let ike_sas = self.engine.status();
            self.note(|seen| seen.ike_sas = ike_sas);
        }
        Ok(())
    }

    fn note(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn input(&mut self, input: Input<'_>) {
        self.engine.handle(input, &mut self.around);
        while let Some(output) = self.engine.poll() {
            match output {
                Output::Commit(commit) => {
                    for change in commit.changes {
                        match change {
                            Change::ChildSa(ChildSaChange::Install { record, .. }) => {
                                self.note(|seen| drop(seen.children.insert(record.spi_in, *record)));
                            }
                            Change::ChildSa(ChildSaChange::Remove { spi_in }) => {
                                self.note(|seen| drop(seen.children.remove(&spi_in)));
                            }
                            Change::ChildSa(ChildSaChange::MovePeer { spi_in, remote }) => {
                                self.note(|seen| {
                                    if let Some(record) = seen.children.get_mut(&spi_in) {
                                        record.remote = remote;
                                    }
                                })
                            }
                            _ => {}
                        }
                    }
                    commit
                        .transmits
                        .into_iter()
                        .for_each(|transmit| self.send(transmit));
                }
                Output::Transmit(transmit) => self.send(transmit),
                Output::Sign(request) => {
                    let input = Input::Signed {
                        now: now(),
                        ike_spi: request.ike_spi,
                        token: request.token,
                        signature: self.answers.sign(&request),
                    };
                    self.engine.handle(input, &mut self.around);
                }
                Output::Tls(request) => {
                    let input = Input::Tls {
                        now: now(),
                        ike_spi: request.ike_spi,
                        token: request.token,
                        outcome: self.answers.tls(&request),
                    };
                    self.engine.handle(input, &mut self.around);
                }
                Output::Compute(_) => unreachable!("this engine computes its key exchanges itself"),
                Output::Event(event) => self.note(|seen| {
                    if event.kind.is_warning() {
                        seen.warnings.push(event.to_string());
                    }
                    seen.events.push(event);
                }),
            }
        }
    }

    fn send(&mut self, transmit: Transmit) {
        if self.mute.load(Ordering::Acquire) {
            return self.kept.push(transmit);
        }
        if transmit.bytes.get(16) == Some(&SKF) {
            self.note(|seen| seen.fragments.0 += 1);
        }
        let socket = self.sockets.iter().find(|(local, _)| *local == transmit.local);
        let Some((_, socket)) = socket else { return };
        // A datagram that is not sent is repeated by the engine's timer.
        let _ = if transmit.local.port() == NAT_T {
            let marked = [&[0; 4][..], &transmit.bytes].concat();
            socket.send_to(&marked, transmit.remote)
        } else {
            socket.send_to(&transmit.bytes, transmit.remote)
        };
    }
}
