//! Ownership: owner words, announcements, the IKE engine's life, and the windows of a planned handover.

use std::time::Duration;

use cluster::EpochId;
use cluster::io::Flip;
use maps_schema::sad::{FinalWindow, SA_CTL_MERGED, SA_CTL_NO_FLOOR};
use maps_schema::segment::{LEGACY_HOLDING, LEGACY_NONE, LEGACY_OPEN, OwnerWord, SEGMENT_ALONE, SideWord};
use model::Instant;
use zerocopy::{FromBytes, IntoBytes};

use super::around::Around;
use super::suspects::Suspects;
use super::{Core, Ownership};
use crate::clock;

/// Windows that fit into one record of the synch channel. The SAs that were active last go first; one that does not fit loses
/// nothing but what was under way, as after a failover.
const WINDOWS_MAX: usize = (1 << 20) / size_of::<FinalWindow>() - 1;
/// Announcements after the first one, and the time to the next.
const ANNOUNCE_AGAIN: u32 = 3;
/// How often a virtual MAC address is announced: switches forget after 300 s as a rule.
const ANNOUNCE_VIRTUAL: Duration = Duration::from_secs(60);

impl Core {
    /// Writes the owner and side words of all segments.
    pub(super) fn flip(&mut self, flip: &Flip) {
        let (owner, epoch) = (flip.epoch.owner, flip.epoch.number);
        let word = OwnerWord {
            owner: owner.0,
            epoch: epoch.low16(),
            valid_until_ms: flip.valid_until.millis(),
        };
        let legacy = flip.legacy.map_or((0, LEGACY_NONE, 0), |l| {
            let phase = if l.holding { LEGACY_HOLDING } else { LEGACY_OPEN };
            (l.epoch.owner.0, phase, l.epoch.number.low16())
        });
        let side = SideWord {
            successor: flip.successor.map_or(0, |m| m.0),
            flags: if flip.alone { SEGMENT_ALONE } else { 0 },
            legacy_owner: legacy.0,
            legacy_phase: legacy.1,
            legacy_epoch: legacy.2,
        };
        for segment in 0..=255 {
            self.segments.flip(segment, word, side);
        }
        if self.ownership.epoch != epoch {
            self.evidence.clear();
            self.takeover.evidence_rekeys = 0;
            self.before = self.ownership;
        }
        self.ownership = Ownership {
            owner: Some(owner),
            epoch,
            alone: flip.alone,
        };
        if self.owns() && flip.legacy.is_none() {
            self.run_held();
        }
    }

    pub(super) fn extend_validity(&mut self, epoch: EpochId, until: Instant) {
        for segment in 0..=255 {
            let extended =
                self.segments
                    .extend_validity(segment, epoch.owner.0, epoch.number.low16(), until.millis());
            if let Err(there) = extended {
                tracing::warn!(
                    segment,
                    owner = there.owner,
                    epoch = there.epoch,
                    "the owner word is another's"
                );
                return;
            }
        }
    }

    /// Tells both networks where the cluster addresses are; repeated a few times, since frames get lost.
    pub(super) fn announce(&mut self) {
        self.ports
            .announce(&self.announcer, &self.config.addresses, |_| true);
        self.announce_next = Some((ANNOUNCE_AGAIN, clock::now() + Duration::from_millis(50)));
    }

    /// Repeats announcements that are due.
    pub(super) fn announce_again(&mut self, now: Instant) {
        let Some((left, at)) = self.announce_next else {
            return;
        };
        if now < at {
            return;
        }
        if self.owns() {
            self.ports
                .announce(&self.announcer, &self.config.addresses, |_| true);
        }
        self.announce_next = (left > 1).then(|| (left - 1, now + Duration::from_millis(500)));
        // No frame but these bears a virtual MAC address: switches would forget it, and flood.
        if self.announce_next.is_none() && self.ports.virtual_mac.is_some() && self.owns() {
            self.announce_next = Some((1, now + ANNOUNCE_VIRTUAL));
        }
    }

    /// This member serves now: the engine takes all mirrored IKE SAs and sends what is outstanding again.
    pub(super) fn resume_ike(&mut self) {
        let began = clock::now();
        self.engine.clear();
        self.pending.clear();
        let mut lost = 0;
        for (spi, record) in &self.mirror {
            if let Err(error) = self.engine.adopt(began, *spi, record) {
                lost += 1;
                tracing::warn!(%spi, %error, "an IKE SA was not taken over; its peer will notice and begin anew");
            }
        }
        let mut around = Around {
            sad: &mut self.sad,
            member: self.me,
            epoch: self.ownership.epoch,
            steer_key: self.steer_key,
        };
        self.engine.resume(began, &mut around);
        let took = clock::now().since(began).as_secs_f64() * 1000.0;
        let taken = self.mirror.len() - lost;
        self.adopted(taken, took);
        self.log.note(
            "resumed",
            format!(
                "{taken} IKE SAs and {} Child SAs served, {took:.1} ms",
                self.sad.len()
            ),
        );
        // Connections that are down are initiated at once.
        self.redial.clear();
        self.withholding = false;
        self.begin_suspects();
    }

    /// This member serves no more.
    pub(super) fn suspend_ike(&mut self) {
        self.engine.clear();
        self.pending.clear();
        self.slow.clear();
        self.redial.clear();
        self.reported.clear();
        self.orders_given_up();
    }

    /// Nothing of this member's state may be served.
    pub(super) fn discard_fork(&mut self) {
        self.suspend_ike();
        self.mirror.clear();
        self.suspects = Suspects::default();
        let plan = self.sad.clear();
        self.execute_or_log(&plan);
        self.log.warn(
            "discarded",
            "all SAs of this member were discarded; it joins anew",
        );
    }

    /// Old owner in a planned handover: its words say already that it does not serve. The windows as they are when no
    /// program runs any more.
    pub(super) fn final_windows(&mut self) -> Vec<u8> {
        if let Err(error) = self.runner.drain_cpus() {
            self.log.warn(
                "handover",
                format!("the CPUs were not drained, no window is handed over: {error}"),
            );
            return Vec::new();
        }
        let (epoch, alone) = (self.before.epoch.low16(), self.before.alone);
        let mut windows = Vec::new();
        for entry in self.sad.iter() {
            let Some(counters) = self.counters.counters(entry.slot()) else {
                continue;
            };
            let window = counters.inbound;
            if window.spi != entry.record.spi_in.0 {
                continue;
            }
            let flags = if entry.local_only {
                maps_schema::sad::SA_LOCAL_ONLY
            } else {
                0
            };
            let Ok(range) = datapath::limits::inbound_range(&entry.ceiling, flags, alone, epoch) else {
                continue;
            };
            let last_ms = window.last_ms;
            windows.push((
                last_ms,
                FinalWindow {
                    slot: entry.slot(),
                    spi: window.spi,
                    edge: window.edge,
                    floor: range.ceiling,
                    blocks: window.blocks,
                },
            ));
        }
        windows.sort_by_key(|(last_ms, _)| std::cmp::Reverse(*last_ms));
        windows.truncate(WINDOWS_MAX);
        windows
            .iter()
            .flat_map(|(_, window)| window.as_bytes().to_vec())
            .collect()
    }

    /// Taker in a planned handover: each SA's window is merged on its CPU.
    pub(super) fn merge_windows(&mut self, octets: &[u8]) {
        let (mut merged, mut not) = (0, 0);
        for chunk in octets.chunks_exact(size_of::<FinalWindow>()) {
            let Ok(window) = FinalWindow::read_from_bytes(chunk) else {
                continue;
            };
            let cpu = self.plane.cpu_of(window.slot);
            match self.runner.control(cpu, window.as_bytes()) {
                Ok((SA_CTL_MERGED, _)) => merged += 1,
                Ok((SA_CTL_NO_FLOOR, _)) => {}
                Ok((code, _)) => {
                    not += 1;
                    tracing::debug!(slot = window.slot, code, "a window was not merged");
                }
                Err(error) => {
                    not += 1;
                    tracing::debug!(slot = window.slot, %error, "a window was not merged");
                }
            }
        }
        self.log
            .note("handover", format!("{merged} windows merged, {not} not"));
    }
}
