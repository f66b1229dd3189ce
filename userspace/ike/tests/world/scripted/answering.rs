//! The responder's side of an IKE SA that the engine at side A initiates, written from the RFC and not from the engine.

use super::super::{A, Packet, World, address, connection, ike, net};
use super::{esp, transform};
use crypto::{AuthInput, DhGroup, IkeCipher, IkeKeys, KeyInputs, Prf, psk_auth};
use ike_wire::{
    AuthMethod, Authentication, DhTransform, ExchangeType, Flags, Header, Identification, Identity,
    KeyExchange, Message, Payload, PayloadList, Proposal, ProtocolId, SecurityAssociation, TransformType,
    encode_chain, encode_message, encode_sk_prefix, parse_chain,
};
use model::{IkeSpi, SecretBytes};
use std::net::SocketAddr;

const SPI: IkeSpi = IkeSpi(0x8877_6655_4433_2211);

/// The wall clock when virtual time begins, s.
pub const UNIX: u64 = 1_800_000_000;

/// The responder's side, by hand.
pub struct Answerer {
    pub world: World,
    spi_i: IkeSpi,
    keys: IkeKeys,
    next: u32,
    iv: u64,
}

impl Answerer {
    /// The engine at side A has initiated its connection, with one child. `extra` stands in the IKE_AUTH response as well.
    pub fn established(extra: Vec<Payload>) -> Self {
        let mut world = World::with(77, |_, connection| {
            connection.ike_proposals = ike("aes128gcm16-prfsha256-x25519");
            connection.children[0].esp_proposals = super::super::esp("aes256gcm16");
        });
        world.sides[A].around.unix_time = Some(UNIX + world.now.millis() / 1000);
        world.initiate(A);
        let (init, spi_i, nonce_i, public) = {
            let packet = world.net.pop_front().expect("IKE_SA_INIT");
            let message = Message::parse(&packet.bytes).unwrap();
            let payloads = &message.payloads;
            let (nonce, ke) = (payloads.nonce().expect("Ni"), payloads.ke().expect("KEi"));
            (
                packet.bytes.clone(),
                message.header.spi_i,
                nonce.to_vec(),
                ke.data.clone(),
            )
        };
        let private = DhGroup::Curve25519.generate(&mut |out| out.fill(0x3c)).unwrap();
        let nonce_r = vec![5; 24];
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
        let answer = [
            Payload::SecurityAssociation(SecurityAssociation {
                proposals: vec![proposal],
            }),
            Payload::KeyExchange(KeyExchange {
                group: DhTransform(31),
                data: private.public().to_vec(),
            }),
            Payload::Nonce(nonce_r.clone()),
        ];
        let header = header(spi_i, ExchangeType::IKE_SA_INIT, 0, true);
        let init_r = encode_message(&header, &answer).unwrap();
        let shared = private.agree(&public).unwrap();
        let inputs = KeyInputs {
            nonce_i: &nonce_i,
            nonce_r: &nonce_r,
            spi_i,
            spi_r: SPI,
        };
        let keys = IkeKeys::derive(Prf::HmacSha256, IkeCipher::Aes128Gcm16, inputs, &shared).unwrap();
        let mut peer = Self {
            world,
            spi_i,
            keys,
            next: 0,
            iv: 0,
        };
        peer.deliver(init_r.clone());
        let (request, said) = peer.expect();
        assert_eq!(request.exchange, ExchangeType::IKE_AUTH);
        let psk = connection(A).psk;
        let proof = |message: &[u8], nonce: &[u8], sk_p: &SecretBytes, id: &Identification| {
            let input = AuthInput {
                message,
                nonce,
                sk_p,
                id_body: &id.body(),
                intermediate: &[],
            };
            psk_auth(Prf::HmacSha256, &psk, input)
        };
        let id_i = said.id_i().expect("IDi");
        let data = &said.auth().expect("AUTH").data;
        assert_eq!(*data, proof(&init, &nonce_r, &peer.keys.sk_pi, id_i));
        let id = Identification::from(Identity::Fqdn("b.example".into()));
        let data = proof(&init_r, &nonce_i, &peer.keys.sk_pr, &id);
        let mut payloads = vec![
            Payload::IdResponder(id),
            Payload::Authentication(Authentication {
                method: AuthMethod::SHARED_KEY_MIC,
                data,
            }),
            esp(0x2000, 20, Some(256)),
            Payload::TsInitiator(vec![net([10, 1, 0])].into()),
            Payload::TsResponder(vec![net([10, 2, 0])].into()),
        ];
        payloads.extend(extra);
        peer.say(ExchangeType::IKE_AUTH, request.message_id, true, &payloads);
        assert_eq!(peer.world.only(A).children.len(), 1, "{}", peer.world.story());
        peer
    }

    /// Sends a request; gives the engine's answer.
    pub fn request(&mut self, exchange: ExchangeType, payloads: &[Payload]) -> PayloadList {
        let id = self.next;
        self.say(exchange, id, false, payloads);
        self.next += 1;
        let (header, answer) = self.expect();
        assert_eq!((header.message_id, header.flags.response), (id, true));
        answer
    }

    fn say(&mut self, exchange: ExchangeType, id: u32, response: bool, payloads: &[Payload]) {
        let header = header(self.spi_i, exchange, id, response);
        let (first, inner) = encode_chain(payloads).unwrap();
        let key = self.keys.responder_key().unwrap();
        let mut message = encode_sk_prefix(&header, first, key.cipher().sealed_len(inner.len())).unwrap();
        self.iv += 1;
        let sealed = key.seal(&message, &self.iv.to_be_bytes(), &inner).unwrap();
        message.extend_from_slice(&sealed);
        self.deliver(message);
    }

    fn deliver(&mut self, bytes: Vec<u8>) {
        let at = |side| SocketAddr::new(address(side), 500);
        self.world.deliver(Packet {
            to: A,
            local: at(A),
            remote: at(1 - A),
            bytes,
        });
    }

    /// The engine's next message, opened.
    fn expect(&mut self) -> (Header, PayloadList) {
        let packet = self.world.net.pop_front().expect("a message of the engine's");
        let message = Message::parse(&packet.bytes).unwrap();
        let protected = message.protected.expect("SK");
        let key = self.keys.initiator_key().unwrap();
        let inner = key
            .open(protected.prefix(&packet.bytes), protected.sealed(&packet.bytes))
            .unwrap();
        (message.header, parse_chain(protected.first, &inner).unwrap())
    }
}

fn header(spi_i: IkeSpi, exchange: ExchangeType, message_id: u32, response: bool) -> Header {
    let flags = Flags {
        initiator: false,
        version: false,
        response,
    };
    Header {
        spi_i,
        spi_r: SPI,
        exchange,
        flags,
        message_id,
    }
}
