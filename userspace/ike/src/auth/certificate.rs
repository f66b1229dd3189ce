//! What a certificate says: whose it is, what its key is.

use super::dn::{ID_DER_ASN1_DN, same_name};
use crate::config::Identity;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// Kinds of keys that signatures are made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// RSA.
    Rsa,
    /// ECDSA on P-256.
    EcdsaP256,
    /// ECDSA on P-384.
    EcdsaP384,
    /// ECDSA on P-521.
    EcdsaP521,
    /// Ed25519.
    Ed25519,
}

impl KeyKind {
    /// For logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rsa => "RSA",
            Self::EcdsaP256 => "ECDSA P-256",
            Self::EcdsaP384 => "ECDSA P-384",
            Self::EcdsaP521 => "ECDSA P-521",
            Self::Ed25519 => "Ed25519",
        }
    }
}

/// Why octets cannot be used as a certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not X.509.
    #[error("it is no X.509 certificate ({0})")]
    Unreadable(String),
    /// A key that nothing here signs or verifies with.
    #[error("its key ({0}) is none of RSA, ECDSA P-256, P-384, P-521 and Ed25519")]
    Key(String),
    /// An RSA key of a length that no signature is verified with.
    #[error("its RSA key has {0} bits, and {least} to {most} are taken", least = RSA_BITS.start(), most = RSA_BITS.end())]
    RsaBits(usize),
}

/// Lengths of RSA moduli, bits (RFC 8247 3.2: below 2048 they are not to be trusted).
const RSA_BITS: RangeInclusive<usize> = 2048..=8192;

/// What a certificate says of its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The subject, DER.
    pub subject: Vec<u8>,
    /// The subject, for logs.
    pub subject_text: String,
    /// The issuer, for logs.
    pub issuer_text: String,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Identities in subjectAltName.
    pub alternative: Vec<Identity>,
    /// What the key is.
    pub key: KeyKind,
    /// SubjectPublicKeyInfo, DER.
    pub spki: Vec<u8>,
    /// The public key alone: for RSA the DER of RSAPublicKey, for ECDSA the point, for Ed25519 its 32 octets.
    pub public_key: Vec<u8>,
    /// Seconds since 1970.
    pub not_before: u64,
    /// Seconds since 1970.
    pub not_after: u64,
}

impl Facts {
    /// Reads a certificate (DER).
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn of(der: &[u8]) -> Result<Self, CertificateError> {
        let (rest, parsed) = X509Certificate::from_der(der)
            .map_err(|error| CertificateError::Unreadable(error.to_string()))?;
        if !rest.is_empty() {
            return Err(CertificateError::Unreadable(format!(
                "{} octets are left over",
                rest.len()
            )));
        }
        let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
        let public = parsed.public_key();
        Ok(Self {
            subject: parsed.subject().as_raw().to_vec(),
            subject_text: parsed.subject().to_string().escape_debug().to_string(),
            issuer_text: parsed.issuer().to_string().escape_debug().to_string(),
            serial: parsed
                .raw_serial()
                .iter()
                .map(|octet| format!("{octet:02x}"))
                .collect(),
            alternative: alternative(&parsed),
            key: kind_of(public)?,
            spki: public.raw.to_vec(),
            public_key: public.subject_public_key.data.to_vec(),
            not_before: seconds(parsed.validity().not_before),
            not_after: seconds(parsed.validity().not_after),
        })
    }

    /// Whether its holder is this one. RFC 4945 3.1: a distinguished name is compared with the subject, all others with
    /// subjectAltName; common names do not count.
    pub fn is_of(&self, id: &Identity) -> bool {
        match id {
            Identity::Other(ID_DER_ASN1_DN, der) => *der == self.subject || same_name(der, &self.subject),
            id => self.alternative.iter().any(|own| same(own, id)),
        }
    }

    /// All identities that its holder may use.
    pub fn identities(&self) -> Vec<Identity> {
        let mut all = self.alternative.clone();
        all.push(Identity::Other(ID_DER_ASN1_DN, self.subject.clone()));
        all
    }
}

fn same(a: &Identity, b: &Identity) -> bool {
    match (a, b) {
        // DNS names and the domains of mailboxes know no letter case.
        (Identity::Fqdn(a), Identity::Fqdn(b)) => a.eq_ignore_ascii_case(b),
        (Identity::Email(a), Identity::Email(b)) => match (a.rsplit_once('@'), b.rsplit_once('@')) {
            (Some((a, at_a)), Some((b, at_b))) => a == b && at_a.eq_ignore_ascii_case(at_b),
            _ => false,
        },
        (a, b) => a == b,
    }
}

fn alternative(certificate: &X509Certificate<'_>) -> Vec<Identity> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let identity = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(Identity::Fqdn((*name).to_owned())),
        GeneralName::RFC822Name(name) => Some(Identity::Email((*name).to_owned())),
        GeneralName::IPAddress(octets) => match octets.len() {
            4 => <[u8; 4]>::try_from(*octets).ok().map(IpAddr::from),
            16 => <[u8; 16]>::try_from(*octets).ok().map(IpAddr::from),
            _ => None,
        }
        .map(Identity::Address),
        _ => None,
    };
    extension
        .value
        .general_names
        .iter()
        .filter_map(identity)
        .collect()
}

fn kind_of(public: &SubjectPublicKeyInfo<'_>) -> Result<KeyKind, CertificateError> {
    let algorithm = &public.algorithm;
    let oid = algorithm.algorithm.to_id_string();
    let curve = || {
        let parameters = algorithm.parameters.as_ref()?;
        Some(parameters.as_oid().ok()?.to_id_string())
    };
    match oid.as_str() {
        "1.2.840.113549.1.1.1" => match rsa_bits(public) {
            Some(bits) if RSA_BITS.contains(&bits) => Ok(KeyKind::Rsa),
            Some(bits) => Err(CertificateError::RsaBits(bits)),
            None => Err(CertificateError::Unreadable(
                "its RSA key is malformed".to_owned(),
            )),
        },
        "1.3.101.112" => Ok(KeyKind::Ed25519),
        "1.2.840.10045.2.1" => match curve().as_deref() {
            Some("1.2.840.10045.3.1.7") => Ok(KeyKind::EcdsaP256),
            Some("1.3.132.0.34") => Ok(KeyKind::EcdsaP384),
            Some("1.3.132.0.35") => Ok(KeyKind::EcdsaP521),
            other => Err(CertificateError::Key(format!(
                "elliptic curve {}",
                other.unwrap_or("without a name")
            ))),
        },
        other => Err(CertificateError::Key(other.to_owned())),
    }
}

/// Length of the modulus. `None`: it is no RSA key.
fn rsa_bits(public: &SubjectPublicKeyInfo<'_>) -> Option<usize> {
    let PublicKey::RSA(key) = public.parsed().ok()? else {
        return None;
    };
    let significant = key.modulus.iter().position(|octet| *octet != 0)?;
    let modulus = &key.modulus[significant..];
    Some(8 * modulus.len() - modulus[0].leading_zeros() as usize)
}
