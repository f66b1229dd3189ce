//! Notify payload (RFC 7296 3.10) and the data of the notifications that have some.

use crate::WireError;
use crate::encode::{EncodeError, u8_count};
use crate::reader::Reader;
use crate::registry::{DhTransform, NotifyType, PayloadType, ProtocolId};
use model::EspSpi;
use std::net::IpAddr;

/// A notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notify {
    /// Protocol of the SA that it is about; [`ProtocolId::NONE`] without SPI.
    pub protocol: ProtocolId,
    /// SPI of that SA; mostly empty.
    pub spi: Vec<u8>,
    /// What it says.
    pub kind: NotifyType,
    /// Data, by type.
    pub data: Vec<u8>,
}

/// Data of IKEV2_MESSAGE_ID_SYNC (RFC 6311).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageIdSync {
    /// Chosen by the cluster, echoed by the peer.
    pub nonce: u32,
    /// Next Message ID that the sender will send.
    pub expected_send: u32,
    /// Next Message ID that the sender will accept.
    pub expected_recv: u32,
}

/// The gateway that a redirection names (RFC 5685 8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gateway<'a> {
    /// By its address.
    Address(IpAddr),
    /// By its name.
    Name(&'a [u8]),
}

/// Numbers of [`Gateway`].
const GATEWAY_IPV4: u8 = 1;
const GATEWAY_IPV6: u8 = 2;
const GATEWAY_FQDN: u8 = 3;

fn gateway(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => [&[GATEWAY_IPV4, 4], v4.octets().as_slice()].concat(),
        IpAddr::V6(v6) => [&[GATEWAY_IPV6, 16], v6.octets().as_slice()].concat(),
    }
}

impl Notify {
    /// REDIRECT to a gateway, with the client's nonce where it answers a first message (RFC 5685 8.2).
    pub fn redirect(to: IpAddr, nonce: &[u8]) -> Self {
        Self::new(NotifyType::REDIRECT, [gateway(to).as_slice(), nonce].concat())
    }

    /// REDIRECTED_FROM a gateway (RFC 5685 8.3).
    pub fn redirected_from(from: IpAddr) -> Self {
        Self::new(NotifyType::REDIRECTED_FROM, gateway(from))
    }

    /// The gateway in a REDIRECT, and the nonce.
    pub fn as_redirect(&self) -> Option<(Gateway<'_>, &[u8])> {
        let (&[kind, length], rest) = self.data_of(NotifyType::REDIRECT)?.split_first_chunk::<2>()?;
        let (identity, nonce) = rest.split_at_checked(usize::from(length))?;
        let gateway = match kind {
            GATEWAY_IPV4 => Gateway::Address(<[u8; 4]>::try_from(identity).ok()?.into()),
            GATEWAY_IPV6 => Gateway::Address(<[u8; 16]>::try_from(identity).ok()?.into()),
            GATEWAY_FQDN if !identity.is_empty() => Gateway::Name(identity),
            _ => return None,
        };
        Some((gateway, nonce))
    }

    /// A notification about no SA, or about the IKE SA.
    pub fn new(kind: NotifyType, data: Vec<u8>) -> Self {
        Self {
            protocol: ProtocolId::NONE,
            spi: Vec::new(),
            kind,
            data,
        }
    }

    /// A notification without data.
    pub fn status(kind: NotifyType) -> Self {
        Self::new(kind, Vec::new())
    }

    /// A notification about an ESP SA: REKEY_SA (the sender's inbound SPI), CHILD_SA_NOT_FOUND.
    pub fn about_esp(kind: NotifyType, spi: EspSpi) -> Self {
        Self {
            protocol: ProtocolId::ESP,
            spi: spi.0.to_be_bytes().to_vec(),
            kind,
            data: Vec::new(),
        }
    }

    /// INVALID_KE_PAYLOAD with the group that we want (RFC 7296 1.3).
    pub fn invalid_ke(group: DhTransform) -> Self {
        Self::new(NotifyType::INVALID_KE_PAYLOAD, group.0.to_be_bytes().to_vec())
    }

    /// IKEV2_MESSAGE_ID_SYNC.
    pub fn message_id_sync(sync: MessageIdSync) -> Self {
        let data = [sync.nonce, sync.expected_send, sync.expected_recv]
            .map(u32::to_be_bytes)
            .concat();
        Self::new(NotifyType::IKEV2_MESSAGE_ID_SYNC, data)
    }

    /// AUTH_LIFETIME in seconds (RFC 4478 3).
    pub fn auth_lifetime(seconds: u32) -> Self {
        Self::new(NotifyType::AUTH_LIFETIME, seconds.to_be_bytes().to_vec())
    }

    /// SIGNATURE_HASH_ALGORITHMS (RFC 7427 4).
    pub fn signature_hashes(algorithms: &[u16]) -> Self {
        let data = algorithms.iter().flat_map(|id| id.to_be_bytes()).collect();
        Self::new(NotifyType::SIGNATURE_HASH_ALGORITHMS, data)
    }

    /// The ESP SPI that it is about, if it is about one.
    pub fn esp_spi(&self) -> Option<EspSpi> {
        let spi: [u8; 4] = self.spi.as_slice().try_into().ok()?;
        (self.protocol == ProtocolId::ESP).then_some(EspSpi(u32::from_be_bytes(spi)))
    }

    /// The group in an INVALID_KE_PAYLOAD.
    pub fn as_invalid_ke(&self) -> Option<DhTransform> {
        let data: [u8; 2] = self.data_of(NotifyType::INVALID_KE_PAYLOAD)?.try_into().ok()?;
        Some(DhTransform(u16::from_be_bytes(data)))
    }

    /// The seconds in an AUTH_LIFETIME.
    pub fn as_auth_lifetime(&self) -> Option<u32> {
        let data: [u8; 4] = self.data_of(NotifyType::AUTH_LIFETIME)?.try_into().ok()?;
        Some(u32::from_be_bytes(data))
    }

    /// The payload type in an UNSUPPORTED_CRITICAL_PAYLOAD.
    pub fn as_unsupported_critical(&self) -> Option<PayloadType> {
        match self.data_of(NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD)? {
            [kind] => Some(PayloadType(*kind)),
            _ => None,
        }
    }

    /// The cookie in a COOKIE, if its length is allowed (RFC 7296 2.6: 1 to 64 octets).
    pub fn as_cookie(&self) -> Option<&[u8]> {
        self.data_of(NotifyType::COOKIE)
            .filter(|data| (1..=64).contains(&data.len()))
    }

    /// The 20 octets of NAT_DETECTION_SOURCE_IP or NAT_DETECTION_DESTINATION_IP.
    pub fn as_nat_detection(&self) -> Option<&[u8; 20]> {
        match self.kind {
            NotifyType::NAT_DETECTION_SOURCE_IP | NotifyType::NAT_DETECTION_DESTINATION_IP => {
                self.data.as_slice().try_into().ok()
            }
            _ => None,
        }
    }

    /// The numbers in an IKEV2_MESSAGE_ID_SYNC.
    pub fn as_message_id_sync(&self) -> Option<MessageIdSync> {
        let mut reader = Reader::new(
            self.data_of(NotifyType::IKEV2_MESSAGE_ID_SYNC)?,
            "message id sync",
        );
        let sync = MessageIdSync {
            nonce: reader.u32().ok()?,
            expected_send: reader.u32().ok()?,
            expected_recv: reader.u32().ok()?,
        };
        reader.end().ok().map(|()| sync)
    }

    /// The hash identifiers in a SIGNATURE_HASH_ALGORITHMS.
    pub fn as_signature_hashes(&self) -> Option<Vec<u16>> {
        let (pairs, []) = self
            .data_of(NotifyType::SIGNATURE_HASH_ALGORITHMS)?
            .as_chunks::<2>()
        else {
            return None;
        };
        Some(pairs.iter().map(|pair| u16::from_be_bytes(*pair)).collect())
    }

    pub(super) fn data_of(&self, kind: NotifyType) -> Option<&[u8]> {
        (self.kind == kind).then_some(self.data.as_slice())
    }

    pub(super) fn parse(body: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body, "Notify payload");
        let protocol = ProtocolId(reader.u8()?);
        let spi_len = usize::from(reader.u8()?);
        let kind = NotifyType(reader.u16()?);
        let spi = reader.take(spi_len)?.to_vec();
        Ok(Self {
            protocol,
            spi,
            kind,
            data: reader.rest().to_vec(),
        })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        out.extend_from_slice(&[self.protocol.0, u8_count("octets of SPI", self.spi.len())?]);
        out.extend_from_slice(&self.kind.0.to_be_bytes());
        out.extend_from_slice(&self.spi);
        out.extend_from_slice(&self.data);
        Ok(())
    }
}
