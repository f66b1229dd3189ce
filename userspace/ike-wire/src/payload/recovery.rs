//! Data of the notifications by which peers recover from lost state: quick crash detection (RFC 6290).
//!
//! Each has one maker and one reader. A reader gives `None` where the data does not have the shape that the RFC draws;
//! Protocol ID and SPI of the notification are not looked at, as RFC 7296 3.10 wants of a receiver.

use super::Notify;
use crate::registry::{NotifyType, ProtocolId};
use std::ops::RangeInclusive;

/// Octets of a QCD token (RFC 6290 5: "at least 16 octets long, and no more than 128").
const QCD_TOKEN_LEN: RangeInclusive<usize> = 16..=128;

impl Notify {
    /// QUICK_CRASH_DETECTION: a token of 16 to 128 octets (RFC 6290 4.1: about the IKE SA, without SPI).
    pub fn qcd_token(token: &[u8]) -> Self {
        Self {
            protocol: ProtocolId::IKE,
            ..Self::new(NotifyType::QUICK_CRASH_DETECTION, token.to_vec())
        }
    }

    /// The token in a QUICK_CRASH_DETECTION, if its length is allowed.
    pub fn as_qcd_token(&self) -> Option<&[u8]> {
        self.data_of(NotifyType::QUICK_CRASH_DETECTION)
            .filter(|token| QCD_TOKEN_LEN.contains(&token.len()))
    }
}
