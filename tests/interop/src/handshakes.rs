//! Load: complete IKE handshakes with a pre-shared key, as many and as fast as a responder answers.
//!
//! The initiators are written from the RFC and do as little as they can: one private key for all of them, no retransmission before
//! half a second has passed, nothing kept of an IKE SA that is up. What is measured is the responder.

use crate::netns::Netns;
use anyhow::{Context, Result, bail, ensure};
use crypto::{AuthInput, DhGroup, DhPrivate, IkeCipher, IkeKeys, KeyInputs, Prf, psk_auth, verify_psk_auth};
use ike_wire::{
    AuthMethod, Authentication, DhTransform, ExchangeType, Flags, Header, Identification, Identity,
    KeyExchange, Message, Notify, NotifyType, Payload, Proposal, ProtocolId, SecurityAssociation, Transform,
    TransformType, encode_chain, encode_message, encode_sk_prefix, parse_chain,
};
use model::{IkeSpi, SecretBytes, TrafficSelector};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::HashMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// The suite of all handshakes, as configurations write it.
pub const SUITE: &str = "aes128gcm16-prfsha256-x25519";
/// Of their Child SAs.
pub const ESP: &str = "aes128gcm16";
/// Name of the connection; the identities are `peer-NAME.example` and `gw-NAME.example`.
pub const NAME: &str = "load";

const RETRY: Duration = Duration::from_millis(500);

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Load {
    /// Our address.
    pub local: Ipv4Addr,
    /// The responder's.
    pub remote: Ipv4Addr,
    /// The pre-shared key.
    pub psk: String,
    /// Handshakes.
    pub count: usize,
    /// Of these under way at the same time.
    pub at_once: usize,
    /// Each brings up a Child SA as well: an address of our own behind us and the network behind the responder.
    pub child: Option<(Ipv4Addr, (Ipv4Addr, Ipv4Addr))>,
    /// Tells the initiators' SPIs and nonces apart from those of other runs.
    pub seed: u64,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// From the first message to the last answer.
    pub elapsed: Duration,
    /// Requests that were sent again.
    pub repeated: usize,
}

/// Does all handshakes from a namespace, or fails.
pub fn run(netns: &Netns, load: &Load) -> Result<Outcome> {
    let load = load.clone();
    netns.inside(move || Crew::new(load)?.run())
}

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

struct Crew {
    load: Load,
    socket: UdpSocket,
    private: DhPrivate,
    under_way: HashMap<IkeSpi, Handshake>,
    begun: usize,
    repeated: usize,
}

impl Crew {
    fn new(load: Load) -> Result<Self> {
        let socket = UdpSocket::bind((load.local, 500)).context("UDP port 500")?;
        socket.connect((load.remote, 500))?;
        socket.set_nonblocking(true)?;
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(16 << 20))?;
        let seed = load.seed;
        let private = DhGroup::Curve25519
            .generate(&mut |out| out.copy_from_slice(&crypto::sha256(&[b"key", &seed.to_be_bytes()])))
            .context("a private key")?;
        Ok(Self {
            load,
            socket,
            private,
            under_way: HashMap::new(),
            begun: 0,
            repeated: 0,
        })
    }

    fn run(mut self) -> Result<Outcome> {
        let start = Instant::now();
        let limit = Duration::from_secs(60) + Duration::from_millis(20) * self.load.count as u32;
        let mut buffer = vec![0; 65_536];
        while self.begun < self.load.count || !self.under_way.is_empty() {
            ensure!(
                start.elapsed() < limit,
                "{} of {} handshakes are not complete after {limit:?}",
                self.load.count - self.begun + self.under_way.len(),
                self.load.count
            );
            while self.begun < self.load.count && self.under_way.len() < self.load.at_once {
                self.begin()?;
            }
            let mut polled = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            if poll(&mut polled, PollTimeout::from(100u8)).unwrap_or(0) == 0 {
                self.repeat()?;
            }
            // An error here is an ICMP answer to an earlier message, which will be repeated.
            while let Ok(length) = self.socket.recv(&mut buffer) {
                self.answer(&buffer[..length])?;
            }
        }
        Ok(Outcome {
            elapsed: start.elapsed(),
            repeated: self.repeated,
        })
    }

    fn send(&self, bytes: &[u8]) {
        // What is not sent is repeated.
        let _ = self.socket.send(bytes);
    }

    fn repeat(&mut self) -> Result<()> {
        let now = Instant::now();
        for handshake in self.under_way.values_mut() {
            if now.duration_since(handshake.sent) > RETRY {
                handshake.sent = now;
                self.repeated += 1;
                let _ = self.socket.send(&handshake.request);
            }
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<()> {
        self.begun += 1;
        let digest = crypto::sha256(&[&self.load.seed.to_be_bytes(), &(self.begun as u64).to_be_bytes()]);
        let spi = IkeSpi(u64::from_be_bytes(digest[..8].try_into()?) | 1);
        let nonce = digest.to_vec();
        let request = self.first_message(spi, &nonce, None)?;
        self.send(&request);
        let handshake = Handshake {
            step: Step::Init { nonce },
            request,
            sent: Instant::now(),
        };
        self.under_way.insert(spi, handshake);
        Ok(())
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

    fn answer(&mut self, bytes: &[u8]) -> Result<()> {
        let message = Message::parse(bytes).context("the responder's message")?;
        let spi = message.header.spi_i;
        if !message.header.flags.response {
            return Ok(());
        }
        let Some(handshake) = self.under_way.remove(&spi) else {
            return Ok(());
        };
        let next = match (handshake.step, message.header.exchange) {
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
                return self.check(&keys, &response, &nonce_i, bytes, &message);
            }
            // A second answer to IKE_SA_INIT.
            (step, _) => (step, handshake.request),
        };
        let (step, request) = next;
        self.send(&request);
        let sent = Instant::now();
        self.under_way.insert(spi, Handshake { step, request, sent });
        Ok(())
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
