//! Data of the notifications by which peers recover from lost state: quick crash detection (RFC 6290), session
//! resumption (RFC 5723), replay counters after a failover (RFC 6311).
//!
//! Each has one maker and one reader. A reader gives `None` where the data does not have the shape that the RFC draws;
//! Protocol ID and SPI of the notification are not looked at, as RFC 7296 3.10 wants of a receiver.

use super::Notify;
use crate::registry::{NotifyType, ProtocolId};
use std::ops::RangeInclusive;

/// Octets of a QCD token (RFC 6290 5: "at least 16 octets long, and no more than 128").
const QCD_TOKEN_LEN: RangeInclusive<usize> = 16..=128;

/// How much the peer is to add to its outgoing ESP sequence numbers (RFC 6311).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CounterDelta {
    /// Child SAs without extended sequence numbers.
    Short(u32),
    /// Child SAs with extended sequence numbers.
    Extended(u64),
}

impl Notify {
    /// IPSEC_REPLAY_COUNTER_SYNC.
    pub fn replay_counter_sync(delta: CounterDelta) -> Self {
        let data = match delta {
            CounterDelta::Short(delta) => delta.to_be_bytes().to_vec(),
            CounterDelta::Extended(delta) => delta.to_be_bytes().to_vec(),
        };
        Self::new(NotifyType::IPSEC_REPLAY_COUNTER_SYNC, data)
    }

    /// The delta in an IPSEC_REPLAY_COUNTER_SYNC: 4 octets, or 8 with extended sequence numbers.
    pub fn as_replay_counter_sync(&self) -> Option<CounterDelta> {
        let data = self.data_of(NotifyType::IPSEC_REPLAY_COUNTER_SYNC)?;
        if let Ok(delta) = data.try_into() {
            return Some(CounterDelta::Short(u32::from_be_bytes(delta)));
        }
        let delta = data.try_into().ok()?;
        Some(CounterDelta::Extended(u64::from_be_bytes(delta)))
    }

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

    /// TICKET_LT_OPAQUE: a ticket and the seconds that it lives (RFC 5723 7.1).
    pub fn ticket_lt_opaque(lifetime_s: u32, ticket: &[u8]) -> Self {
        let data = [&lifetime_s.to_be_bytes()[..], ticket].concat();
        Self::new(NotifyType::TICKET_LT_OPAQUE, data)
    }

    /// Lifetime in seconds and ticket of a TICKET_LT_OPAQUE; an empty ticket is none.
    pub fn as_ticket_lt_opaque(&self) -> Option<(u32, &[u8])> {
        let (lifetime, ticket) = self
            .data_of(NotifyType::TICKET_LT_OPAQUE)?
            .split_first_chunk::<4>()?;
        (!ticket.is_empty()).then_some((u32::from_be_bytes(*lifetime), ticket))
    }

    /// TICKET_OPAQUE: a ticket that is shown (RFC 5723 7.2).
    pub fn ticket_opaque(ticket: &[u8]) -> Self {
        Self::new(NotifyType::TICKET_OPAQUE, ticket.to_vec())
    }

    /// The ticket in a TICKET_OPAQUE; an empty one is none.
    pub fn as_ticket_opaque(&self) -> Option<&[u8]> {
        self.data_of(NotifyType::TICKET_OPAQUE)
            .filter(|ticket| !ticket.is_empty())
    }
}
