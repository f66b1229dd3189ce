//! Leases and ceilings: wishes of the SA database, acknowledged by the replica, published in the maps.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use cluster::guest::Wish;
use cluster::message::RaiseKey;
use cluster::{Input, RaiseItem};
use maps_schema::event::{
    EVENT_ACQUIRE, EVENT_ACQUIRE_CPU, EVENT_CEILING_SOFT, EVENT_EVIDENCE, EVENT_FIRST_INBOUND,
    EVENT_LEASE_EXHAUSTED, EVENT_LEASE_SOFT, EVENT_MERGED, EVENT_PATH_MTU, Event,
};
use maps_schema::sad::SA_LOCAL_ONLY;
use model::{Epoch, EspSpi, GroupId, SegmentId};
use sad::{Direction, LimitRaise, SaEntry, Usage};

use super::entry::EntryChange;
use super::{Core, NotApplied};
use crate::clock;

/// A rekey because of a refused raise is not repeated sooner: it takes a few round trips.
const REKEY_AGAIN: Duration = Duration::from_secs(10);

impl Core {
    /// Events of the programs.
    pub(super) fn program_events(&mut self, events: &[Event]) {
        let mut raises = Vec::new();
        for event in events {
            match event.kind {
                EVENT_LEASE_EXHAUSTED if self.is_spent_for_ever(event.slot) => self.rekey_tainted(event.slot),
                EVENT_LEASE_SOFT | EVENT_LEASE_EXHAUSTED => {
                    raises.extend(self.wish(event.slot, Direction::Outbound, None));
                }
                EVENT_CEILING_SOFT => {
                    // Above the ceiling: an authentic packet that was too long to wait for the raise.
                    let above = self.ceiling_of(event.slot).is_some_and(|c| event.seq > c);
                    let needed = above.then_some(event.seq);
                    raises.extend(self.wish(event.slot, Direction::Inbound, needed));
                }
                EVENT_EVIDENCE => self.evidence(event.slot, event.spi),
                EVENT_FIRST_INBOUND => self.first_inbound(event),
                EVENT_ACQUIRE => self.acquire(event.slot),
                EVENT_ACQUIRE_CPU => self.acquire_for_cpu(event.slot, event.spi),
                EVENT_PATH_MTU => self.narrow_path(event),
                EVENT_MERGED => self.merged(event),
                _ => {}
            }
        }
        self.raise(raises);
    }

    /// The raise that one direction of one SA needs, if any.
    pub(super) fn wish(
        &mut self,
        slot: u32,
        direction: Direction,
        needed: Option<u64>,
    ) -> Option<LimitRaise> {
        let epoch = self.groups.epoch_if_owned(SegmentId(slot as u8))?;
        let counters = self.counters.counters(slot)?;
        self.sad
            .wants_raise(slot, direction, needed, clock::now(), epoch, &counters)
    }

    /// Tells the standbys what SAs with lifetimes in octets or packets have carried.
    pub(super) fn report_usage(&mut self, slots: &[u32]) {
        let (counters, groups) = (self.counters.clone(), &self.groups);
        let reports = slots.iter().flat_map(|slot| {
            self.sad.usage_reports(
                *slot..=*slot,
                |segment| groups.owns_segment(segment),
                |slot| counters.counters(slot),
            )
        });
        let reports = reports.collect::<Vec<_>>();
        if reports.is_empty() {
            return;
        }
        let mut parts: BTreeMap<GroupId, Vec<(EspSpi, Usage)>> = BTreeMap::new();
        for (spi_in, usage) in reports {
            let group = self.groups.layout.group_of(spi_in.segment());
            parts.entry(group).or_default().push((spi_in, usage));
        }
        for (group, used) in parts {
            if self.node.is_alone(group) {
                continue;
            }
            self.propose_changes(group, vec![EntryChange::Used(used)], Vec::new(), Vec::new());
        }
        self.settle();
    }

    /// The owner says what its SAs have carried.
    pub(super) fn note_usage(&mut self, group: GroupId, used: &[(EspSpi, Usage)]) {
        if self.groups.owns(group) {
            return;
        }
        let counters = self.counters.clone();
        for (spi_in, usage) in used {
            let plan = self
                .sad
                .note_usage(*spi_in, *usage, |slot| counters.counters(slot));
            self.execute_or_log(&plan);
        }
    }

    /// Ceilings of a time when an SA was much faster come down. In this order: publish, drain, read the edge again, publish
    /// the higher of both; only then the standby hears of it, which holds the old ceiling until then. So nothing that
    /// was accepted ever lies above what a taker counts as seen.
    pub(super) fn lower_ceilings(&mut self, lowerings: Vec<LimitRaise>) {
        let status = self.node.status();
        let moving = status.groups.iter().filter(|g| g.handover).map(|g| g.group);
        let moving = moving.collect::<HashSet<GroupId>>();
        let layout = self.groups.layout;
        let stays = |lowering: &LimitRaise| moving.contains(&layout.group_of_slot(lowering.slot));
        let counters = self.counters.clone();
        let mut published = Vec::new();
        for lowering in lowerings.into_iter().filter(|lowering| !stays(lowering)) {
            let before = self
                .sad
                .by_slot(lowering.slot)
                .map_or(0, |entry| entry.ceiling.limit);
            if self.apply_newest(&lowering).is_ok() {
                published.push((lowering, before));
            } else {
                let mut restored = lowering;
                restored.limits.limit = before;
                self.apply_raise_or_log(&restored);
            }
        }
        if published.is_empty() {
            return;
        }
        if let Err(error) = self.runner.drain_cpus() {
            // What a program accepted meanwhile is not known: back to the ceilings that the standby holds.
            tracing::warn!(%error, "ceilings were not lowered: the CPUs were not drained");
            for (mut lowering, before) in published {
                lowering.limits.limit = before;
                self.apply_raise_or_log(&lowering);
            }
            return;
        }
        let mut told = Vec::new();
        for (mut lowering, before) in published {
            let edge = counters
                .counters(lowering.slot)
                .map_or(u64::MAX, |c| c.inbound.edge);
            if edge > lowering.limits.limit {
                lowering.limits.limit = edge.saturating_add(lowering.limits.step).min(before);
                if self.apply_newest(&lowering).is_err() {
                    continue;
                }
            }
            told.push(lowering);
        }
        self.raise(told);
    }

    /// Asks the node for raises and sees their consequences through.
    ///
    /// Limits that a lost standby knew are never raised again, also with the next standby's acknowledgement: the lost one
    /// may have used the numbers above without anybody's knowledge. The SA is rekeyed.
    pub(super) fn raise(&mut self, raises: Vec<LimitRaise>) {
        let (refused, raises): (Vec<_>, Vec<_>) = raises
            .iter()
            .partition(|raise| self.sad.is_tainted(raise.spi, raise.direction));
        let items = |raises: Vec<&LimitRaise>| {
            let items = raises.into_iter().filter_map(|raise| self.raise_item(raise));
            items.collect::<Vec<_>>()
        };
        let (refused, items) = (items(refused), items(raises));
        if !refused.is_empty() {
            self.raise_refused(&refused);
        }
        if !items.is_empty() {
            tracing::trace!(?items, "raise");
            self.node_input(Input::Raise {
                now: clock::now(),
                items,
            });
        }
    }

    /// Raises were acknowledged: publish them, then run what waited for them.
    pub(super) fn raise_committed(&mut self, group: GroupId, items: &[RaiseItem]) {
        tracing::trace!(?items, "raise committed");
        // Restated limits come back before the flip.
        let epoch = self.node.epoch(group).number;
        let mut slots = HashSet::new();
        for item in items {
            if let Some(mut raise) = self.raise_of(item, epoch) {
                self.advanced(&mut raise);
                self.apply_raise_or_log(&raise);
                self.scan.look_again(item.slot);
                slots.insert(item.slot);
            }
        }
        for slot in slots {
            self.run_waiting(slot);
        }
    }

    /// Peers of clusters that have failed over wait for higher numbers: the leases first, for everybody who may take over.
    pub(super) fn advance(&mut self, raises: Vec<LimitRaise>) {
        let mut known = Vec::new();
        for raise in raises {
            if self.sad.get(raise.spi).is_some_and(|e| e.local_only) {
                // No other member knows the SA.
                self.apply_raise_or_log(&raise);
            } else {
                self.advancing.insert(raise.slot, raise);
                known.push(raise);
            }
        }
        if !known.is_empty() {
            self.raise(known);
        }
    }

    /// The lease that an advance asked for is acknowledged: the programs begin above its floor.
    fn advanced(&mut self, raise: &mut LimitRaise) {
        let waits = self.advancing.get(&raise.slot);
        let done = waits.is_some_and(|wanted| {
            raise.direction == Direction::Outbound
                && (wanted.spi != raise.spi || wanted.limits.limit <= raise.limits.limit)
        });
        if done
            && let Some(wanted) = self.advancing.remove(&raise.slot)
            && wanted.spi == raise.spi
        {
            raise.limits.floor = raise.limits.floor.max(wanted.limits.floor);
        }
    }

    /// The standby that is gone may hold the numbers above: a new SA, which it never knew, has no such limit.
    pub(super) fn raise_refused(&mut self, items: &[RaiseItem]) {
        let now = clock::now();
        for item in items {
            let Some(entry) = self.sad.by_slot(item.slot) else {
                continue;
            };
            let (spi_in, name) = (
                entry.record.spi_in,
                format!("{}/{}", entry.record.connection, entry.record.child),
            );
            if self
                .refused
                .get(&spi_in)
                .is_some_and(|at| now.since(*at) < REKEY_AGAIN)
            {
                continue;
            }
            self.refused.insert(spi_in, now);
            self.log.note(
                "rekey_alone",
                format!("{name} SA {spi_in}: its limits cannot be raised, since a standby that is lost may have used the numbers above; rekeying"),
            );
            self.have_done(spi_in, Wish::Rekey);
        }
    }

    /// Whether the outbound numbers of the SA in this slot are an owner's before this one, all of them: it was known to a standby
    /// that was lost, and whoever takes over has none.
    fn is_spent_for_ever(&self, slot: u32) -> bool {
        let entry = self.sad.by_slot(slot);
        entry.is_some_and(|e| self.sad.is_tainted(e.record.spi_in, Direction::Outbound))
    }

    /// Traffic waits for a new SA in place of one that nobody may send on: that one first, whatever the rate of the others.
    fn rekey_tainted(&mut self, slot: u32) {
        let spi = self.sad.by_slot(slot).map(|e| e.record.spi_out.0);
        if let Some(spi) = spi.filter(|_| self.groups.owns_segment(SegmentId(slot as u8))) {
            self.raise_refused(&[RaiseItem {
                slot,
                spi,
                direction: cluster::Direction::Outbound,
                limit: 0,
                step: 0,
            }]);
        }
    }

    pub(super) fn apply_raise(&mut self, raise: &LimitRaise) -> Result<(), NotApplied> {
        let plan = self.sad.apply_raise(raise, clock::now())?;
        self.execute(&plan)
    }

    /// As `apply_raise`, for limits that are certainly the newest: a ceiling may go down.
    pub(super) fn apply_newest(&mut self, raise: &LimitRaise) -> Result<(), NotApplied> {
        let plan = self.sad.apply_newest(raise, clock::now())?;
        self.execute(&plan)
    }

    /// Owner: takes an acknowledged raise over. Limits that were not written are the lower ones, so nothing is unsafe.
    pub(super) fn apply_raise_or_log(&mut self, raise: &LimitRaise) {
        match self.apply_raise(raise) {
            Ok(()) => {}
            Err(NotApplied::Refused(error)) => tracing::debug!(%error, "a raise came too late"),
            Err(error) => self.log.warn("data_plane", error.to_string()),
        }
    }

    /// Highest inbound number that may be accepted now; `None` where there is no such SA.
    pub(super) fn ceiling_of(&self, slot: u32) -> Option<u64> {
        self.ceiling_in(self.sad.by_slot(slot)?)
    }

    pub(super) fn ceiling_in(&self, entry: &SaEntry) -> Option<u64> {
        let flags = if entry.local_only { SA_LOCAL_ONLY } else { 0 };
        let now = &self.groups.of(entry.segment()).ownership;
        datapath::limits::inbound_range(&entry.ceiling, flags, now.alone, now.epoch.low16())
            .ok()
            .map(|range| range.ceiling)
    }

    /// Highest outbound number that may be given out now.
    pub(super) fn lease_of(&self, slot: u32) -> Option<u64> {
        self.lease_in(self.sad.by_slot(slot)?)
    }

    pub(super) fn lease_in(&self, entry: &SaEntry) -> Option<u64> {
        let flags = if entry.local_only { SA_LOCAL_ONLY } else { 0 };
        let now = &self.groups.of(entry.segment()).ownership;
        datapath::limits::outbound_range(&entry.lease, flags, now.alone, now.epoch.low16())
            .ok()
            .map(|range| range.last)
    }

    /// Taker, before it serves: the limits that follow from the distance of epochs, for SAs whose last raise may be armed
    /// at some members and not at others.
    pub(super) fn restated(&self, epoch: Epoch, keys: &[RaiseKey]) -> Vec<RaiseItem> {
        let item = |key: &RaiseKey| {
            let entry = self.sad.by_slot(key.slot)?;
            if entry.local_only {
                return None;
            }
            let epoch = epoch.low16();
            let (spi, limit, step) = match key.direction {
                cluster::Direction::Inbound => {
                    let range = datapath::limits::inbound_range(&entry.ceiling, 0, false, epoch).ok()?;
                    (entry.record.spi_in.0, range.ceiling, entry.ceiling.step)
                }
                cluster::Direction::Outbound => {
                    let range = datapath::limits::outbound_range(&entry.lease, 0, false, epoch).ok()?;
                    (entry.record.spi_out.0, range.last, entry.lease.step)
                }
            };
            (spi == key.spi).then_some(RaiseItem {
                slot: key.slot,
                spi,
                direction: key.direction,
                limit,
                step,
            })
        };
        keys.iter().filter_map(item).collect()
    }

    /// Evidence after a takeover: the peer's numbers are stuck below the floor. Rekey, once per SA and epoch.
    fn evidence(&mut self, slot: u32, spi: u32) {
        let Some(entry) = self.sad.by_slot(slot).filter(|e| e.record.spi_in == EspSpi(spi)) else {
            return;
        };
        let (spi_in, name) = (
            entry.record.spi_in,
            format!("{}/{}", entry.record.connection, entry.record.child),
        );
        let segment = entry.segment();
        let owns = self.groups.owns_segment(segment);
        let group = self.groups.of_mut(segment);
        if !owns || !group.evidence.insert(spi_in) {
            return;
        }
        if let Some(last) = &mut group.takeover {
            last.evidence_rekeys += 1;
        }
        self.log.note(
            "evidence",
            format!("{name} SA {spi_in}: the peer sends below the takeover floor; repairing"),
        );
        let repair = self.repair(slot, spi_in);
        self.have_done(spi_in, repair);
    }
}
