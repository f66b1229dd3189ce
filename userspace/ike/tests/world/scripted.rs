//! The initiator's side of an IKE SA, written from the RFC and not from the engine.

pub mod answering;

use super::{B, World, config, connection, net};
use crypto::{AuthInput, DhGroup, DhPrivate, IkeCipher, IkeKeys, KeyInputs, Prf, psk_auth};
use ike::{EngineConfig, EventKind};
use ike_wire::{
    AuthMethod, Authentication, DhTransform, ExchangeType, Flags, Header, Identification, Identity,
    KeyExchange, Message, Notify, NotifyType, Payload, PayloadList, PayloadType, Proposal, ProtocolId,
    SecurityAssociation, Transform, TransformType, encode_chain, encode_message, encode_sk_prefix,
    parse_chain,
};
use model::{IkeSpi, SecretBytes};
use std::net::SocketAddr;

pub const SPI: IkeSpi = IkeSpi(0x1122_3344_5566_7788);

pub fn local() -> SocketAddr {
    "192.0.2.1:500".parse().unwrap()
}

/// The initiator's side of an IKE SA, by hand.
pub struct Peer {
    pub world: World,
    /// Where it sends from.
    pub address: SocketAddr,
    pub spi: IkeSpi,
    pub keys: IkeKeys,
    pub spi_r: IkeSpi,
    pub next: u32,
    pub iv: u64,
    pub nonces: (Vec<u8>, Vec<u8>),
    pub init: (Vec<u8>, Vec<u8>),
}

pub fn transform(kind: TransformType, id: u16, bits: Option<u16>) -> Transform {
    match bits {
        Some(bits) => Transform::with_key_bits(kind, id, bits),
        None => Transform::new(kind, id),
    }
}

pub fn esp(spi: u32, cipher: u16, bits: Option<u16>) -> Payload {
    let transforms = vec![
        transform(TransformType::ENCR, cipher, bits),
        transform(TransformType::ESN, 0, None),
    ];
    let proposal = Proposal {
        number: 1,
        protocol: ProtocolId::ESP,
        spi: spi.to_be_bytes().to_vec(),
        transforms,
    };
    Payload::SecurityAssociation(SecurityAssociation {
        proposals: vec![proposal],
    })
}

pub fn selectors() -> [Payload; 2] {
    [
        Payload::TsInitiator(vec![net([10, 1, 0])].into()),
        Payload::TsResponder(vec![net([10, 2, 0])].into()),
    ]
}

/// A first message, with the private key and the nonce in it.
fn first(spi: IkeSpi, cookie: Option<Vec<u8>>, extra: Vec<Payload>) -> (DhPrivate, Vec<u8>, Vec<u8>) {
    let private = DhGroup::Curve25519.generate(&mut |out| out.fill(0x5a)).unwrap();
    let transforms = vec![
        transform(TransformType::ENCR, 20, Some(128)),
        transform(TransformType::PRF, 5, None),
        transform(TransformType::KE, 31, None),
    ];
    let proposal = Proposal {
        number: 1,
        protocol: ProtocolId::IKE,
        spi: vec![],
        transforms,
    };
    let nonce_i = vec![3; 16];
    let cookie = cookie.map(|cookie| Payload::Notify(Notify::new(NotifyType::COOKIE, cookie)));
    let mut payloads: Vec<Payload> = cookie.into_iter().collect();
    payloads.extend([
        Payload::SecurityAssociation(SecurityAssociation {
            proposals: vec![proposal],
        }),
        Payload::KeyExchange(KeyExchange {
            group: DhTransform(31),
            data: private.public().to_vec(),
        }),
        Payload::Nonce(nonce_i.clone()),
    ]);
    payloads.extend(extra);
    let header = header(spi, IkeSpi(0), ExchangeType::IKE_SA_INIT, 0);
    (private, nonce_i, encode_message(&header, &payloads).unwrap())
}

impl Peer {
    /// A first message as it would send it.
    pub fn first(spi: IkeSpi, cookie: Option<Vec<u8>>) -> Vec<u8> {
        first(spi, cookie, vec![]).2
    }

    /// Does IKE_SA_INIT with the engine at side B.
    pub fn new(extra: Vec<Payload>) -> Self {
        Self::with(config(vec![connection(B)]), extra)
    }

    /// The same with another configuration of side B.
    pub fn with(config: EngineConfig, extra: Vec<Payload>) -> Self {
        let mut world = World::new(99);
        world.sides[B].engine = super::lives::engine(config);
        Self::begin(world, SPI, extra)
    }

    /// Another initiator with this SPI, at the same engine.
    pub fn begin(mut world: World, spi: IkeSpi, extra: Vec<Payload>) -> Self {
        let (private, nonce_i, request) = first(spi, None, extra);
        let response = exchange(&mut world, local(), &request).expect("an answer to IKE_SA_INIT");
        let message = Message::parse(&response).unwrap();
        let nonce_r = message.payloads.nonce().expect("Nr").to_vec();
        let shared = private.agree(&message.payloads.ke().expect("KEr").data).unwrap();
        let spi_r = message.header.spi_r;
        let inputs = KeyInputs {
            nonce_i: &nonce_i,
            nonce_r: &nonce_r,
            spi_i: spi,
            spi_r,
        };
        let keys = IkeKeys::derive(Prf::HmacSha256, IkeCipher::Aes128Gcm16, inputs, &shared).unwrap();
        Self {
            world,
            address: local(),
            spi,
            keys,
            spi_r,
            next: 1,
            iv: 0,
            nonces: (nonce_i, nonce_r),
            init: (request, response),
        }
    }

    /// Does IKE_AUTH as well.
    pub fn established() -> Self {
        let mut peer = Self::new(vec![]);
        let mut payloads = peer.auth(b"a secret that both know");
        payloads.push(esp(0x1000, 20, Some(256)));
        payloads.extend(selectors());
        let answer = peer.request(ExchangeType::IKE_AUTH, &payloads).unwrap();
        assert!(answer.sa().is_some() && answer.error().is_none(), "{answer:?}");
        peer.check_responder_auth(&answer);
        peer
    }

    pub fn auth(&self, psk: &[u8]) -> Vec<Payload> {
        self.auth_as("a.example", psk)
    }

    pub fn auth_as(&self, name: &str, psk: &[u8]) -> Vec<Payload> {
        let id = Identification::from(Identity::Fqdn(name.into()));
        let input = AuthInput {
            message: &self.init.0,
            nonce: &self.nonces.1,
            sk_p: &self.keys.sk_pi,
            id_body: &id.body(),
            intermediate: &[],
        };
        let data = psk_auth(Prf::HmacSha256, &SecretBytes::new(psk.to_vec()), input);
        vec![
            Payload::IdInitiator(id),
            Payload::Authentication(Authentication {
                method: AuthMethod::SHARED_KEY_MIC,
                data,
            }),
        ]
    }

    pub fn check_responder_auth(&self, answer: &PayloadList) {
        let id = answer.id_r().expect("IDr");
        let input = AuthInput {
            message: &self.init.1,
            nonce: &self.nonces.0,
            sk_p: &self.keys.sk_pr,
            id_body: &id.body(),
            intermediate: &[],
        };
        let psk = SecretBytes::new(b"a secret that both know".to_vec());
        assert_eq!(
            answer.auth().expect("AUTH").data,
            psk_auth(Prf::HmacSha256, &psk, input)
        );
    }

    pub fn seal(&mut self, exchange: ExchangeType, id: u32, first: PayloadType, inner: &[u8]) -> Vec<u8> {
        let header = header(self.spi, self.spi_r, exchange, id);
        self.seal_as(header, first, inner)
    }

    pub fn seal_as(&mut self, header: Header, first: PayloadType, inner: &[u8]) -> Vec<u8> {
        let key = self.keys.initiator_key().unwrap();
        let mut message = encode_sk_prefix(&header, first, key.cipher().sealed_len(inner.len())).unwrap();
        self.iv += 1;
        let sealed = key.seal(&message, &self.iv.to_be_bytes(), inner).unwrap();
        message.extend_from_slice(&sealed);
        message
    }

    pub fn request(&mut self, exchange: ExchangeType, payloads: &[Payload]) -> Option<PayloadList> {
        let (first, inner) = encode_chain(payloads).unwrap();
        self.request_raw(exchange, first, &inner)
    }

    /// Sends a request with any octets inside; opens the answer.
    pub fn request_raw(
        &mut self,
        exchange: ExchangeType,
        first: PayloadType,
        inner: &[u8],
    ) -> Option<PayloadList> {
        let id = self.next;
        let bytes = self.seal(exchange, id, first, inner);
        let answer = self::exchange(&mut self.world, self.address, &bytes)?;
        let message = Message::parse(&answer).unwrap();
        assert_eq!(
            (message.header.message_id, message.header.flags.response),
            (id, true)
        );
        let protected = message.protected.expect("SK");
        let key = self.keys.responder_key().unwrap();
        let inner = key
            .open(protected.prefix(&answer), protected.sealed(&answer))
            .unwrap();
        self.next += 1;
        Some(parse_chain(protected.first, &inner).unwrap())
    }

    /// The engine's request, opened.
    pub fn expect_request(&mut self) -> (Header, PayloadList) {
        let packet = self.world.net.pop_front().expect("a request of the engine's");
        let message = Message::parse(&packet.bytes).unwrap();
        assert!(!message.header.flags.response);
        let protected = message.protected.expect("SK");
        let key = self.keys.responder_key().unwrap();
        let inner = key
            .open(protected.prefix(&packet.bytes), protected.sealed(&packet.bytes))
            .unwrap();
        (message.header, parse_chain(protected.first, &inner).unwrap())
    }

    /// Answers a request of the engine's.
    pub fn respond(&mut self, request: Header, payloads: &[Payload]) {
        let flags = Flags {
            initiator: true,
            version: false,
            response: true,
        };
        let (first, inner) = encode_chain(payloads).unwrap();
        let bytes = self.seal_as(Header { flags, ..request }, first, &inner);
        let local = "198.51.100.1:500".parse().unwrap();
        self.world.deliver(super::Packet {
            to: B,
            local,
            remote: self.address,
            bytes,
        });
    }

    pub fn has_event(&self, kind: EventKind) -> bool {
        self.world.has_event(B, kind)
    }
}

pub fn header(spi_i: IkeSpi, spi_r: IkeSpi, exchange: ExchangeType, message_id: u32) -> Header {
    let flags = Flags {
        initiator: true,
        version: false,
        response: false,
    };
    Header {
        spi_i,
        spi_r,
        exchange,
        flags,
        message_id,
    }
}

/// Hands octets to the engine; gives its one answer.
pub fn exchange(world: &mut World, remote: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
    let packet = super::Packet {
        to: B,
        local: "198.51.100.1:500".parse().unwrap(),
        remote,
        bytes: bytes.to_vec(),
    };
    world.deliver(packet);
    // A request of the engine's own may follow.
    let is_answer = |packet: &super::Packet| packet.bytes.get(19).is_some_and(|flags| flags & 0x20 != 0);
    let at = world.net.iter().position(is_answer)?;
    let answer = world.net.remove(at).map(|packet| packet.bytes);
    let more = world.net.iter().any(is_answer);
    assert!(!more, "more than one answer\n{}", world.story());
    answer
}
