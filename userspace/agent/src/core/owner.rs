//! Ownership: owner words, announcements, the IKE engine's life, and the windows of a planned handover.

use std::time::Duration;

use cluster::EpochId;
use cluster::io::{Flip, LegacyPhase};
use maps_schema::sad::{FinalWindow, SA_CTL_MERGED, SA_CTL_NO_FLOOR, spi_slot};
use maps_schema::segment::{
    LEGACY_GIVEN, LEGACY_HOLDING, LEGACY_NONE, LEGACY_OPEN, OwnerWord, SEGMENT_ALONE, SideWord,
};
use model::{Epoch, GroupId, IkeSpi, Instant, SecretBytes, SegmentId};
use zerocopy::{FromBytes, IntoBytes};

use super::Core;
use super::groups::{Group, Ownership};
use super::suspects::Suspects;
use crate::clock;

/// Windows that fit into one record of the synch channel. The SAs that were of use last go first; one that does not fit loses what
/// was under way, and an idle one its next numbers up to the ceiling, as after a failover.
const WINDOWS_MAX: usize = (1 << 20) / size_of::<FinalWindow>() - 1;
/// Announcements after the first one, and the time to the next.
const ANNOUNCE_AGAIN: u32 = 3;
/// Windows are merged for this long before the core does something else.
const MERGE_TURN: Duration = Duration::from_millis(2);

/// Windows of an old owner, merged in turns; the node hears of it at the end.
pub struct Merging {
    group: GroupId,
    token: u64,
    octets: Vec<u8>,
    at: usize,
    merged: usize,
    not: usize,
}
/// How often a virtual MAC address is announced: switches forget after 300 s as a rule.
const ANNOUNCE_VIRTUAL: Duration = Duration::from_secs(60);

impl Core {
    /// Writes the owner and side words of all segments of a group.
    pub(super) fn flip(&mut self, flip: &Flip) {
        self.end_lingering_before(flip);
        let (owner, epoch) = (flip.epoch.owner, flip.epoch.number);
        let word = OwnerWord {
            owner: owner.0,
            epoch: epoch.low16(),
            valid_until_ms: flip.valid_until.millis(),
        };
        let legacy = flip.legacy.map_or((0, LEGACY_NONE, 0), |l| {
            let phase = match l.phase {
                LegacyPhase::Open => LEGACY_OPEN,
                LegacyPhase::Holding => LEGACY_HOLDING,
                LegacyPhase::Given => LEGACY_GIVEN,
            };
            (l.epoch.owner.0, phase, l.epoch.number.low16())
        });
        let side = SideWord {
            successor: flip.successor.map_or(0, |m| m.0),
            flags: if flip.alone { SEGMENT_ALONE } else { 0 },
            legacy_owner: legacy.0,
            legacy_phase: legacy.1,
            legacy_epoch: legacy.2,
        };
        for segment in self.groups.layout.segments(flip.group) {
            self.segments.flip(segment.0, word, side);
        }
        let group = self.groups.get_mut(flip.group);
        let new = group.ownership.epoch != epoch;
        if new {
            group.evidence.clear();
            group.before = group.ownership;
            group.since = clock::now();
        }
        group.ownership = Ownership {
            owner: Some(owner),
            epoch,
            alone: flip.alone,
        };
        if new {
            self.scan.look_at_everything();
            let served = self.groups.owns(flip.group);
            self.sad
                .set_served(self.groups.layout.segments(flip.group), served);
        }
        for (entry, slot, frame) in self.slow.after_flip(self.me, self.groups.layout, flip) {
            self.run_frame(entry, slot, frame.ifindex, &frame.octets);
        }
    }

    pub(super) fn extend_validity(&mut self, group: GroupId, epoch: EpochId, until: Instant) {
        for segment in self.groups.layout.segments(group) {
            let (owner, number) = (epoch.owner.0, epoch.number.low16());
            let extended = self
                .segments
                .extend_validity(segment.0, owner, number, until.millis());
            if let Err(there) = extended {
                tracing::warn!(
                    segment = segment.0,
                    owner = there.owner,
                    epoch = there.epoch,
                    "the owner word is another's"
                );
                return;
            }
        }
    }

    /// Tells both networks where the cluster addresses of the group are; repeated a few times, since frames get lost.
    pub(super) fn announce(&mut self, group: GroupId) {
        self.announce_now(group);
        let again = clock::now() + Duration::from_millis(50);
        self.groups.get_mut(group).announce_next = Some((ANNOUNCE_AGAIN, again));
    }

    fn announce_now(&self, group: GroupId) {
        let layout = self.groups.layout;
        self.ports
            .announce(&self.announcer, &self.config.addresses, |segment| {
                layout.group_of(SegmentId(segment)) == group
            });
    }

    /// When the next announcement is to be repeated.
    pub(super) fn announce_due(&self) -> Option<Instant> {
        self.groups
            .iter()
            .filter_map(|g| g.announce_next.map(|(_, at)| at))
            .min()
    }

    /// Repeats announcements that are due.
    pub(super) fn announce_again(&mut self, now: Instant) {
        let is_due = |g: &Group| g.announce_next.is_some_and(|(_, at)| at <= now);
        let due = self.groups.iter().filter(|g| is_due(g)).map(|g| g.id);
        for id in due.collect::<Vec<_>>() {
            if self.groups.owns(id) {
                self.announce_now(id);
            }
            // No frame but these bears a virtual MAC address: switches would forget it, and flood.
            let for_ever = self.ports.virtual_mac.is_some() && self.groups.owns(id);
            let next = &mut self.groups.get_mut(id).announce_next;
            *next = match *next {
                Some((left, _)) if left > 1 => Some((left - 1, now + Duration::from_millis(500))),
                Some(_) if for_ever => Some((1, now + ANNOUNCE_VIRTUAL)),
                _ => None,
            };
        }
    }

    /// This member serves the group no more.
    pub(super) fn suspend_ike(&mut self, id: GroupId) {
        let layout = self.groups.layout;
        let of_group = |segment| layout.group_of(segment) == id;
        let forgotten = self.engine.remove_segments(of_group);
        self.sad.release_unused_spis(of_group);
        self.guests.machine.suspend(id);
        // Many IKE SAs with their keys take a while to be wiped.
        tokio::task::spawn_blocking(move || drop(forgotten));
        self.snapshots.forget(id);
        let group = self.groups.get_mut(id);
        group.pending.clear();
        group.held.clear();
        group.resumed = false;
        group.adopting.clear();
        group.adoption = None;
        self.redial.clear();
        self.contacts.retain(|spi, _| !of_group(spi.segment()));
        self.reported.retain(|spi, _| !of_group(spi.segment()));
        self.merging.retain(|merging| merging.group != id);
        self.forks.forget(id);
        self.orders_given_up(id);
    }

    /// Nothing of this member's state of the group may be served.
    pub(super) fn discard_fork(&mut self, id: GroupId) {
        self.suspend_ike(id);
        self.forget_mirror(id);
        let layout = self.groups.layout;
        let group = self.groups.get_mut(id);
        group.suspects = Suspects::default();
        let plan = self.sad.clear_where(|segment| layout.group_of(segment) == id);
        self.execute_or_log(&plan);
        self.log.warn_of(
            id,
            "discarded",
            "all SAs of the group on this member were discarded; it joins anew",
        );
        self.tell_fork(id);
    }

    /// Mirrored IKE SAs of a group, rising.
    pub(super) fn mirrored(&self, id: GroupId) -> impl Iterator<Item = (&IkeSpi, &SecretBytes)> {
        let range = |segment: SegmentId| {
            let first = u64::from(segment.0) << 56;
            self.mirror.range(IkeSpi(first)..=IkeSpi(first | (u64::MAX >> 8)))
        };
        self.groups.layout.segments(id).flat_map(range)
    }

    pub(super) fn forget_mirror(&mut self, id: GroupId) {
        if self.groups.layout.count() == 1 {
            self.mirror.clear();
            return;
        }
        let gone = self.mirrored(id).map(|(spi, _)| *spi).collect::<Vec<_>>();
        for spi in gone {
            self.mirror.remove(&spi);
        }
    }

    /// Old owner in a planned handover: its words say already that it does not serve. The windows as they are when no
    /// program runs any more.
    pub(super) fn final_windows(&mut self, id: GroupId) -> Vec<u8> {
        if let Err(error) = self.runner.drain_cpus() {
            self.log.warn_of(
                id,
                "handover",
                format!("the CPUs were not drained, no window is handed over: {error}"),
            );
            return Vec::new();
        }
        let layout = self.groups.layout;
        let before = self.groups.get(id).before;
        let (epoch, alone) = (before.epoch, before.alone);
        // When it received last; an SA that has not received anything yet is as fresh as it is young.
        let mut wanted = Vec::new();
        // An SA that was removed meanwhile lingers on both sides, and the taker holds what came to it there.
        let lingering = self.sad.lingering();
        let lingering = lingering.filter(|entry| self.sad.lingers_below_ceiling(entry.slot()));
        let all = self.sad.iter().chain(lingering);
        for entry in all.filter(|e| layout.group_of(e.segment()) == id) {
            let seen = self.counters.last_inbound(entry.slot());
            let seen = seen.filter(|(spi, _)| *spi == entry.record.spi_in.0);
            let last_ms = seen.map_or(0, |(_, last_ms)| last_ms);
            wanted.push((last_ms.max(entry.installed.millis()), entry));
        }
        wanted.sort_by_key(|(last_ms, _)| std::cmp::Reverse(*last_ms));
        wanted.truncate(WINDOWS_MAX);
        let mut octets = Vec::new();
        for (_, entry) in wanted {
            let Some(counters) = self.counters.counters(entry.slot()) else {
                continue;
            };
            if let Some(window) = entry.final_window(&counters.inbound, alone, epoch) {
                octets.extend_from_slice(window.as_bytes());
            }
        }
        octets
    }

    /// Owner, about to hand over: the taker is left a part of each lease that nobody may raise. In the order of `lower_ceilings`: publish,
    /// drain, read the counter again; only then somebody else hears of it.
    pub(super) fn leave_rests(&mut self, id: GroupId) -> Vec<cluster::LeaseRest> {
        let group = self.groups.get(id);
        let (spis, epoch) = (group.suspects.spis(), group.ownership.epoch);
        let counters = self.counters.clone();
        let (plan, rests) = self.sad.leave_rests(spis, epoch, |slot| counters.counters(slot));
        if let Err(error) = self.execute(&plan) {
            let text = format!("leases were not cut short, no part of them is handed over: {error}");
            self.log.warn_of(id, "handover", text);
            return Vec::new();
        }
        if !rests.is_empty()
            && let Err(error) = self.runner.drain_cpus()
        {
            let text = format!("the CPUs were not drained, no part of a lease is handed over: {error}");
            self.log.warn_of(id, "handover", text);
            return Vec::new();
        }
        let left = rests.into_iter().filter_map(|rest| {
            let counters = counters.counters(spi_slot(rest.spi_in.0))?;
            let rest = rest.after(counters.outbound.seq)?;
            Some(cluster::LeaseRest {
                spi_in: rest.spi_in,
                above: rest.above,
                last: rest.last,
            })
        });
        left.collect()
    }

    /// Taker in a planned handover: what the owner has left to it.
    pub(super) fn take_rests(&mut self, id: GroupId, epoch: Epoch, rests: &[cluster::LeaseRest]) {
        let layout = self.groups.layout;
        let of_group = rests
            .iter()
            .filter(|rest| layout.group_of(rest.spi_in.segment()) == id);
        let rests = of_group.map(|rest| sad::LeaseRest {
            spi_in: rest.spi_in,
            above: rest.above,
            last: rest.last,
        });
        let plan = self.sad.take_rests(&rests.collect::<Vec<_>>(), epoch);
        self.execute_or_log(&plan);
    }

    /// Taker in a planned handover: each SA's window is merged on its CPU, in turns.
    pub(super) fn merge_windows(&mut self, group: GroupId, token: u64, octets: Vec<u8>) {
        self.merging.push_back(Merging {
            group,
            token,
            octets,
            at: 0,
            merged: 0,
            not: 0,
        });
        self.merge_turn(clock::now());
    }

    /// Merges for as long as a turn may take.
    pub(super) fn merge_turn(&mut self, now: Instant) {
        let until = now + MERGE_TURN;
        while let Some(mut merging) = self.merging.pop_front() {
            while let Some(chunk) = merging
                .octets
                .get(merging.at..merging.at + size_of::<FinalWindow>())
            {
                if clock::now() > until {
                    self.merging.push_front(merging);
                    return;
                }
                let window = FinalWindow::read_from_bytes(chunk);
                merging.at += size_of::<FinalWindow>();
                if let Ok(window) = window {
                    self.merge_one(&window, &mut merging);
                }
            }
            let (merged, not) = (merging.merged, merging.not);
            self.log.note_of(
                merging.group,
                "handover",
                format!("{merged} windows merged, {not} not"),
            );
            self.armed(merging.token);
            self.settle();
        }
    }

    fn merge_one(&self, window: &FinalWindow, merging: &mut Merging) {
        if self.groups.layout.group_of_slot(window.slot) != merging.group {
            merging.not += 1;
            return;
        }
        let cpu = self.plane.cpu_of(window.slot);
        match self.runner.control(cpu, window.as_bytes()) {
            Ok((SA_CTL_MERGED, _)) => merging.merged += 1,
            Ok((SA_CTL_NO_FLOOR, _)) => {}
            Ok((code, _)) => {
                merging.not += 1;
                tracing::debug!(slot = window.slot, code, "a window was not merged");
            }
            Err(error) => {
                merging.not += 1;
                tracing::debug!(slot = window.slot, %error, "a window was not merged");
            }
        }
    }
}
