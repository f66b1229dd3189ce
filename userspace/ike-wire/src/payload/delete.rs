//! Delete payload (RFC 7296 3.11).

use crate::WireError;
use crate::encode::{EncodeError, u16_length};
use crate::reader::Reader;
use crate::registry::ProtocolId;
use model::EspSpi;

/// SAs that the sender deletes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delete {
    /// The IKE SA that carries the message, with all its children.
    Ike,
    /// ESP SAs, by the SPIs that the *sender* expects in packets to itself.
    Esp(Vec<EspSpi>),
    /// AH or anything else; kept, but we have none.
    Other {
        /// Protocol.
        protocol: ProtocolId,
        /// Octets of each SPI.
        spi_len: u8,
        /// All SPIs, one behind the other.
        spis: Vec<u8>,
    },
}

impl Delete {
    pub(super) fn parse(body: &[u8]) -> Result<Self, WireError> {
        const WHAT: &str = "Delete payload";
        let mut reader = Reader::new(body, WHAT);
        let protocol = ProtocolId(reader.u8()?);
        let spi_len = reader.u8()?;
        let count = usize::from(reader.u16()?);
        let spis = reader.take(count * usize::from(spi_len))?;
        reader.end()?;
        match (protocol, spi_len) {
            // RFC 7296 3.11: SPI Size zero for IKE, four for AH and ESP; some peers set Num of SPIs to 1 with IKE.
            (ProtocolId::IKE, 0) => Ok(Self::Ike),
            (ProtocolId::ESP, 4) => {
                let (chunks, _) = spis.as_chunks::<4>();
                Ok(Self::Esp(
                    chunks
                        .iter()
                        .map(|spi| EspSpi(u32::from_be_bytes(*spi)))
                        .collect(),
                ))
            }
            (ProtocolId::IKE | ProtocolId::ESP, len) => Err(WireError::Value {
                what: "SPI size in Delete payload",
                value: len.into(),
            }),
            _ => Ok(Self::Other {
                protocol,
                spi_len,
                spis: spis.to_vec(),
            }),
        }
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let (protocol, spi_len, count) = match self {
            Self::Ike => (ProtocolId::IKE, 0, 0),
            Self::Esp(spis) => (ProtocolId::ESP, 4, spis.len()),
            Self::Other {
                protocol,
                spi_len,
                spis,
            } => match usize::from(*spi_len) {
                0 => (*protocol, 0, 0),
                len if spis.len().is_multiple_of(len) => (*protocol, *spi_len, spis.len() / len),
                _ => return Err(EncodeError::MixedSpis),
            },
        };
        out.extend_from_slice(&[protocol.0, spi_len]);
        out.extend_from_slice(&u16_length("list of SPIs", count)?.to_be_bytes());
        match self {
            Self::Ike => {}
            Self::Esp(spis) => out.extend(spis.iter().flat_map(|spi| spi.0.to_be_bytes())),
            Self::Other { spis, .. } => out.extend_from_slice(spis),
        }
        Ok(())
    }
}
