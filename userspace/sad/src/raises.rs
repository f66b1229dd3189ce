//! What the store wishes for and takes over: raises of limits, caps for a join, lifetimes that are due.

use crate::lifetime::{LifetimeEvent, LifetimeKind, due, soft_spread};
use crate::limits::{LimitRaise, Situation};
use crate::port::{Direction, MapOp, MapPlan, SaCounters};
use crate::record;
use crate::spd::Policy;
use crate::store::{SaEntry, Sad, SadError, policy_of};
use datapath::limits::{EpochBehind, inbound_range, outbound_range, raised};
use maps_schema::sad::{Limits, spi_slot};
use model::{ChildSaRecord, Epoch, EspSpi, Instant, SegmentId};
use std::ops::RangeBounds;
use std::time::Duration;

/// Limits of one direction of one SA, as the synch channel names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedLimits {
    /// Slot.
    pub slot: u32,
    /// SPI of that direction (ours inbound, the peer's outbound).
    pub spi: u32,
    /// Which.
    pub direction: Direction,
    /// Lease or ceiling.
    pub limit: u64,
    /// Size of the lease, or headroom.
    pub step: u64,
}

/// What a pass for caps does with SAs that have limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limited {
    /// Their counters are not read.
    Skipped,
    /// Their counters must lie within.
    Compared,
}

impl Sad {
    /// Standby: takes limits of the owner over. The plan is for the maps; then the places of those in `wanted` whose SAs are not
    /// (or no longer) here, for which there is nothing to arm.
    ///
    /// An SA that is here and refuses its limits has not armed them: that is an error, since "not here" counts as an
    /// acknowledgement. The plan of what came before it is to be carried out all the same.
    pub fn arm(
        &mut self,
        wanted: &[NamedLimits],
        epoch: Epoch,
        now: Instant,
    ) -> (MapPlan, Result<Vec<usize>, SadError>) {
        let (mut plan, mut unknown) = (MapPlan::default(), Vec::new());
        for (place, named) in wanted.iter().enumerate() {
            let NamedLimits {
                slot,
                spi,
                direction,
                limit,
                step,
            } = *named;
            let Some(entry) = self.by_slot(slot).filter(|e| e.spi_of(direction) == spi) else {
                unknown.push(place);
                continue;
            };
            let refused = SadError::EpochBehind(entry.record.spi_in);
            let raise = self
                .raise_of(slot, spi, direction, limit, step, epoch)
                .ok_or(refused);
            match raise.and_then(|raise| self.apply_newest(&raise, now)) {
                Ok(more) => plan.extend(more),
                Err(error) => return (plan, Err(error)),
            }
        }
        (plan, Ok(unknown))
    }

    /// Looks at every SA and wishes for the raises that are due. Call it a few times a second; `epoch_of` gives the
    /// epoch of a segment that this member owns, `None` for the others.
    pub fn wants_raises(
        &mut self,
        now: Instant,
        epoch_of: impl Fn(SegmentId) -> Option<Epoch>,
        counters: impl Fn(u32) -> Option<SaCounters>,
    ) -> Vec<LimitRaise> {
        self.wants_raises_within(.., now, epoch_of, counters)
    }

    /// [`Sad::wants_raises`] for some slots only, so that a round over many SAs can be done in parts.
    pub fn wants_raises_within(
        &mut self,
        slots: impl RangeBounds<u32>,
        now: Instant,
        epoch_of: impl Fn(SegmentId) -> Option<Epoch>,
        counters: impl Fn(u32) -> Option<SaCounters>,
    ) -> Vec<LimitRaise> {
        let detection = self.settings.detection;
        let mut raises = Vec::new();
        for (slot, entry) in self.entries.range_mut(slots) {
            let Some(epoch) = epoch_of(entry.segment()) else {
                continue;
            };
            let Some(counters) = counters(*slot).filter(|c| entry.is_runtime(c)) else {
                continue;
            };
            for direction in [Direction::Outbound, Direction::Inbound] {
                raises.extend(entry.wish(direction, None, now, epoch, detection, &counters));
            }
        }
        raises
    }

    /// Looks at one direction of one SA, on an event or for a slow frame. `needed` is the sequence number of an
    /// authentic packet that waits above the ceiling.
    pub fn wants_raise(
        &mut self,
        slot: u32,
        direction: Direction,
        needed: Option<u64>,
        now: Instant,
        epoch: Epoch,
        counters: &SaCounters,
    ) -> Option<LimitRaise> {
        let detection = self.settings.detection;
        let entry = self.entries.get_mut(&slot)?;
        if needed.is_none() && !entry.is_runtime(counters) {
            return None;
        }
        entry.wish(direction, needed, now, epoch, detection, counters)
    }

    /// SPI in the record of a raise's direction (ours inbound, the peer's outbound), as the synch channel names it.
    pub fn raise_spi(&self, raise: &LimitRaise) -> Option<u32> {
        let entry = self.get(raise.spi)?;
        Some(match raise.direction {
            Direction::Inbound => entry.record.spi_in.0,
            Direction::Outbound => entry.record.spi_out.0,
        })
    }

    /// The raise that the synch channel names by slot and the SPI of its direction; `None` where the SA is not (or no
    /// longer) there. The floor is this member's own: every member computes it from the same history.
    pub fn raise_of(
        &self,
        slot: u32,
        spi: u32,
        direction: Direction,
        limit: u64,
        step: u64,
        epoch: Epoch,
    ) -> Option<LimitRaise> {
        let entry = self.by_slot(slot)?;
        let (named, current) = match direction {
            Direction::Inbound => (entry.record.spi_in.0, &entry.ceiling),
            Direction::Outbound => (entry.record.spi_out.0, &entry.lease),
        };
        let limits = raised(current, limit, step, epoch.low16())
            .ok()
            .filter(|_| named == spi)?;
        Some(LimitRaise {
            slot,
            spi: entry.record.spi_in,
            direction,
            limits,
        })
    }

    /// Takes an acknowledged raise over (a standby: before it acknowledges). A raise for an SA that is gone gives an
    /// empty plan; one that is below the current limits of the same epoch changes nothing.
    pub fn apply_raise(&mut self, raise: &LimitRaise, now: Instant) -> Result<MapPlan, SadError> {
        self.publish(raise, now, false)
    }

    /// As [`Sad::apply_raise`], and a ceiling may go down too. For limits that are certainly the newest: on a standby, which
    /// arms rising versions only, and on the owner for its own lowering.
    ///
    /// # Errors
    /// As [`Sad::apply_raise`].
    pub fn apply_newest(&mut self, raise: &LimitRaise, now: Instant) -> Result<MapPlan, SadError> {
        self.publish(raise, now, true)
    }

    /// Ceilings that lie far above what their SAs need: what was in flight up to there would count as seen after a takeover.
    ///
    /// The owner publishes such a ceiling, lets programs that run drain, reads the edge again and publishes the higher of
    /// both, and only then tells the standbys, which hold the old one until they have the new.
    pub fn wants_lowerings(
        &self,
        now: Instant,
        epoch: Epoch,
        counters: impl Fn(u32) -> Option<SaCounters>,
    ) -> Vec<LimitRaise> {
        self.wants_lowerings_within(.., now, |_| Some(epoch), counters)
    }

    /// [`Sad::wants_lowerings`] for some slots only. `epoch_of`: `None` for segments whose ceilings must stay.
    pub fn wants_lowerings_within(
        &self,
        slots: impl RangeBounds<u32>,
        now: Instant,
        epoch_of: impl Fn(SegmentId) -> Option<Epoch>,
        counters: impl Fn(u32) -> Option<SaCounters>,
    ) -> Vec<LimitRaise> {
        let detection = self.settings.detection;
        self.entries
            .range(slots)
            .filter_map(|(slot, entry)| {
                let epoch = epoch_of(entry.segment())?;
                let counters = counters(*slot).filter(|c| entry.is_runtime(c))?;
                entry.lowering(now, epoch, detection, &counters)
            })
            .collect()
    }

    fn publish(&mut self, raise: &LimitRaise, now: Instant, newest: bool) -> Result<MapPlan, SadError> {
        let Some(entry) = self
            .entries
            .get_mut(&raise.slot)
            .filter(|e| e.record.spi_in == raise.spi)
        else {
            return Ok(MapPlan::default());
        };
        let (current, spi, meter) = match raise.direction {
            Direction::Outbound => (&mut entry.lease, entry.record.spi_out.0, &mut entry.meters[0]),
            Direction::Inbound => (&mut entry.ceiling, entry.record.spi_in.0, &mut entry.meters[1]),
        };
        let wanted = &raise.limits;
        let mut new = raised(current, wanted.limit, wanted.step, wanted.epoch as u16)
            .map_err(|EpochBehind| SadError::EpochBehind(raise.spi))?;
        new.floor = new.floor.max(wanted.floor);
        meter.applied(Some(now));
        let mut plan = MapPlan::default();
        let lower = newest && raise.direction == Direction::Inbound && new.limit < current.limit;
        if new.epoch != current.epoch || new.limit > current.limit || lower || entry.local_only {
            *current = new;
            let (direction, slot) = (raise.direction, raise.slot);
            plan.ops.push(MapOp::PublishLimits {
                direction,
                slot,
                spi,
                limits: new,
            });
        }
        Ok(plan)
    }

    /// These SAs are about to be known to a standby: from here on their limits apply. Call it after `apply_raise` of
    /// the caps of [`Sad::cap_for_join`].
    pub fn known_to_standby(&mut self, spis: impl IntoIterator<Item = EspSpi>) -> MapPlan {
        let lenient =
            |policies: &[Policy], r: &ChildSaRecord| policy_of(policies, r).is_some_and(|(_, p)| p.lenient);
        let mut plan = MapPlan::default();
        for spi in spis {
            let Some(entry) = self
                .entries
                .get_mut(&spi_slot(spi.0))
                .filter(|e| e.record.spi_in == spi && e.local_only)
            else {
                continue;
            };
            entry.local_only = false;
            entry.flags = record::flags(&entry.record, lenient(&self.policies, &entry.record), false);
            let (slot, flags) = (entry.slot(), entry.flags);
            for (direction, spi) in [
                (Direction::Outbound, entry.record.spi_out.0),
                (Direction::Inbound, entry.record.spi_in.0),
            ] {
                plan.ops.push(MapOp::PutFlags {
                    direction,
                    slot,
                    spi,
                    flags,
                });
            }
        }
        plan
    }

    /// For every SA that has no upper limits (made while alone, or taken over while alone): limits at the current
    /// epoch that cover its counters, L = counter + S and C = edge + H. `epoch_of` gives a segment's epoch and
    /// whether its owner is alone. SAs that have limits need none: the snapshot carries theirs.
    ///
    /// An owner without standbys does this before a member joins: apply these raises at once (it only restricts
    /// itself), then [`Sad::known_to_standby`], drain the CPUs, and repeat until nothing comes out; then take the
    /// snapshot. So no number above what the snapshot says is used before the joining member has acknowledged it.
    pub fn cap_for_join(
        &self,
        epoch_of: impl Fn(SegmentId) -> (Epoch, bool),
        counters: impl Fn(u32) -> Option<SaCounters>,
    ) -> Vec<LimitRaise> {
        self.cap_where(|segment| Some(epoch_of(segment)), counters)
    }

    /// [`Sad::cap_for_join`] for the segments that `epoch_of` knows: those of the group that is joined.
    pub fn cap_where(
        &self,
        epoch_of: impl Fn(SegmentId) -> Option<(Epoch, bool)>,
        counters: impl Fn(u32) -> Option<SaCounters>,
    ) -> Vec<LimitRaise> {
        self.cap_within(.., Limited::Skipped, epoch_of, counters)
    }

    /// [`Sad::cap_where`] for some slots only. With [`Limited::Compared`] also for SAs whose counters have passed their limits:
    /// programs that were running when an SA got its first limits may have done so.
    pub fn cap_within(
        &self,
        slots: impl RangeBounds<u32>,
        limited: Limited,
        epoch_of: impl Fn(SegmentId) -> Option<(Epoch, bool)>,
        counters: impl Fn(u32) -> Option<SaCounters>,
    ) -> Vec<LimitRaise> {
        let mut caps = Vec::new();
        for (slot, entry) in self.entries.range(slots) {
            let Some((epoch, alone)) = epoch_of(entry.segment()) else {
                continue;
            };
            if limited == Limited::Skipped && entry.is_limited(epoch, alone) {
                continue;
            }
            // Counters that cannot be read give no cap: the SA keeps its flag, and the join is not complete.
            let Some(counters) = counters(*slot).filter(|c| entry.is_runtime(c)) else {
                continue;
            };
            for (direction, current) in [
                (Direction::Outbound, &entry.lease),
                (Direction::Inbound, &entry.ceiling),
            ] {
                let situation = entry.situation(current, Instant::default(), epoch, self.settings.detection);
                caps.extend(situation.cap(direction, alone, &counters));
            }
        }
        caps
    }

    /// Notes the right edge that the owner reported for an inbound SA.
    pub fn report_edge(&mut self, spi_in: EspSpi, edge: u64) -> MapPlan {
        match self.entry_mut_of(spi_in) {
            Ok(entry) if edge > entry.reported_edge => {
                entry.reported_edge = edge;
                MapPlan {
                    ops: vec![MapOp::PutReportedEdge {
                        slot: entry.slot(),
                        spi: spi_in.0,
                        edge,
                    }],
                }
            }
            _ => MapPlan::default(),
        }
    }

    /// SAs that have reached a limit of age or number; each limit is reported once.
    pub fn due(&mut self, now: Instant, counters: impl Fn(u32) -> Option<SaCounters>) -> Vec<LifetimeEvent> {
        self.due_within(.., now, |_| true, counters)
    }

    /// [`Sad::due`] for some slots and for the segments that this member owns.
    pub fn due_within(
        &mut self,
        slots: impl RangeBounds<u32>,
        now: Instant,
        owned: impl Fn(SegmentId) -> bool,
        counters: impl Fn(u32) -> Option<SaCounters>,
    ) -> Vec<LifetimeEvent> {
        let mut events = Vec::new();
        for (slot, entry) in self.entries.range_mut(slots) {
            if owned(entry.segment()) {
                let counters = counters(*slot).filter(|c| entry.is_runtime(c));
                events.extend(entry.due(now, &counters.unwrap_or_default()));
            }
        }
        for event in &events {
            self.note_age(spi_slot(event.spi_in.0));
        }
        events
    }

    /// [`Sad::due_within`] for the SAs that have reached an age by now, the oldest ones first and `most` at once: those that
    /// have not are not looked at. Numbers are looked at by [`Sad::look`].
    pub fn due_by_age(
        &mut self,
        now: Instant,
        most: usize,
        owned: impl Fn(SegmentId) -> bool,
        counters: impl Fn(u32) -> Option<SaCounters>,
    ) -> Vec<LifetimeEvent> {
        let old = self.ages.range(..=(now, u32::MAX));
        let old: Vec<u32> = old
            .map(|(_, slot)| *slot)
            .filter(|slot| owned(SegmentId(*slot as u8)))
            .take(most)
            .collect();
        let mut events = Vec::new();
        for slot in old {
            events.extend(self.due_within(slot..=slot, now, &owned, &counters));
            // Also where nothing came of it: its next age is looked for.
            self.note_age(slot);
        }
        events
    }

    /// Puts an SA where its next limit of age belongs. Call it whenever that may have changed.
    pub(crate) fn note_age(&mut self, slot: u32) {
        let Some(entry) = self.entries.get_mut(&slot) else {
            return;
        };
        let next = entry.next_age();
        if next == entry.due_at {
            return;
        }
        if let Some(before) = std::mem::replace(&mut entry.due_at, next) {
            self.ages.remove(&(before, slot));
        }
        self.ages.extend(next.map(|at| (at, slot)));
    }
}

impl SaEntry {
    /// The SPI by which the synch channel names a direction.
    fn spi_of(&self, direction: Direction) -> u32 {
        match direction {
            Direction::Inbound => self.record.spi_in.0,
            Direction::Outbound => self.record.spi_out.0,
        }
    }

    /// What has become due and was not reported so far.
    pub(crate) fn due(&mut self, now: Instant, counters: &SaCounters) -> Option<LifetimeEvent> {
        let seq = counters.outbound.seq.max(counters.inbound.edge);
        let age = now.since(self.installed);
        let record = &self.record;
        let usage = self.usage(counters);
        let by_use = [usage.inbound, usage.outbound].map(|carried| carried.due(&self.lifetimes));
        let kinds = by_use
            .into_iter()
            .chain([due(self.lifetimes, record.spi_in, record.form.esn, age, seq)]);
        let kind = kinds.flatten().max()?;
        if self.reported == Some(kind) || self.reported == Some(LifetimeKind::Hard) {
            return None;
        }
        self.reported = Some(kind);
        Some(LifetimeEvent {
            spi_in: record.spi_in,
            ike_spi: record.ike_spi,
            connection: record.connection.clone(),
            child: record.child.clone(),
            kind,
        })
    }

    /// When it reaches the next limit of age that was not reported so far.
    fn next_age(&self) -> Option<Instant> {
        let at = |age: Duration| (!age.is_zero()).then(|| self.installed + age);
        let hard = at(self.lifetimes.hard);
        match self.reported {
            None => {
                let soft = Some(self.lifetimes.soft).filter(|soft| !soft.is_zero());
                let soft = soft.map(|soft| self.installed + soft_spread(soft, self.record.spi_in));
                soft.into_iter().chain(hard).min()
            }
            Some(LifetimeKind::Soft) => hard,
            Some(LifetimeKind::Hard) => None,
        }
    }

    /// Whether both directions have upper limits.
    fn is_limited(&self, epoch: Epoch, alone: bool) -> bool {
        let epoch = epoch.low16();
        let lease = outbound_range(&self.lease, self.flags, alone, epoch);
        let ceiling = inbound_range(&self.ceiling, self.flags, alone, epoch);
        lease.is_ok_and(|range| range.last != u64::MAX)
            && ceiling.is_ok_and(|range| range.ceiling != u64::MAX)
    }

    /// Whether runtime counters are this SA's: those of a slot's former SA mean nothing.
    pub(crate) fn is_runtime(&self, counters: &SaCounters) -> bool {
        counters.inbound.spi == self.record.spi_in.0
    }

    pub(crate) fn situation<'a>(
        &self,
        current: &'a Limits,
        now: Instant,
        epoch: Epoch,
        detection: Duration,
    ) -> Situation<'a> {
        Situation {
            slot: self.slot(),
            spi: self.record.spi_in,
            flags: self.flags,
            current,
            epoch,
            now,
            detection,
        }
    }

    pub(crate) fn lowering(
        &self,
        now: Instant,
        epoch: Epoch,
        detection: Duration,
        counters: &SaCounters,
    ) -> Option<LimitRaise> {
        self.situation(&self.ceiling, now, epoch, detection)
            .lower_ceiling(&self.meters[1], counters)
    }

    pub(crate) fn wish(
        &mut self,
        direction: Direction,
        needed: Option<u64>,
        now: Instant,
        epoch: Epoch,
        detection: Duration,
        counters: &SaCounters,
    ) -> Option<LimitRaise> {
        match direction {
            Direction::Outbound => {
                let current = self.lease;
                let mut meter = self.meters[0];
                let raise = self
                    .situation(&current, now, epoch, detection)
                    .lease(&mut meter, counters);
                self.meters[0] = meter;
                raise
            }
            Direction::Inbound => {
                let current = self.ceiling;
                let mut meter = self.meters[1];
                let raise = self
                    .situation(&current, now, epoch, detection)
                    .ceiling(&mut meter, counters, needed);
                self.meters[1] = meter;
                raise
            }
        }
    }
}
