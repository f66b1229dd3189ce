//! Two engines in one process, virtual time, and a network that a test can disturb.
// Several test programs share this world, and each uses a part of it.
#![allow(dead_code)]

pub mod lives;
pub mod pki;
mod rng;
pub mod scripted;

use ike::{
    Change, ChildConfig, Command, Connection, EndpointConfig, Engine, EngineConfig, Event, EventKind,
    Identity, IkeSaChange, IkeSaStatus, Input, Output, Proposal, Resource, SignRequest, Surroundings,
    Transmit,
};
use model::{
    ChildSaChange, ChildSaRecord, Epoch, EspSpi, EspSuite, IkeSpi, InitialLimits, Instant, MemberId,
    OutboundUse, SecretBytes, TrafficSelector,
};
pub use rng::Rng;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

pub struct Around {
    pub rng: Rng,
    pub member: u8,
    pub epoch: u64,
    pub next_esp: u32,
    pub allocated: BTreeSet<EspSpi>,
    /// 0xff... or 0: fills nonces so that a test decides who has the lowest one.
    pub nonce_bias: Option<u8>,
    pub out_of_spis: bool,
    /// It is certain that what the engine does not know is nowhere.
    pub may_show: bool,
    pub may_initiate: bool,
    /// SPIs left that members have reserved for their resources, where each went, and who takes none now.
    pub reserved: usize,
    pub on_resource: BTreeMap<EspSpi, Resource>,
    pub gone: BTreeSet<Resource>,
    /// Outbound numbers that were raised, if that is possible here.
    pub advanced: Option<Vec<(EspSpi, u64)>>,
    /// Seconds since 1970.
    pub unix_time: Option<u64>,
    pub pool_share: Option<ike::PoolShare>,
    pub older_member: bool,
}

impl Surroundings for Around {
    fn random(&mut self, out: &mut [u8]) {
        for octet in out.iter_mut() {
            *octet = self.rng.next() as u8;
        }
        if let (Some(bias), 32) = (self.nonce_bias, out.len()) {
            out[0] = bias;
        }
    }
    fn ike_spi(&mut self, _peer: Option<IkeSpi>, _connection: &str) -> IkeSpi {
        IkeSpi((7 << 56) | (u64::from(self.member) << 48) | (self.rng.next() >> 16))
    }
    fn successor_ike_spi(&mut self, old: IkeSpi) -> IkeSpi {
        IkeSpi((old.0 & (0xff << 56)) | (u64::from(self.member) << 48) | (self.rng.next() >> 16))
    }
    fn esp_spi(&mut self, _ike_spi: IkeSpi) -> Option<EspSpi> {
        if self.out_of_spis {
            return None;
        }
        self.next_esp += 1;
        self.allocated.insert(EspSpi(self.next_esp));
        Some(EspSpi(self.next_esp))
    }
    fn resource_esp_spi(&mut self, ike_spi: IkeSpi, resource: Resource) -> Option<EspSpi> {
        self.reserved = self.reserved.checked_sub(1)?;
        let spi = self.esp_spi(ike_spi)?;
        self.on_resource.insert(spi, resource);
        Some(spi)
    }
    fn has_resource(&self, _ike_spi: IkeSpi, resource: Resource) -> bool {
        !self.gone.contains(&resource)
    }
    fn members_know(&self, suite: EspSuite) -> bool {
        suite.is_aead() || !self.older_member
    }
    fn release_esp_spi(&mut self, spi: EspSpi) {
        assert!(
            self.allocated.remove(&spi),
            "SPI {spi} released twice or never allocated"
        );
    }
    fn initial_limits(&mut self) -> InitialLimits {
        InitialLimits {
            lease: 4096,
            lease_step: 4096,
            ceiling: 64,
            headroom: 64,
        }
    }
    fn iv_prefix(&self, _: IkeSpi) -> (MemberId, Epoch) {
        (MemberId(self.member), Epoch(self.epoch))
    }
    fn may_show_qcd(&self, _spi: IkeSpi) -> bool {
        self.may_show
    }
    fn advance_outbound(&mut self, spi_in: EspSpi, delta: u64) -> bool {
        let advanced = self.advanced.as_mut();
        advanced.map(|list| list.push((spi_in, delta))).is_some()
    }
    fn unix_time(&self) -> Option<u64> {
        self.unix_time
    }
    fn pool_share(&self, _ike_spi: IkeSpi) -> Option<ike::PoolShare> {
        self.pool_share
    }
    fn may_initiate(&self, _connection: &str) -> bool {
        self.may_initiate
    }
}

/// TLS as a test wants it.
pub type Tls = Box<dyn FnMut(&ike::TlsRequest) -> ike::TlsOutcome>;

pub struct Side {
    pub name: &'static str,
    pub engine: Engine,
    pub around: Around,
    /// What a standby knows: records and Child SAs.
    pub journal: BTreeMap<IkeSpi, SecretBytes>,
    pub children: BTreeMap<EspSpi, ChildSaRecord>,
    /// Outbound SA (by inbound SPI) per child name.
    pub outbound: BTreeMap<String, EspSpi>,
    /// Child SAs that are bound to a CPU, and whether it uses them outbound.
    pub bound: BTreeMap<EspSpi, bool>,
    /// Child SAs that may have siblings.
    pub shared: BTreeSet<EspSpi>,
    pub events: Vec<Event>,
    /// All messages that left, as octets.
    pub sent: Vec<Vec<u8>>,
    pub changes: Vec<String>,
    /// Private keys, by the name that requests give.
    pub keys: BTreeMap<String, std::rc::Rc<pki::Key>>,
    /// Requests are not answered but kept.
    pub hold_signatures: bool,
    pub to_sign: Vec<SignRequest>,
    /// What TLS says. Without it messages for TLS are lost.
    pub tls: Option<Tls>,
    /// Key exchanges are not computed but kept.
    pub hold_exchanges: bool,
    pub to_compute: Vec<ike::ComputeRequest>,
    /// The message under each (initiator's SPI, direction, IV): none may come twice with another message.
    ivs: BTreeMap<(IkeSpi, bool, Vec<u8>), Vec<u8>>,
}

#[derive(Clone)]
pub struct Packet {
    pub to: usize,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub bytes: Vec<u8>,
}

pub struct World {
    pub now: Instant,
    pub sides: [Side; 2],
    pub net: VecDeque<Packet>,
    /// Translates (side, address as the sender knows itself) to what the peer sees.
    pub nat: BTreeMap<SocketAddr, SocketAddr>,
    pub trace: Vec<String>,
}

pub const A: usize = 0;
pub const B: usize = 1;

pub fn address(side: usize) -> std::net::IpAddr {
    [[192, 0, 2, 1], [198, 51, 100, 1]][side].into()
}

pub fn net(octets: [u8; 3]) -> TrafficSelector {
    let [a, b, c] = octets;
    TrafficSelector {
        first: [a, b, c, 0].into(),
        last: [a, b, c, 255].into(),
        protocol: 0,
        first_port: 0,
        last_port: 65535,
    }
}

/// A connection `t` between the two sides with one child `c`, no timers but retransmission.
pub fn connection(side: usize) -> Connection {
    let ids = ["a.example", "b.example"];
    let nets = [net([10, 1, 0]), net([10, 2, 0])];
    let psk = SecretBytes::new(b"a secret that both know".to_vec());
    let mut connection = Connection::new("t", address(side), Identity::parse(ids[side]), psk);
    connection.remotes = vec![address(1 - side)];
    connection.remote_id = Some(Identity::parse(ids[1 - side]));
    connection.dpd_delay = None;
    connection.ike_rekey_time = None;
    connection.child_rekey_time = None;
    connection.rekey_jitter = Duration::ZERO;
    connection.children = vec![ChildConfig::new(
        "c",
        vec![nets[side].clone()],
        vec![nets[1 - side].clone()],
    )];
    connection
}

pub fn config(connections: Vec<Connection>) -> EngineConfig {
    EngineConfig {
        connections,
        endpoint: EndpointConfig::new(SecretBytes::new(vec![9; 32])),
    }
}

pub fn ike(text: &str) -> Vec<Proposal> {
    text.split(',')
        .map(|one| Proposal::parse_ike(one).unwrap())
        .collect()
}

pub fn esp(text: &str) -> Vec<Proposal> {
    text.split(',')
        .map(|one| Proposal::parse_esp(one).unwrap())
        .collect()
}

impl World {
    pub fn new(seed: u64) -> Self {
        Self::with(seed, |_, _| {})
    }

    /// `adjust` changes the connection of each side.
    pub fn with(seed: u64, adjust: impl Fn(usize, &mut Connection)) -> Self {
        Self::with_config(seed, |side| {
            let mut connection = connection(side);
            adjust(side, &mut connection);
            config(vec![connection])
        })
    }

    pub fn with_config(seed: u64, config: impl Fn(usize) -> EngineConfig) -> Self {
        let side = |index: usize| Side {
            name: ["a", "b"][index],
            engine: lives::engine(config(index)),
            around: Around {
                rng: Rng(seed ^ (index as u64 + 1).wrapping_mul(0xdead_beef_1234_5678)),
                member: 1,
                epoch: 1,
                next_esp: [0x0100_0000, 0x0200_0000][index],
                allocated: BTreeSet::new(),
                nonce_bias: None,
                out_of_spis: false,
                may_show: false,
                may_initiate: true,
                reserved: 64,
                on_resource: BTreeMap::new(),
                gone: BTreeSet::new(),
                advanced: None,
                unix_time: None,
                pool_share: Some(ike::PoolShare::WHOLE),
                older_member: false,
            },
            journal: BTreeMap::new(),
            children: BTreeMap::new(),
            outbound: BTreeMap::new(),
            bound: BTreeMap::new(),
            shared: BTreeSet::new(),
            events: Vec::new(),
            sent: Vec::new(),
            changes: Vec::new(),
            keys: BTreeMap::new(),
            hold_signatures: false,
            to_sign: Vec::new(),
            tls: None,
            hold_exchanges: false,
            to_compute: Vec::new(),
            ivs: BTreeMap::new(),
        };
        Self {
            now: Instant::from_millis(1_000),
            sides: [side(A), side(B)],
            net: VecDeque::new(),
            nat: BTreeMap::new(),
            trace: Vec::new(),
        }
    }

    pub fn command(&mut self, side: usize, command: Command) {
        let s = &mut self.sides[side];
        s.engine.handle(
            Input::Command {
                now: self.now,
                command,
            },
            &mut s.around,
        );
        self.drain(side, true);
    }

    pub fn initiate(&mut self, side: usize) {
        self.command(
            side,
            Command::Initiate {
                connection: "t".into(),
            },
        );
    }

    /// Moves outputs to journal and network. `send` false: the member dies after the commit, before the send.
    pub fn drain(&mut self, side: usize, send: bool) {
        while let Some(output) = self.sides[side].engine.poll() {
            match output {
                Output::Commit(commit) => {
                    assert!(!commit.changes.is_empty());
                    for change in commit.changes {
                        self.sides[side].apply(change);
                    }
                    for transmit in commit.transmits {
                        self.transmit(side, transmit, send);
                    }
                }
                Output::Transmit(transmit) => self.transmit(side, transmit, send),
                Output::Sign(request) => {
                    self.trace.push(format!(
                        "   {} is to sign with {}",
                        self.sides[side].name, request.key
                    ));
                    self.sides[side].to_sign.push(request);
                    if !self.sides[side].hold_signatures {
                        self.sign(side);
                    }
                }
                Output::Tls(request) => {
                    let now = self.now;
                    let s = &mut self.sides[side];
                    let Some(tls) = &mut s.tls else { continue };
                    let input = ike::Input::Tls {
                        now,
                        ike_spi: request.ike_spi,
                        token: request.token,
                        outcome: tls(&request),
                    };
                    s.engine.handle(input, &mut s.around);
                }
                Output::Compute(request) => {
                    self.sides[side].to_compute.push(request);
                    if !self.sides[side].hold_exchanges {
                        self.compute(side);
                    }
                }
                Output::Event(event) => {
                    self.trace.push(format!(
                        "   {}: [{}] {event}",
                        self.sides[side].name,
                        event.kind.name()
                    ));
                    self.sides[side].events.push(event);
                }
            }
        }
    }

    fn transmit(&mut self, side: usize, transmit: Transmit, send: bool) {
        self.sides[side].remember_iv(&transmit.bytes);
        if !send {
            self.trace.push(format!(
                "   {} dies before it sends {}",
                self.sides[side].name,
                show(&transmit.bytes)
            ));
            return;
        }
        let arrow = if side == A { "a ---> b" } else { "a <--- b" };
        self.trace.push(format!("{arrow} {}", show(&transmit.bytes)));
        self.sides[side].sent.push(transmit.bytes.clone());
        let seen = self.nat.get(&transmit.local).copied().unwrap_or(transmit.local);
        let back = |address: SocketAddr| {
            self.nat
                .iter()
                .find(|(_, outside)| **outside == address)
                .map_or(address, |(inside, _)| *inside)
        };
        let local = back(transmit.remote);
        self.net.push_back(Packet {
            to: 1 - side,
            local,
            remote: seen,
            bytes: transmit.bytes,
        });
    }

    pub fn deliver(&mut self, packet: Packet) {
        self.deliver_then(packet, true);
    }

    pub fn deliver_then(&mut self, packet: Packet, send: bool) {
        let s = &mut self.sides[packet.to];
        let input = Input::Datagram {
            now: self.now,
            local: packet.local,
            remote: packet.remote,
            bytes: &packet.bytes,
        };
        s.engine.handle(input, &mut s.around);
        self.drain(packet.to, send);
    }

    /// Delivers the oldest message.
    pub fn step(&mut self) -> bool {
        match self.net.pop_front() {
            Some(packet) => {
                self.deliver(packet);
                true
            }
            None => false,
        }
    }

    /// Delivers until the network is empty.
    pub fn settle(&mut self) {
        let mut steps = 0;
        while self.step() {
            steps += 1;
            assert!(
                steps < 10_000,
                "the two sides never stop talking\n{}",
                self.story()
            );
        }
    }

    /// Lets time pass in steps of the engines' own timers, delivering all that is sent.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..100_000 {
            self.settle();
            let next = self
                .sides
                .iter()
                .filter_map(|side| side.engine.next_timeout())
                .min();
            match next {
                Some(at) if at <= end => {
                    self.now = self.now.max(at);
                    self.timeout();
                }
                _ => {
                    self.now = end;
                    return;
                }
            }
        }
        panic!("time stands still\n{}", self.story());
    }

    /// Both engines look at their timers.
    pub fn timeout(&mut self) {
        for side in [A, B] {
            let s = &mut self.sides[side];
            s.engine.handle(Input::Timeout { now: self.now }, &mut s.around);
            self.drain(side, true);
        }
    }

    pub fn status(&self, side: usize) -> Vec<IkeSaStatus> {
        self.sides[side].engine.status()
    }

    /// The only IKE SA.
    pub fn only(&self, side: usize) -> IkeSaStatus {
        let mut all = self.status(side);
        assert_eq!(all.len(), 1, "side {side}: {all:#?}\n{}", self.story());
        all.remove(0)
    }

    pub fn spi_in(&self, side: usize) -> EspSpi {
        let sa = self.only(side);
        assert_eq!(sa.children.len(), 1, "{sa:#?}\n{}", self.story());
        sa.children[0].spi_in
    }

    pub fn has_event(&self, side: usize, kind: EventKind) -> bool {
        self.sides[side].events.iter().any(|event| event.kind == kind)
    }

    pub fn event(&self, side: usize, kind: EventKind) -> &Event {
        let found = self.sides[side].events.iter().find(|event| event.kind == kind);
        found.unwrap_or_else(|| panic!("no event {kind:?} at side {side}\n{}", self.story()))
    }

    pub fn story(&self) -> String {
        self.trace.join("\n")
    }

    /// One IKE SA and the expected Child SAs on both sides, with the same keys, and traffic on the same pair.
    pub fn assert_up(&self, children: usize) {
        let (a, b) = (self.only(A), self.only(B));
        assert_eq!(
            (a.phase, b.phase),
            ("established", "established"),
            "{}",
            self.story()
        );
        assert_eq!((a.spi, a.peer_spi), (b.peer_spi, b.spi));
        assert_eq!(a.suite, b.suite);
        assert_eq!(a.next_send, b.next_receive, "{}", self.story());
        assert_eq!(b.next_send, a.next_receive, "{}", self.story());
        assert_eq!(a.children.len(), children, "{}", self.story());
        self.assert_children_match();
    }

    pub fn assert_children_match(&self) {
        let [a, b] = &self.sides;
        assert_eq!(a.children.len(), b.children.len(), "{}", self.story());
        for ours in a.children.values() {
            let theirs = b
                .children
                .get(&ours.spi_out)
                .unwrap_or_else(|| panic!("no pair\n{}", self.story()));
            assert_eq!(theirs.spi_out, ours.spi_in);
            assert!(ours.key_in.expose() == theirs.key_out.expose(), "keys differ");
            assert!(ours.key_out.expose() == theirs.key_in.expose(), "keys differ");
            assert!(ours.key_in.expose() != ours.key_out.expose());
            assert_eq!(ours.key_in.len(), ours.suite.material_len());
            assert_eq!(
                (ours.suite, ours.form, ours.udp_encap),
                (theirs.suite, theirs.form, theirs.udp_encap)
            );
            assert_eq!(
                (&ours.ts_local, &ours.ts_remote),
                (&theirs.ts_remote, &theirs.ts_local)
            );
        }
        for side in &self.sides {
            let listed: BTreeSet<EspSpi> = side
                .engine
                .status()
                .iter()
                .flat_map(|sa| sa.children.iter().map(|c| c.spi_in))
                .collect();
            let installed: BTreeSet<EspSpi> = side.children.keys().copied().collect();
            assert_eq!(
                listed,
                installed,
                "{}: engine and database differ\n{}",
                side.name,
                self.story()
            );
            assert_eq!(
                side.around.allocated,
                installed,
                "{}: SPIs leak\n{}",
                side.name,
                self.story()
            );
            for child in side.children.values() {
                let outbound = side.outbound.get(&child.child);
                assert!(
                    outbound.is_some_and(|spi| side.children.contains_key(spi)),
                    "{}: no outbound SA for {}\n{}",
                    side.name,
                    child.child,
                    self.story()
                );
            }
            let known: BTreeSet<IkeSpi> = side.engine.export().iter().map(|(spi, _)| *spi).collect();
            let journalled: BTreeSet<IkeSpi> = side.journal.keys().copied().collect();
            assert_eq!(
                known,
                journalled,
                "{}: engine and journal differ\n{}",
                side.name,
                self.story()
            );
        }
    }

    pub fn assert_all_gone(&self) {
        for side in [A, B] {
            assert!(
                self.status(side).is_empty(),
                "{:#?}\n{}",
                self.status(side),
                self.story()
            );
            assert!(self.sides[side].children.is_empty(), "{}", self.story());
            assert!(
                self.sides[side].around.allocated.is_empty(),
                "SPIs leak\n{}",
                self.story()
            );
        }
    }
}

impl Side {
    fn apply(&mut self, change: Change) {
        match change {
            Change::IkeSa(IkeSaChange::Put { spi, record }) => {
                self.journal.insert(spi, record);
            }
            Change::IkeSa(IkeSaChange::Remove { spi }) => {
                assert!(
                    self.journal.remove(&spi).is_some(),
                    "{}: removed an IKE SA that was never put",
                    self.name
                );
            }
            Change::ChildSa(ChildSaChange::Install {
                record,
                outbound,
                replaces,
            }) => {
                assert!(self.around.allocated.contains(&record.spi_in));
                if let Some(old) = replaces {
                    assert!(
                        self.children.contains_key(&old),
                        "{}: replaces nothing",
                        self.name
                    );
                }
                self.changes
                    .push(format!("install {} {outbound:?}", record.spi_in));
                if outbound == OutboundUse::Now {
                    self.outbound.insert(record.child.clone(), record.spi_in);
                }
                assert!(self.children.insert(record.spi_in, *record).is_none());
            }
            Change::ChildSa(ChildSaChange::UseOutbound { spi_in }) => {
                self.changes.push(format!("use {spi_in}"));
                if let Some(used) = self.bound.get_mut(&spi_in) {
                    assert!(!std::mem::replace(used, true), "{}: used already", self.name);
                    return;
                }
                let child = self.children[&spi_in].child.clone();
                self.outbound.insert(child, spi_in);
            }
            Change::ChildSa(ChildSaChange::MovePeer { spi_in, remote }) => {
                self.children.get_mut(&spi_in).expect("installed").remote = remote;
            }
            Change::ChildSa(ChildSaChange::MoveIkeSa { spi_in, ike_spi }) => {
                self.children.get_mut(&spi_in).expect("installed").ike_spi = ike_spi;
            }
            Change::ChildSa(ChildSaChange::Share { spi_in }) => {
                assert!(self.children.contains_key(&spi_in));
                assert!(self.shared.insert(spi_in), "{}: shared already", self.name);
            }
            Change::ChildSa(ChildSaChange::Bind { spi_in, now }) => {
                assert!(self.children.contains_key(&spi_in) && !self.shared.contains(&spi_in));
                assert!(
                    self.bound.insert(spi_in, now).is_none(),
                    "{}: bound already",
                    self.name
                );
            }
            Change::ChildSa(ChildSaChange::Remove { spi_in }) => {
                self.bound.remove(&spi_in);
                self.shared.remove(&spi_in);
                self.changes.push(format!("remove {spi_in}"));
                self.children.remove(&spi_in).expect("installed");
                assert!(self.around.allocated.remove(&spi_in));
            }
        }
    }

    /// No IV twice under one key, unless the whole message is a repetition.
    fn remember_iv(&mut self, bytes: &[u8]) {
        if bytes.get(16) == Some(&46) {
            let spi = IkeSpi(u64::from_be_bytes(bytes[..8].try_into().unwrap()));
            let key = (spi, bytes[19] & 8 != 0, bytes[32..40].to_vec());
            // A message that was committed but not sent before a takeover comes again: the same octets then.
            let known = self.ivs.entry(key).or_insert_with(|| bytes.to_vec());
            assert!(known == bytes, "{}: an IV was used twice", self.name);
        }
    }
}

/// One line about a message.
pub fn show(bytes: &[u8]) -> String {
    let Ok(message) = ike_wire::Message::parse(bytes) else {
        return format!("{} octets", bytes.len());
    };
    let header = message.header;
    let kind = if header.flags.response {
        "response"
    } else {
        "request"
    };
    let notifies: Vec<_> = message
        .payloads
        .notifies()
        .filter(|n| n.kind.0 < 16384 || n.kind.0 == 16390)
        .collect();
    let notifies: String = notifies.iter().map(|n| format!(" N({})", n.kind)).collect();
    format!(
        "{} {kind} {}{notifies} [{} octets]",
        header.exchange,
        header.message_id,
        bytes.len()
    )
}
