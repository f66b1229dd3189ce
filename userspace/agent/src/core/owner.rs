//! Ownership: owner words, announcements, and what happens at a takeover.

use maps_schema::event::Event;
use maps_schema::segment::{OwnerWord, SEGMENT_ALONE, SideWord};
use model::{Epoch, Instant};

use super::Core;
use crate::api::TakeoverStatus;
use crate::clock;

/// The last takeover and how many there were.
#[derive(Default)]
pub struct Takeovers {
    /// Unplanned, planned.
    pub count: [u64; 2],
    /// The last one.
    pub last: Option<TakeoverStatus>,
    /// The first packet after it was seen.
    pub first_seen: bool,
    /// Rekeys on evidence in this epoch.
    pub evidence_rekeys: u32,
    /// Announcements that are still to be repeated, and when.
    pub announce: Option<(u32, Instant)>,
}

impl Core {
    /// Owns all segments from now on.
    pub(super) fn flip(&mut self, epoch: Epoch, alone: bool, valid_until_ms: u64) {
        let word = OwnerWord { owner: self.me.0, epoch: epoch.low16(), valid_until_ms };
        let successor = self.config.others().next().map_or(0, |m| m.id.0);
        let side =
            SideWord { successor, flags: if alone { SEGMENT_ALONE } else { 0 }, ..SideWord::default() };
        for segment in 0..=255 {
            self.segments.flip(segment, word, side);
        }
        self.ownership = super::Ownership { owner: Some(self.me), epoch, alone };
        self.evidence.clear();
        self.announce();
        self.log.note("owner", format!("this member owns all segments in epoch {epoch}"));
    }

    pub(super) fn extend_validity(&mut self, until_ms: u64) {
        for segment in 0..=255 {
            if let Err(there) =
                self.segments.extend_validity(segment, self.me.0, self.ownership.epoch.low16(), until_ms)
            {
                tracing::warn!(segment, owner = there.owner, epoch = there.epoch, "the owner word is another's");
                return;
            }
        }
    }

    /// Tells both networks where the cluster addresses are; repeated a few times, since frames get lost.
    fn announce(&mut self) {
        self.announcer.announce(&self.outside, &self.config.addresses.outside);
        self.announcer.announce(&self.inside, &self.config.addresses.inside);
        self.takeover.announce = Some((2, clock::now() + std::time::Duration::from_millis(50)));
    }

    /// Repeats announcements that are due.
    pub(super) fn announce_again(&mut self, now: Instant) {
        let Some((left, at)) = self.takeover.announce else { return };
        if now < at {
            return;
        }
        if self.owns() {
            self.announcer.announce(&self.outside, &self.config.addresses.outside);
            self.announcer.announce(&self.inside, &self.config.addresses.inside);
        }
        self.takeover.announce = (left > 1).then(|| (left - 1, now + std::time::Duration::from_millis(500)));
    }

    /// The first authentic packet that this member accepted in an epoch.
    pub(super) fn first_inbound(&mut self, event: &Event) {
        let Some(last) = &mut self.takeover.last else { return };
        if self.takeover.first_seen || last.epoch as u16 != event.epoch as u16 {
            return;
        }
        self.takeover.first_seen = true;
        let since = event.time_ns.saturating_sub(last.started_ns) as f64 / 1e6;
        last.phases_ms.insert("first_packet".to_owned(), since);
        self.log.note("first_packet", format!("first authentic packet in epoch {}: {since:.1} ms", event.epoch));
    }
}
