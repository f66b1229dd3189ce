//! What a joining member gets: every SA with its current limits.

use crate::port::{MapOp, MapPlan};
use crate::spd::Holder;
use crate::store::{Context, Keys, SaEntry, Sad, SadError};
use crate::usage::Usage;
use maps_schema::sad::{Limits, spi_slot};
use model::{ChildSaRecord, Epoch, EspSpi, InitialLimits, Instant, SegmentId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// One SA of a snapshot. No `Debug`: it holds keys.
#[derive(Clone, Serialize, Deserialize)]
pub struct SnapshotSa {
    /// The SA pair; its `limits` are the current ones.
    pub record: ChildSaRecord,
    /// Lease's floor and epoch (low 16 bits).
    pub lease: LimitBase,
    /// Ceiling's floor and epoch (low 16 bits).
    pub ceiling: LimitBase,
    /// Right edge last reported.
    pub reported_edge: u64,
    /// Outbound policies point at it; SAs of a snapshot are in the order in which that happened.
    pub outbound_in_use: bool,
    /// No standby has acknowledged it so far.
    pub local_only: bool,
    /// Age, milliseconds.
    pub age_ms: u64,
}

/// The part of limits that `InitialLimits` does not carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitBase {
    /// Lower bound that takeovers gave so far.
    pub floor: u64,
    /// Low 16 bits of the epoch.
    pub epoch: u16,
}

impl LimitBase {
    pub(crate) fn of(limits: &Limits) -> Self {
        Self {
            floor: limits.floor,
            epoch: limits.epoch as u16,
        }
    }

    pub(crate) fn with(self, limit: u64, step: u64) -> Limits {
        Limits {
            limit,
            step,
            floor: self.floor,
            epoch: u32::from(self.epoch),
            reserved: 0,
        }
    }
}

impl Sad {
    /// Every SA with its current limits, in the order in which outbound traffic was switched to it.
    pub fn snapshot(&self, now: Instant) -> Vec<SnapshotSa> {
        self.snapshot_where(|_| true, now)
    }

    /// [`Sad::snapshot`] of some segments.
    pub fn snapshot_where(&self, of: impl Fn(SegmentId) -> bool, now: Instant) -> Vec<SnapshotSa> {
        let mut entries: Vec<&SaEntry> = self.entries.values().filter(|e| of(e.segment())).collect();
        entries.sort_by_key(|e| e.switched);
        entries.iter().map(|entry| entry.snapshot(now)).collect()
    }

    /// Takes a snapshot in place of all SAs. SAs that are the same stay in the maps untouched, counters included.
    pub fn restore(&mut self, snapshot: Vec<SnapshotSa>, now: Instant) -> Result<MapPlan, SadError> {
        self.restore_where(|_| true, snapshot, now)
    }

    /// [`Sad::restore`] of some segments: SAs of others stay, and a snapshot that names one of them is refused.
    ///
    /// # Errors
    /// [`SadError::Foreign`], and as [`Sad::restore`].
    pub fn restore_where(
        &mut self,
        of: impl Fn(SegmentId) -> bool,
        snapshot: Vec<SnapshotSa>,
        now: Instant,
    ) -> Result<MapPlan, SadError> {
        if let Some(foreign) = snapshot.iter().find(|sa| !of(sa.record.spi_in.segment())) {
            return Err(SadError::Foreign(foreign.record.spi_in));
        }
        let kept: std::collections::HashSet<EspSpi> = snapshot.iter().map(|s| s.record.spi_in).collect();
        let gone: Vec<EspSpi> = self
            .entries
            .values()
            .map(|e| e.record.spi_in)
            .filter(|s| of(s.segment()) && !kept.contains(s))
            .collect();
        let mut plan = self.forget(gone);
        plan.extend(self.restore_some(snapshot, now)?);
        Ok(plan)
    }

    /// Removes SAs; those that are not there are left out.
    pub fn forget(&mut self, spis: impl IntoIterator<Item = EspSpi>) -> MapPlan {
        let mut plan = MapPlan::default();
        for spi in spis {
            if self.get(spi).is_some() {
                plan.extend(self.remove(spi));
            }
        }
        plan
    }

    /// Takes some SAs of a snapshot, in its order; SAs that are not among them stay as they are. Whoever restores in parts
    /// removes first what the snapshot does not hold, by [`Sad::forget`].
    ///
    /// The plan is sorted by kind, so that a data plane writes many keys in one go; each SA's own writes keep their order.
    ///
    /// # Errors
    /// As [`Sad::restore`]; those before are restored.
    pub fn restore_some(&mut self, some: Vec<SnapshotSa>, now: Instant) -> Result<MapPlan, SadError> {
        self.restore_with(some, now, Keys::Expanded)
    }

    /// [`Sad::restore_some`] for SAs whose keys ([`crate::record::keys`]) are in the maps already. Nothing may linger in their slots
    /// ([`Sad::end_lingering_of`]).
    ///
    /// # Errors
    /// As [`Sad::restore`].
    pub fn restore_keyed(&mut self, some: Vec<SnapshotSa>, now: Instant) -> Result<MapPlan, SadError> {
        self.restore_with(some, now, Keys::Written)
    }

    fn restore_with(&mut self, some: Vec<SnapshotSa>, now: Instant, keys: Keys) -> Result<MapPlan, SadError> {
        let mut sorted = Sorted::default();
        let mut touched = BTreeSet::new();
        let last = some.last().map(|sa| sa.record.connection.clone());
        for sa in some {
            let spi = sa.record.spi_in;
            let slot = spi_slot(spi.0);
            // Counters stay with an SA that is there, and so does what is added to them.
            let before = self.get(spi).map(|e| (e.base, e.told));
            if before.is_some() {
                // Its records are written anew below; the executor keeps live counters of an SPI that is there.
                self.spd.unstage(Holder::Slot(slot), &mut touched);
                self.take(slot);
            }
            let lease = sa.lease.with(sa.record.limits.lease, sa.record.limits.lease_step);
            let ceiling = sa
                .ceiling
                .with(sa.record.limits.ceiling, sa.record.limits.headroom);
            let context = Context {
                now,
                epoch: Epoch::default(),
                alone: sa.local_only,
            };
            sorted.take(self.install(&sa.record, lease, ceiling, false, context, keys)?);
            if let Some(entry) = self.entries.get_mut(&slot) {
                entry.installed = Instant(now.0.saturating_sub(sa.age_ms.saturating_mul(1_000_000)));
                entry.reported_edge = sa.reported_edge;
                if let Some((base, told)) = before {
                    (entry.base, entry.told) = (base, told);
                    if base != Usage::default() {
                        sorted.rest.extend(entry.life_plan().ops);
                    }
                }
                sorted.rest.push(MapOp::PutReportedEdge {
                    slot,
                    spi: spi.0,
                    edge: sa.reported_edge,
                });
                self.note_age(slot);
            }
            if sa.outbound_in_use {
                self.stage_switch(slot, &mut touched);
            }
        }
        let mut rules = self.spd.publish(&touched, &last.unwrap_or_default())?;
        // What SAs are to each other comes behind the snapshot.
        rules.extend(self.siblings.plan(self.settings.cpus));
        Ok(sorted.with(rules))
    }
}

/// Writes of several SAs by kind.
#[derive(Default)]
struct Sorted {
    resets: Vec<MapOp>,
    keys_in: Vec<MapOp>,
    keys_out: Vec<MapOp>,
    rest: Vec<MapOp>,
}

impl Sorted {
    /// Adds the writes of a new SA.
    fn take(&mut self, plan: MapPlan) {
        for op in plan.ops {
            match op {
                // A slot is emptied of what lingered in it before anything of the new SA is written.
                MapOp::ClearSlot { .. } | MapOp::ResetRuntime { .. } => self.resets.push(op),
                MapOp::PutKeyIn { .. } => self.keys_in.push(op),
                MapOp::PutKeyOut { .. } => self.keys_out.push(op),
                _ => self.rest.push(op),
            }
        }
    }

    fn with(self, rules: MapPlan) -> MapPlan {
        let mut ops = self.resets;
        ops.extend(self.keys_in);
        ops.extend(self.keys_out);
        ops.extend(self.rest);
        ops.extend(rules.ops);
        MapPlan { ops }
    }
}

impl SaEntry {
    /// The SA with its current limits.
    pub fn snapshot(&self, now: Instant) -> SnapshotSa {
        let mut record = self.record.clone();
        record.limits = InitialLimits {
            lease: self.lease.limit,
            lease_step: self.lease.step,
            ceiling: self.ceiling.limit,
            headroom: self.ceiling.step,
        };
        SnapshotSa {
            record,
            lease: LimitBase::of(&self.lease),
            ceiling: LimitBase::of(&self.ceiling),
            reported_edge: self.reported_edge,
            outbound_in_use: self.outbound_in_use,
            local_only: self.local_only,
            age_ms: u64::try_from(now.since(self.installed).as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// SAs of a snapshot are in the order of this number: the order in which outbound traffic was switched to them.
    pub fn switched(&self) -> u64 {
        self.switched
    }
}
