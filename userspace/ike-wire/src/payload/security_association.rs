//! SA payload: proposals, transforms, attributes (RFC 7296 3.3).

use crate::WireError;
use crate::encode::{EncodeError, u8_count, u16_length};
use crate::reader::Reader;
use crate::registry::{ProtocolId, TransformType};

const PROPOSAL_HEADER_LEN: usize = 8;
const TRANSFORM_HEADER_LEN: usize = 8;
const MORE_PROPOSALS: u8 = 2;
const MORE_TRANSFORMS: u8 = 3;
const LAST: u8 = 0;
const ATTRIBUTE_SHORT: u16 = 0x8000;

/// Proposals in the order of preference, or the one that was chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecurityAssociation {
    /// Proposals.
    pub proposals: Vec<Proposal>,
}

/// One proposal: a transform of each type that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Number, from 1; a response carries the number of the one that it chose.
    pub number: u8,
    /// Protocol.
    pub protocol: ProtocolId,
    /// The sender's SPI: empty in IKE_SA_INIT, 8 octets in an IKE rekey, 4 for ESP.
    pub spi: Vec<u8>,
    /// Transforms; those that we do not know are kept.
    pub transforms: Vec<Transform>,
}

/// One transform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transform {
    /// Type.
    pub kind: TransformType,
    /// Number within the type.
    pub id: u16,
    /// Attributes.
    pub attributes: Vec<Attribute>,
}

/// One attribute of a transform (RFC 7296 3.3.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribute {
    /// Type, 15 bits. Only [`Attribute::KEY_LENGTH`] is defined.
    pub kind: u16,
    /// Value.
    pub value: AttributeValue,
}

/// Value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttributeValue {
    /// Two octets in place of the length.
    Short(u16),
    /// Any length.
    Long(Vec<u8>),
}

impl Attribute {
    /// Key Length, in bits.
    pub const KEY_LENGTH: u16 = 14;
}

impl Proposal {
    /// Transforms of one type.
    pub fn transforms_of(&self, kind: TransformType) -> impl Iterator<Item = &Transform> {
        self.transforms
            .iter()
            .filter(move |transform| transform.kind == kind)
    }
}

impl Transform {
    /// Without attributes.
    pub fn new(kind: TransformType, id: u16) -> Self {
        Self {
            kind,
            id,
            attributes: Vec::new(),
        }
    }

    /// With a key length in bits.
    pub fn with_key_bits(kind: TransformType, id: u16, bits: u16) -> Self {
        let attribute = Attribute {
            kind: Attribute::KEY_LENGTH,
            value: AttributeValue::Short(bits),
        };
        Self {
            kind,
            id,
            attributes: vec![attribute],
        }
    }

    /// Key length in bits, if there is one.
    pub fn key_bits(&self) -> Option<u16> {
        self.attributes.iter().find_map(|attribute| match attribute {
            Attribute {
                kind: Attribute::KEY_LENGTH,
                value: AttributeValue::Short(bits),
            } => Some(*bits),
            _ => None,
        })
    }

    /// Whether there is nothing but at most one key length. RFC 7296 3.3.6: a transform with an attribute that is not understood must
    /// not be chosen.
    pub fn is_understood(&self) -> bool {
        match self.attributes.as_slice() {
            [] => true,
            [_] => self.key_bits().is_some(),
            _ => false,
        }
    }
}

impl SecurityAssociation {
    pub(super) fn parse(body: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body, "SA payload");
        let mut proposals = Vec::new();
        loop {
            let start = reader.len();
            let last = reader.u8()?;
            reader.u8()?;
            let length = usize::from(reader.u16()?);
            let stated = WireError::LengthMismatch {
                what: "proposal",
                stated: length,
                got: start,
            };
            let mut body = Reader::new(reader.take(length.checked_sub(4).ok_or(stated)?)?, "proposal");
            proposals.push(Proposal::parse(&mut body)?);
            body.end()?;
            match (last, reader.is_empty()) {
                (LAST, true) => return Ok(Self { proposals }),
                (MORE_PROPOSALS, false) => {}
                _ => {
                    return Err(WireError::Value {
                        what: "last-or-more octet of a proposal",
                        value: last.into(),
                    });
                }
            }
        }
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        for (index, proposal) in self.proposals.iter().enumerate() {
            let more = index + 1 < self.proposals.len();
            proposal.write(out, if more { MORE_PROPOSALS } else { LAST })?;
        }
        Ok(())
    }
}

impl Proposal {
    fn parse(body: &mut Reader<'_>) -> Result<Self, WireError> {
        let number = body.u8()?;
        let protocol = ProtocolId(body.u8()?);
        let spi_len = usize::from(body.u8()?);
        let count = usize::from(body.u8()?);
        let spi = body.take(spi_len)?.to_vec();
        let mut transforms = Vec::new();
        while !body.is_empty() {
            if transforms.len() == count {
                return Err(WireError::Trailing {
                    what: "the last transform",
                    count: body.len(),
                });
            }
            let start = body.len();
            let last = body.u8()?;
            body.u8()?;
            let length = usize::from(body.u16()?);
            let stated = WireError::LengthMismatch {
                what: "transform",
                stated: length,
                got: start,
            };
            let mut inner = Reader::new(body.take(length.checked_sub(4).ok_or(stated)?)?, "transform");
            transforms.push(Transform::parse(&mut inner)?);
            if !matches!((last, body.is_empty()), (LAST, true) | (MORE_TRANSFORMS, false)) {
                return Err(WireError::Value {
                    what: "last-or-more octet of a transform",
                    value: last.into(),
                });
            }
        }
        if transforms.len() != count {
            return Err(WireError::Count {
                what: "transforms",
                stated: count,
                got: transforms.len(),
            });
        }
        Ok(Self {
            number,
            protocol,
            spi,
            transforms,
        })
    }

    fn write(&self, out: &mut Vec<u8>, last: u8) -> Result<(), EncodeError> {
        let start = out.len();
        let spi_len = u8_count("octets of SPI", self.spi.len())?;
        let count = u8_count("transforms", self.transforms.len())?;
        out.extend_from_slice(&[last, 0, 0, 0, self.number, self.protocol.0, spi_len, count]);
        debug_assert_eq!(out.len() - start, PROPOSAL_HEADER_LEN);
        out.extend_from_slice(&self.spi);
        for (index, transform) in self.transforms.iter().enumerate() {
            let more = index + 1 < self.transforms.len();
            transform.write(out, if more { MORE_TRANSFORMS } else { LAST })?;
        }
        patch_length(out, start, "proposal")
    }
}

impl Transform {
    fn parse(body: &mut Reader<'_>) -> Result<Self, WireError> {
        let kind = TransformType(body.u8()?);
        body.u8()?;
        let id = body.u16()?;
        let mut attributes = Vec::new();
        while !body.is_empty() {
            let kind = body.u16()?;
            let value = body.u16()?;
            attributes.push(if kind & ATTRIBUTE_SHORT != 0 {
                Attribute {
                    kind: kind & !ATTRIBUTE_SHORT,
                    value: AttributeValue::Short(value),
                }
            } else {
                Attribute {
                    kind,
                    value: AttributeValue::Long(body.take(usize::from(value))?.to_vec()),
                }
            });
        }
        Ok(Self { kind, id, attributes })
    }

    fn write(&self, out: &mut Vec<u8>, last: u8) -> Result<(), EncodeError> {
        let start = out.len();
        out.extend_from_slice(&[last, 0, 0, 0, self.kind.0, 0]);
        out.extend_from_slice(&self.id.to_be_bytes());
        debug_assert_eq!(out.len() - start, TRANSFORM_HEADER_LEN);
        for attribute in &self.attributes {
            match &attribute.value {
                AttributeValue::Short(value) => {
                    out.extend_from_slice(&(attribute.kind | ATTRIBUTE_SHORT).to_be_bytes());
                    out.extend_from_slice(&value.to_be_bytes());
                }
                AttributeValue::Long(value) => {
                    out.extend_from_slice(&(attribute.kind & !ATTRIBUTE_SHORT).to_be_bytes());
                    out.extend_from_slice(&u16_length("attribute", value.len())?.to_be_bytes());
                    out.extend_from_slice(value);
                }
            }
        }
        patch_length(out, start, "transform")
    }
}

// Proposals and transforms carry their length at offset 2.
fn patch_length(out: &mut [u8], start: usize, what: &'static str) -> Result<(), EncodeError> {
    let length = u16_length(what, out.len() - start)?;
    out[start + 2..start + 4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}
