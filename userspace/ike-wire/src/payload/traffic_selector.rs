//! TS payloads (RFC 7296 3.13).

use crate::WireError;
use crate::encode::{EncodeError, u8_count, u16_length};
use crate::reader::Reader;
use crate::registry::TsType;
use model::TrafficSelector;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const SELECTOR_HEADER_LEN: usize = 4;

/// Selectors of a TSi or TSr payload. The ports of an OPAQUE selector are 65535 and 0, as on the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrafficSelectors {
    /// Address ranges.
    pub selectors: Vec<TrafficSelector>,
    /// Types of selectors that we do not know. If `selectors` is empty, TS_UNACCEPTABLE is the answer; a security label
    /// (RFC 9478) that is left out would widen what the peer asked for.
    pub unknown: Vec<TsType>,
}

impl From<Vec<TrafficSelector>> for TrafficSelectors {
    fn from(selectors: Vec<TrafficSelector>) -> Self {
        Self {
            selectors,
            unknown: Vec::new(),
        }
    }
}

impl TrafficSelectors {
    pub(super) fn parse(body: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body, "TS payload");
        let count = usize::from(reader.u8()?);
        reader.take(3)?;
        if count == 0 {
            return Err(WireError::Value {
                what: "number of traffic selectors",
                value: 0,
            });
        }
        let mut parsed = Self::default();
        for found in 0..count {
            if reader.is_empty() {
                return Err(WireError::Count {
                    what: "traffic selectors",
                    stated: count,
                    got: found,
                });
            }
            parsed.parse_one(&mut reader)?;
        }
        reader.end()?;
        Ok(parsed)
    }

    fn parse_one(&mut self, reader: &mut Reader<'_>) -> Result<(), WireError> {
        let kind = TsType(reader.u8()?);
        let protocol = reader.u8()?;
        let length = usize::from(reader.u16()?);
        let wrong = WireError::Value {
            what: "traffic selector length",
            value: length as u64,
        };
        let mut body = Reader::new(
            reader.take(length.checked_sub(SELECTOR_HEADER_LEN).ok_or(wrong)?)?,
            "traffic selector",
        );
        if !matches!(kind, TsType::TS_IPV4_ADDR_RANGE | TsType::TS_IPV6_ADDR_RANGE) {
            self.unknown.push(kind);
            return Ok(());
        }
        let (first_port, last_port) = (body.u16()?, body.u16()?);
        let (first, last) = if kind == TsType::TS_IPV4_ADDR_RANGE {
            (
                IpAddr::from(Ipv4Addr::from(body.u32()?)),
                IpAddr::from(Ipv4Addr::from(body.u32()?)),
            )
        } else {
            (
                IpAddr::from(Ipv6Addr::from(body.array::<16>()?)),
                IpAddr::from(Ipv6Addr::from(body.array::<16>()?)),
            )
        };
        body.end()?;
        if first > last {
            return Err(WireError::Backwards("addresses"));
        }
        // Start 65535 with end 0 is OPAQUE (RFC 7296 3.13.1); any other backwards range is an error.
        if first_port > last_port && (first_port, last_port) != (u16::MAX, 0) {
            return Err(WireError::Backwards("ports"));
        }
        self.selectors.push(TrafficSelector {
            first,
            last,
            protocol,
            first_port,
            last_port,
        });
        Ok(())
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        out.extend_from_slice(&[u8_count("traffic selectors", self.selectors.len())?, 0, 0, 0]);
        for selector in &self.selectors {
            let (kind, addresses) = match (selector.first, selector.last) {
                (IpAddr::V4(first), IpAddr::V4(last)) => (
                    TsType::TS_IPV4_ADDR_RANGE,
                    [first.octets(), last.octets()].concat(),
                ),
                (IpAddr::V6(first), IpAddr::V6(last)) => (
                    TsType::TS_IPV6_ADDR_RANGE,
                    [first.octets(), last.octets()].concat(),
                ),
                _ => return Err(EncodeError::MixedFamilies),
            };
            let length = u16_length("traffic selector", SELECTOR_HEADER_LEN + 4 + addresses.len())?;
            out.extend_from_slice(&[kind.0, selector.protocol]);
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(&selector.first_port.to_be_bytes());
            out.extend_from_slice(&selector.last_port.to_be_bytes());
            out.extend_from_slice(&addresses);
        }
        Ok(())
    }
}
