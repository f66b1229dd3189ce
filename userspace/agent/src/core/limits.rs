//! Leases and ceilings: wishes of the SA database, acknowledged by the replica, published in the maps.

use std::collections::{HashMap, HashSet};

use maps_schema::event::{
    EVENT_ACQUIRE, EVENT_CEILING_SOFT, EVENT_EVIDENCE, EVENT_FIRST_INBOUND, EVENT_LEASE_EXHAUSTED, EVENT_LEASE_SOFT,
    Event,
};
use maps_schema::sad::SA_LOCAL_ONLY;
use model::EspSpi;
use sad::{Direction, LimitRaise};

use super::replica::Token;
use super::Core;
use crate::clock;

/// Raises that wait for their acknowledgement.
#[derive(Default)]
pub struct Raising {
    pending: HashMap<Token, Vec<LimitRaise>>,
}

impl Raising {
    pub fn len(&self) -> usize {
        self.pending.len()
    }
}

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
    pub(super) fn wish(&mut self, slot: u32, direction: Direction, needed: Option<u64>) -> Option<LimitRaise> {
        if !self.owns() {
            return None;
        }
        let counters = self.counters.counters(slot)?;
        self.sad.wants_raise(slot, direction, needed, clock::now(), self.ownership.epoch, &counters)
    }

    /// A few times a second: looks at all SAs. Events may be lost when their ring buffer is full.
    pub(super) fn scan_limits(&mut self) {
        if !self.owns() {
            return;
        }
        let (counters, epoch) = (self.counters.clone(), self.ownership.epoch);
        let raises = self.sad.wants_raises(clock::now(), |_| Some(epoch), |slot| counters.counters(slot));
        self.raise(raises);
    }

    /// Proposes raises and sees their consequences through.
    pub(super) fn raise(&mut self, raises: Vec<LimitRaise>) {
        if raises.is_empty() {
            return;
        }
        let token = self.replica.raise(&raises);
        self.raising.pending.insert(token, raises);
        self.settle();
    }

    /// Raises were acknowledged: publish them, then run what waited for them.
    pub(super) fn raise_committed(&mut self, token: Token) {
        let Some(raises) = self.raising.pending.remove(&token) else { return };
        let mut slots = HashSet::new();
        for raise in &raises {
            self.apply_raise(raise);
            slots.insert(raise.slot);
        }
        for slot in slots {
            self.run_waiting(slot);
        }
    }

    pub(super) fn apply_raise(&mut self, raise: &LimitRaise) {
        match self.sad.apply_raise(raise, clock::now()) {
            Ok(plan) => self.execute(&plan),
            Err(error) => tracing::debug!(%error, "a raise came too late"),
        }
    }

    /// Highest inbound number that may be accepted now; `None` where there is no such SA.
    pub(super) fn ceiling_of(&self, slot: u32) -> Option<u64> {
        let entry = self.sad.by_slot(slot)?;
        let flags = if entry.local_only { SA_LOCAL_ONLY } else { 0 };
        let (alone, epoch) = (self.ownership.alone, self.ownership.epoch.low16());
        datapath::limits::inbound_range(&entry.ceiling, flags, alone, epoch).ok().map(|range| range.ceiling)
    }

    /// Highest outbound number that may be given out now.
    pub(super) fn lease_of(&self, slot: u32) -> Option<u64> {
        let entry = self.sad.by_slot(slot)?;
        let flags = if entry.local_only { SA_LOCAL_ONLY } else { 0 };
        let (alone, epoch) = (self.ownership.alone, self.ownership.epoch.low16());
        datapath::limits::outbound_range(&entry.lease, flags, alone, epoch).ok().map(|range| range.last)
    }

    /// Evidence after a takeover: the peer's numbers are stuck below the floor. Rekey, once per SA and epoch.
    fn evidence(&mut self, slot: u32, spi: u32) {
        let Some(entry) = self.sad.by_slot(slot).filter(|e| e.record.spi_in == EspSpi(spi)) else { return };
        let (spi_in, name) = (entry.record.spi_in, format!("{}/{}", entry.record.connection, entry.record.child));
        if !self.owns() || !self.evidence.insert(spi_in) {
            return;
        }
        self.takeover.evidence_rekeys += 1;
        self.log.note("evidence", format!("{name} SA {spi_in}: the peer sends below the takeover floor; rekeying"));
        self.engine_command(ike::Command::RekeyChild { spi_in });
    }

    /// A packet met a policy without an SA.
    fn acquire(&mut self, connection: u32) {
        let index = (connection as usize).checked_sub(1);
        let Some(config) = index.and_then(|i| self.config.connections.get(i)) else { return };
        if self.owns() && config.remote.is_some() {
            let connection = config.name.clone();
            self.engine_command(ike::Command::Initiate { connection });
        }
    }
}
