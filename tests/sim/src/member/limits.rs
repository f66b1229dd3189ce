//! Leases and ceilings: wishes of the SA database, acknowledged through the node, published in the maps.

use super::{Cx, Member};
use crate::sabotage::Sabotage;
use cluster::guest::Wish;
use cluster::message::RaiseKey;
use cluster::{Input, RaiseItem};
use maps_schema::event::{
    EVENT_ACQUIRE, EVENT_ACQUIRE_CPU, EVENT_CEILING_SOFT, EVENT_EVIDENCE, EVENT_LEASE_EXHAUSTED,
    EVENT_LEASE_SOFT, Event,
};
use maps_schema::sad::SA_LOCAL_ONLY;
use model::{Epoch, EspSpi, GroupId, Instant};
use sad::{Direction, LimitRaise, NamedLimits};
use std::collections::BTreeSet;
use std::time::Duration;

const REKEY_AGAIN: Duration = Duration::from_secs(10);
const REPORT_MAX: usize = 2048;

fn to_wire(direction: Direction) -> cluster::Direction {
    match direction {
        Direction::Inbound => cluster::Direction::Inbound,
        Direction::Outbound => cluster::Direction::Outbound,
    }
}

/// Limits as the SA database takes them.
pub(super) fn named(item: &RaiseItem) -> NamedLimits {
    NamedLimits {
        slot: item.slot,
        spi: item.spi,
        direction: from_wire(item.direction),
        limit: item.limit,
        step: item.step,
    }
}

pub(super) fn from_wire(direction: cluster::Direction) -> Direction {
    match direction {
        cluster::Direction::Inbound => Direction::Inbound,
        cluster::Direction::Outbound => Direction::Outbound,
    }
}

impl Member {
    /// Events of the programs.
    pub(super) fn program_events(&mut self, cx: &mut Cx<'_>, events: &[Event]) {
        let mut raises = Vec::new();
        for event in events {
            match event.kind {
                EVENT_LEASE_EXHAUSTED if self.is_tainted(event.slot) => self.rekey_tainted(cx, event.slot),
                EVENT_LEASE_SOFT | EVENT_LEASE_EXHAUSTED => {
                    raises.extend(self.wish(cx.now, event.slot, Direction::Outbound, None));
                }
                EVENT_CEILING_SOFT => raises.extend(self.wish(cx.now, event.slot, Direction::Inbound, None)),
                EVENT_EVIDENCE => self.on_evidence(cx, event.slot, event.spi),
                EVENT_ACQUIRE => self.acquire(cx, event.slot as u16),
                EVENT_ACQUIRE_CPU => self.acquire_for_cpu(cx, event.slot, event.spi),
                _ => {}
            }
        }
        self.raise(cx, raises);
    }

    pub(super) fn wish(
        &mut self,
        now: Instant,
        slot: u32,
        direction: Direction,
        needed: Option<u64>,
    ) -> Option<LimitRaise> {
        let group = self.layout.group_of_slot(slot);
        if !self.owns(group) {
            return None;
        }
        let counters = self.plane.counters(slot)?;
        let epoch = self.of(group).epoch;
        self.sad
            .wants_raise(slot, direction, needed, now, epoch, &counters)
    }

    /// A few times a second: looks at all SAs.
    pub(super) fn scan_limits(&mut self, cx: &mut Cx<'_>) {
        if !self.owns_any() {
            return;
        }
        let (ownership, layout, me, plane) = (&self.ownership, self.layout, self.me, &self.plane);
        let epoch_of = |segment| {
            ownership
                .get(&layout.group_of(segment))
                .filter(|o| o.owner == Some(me))
                .map(|o| o.epoch)
        };
        let raises = self
            .sad
            .wants_raises(cx.now, epoch_of, |slot| plane.counters(slot));
        self.raise(cx, raises);
        self.lower_ceilings(cx);
    }

    /// Publish, (drain,) read the edge again, publish the higher of both; only then the standbys hear of it.
    fn lower_ceilings(&mut self, cx: &mut Cx<'_>) {
        let status = self.node.status();
        let mut told = Vec::new();
        for group in status.groups.iter().filter(|g| !g.handover).map(|g| g.group) {
            if !self.owns(group) {
                continue;
            }
            let (epoch, plane) = (self.of(group).epoch, &self.plane);
            let lowerings = self
                .sad
                .wants_lowerings(cx.now, epoch, |slot| plane.counters(slot));
            for mut lowering in lowerings {
                if self.layout.group_of_slot(lowering.slot) != group {
                    continue;
                }
                let before = self.sad.by_slot(lowering.slot).map_or(0, |e| e.ceiling.limit);
                if !self.apply_newest(cx.now, &lowering) {
                    continue;
                }
                let edge = self
                    .plane
                    .counters(lowering.slot)
                    .map_or(u64::MAX, |c| c.inbound.edge);
                if edge > lowering.limits.limit {
                    lowering.limits.limit = edge.saturating_add(lowering.limits.step).min(before);
                    if !self.apply_newest(cx.now, &lowering) {
                        continue;
                    }
                }
                told.push(lowering);
            }
        }
        self.raise(cx, told);
    }

    /// Asks the node for raises.
    pub(super) fn raise(&mut self, cx: &mut Cx<'_>, raises: Vec<LimitRaise>) {
        let (mut refused, mut items) = (Vec::new(), Vec::new());
        for raise in raises {
            let Some(item) = self.raise_item(&raise) else {
                continue;
            };
            if self.sad.is_tainted(raise.spi, raise.direction) {
                refused.push(item);
            } else {
                items.push(self.cut(item));
            }
        }
        if !refused.is_empty() {
            self.raise_refused(cx, &refused);
        }
        if items.is_empty() {
            return;
        }
        if self.sabotage == Some(Sabotage::RaiseUnconfirmed) {
            for item in &items {
                let epoch = self.of(self.layout.group_of_slot(item.slot)).epoch;
                if let Some(raise) = self.raise_of(item, epoch) {
                    self.apply_raise(cx.now, &raise);
                }
            }
        }
        let now = cx.now;
        self.node_input(cx, Input::Raise { now, items });
    }

    /// Smaller steps than the product's, so that a short run meets limits often. Any size is correct.
    fn cut(&self, mut item: RaiseItem) -> RaiseItem {
        let Some(counters) = self.plane.counters(item.slot) else {
            return item;
        };
        if item.direction == cluster::Direction::Outbound {
            let most = counters.outbound.seq + self.step_max;
            let now = self.lease_of(item.slot).unwrap_or(0);
            if item.limit > most && most > now {
                (item.limit, item.step) = (most, item.step.min(self.step_max));
            }
        }
        item
    }

    /// Raises were acknowledged: publish them, then run what waited for them.
    pub(super) fn raise_committed(&mut self, cx: &mut Cx<'_>, group: GroupId, items: &[RaiseItem]) {
        // The node's epoch: what a taker restates is published before its words say so.
        let epoch = self.node.epoch(group).number;
        let mut slots = BTreeSet::new();
        for item in items {
            if let Some(mut raise) = self.raise_of(item, epoch) {
                self.advanced(&mut raise);
                self.apply_raise(cx.now, &raise);
                slots.insert(item.slot);
            }
        }
        for slot in slots {
            self.run_waiting(cx, slot);
        }
    }

    /// A peer whose cluster has failed over waits for higher numbers: the lease first, for everybody who may take over.
    pub(super) fn advance(&mut self, cx: &mut Cx<'_>, raises: Vec<LimitRaise>) {
        let mut items = Vec::new();
        for raise in raises {
            if self.sad.get(raise.spi).is_some_and(|e| e.local_only) {
                self.apply_raise(cx.now, &raise);
            } else if let Some(item) = self.raise_item(&raise) {
                self.advancing.insert(raise.slot, raise);
                items.push(item);
            }
        }
        if !items.is_empty() {
            let now = cx.now;
            self.node_input(cx, Input::Raise { now, items });
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

    /// The standby that is gone may hold the numbers above: a new SA has no such limit.
    pub(super) fn raise_refused(&mut self, cx: &mut Cx<'_>, items: &[RaiseItem]) {
        for item in items {
            let Some(spi_in) = self.sad.by_slot(item.slot).map(|e| e.record.spi_in) else {
                continue;
            };
            let again = self
                .refused
                .get(&spi_in)
                .is_some_and(|at| cx.now.since(*at) < REKEY_AGAIN);
            if again {
                continue;
            }
            self.refused.insert(spi_in, cx.now);
            self.have_done(cx, spi_in, Wish::Rekey);
        }
    }

    /// Whether nobody who takes the SA in this slot over has an outbound number of it.
    fn is_tainted(&self, slot: u32) -> bool {
        let entry = self.sad.by_slot(slot);
        entry.is_some_and(|e| self.sad.is_tainted(e.record.spi_in, Direction::Outbound))
    }

    /// Traffic waits for a new SA in place of one that nobody may send on.
    fn rekey_tainted(&mut self, cx: &mut Cx<'_>, slot: u32) {
        let spi = self.sad.by_slot(slot).map(|e| e.record.spi_out.0);
        if let Some(spi) = spi.filter(|_| self.owns(self.layout.group_of_slot(slot))) {
            self.raise_refused(
                cx,
                &[RaiseItem {
                    slot,
                    spi,
                    direction: cluster::Direction::Outbound,
                    limit: 0,
                    step: 0,
                }],
            );
        }
    }

    /// Tells the standbys how far the windows are.
    pub(super) fn report_edges(&mut self, cx: &mut Cx<'_>) {
        let mut edges = Vec::new();
        for entry in self.sad.iter() {
            let group = self.layout.group_of(entry.segment());
            if !self.owns(group) || self.node.is_alone(group) {
                continue;
            }
            let Some(counters) = self.plane.counters(entry.slot()) else {
                continue;
            };
            let (spi, edge) = (entry.record.spi_in, counters.inbound.edge);
            let moved = self.reported.get(&spi).is_none_or(|known| *known < edge);
            if counters.inbound.spi != spi.0 {
                continue;
            }
            if self.sabotage == Some(Sabotage::ReportsEverything) {
                edges.extend(std::iter::repeat_n((entry.slot(), spi, edge), 40));
            } else if moved && edges.len() < REPORT_MAX {
                edges.push((entry.slot(), spi, edge));
            }
        }
        self.reported
            .extend(edges.iter().map(|(_, spi, edge)| (*spi, *edge)));
        if !edges.is_empty() {
            self.node_input(cx, Input::Report { edges });
        }
    }

    /// Taker, before it serves: the upper limits that hold for it in the epoch that it has claimed.
    pub(super) fn restated(&self, keys: &[RaiseKey], epoch: u16) -> Vec<RaiseItem> {
        keys.iter()
            .filter_map(|key| {
                let entry = self.sad.by_slot(key.slot)?;
                let flags = if entry.local_only { SA_LOCAL_ONLY } else { 0 };
                let (spi, limit, step) = match key.direction {
                    cluster::Direction::Inbound => {
                        let range =
                            datapath::limits::inbound_range(&entry.ceiling, flags, false, epoch).ok()?;
                        (entry.record.spi_in.0, range.ceiling, entry.ceiling.step)
                    }
                    cluster::Direction::Outbound => {
                        let range =
                            datapath::limits::outbound_range(&entry.lease, flags, false, epoch).ok()?;
                        (entry.record.spi_out.0, range.last, entry.lease.step)
                    }
                };
                (spi == key.spi && limit != u64::MAX).then_some(RaiseItem {
                    slot: key.slot,
                    spi,
                    direction: key.direction,
                    limit,
                    step,
                })
            })
            .collect()
    }

    pub(super) fn raise_of(&self, item: &RaiseItem, epoch: Epoch) -> Option<LimitRaise> {
        let direction = from_wire(item.direction);
        self.sad
            .raise_of(item.slot, item.spi, direction, item.limit, item.step, epoch)
    }

    pub(super) fn raise_item(&self, raise: &LimitRaise) -> Option<RaiseItem> {
        Some(RaiseItem {
            slot: raise.slot,
            spi: self.sad.raise_spi(raise)?,
            direction: to_wire(raise.direction),
            limit: raise.limits.limit,
            step: raise.limits.step,
        })
    }

    pub(super) fn apply_raise(&mut self, now: Instant, raise: &LimitRaise) -> bool {
        match self.sad.apply_raise(raise, now) {
            Ok(plan) => {
                self.execute(&plan);
                true
            }
            Err(_) => false,
        }
    }

    /// As `apply_raise`, for limits that are certainly the newest.
    pub(super) fn apply_newest(&mut self, now: Instant, raise: &LimitRaise) -> bool {
        match self.sad.apply_newest(raise, now) {
            Ok(plan) => {
                self.execute(&plan);
                true
            }
            Err(_) => false,
        }
    }

    /// Highest inbound number that may be accepted now.
    pub(super) fn ceiling_of(&self, slot: u32) -> Option<u64> {
        let entry = self.sad.by_slot(slot)?;
        let flags = if entry.local_only { SA_LOCAL_ONLY } else { 0 };
        let now = self.of(self.layout.group_of_slot(slot));
        datapath::limits::inbound_range(&entry.ceiling, flags, now.alone, now.epoch.low16())
            .ok()
            .map(|range| range.ceiling)
    }

    /// Highest outbound number that may be given out now.
    pub(super) fn lease_of(&self, slot: u32) -> Option<u64> {
        let entry = self.sad.by_slot(slot)?;
        let flags = if entry.local_only { SA_LOCAL_ONLY } else { 0 };
        let now = self.of(self.layout.group_of_slot(slot));
        datapath::limits::outbound_range(&entry.lease, flags, now.alone, now.epoch.low16())
            .ok()
            .map(|range| range.last)
    }

    /// Evidence after a takeover: rekey, once per SA and epoch.
    fn on_evidence(&mut self, cx: &mut Cx<'_>, slot: u32, spi: u32) {
        let spi_in = EspSpi(spi);
        let known = self.sad.by_slot(slot).is_some_and(|e| e.record.spi_in == spi_in);
        if !known || !self.owns(self.layout.group_of_slot(slot)) || !self.evidence.insert(spi_in) {
            return;
        }
        cx.trace.note(cx.now, "evidence", [u64::from(spi), 0], || {
            format!("member {}: SA {spi_in}: the peer sends below the floor", self.me)
        });
        let edge = self.plane.counters(slot).map_or(0, |c| c.inbound.edge);
        let delta = self.ceiling_of(slot).unwrap_or(0).saturating_sub(edge);
        self.have_done(cx, spi_in, Wish::Repair { delta });
    }

    /// A packet met a policy without an SA.
    fn acquire(&mut self, cx: &mut Cx<'_>, connection: u16) {
        let Some(connection) = self.sad.connection_name(connection).map(str::to_owned) else {
            return;
        };
        let segment = crate::around::segment_of_name(self.steer_key, &connection);
        if self.serving.contains(&self.layout.group_of(segment)) && self.initiates.contains(&connection) {
            self.engine_command(cx, ike::Command::Initiate { connection });
        }
    }
}
