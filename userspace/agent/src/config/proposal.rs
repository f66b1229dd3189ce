//! Proposals as text: `aes256gcm16-prfsha256-x25519` for IKE, `chacha20poly1305-x25519-esn` for ESP.

use model::EspSuite;

/// Cipher of an IKE SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IkeCipher {
    /// AES-GCM, 128-bit key, 16-octet ICV (RFC 5282).
    Aes128Gcm16,
    /// AES-GCM, 256-bit key, 16-octet ICV (RFC 5282).
    Aes256Gcm16,
    /// ChaCha20-Poly1305 (RFC 7634).
    ChaCha20Poly1305,
}

/// PRF of an IKE SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IkePrf {
    /// HMAC-SHA-256 (RFC 4868).
    HmacSha256,
    /// HMAC-SHA-384.
    HmacSha384,
    /// HMAC-SHA-512.
    HmacSha512,
}

/// Key exchange method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IkeGroup {
    /// Curve25519 (RFC 8031), group 31.
    X25519,
    /// P-256 (RFC 5903), group 19.
    Ecp256,
    /// P-384 (RFC 5903), group 20.
    Ecp384,
}

/// One IKE proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IkeProposal {
    /// Cipher.
    pub cipher: IkeCipher,
    /// PRF.
    pub prf: IkePrf,
    /// Key exchange.
    pub group: IkeGroup,
}

/// One ESP proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EspProposal {
    /// Suite.
    pub suite: EspSuite,
    /// Key exchange for rekeys, `None` without PFS.
    pub group: Option<IkeGroup>,
    /// Extended sequence numbers are offered.
    pub esn: bool,
}

const CIPHERS: [(&str, IkeCipher, EspSuite); 3] = [
    ("aes128gcm16", IkeCipher::Aes128Gcm16, EspSuite::Aes128Gcm16),
    ("aes256gcm16", IkeCipher::Aes256Gcm16, EspSuite::Aes256Gcm16),
    (
        "chacha20poly1305",
        IkeCipher::ChaCha20Poly1305,
        EspSuite::ChaCha20Poly1305,
    ),
];
const PRFS: [(&str, IkePrf); 3] = [
    ("prfsha256", IkePrf::HmacSha256),
    ("prfsha384", IkePrf::HmacSha384),
    ("prfsha512", IkePrf::HmacSha512),
];
const GROUPS: [(&str, IkeGroup); 4] = [
    ("x25519", IkeGroup::X25519),
    ("curve25519", IkeGroup::X25519),
    ("ecp256", IkeGroup::Ecp256),
    ("ecp384", IkeGroup::Ecp384),
];

/// The words that may stand in an IKE proposal.
pub(super) const IKE_SHAPE: &str = "aes128gcm16|aes256gcm16|chacha20poly1305, then prfsha256|prfsha384|prfsha512, \
                                    then x25519|ecp256|ecp384, with '-' between";
/// The words that may stand in an ESP proposal.
pub(super) const ESP_SHAPE: &str = "chacha20poly1305|aes128gcm16|aes256gcm16, then if wanted x25519|ecp256|ecp384 \
                                    and esn|noesn, with '-' between";

pub(super) fn parse_ike(text: &str) -> Option<IkeProposal> {
    let mut words = text.split('-');
    let cipher = words.next().and_then(|w| CIPHERS.iter().find(|c| c.0 == w))?.1;
    let prf = words.next().and_then(|w| PRFS.iter().find(|p| p.0 == w))?.1;
    let group = words.next().and_then(|w| GROUPS.iter().find(|g| g.0 == w))?.1;
    words
        .next()
        .is_none()
        .then_some(IkeProposal { cipher, prf, group })
}

pub(super) fn parse_esp(text: &str) -> Option<EspProposal> {
    let mut words = text.split('-').peekable();
    let suite = words.next().and_then(|w| CIPHERS.iter().find(|c| c.0 == w))?.2;
    let group = words
        .peek()
        .and_then(|w| GROUPS.iter().find(|g| g.0 == *w))
        .map(|g| g.1);
    if group.is_some() {
        words.next();
    }
    let esn = match words.next() {
        Some("esn") => true,
        Some("noesn") | None => false,
        Some(_) => return None,
    };
    words
        .next()
        .is_none()
        .then_some(EspProposal { suite, group, esn })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proposals_read_like_those_of_strongswan() {
        assert_eq!(
            parse_ike("aes256gcm16-prfsha384-ecp384"),
            Some(IkeProposal {
                cipher: IkeCipher::Aes256Gcm16,
                prf: IkePrf::HmacSha384,
                group: IkeGroup::Ecp384
            })
        );
        let esp = parse_esp("chacha20poly1305-x25519-esn").unwrap();
        assert_eq!(
            (esp.suite, esp.group, esp.esn),
            (EspSuite::ChaCha20Poly1305, Some(IkeGroup::X25519), true)
        );
        assert_eq!(parse_esp("aes128gcm16").unwrap().group, None);
    }

    #[test]
    fn unknown_missing_and_surplus_words_are_refused() {
        for text in [
            "",
            "aes256gcm16",
            "aes256gcm16-prfsha256",
            "3des-prfsha256-x25519",
            "aes256gcm16-prfsha256-x25519-x",
        ] {
            assert_eq!(parse_ike(text), None, "{text}");
        }
        for text in [
            "",
            "null",
            "aes256gcm16-sha1",
            "aes256gcm16-x25519-esn-esn",
            "aes128iiv",
        ] {
            assert_eq!(parse_esp(text), None, "{text}");
        }
    }
}
