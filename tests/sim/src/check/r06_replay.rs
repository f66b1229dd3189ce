//! R6: no sequence number is accepted twice on an SA, by whatever member. A lenient policy gives that up after a failover, and counts: what is
//! accepted twice there is counted, the second time.

use super::Truth;
use crate::plane::Esp;
use model::{GroupId, Instant, MemberId};
use std::collections::HashMap;

#[derive(Default)]
pub(super) struct Replay {
    accepted: HashMap<(u64, u64), (MemberId, u16, Instant)>,
    /// What was accepted twice by a lenient policy.
    pub counted: u64,
}

impl Replay {
    pub(super) fn accepted(
        &mut self,
        now: Instant,
        me: MemberId,
        esp: &Esp,
        group: GroupId,
        truth: &Truth,
    ) -> Result<(), String> {
        let before = self.accepted.insert((esp.key, esp.seq), (me, esp.epoch, now));
        let Some((who, epoch, at)) = before else {
            return Ok(());
        };
        if esp.lenient && (who, epoch) != (me, esp.epoch) {
            self.counted += 1;
            return Ok(());
        }
        // What one half of a split pair accepted, the other cannot know, nor can the half that lost once it has the winner's windows. What was
        // accepted before the split, both know.
        let unknown = who != me || truth.lost_half(group, who, epoch);
        if unknown && truth.split_at(group, at) {
            return Ok(());
        }
        Err(format!(
            "SPI {:08x}, number {}: accepted by member {me} in epoch {}, and before by member {who} in epoch {epoch} at {:.3} ms",
            esp.spi,
            esp.seq,
            esp.epoch,
            at.0 as f64 / 1e6
        ))
    }
}
