//! A key exchange as a piece of work: data that one thread makes and another one computes.

use super::{DhGroup, DhPrivate, EcpKey, Key};
use crate::{CryptoError, Random};
use model::SecretBytes;
use x25519_dalek::StaticSecret;

/// One computation. No `Debug`: it may hold a private key.
pub enum DhWork {
    /// An initiator's private key and public value.
    Generate(DhGroup),
    /// The public value of a private key that [`crate::DhPrivate::export`] gave.
    Public(DhGroup, SecretBytes),
    /// The responder's side, with the data of the initiator's KE payload: shared secret and public value.
    Respond(DhGroup, Vec<u8>),
    /// The initiator's shared secret, with its private key and the data of the responder's KE payload.
    Agree(DhGroup, SecretBytes, Vec<u8>),
}

/// What comes of it. No `Debug`: it holds a secret.
pub struct DhWorked {
    /// The private key, or the shared secret.
    pub secret: SecretBytes,
    /// Data of our KE payload; empty where it is not asked for.
    pub public: Vec<u8>,
}

impl DhWork {
    /// Which method it is.
    pub const fn group(&self) -> DhGroup {
        match self {
            Self::Generate(group)
            | Self::Public(group, _)
            | Self::Respond(group, _)
            | Self::Agree(group, ..) => *group,
        }
    }

    /// Whether it takes tens of microseconds rather than up to several milliseconds.
    pub const fn is_light(&self) -> bool {
        matches!(self.group(), DhGroup::Curve25519 | DhGroup::Ecp256)
    }

    /// Computes it.
    ///
    /// # Errors
    /// As [`DhGroup::generate`], [`DhGroup::restore`] and [`crate::DhPrivate::agree`].
    pub fn run(&self, random: Random<'_>) -> Result<DhWorked, CryptoError> {
        match self {
            Self::Generate(group) => {
                let private = group.generate(random)?;
                Ok(DhWorked {
                    secret: private.export(),
                    public: private.public,
                })
            }
            Self::Public(group, private) => Ok(DhWorked {
                secret: private.clone(),
                public: group.restore(private)?.public,
            }),
            Self::Respond(group, peer) => {
                let (secret, public) = group.respond(random, peer)?;
                Ok(DhWorked { secret, public })
            }
            Self::Agree(group, private, peer) => Ok(DhWorked {
                secret: agree(*group, private, peer)?,
                public: Vec::new(),
            }),
        }
    }
}

/// As [`DhGroup::restore`] and [`DhPrivate::agree`], without the public value, which nobody wants here.
fn agree(group: DhGroup, exported: &SecretBytes, peer: &[u8]) -> Result<SecretBytes, CryptoError> {
    let octets = exported.expose();
    let key = match group {
        DhGroup::Curve25519 => {
            let octets: [u8; 32] = octets.try_into().map_err(|_| CryptoError::PrivateKey)?;
            Key::Curve25519(StaticSecret::from(octets))
        }
        DhGroup::Ecp256 | DhGroup::Ecp384 | DhGroup::Ecp521 => Key::Ecp(EcpKey::restore(group, octets)?),
        _ => return group.restore(exported)?.agree(peer),
    };
    let private = DhPrivate {
        group,
        key,
        public: Vec::new(),
    };
    private.agree(peer)
}
