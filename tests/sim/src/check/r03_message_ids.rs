//! R3: Message IDs of requests never go back, and a request that is sent again has the same octets, whoever sends it.

use super::Truth;
use crate::rng::digest;
use model::{GroupId, Instant, MemberId};
use std::collections::HashMap;

#[derive(Default)]
pub(super) struct MessageIds {
    /// By SPIs and role: the highest Message ID.
    highest: HashMap<(u64, u64, bool), u32>,
    /// Digest of every request. One that an old owner sends again late is no harm: the octets are the same.
    sent: HashMap<(u64, u64, bool, u32), u64>,
}

/// The fixed header (RFC 7296 3.1): SPIs, exchange, is it the original initiator's, is it a response, Message ID.
pub(super) fn header(bytes: &[u8]) -> Option<(u64, u64, u8, bool, bool, u32)> {
    let word = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let flags = *bytes.get(19)?;
    let id = u32::from_be_bytes(bytes.get(20..24)?.try_into().ok()?);
    Some((
        word(0)?,
        word(8)?,
        *bytes.get(18)?,
        flags & 0x08 != 0,
        flags & 0x20 != 0,
        id,
    ))
}

/// IKE_SA_INIT: sent again with another body on a cookie or another group, by RFC 7296 2.6 and 1.2.
pub(super) const IKE_SA_INIT: u8 = 34;

impl MessageIds {
    pub(super) fn sent(
        &mut self,
        _now: Instant,
        me: MemberId,
        bytes: &[u8],
        group: Option<GroupId>,
        truth: &Truth,
    ) -> Result<(), String> {
        let Some((spi_i, spi_r, exchange, initiator, response, id)) = header(bytes) else {
            return Err(format!(
                "member {me} sent {} octets that are no IKE message",
                bytes.len()
            ));
        };
        if response || exchange == IKE_SA_INIT {
            return Ok(());
        }
        let body = digest(bytes);
        let before = self.sent.insert((spi_i, spi_r, initiator, id), body);
        let highest = self.highest.entry((spi_i, spi_r, initiator)).or_insert(id);
        let was = *highest;
        *highest = was.max(id);
        // A pair that was split may have forked its Message IDs (docs/SYNCH-CHANNEL.md).
        if group.is_some_and(|group| truth.was_split(group)) {
            return Ok(());
        }
        match before {
            Some(other) if other != body => Err(format!(
                "member {me} sent other octets as request {id} of IKE SA {spi_i:016x}/{spi_r:016x}"
            )),
            None if id < was => Err(format!(
                "member {me} sent a new request {id} of IKE SA {spi_i:016x}/{spi_r:016x} after {was}"
            )),
            _ => Ok(()),
        }
    }
}
