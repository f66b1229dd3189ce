//! Private keys, from PEM files and in tokens.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{self, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RsaKeyPair};
use ike::SignRequest;
use ike::auth::certificate::{Facts, KeyKind};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;

use super::token::TokenKey;

/// A private key that is in this process, or that this process may use. No `Debug`.
pub enum PrivateKey {
    /// RSA, 2048 to 8192 bits.
    Rsa(RsaKeyPair),
    /// ECDSA on one curve.
    Ecdsa(KeyKind, EcdsaKeyPair),
    /// Ed25519.
    Ed25519(Ed25519KeyPair),
    /// In a token.
    Token(TokenKey),
}

const CURVES: [(KeyKind, &EcdsaSigningAlgorithm); 3] = [
    (KeyKind::EcdsaP256, &signature::ECDSA_P256_SHA256_ASN1_SIGNING),
    (KeyKind::EcdsaP384, &signature::ECDSA_P384_SHA384_ASN1_SIGNING),
    (KeyKind::EcdsaP521, &signature::ECDSA_P521_SHA512_ASN1_SIGNING),
];

impl PrivateKey {
    /// Reads a PEM file: PKCS #8, PKCS #1 or SEC 1, not encrypted.
    ///
    /// # Errors
    /// It is none of these, or a key of another kind.
    pub fn read(path: &Path) -> Result<Self> {
        // The octets are cleared when dropped.
        let der = PrivateKeyDer::from_pem_file(path).map_err(|error| {
            anyhow!(
                "cannot read a private key from {}: {error} (PEM without a passphrase is needed)",
                path.display()
            )
        })?;
        Self::of(&der).with_context(|| {
            format!(
                "{} has no private key of RSA (2048 bits and more), ECDSA P-256, P-384, P-521 or Ed25519",
                path.display()
            )
        })
    }

    fn of(der: &PrivateKeyDer<'_>) -> Option<Self> {
        let octets = der.secret_der();
        let rsa = match der {
            PrivateKeyDer::Pkcs1(_) => RsaKeyPair::from_der(octets).ok(),
            _ => RsaKeyPair::from_pkcs8(octets).ok(),
        };
        if let Some(key) = rsa {
            return Some(Self::Rsa(key));
        }
        if let Ok(key) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(octets) {
            return Some(Self::Ed25519(key));
        }
        CURVES.iter().find_map(|(kind, algorithm)| {
            let key = EcdsaKeyPair::from_private_key_der(algorithm, octets).ok()?;
            Some(Self::Ecdsa(*kind, key))
        })
    }

    /// What it is.
    pub fn kind(&self) -> KeyKind {
        match self {
            Self::Rsa(_) => KeyKind::Rsa,
            Self::Ecdsa(kind, _) => *kind,
            Self::Ed25519(_) => KeyKind::Ed25519,
            Self::Token(key) => key.kind(),
        }
    }

    /// Whether it is the key of a certificate. A token does not always have the public key, so it has to sign something, in the way
    /// that it will.
    ///
    /// # Errors
    /// The token does not sign.
    pub fn is_of(&self, facts: &Facts, rsa_pkcs1: bool) -> Result<bool, String> {
        let public: &[u8] = match self {
            Self::Rsa(key) => key.public_key().as_ref(),
            Self::Ecdsa(_, key) => key.public_key().as_ref(),
            Self::Ed25519(key) => key.public_key().as_ref(),
            Self::Token(key) => return is_in_token(key, facts, rsa_pkcs1),
        };
        Ok(self.kind() == facts.key && public == facts.public_key)
    }

    /// Signs; ECDSA signatures are DER.
    ///
    /// # Errors
    /// The scheme is not one of this key.
    pub fn sign(&self, request: &SignRequest) -> Result<Vec<u8>, String> {
        use crypto::SignatureScheme::*;
        let wrong = || {
            let (scheme, kind) = (request.scheme.name(), self.kind().name());
            format!("{scheme} cannot be made with a key of {kind}")
        };
        let failed = |_| "the provider refused to sign".to_owned();
        let random = SystemRandom::new();
        match self {
            Self::Rsa(key) => {
                let encoding: &'static dyn signature::RsaEncoding = match request.scheme {
                    RsaPssSha256 => &signature::RSA_PSS_SHA256,
                    RsaPssSha384 => &signature::RSA_PSS_SHA384,
                    RsaPssSha512 => &signature::RSA_PSS_SHA512,
                    RsaPkcs1Sha256 => &signature::RSA_PKCS1_SHA256,
                    RsaPkcs1Sha384 => &signature::RSA_PKCS1_SHA384,
                    RsaPkcs1Sha512 => &signature::RSA_PKCS1_SHA512,
                    _ => return Err(wrong()),
                };
                let mut out = vec![0; key.public_modulus_len()];
                key.sign(encoding, &random, &request.octets, &mut out)
                    .map_err(failed)?;
                Ok(out)
            }
            Self::Ecdsa(kind, key) => match (kind, request.scheme) {
                (KeyKind::EcdsaP256, EcdsaSha256)
                | (KeyKind::EcdsaP384, EcdsaSha384)
                | (KeyKind::EcdsaP521, EcdsaSha512) => {
                    let signature = key.sign(&random, &request.octets).map_err(failed)?;
                    Ok(signature.as_ref().to_vec())
                }
                _ => Err(wrong()),
            },
            Self::Token(key) => key.sign(request.scheme, &request.octets),
            Self::Ed25519(key) => match request.scheme {
                Ed25519 => Ok(key.sign(&request.octets).as_ref().to_vec()),
                _ => Err(wrong()),
            },
        }
    }
}

fn is_in_token(key: &TokenKey, facts: &Facts, rsa_pkcs1: bool) -> Result<bool, String> {
    use crypto::SignatureScheme::*;
    let (scheme, algorithm): (_, &dyn signature::VerificationAlgorithm) = match (facts.key, rsa_pkcs1) {
        (KeyKind::Rsa, true) => (RsaPkcs1Sha256, &signature::RSA_PKCS1_2048_8192_SHA256),
        (KeyKind::Rsa, false) => (RsaPssSha256, &signature::RSA_PSS_2048_8192_SHA256),
        (KeyKind::EcdsaP256, _) => (EcdsaSha256, &signature::ECDSA_P256_SHA256_ASN1),
        (KeyKind::EcdsaP384, _) => (EcdsaSha384, &signature::ECDSA_P384_SHA384_ASN1),
        (KeyKind::EcdsaP521, _) => (EcdsaSha512, &signature::ECDSA_P521_SHA512_ASN1),
        (KeyKind::Ed25519, _) => (Ed25519, &signature::ED25519),
    };
    const PROBE: &[u8] = b"espalier: does this key belong to that certificate?";
    let made = key.sign(scheme, PROBE)?;
    let public = signature::UnparsedPublicKey::new(algorithm, &facts.public_key);
    Ok(public.verify(PROBE, &made).is_ok())
}
