//! ID payloads (RFC 7296 3.5).

use crate::WireError;
use crate::reader::Reader;
use crate::registry::IdType;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Who somebody says to be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Identity {
    /// ID_IPV4_ADDR.
    Ipv4(Ipv4Addr),
    /// ID_IPV6_ADDR.
    Ipv6(Ipv6Addr),
    /// ID_FQDN.
    Fqdn(String),
    /// ID_RFC822_ADDR.
    Rfc822(String),
    /// ID_DER_ASN1_DN, the DER octets.
    DerAsn1Dn(Vec<u8>),
    /// ID_KEY_ID.
    KeyId(Vec<u8>),
    /// Any other type.
    Other {
        /// Type.
        kind: IdType,
        /// Data.
        data: Vec<u8>,
    },
}

impl Identity {
    /// Its type.
    pub fn kind(&self) -> IdType {
        match self {
            Self::Ipv4(_) => IdType::ID_IPV4_ADDR,
            Self::Ipv6(_) => IdType::ID_IPV6_ADDR,
            Self::Fqdn(_) => IdType::ID_FQDN,
            Self::Rfc822(_) => IdType::ID_RFC822_ADDR,
            Self::DerAsn1Dn(_) => IdType::ID_DER_ASN1_DN,
            Self::KeyId(_) => IdType::ID_KEY_ID,
            Self::Other { kind, .. } => *kind,
        }
    }

    /// Its data on the wire.
    pub fn data(&self) -> Vec<u8> {
        match self {
            Self::Ipv4(ip) => ip.octets().to_vec(),
            Self::Ipv6(ip) => ip.octets().to_vec(),
            Self::Fqdn(text) | Self::Rfc822(text) => text.as_bytes().to_vec(),
            Self::DerAsn1Dn(data) | Self::KeyId(data) | Self::Other { data, .. } => data.clone(),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ipv4(ip) => ip.fmt(f),
            Self::Ipv6(ip) => ip.fmt(f),
            // A peer's text goes to logs: control characters must not.
            Self::Fqdn(text) | Self::Rfc822(text) => write!(f, "{}", text.escape_debug()),
            Self::DerAsn1Dn(data) | Self::KeyId(data) | Self::Other { data, .. } => {
                write!(f, "{}:", self.kind())?;
                data.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
            }
        }
    }
}

/// An ID payload. It keeps the reserved octets, because AUTH signs the body as it was sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identification {
    /// Who.
    pub identity: Identity,
    /// Three octets that we send as zero and ignore, but for AUTH.
    pub reserved: [u8; 3],
}

impl From<Identity> for Identification {
    fn from(identity: Identity) -> Self {
        Self {
            identity,
            reserved: [0; 3],
        }
    }
}

impl Identification {
    /// The payload's body as on the wire (RFC 7296 2.15: RestOfInitIDPayload).
    pub fn body(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }

    pub(super) fn parse(body: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body, "ID payload");
        let kind = IdType(reader.u8()?);
        let reserved = reader.array()?;
        let text = |data: &[u8], what| match std::str::from_utf8(data) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(WireError::Text(what)),
        };
        let identity = match kind {
            IdType::ID_IPV4_ADDR => Identity::Ipv4(Ipv4Addr::from(reader.array::<4>()?)),
            IdType::ID_IPV6_ADDR => Identity::Ipv6(Ipv6Addr::from(reader.array::<16>()?)),
            IdType::ID_FQDN => Identity::Fqdn(text(reader.rest(), "ID_FQDN")?),
            IdType::ID_RFC822_ADDR => Identity::Rfc822(text(reader.rest(), "ID_RFC822_ADDR")?),
            IdType::ID_DER_ASN1_DN => Identity::DerAsn1Dn(reader.rest().to_vec()),
            IdType::ID_KEY_ID => Identity::KeyId(reader.rest().to_vec()),
            kind => Identity::Other {
                kind,
                data: reader.rest().to_vec(),
            },
        };
        reader.end()?;
        Ok(Self { identity, reserved })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.push(self.identity.kind().0);
        out.extend_from_slice(&self.reserved);
        out.extend_from_slice(&self.identity.data());
    }
}
