//! Payloads of one or two fields: KE, AUTH, nonce.

use crate::WireError;
use crate::reader::Reader;
use crate::registry::{AuthMethod, DhTransform};

/// KE payload (RFC 7296 3.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyExchange {
    /// Key exchange method.
    pub group: DhTransform,
    /// Public value.
    pub data: Vec<u8>,
}

impl KeyExchange {
    pub(super) fn parse(body: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body, "KE payload");
        let group = DhTransform(reader.u16()?);
        reader.u16()?;
        Ok(Self {
            group,
            data: reader.rest().to_vec(),
        })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.group.0.to_be_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.data);
    }
}

/// AUTH payload (RFC 7296 3.8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authentication {
    /// Method.
    pub method: AuthMethod,
    /// MIC or signature.
    pub data: Vec<u8>,
}

impl Authentication {
    pub(super) fn parse(body: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body, "AUTH payload");
        let method = AuthMethod(reader.u8()?);
        reader.take(3)?;
        Ok(Self {
            method,
            data: reader.rest().to_vec(),
        })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.method.0, 0, 0, 0]);
        out.extend_from_slice(&self.data);
    }
}

pub(super) fn parse_nonce(body: &[u8]) -> Result<Vec<u8>, WireError> {
    // RFC 7296 3.9: the size of the Nonce Data MUST be between 16 and 256 octets, inclusive.
    if !(16..=256).contains(&body.len()) {
        return Err(WireError::Value {
            what: "nonce length",
            value: body.len() as u64,
        });
    }
    Ok(body.to_vec())
}
