//! ML-KEM (FIPS 203), as draft-ietf-ipsecme-ikev2-mlkem puts it into KE payloads: the initiator sends an encapsulation key,
//! the responder a ciphertext.
//!
//! The provider draws its own randomness here: its interface takes none. It is the one exception in this crate.

use super::DhGroup;
use crate::CryptoError;
use aws_lc_rs::kem::{Algorithm, Ciphertext, DecapsulationKey, EncapsulationKey, ML_KEM_768, ML_KEM_1024};
use model::SecretBytes;
use std::ops::Range;

pub(super) struct KemKey {
    group: DhGroup,
    /// FIPS 203's dk: secret vector, ek, H(ek), z.
    decapsulation: SecretBytes,
    public: Vec<u8>,
}

fn algorithm(group: DhGroup) -> Result<&'static Algorithm, CryptoError> {
    match group {
        DhGroup::MlKem768 => Ok(&ML_KEM_768),
        DhGroup::MlKem1024 => Ok(&ML_KEM_1024),
        _ => Err(CryptoError::Provider),
    }
}

/// Where ek stands in dk: behind k polynomials of 384 octets.
fn public_range(group: DhGroup) -> Range<usize> {
    let start = group.public_len() - 32;
    start..start + group.public_len()
}

impl KemKey {
    pub fn generate(group: DhGroup) -> Result<Self, CryptoError> {
        let key = DecapsulationKey::generate(algorithm(group)?).map_err(|_| CryptoError::Provider)?;
        let octets = key.key_bytes().map_err(|_| CryptoError::Provider)?;
        Self::restore(group, octets.as_ref())
    }

    pub fn restore(group: DhGroup, exported: &[u8]) -> Result<Self, CryptoError> {
        let range = public_range(group);
        // H(ek) and z follow.
        if exported.len() != range.end + 64 {
            return Err(CryptoError::PrivateKey);
        }
        let public = exported.get(range).ok_or(CryptoError::PrivateKey)?.to_vec();
        Ok(Self {
            group,
            decapsulation: SecretBytes::new(exported.to_vec()),
            public,
        })
    }

    pub fn public(&self) -> &[u8] {
        &self.public
    }

    pub fn export(&self) -> SecretBytes {
        self.decapsulation.clone()
    }

    pub fn decapsulate(&self, ciphertext: &[u8]) -> Result<SecretBytes, CryptoError> {
        let key = DecapsulationKey::new(algorithm(self.group)?, self.decapsulation.expose())
            .map_err(|_| CryptoError::PrivateKey)?;
        // A ciphertext that was tampered with gives another secret (implicit rejection), and IKE_AUTH fails.
        let shared = key
            .decapsulate(Ciphertext::from(ciphertext))
            .map_err(|_| CryptoError::PeerPublic)?;
        Ok(SecretBytes::new(shared.as_ref().to_vec()))
    }
}

/// Shared secret and ciphertext for the peer's encapsulation key. FIPS 203 7.2 asks for a check of the key first: its length is
/// the caller's, its coefficients are the provider's.
pub(super) fn encapsulate(group: DhGroup, public: &[u8]) -> Result<(SecretBytes, Vec<u8>), CryptoError> {
    let key = EncapsulationKey::new(algorithm(group)?, public).map_err(|_| CryptoError::PeerPublic)?;
    let (ciphertext, shared) = key.encapsulate().map_err(|_| CryptoError::PeerPublic)?;
    Ok((
        SecretBytes::new(shared.as_ref().to_vec()),
        ciphertext.as_ref().to_vec(),
    ))
}
