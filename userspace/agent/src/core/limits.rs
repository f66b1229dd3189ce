//! Leases and ceilings: wishes of the SA database, acknowledged by the replica, published in the maps.

use std::collections::HashSet;
use std::time::Duration;

use cluster::{Input, RaiseItem};
use maps_schema::event::{
    EVENT_ACQUIRE, EVENT_CEILING_SOFT, EVENT_EVIDENCE, EVENT_FIRST_INBOUND, EVENT_LEASE_EXHAUSTED,
    EVENT_LEASE_SOFT, Event,
};
use maps_schema::sad::SA_LOCAL_ONLY;
use model::EspSpi;
use sad::{Direction, LimitRaise};

use super::{Core, NotApplied};
use crate::clock;

/// A rekey because of a refused raise is not repeated sooner: it takes a few round trips.
const REKEY_AGAIN: Duration = Duration::from_secs(10);
/// Right edges in one report.
const REPORT_MAX: usize = 2048;

impl Core {
    /// Events of the programs.
    pub(super) fn program_events(&mut self, events: &[Event]) {
        let mut raises = Vec::new();
        for event in events {
            match event.kind {
                EVENT_LEASE_SOFT | EVENT_LEASE_EXHAUSTED => {
                    raises.extend(self.wish(event.slot, Direction::Outbound, None));
                }
                EVENT_CEILING_SOFT => raises.extend(self.wish(event.slot, Direction::Inbound, None)),
                EVENT_EVIDENCE => self.evidence(event.slot, event.spi),
                EVENT_FIRST_INBOUND => self.first_inbound(event),
                EVENT_ACQUIRE => self.acquire(event.slot),
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
        if !self.owns() {
            return None;
        }
        let counters = self.counters.counters(slot)?;
        self.sad.wants_raise(
            slot,
            direction,
            needed,
            clock::now(),
            self.ownership.epoch,
            &counters,
        )
    }

    /// A few times a second: looks at all SAs. Events may be lost when their ring buffer is full.
    pub(super) fn scan_limits(&mut self) {
        if !self.owns() {
            return;
        }
        let (counters, epoch) = (self.counters.clone(), self.ownership.epoch);
        let raises = self
            .sad
            .wants_raises(clock::now(), |_| Some(epoch), |slot| counters.counters(slot));
        self.raise(raises);
        self.lower_ceilings();
    }

    /// Ceilings of a time when an SA was much faster come down. In this order: publish, drain, read the edge again, publish
    /// the higher of both; only then the standby hears of it, which holds the old ceiling until then. So nothing that
    /// was accepted ever lies above what a taker counts as seen.
    fn lower_ceilings(&mut self) {
        let epoch = self.ownership.epoch;
        if self.node.status().handover {
            return;
        }
        let counters = self.counters.clone();
        let lowerings = self
            .sad
            .wants_lowerings(clock::now(), epoch, |slot| counters.counters(slot));
        if lowerings.is_empty() {
            return;
        }
        let mut published = Vec::new();
        for lowering in lowerings {
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
    /// A lease that a lost standby knew is never raised again, also with the next standby's acknowledgement: the lost one
    /// may have used the numbers above without anybody's knowledge. The SA is rekeyed.
    pub(super) fn raise(&mut self, raises: Vec<LimitRaise>) {
        let (refused, raises): (Vec<_>, Vec<_>) = raises
            .iter()
            .partition(|raise| raise.direction == Direction::Outbound && self.suspects.contains(raise.spi));
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
    pub(super) fn raise_committed(&mut self, items: &[RaiseItem]) {
        tracing::trace!(?items, "raise committed");
        let mut slots = HashSet::new();
        for item in items {
            if let Some(raise) = self.raise_of(item, self.ownership.epoch) {
                self.apply_raise_or_log(&raise);
                slots.insert(item.slot);
            }
        }
        for slot in slots {
            self.run_waiting(slot);
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
                format!("{name} SA {spi_in}: its limits cannot be raised alone; rekeying"),
            );
            self.engine_command(ike::Command::RekeyChild { spi_in });
        }
    }

    /// Tells the standby how far the windows are: base of the evidence rule after a takeover.
    pub(super) fn report_edges(&mut self) {
        if !self.owns() || self.node.is_alone() {
            return;
        }
        let mut edges = Vec::new();
        for entry in self.sad.iter() {
            let Some(counters) = self.counters.counters(entry.slot()) else {
                continue;
            };
            let (spi, edge) = (entry.record.spi_in, counters.inbound.edge);
            if counters.inbound.spi == spi.0 && self.reported.get(&spi).is_none_or(|known| *known < edge) {
                edges.push((entry.slot(), spi, edge));
                if edges.len() == REPORT_MAX {
                    break;
                }
            }
        }
        self.reported
            .extend(edges.iter().map(|(_, spi, edge)| (*spi, *edge)));
        if !edges.is_empty() {
            self.node_input(Input::Report { edges });
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
        let entry = self.sad.by_slot(slot)?;
        let flags = if entry.local_only { SA_LOCAL_ONLY } else { 0 };
        let (alone, epoch) = (self.ownership.alone, self.ownership.epoch.low16());
        datapath::limits::inbound_range(&entry.ceiling, flags, alone, epoch)
            .ok()
            .map(|range| range.ceiling)
    }

    /// Highest outbound number that may be given out now.
    pub(super) fn lease_of(&self, slot: u32) -> Option<u64> {
        let entry = self.sad.by_slot(slot)?;
        let flags = if entry.local_only { SA_LOCAL_ONLY } else { 0 };
        let (alone, epoch) = (self.ownership.alone, self.ownership.epoch.low16());
        datapath::limits::outbound_range(&entry.lease, flags, alone, epoch)
            .ok()
            .map(|range| range.last)
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
        if !self.owns() || !self.evidence.insert(spi_in) {
            return;
        }
        self.takeover.evidence_rekeys += 1;
        self.log.note(
            "evidence",
            format!("{name} SA {spi_in}: the peer sends below the takeover floor; repairing"),
        );
        let repair = self.repair(slot, spi_in);
        self.engine_command(repair);
    }

    /// A packet met a policy without an SA.
    fn acquire(&mut self, connection: u32) {
        let index = (connection as usize).checked_sub(1);
        let Some(config) = index.and_then(|i| self.config.connections.get(i)) else {
            return;
        };
        if self.owns() && config.remote.is_some() {
            let connection = config.name.clone();
            self.engine_command(ike::Command::Initiate { connection });
        }
    }
}
