//! OCSP responses (RFC 6960): signed statements of an issuer, or of somebody it has authorised, about single certificates. They come
//! from files or from the peer itself (RFC 4806); nobody is asked over the network.

use super::certificate::Facts;
use super::trust::show_date;
use crypto::sha256;
use crypto::signature::authority_digest as sha1;
use der::asn1::ObjectIdentifier;
use der::{Decode, Encode, Header, Reader, SliceReader};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use std::time::Duration;
use webpki::{EndEntityCert, KeyUsage, RevocationOptions};
use x509_ocsp::{
    BasicOcspResponse, CertStatus, OcspGeneralizedTime, OcspResponse, OcspResponseStatus, ResponderId,
    SingleResponse,
};

/// Clocks of responders may be ahead of ours by this much, in seconds.
const SKEW: u64 = 300;
/// How long a response counts, in seconds, that does not say until when it does.
const WITHOUT_END: u64 = 86_400;
/// Certificates in a response that may be its signer's.
const SIGNERS_MAX: usize = 4;

const BASIC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.1");
const SHA1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");
const SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");
/// id-kp-OCSPSigning, as it is in certificates.
const OCSP_SIGNING: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 9];

/// A response that was read. Nothing in it is verified.
pub struct Response {
    signer: ResponderId,
    words: Vec<SingleResponse>,
    /// What is signed.
    signed: Vec<u8>,
    /// AlgorithmIdentifier without its outermost header, as rustls-webpki compares it.
    algorithm: Vec<u8>,
    signature: Vec<u8>,
    certificates: Vec<Vec<u8>>,
}

/// Who has issued a certificate.
pub(crate) struct Issuer<'a> {
    pub der: &'a [u8],
    pub facts: &'a Facts,
}

/// What a response says of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Good,
    /// Since then, in seconds since 1970.
    Revoked(u64),
    Unknown,
}

/// A verified statement about a certificate.
pub(crate) struct Word {
    pub status: Status,
    /// Seconds since 1970.
    this_update: u64,
    /// Why it does not count at this time.
    pub stale: Option<String>,
}

impl Response {
    /// Reads an OCSPResponse (DER).
    ///
    /// # Errors
    /// It is none, the responder answered with an error, or it has extensions that may not be passed over.
    pub fn read(octets: &[u8]) -> Result<Self, String> {
        let wrong = |error: der::Error| format!("it is no OCSP response ({error})");
        let response = OcspResponse::from_der(octets).map_err(wrong)?;
        if response.response_status != OcspResponseStatus::Successful {
            return Err(format!(
                "the responder answered {:?} instead of a status",
                response.response_status
            ));
        }
        let bytes = response.response_bytes.ok_or("it has no content")?;
        if bytes.response_type != BASIC {
            return Err(format!("responses of type {} are not known", bytes.response_type));
        }
        let octets = bytes.response.as_bytes();
        let basic = BasicOcspResponse::from_der(octets).map_err(wrong)?;
        let critical = basic
            .tbs_response_data
            .response_extensions
            .iter()
            .chain(
                basic
                    .tbs_response_data
                    .responses
                    .iter()
                    .filter_map(|word| word.single_extensions.as_ref()),
            )
            .flatten()
            .find(|extension| extension.critical);
        if let Some(extension) = critical {
            return Err(format!(
                "its critical extension {} is not known",
                extension.extn_id
            ));
        }
        let certificates = basic.certs.unwrap_or_default();
        Ok(Self {
            signer: basic.tbs_response_data.responder_id,
            words: basic.tbs_response_data.responses,
            signed: first_of_sequence(octets).map_err(wrong)?.to_vec(),
            algorithm: content(&basic.signature_algorithm.to_der().map_err(wrong)?).map_err(wrong)?,
            signature: basic
                .signature
                .as_bytes()
                .ok_or("its signature is not of whole octets")?
                .to_vec(),
            certificates: certificates
                .iter()
                .map(Encode::to_der)
                .collect::<Result<_, _>>()
                .map_err(wrong)?,
        })
    }

    /// Whether it says anything of a certificate with this serial number (hexadecimal), whoever issued it.
    pub fn is_about(&self, serial: &str) -> bool {
        self.words.iter().any(|word| has_serial(word, serial))
    }

    /// What it says of the certificate with this serial number; `None`: nothing.
    ///
    /// # Errors
    /// It cannot be relied on.
    pub(crate) fn says(
        &self,
        serial: &str,
        issuer: &Issuer<'_>,
        now: u64,
        revocation: Option<RevocationOptions<'_>>,
    ) -> Option<Result<Word, String>> {
        let word = self
            .words
            .iter()
            .filter(|word| has_serial(word, serial) && is_issuer(word, issuer.facts))
            .max_by_key(|word| seconds(&word.this_update))?;
        if !self.is_authentic(issuer, now, revocation) {
            return Some(Err(
                "the OCSP response is signed neither by the issuer nor by somebody it has authorised \
                 (id-kp-OCSPSigning)"
                    .to_owned(),
            ));
        }
        let this_update = seconds(&word.this_update);
        let until = word
            .next_update
            .as_ref()
            .map_or(this_update.saturating_add(WITHOUT_END), seconds);
        let stale = if this_update > now.saturating_add(SKEW) {
            Some(format!(
                "the OCSP response is of {}, which is in the future; compare the clocks",
                show_date(this_update)
            ))
        } else if until < now {
            Some(format!(
                "the OCSP response was good until {}; have a new one fetched",
                show_date(until)
            ))
        } else {
            None
        };
        Some(Ok(Word {
            status: match &word.cert_status {
                CertStatus::Good(_) => Status::Good,
                CertStatus::Revoked(info) => Status::Revoked(seconds(&info.revocation_time)),
                CertStatus::Unknown(_) => Status::Unknown,
            },
            this_update,
            stale,
        }))
    }

    /// RFC 6960 4.2.2.2: signed by the issuer, or by somebody with id-kp-OCSPSigning in a certificate of the issuer's own.
    fn is_authentic(&self, issuer: &Issuer<'_>, now: u64, revocation: Option<RevocationOptions<'_>>) -> bool {
        if self.is_signer(issuer.facts) {
            return self.is_signed_by(issuer.der);
        }
        let issuer = CertificateDer::from_slice(issuer.der);
        let Ok(anchor) = webpki::anchor_from_trusted_cert(&issuer) else {
            return false;
        };
        self.certificates
            .iter()
            .filter(|der| Facts::of(der).is_ok_and(|facts| self.is_signer(&facts)))
            .take(SIGNERS_MAX)
            .any(|der| is_authorised(der, &anchor, now, revocation) && self.is_signed_by(der))
    }

    fn is_signer(&self, facts: &Facts) -> bool {
        match &self.signer {
            ResponderId::ByName(name) => name.to_der().is_ok_and(|name| name == facts.subject),
            ResponderId::ByKey(digest) => digest.as_bytes() == sha1(&facts.public_key),
        }
    }

    fn is_signed_by(&self, der: &[u8]) -> bool {
        let der = CertificateDer::from_slice(der);
        let Ok(certificate) = EndEntityCert::try_from(&der) else {
            return false;
        };
        webpki::ALL_VERIFICATION_ALGS
            .iter()
            .filter(|algorithm| algorithm.signature_alg_id().as_ref() == self.algorithm)
            .any(|algorithm| {
                certificate
                    .verify_signature(*algorithm, &self.signed, &self.signature)
                    .is_ok()
            })
    }
}

/// The newest statement of all these responses about a certificate, and why others do not count.
pub(crate) fn newest<'r>(
    responses: impl Iterator<Item = &'r Response>,
    serial: &str,
    issuer: &Issuer<'_>,
    now: u64,
    revocation: Option<RevocationOptions<'_>>,
) -> (Option<Word>, Option<String>) {
    let (mut newest, mut why) = (None::<Word>, None);
    for said in responses.filter_map(|response| response.says(serial, issuer, now, revocation)) {
        match said {
            Ok(word) if newest.as_ref().is_none_or(|n| n.this_update < word.this_update) => {
                newest = Some(word);
            }
            Ok(_) => {}
            Err(reason) => why = Some(reason),
        }
    }
    (newest, why)
}

fn is_authorised(
    der: &[u8],
    issuer: &TrustAnchor<'_>,
    now: u64,
    revocation: Option<RevocationOptions<'_>>,
) -> bool {
    let der = CertificateDer::from_slice(der);
    let Ok(certificate) = EndEntityCert::try_from(&der) else {
        return false;
    };
    certificate
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            std::slice::from_ref(issuer),
            &[],
            UnixTime::since_unix_epoch(Duration::from_secs(now)),
            KeyUsage::required(OCSP_SIGNING),
            revocation,
            None,
        )
        .is_ok()
}

fn has_serial(word: &SingleResponse, serial: &str) -> bool {
    let octets = word.cert_id.serial_number.as_bytes();
    let own: String = octets.iter().map(|octet| format!("{octet:02x}")).collect();
    own.trim_start_matches('0') == serial.trim_start_matches('0')
}

fn is_issuer(word: &SingleResponse, issuer: &Facts) -> bool {
    let id = &word.cert_id;
    let are = |name: &[u8], key: &[u8]| {
        id.issuer_name_hash.as_bytes() == name && id.issuer_key_hash.as_bytes() == key
    };
    match id.hash_algorithm.oid {
        SHA1 => are(&sha1(&issuer.subject), &sha1(&issuer.public_key)),
        SHA256 => are(&sha256(&[&issuer.subject]), &sha256(&[&issuer.public_key])),
        _ => false,
    }
}

fn seconds(time: &OcspGeneralizedTime) -> u64 {
    time.0.to_unix_duration().as_secs()
}

/// The first element of a SEQUENCE as it was written: a signature is of these octets, not of another encoding of their content.
fn first_of_sequence(octets: &[u8]) -> der::Result<&[u8]> {
    let mut reader = SliceReader::new(octets)?;
    Header::decode(&mut reader)?;
    reader.tlv_bytes()
}

/// What is in a SEQUENCE.
fn content(octets: &[u8]) -> der::Result<Vec<u8>> {
    let mut reader = SliceReader::new(octets)?;
    let header = Header::decode(&mut reader)?;
    Ok(reader.read_slice(header.length)?.to_vec())
}
