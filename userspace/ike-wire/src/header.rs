//! The IKE header (RFC 7296 3.1).

use crate::WireError;
use crate::reader::Reader;
use crate::registry::{ExchangeType, PayloadType};
use model::IkeSpi;

/// Octets of the header.
pub const HEADER_LEN: usize = 28;

/// Flags of the header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags {
    /// Sent by the original initiator of the IKE SA.
    pub initiator: bool,
    /// The sender can speak a higher major version.
    pub version: bool,
    /// This is a response.
    pub response: bool,
}

impl Flags {
    const INITIATOR: u8 = 0x08;
    const VERSION: u8 = 0x10;
    const RESPONSE: u8 = 0x20;

    /// From the octet; undefined bits are ignored (RFC 7296 3.1).
    pub const fn from_octet(octet: u8) -> Self {
        Self {
            initiator: octet & Self::INITIATOR != 0,
            version: octet & Self::VERSION != 0,
            response: octet & Self::RESPONSE != 0,
        }
    }

    /// The octet.
    pub const fn octet(self) -> u8 {
        (if self.initiator { Self::INITIATOR } else { 0 })
            | (if self.version { Self::VERSION } else { 0 })
            | (if self.response { Self::RESPONSE } else { 0 })
    }
}

/// The header without what the codec computes (first payload, version 2.0, length).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The original initiator's SPI.
    pub spi_i: IkeSpi,
    /// The original responder's SPI; 0 in the first message.
    pub spi_r: IkeSpi,
    /// Exchange type.
    pub exchange: ExchangeType,
    /// Flags.
    pub flags: Flags,
    /// Message ID.
    pub message_id: u32,
}

impl Header {
    /// Parses the header of `bytes`, a whole datagram without the non-ESP marker. Gives the type of the first payload too.
    ///
    /// # Errors
    /// [`WireError::Truncated`], [`WireError::MajorVersion`], and [`WireError::LengthMismatch`] where the length field is not the
    /// datagram's length.
    pub fn parse(bytes: &[u8]) -> Result<(Self, PayloadType), WireError> {
        let mut reader = Reader::new(bytes, "IKE header");
        if bytes.len() < HEADER_LEN {
            return Err(WireError::Truncated {
                what: "IKE header",
                needed: HEADER_LEN,
                got: bytes.len(),
            });
        }
        let (header, first, major, length) = Self::read(&mut reader)?;
        if major != 2 {
            return Err(WireError::MajorVersion(major));
        }
        if length as usize != bytes.len() {
            return Err(WireError::LengthMismatch {
                what: "IKE header",
                stated: length as usize,
                got: bytes.len(),
            });
        }
        Ok((header, first))
    }

    /// SPIs, flags and Message ID of anything that is long enough for a header, whatever its version and length say: to answer
    /// INVALID_MAJOR_VERSION, and to find the owner of a damaged packet.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn parse_lenient(bytes: &[u8]) -> Result<Self, WireError> {
        Self::read(&mut Reader::new(bytes, "IKE header")).map(|(header, ..)| header)
    }

    fn read(reader: &mut Reader<'_>) -> Result<(Self, PayloadType, u8, u32), WireError> {
        let (spi_i, spi_r) = (IkeSpi(reader.u64()?), IkeSpi(reader.u64()?));
        let first = PayloadType(reader.u8()?);
        let version = reader.u8()?;
        let exchange = ExchangeType(reader.u8()?);
        let flags = Flags::from_octet(reader.u8()?);
        let message_id = reader.u32()?;
        let length = reader.u32()?;
        Ok((
            Self {
                spi_i,
                spi_r,
                exchange,
                flags,
                message_id,
            },
            first,
            version >> 4,
            length,
        ))
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>, first: PayloadType, length: u32) {
        out.extend_from_slice(&self.spi_i.0.to_be_bytes());
        out.extend_from_slice(&self.spi_r.0.to_be_bytes());
        out.extend_from_slice(&[first.0, 0x20, self.exchange.0, self.flags.octet()]);
        out.extend_from_slice(&self.message_id.to_be_bytes());
        out.extend_from_slice(&length.to_be_bytes());
    }
}
