//! EAP payload (RFC 7296 3.16, RFC 3748 4).

use crate::WireError;
use crate::encode::{EncodeError, u16_length};
use crate::reader::Reader;
use crate::registry::{EapCode, EapType};

const HEADER_LEN: usize = 4;

/// An EAP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eap {
    /// Request, response, success or failure.
    pub code: EapCode,
    /// A response carries that of its request.
    pub identifier: u8,
    /// Type and its data; none in success and failure.
    pub body: Option<(EapType, Vec<u8>)>,
}

impl Eap {
    /// A request of the authenticator.
    pub fn request(identifier: u8, kind: EapType, data: Vec<u8>) -> Self {
        Self {
            code: EapCode::REQUEST,
            identifier,
            body: Some((kind, data)),
        }
    }

    /// Success or failure.
    pub fn outcome(identifier: u8, success: bool) -> Self {
        Self {
            code: if success {
                EapCode::SUCCESS
            } else {
                EapCode::FAILURE
            },
            identifier,
            body: None,
        }
    }

    pub(super) fn parse(body: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body, "EAP payload");
        let code = EapCode(reader.u8()?);
        let identifier = reader.u8()?;
        let length = usize::from(reader.u16()?);
        // RFC 7296 3.16: the EAP packet is the whole payload.
        if length != body.len() {
            return Err(WireError::LengthMismatch {
                what: "EAP packet",
                stated: length,
                got: body.len(),
            });
        }
        let body = if reader.is_empty() {
            None
        } else {
            Some((EapType(reader.u8()?), reader.rest().to_vec()))
        };
        Ok(Self {
            code,
            identifier,
            body,
        })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let data = self.body.as_ref().map_or(0, |(_, data)| 1 + data.len());
        let length = u16_length("EAP packet", HEADER_LEN + data)?;
        out.extend_from_slice(&[self.code.0, self.identifier]);
        out.extend_from_slice(&length.to_be_bytes());
        if let Some((kind, data)) = &self.body {
            out.push(kind.0);
            out.extend_from_slice(data);
        }
        Ok(())
    }
}
