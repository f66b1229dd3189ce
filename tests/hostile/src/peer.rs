//! A peer that has the keys of the IKE SA (anybody has, after IKE_SA_INIT) and puts what it likes behind them: every payload in every
//! exchange, before and after it has proved who it is.

use crate::choices::Choices;
use crate::world::scripted::{Peer, SPI, esp, header, selectors};
use crate::world::{B, Packet, config, connection, net, pki, scripted};
use crypto::DhGroup;
use crypto::mschapv2::{self, nt_response};
use ike::auth::eap::Users;
use ike::auth::trust::Trust;
use ike::{ChildConfig, Command, Connection, Input, Pool, RemoteAuth, Resource, TlsOutcome};
use ike_wire::{
    ConfigAttribute, ConfigAttributeType, ConfigType, Configuration, Delete, DhTransform, Eap, EapCode,
    EapType, ExchangeType, Flags, Fragment, Header, KeyExchange, Message, Notify, NotifyType, Payload,
    PayloadList, PayloadType, Proposal, ProtocolId, SecurityAssociation, TransformType, encode_chain,
    encode_message, encode_skf_prefix, parse_chain,
};
use model::{EspSpi, IkeSpi, SaMode, SecretBytes};
use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Steps of one run at most.
const STEPS: usize = 40;
/// Messages that were sent and may be sent again.
const KEPT: usize = 8;

/// Established before the first step.
pub const ESTABLISHED: u8 = 0x80;
/// How the peer is to prove who it is: two bits.
pub const PSK: u8 = 0;
/// By a user's password.
pub const EAP_MSCHAPV2: u8 = 1;
/// By a certificate within TLS.
pub const EAP_TLS: u8 = 2;
/// By a certificate.
pub const CERTIFICATE: u8 = 3;

/// A peer and what it has heard.
struct Hostile {
    peer: Peer,
    sent: Vec<Vec<u8>>,
    /// Requests of the engine's that nobody has answered.
    asked: Vec<Header>,
    /// The last EAP request.
    eap: Option<Eap>,
    /// The engine's SPIs of Child SAs, and of successors of the IKE SA.
    esp_spis: Vec<EspSpi>,
    ike_spis: Vec<IkeSpi>,
    cookie2: Vec<u8>,
}

/// The first two octets say how the gateway is configured and what the peer offers; each further one is a step.
pub fn peer(octets: &[u8]) {
    let mut choices = Choices::new(octets);
    let (Some(shape), Some(offers)) = (choices.next(), choices.next()) else {
        return;
    };
    let mut hostile = Hostile::new(shape, offers);
    for _ in 0..STEPS {
        let Some(step) = choices.next() else { break };
        hostile.step(step, &mut choices);
    }
    hostile.end();
}

/// One for all runs: making it takes a signature.
fn trust() -> Arc<Trust> {
    static TRUST: OnceLock<Arc<Trust>> = OnceLock::new();
    let made = || Arc::new(Trust::new(&[pki::Ca::root("CA").der], &[], false).expect("an authority"));
    Arc::clone(TRUST.get_or_init(made))
}

fn gateway(shape: u8) -> Connection {
    let mut connection = connection(B);
    match shape & 3 {
        EAP_MSCHAPV2 => {
            let password = SecretBytes::new(b"in wonderland".to_vec());
            let users = [("alice".to_owned(), password)];
            connection.remote_auth = RemoteAuth::EapMsChapV2(Arc::new(Users::new(users.into())));
            connection.remote_id = None;
        }
        EAP_TLS => {
            connection.remote_auth = RemoteAuth::EapTls(trust());
            connection.remote_id = None;
        }
        CERTIFICATE => {
            connection.remote_auth = RemoteAuth::Certificate(trust());
            connection.remote_id = None;
        }
        _ => {}
    }
    if shape & 4 != 0 {
        connection
            .pools
            .extend(Pool::of_network("p", [10, 9, 0, 0].into(), 28));
        connection.pools.extend(Pool::of_network(
            "p6",
            "2001:db8::".parse().expect("an address"),
            124,
        ));
        connection.dns = vec![[10, 2, 0, 53].into()];
        connection.dns_domains = vec!["example.org".to_owned()];
    }
    if shape & 8 != 0 {
        connection.resources = vec![Resource::of_owner(0), Resource::of_owner(1)];
    }
    if shape & 0x10 != 0 {
        let mut child = ChildConfig::new("transport", vec![], vec![]);
        child.mode = SaMode::Transport;
        child.local_ts = vec![host(crate::world::address(B))];
        child.remote_ts = vec![host(crate::world::address(1 - B))];
        connection.children.push(child);
    }
    if shape & 0x20 != 0 {
        connection.window = 4;
        let child = ChildConfig::new("d", vec![net([10, 2, 9])], vec![net([10, 1, 9])]);
        connection.children.push(child);
    }
    if shape & 0x40 != 0 {
        connection.ike_proposals =
            crate::world::ike("aes128gcm16-prfsha256-x25519,aes128gcm16-prfsha256-x25519-ke1_mlkem768");
        connection.ike_rekey_time = Some(Duration::from_secs(60));
        connection.child_rekey_time = Some(Duration::from_secs(30));
        connection.dpd_delay = Some(Duration::from_secs(20));
    }
    connection
}

fn host(address: std::net::IpAddr) -> model::TrafficSelector {
    model::TrafficSelector {
        first: address,
        last: address,
        protocol: 0,
        first_port: 0,
        last_port: 65535,
    }
}

/// What the first message says beside what it must.
fn offered(offers: u8) -> Vec<Payload> {
    let kinds = [
        NotifyType::IKEV2_FRAGMENTATION_SUPPORTED,
        NotifyType::REDIRECT_SUPPORTED,
        NotifyType::CHILDLESS_IKEV2_SUPPORTED,
        NotifyType::INTERMEDIATE_EXCHANGE_SUPPORTED,
        NotifyType::USE_PPK,
        NotifyType::SIGNATURE_HASH_ALGORITHMS,
        NotifyType::NAT_DETECTION_SOURCE_IP,
        NotifyType::NAT_DETECTION_DESTINATION_IP,
    ];
    let offered = kinds.iter().enumerate().filter(|(bit, _)| offers >> bit & 1 != 0);
    offered
        .map(|(_, kind)| {
            let data = match *kind {
                NotifyType::SIGNATURE_HASH_ALGORITHMS => vec![0, 2, 0, 3, 0, 4, 0, 5],
                NotifyType::NAT_DETECTION_SOURCE_IP | NotifyType::NAT_DETECTION_DESTINATION_IP => vec![1; 20],
                _ => Vec::new(),
            };
            Payload::Notify(Notify::new(*kind, data))
        })
        .collect()
}

fn exchange_type(octet: u8) -> ExchangeType {
    match octet % 8 {
        0 | 1 => ExchangeType::IKE_AUTH,
        2 | 3 => ExchangeType::CREATE_CHILD_SA,
        4 => ExchangeType::INFORMATIONAL,
        5 => ExchangeType::IKE_INTERMEDIATE,
        6 => ExchangeType::IKE_FOLLOWUP_KE,
        _ => ExchangeType(octet),
    }
}

impl Hostile {
    fn new(shape: u8, offers: u8) -> Self {
        let mut peer = Peer::with(config(vec![gateway(shape)]), offered(offers));
        peer.world.sides[B].tls = (shape & 3 == EAP_TLS).then(tls);
        let mut hostile = Self {
            peer,
            sent: Vec::new(),
            asked: Vec::new(),
            eap: None,
            esp_spis: Vec::new(),
            ike_spis: Vec::new(),
            cookie2: Vec::new(),
        };
        if shape & ESTABLISHED != 0 {
            let mut payloads = hostile.peer.auth(b"a secret that both know");
            payloads.push(esp(0x1000, 20, Some(256)));
            payloads.extend(selectors());
            let (first, inner) = encode_chain(&payloads).expect("payloads of ours");
            hostile.request(ExchangeType::IKE_AUTH, first, &inner);
        }
        hostile
    }

    fn step(&mut self, step: u8, choices: &mut Choices<'_>) {
        match step & 0x0f {
            0..=4 => {
                let exchange = exchange_type(step >> 4);
                let (first, inner) = self.payloads(choices);
                self.request(exchange, first, &inner);
            }
            5 | 6 => {
                if !self.asked.is_empty() {
                    let at = usize::from(step >> 4) % self.asked.len();
                    let request = self.asked.remove(at);
                    let (first, inner) = self.payloads(choices);
                    let flags = Flags {
                        initiator: true,
                        version: false,
                        response: true,
                    };
                    let bytes = self.peer.seal_as(Header { flags, ..request }, first, &inner);
                    self.deliver(bytes);
                }
            }
            7 => self.pass(Duration::from_millis(
                u64::from(choices.next().unwrap_or(1)) * 100,
            )),
            8 => self.command(choices),
            9 => {
                self.peer.world.take_over(B);
                self.listen();
            }
            10 => {
                let at = usize::from(choices.next().unwrap_or(0));
                if let Some(bytes) = self.sent.get(at % KEPT).cloned() {
                    self.deliver(bytes);
                }
            }
            11 => {
                let first = PayloadType(choices.next().unwrap_or(0));
                let inner = choices.some().to_vec();
                self.request(exchange_type(step >> 4), first, &inner);
            }
            12 => self.first_message(choices),
            13 => self.odd_header(step, choices),
            14 => self.fragments(step, choices),
            _ => {
                // Something without keys, from elsewhere.
                let bytes = choices.some().to_vec();
                self.deliver_from("203.0.113.9:4500", bytes);
            }
        }
    }

    fn request(&mut self, exchange: ExchangeType, first: PayloadType, inner: &[u8]) {
        let id = self.peer.next;
        let bytes = self.peer.seal(exchange, id, first, inner);
        self.deliver(bytes);
    }

    fn deliver(&mut self, bytes: Vec<u8>) {
        self.sent.push(bytes.clone());
        if self.sent.len() > KEPT {
            self.sent.remove(0);
        }
        let packet = Packet {
            to: B,
            local: "198.51.100.1:500".parse().expect("an address"),
            remote: self.peer.address,
            bytes,
        };
        self.peer.world.deliver(packet);
        self.listen();
    }

    fn deliver_from(&mut self, remote: &str, bytes: Vec<u8>) {
        self.peer.world.deliver(Packet {
            to: B,
            local: "198.51.100.1:4500".parse().expect("an address"),
            remote: remote.parse().expect("an address"),
            bytes,
        });
        self.listen();
    }

    /// Everything that the engine says can be read.
    fn listen(&mut self) {
        while let Some(packet) = self.peer.world.net.pop_front() {
            let message = Message::parse(&packet.bytes).expect("the engine's message can be read");
            let (header, key) = (message.header, self.peer.keys.responder_key().expect("a key"));
            let ours = (header.spi_i, header.spi_r) == (self.peer.spi, self.peer.spi_r);
            let Some(protected) = message.protected.filter(|_| ours) else {
                continue;
            };
            if protected.fragment.is_some() {
                self.answered(header);
                continue;
            }
            let inner = key.open(protected.prefix(&packet.bytes), protected.sealed(&packet.bytes));
            let inner = inner.expect("the engine's message is authentic");
            let payloads = parse_chain(protected.first, &inner).expect("the engine's payloads can be read");
            self.note(&payloads);
            if header.flags.response {
                self.answered(header);
            } else if !self.asked.contains(&header) {
                self.asked.push(header);
            }
        }
    }

    fn answered(&mut self, header: Header) {
        if header.flags.response && header.message_id == self.peer.next {
            self.peer.next += 1;
        }
    }

    fn note(&mut self, payloads: &PayloadList) {
        if let Some(eap) = payloads.eap() {
            self.eap = Some(eap.clone());
        }
        for proposal in payloads.sa().iter().flat_map(|sa| &sa.proposals) {
            if let Ok(spi) = <[u8; 4]>::try_from(proposal.spi.as_slice()) {
                self.esp_spis.push(EspSpi(u32::from_be_bytes(spi)));
            } else if let Ok(spi) = <[u8; 8]>::try_from(proposal.spi.as_slice()) {
                self.ike_spis.push(IkeSpi(u64::from_be_bytes(spi)));
            }
        }
        if let Some(cookie) = payloads.notify(NotifyType::COOKIE2) {
            self.cookie2.clone_from(&cookie.data);
        }
    }

    /// A chain of payloads: sound ones by number, or any octets behind a sound header.
    fn payloads(&mut self, choices: &mut Choices<'_>) -> (PayloadType, Vec<u8>) {
        let mut chain: Vec<(u8, Vec<u8>)> = Vec::new();
        for _ in 0..choices.next().unwrap_or(0) % 12 {
            let Some(kind) = choices.next() else { break };
            if kind >= 0x40 {
                let body = choices.some();
                let length = (body.len() + 4) as u16;
                let critical = (kind & 0x80) >> (kind & 1) & 0x80;
                let header = [&[0, critical][..], &length.to_be_bytes()].concat();
                chain.push((32 + kind % 0x20, [&header, body].concat()));
                continue;
            }
            for payload in self.sound(kind, choices) {
                if let Ok((first, octets)) = encode_chain(std::slice::from_ref(&payload)) {
                    chain.push((first.0, octets));
                }
            }
        }
        let kinds: Vec<u8> = chain.iter().skip(1).map(|(kind, _)| *kind).chain([0]).collect();
        let first = chain.first().map_or(0, |(kind, _)| *kind);
        for ((_, octets), next) in chain.iter_mut().zip(kinds) {
            octets[0] = next;
        }
        let octets = chain.into_iter().flat_map(|(_, octets)| octets).collect();
        (PayloadType(first), octets)
    }

    fn sound(&mut self, kind: u8, choices: &mut Choices<'_>) -> Vec<Payload> {
        let notify = |kind, data| vec![Payload::Notify(Notify::new(kind, data))];
        let spi = self.esp_spis.last().map_or(EspSpi(0x1000), |spi| *spi);
        match kind {
            0 => self.peer.auth(b"a secret that both know"),
            1 => self.peer.auth(b"another one"),
            2 => vec![esp(
                0x2000 + u32::from(choices.next().unwrap_or(0)),
                20,
                Some(256),
            )],
            3 => selectors().to_vec(),
            4 => vec![Payload::Nonce(vec![choices.next().unwrap_or(1); 32])],
            5 => vec![key_exchange()],
            6 => vec![ike_proposal(choices.next().unwrap_or(0))],
            7 => vec![Payload::Delete(Delete::Esp(vec![EspSpi(0x1000)]))],
            8 => vec![Payload::Delete(Delete::Ike)],
            9 => {
                let mut notify = Notify::new(NotifyType::REKEY_SA, Vec::new());
                notify.protocol = ProtocolId::ESP;
                notify.spi = 0x1000_u32.to_be_bytes().to_vec();
                vec![Payload::Notify(notify)]
            }
            10 => self.eap(EapType::IDENTITY, b"alice".to_vec()),
            11 => self.eap_proof(),
            12 => self.eap(EapType::MSCHAPV2, vec![3]),
            13 => {
                let kind = EapType(choices.next().unwrap_or(13));
                let data = choices.some().to_vec();
                self.eap(kind, data)
            }
            14 => configuration(),
            15 => notify(NotifyType::INITIAL_CONTACT, Vec::new()),
            16 => notify(NotifyType::MOBIKE_SUPPORTED, Vec::new()),
            17 => notify(NotifyType::UPDATE_SA_ADDRESSES, Vec::new()),
            18 => notify(NotifyType::COOKIE2, self.cookie2.clone()),
            19 => notify(NotifyType::USE_TRANSPORT_MODE, Vec::new()),
            20 => notify(NotifyType::IKEV2_MESSAGE_ID_SYNC_SUPPORTED, Vec::new()),
            21 => notify(NotifyType::TICKET_REQUEST, Vec::new()),
            22 => notify(NotifyType::SA_RESOURCE_INFO, choices.some().to_vec()),
            23 => notify(NotifyType::EAP_ONLY_AUTHENTICATION, Vec::new()),
            24 => vec![Payload::Delete(Delete::Esp(vec![spi]))],
            25 => host_selectors().to_vec(),
            26 => notify(
                NotifyType::SET_WINDOW_SIZE,
                vec![0, 0, 0, choices.next().unwrap_or(1)],
            ),
            27 => vec![Payload::IdInitiator(ike_wire::Identification::from(
                ike_wire::Identity::Fqdn("a.example".into()),
            ))],
            28 => {
                let [high, low] = [0; 2].map(|_| choices.next().unwrap_or(0));
                let kind = NotifyType(u16::from_be_bytes([high, low]));
                notify(kind, choices.some().to_vec())
            }
            29 => vec![Payload::KeyExchange(KeyExchange {
                group: DhTransform(u16::from(choices.next().unwrap_or(31))),
                data: choices.some().to_vec(),
            })],
            _ => Vec::new(),
        }
    }

    fn eap(&self, kind: EapType, data: Vec<u8>) -> Vec<Payload> {
        let identifier = self.eap.as_ref().map_or(0, |eap| eap.identifier);
        vec![Payload::Eap(Eap {
            code: EapCode::RESPONSE,
            identifier,
            body: Some((kind, data)),
        })]
    }

    /// What a user who knows the password answers to the challenge.
    fn eap_proof(&self) -> Vec<Payload> {
        let challenge = self.eap.as_ref().and_then(|eap| eap.body.as_ref());
        let Some((EapType::MSCHAPV2, data)) = challenge else {
            return Vec::new();
        };
        let Some(authenticator) = data.get(5..21).and_then(|octets| octets.first_chunk::<16>()) else {
            return Vec::new();
        };
        let (user, peer) = ("alice", [9; 16]);
        let proof = nt_response(mschapv2::Exchange {
            authenticator,
            peer: &peer,
            user,
            password: "in wonderland",
        });
        let value = [&peer[..], &[0; 8], &proof, &[0]].concat();
        let rest = [&[49][..], &value, user.as_bytes()].concat();
        let data = [&[2, data[1]][..], &(4 + rest.len() as u16).to_be_bytes(), &rest].concat();
        self.eap(EapType::MSCHAPV2, data)
    }

    fn command(&mut self, choices: &mut Choices<'_>) {
        let status = self.peer.world.status(B);
        let Some(sa) = status.first() else { return };
        let (spi, child) = (sa.spi, sa.children.first().map(|child| child.spi_in));
        let connection = "t".to_owned();
        let command = match (choices.next().unwrap_or(0) % 10, child) {
            (0, Some(spi_in)) => Command::RekeyChild { spi_in },
            (1, Some(spi_in)) => Command::DeleteChild { spi_in },
            (2, Some(spi_in)) => Command::RepairInbound { spi_in, delta: 100 },
            (3, Some(beside)) => Command::CreateResourceChild {
                beside,
                resource: Resource::of_owner(1),
            },
            (4, _) => Command::RekeyIke { spi },
            (5, _) => Command::DeleteIke { spi },
            (6, _) => Command::Liveness { spi },
            (7, _) => Command::CreateChild {
                connection,
                child: "d".to_owned(),
            },
            (8, _) => Command::SyncMessageIds { spi, margin: 3 },
            (9, _) => Command::Redirect {
                spi,
                to: [203, 0, 113, 5].into(),
            },
            _ => Command::Terminate { connection },
        };
        self.peer.world.command(B, command);
        self.listen();
    }

    /// Another IKE SA begins, or this one again.
    fn first_message(&mut self, choices: &mut Choices<'_>) {
        let kind = choices.next().unwrap_or(0);
        let spi = match kind & 3 {
            0 => SPI,
            other => IkeSpi(u64::from(other) << 40),
        };
        let exchange = if kind & 4 == 0 {
            ExchangeType::IKE_SA_INIT
        } else {
            ExchangeType::IKE_SESSION_RESUME
        };
        let header = header(spi, IkeSpi(0), exchange, 0);
        let mut bytes = if kind & 8 == 0 {
            let (first, inner) = self.payloads(choices);
            let mut bytes = encode_message(&header, &[]).expect("a header");
            bytes[16] = first.0;
            let length = (bytes.len() + inner.len()) as u32;
            bytes[24..28].copy_from_slice(&length.to_be_bytes());
            bytes.extend(inner);
            bytes
        } else {
            Peer::first(spi, None)
        };
        if kind & 0x10 != 0 {
            let at = usize::from(choices.next().unwrap_or(0));
            let to = choices.next().unwrap_or(0);
            if let Some(octet) = bytes.get_mut(at) {
                *octet = to;
            }
        }
        self.deliver(bytes);
    }

    /// An authentic message with a header that fits nothing.
    fn odd_header(&mut self, step: u8, choices: &mut Choices<'_>) {
        let flags = choices.next().unwrap_or(0);
        let ahead = u32::from(choices.next().unwrap_or(0));
        let header = Header {
            spi_i: self.peer.spi,
            spi_r: self.peer.spi_r,
            exchange: exchange_type(step >> 4),
            flags: Flags {
                initiator: flags & 1 == 0,
                version: flags & 2 != 0,
                response: flags & 4 != 0,
            },
            message_id: self.peer.next.wrapping_add(ahead).wrapping_sub(2),
        };
        let (first, inner) = self.payloads(choices);
        let bytes = self.peer.seal_as(header, first, &inner);
        self.deliver(bytes);
    }

    /// A message in fragments, with numbers that need not fit.
    fn fragments(&mut self, step: u8, choices: &mut Choices<'_>) {
        let total = u16::from(choices.next().unwrap_or(1));
        let (first, inner) = self.payloads(choices);
        let size = usize::from(choices.next().unwrap_or(32)).max(16);
        let header = header(
            self.peer.spi,
            self.peer.spi_r,
            exchange_type(step >> 4),
            self.peer.next,
        );
        for (at, piece) in inner.chunks(size).enumerate().take(16) {
            let whole = inner.len().div_ceil(size) as u16;
            let fragment = Fragment {
                number: at as u16 + 1 + (total >> 6),
                total: if total == 0 { whole } else { total & 0x3f },
            };
            let key = self.peer.keys.initiator_key().expect("a key");
            let sealed = key.cipher().sealed_len(piece.len());
            let Ok(mut bytes) = encode_skf_prefix(&header, first, fragment, sealed) else {
                return;
            };
            self.peer.iv += 1;
            let sealed = key.seal(&bytes, &self.peer.iv.to_be_bytes(), piece);
            bytes.extend(sealed.expect("sealed"));
            self.deliver(bytes);
        }
    }

    /// Timers of the engine's run; nobody answers but by the steps.
    fn pass(&mut self, time: Duration) {
        let end = self.peer.world.now + time;
        for _ in 0..10_000 {
            let next = self.peer.world.sides[B].engine.next_timeout();
            let Some(at) = next.filter(|at| *at <= end) else {
                self.peer.world.now = end;
                return;
            };
            let world = &mut self.peer.world;
            world.now = world.now.max(at);
            let side = &mut world.sides[B];
            side.engine
                .handle(Input::Timeout { now: world.now }, &mut side.around);
            world.drain(B, true);
            self.listen();
        }
        panic!("time stands still\n{}", self.peer.world.story());
    }

    /// What was agreed is what is installed and journalled; once the peer is silent, nothing is left over, and others are served.
    fn end(mut self) {
        self.compare();
        self.pass(Duration::from_secs(400));
        self.compare();
        let leftovers = self.peer.world.sides[B].engine.pending_esp_spis();
        assert!(
            leftovers.is_empty(),
            "promises are kept: {leftovers:?}\n{}",
            self.peer.world.story()
        );
        let first = Peer::first(IkeSpi(0x5555), None);
        let answer = scripted::exchange(
            &mut self.peer.world,
            "192.0.2.1:500".parse().expect("an address"),
            &first,
        );
        let answer = answer.as_deref().map(Message::parse);
        assert!(
            matches!(&answer, Some(Ok(message)) if message.payloads.nonce().is_some()),
            "others are served\n{}",
            self.peer.world.story()
        );
    }

    fn compare(&self) {
        let world = &self.peer.world;
        let side = &world.sides[B];
        let status = side.engine.status();
        let children = status
            .iter()
            .flat_map(|sa| sa.children.iter().map(|child| child.spi_in));
        let listed: BTreeSet<EspSpi> = children.collect();
        let installed: BTreeSet<EspSpi> = side.children.keys().copied().collect();
        assert_eq!(
            listed,
            installed,
            "engine and SA database differ\n{}",
            world.story()
        );
        let known: BTreeSet<IkeSpi> = side.engine.export().iter().map(|(spi, _)| *spi).collect();
        let journalled: BTreeSet<IkeSpi> = side.journal.keys().copied().collect();
        assert_eq!(known, journalled, "engine and journal differ\n{}", world.story());
    }
}

/// A TLS that goes on, ends well or ends badly, as its first octet says.
fn tls() -> crate::world::Tls {
    Box::new(
        |request| match request.octets.first().map_or(0, |octet| octet % 4) {
            0 => TlsOutcome::Done {
                octets: vec![4; 30],
                msk: SecretBytes::new(vec![7; 64]),
                certificates: vec![request.octets.clone()],
            },
            1 => TlsOutcome::Failed {
                alert: vec![2; 7],
                why: "no".to_owned(),
            },
            _ => TlsOutcome::Continue(vec![2; 2500]),
        },
    )
}

fn key_exchange() -> Payload {
    static PUBLIC: OnceLock<Vec<u8>> = OnceLock::new();
    let public = PUBLIC.get_or_init(|| {
        let private = DhGroup::Curve25519.generate(&mut |out| out.fill(0x77));
        private.expect("a key").public().to_vec()
    });
    Payload::KeyExchange(KeyExchange {
        group: DhTransform(31),
        data: public.clone(),
    })
}

fn ike_proposal(spi: u8) -> Payload {
    let transforms = vec![
        scripted::transform(TransformType::ENCR, 20, Some(128)),
        scripted::transform(TransformType::PRF, 5, None),
        scripted::transform(TransformType::KE, 31, None),
    ];
    let spi = if spi == 0 { Vec::new() } else { vec![spi; 8] };
    Payload::SecurityAssociation(SecurityAssociation {
        proposals: vec![Proposal {
            number: 1,
            protocol: ProtocolId::IKE,
            spi,
            transforms,
        }],
    })
}

fn configuration() -> Vec<Payload> {
    let empty = |kind| ConfigAttribute::new(kind, Vec::new());
    vec![Payload::Configuration(Configuration {
        kind: ConfigType::CFG_REQUEST,
        attributes: vec![
            empty(ConfigAttributeType::INTERNAL_IP4_ADDRESS),
            empty(ConfigAttributeType::INTERNAL_IP6_ADDRESS),
            empty(ConfigAttributeType::INTERNAL_IP4_DNS),
        ],
    })]
}

fn host_selectors() -> [Payload; 2] {
    [
        Payload::TsInitiator(vec![host(crate::world::address(1 - B))].into()),
        Payload::TsResponder(vec![host(crate::world::address(B))].into()),
    ]
}
