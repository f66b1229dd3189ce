//! What payloads mean. One file per payload with a structure of its own.

mod certificate;
mod configuration;
mod delete;
mod eap;
mod identification;
mod notify;
mod recovery;
mod security_association;
mod simple;
mod traffic_selector;

pub use certificate::{Certificate, CertificateRequest};
pub use configuration::{ConfigAttribute, Configuration};
pub use delete::Delete;
pub use eap::Eap;
pub use identification::{Identification, Identity};
pub use notify::{Gateway, MessageIdSync, Notify};
pub use recovery::CounterDelta;
pub use security_association::{Attribute, AttributeValue, Proposal, SecurityAssociation, Transform};
pub use simple::{Authentication, KeyExchange};
pub use traffic_selector::TrafficSelectors;

use crate::WireError;
use crate::encode::EncodeError;
use crate::registry::PayloadType;
use crate::view::RawPayload;

/// A payload that is not encrypted (any more).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// SA (RFC 7296 3.3).
    SecurityAssociation(SecurityAssociation),
    /// KE (3.4).
    KeyExchange(KeyExchange),
    /// IDi (3.5).
    IdInitiator(Identification),
    /// IDr (3.5).
    IdResponder(Identification),
    /// CERT (3.6).
    Certificate(Certificate),
    /// CERTREQ (3.7).
    CertificateRequest(CertificateRequest),
    /// AUTH (3.8).
    Authentication(Authentication),
    /// Ni or Nr (3.9): 16 to 256 octets.
    Nonce(Vec<u8>),
    /// N (3.10).
    Notify(Notify),
    /// D (3.11).
    Delete(Delete),
    /// V (3.12).
    VendorId(Vec<u8>),
    /// TSi (3.13).
    TsInitiator(TrafficSelectors),
    /// TSr (3.13).
    TsResponder(TrafficSelectors),
    /// CP (3.15).
    Configuration(Configuration),
    /// EAP (3.16).
    Eap(Eap),
}

impl Payload {
    /// Its type.
    pub fn kind(&self) -> PayloadType {
        match self {
            Self::SecurityAssociation(_) => PayloadType::SA,
            Self::KeyExchange(_) => PayloadType::KE,
            Self::IdInitiator(_) => PayloadType::ID_I,
            Self::IdResponder(_) => PayloadType::ID_R,
            Self::Certificate(_) => PayloadType::CERT,
            Self::CertificateRequest(_) => PayloadType::CERTREQ,
            Self::Authentication(_) => PayloadType::AUTH,
            Self::Nonce(_) => PayloadType::NONCE,
            Self::Notify(_) => PayloadType::NOTIFY,
            Self::Delete(_) => PayloadType::DELETE,
            Self::VendorId(_) => PayloadType::VENDOR_ID,
            Self::TsInitiator(_) => PayloadType::TS_I,
            Self::TsResponder(_) => PayloadType::TS_R,
            Self::Configuration(_) => PayloadType::CP,
            Self::Eap(_) => PayloadType::EAP,
        }
    }

    /// Parses one payload. `None` for one that we do not know and may skip (RFC 7296 2.5).
    ///
    /// # Errors
    /// [`WireError::UnsupportedCritical`] for one that we may not skip; any other for a malformed body.
    pub fn parse(raw: &RawPayload<'_>) -> Result<Option<Self>, WireError> {
        let body = raw.body;
        Ok(Some(match raw.kind {
            PayloadType::SA => Self::SecurityAssociation(SecurityAssociation::parse(body)?),
            PayloadType::KE => Self::KeyExchange(KeyExchange::parse(body)?),
            PayloadType::ID_I => Self::IdInitiator(Identification::parse(body)?),
            PayloadType::ID_R => Self::IdResponder(Identification::parse(body)?),
            PayloadType::CERT => Self::Certificate(Certificate::parse(body)?),
            PayloadType::CERTREQ => Self::CertificateRequest(CertificateRequest::parse(body)?),
            PayloadType::AUTH => Self::Authentication(Authentication::parse(body)?),
            PayloadType::NONCE => Self::Nonce(simple::parse_nonce(body)?),
            PayloadType::NOTIFY => Self::Notify(Notify::parse(body)?),
            PayloadType::DELETE => Self::Delete(Delete::parse(body)?),
            PayloadType::VENDOR_ID => Self::VendorId(body.to_vec()),
            PayloadType::TS_I => Self::TsInitiator(TrafficSelectors::parse(body)?),
            PayloadType::TS_R => Self::TsResponder(TrafficSelectors::parse(body)?),
            PayloadType::CP => Self::Configuration(Configuration::parse(body)?),
            PayloadType::EAP => Self::Eap(Eap::parse(body)?),
            PayloadType::SK | PayloadType::SKF => return Err(WireError::NestedEncryption(raw.kind)),
            unknown if raw.critical => return Err(WireError::UnsupportedCritical(unknown)),
            _ => return Ok(None),
        }))
    }

    pub(crate) fn write_body(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        match self {
            Self::SecurityAssociation(sa) => sa.write(out)?,
            Self::KeyExchange(ke) => ke.write(out),
            Self::IdInitiator(id) | Self::IdResponder(id) => id.write(out),
            Self::Authentication(auth) => auth.write(out),
            Self::Notify(notify) => notify.write(out)?,
            Self::Delete(delete) => delete.write(out)?,
            Self::TsInitiator(ts) | Self::TsResponder(ts) => ts.write(out)?,
            Self::Certificate(certificate) => certificate.write(out),
            Self::CertificateRequest(request) => request.write(out),
            Self::Configuration(configuration) => configuration.write(out)?,
            Self::Eap(eap) => eap.write(out)?,
            Self::Nonce(body) | Self::VendorId(body) => out.extend_from_slice(body),
        }
        Ok(())
    }
}
