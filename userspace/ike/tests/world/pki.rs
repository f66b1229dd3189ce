//! Authorities and certificates for tests.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, RsaKeyPair};
use crypto::SignatureScheme;
use der::asn1::{BitString, GeneralizedTime, Null, OctetString};
use der::{Decode, Encode};
use ike::auth::certificate::KeyKind;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber, SigningKey,
};
use time::{Duration, OffsetDateTime};
use x509_cert::spki::AlgorithmIdentifierOwned;
use x509_ocsp::{
    BasicOcspResponse, CertId, CertStatus, OcspGeneralizedTime, OcspResponse, ResponderId, ResponseData,
    RevokedInfo, SingleResponse, Version,
};

/// What day it is in these tests: 2030-01-01.
pub const TODAY: u64 = 1_893_456_000;

pub fn day(days: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(TODAY as i64).unwrap() + Duration::days(days)
}

/// A private key that signs.
pub enum Key {
    Rsa(RsaKeyPair),
    Ecdsa(Vec<u8>),
    Ed25519(Ed25519KeyPair),
}

impl Key {
    pub fn new(pair: &KeyPair) -> Self {
        let der = pair.serialize_der();
        if let Ok(key) = RsaKeyPair::from_pkcs8(&der) {
            return Self::Rsa(key);
        }
        match Ed25519KeyPair::from_pkcs8(&der) {
            Ok(key) => Self::Ed25519(key),
            Err(_) => Self::Ecdsa(der),
        }
    }

    pub fn sign(&self, scheme: SignatureScheme, octets: &[u8]) -> Vec<u8> {
        use SignatureScheme::*;
        let random = SystemRandom::new();
        match self {
            Self::Rsa(key) => {
                let padding: &'static dyn signature::RsaEncoding = match scheme {
                    RsaPssSha256 => &signature::RSA_PSS_SHA256,
                    RsaPssSha384 => &signature::RSA_PSS_SHA384,
                    RsaPssSha512 => &signature::RSA_PSS_SHA512,
                    RsaPkcs1Sha256 => &signature::RSA_PKCS1_SHA256,
                    RsaPkcs1Sha384 => &signature::RSA_PKCS1_SHA384,
                    RsaPkcs1Sha512 => &signature::RSA_PKCS1_SHA512,
                    other => panic!("{other:?} with an RSA key"),
                };
                let mut out = vec![0; key.public_modulus_len()];
                key.sign(padding, &random, octets, &mut out).unwrap();
                out
            }
            Self::Ecdsa(der) => {
                let algorithm = [
                    &signature::ECDSA_P256_SHA256_ASN1_SIGNING,
                    &signature::ECDSA_P384_SHA384_ASN1_SIGNING,
                    &signature::ECDSA_P521_SHA512_ASN1_SIGNING,
                ];
                let key = algorithm
                    .iter()
                    .find_map(|algorithm| EcdsaKeyPair::from_pkcs8(algorithm, der).ok());
                key.unwrap().sign(&random, octets).unwrap().as_ref().to_vec()
            }
            Self::Ed25519(key) => key.sign(octets).as_ref().to_vec(),
        }
    }
}

/// A new key of this kind; RSA ones take a second.
pub fn key_pair(kind: KeyKind) -> KeyPair {
    match kind {
        KeyKind::Rsa => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048),
        KeyKind::EcdsaP256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
        KeyKind::EcdsaP384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
        KeyKind::EcdsaP521 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512),
        KeyKind::Ed25519 => KeyPair::generate_for(&rcgen::PKCS_ED25519),
    }
    .unwrap()
}

/// A certification authority.
pub struct Ca {
    pub der: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

fn subject(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "Example");
    subject.push(DnType::CommonName, name);
    subject
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (day(-100), day(1000));
    params
}

/// What a certificate says.
pub struct Leaf<'a> {
    pub cn: &'a str,
    pub alternative: Vec<SanType>,
    pub usages: Vec<ExtendedKeyUsagePurpose>,
    pub serial: u64,
    /// In days from today.
    pub valid: (i64, i64),
}

impl<'a> Leaf<'a> {
    /// Valid, with this DNS name.
    pub fn named(name: &'a str) -> Self {
        Self {
            cn: name,
            alternative: vec![dns(name)],
            usages: Vec::new(),
            serial: 7,
            valid: (-10, 100),
        }
    }
}

pub fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

impl Ca {
    pub fn root(name: &str) -> Self {
        let key = key_pair(KeyKind::EcdsaP256);
        let params = ca_params(name);
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Self {
            der,
            issuer: Issuer::new(params, key),
        }
    }

    /// One below this one.
    pub fn intermediate(&self, name: &str) -> Self {
        let key = key_pair(KeyKind::EcdsaP384);
        let params = ca_params(name);
        let der = params.signed_by(&key, &self.issuer).unwrap().der().to_vec();
        Self {
            der,
            issuer: Issuer::new(params, key),
        }
    }

    pub fn issue(&self, leaf: &Leaf<'_>, key: &KeyPair) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(leaf.cn);
        params.subject_alt_names = leaf.alternative.clone();
        params.extended_key_usages = leaf.usages.clone();
        params.serial_number = Some(SerialNumber::from(leaf.serial));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        (params.not_before, params.not_after) = (day(leaf.valid.0), day(leaf.valid.1));
        params.signed_by(key, &self.issuer).unwrap().der().to_vec()
    }

    /// A revocation list with these serial numbers that is valid until so many days from today.
    pub fn crl(&self, revoked: &[u64], until: i64) -> Vec<u8> {
        let entry = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: day(-2),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: day(-3),
            next_update: day(until),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().der().to_vec()
    }
}

/// What an OCSP response says of one certificate; days from today.
pub struct Said {
    pub serial: u8,
    pub status: CertStatus,
    pub from: i64,
    pub until: Option<i64>,
}

impl Said {
    /// Serial number 7, from yesterday until in ten days.
    pub fn of(status: CertStatus) -> Self {
        Self {
            serial: 7,
            status,
            from: -1,
            until: Some(10),
        }
    }
}

pub fn revoked() -> CertStatus {
    CertStatus::Revoked(RevokedInfo {
        revocation_time: moment(-2),
        revocation_reason: None,
    })
}

fn moment(days: i64) -> OcspGeneralizedTime {
    let at = u64::try_from(day(days).unix_timestamp()).unwrap();
    OcspGeneralizedTime(GeneralizedTime::from_unix_duration(std::time::Duration::from_secs(at)).unwrap())
}

/// An OCSP response about certificates of `issuer`, signed by `signer`, whose certificate `signer_der` is; ECDSA P-256 with SHA-256.
pub fn ocsp(issuer: &Ca, said: &Said, signer: &KeyPair, signer_der: &[u8], sent_along: bool) -> Vec<u8> {
    let certificate = |der: &[u8]| x509_cert::Certificate::from_der(der).unwrap();
    let algorithm = |oid: &str, parameters| AlgorithmIdentifierOwned {
        oid: oid.parse().unwrap(),
        parameters,
    };
    let octets = |octets: &[u8]| OctetString::new(octets).unwrap();
    let of = certificate(&issuer.der).tbs_certificate;
    let key = of.subject_public_key_info.subject_public_key.raw_bytes();
    let data = ResponseData {
        version: Version::V1,
        responder_id: ResponderId::ByName(certificate(signer_der).tbs_certificate.subject),
        produced_at: moment(said.from),
        responses: vec![SingleResponse {
            cert_id: CertId {
                hash_algorithm: algorithm("1.3.14.3.2.26", Some(Null.into())),
                issuer_name_hash: octets(&crypto::signature::authority_digest(
                    &of.subject.to_der().unwrap(),
                )),
                issuer_key_hash: octets(&crypto::signature::authority_digest(key)),
                serial_number: x509_cert::serial_number::SerialNumber::new(&[said.serial]).unwrap(),
            },
            cert_status: said.status,
            this_update: moment(said.from),
            next_update: said.until.map(moment),
            single_extensions: None,
        }],
        response_extensions: None,
    };
    let signature = signer.sign(&data.to_der().unwrap()).unwrap();
    let basic = BasicOcspResponse {
        tbs_response_data: data,
        signature_algorithm: algorithm("1.2.840.10045.4.3.2", None),
        signature: BitString::from_bytes(&signature).unwrap(),
        certs: sent_along.then(|| vec![certificate(signer_der)]),
    };
    OcspResponse::successful(basic).unwrap().to_der().unwrap()
}

impl Ca {
    /// An OCSP response of the authority itself; it has to be a root.
    pub fn ocsp(&self, said: &Said) -> Vec<u8> {
        ocsp(self, said, self.issuer.key(), &self.der, false)
    }
}

impl super::World {
    /// Makes the signatures that were asked for.
    pub fn sign(&mut self, side: usize) {
        let now = self.now;
        let s = &mut self.sides[side];
        for request in std::mem::take(&mut s.to_sign) {
            let key = s.keys.get(&request.key);
            let signature = key
                .ok_or_else(|| format!("no key {}", request.key))
                .map(|key| key.sign(request.scheme, &request.octets));
            let input = ike::Input::Signed {
                now,
                ike_spi: request.ike_spi,
                token: request.token,
                signature,
            };
            s.engine.handle(input, &mut s.around);
        }
        self.drain(side, true);
    }
}
