//! R4: no sequence number is sent twice under one key, by whatever member; and in one epoch one member sends (R8).

use super::Truth;
use crate::plane::Esp;
use model::{Instant, MemberId};
use std::collections::HashMap;

#[derive(Default)]
pub(super) struct Sequence {
    /// Key and number: who sent it, in which epoch, and when.
    sent: HashMap<(u64, u64), (MemberId, u16, Instant)>,
    senders: HashMap<(u64, u16), MemberId>,
}

impl Sequence {
    pub(super) fn sent(&mut self, now: Instant, me: MemberId, esp: &Esp) -> Result<(), String> {
        let before = self.sent.insert((esp.key, esp.seq), (me, esp.epoch, now));
        let Some((who, epoch, at)) = before else {
            return Ok(());
        };
        Err(format!(
            "SPI {:08x}, number {}: sent by member {me} in epoch {}, and before by member {who} in epoch {epoch} at {:.3} ms",
            esp.spi,
            esp.seq,
            esp.epoch,
            at.0 as f64 / 1e6
        ))
    }

    pub(super) fn one_sender(
        &mut self,
        now: Instant,
        me: MemberId,
        esp: &Esp,
        truth: &Truth,
    ) -> Result<(), String> {
        let sender = *self.senders.entry((esp.key, esp.epoch)).or_insert(me);
        // Both halves of a split pair may have counted up to the same number of epoch.
        if sender == me || truth.any_split_at(now) {
            return Ok(());
        }
        Err(format!(
            "SPI {:08x} in epoch {}: member {me} sends, and member {sender} did",
            esp.spi, esp.epoch
        ))
    }
}
