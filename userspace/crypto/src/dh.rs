//! Key exchange: group 31 (RFC 8031) and group 19 (RFC 5903).

use crate::{CryptoError, Random, Secret};
use aws_lc_rs::agreement;
use model::SecretBytes;
use serde::{Deserialize, Serialize};
use x25519_dalek::{PublicKey, StaticSecret};

/// Tries before a random source is called broken. A P-256 scalar is refused with probability 2^-32.
const SCALAR_TRIES: usize = 8;
/// Uncompressed-point marker of SEC 1, which IKE leaves out (RFC 5903 7).
const SEC1_UNCOMPRESSED: u8 = 4;

/// A key exchange method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DhGroup {
    /// Curve25519, transform ID 31.
    Curve25519,
    /// 256-bit random ECP group, transform ID 19.
    Ecp256,
}

impl DhGroup {
    /// The group of a transform ID of type 4, if it is offered here.
    pub const fn from_transform_id(id: u16) -> Option<Self> {
        match id {
            31 => Some(Self::Curve25519),
            19 => Some(Self::Ecp256),
            _ => None,
        }
    }

    /// Transform ID of type 4, which the KE payload carries too.
    pub const fn transform_id(self) -> u16 {
        match self {
            Self::Curve25519 => 31,
            Self::Ecp256 => 19,
        }
    }

    /// Octets of the KE payload's data.
    pub const fn public_len(self) -> usize {
        match self {
            Self::Curve25519 => 32,
            Self::Ecp256 => 64,
        }
    }

    /// A new private key.
    ///
    /// # Errors
    /// [`CryptoError::RandomSource`] if the source gives no usable key.
    pub fn generate(self, random: Random<'_>) -> Result<DhPrivate, CryptoError> {
        for _ in 0..SCALAR_TRIES {
            match self.private(&Secret::random(random)) {
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
        let octets: [u8; 32] = exported
            .expose()
            .try_into()
            .map_err(|_| CryptoError::PrivateKey)?;
        self.private(&Secret::new(octets))
    }

    fn private(self, octets: &Secret<32>) -> Result<DhPrivate, CryptoError> {
        match self {
            Self::Curve25519 => {
                let secret = StaticSecret::from(*octets.expose());
                let public = PublicKey::from(&secret).to_bytes().to_vec();
                Ok(DhPrivate {
                    key: Key::Curve25519(secret),
                    public,
                })
            }
            Self::Ecp256 => {
                let key = agreement::PrivateKey::from_private_key(&agreement::ECDH_P256, octets.expose())
                    .map_err(|_| CryptoError::PrivateKey)?;
                let public = key.compute_public_key().map_err(|_| CryptoError::Provider)?;
                let public = public.as_ref().get(1..).ok_or(CryptoError::Provider)?.to_vec();
                Ok(DhPrivate {
                    key: Key::Ecp256 {
                        key: Box::new(key),
                        octets: octets.clone(),
                    },
                    public,
                })
            }
        }
    }
}

enum Key {
    Curve25519(StaticSecret),
    Ecp256 {
        key: Box<agreement::PrivateKey>,
        octets: Secret<32>,
    },
}

/// A private key with its public value.
pub struct DhPrivate {
    key: Key,
    public: Vec<u8>,
}

impl DhPrivate {
    /// Its group.
    pub fn group(&self) -> DhGroup {
        match self.key {
            Key::Curve25519(_) => DhGroup::Curve25519,
            Key::Ecp256 { .. } => DhGroup::Ecp256,
        }
    }

    /// Data of our KE payload.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// The private key's octets, for the journal.
    pub fn export(&self) -> SecretBytes {
        match &self.key {
            Key::Curve25519(secret) => SecretBytes::new(secret.as_bytes().to_vec()),
            Key::Ecp256 { octets, .. } => SecretBytes::new(octets.expose().to_vec()),
        }
    }

    /// The shared secret g^ir with the data of the peer's KE payload.
    ///
    /// # Errors
    /// [`CryptoError::Length`] or [`CryptoError::PeerPublic`] for a value outside the group,
    /// [`CryptoError::NonContributory`] for an all-zero secret.
    pub fn agree(&self, peer_public: &[u8]) -> Result<SecretBytes, CryptoError> {
        let expected = self.group().public_len();
        if peer_public.len() != expected {
            return Err(CryptoError::Length {
                what: "peer's public value",
                expected,
                got: peer_public.len(),
            });
        }
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
            Key::Ecp256 { key, .. } => {
                let mut point = Vec::with_capacity(1 + expected);
                point.push(SEC1_UNCOMPRESSED);
                point.extend_from_slice(peer_public);
                // RFC 5903 7: the shared secret is the x coordinate; the provider checks that the point is on the curve.
                let peer = agreement::UnparsedPublicKey::new(&agreement::ECDH_P256, point);
                agreement::agree(key, peer, CryptoError::PeerPublic, |x| {
                    Ok(SecretBytes::new(x.to_vec()))
                })
            }
        }
    }
}
