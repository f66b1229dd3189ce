//! In front of all IKE SAs: who may begin one, and what is answered without state (RFC 7296 2.6, 2.21).

use crate::config::EndpointConfig;
use crypto::{ct_eq, hmac_sha256};
use ike_wire::{Header, Notify, NotifyType, Payload, encode_message};
use model::{IkeSpi, Instant, SecretBytes};
use std::net::{IpAddr, SocketAddr};

/// Stateless answers per second, all peers together.
const ANSWERS_PER_SECOND: u64 = 100;

/// Quick crash detection answers per second, all peers together; beside the others, so that no flood of first messages
/// keeps peers from learning that we lost their IKE SAs.
const TOKENS_PER_SECOND: u64 = 100;

/// Octets of the shortest protected request: header, payload header, IV, Pad Length, ICV of an AEAD.
const PROTECTED_MIN: usize = 28 + 4 + 8 + 1 + 16;

/// What to do with a first message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Admit,
    /// Answer with this cookie.
    Cookie(Vec<u8>),
    Drop,
}

/// Allows so many per second.
#[derive(Default)]
struct Bucket {
    left: u64,
    refilled: Instant,
}

impl Bucket {
    fn take(&mut self, now: Instant, per_second: u64) -> bool {
        if now.since(self.refilled).as_secs() >= 1 || self.refilled == Instant::default() {
            self.refilled = now;
            self.left = per_second;
        }
        let allowed = self.left > 0;
        self.left = self.left.saturating_sub(1);
        allowed
    }
}

/// Counters of the endpoint.
#[derive(Default)]
pub(crate) struct Endpoint {
    answers: Bucket,
    crash_answers: Bucket,
    /// Whether cookies were asked for last time: the change is reported once.
    pub cookie_mode: bool,
    pub flooded: bool,
}

fn cookie(secret: &SecretBytes, nonce: &[u8], remote: IpAddr, spi_i: IkeSpi) -> [u8; 32] {
    let address = model::address::mapped(remote);
    hmac_sha256(
        secret.expose(),
        &[b"cookie", nonce, &address, &spi_i.0.to_be_bytes()],
    )
}

impl Endpoint {
    /// Decides about a first message. It is cheap: one HMAC, and while secrets are replaced up to three more.
    pub fn admit(
        &mut self,
        config: &EndpointConfig,
        half_open: usize,
        remote: SocketAddr,
        spi_i: IkeSpi,
        nonce: &[u8],
        shown: Option<&[u8]>,
    ) -> Admission {
        self.flooded = half_open >= config.half_open_max;
        self.cookie_mode = half_open >= config.cookie_threshold;
        if self.flooded {
            return Admission::Drop;
        }
        if !self.cookie_mode {
            return Admission::Admit;
        }
        let of = |secret| cookie(secret, nonce, remote.ip(), spi_i);
        let others = config.also_honoured.iter().map(|other| &other.cookie);
        let mut honoured = std::iter::once(&config.cookie_secret).chain(others);
        match shown {
            Some(shown) if honoured.any(|secret| ct_eq(shown, &of(secret))) => Admission::Admit,
            _ => Admission::Cookie(of(&config.cookie_secret).to_vec()),
        }
    }

    /// Whether a stateless answer may be sent now.
    pub fn may_answer(&mut self, now: Instant) -> bool {
        self.answers.take(now, ANSWERS_PER_SECOND)
    }

    /// Whether a QCD token may be shown now (RFC 6290 9.3).
    pub fn may_show_token(&mut self, now: Instant) -> bool {
        self.crash_answers.take(now, TOKENS_PER_SECOND)
    }
}

/// An unprotected answer with one notification; `None` if it would be longer than what it answers, so that nobody can
/// use us to amplify.
pub(crate) fn stateless(request: &Header, request_len: usize, notify: Notify) -> Option<Vec<u8>> {
    let bytes = encode_message(&answer_to(request), &[Payload::Notify(notify)]).ok()?;
    (bytes.len() <= request_len).then_some(bytes)
}

/// SPIs and Message ID of the request, flags of its response.
fn answer_to(request: &Header) -> Header {
    let mut header = *request;
    header.flags.response = true;
    header.flags.initiator = !request.flags.initiator;
    header.flags.version = false;
    header
}

/// INVALID_IKE_SPI.
pub(crate) fn unknown_spi(request: &Header, request_len: usize) -> Option<Vec<u8>> {
    stateless(request, request_len, Notify::status(NotifyType::INVALID_IKE_SPI))
}

/// INVALID_IKE_SPI with the proof that this member, which made the token, has lost the IKE SA (RFC 6290 4.5). It answers
/// requests of a protected message's length only, and is then at most 19 octets longer: with IP and UDP headers less than a
/// quarter. RFC 6290 cannot work with less, since a liveness check is the shortest of all requests. While a secret is replaced the
/// token of each one that is honoured is in it, 40 octets more: nobody knows by which the peer's was made.
pub(crate) fn crashed(request: &Header, request_len: usize, tokens: &[[u8; 32]]) -> Option<Vec<u8>> {
    if request_len < PROTECTED_MIN {
        return None;
    }
    let mut notifies = vec![Payload::Notify(Notify::status(NotifyType::INVALID_IKE_SPI))];
    notifies.extend(
        tokens
            .iter()
            .map(|token| Payload::Notify(Notify::qcd_token(token))),
    );
    encode_message(&answer_to(request), &notifies).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OtherSecrets;

    #[test]
    fn a_cookie_is_bound_to_nonce_address_and_spi() {
        let mut config = EndpointConfig::new(SecretBytes::new(vec![7; 32]));
        config.cookie_threshold = 0;
        let mut endpoint = Endpoint::default();
        let remote: SocketAddr = "192.0.2.1:500".parse().unwrap();
        let mut admit = |remote, spi, nonce: &[u8], shown: Option<&[u8]>| {
            endpoint.admit(&config, 1, remote, IkeSpi(spi), nonce, shown)
        };
        let Admission::Cookie(cookie) = admit(remote, 1, b"nonce", None) else {
            panic!("no cookie asked for")
        };
        assert_eq!(admit(remote, 1, b"nonce", Some(&cookie)), Admission::Admit);
        let elsewhere = "192.0.2.2:500".parse().unwrap();
        for (remote, spi, nonce) in [
            (elsewhere, 1, b"nonce"),
            (remote, 2, b"nonce"),
            (remote, 1, b"other"),
        ] {
            assert!(matches!(
                admit(remote, spi, nonce, Some(&cookie)),
                Admission::Cookie(_)
            ));
        }
    }

    #[test]
    fn a_cookie_of_a_secret_that_is_being_replaced_is_honoured_and_the_next_one_is_of_the_new() {
        let secret = |octet| SecretBytes::new(vec![octet; 32]);
        let config = |octet, others: &[u8]| {
            let mut config = EndpointConfig::new(secret(octet));
            config.cookie_threshold = 0;
            config.also_honoured = others
                .iter()
                .map(|octet| OtherSecrets {
                    cookie: secret(*octet),
                    qcd: secret(*octet),
                    ticket: secret(*octet),
                })
                .collect();
            config
        };
        let remote: SocketAddr = "192.0.2.1:500".parse().unwrap();
        let admit = |config: &EndpointConfig, shown: Option<&[u8]>| {
            Endpoint::default().admit(config, 1, remote, IkeSpi(1), b"nonce", shown)
        };
        let Admission::Cookie(old) = admit(&config(1, &[2]), None) else {
            panic!("no cookie asked for")
        };
        assert_eq!(admit(&config(2, &[1]), Some(&old)), Admission::Admit);
        let Admission::Cookie(new) = admit(&config(2, &[1]), None) else {
            panic!("no cookie asked for")
        };
        assert_eq!(admit(&config(1, &[2]), Some(&new)), Admission::Admit);
        assert_eq!(
            admit(&config(2, &[]), Some(&old)),
            Admission::Cookie(new),
            "the old one is forgotten"
        );
    }

    #[test]
    fn stateless_answers_are_limited_and_never_longer_than_the_question() {
        let mut endpoint = Endpoint::default();
        let now = Instant::from_millis(5000);
        let allowed = (0..1000).filter(|_| endpoint.may_answer(now)).count();
        assert_eq!(allowed as u64, ANSWERS_PER_SECOND);
        assert!(endpoint.may_answer(Instant::from_millis(6001)));
        let header = Header {
            spi_i: IkeSpi(1),
            spi_r: IkeSpi(2),
            exchange: ike_wire::ExchangeType::INFORMATIONAL,
            flags: Default::default(),
            message_id: 3,
        };
        assert!(unknown_spi(&header, 28).is_none());
        assert_eq!(unknown_spi(&header, 36).unwrap().len(), 36);
    }
}
