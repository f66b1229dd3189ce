//! A whole message as payloads.

use crate::WireError;
use crate::header::Header;
use crate::payload::{
    Authentication, Certificate, CertificateRequest, Configuration, Delete, Eap, Identification, KeyExchange,
    Notify, Payload, SecurityAssociation, TrafficSelectors,
};
use crate::registry::{NotifyType, PayloadType};
use crate::view::{Fragment, MessageView, PayloadChain};
use std::ops::{Deref, Range};

/// A parsed message: payloads in clear and, as the last one, perhaps an encrypted one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Header.
    pub header: Header,
    /// Payloads that are not encrypted. Beside an encrypted payload they are not protected and mean nothing.
    pub payloads: PayloadList,
    /// The SK or SKF payload.
    pub protected: Option<Protected>,
}

impl Message {
    /// Parses a whole datagram (without non-ESP marker).
    ///
    /// # Errors
    /// Any [`WireError`]; [`WireError::notify`] gives the answer that the RFC allows.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let view = MessageView::new_checked(bytes)?;
        let mut payloads = Vec::new();
        let mut protected = None;
        for raw in view.payloads() {
            let raw = raw?;
            match raw.kind {
                PayloadType::SK => {
                    protected = Some(Protected {
                        first: raw.next,
                        fragment: None,
                        sealed: raw.body_range,
                    });
                }
                PayloadType::SKF => {
                    let fragment = raw.fragment()?;
                    let sealed = raw.body_range.start + Fragment::LEN..raw.body_range.end;
                    protected = Some(Protected {
                        first: raw.next,
                        fragment: Some(fragment),
                        sealed,
                    });
                }
                _ => payloads.extend(Payload::parse(&raw)?),
            }
        }
        Ok(Self {
            header: view.header(),
            payloads: PayloadList(payloads),
            protected,
        })
    }
}

/// Where the encrypted payload of a message stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protected {
    /// Type of the first inner payload (of a fragmented message: in fragment 1).
    pub first: PayloadType,
    /// Place among fragments, for SKF.
    pub fragment: Option<Fragment>,
    sealed: Range<usize>,
}

impl Protected {
    /// Octets before the IV: associated data of an AEAD (RFC 5282 5.1), start of the HMAC's input otherwise. `message` is what
    /// [`Message::parse`] got.
    pub fn prefix<'a>(&self, message: &'a [u8]) -> &'a [u8] {
        message.get(..self.sealed.start).unwrap_or_default()
    }

    /// IV, ciphertext and ICV.
    pub fn sealed<'a>(&self, message: &'a [u8]) -> &'a [u8] {
        message.get(self.sealed.clone()).unwrap_or_default()
    }
}

/// Parses a decrypted chain; `first` is [`Protected::first`].
///
/// # Errors
/// Any [`WireError`].
pub fn parse_chain(first: PayloadType, bytes: &[u8]) -> Result<PayloadList, WireError> {
    let mut payloads = Vec::new();
    for raw in PayloadChain::new(first, bytes) {
        let raw = raw?;
        if matches!(raw.kind, PayloadType::SK | PayloadType::SKF) {
            return Err(WireError::NestedEncryption(raw.kind));
        }
        payloads.extend(Payload::parse(&raw)?);
    }
    Ok(PayloadList(payloads))
}

/// Payloads in their order, with look-ups. Where a payload may stand once only, the look-up gives the first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PayloadList(pub Vec<Payload>);

impl Deref for PayloadList {
    type Target = [Payload];
    fn deref(&self) -> &[Payload] {
        &self.0
    }
}

macro_rules! first_of {
    ($($(#[$doc:meta])* $name:ident: $variant:ident -> $type:ty;)+) => {
        $(
            $(#[$doc])*
            pub fn $name(&self) -> Option<&$type> {
                self.0.iter().find_map(|payload| match payload {
                    Payload::$variant(value) => Some::<&$type>(value),
                    _ => None,
                })
            }
        )+
    };
}

impl PayloadList {
    first_of! {
        /// The SA payload.
        sa: SecurityAssociation -> SecurityAssociation;
        /// The KE payload.
        ke: KeyExchange -> KeyExchange;
        /// The IDi payload.
        id_i: IdInitiator -> Identification;
        /// The IDr payload.
        id_r: IdResponder -> Identification;
        /// The AUTH payload.
        auth: Authentication -> Authentication;
        /// The CP payload.
        configuration: Configuration -> Configuration;
        /// The EAP payload.
        eap: Eap -> Eap;
        /// The nonce's data.
        nonce: Nonce -> [u8];
        /// The TSi payload.
        ts_i: TsInitiator -> TrafficSelectors;
        /// The TSr payload.
        ts_r: TsResponder -> TrafficSelectors;
    }

    /// All Notify payloads.
    pub fn notifies(&self) -> impl Iterator<Item = &Notify> {
        self.0.iter().filter_map(|payload| match payload {
            Payload::Notify(notify) => Some(notify),
            _ => None,
        })
    }

    /// The first Notify payload of a type.
    pub fn notify(&self, kind: NotifyType) -> Option<&Notify> {
        self.notifies().find(|notify| notify.kind == kind)
    }

    /// The first Notify payload that reports an error, known or not.
    pub fn error(&self) -> Option<&Notify> {
        self.notifies().find(|notify| notify.kind.is_error())
    }

    /// All CERT payloads, in their order: the first X.509 one is that of the AUTH payload (RFC 7296 3.6).
    pub fn certificates(&self) -> impl Iterator<Item = &Certificate> {
        self.0.iter().filter_map(|payload| match payload {
            Payload::Certificate(certificate) => Some(certificate),
            _ => None,
        })
    }

    /// All CERTREQ payloads.
    pub fn certificate_requests(&self) -> impl Iterator<Item = &CertificateRequest> {
        self.0.iter().filter_map(|payload| match payload {
            Payload::CertificateRequest(request) => Some(request),
            _ => None,
        })
    }

    /// All Delete payloads.
    pub fn deletes(&self) -> impl Iterator<Item = &Delete> {
        self.0.iter().filter_map(|payload| match payload {
            Payload::Delete(delete) => Some(delete),
            _ => None,
        })
    }
}
