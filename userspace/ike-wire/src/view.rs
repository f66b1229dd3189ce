//! Views: lengths are checked once, octets are borrowed.

use crate::WireError;
use crate::header::{HEADER_LEN, Header};
use crate::reader::Reader;
use crate::registry::PayloadType;
use std::ops::Range;

/// Most payloads in one chain. A large IKE_AUTH has about 30; the limit keeps a 64 KiB chain of empty payloads cheap.
pub const MAX_PAYLOADS: usize = 256;

/// Octets of the generic payload header (RFC 7296 3.2).
pub const GENERIC_HEADER_LEN: usize = 4;

/// A datagram whose header is consistent.
#[derive(Clone, Copy)]
pub struct MessageView<'a> {
    header: Header,
    first: PayloadType,
    bytes: &'a [u8],
}

impl<'a> MessageView<'a> {
    /// Checks the header of a whole datagram (without non-ESP marker).
    ///
    /// # Errors
    /// As [`Header::parse`].
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, WireError> {
        let (header, first) = Header::parse(bytes)?;
        Ok(Self { header, first, bytes })
    }

    /// The header.
    pub fn header(&self) -> Header {
        self.header
    }

    /// The whole message: what AUTH signs and associated data begins with.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Its payloads, up to and including an encrypted one.
    pub fn payloads(&self) -> PayloadChain<'a> {
        PayloadChain {
            next: self.first,
            bytes: self.bytes,
            position: HEADER_LEN,
            count: 0,
            failed: false,
        }
    }
}

/// One payload: generic header checked, body borrowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawPayload<'a> {
    /// Its type.
    pub kind: PayloadType,
    /// Critical bit.
    pub critical: bool,
    /// Next Payload field. For SK and SKF the type of the first inner payload.
    pub next: PayloadType,
    /// Octets behind the generic header.
    pub body: &'a [u8],
    /// Where the body stands in the bytes that the chain was made from.
    pub body_range: Range<usize>,
}

impl RawPayload<'_> {
    /// Fragment Number and Total Fragments of an SKF payload (RFC 7383 2.5), and the length of these two fields.
    ///
    /// # Errors
    /// [`WireError::Truncated`], and [`WireError::Value`] for a number that is 0 or above the total, or a first fragment without
    /// and a later one with a Next Payload.
    pub fn fragment(&self) -> Result<Fragment, WireError> {
        let mut reader = Reader::new(self.body, "SKF payload");
        let (number, total) = (reader.u16()?, reader.u16()?);
        if number == 0 || number > total {
            return Err(WireError::Value {
                what: "SKF fragment number",
                value: number.into(),
            });
        }
        if number > 1 && self.next != PayloadType::NONE {
            return Err(WireError::Value {
                what: "SKF next payload",
                value: self.next.0.into(),
            });
        }
        Ok(Fragment { number, total })
    }
}

/// Place of a fragment (RFC 7383 2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// From 1.
    pub number: u16,
    /// How many there are.
    pub total: u16,
}

impl Fragment {
    /// Octets of the two fields.
    pub const LEN: usize = 4;
}

/// Iterator over a payload chain. It ends behind an encrypted payload, which must be the last of a message, at a payload that says so,
/// and behind the first error.
#[derive(Clone)]
pub struct PayloadChain<'a> {
    next: PayloadType,
    bytes: &'a [u8],
    position: usize,
    count: usize,
    failed: bool,
}

impl<'a> PayloadChain<'a> {
    /// A chain without IKE header, such as a decrypted one; `first` comes from the SK payload's Next Payload field.
    pub fn new(first: PayloadType, bytes: &'a [u8]) -> Self {
        Self {
            next: first,
            bytes,
            position: 0,
            count: 0,
            failed: false,
        }
    }

    fn step(&mut self) -> Result<Option<RawPayload<'a>>, WireError> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        if self.next == PayloadType::NONE {
            return match rest.len() {
                0 => Ok(None),
                count => Err(WireError::Trailing {
                    what: "the last payload",
                    count,
                }),
            };
        }
        if self.count == MAX_PAYLOADS {
            return Err(WireError::TooManyPayloads { max: MAX_PAYLOADS });
        }
        let mut reader = Reader::new(rest, "payload header");
        let next = PayloadType(reader.u8()?);
        let critical = reader.u8()? & 0x80 != 0;
        let length = usize::from(reader.u16()?);
        let body_len = length.checked_sub(GENERIC_HEADER_LEN).ok_or(WireError::Value {
            what: "payload length",
            value: length as u64,
        })?;
        if body_len > reader.len() {
            return Err(WireError::LengthMismatch {
                what: "payload",
                stated: length,
                got: rest.len(),
            });
        }
        let body = reader.take(body_len)?;
        let start = self.position + GENERIC_HEADER_LEN;
        let payload = RawPayload {
            kind: self.next,
            critical,
            next,
            body,
            body_range: start..start + body_len,
        };
        self.position += length;
        self.count += 1;
        // RFC 7296 3.14: the Encrypted payload, if present, MUST be the last; its Next Payload names an inner payload.
        self.next = if matches!(payload.kind, PayloadType::SK | PayloadType::SKF) {
            PayloadType::NONE
        } else {
            next
        };
        Ok(Some(payload))
    }
}

impl<'a> Iterator for PayloadChain<'a> {
    type Item = Result<RawPayload<'a>, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.step().transpose();
        self.failed = matches!(item, Some(Err(_)));
        item
    }
}
