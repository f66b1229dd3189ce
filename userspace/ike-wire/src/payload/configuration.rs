//! CP payload (RFC 7296 3.15).

use crate::WireError;
use crate::encode::{EncodeError, u16_length};
use crate::reader::Reader;
use crate::registry::{ConfigAttributeType, ConfigType};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What an endpoint asks for, or is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// Request, reply, set or acknowledgement.
    pub kind: ConfigType,
    /// In their order; one type may come several times.
    pub attributes: Vec<ConfigAttribute>,
}

/// One attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigAttribute {
    /// Type, 15 bits.
    pub kind: ConfigAttributeType,
    /// Empty in a request: any value will do.
    pub value: Vec<u8>,
}

impl ConfigAttribute {
    /// An attribute.
    pub fn new(kind: ConfigAttributeType, value: Vec<u8>) -> Self {
        Self { kind, value }
    }

    /// INTERNAL_IP4_ADDRESS or INTERNAL_IP6_ADDRESS (with prefix length 128).
    pub fn address(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::new(ConfigAttributeType::INTERNAL_IP4_ADDRESS, v4.octets().to_vec()),
            IpAddr::V6(v6) => {
                let mut value = v6.octets().to_vec();
                value.push(128);
                Self::new(ConfigAttributeType::INTERNAL_IP6_ADDRESS, value)
            }
        }
    }

    /// INTERNAL_IP4_DNS or INTERNAL_IP6_DNS.
    pub fn dns(server: IpAddr) -> Self {
        match server {
            IpAddr::V4(v4) => Self::new(ConfigAttributeType::INTERNAL_IP4_DNS, v4.octets().to_vec()),
            IpAddr::V6(v6) => Self::new(ConfigAttributeType::INTERNAL_IP6_DNS, v6.octets().to_vec()),
        }
    }

    /// The address in an attribute that begins with one; IPv6 ones may have a prefix length behind it.
    pub fn as_address(&self) -> Option<IpAddr> {
        let (v4, v6) = (self.value.first_chunk::<4>(), self.value.first_chunk::<16>());
        match self.kind {
            ConfigAttributeType::INTERNAL_IP4_ADDRESS | ConfigAttributeType::INTERNAL_IP4_DNS => {
                let exact = v4.filter(|_| self.value.len() == 4)?;
                Some(IpAddr::V4(Ipv4Addr::from(*exact)))
            }
            ConfigAttributeType::INTERNAL_IP6_ADDRESS | ConfigAttributeType::INTERNAL_IP6_DNS => {
                let exact = v6.filter(|_| self.value.len() <= 17)?;
                Some(IpAddr::V6(Ipv6Addr::from(*exact)))
            }
            _ => None,
        }
    }
}

impl Configuration {
    /// A request or an answer.
    pub fn new(kind: ConfigType, attributes: Vec<ConfigAttribute>) -> Self {
        Self { kind, attributes }
    }

    /// Attributes of one type.
    pub fn of(&self, kind: ConfigAttributeType) -> impl Iterator<Item = &ConfigAttribute> {
        self.attributes
            .iter()
            .filter(move |attribute| attribute.kind == kind)
    }

    pub(super) fn parse(body: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body, "CP payload");
        let kind = ConfigType(reader.u8()?);
        reader.take(3)?;
        let mut attributes = Vec::new();
        while !reader.is_empty() {
            // RFC 7296 3.15.1: the reserved bit MUST be ignored.
            let kind = ConfigAttributeType(reader.u16()? & 0x7fff);
            let length = usize::from(reader.u16()?);
            attributes.push(ConfigAttribute {
                kind,
                value: reader.take(length)?.to_vec(),
            });
        }
        Ok(Self { kind, attributes })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        out.extend_from_slice(&[self.kind.0, 0, 0, 0]);
        for attribute in &self.attributes {
            out.extend_from_slice(&(attribute.kind.0 & 0x7fff).to_be_bytes());
            out.extend_from_slice(&u16_length("attribute", attribute.value.len())?.to_be_bytes());
            out.extend_from_slice(&attribute.value);
        }
        Ok(())
    }
}
