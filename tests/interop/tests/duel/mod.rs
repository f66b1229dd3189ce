//! The product's IKEv2 engine on real sockets against strongSwan, one network apart: IKE alone, without a data plane.
// Several test programs share this, and each uses a part of it.
#![allow(dead_code)]

pub mod pki;

use agent::credentials::key::PrivateKey;
use agent::credentials::tls::{Sessions, Settings};
use anyhow::{Context, Result, bail};
use ike::{
    Change, Command, Connection, EndpointConfig, Engine, EngineConfig, Event, EventKind, IkeSaStatus, Input,
    Output, Transmit,
};
use lab::clock::{now_ns, wait_for};
use lab::ike_peer::Around;
use lab::netns::Netns;
use lab::resources::Resources;
use lab::strongswan::{Charon, Daemon};
use model::{ChildSaChange, ChildSaRecord, EspSpi, Instant, SecretBytes, TrafficSelector};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

pub const GATEWAY: &str = "10.77.0.1";
pub const PEER: &str = "10.77.0.2";

#[derive(Default)]
struct Shared {
    commands: Mutex<Vec<Command>>,
    events: Mutex<Vec<Event>>,
    children: Mutex<BTreeMap<EspSpi, ChildSaRecord>>,
    status: Mutex<Vec<IkeSaStatus>>,
    stop: std::sync::atomic::AtomicBool,
}

/// The engine in its namespace.
pub struct Gateway {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

struct Works {
    engine: Engine,
    around: Around,
    sockets: Vec<(SocketAddr, UdpSocket)>,
    keys: HashMap<String, PrivateKey>,
    tls: Sessions,
    shared: Arc<Shared>,
}

fn now() -> Instant {
    Instant(now_ns())
}

impl Works {
    fn run(mut self) -> Result<()> {
        let mut buffer = vec![0; 65_536];
        while !self.shared.stop.load(std::sync::atomic::Ordering::Acquire) {
            let mut fds: Vec<_> = self
                .sockets
                .iter()
                .map(|(_, socket)| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
                .collect();
            poll(&mut fds, PollTimeout::from(10u8)).context("poll")?;
            drop(fds);
            for at in 0..self.sockets.len() {
                while let Ok((length, remote)) = self.sockets[at].1.recv_from(&mut buffer) {
                    let local = self.sockets[at].0;
                    let mut bytes = &buffer[..length];
                    if local.port() == 4500 {
                        match bytes.strip_prefix(&[0; 4]) {
                            Some(ike) => bytes = ike,
                            None => continue,
                        }
                    }
                    let now = now();
                    let input = Input::Datagram {
                        now,
                        local,
                        remote,
                        bytes,
                    };
                    self.engine.handle(input, &mut self.around);
                    self.outputs()?;
                }
            }
            let commands = std::mem::take(&mut *self.shared.commands.lock().expect("lock"));
            for command in commands {
                self.engine
                    .handle(Input::Command { now: now(), command }, &mut self.around);
                self.outputs()?;
            }
            if self.engine.next_timeout().is_some_and(|at| at <= now()) {
                self.engine
                    .handle(Input::Timeout { now: now() }, &mut self.around);
                self.outputs()?;
            }
            *self.shared.status.lock().expect("lock") = self.engine.status();
        }
        Ok(())
    }

    fn outputs(&mut self) -> Result<()> {
        while let Some(output) = self.engine.poll() {
            match output {
                Output::Commit(commit) => {
                    let mut children = self.shared.children.lock().expect("lock");
                    for change in commit.changes {
                        match change {
                            Change::ChildSa(ChildSaChange::Install { record, .. }) => {
                                children.insert(record.spi_in, *record);
                            }
                            Change::ChildSa(ChildSaChange::Remove { spi_in }) => {
                                children.remove(&spi_in);
                            }
                            Change::ChildSa(ChildSaChange::MovePeer { spi_in, remote }) => {
                                if let Some(record) = children.get_mut(&spi_in) {
                                    record.remote = remote;
                                }
                            }
                            _ => {}
                        }
                    }
                    drop(children);
                    commit.transmits.iter().try_for_each(|t| self.send(t))?;
                }
                Output::Transmit(transmit) => self.send(&transmit)?,
                Output::Sign(request) => {
                    let key = self.keys.get(&request.key).context("a key")?;
                    let input = Input::Signed {
                        now: now(),
                        ike_spi: request.ike_spi,
                        token: request.token,
                        signature: key.sign(&request),
                    };
                    self.engine.handle(input, &mut self.around);
                }
                Output::Tls(request) => {
                    let input = Input::Tls {
                        now: now(),
                        ike_spi: request.ike_spi,
                        token: request.token,
                        outcome: self.tls.run(&request),
                    };
                    self.engine.handle(input, &mut self.around);
                }
                Output::Compute(_) => unreachable!("this engine computes its key exchanges itself"),
                Output::Event(event) => self.shared.events.lock().expect("lock").push(event),
            }
        }
        Ok(())
    }

    fn send(&self, transmit: &Transmit) -> Result<()> {
        let socket = self.sockets.iter().find(|(local, _)| *local == transmit.local);
        let (local, socket) = socket.with_context(|| format!("no socket for {}", transmit.local))?;
        let mut bytes = Vec::new();
        if local.port() == 4500 {
            bytes.extend_from_slice(&[0; 4]);
        }
        bytes.extend_from_slice(&transmit.bytes);
        // A peer that is gone is no failure of ours.
        let _ = socket.send_to(&bytes, transmit.remote);
        Ok(())
    }
}

impl Gateway {
    /// Starts the engine with these connections; keys are named as the connections' certificates say.
    pub fn start(
        netns: &Netns,
        connections: Vec<Connection>,
        keys: HashMap<String, PrivateKey>,
    ) -> Result<Self> {
        Self::start_with_tls(netns, connections, keys, Settings::new())
    }

    /// As [`Self::start`], with TLS for EAP-TLS.
    pub fn start_with_tls(
        netns: &Netns,
        connections: Vec<Connection>,
        keys: HashMap<String, PrivateKey>,
        tls: Settings,
    ) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        let thread = netns.thread("gateway", move || {
            let mut sockets = Vec::new();
            let further = connections.iter().flat_map(|c| c.further_locals.iter().copied());
            let addresses: BTreeSet<IpAddr> = further.chain([GATEWAY.parse()?]).collect();
            for address in addresses {
                for port in [500, 4500] {
                    let local = SocketAddr::new(address, port);
                    let socket = UdpSocket::bind(local).with_context(|| format!("{local}"))?;
                    socket.set_nonblocking(true)?;
                    sockets.push((local, socket));
                }
            }
            let config = EngineConfig {
                connections,
                endpoint: EndpointConfig::new(SecretBytes::new(vec![3; 32])),
            };
            Works {
                engine: Engine::new(config),
                around: Around::new(0x0100_0000)?,
                sockets,
                keys,
                tls: Sessions::new(tls),
                shared: theirs,
            }
            .run()
        })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    pub fn command(&self, command: Command) {
        self.shared.commands.lock().expect("lock").push(command);
    }

    pub fn children(&self) -> Vec<ChildSaRecord> {
        self.shared
            .children
            .lock()
            .expect("lock")
            .values()
            .cloned()
            .collect()
    }

    pub fn status(&self) -> Vec<IkeSaStatus> {
        self.shared.status.lock().expect("lock").clone()
    }

    /// All events so far, as text.
    pub fn story(&self) -> String {
        let events = self.shared.events.lock().expect("lock");
        let line = |event: &Event| format!("[{}] {event}", event.kind.name());
        events.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    pub fn forget_events(&self) {
        self.shared.events.lock().expect("lock").clear();
    }

    /// Waits for something.
    pub fn wait<T>(&self, what: &str, done: impl FnMut() -> Option<T>) -> Result<T> {
        let found = wait_for(Duration::from_secs(20), Duration::from_millis(10), done);
        found.with_context(|| format!("{what} did not happen; the gateway says:\n{}", self.story()))
    }

    /// Waits for an event of this kind.
    pub fn event(&self, kind: EventKind) -> Result<String> {
        self.wait(kind.name(), || {
            let events = self.shared.events.lock().expect("lock");
            let found = events.iter().find(|event| event.kind == kind);
            found.map(ToString::to_string)
        })
    }

    /// Waits until a child of this name is installed, or none is.
    pub fn child(&self, name: &str, there: bool) -> Result<()> {
        self.wait(&format!("child {name} up: {there}"), || {
            let found = self.children().iter().any(|record| record.child == name);
            (found == there).then_some(())
        })
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.shared.stop.store(true, std::sync::atomic::Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Two namespaces and a cable.
pub struct Ring {
    pub gateway: Netns,
    pub peer: Netns,
    pub folder: PathBuf,
    pub resources: Resources,
}

impl Ring {
    pub fn new(parent: &Path) -> Result<Self> {
        let resources = Resources::new()?;
        let folder = parent.join(&resources.id);
        std::fs::create_dir_all(&folder)?;
        let netns = |what: &str| -> Result<Netns> {
            let name = resources.name(what);
            resources.note_netns(&name)?;
            lab::cmd::run(&["ip", "netns", "add", &name])?;
            let netns = Netns { name };
            netns.sysctl(&[
                "net.ipv6.conf.all.disable_ipv6=1",
                "net.ipv6.conf.default.disable_ipv6=1",
            ])?;
            netns.ip("link set lo up")?;
            Ok(netns)
        };
        let (gateway, peer) = (netns("gw")?, netns("peer")?);
        gateway.ip(&format!(
            "link add eth0 type veth peer name eth0 netns {}",
            peer.name
        ))?;
        gateway.ip(&format!("addr add {GATEWAY}/24 dev eth0\nlink set eth0 up"))?;
        // strongSwan wants an address in its own selectors, and a way to the gateway's.
        peer.ip(&format!(
            "addr add {PEER}/24 dev eth0\nlink set eth0 up\naddr add 10.1.0.1/24 dev lo\nroute add default via {GATEWAY}"
        ))?;
        Ok(Self {
            gateway,
            peer,
            folder,
            resources,
        })
    }

    /// Where the peer's certificates (`x509`), authorities (`x509ca`), keys (`private`) go before it is started.
    pub fn peer_file(&self, kind: &str, name: &str, text: &str) -> Result<()> {
        let folder = self.folder.join("peer/swanctl").join(kind);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(name), text).context("a file of the peer's")
    }

    /// Starts strongSwan.
    pub fn charon(&self, swanctl_conf: &str, daemon: Daemon<'_>) -> Result<Charon> {
        Charon::start_daemon(
            &self.peer,
            &self.folder.join("peer"),
            &self.resources.folder,
            &self.resources,
            swanctl_conf,
            daemon,
        )
    }
}

pub fn network(text: &str) -> TrafficSelector {
    let (address, len) = text.split_once('/').expect("a prefix length");
    let first: IpAddr = address.parse().expect("an address");
    let len: u32 = len.parse().expect("a length");
    let IpAddr::V4(v4) = first else {
        panic!("IPv4 only")
    };
    let host = u32::MAX.checked_shr(len).unwrap_or(0);
    TrafficSelector {
        first,
        last: IpAddr::V4((u32::from(v4) | host).into()),
        protocol: 0,
        first_port: 0,
        last_port: 65535,
    }
}

/// Runs `swanctl --initiate`, which must fail.
pub fn must_fail(peer: &Charon, child: &str) -> Result<()> {
    match peer.initiate(child) {
        Ok(()) => bail!("{child} came up"),
        Err(_) => Ok(()),
    }
}
