//! Key exchange methods: groups and a KEM, all with the transform IDs of type 4.
//!
//! The two sides of an exchange do not do the same: an initiator generates a key ([`DhGroup::generate`]) and uses the answer
//! ([`DhPrivate::agree`]); a responder does all in one step ([`DhGroup::respond`]), which is the only way for a KEM.

mod ecp;
mod mlkem;
mod modp;
mod work;

pub use work::{DhWork, DhWorked};

use crate::{CryptoError, Random, Secret};
use ecp::EcpKey;
use mlkem::KemKey;
use model::SecretBytes;
use modp::ModpKey;
use serde::{Deserialize, Serialize};
use x25519_dalek::{PublicKey, StaticSecret};

/// Tries before a random source is called broken. A scalar is refused with a probability of at most 2^-32.
const SCALAR_TRIES: usize = 8;

/// A key exchange method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DhGroup {
    /// Curve25519 (RFC 8031), transform ID 31.
    Curve25519,
    /// 256-bit random ECP group (RFC 5903), transform ID 19.
    Ecp256,
    /// 384-bit random ECP group (RFC 5903), transform ID 20.
    Ecp384,
    /// 521-bit random ECP group (RFC 5903), transform ID 21.
    Ecp521,
    /// 2048-bit MODP group (RFC 3526), transform ID 14.
    Modp2048,
    /// 3072-bit MODP group (RFC 3526), transform ID 15.
    Modp3072,
    /// 4096-bit MODP group (RFC 3526), transform ID 16.
    Modp4096,
    /// ML-KEM-768 (FIPS 203), transform ID 36.
    MlKem768,
    /// ML-KEM-1024 (FIPS 203), transform ID 37.
    MlKem1024,
}

impl DhGroup {
    /// All methods.
    pub const ALL: [Self; 9] = [
        Self::Curve25519,
        Self::Ecp256,
        Self::Ecp384,
        Self::Ecp521,
        Self::Modp2048,
        Self::Modp3072,
        Self::Modp4096,
        Self::MlKem768,
        Self::MlKem1024,
    ];

    /// The method of a transform ID of type 4, if it is offered here.
    pub const fn from_transform_id(id: u16) -> Option<Self> {
        match id {
            31 => Some(Self::Curve25519),
            19 => Some(Self::Ecp256),
            20 => Some(Self::Ecp384),
            21 => Some(Self::Ecp521),
            14 => Some(Self::Modp2048),
            15 => Some(Self::Modp3072),
            16 => Some(Self::Modp4096),
            36 => Some(Self::MlKem768),
            37 => Some(Self::MlKem1024),
            _ => None,
        }
    }

    /// Transform ID of type 4, which the KE payload carries too.
    pub const fn transform_id(self) -> u16 {
        match self {
            Self::Curve25519 => 31,
            Self::Ecp256 => 19,
            Self::Ecp384 => 20,
            Self::Ecp521 => 21,
            Self::Modp2048 => 14,
            Self::Modp3072 => 15,
            Self::Modp4096 => 16,
            Self::MlKem768 => 36,
            Self::MlKem1024 => 37,
        }
    }

    /// Whether it is a key encapsulation mechanism: it withstands quantum computers, and its messages are long.
    pub const fn is_kem(self) -> bool {
        matches!(self, Self::MlKem768 | Self::MlKem1024)
    }

    /// Octets of the KE payload's data, from the initiator.
    pub const fn public_len(self) -> usize {
        match self {
            Self::Curve25519 => 32,
            Self::Ecp256 => 64,
            Self::Ecp384 => 96,
            Self::Ecp521 => 132,
            Self::Modp2048 => 256,
            Self::Modp3072 => 384,
            Self::Modp4096 => 512,
            Self::MlKem768 => 1184,
            Self::MlKem1024 => 1568,
        }
    }

    /// Octets of the KE payload's data, from the responder.
    pub const fn response_len(self) -> usize {
        match self {
            Self::MlKem768 => 1088,
            Self::MlKem1024 => 1568,
            _ => self.public_len(),
        }
    }

    /// A new private key.
    ///
    /// # Errors
    /// [`CryptoError::RandomSource`] if the source gives no usable key.
    pub fn generate(self, random: Random<'_>) -> Result<DhPrivate, CryptoError> {
        for _ in 0..SCALAR_TRIES {
            match self.draw(random) {
                Err(CryptoError::PrivateKey) => {}
                result => return result,
            }
        }
        Err(CryptoError::RandomSource)
    }

    /// The private key that [`DhPrivate::export`] gave.
    ///
    /// # Errors
    /// [`CryptoError::PrivateKey`] if the octets are none.
    pub fn restore(self, exported: &SecretBytes) -> Result<DhPrivate, CryptoError> {
        let octets = exported.expose();
        let key = match self {
            Self::Curve25519 => {
                let octets: [u8; 32] = octets.try_into().map_err(|_| CryptoError::PrivateKey)?;
                return Ok(curve25519(&Secret::new(octets)));
            }
            Self::Ecp256 | Self::Ecp384 | Self::Ecp521 => Key::Ecp(EcpKey::restore(self, octets)?),
            Self::Modp2048 | Self::Modp3072 | Self::Modp4096 => Key::Modp(ModpKey::restore(self, octets)?),
            Self::MlKem768 | Self::MlKem1024 => Key::Kem(KemKey::restore(self, octets)?),
        };
        DhPrivate::new(self, key)
    }

    /// The responder's side: the shared secret, and the data of its KE payload.
    ///
    /// # Errors
    /// As [`DhGroup::generate`] and [`DhPrivate::agree`].
    pub fn respond(
        self,
        random: Random<'_>,
        peer_public: &[u8],
    ) -> Result<(SecretBytes, Vec<u8>), CryptoError> {
        check_length(self.public_len(), peer_public)?;
        if self.is_kem() {
            return mlkem::encapsulate(self, peer_public);
        }
        let private = self.generate(random)?;
        let shared = private.agree(peer_public)?;
        Ok((shared, private.public))
    }

    fn draw(self, random: Random<'_>) -> Result<DhPrivate, CryptoError> {
        let key = match self {
            Self::Curve25519 => return Ok(curve25519(&Secret::random(random))),
            Self::Ecp256 | Self::Ecp384 | Self::Ecp521 => Key::Ecp(EcpKey::draw(self, random)?),
            Self::Modp2048 | Self::Modp3072 | Self::Modp4096 => Key::Modp(ModpKey::draw(self, random)?),
            Self::MlKem768 | Self::MlKem1024 => Key::Kem(KemKey::generate(self)?),
        };
        DhPrivate::new(self, key)
    }
}

fn curve25519(octets: &Secret<32>) -> DhPrivate {
    let secret = StaticSecret::from(*octets.expose());
    let public = PublicKey::from(&secret).to_bytes().to_vec();
    DhPrivate {
        group: DhGroup::Curve25519,
        key: Key::Curve25519(secret),
        public,
    }
}

fn check_length(expected: usize, public: &[u8]) -> Result<(), CryptoError> {
    if public.len() == expected {
        return Ok(());
    }
    Err(CryptoError::Length {
        what: "peer's public value",
        expected,
        got: public.len(),
    })
}

enum Key {
    Curve25519(StaticSecret),
    Ecp(EcpKey),
    Modp(ModpKey),
    Kem(KemKey),
}

/// An initiator's private key with its public value.
pub struct DhPrivate {
    group: DhGroup,
    key: Key,
    public: Vec<u8>,
}

impl DhPrivate {
    fn new(group: DhGroup, key: Key) -> Result<Self, CryptoError> {
        let public = match &key {
            Key::Curve25519(secret) => PublicKey::from(secret).to_bytes().to_vec(),
            Key::Ecp(key) => key.public()?,
            Key::Modp(key) => key.public().to_vec(),
            Key::Kem(key) => key.public().to_vec(),
        };
        Ok(Self { group, key, public })
    }

    /// Its group.
    pub fn group(&self) -> DhGroup {
        self.group
    }

    /// Data of our KE payload.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// The private key's octets, for the journal.
    pub fn export(&self) -> SecretBytes {
        match &self.key {
            Key::Curve25519(secret) => SecretBytes::new(secret.as_bytes().to_vec()),
            Key::Ecp(key) => key.export(),
            Key::Modp(key) => key.export(),
            Key::Kem(key) => key.export(),
        }
    }

    /// The shared secret g^ir with the data of the peer's KE payload.
    ///
    /// # Errors
    /// [`CryptoError::Length`] or [`CryptoError::PeerPublic`] for a value outside the group,
    /// [`CryptoError::NonContributory`] for an all-zero secret.
    pub fn agree(&self, peer_public: &[u8]) -> Result<SecretBytes, CryptoError> {
        check_length(self.group.response_len(), peer_public)?;
        match &self.key {
            Key::Curve25519(secret) => {
                let peer: [u8; 32] = peer_public.try_into().map_err(|_| CryptoError::PeerPublic)?;
                let shared = secret.diffie_hellman(&PublicKey::from(peer));
                // RFC 7748 6.1: both MAY check whether the shared secret is the all-zero value and abort if so. We do.
                if !shared.was_contributory() {
                    return Err(CryptoError::NonContributory);
                }
                Ok(SecretBytes::new(shared.as_bytes().to_vec()))
            }
            Key::Ecp(key) => key.agree(peer_public),
            Key::Modp(key) => key.agree(peer_public),
            Key::Kem(key) => key.decapsulate(peer_public),
        }
    }
}
