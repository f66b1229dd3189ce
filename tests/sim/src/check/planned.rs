//! A planned takeover loses nothing: what enters the cluster comes out. Judged in runs in which nothing else happens.

use crate::frames::Packet;
use model::Instant;
use std::collections::BTreeMap;

/// Packets that have not come out, by number.
#[derive(Default)]
pub(super) struct Planned {
    under_way: BTreeMap<u32, (Packet, Instant)>,
}

impl Planned {
    pub(super) fn entered(&mut self, now: Instant, packet: Packet) {
        self.under_way.insert(packet.number, (packet, now));
    }

    pub(super) fn delivered(&mut self, packet: Packet) {
        self.under_way.remove(&packet.number);
    }

    pub(super) fn lost(&self) -> u64 {
        self.under_way.len() as u64
    }

    pub(super) fn ended(&self) -> Result<(), String> {
        let Some((packet, at)) = self.under_way.values().next() else {
            return Ok(());
        };
        Err(format!(
            "{} packets never came out, the first one {packet:?} of {:.3} ms",
            self.under_way.len(),
            at.0 as f64 / 1e6
        ))
    }
}
