//! Groups 19 to 21 (RFC 5903).

use super::DhGroup;
use crate::{CryptoError, Random};
use aws_lc_rs::agreement::{self, Algorithm, PrivateKey, UnparsedPublicKey};
use model::SecretBytes;

/// Uncompressed-point marker of SEC 1, which IKE leaves out (RFC 5903 7).
const SEC1_UNCOMPRESSED: u8 = 4;

pub(super) struct EcpKey {
    algorithm: &'static Algorithm,
    key: Box<PrivateKey>,
    scalar: SecretBytes,
}

fn algorithm(group: DhGroup) -> Result<&'static Algorithm, CryptoError> {
    match group {
        DhGroup::Ecp256 => Ok(&agreement::ECDH_P256),
        DhGroup::Ecp384 => Ok(&agreement::ECDH_P384),
        DhGroup::Ecp521 => Ok(&agreement::ECDH_P521),
        _ => Err(CryptoError::Provider),
    }
}

impl EcpKey {
    pub fn draw(group: DhGroup, random: Random<'_>) -> Result<Self, CryptoError> {
        let mut octets = vec![0; group.public_len() / 2];
        random(&mut octets);
        if group == DhGroup::Ecp521 {
            // The order has 521 bits: without this nearly every scalar would be too large.
            octets[0] &= 1;
        }
        Self::from_scalar(group, SecretBytes::new(octets))
    }

    pub fn restore(group: DhGroup, exported: &[u8]) -> Result<Self, CryptoError> {
        if exported.len() != group.public_len() / 2 {
            return Err(CryptoError::PrivateKey);
        }
        Self::from_scalar(group, SecretBytes::new(exported.to_vec()))
    }

    fn from_scalar(group: DhGroup, scalar: SecretBytes) -> Result<Self, CryptoError> {
        let algorithm = algorithm(group)?;
        let key =
            PrivateKey::from_private_key(algorithm, scalar.expose()).map_err(|_| CryptoError::PrivateKey)?;
        Ok(Self {
            algorithm,
            key: Box::new(key),
            scalar,
        })
    }

    pub fn public(&self) -> Result<Vec<u8>, CryptoError> {
        let point = self.key.compute_public_key().map_err(|_| CryptoError::Provider)?;
        Ok(point.as_ref().get(1..).ok_or(CryptoError::Provider)?.to_vec())
    }

    pub fn export(&self) -> SecretBytes {
        self.scalar.clone()
    }

    pub fn agree(&self, peer_public: &[u8]) -> Result<SecretBytes, CryptoError> {
        let mut point = Vec::with_capacity(1 + peer_public.len());
        point.push(SEC1_UNCOMPRESSED);
        point.extend_from_slice(peer_public);
        // RFC 5903 7: the shared secret is the x coordinate; the provider checks that the point is on the curve
        // (RFC 6989 2.3).
        let peer = UnparsedPublicKey::new(self.algorithm, point);
        agreement::agree(&self.key, peer, CryptoError::PeerPublic, |x| {
            Ok(SecretBytes::new(x.to_vec()))
        })
    }
}
