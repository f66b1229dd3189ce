//! Initiators without sockets: what they send, and what they make of an answer.
//!
//! They are written from the RFC and do as little as they can: one private key for all of them, nothing kept of an IKE SA that is
//! up. What is measured is the responder.

use super::{Load, NAME};
use anyhow::{Context, Result, bail, ensure};
use crypto::{AuthInput, DhGroup, DhPrivate, IkeCipher, IkeKeys, KeyInputs, Prf, psk_auth, verify_psk_auth};
use ike_wire::{
    AuthMethod, Authentication, DhTransform, ExchangeType, Flags, Header, Identification, Identity,
    KeyExchange, Message, Notify, NotifyType, Payload, Proposal, ProtocolId, SecurityAssociation, Transform,
    TransformType, encode_chain, encode_message, encode_sk_prefix, parse_chain,
};
use model::{IkeSpi, SecretBytes, TrafficSelector};
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

enum Step {
    Init {
        nonce: Vec<u8>,
    },
    Auth {
        keys: Box<IkeKeys>,
        response: Vec<u8>,
        nonce_i: Vec<u8>,
    },
}

struct Handshake {
    step: Step,
    request: Vec<u8>,
    sent: Instant,
}

/// The initiators of a load.
pub struct Initiators {
    load: Load,
    private: DhPrivate,
    under_way: HashMap<IkeSpi, Handshake>,
    begun: usize,
}

impl Initiators {
    /// None has begun yet.
    ///
    /// # Errors
    /// There is no private key.
    pub fn new(load: Load) -> Result<Self> {
        let seed = load.seed;
        let private = DhGroup::Curve25519
            .generate(&mut |out| out.copy_from_slice(&crypto::sha256(&[b"key", &seed.to_be_bytes()])))
            .context("a private key")?;
        Ok(Self {
            load,
            private,
            under_way: HashMap::new(),
            begun: 0,
        })
    }

    /// Handshakes that have begun and are not complete.
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// Handshakes that are not complete.
    pub fn left(&self) -> usize {
        self.load.count - self.begun + self.under_way.len()
    }

    /// The requests that were sent last longer than `after` ago; they count as sent now.
    pub fn repeat(&mut self, now: Instant, after: Duration) -> impl Iterator<Item = &[u8]> {
        let late = self.under_way.values_mut();
        let late = late.filter(move |handshake| now.duration_since(handshake.sent) > after);
        late.map(move |handshake| {
            handshake.sent = now;
            handshake.request.as_slice()
        })
    }

    /// The next one's first message; `None`: all have begun.
    ///
    /// # Errors
    /// The message cannot be made.
    pub fn begin(&mut self, now: Instant) -> Result<Option<Vec<u8>>> {
        if self.begun == self.load.count {
            return Ok(None);
        }
        self.begun += 1;
        let digest = crypto::sha256(&[&self.load.seed.to_be_bytes(), &(self.begun as u64).to_be_bytes()]);
        let spi = IkeSpi(u64::from_be_bytes(digest[..8].try_into()?) | 1);
        let nonce = digest.to_vec();
        let request = self.first_message(spi, &nonce, None)?;
        self.await_answer(spi, Step::Init { nonce }, &request, now);
        Ok(Some(request))
    }

    fn await_answer(&mut self, spi: IkeSpi, step: Step, request: &[u8], sent: Instant) {
        let request = request.to_vec();
        self.under_way.insert(spi, Handshake { step, request, sent });
    }

    fn first_message(&self, spi: IkeSpi, nonce: &[u8], cookie: Option<Vec<u8>>) -> Result<Vec<u8>> {
        let transforms = vec![
            Transform::with_key_bits(TransformType::ENCR, 20, 128),
            Transform::new(TransformType::PRF, 5),
            Transform::new(TransformType::KE, 31),
        ];
        let mut payloads: Vec<Payload> = cookie
            .map(|cookie| Payload::Notify(Notify::new(NotifyType::COOKIE, cookie)))
            .into_iter()
            .collect();
        payloads.extend([
            proposal(ProtocolId::IKE, vec![], transforms),
            Payload::KeyExchange(KeyExchange {
                group: DhTransform(31),
                data: self.private.public().to_vec(),
            }),
            Payload::Nonce(nonce.to_vec()),
        ]);
        Ok(encode_message(
            &header(spi, IkeSpi(0), ExchangeType::IKE_SA_INIT, 0),
            &payloads,
        )?)
    }

    /// What an initiator sends next; `None`: nothing, its handshake is complete or it heard this before.
    ///
    /// # Errors
    /// The responder refuses, or does not prove itself.
    pub fn answer(&mut self, bytes: &[u8], now: Instant) -> Result<Option<Vec<u8>>> {
        let message = Message::parse(bytes).context("the responder's message")?;
        let spi = message.header.spi_i;
        if !message.header.flags.response {
            return Ok(None);
        }
        let Some(handshake) = self.under_way.remove(&spi) else {
            return Ok(None);
        };
        let (step, request) = match (handshake.step, message.header.exchange) {
            (Step::Init { nonce }, ExchangeType::IKE_SA_INIT) => {
                if let Some(cookie) = message.payloads.notifies().find_map(Notify::as_cookie) {
                    let request = self.first_message(spi, &nonce, Some(cookie.to_vec()))?;
                    (Step::Init { nonce }, request)
                } else {
                    self.authenticate(spi, nonce, &handshake.request, bytes, &message)?
                }
            }
            (
                Step::Auth {
                    keys,
                    response,
                    nonce_i,
                },
                ExchangeType::IKE_AUTH,
            ) => {
                self.check(&keys, &response, &nonce_i, bytes, &message)?;
                return Ok(None);
            }
            // A second answer to IKE_SA_INIT.
            (step, _) => {
                self.await_answer(spi, step, &handshake.request, handshake.sent);
                return Ok(None);
            }
        };
        self.await_answer(spi, step, &request, now);
        Ok(Some(request))
    }

    fn authenticate(
        &self,
        spi: IkeSpi,
        nonce_i: Vec<u8>,
        request: &[u8],
        response: &[u8],
        message: &Message,
    ) -> Result<(Step, Vec<u8>)> {
        let payloads = &message.payloads;
        if let Some(error) = payloads.error() {
            bail!("IKE_SA_INIT was refused with {}", error.kind);
        }
        let nonce_r = payloads.nonce().context("IKE_SA_INIT response without nonce")?;
        let ke = payloads.ke().context("IKE_SA_INIT response without KE")?;
        let shared = self.private.agree(&ke.data)?;
        let spi_r = message.header.spi_r;
        let inputs = KeyInputs {
            nonce_i: &nonce_i,
            nonce_r,
            spi_i: spi,
            spi_r,
        };
        let keys = IkeKeys::derive(Prf::HmacSha256, IkeCipher::Aes128Gcm16, inputs, &shared)?;
        let id = Identification::from(Identity::Fqdn(format!("peer-{NAME}.example")));
        let psk = SecretBytes::new(self.load.psk.clone().into_bytes());
        let input = AuthInput {
            message: request,
            nonce: nonce_r,
            sk_p: &keys.sk_pi,
            id_body: &id.body(),
            intermediate: &[],
        };
        let mut inner = vec![
            Payload::IdInitiator(id),
            Payload::Authentication(Authentication {
                method: AuthMethod::SHARED_KEY_MIC,
                data: psk_auth(Prf::HmacSha256, &psk, input),
            }),
        ];
        if let Some((behind, network)) = self.load.child {
            let transforms = vec![
                Transform::with_key_bits(TransformType::ENCR, 20, 128),
                Transform::new(TransformType::ESN, 0),
            ];
            let own = Ipv4Addr::from(u32::from(behind) + self.begun as u32);
            inner.push(proposal(
                ProtocolId::ESP,
                (spi.0 as u32 | 0x100).to_be_bytes().to_vec(),
                transforms,
            ));
            inner.push(Payload::TsInitiator(vec![selector(own, own)].into()));
            inner.push(Payload::TsResponder(vec![selector(network.0, network.1)].into()));
        }
        let (first, inner) = encode_chain(&inner)?;
        let key = keys.initiator_key()?;
        let header = header(spi, spi_r, ExchangeType::IKE_AUTH, 1);
        let mut message = encode_sk_prefix(&header, first, key.cipher().sealed_len(inner.len()))?;
        let sealed = key.seal(&message, &[0; 8], &inner)?;
        message.extend_from_slice(&sealed);
        let step = Step::Auth {
            keys: Box::new(keys),
            response: response.to_vec(),
            nonce_i,
        };
        Ok((step, message))
    }

    /// The responder's proof, and its Child SA.
    fn check(
        &self,
        keys: &IkeKeys,
        response: &[u8],
        nonce_i: &[u8],
        bytes: &[u8],
        message: &Message,
    ) -> Result<()> {
        let sealed = message.protected.as_ref().context("IKE_AUTH response in clear")?;
        let inner = keys
            .responder_key()?
            .open(sealed.prefix(bytes), sealed.sealed(bytes))?;
        let payloads = parse_chain(sealed.first, &inner)?;
        if let Some(error) = payloads.error() {
            bail!("IKE_AUTH was refused with {}", error.kind);
        }
        let id = payloads.id_r().context("IKE_AUTH response without IDr")?;
        let auth = payloads.auth().context("IKE_AUTH response without AUTH")?;
        let psk = SecretBytes::new(self.load.psk.clone().into_bytes());
        let input = AuthInput {
            message: response,
            nonce: nonce_i,
            sk_p: &keys.sk_pr,
            id_body: &id.body(),
            intermediate: &[],
        };
        ensure!(
            verify_psk_auth(Prf::HmacSha256, &psk, input, &auth.data),
            "the responder does not prove that it has the key"
        );
        ensure!(
            self.load.child.is_none() || payloads.sa().is_some(),
            "IKE_AUTH response without the Child SA"
        );
        Ok(())
    }
}

fn proposal(protocol: ProtocolId, spi: Vec<u8>, transforms: Vec<Transform>) -> Payload {
    let proposal = Proposal {
        number: 1,
        protocol,
        spi,
        transforms,
    };
    Payload::SecurityAssociation(SecurityAssociation {
        proposals: vec![proposal],
    })
}

fn selector(first: Ipv4Addr, last: Ipv4Addr) -> TrafficSelector {
    TrafficSelector {
        first: first.into(),
        last: last.into(),
        protocol: 0,
        first_port: 0,
        last_port: u16::MAX,
    }
}

fn header(spi_i: IkeSpi, spi_r: IkeSpi, exchange: ExchangeType, message_id: u32) -> Header {
    Header {
        spi_i,
        spi_r,
        exchange,
        flags: Flags {
            initiator: true,
            version: false,
            response: false,
        },
        message_id,
    }
}
