//! AUTH payloads with signatures: which method and algorithm, and whether the peer's is right.

use super::certificate::{Facts, KeyKind};
use super::{LocalCertificate, is_signature};
use crypto::SignatureScheme;
use crypto::signature::{digital_signature, ecdsa_der, ecdsa_fixed, read_digital_signature};
use ike_wire::{AuthMethod, Authentication};
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm};
use webpki::{EndEntityCert, aws_lc_rs as algorithms};

/// How we are about to sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub method: AuthMethod,
    pub scheme: SignatureScheme,
    pub kind: KeyKind,
}

/// Chooses how to sign for a peer with these hash algorithms; `None`: it does not know RFC 7427.
pub(crate) fn choose(own: &LocalCertificate, hashes: Option<&[u16]>) -> Result<Choice, String> {
    use SignatureScheme::*;
    let kind = own.kind;
    let candidates: &[SignatureScheme] = match (kind, own.rsa_pss) {
        (KeyKind::Rsa, true) => &[RsaPssSha256, RsaPssSha384, RsaPssSha512],
        (KeyKind::Rsa, false) => &[RsaPkcs1Sha256, RsaPkcs1Sha384, RsaPkcs1Sha512],
        (KeyKind::EcdsaP256, _) => &[EcdsaSha256],
        (KeyKind::EcdsaP384, _) => &[EcdsaSha384],
        (KeyKind::EcdsaP521, _) => &[EcdsaSha512],
        (KeyKind::Ed25519, _) => &[Ed25519],
    };
    let (method, scheme) = match hashes {
        Some(hashes) => {
            let common = candidates.iter().find(|scheme| hashes.contains(&scheme.hash()));
            let scheme = common.ok_or_else(|| {
                let names: Vec<_> = candidates.iter().map(|scheme| scheme.name()).collect();
                format!(
                    "the peer does not verify {}; give it another certificate to verify",
                    names.join(" or ")
                )
            })?;
            (AuthMethod::DIGITAL_SIGNATURE, *scheme)
        }
        // RFC 4754: each method is one curve and one hash.
        None => match kind {
            KeyKind::EcdsaP256 => (AuthMethod::ECDSA_256, EcdsaSha256),
            KeyKind::EcdsaP384 => (AuthMethod::ECDSA_384, EcdsaSha384),
            KeyKind::EcdsaP521 => (AuthMethod::ECDSA_521, EcdsaSha512),
            KeyKind::Rsa | KeyKind::Ed25519 => {
                return Err(format!(
                    "the peer does not support digital signatures of RFC 7427, so {} would be signed with SHA-1, which is \
                     not done; use an ECDSA certificate",
                    kind.name()
                ));
            }
        },
    };
    Ok(Choice { method, scheme, kind })
}

/// A finished signature as AUTH payload. ECDSA signatures come as DER. `None`: it is no signature.
pub(crate) fn payload(choice: Choice, signature: &[u8]) -> Option<Authentication> {
    let data = match choice.method {
        AuthMethod::DIGITAL_SIGNATURE => digital_signature(choice.scheme, signature),
        _ => ecdsa_fixed(signature, coordinate_len(choice.kind))?,
    };
    Some(Authentication {
        method: choice.method,
        data,
    })
}

const fn coordinate_len(kind: KeyKind) -> usize {
    match kind {
        KeyKind::EcdsaP384 => 48,
        KeyKind::EcdsaP521 => 66,
        _ => 32,
    }
}

/// Whether the peer's AUTH payload is a signature of these octets by the key of this certificate.
pub(crate) fn verify(
    certificate: &[u8],
    facts: &Facts,
    auth: &Authentication,
    octets: &[u8],
) -> Result<SignatureScheme, String> {
    let converted;
    let (scheme, signature) = match auth.method {
        AuthMethod::DIGITAL_SIGNATURE => read_digital_signature(&auth.data)
            .ok_or("it signs with an algorithm that is not supported (RSA with SHA-1, perhaps)")?,
        AuthMethod::ECDSA_256 | AuthMethod::ECDSA_384 | AuthMethod::ECDSA_521 => {
            let (kind, scheme) = match auth.method {
                AuthMethod::ECDSA_256 => (KeyKind::EcdsaP256, SignatureScheme::EcdsaSha256),
                AuthMethod::ECDSA_384 => (KeyKind::EcdsaP384, SignatureScheme::EcdsaSha384),
                _ => (KeyKind::EcdsaP521, SignatureScheme::EcdsaSha512),
            };
            if facts.key != kind || auth.data.len() != 2 * coordinate_len(kind) {
                return Err(format!(
                    "it signs by {} with a key of {}",
                    auth.method,
                    facts.key.name()
                ));
            }
            converted = ecdsa_der(&auth.data);
            (scheme, converted.as_slice())
        }
        method if is_signature(method) => {
            return Err(format!(
                "it signs by {method}, which means SHA-1 and is not accepted; have it use RFC 7427 signatures"
            ));
        }
        method => return Err(format!("it proves itself by {method}, not by a signature")),
    };
    let algorithm = algorithm(scheme, facts.key)
        .ok_or_else(|| format!("it signs by {} with a key of {}", scheme.name(), facts.key.name()))?;
    let der = CertificateDer::from_slice(certificate);
    let certificate = EndEntityCert::try_from(&der).map_err(|error| error.to_string())?;
    certificate
        .verify_signature(algorithm, octets, signature)
        .map_err(|_| {
            format!(
                "its signature ({}) is not of the key in its certificate {}: is the certificate the private key's?",
                scheme.name(),
                facts.subject_text
            )
        })?;
    Ok(scheme)
}

fn algorithm(scheme: SignatureScheme, key: KeyKind) -> Option<&'static dyn SignatureVerificationAlgorithm> {
    use SignatureScheme::*;
    Some(match (scheme, key) {
        (RsaPssSha256, KeyKind::Rsa) => algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
        (RsaPssSha384, KeyKind::Rsa) => algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
        (RsaPssSha512, KeyKind::Rsa) => algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
        (RsaPkcs1Sha256, KeyKind::Rsa) => algorithms::RSA_PKCS1_2048_8192_SHA256,
        (RsaPkcs1Sha384, KeyKind::Rsa) => algorithms::RSA_PKCS1_2048_8192_SHA384,
        (RsaPkcs1Sha512, KeyKind::Rsa) => algorithms::RSA_PKCS1_2048_8192_SHA512,
        (EcdsaSha256, KeyKind::EcdsaP256) => algorithms::ECDSA_P256_SHA256,
        (EcdsaSha384, KeyKind::EcdsaP256) => algorithms::ECDSA_P256_SHA384,
        (EcdsaSha512, KeyKind::EcdsaP256) => algorithms::ECDSA_P256_SHA512,
        (EcdsaSha256, KeyKind::EcdsaP384) => algorithms::ECDSA_P384_SHA256,
        (EcdsaSha384, KeyKind::EcdsaP384) => algorithms::ECDSA_P384_SHA384,
        (EcdsaSha512, KeyKind::EcdsaP384) => algorithms::ECDSA_P384_SHA512,
        (EcdsaSha256, KeyKind::EcdsaP521) => algorithms::ECDSA_P521_SHA256,
        (EcdsaSha384, KeyKind::EcdsaP521) => algorithms::ECDSA_P521_SHA384,
        (EcdsaSha512, KeyKind::EcdsaP521) => algorithms::ECDSA_P521_SHA512,
        (Ed25519, KeyKind::Ed25519) => algorithms::ED25519,
        _ => return None,
    })
}

#[cfg(test)]
mod wycheproof_vectors;
