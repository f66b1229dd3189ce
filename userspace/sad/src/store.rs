//! The SA database: changes in, map plans out.

use crate::handling::Handling;
use crate::lifetime::{LifetimeKind, Lifetimes};
use crate::limits::{HEADROOM_MIN, LEASE_MIN, Meter};
use crate::linger::Lingering;
use crate::port::{MapOp, MapPlan};
use crate::prefix::Prefix;
use crate::record;
use crate::siblings::{Part, Siblings};
use crate::spd::{Effect, Holder, Policy, PolicyAction, Spd, SpdError};
use crate::spi::{AdoptError, SpiAllocator};
use crate::usage::Usage;
use maps_schema::sad::{Limits, spi_segment, spi_slot};
use maps_schema::steer::MAX_CONNECTIONS;
use model::{
    ChildSaChange, ChildSaRecord, Epoch, EspSpi, EspSuite, InitialLimits, Instant, MemberId, OutboundUse,
    SegmentId, TrafficSelector,
};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeBounds;
use std::time::Duration;
use thiserror::Error;

/// What does not change while the store lives.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This member.
    pub member: MemberId,
    /// Slots in this member's maps.
    pub max_slots: u32,
    /// CPUs that serve them on this member.
    pub cpus: u32,
    /// Where SPI generations start; any octet out of the caller's randomness.
    pub first_generation: u8,
    /// MTU of the outside interface, octets.
    pub outside_mtu: u16,
    /// Time that the detection of a failed member takes.
    pub detection: Duration,
    /// Lifetimes of SAs whose policy has none of its own.
    pub lifetimes: Lifetimes,
}

/// Surroundings of a change.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// Now.
    pub now: Instant,
    /// Ownership epoch of the SA's segment.
    pub epoch: Epoch,
    /// No standby acknowledged the change: a new SA has no upper limits until one knows it.
    pub alone: bool,
}

/// Why a change was refused. The store is as before.
#[derive(Debug, Error)]
pub enum SadError {
    /// The SPI cannot be used.
    #[error(transparent)]
    Spi(#[from] AdoptError),
    /// The policies do not fit into the map.
    #[error(transparent)]
    Spd(#[from] SpdError),
    /// A second SA with the same SPI.
    #[error("SPI {0} is installed already")]
    Installed(EspSpi),
    /// A snapshot names an SA of a segment that it is not about.
    #[error("the snapshot names SPI {0}, which is of another segment")]
    Foreign(EspSpi),
    /// A change names an SA that does not exist.
    #[error("no SA with inbound SPI {0}")]
    Unknown(EspSpi),
    /// Keying material of the wrong length.
    #[error("keying material of {octets} octets does not fit {suite:?} (cipher key and 4 octets of salt)")]
    KeyLength {
        /// The suite.
        suite: EspSuite,
        /// Octets given.
        octets: usize,
    },
    /// Too many pairs of traffic selectors.
    #[error("SA {spi} has {pairs} pairs of traffic selectors; the maps hold {max}: negotiate several Child SAs", max = maps_schema::sad::SELECTORS_PER_SA)]
    TooManySelectors {
        /// Our inbound SPI.
        spi: EspSpi,
        /// Pairs of a local and a remote selector.
        pairs: usize,
    },
    /// No pair of traffic selectors.
    #[error("SA {spi} has no local and remote selector that agree in address family and protocol")]
    NoSelectors {
        /// Our inbound SPI.
        spi: EspSpi,
    },
    /// More connections than counters.
    #[error("{0} connections are configured; counters exist for {max}", max = MAX_CONNECTIONS - 1)]
    TooManyConnections(usize),
    /// The SA's limits are of a later epoch than the raise.
    #[error("raise for SPI {0} is of an earlier epoch than the SA's limits")]
    EpochBehind(EspSpi),
}

/// One SA pair in the store.
pub struct SaEntry {
    /// The record; its `limits` are those of the installation, the current ones are beside it.
    pub record: ChildSaRecord,
    /// Current lease.
    pub lease: Limits,
    /// Current ceiling.
    pub ceiling: Limits,
    /// Right edge last reported: base of the evidence rule.
    pub reported_edge: u64,
    /// No standby knows it.
    pub local_only: bool,
    /// Policies point at it.
    pub outbound_in_use: bool,
    /// The programs tell when its peer's packets come from elsewhere ([`Sad::may_move`]).
    pub may_move: bool,
    /// When this member learnt of it, less the age that it had then.
    pub installed: Instant,
    pub(crate) flags: u8,
    pub(crate) connection: u16,
    pub(crate) pairs: Vec<(TrafficSelector, TrafficSelector)>,
    pub(crate) switched: u64,
    pub(crate) part: Part,
    pub(crate) lifetimes: Lifetimes,
    pub(crate) handling: Handling,
    /// What routers said that the path carries.
    pub(crate) learnt_mtu: Option<u16>,
    /// What other members carried: to be added to this one's counters.
    pub(crate) base: Usage,
    /// Totals last reported, or heard.
    pub(crate) told: Usage,
    pub(crate) reported: Option<LifetimeKind>,
    /// Where it stands in the order of ages.
    pub(crate) due_at: Option<Instant>,
    pub(crate) meters: [Meter; 2],
}

impl SaEntry {
    /// Slot of both directions.
    pub fn slot(&self) -> u32 {
        spi_slot(self.record.spi_in.0)
    }

    /// Segment that the SA belongs to.
    pub fn segment(&self) -> SegmentId {
        SegmentId(spi_segment(self.record.spi_in.0))
    }
}

/// Whether a plan has the keys of its SAs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    /// Yes.
    Expanded,
    /// No: they are in the maps already.
    Written,
}

/// The only truth about Child SAs.
pub struct Sad {
    pub(crate) settings: Settings,
    pub(crate) spis: SpiAllocator,
    pub(crate) spd: Spd,
    pub(crate) siblings: Siblings,
    pub(crate) entries: BTreeMap<u32, SaEntry>,
    /// How many of them each connection (by counter index) has, by the segment of their IKE SA.
    by_connection: BTreeMap<(u16, u8), u32>,
    /// When each reaches its next limit of age, so that nobody need look at the others.
    pub(crate) ages: BTreeSet<(Instant, u32)>,
    /// Removed SAs, by slot, whose inbound half is in the maps still, and until when.
    pub(crate) lingering: BTreeMap<u32, Lingering>,
    pub(crate) lingering_due: BTreeSet<(Instant, u32)>,
    /// SPIs in requests of ours, not installed yet.
    pub(crate) awaited: BTreeSet<EspSpi>,
    pub(crate) policies: Vec<Policy>,
    /// Their places, rising ([`crate::configure`]).
    pub(crate) ranks: Vec<u32>,
    pub(crate) connections: Vec<String>,
    pub(crate) switches: u64,
}

impl Sad {
    /// An empty store.
    pub fn new(settings: Settings) -> Self {
        let spis = SpiAllocator::new(settings.member, settings.max_slots, settings.first_generation);
        Self {
            settings,
            spis,
            spd: Spd::default(),
            siblings: Siblings::default(),
            entries: BTreeMap::new(),
            by_connection: BTreeMap::new(),
            ages: BTreeSet::new(),
            lingering: BTreeMap::new(),
            lingering_due: BTreeSet::new(),
            awaited: BTreeSet::new(),
            policies: Vec::new(),
            ranks: Vec::new(),
            connections: Vec::new(),
            switches: 0,
        }
    }

    /// Applies a committed change. On an error nothing has changed.
    pub fn apply(&mut self, change: &ChildSaChange, context: Context) -> Result<MapPlan, SadError> {
        match change {
            ChildSaChange::Install {
                record,
                outbound,
                replaces: _,
            } => {
                // The replaced SA keeps its rules below those of the new one until it is removed: no gap, and the
                // old SA serves again should the new one be deleted first.
                let lease = limits(record.limits.lease, record.limits.lease_step, context.epoch);
                let ceiling = limits(record.limits.ceiling, record.limits.headroom, context.epoch);
                let now = *outbound == OutboundUse::Now;
                self.install(record, lease, ceiling, now, context, Keys::Expanded)
            }
            ChildSaChange::UseOutbound { spi_in } => {
                if self.entry_of(*spi_in)?.is_bound() {
                    return self.use_bound(*spi_in);
                }
                self.switch(spi_slot(spi_in.0))
            }
            ChildSaChange::MovePeer { spi_in, remote } => {
                let outside = self.settings.outside_mtu;
                let entry = self.entry_mut_of(*spi_in)?;
                entry.record.remote = *remote;
                // Another path.
                let learnt = entry.learnt_mtu.take();
                let record = record::outbound(entry, outside);
                let slot = entry.slot();
                let mut plan = MapPlan {
                    ops: vec![MapOp::PutPath {
                        slot,
                        spi: record.spi,
                        outer_dst: record.outer_dst,
                        encap_ports: record.encap_ports,
                    }],
                };
                if learnt.is_some() {
                    plan.extend(entry.path_plan(outside));
                }
                Ok(plan)
            }
            ChildSaChange::MoveIkeSa { spi_in, ike_spi } => {
                self.move_to_ike_sa(*spi_in, *ike_spi)?;
                // The others of its family are moved by the same commit; a guest by one of its own.
                Ok(match ike_spi.segment() == spi_in.segment() {
                    true => MapPlan::default(),
                    false => self.siblings.plan(self.settings.cpus),
                })
            }
            ChildSaChange::Share { spi_in } => self.share(*spi_in),
            ChildSaChange::Bind { spi_in, now: true } => self.use_bound(*spi_in),
            ChildSaChange::Bind { spi_in, now: false } => self.set_part(*spi_in, Part::Bound(None)),
            ChildSaChange::Remove { spi_in } => {
                self.entry_of(*spi_in)?;
                Ok(self.remove(*spi_in))
            }
        }
    }

    /// An inbound SPI of this segment, held until it is installed and removed, or released.
    pub fn reserve_spi(&mut self, segment: SegmentId) -> Option<EspSpi> {
        let free = self.spis.reserve(segment);
        if free.is_none() && self.yield_oldest(segment) {
            return self.spis.reserve(segment);
        }
        free
    }

    /// Gives back an SPI that was reserved but never installed; an installed one is left alone.
    pub fn release_spi(&mut self, spi: EspSpi) {
        if self.get(spi).is_none() {
            self.spis.release(spi);
        }
    }

    /// This member serves these segments no more: SPIs that its unfinished exchanges had reserved are free again. Whoever serves
    /// now goes on with those exchanges or not, and may give the slots to others, which this member's mirror must follow.
    pub fn release_unused_spis(&mut self, of: impl Fn(SegmentId) -> bool) {
        let entries = &self.entries;
        let installed = |spi: EspSpi| {
            entries
                .get(&spi_slot(spi.0))
                .is_some_and(|e| e.record.spi_in == spi)
        };
        self.spis.release_where(of, installed);
    }

    /// This member goes on with an exchange in which another one promised this SPI to a peer: its slot is taken.
    ///
    /// # Errors
    /// [`SadError::Spi`] where the slot is in use.
    pub fn hold_spi(&mut self, spi: EspSpi) -> Result<(), SadError> {
        self.yield_slot(spi_slot(spi.0));
        Ok(self.spis.adopt(spi)?)
    }

    /// Limits for the journal entry of a new SA.
    pub fn initial_limits(&self) -> InitialLimits {
        InitialLimits {
            lease: LEASE_MIN,
            lease_step: LEASE_MIN,
            ceiling: HEADROOM_MIN,
            headroom: HEADROOM_MIN,
        }
    }

    /// The SA with this inbound SPI.
    pub fn get(&self, spi_in: EspSpi) -> Option<&SaEntry> {
        self.by_slot(spi_slot(spi_in.0))
            .filter(|e| e.record.spi_in == spi_in)
    }

    /// The SA in this slot.
    pub fn by_slot(&self, slot: u32) -> Option<&SaEntry> {
        self.entries.get(&slot)
    }

    /// SAs of a configured connection, by segment of their IKE SA.
    pub fn children_of(&self, connection: &str) -> impl Iterator<Item = (SegmentId, u32)> {
        let index = index_of(&self.connections, connection);
        let counts = self.by_connection.range((index, 0)..=(index, u8::MAX));
        counts
            .filter(move |_| index != 0)
            .map(|((_, segment), count)| (SegmentId(*segment), *count))
    }

    /// SAs in some slots, by rising slot.
    pub fn range(&self, slots: impl RangeBounds<u32>) -> impl Iterator<Item = &SaEntry> {
        self.entries.range(slots).map(|(_, entry)| entry)
    }

    pub(crate) fn put(&mut self, entry: SaEntry) {
        let (slot, key) = (entry.slot(), (entry.connection, entry.record.ike_spi.segment().0));
        self.take(slot);
        *self.by_connection.entry(key).or_default() += 1;
        self.entries.insert(slot, entry);
        self.note_age(slot);
    }

    pub(crate) fn take(&mut self, slot: u32) -> Option<SaEntry> {
        let entry = self.entries.remove(&slot)?;
        self.siblings.take(entry.family(), slot);
        if let Some(at) = entry.due_at {
            self.ages.remove(&(at, slot));
        }
        self.count_less(entry.connection, entry.record.ike_spi.segment());
        Some(entry)
    }

    fn count_less(&mut self, connection: u16, segment: SegmentId) {
        let key = (connection, segment.0);
        if let Some(count) = self.by_connection.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.by_connection.remove(&key);
            }
        }
    }

    /// The SA's connection has another index now.
    pub(crate) fn recount(&mut self, slot: u32, connection: u16) {
        let Some(entry) = self.entries.get_mut(&slot) else {
            return;
        };
        let (before, segment) = (
            std::mem::replace(&mut entry.connection, connection),
            entry.record.ike_spi.segment(),
        );
        self.count_less(before, segment);
        *self.by_connection.entry((connection, segment.0)).or_default() += 1;
    }

    /// Slots of SAs from `first` on, rising. Walks over names only, so it costs next to nothing for each.
    pub fn slots_from(&self, first: u32) -> impl Iterator<Item = u32> {
        self.entries.range(first..).map(|(slot, _)| *slot)
    }

    /// All SAs by rising slot.
    pub fn iter(&self) -> impl Iterator<Item = &SaEntry> {
        self.entries.values()
    }

    /// Number of SA pairs.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no SA.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Counter index of a configured connection (from 1 on).
    pub fn connection_index(&self, name: &str) -> Option<u16> {
        Some(index_of(&self.connections, name)).filter(|i| *i != 0)
    }

    /// Connection of a counter index.
    pub fn connection_name(&self, index: u16) -> Option<&str> {
        self.connections
            .get(usize::from(index).checked_sub(1)?)
            .map(String::as_str)
    }

    /// Removes every SA; configured policies stay and trap.
    pub fn clear(&mut self) -> MapPlan {
        self.clear_where(|_| true)
    }

    /// Removes every SA of some segments.
    pub fn clear_where(&mut self, gone: impl Fn(SegmentId) -> bool) -> MapPlan {
        let mut plan = self.end_lingering_of(&gone);
        let of_these = self.entries.values().filter(|e| gone(e.segment()));
        let all: Vec<EspSpi> = of_these.map(|e| e.record.spi_in).collect();
        for spi in all {
            plan.extend(self.remove(spi));
        }
        plan
    }

    /// Everything that an empty data plane needs to hold what the store holds.
    pub fn full_plan(&self) -> Result<MapPlan, SadError> {
        let mut plan = MapPlan::default();
        for entry in self.entries.values() {
            plan.extend(self.records_plan(entry, Keys::Expanded)?);
        }
        let awaited = self.awaited.iter().map(|spi| MapOp::PutAwaited {
            slot: spi_slot(spi.0),
            spi: spi.0,
        });
        plan.ops.extend(awaited);
        plan.extend(self.siblings.full_plan());
        plan.extend(self.spd.full_plan());
        Ok(plan)
    }

    pub(crate) fn install(
        &mut self,
        sa: &ChildSaRecord,
        lease: Limits,
        ceiling: Limits,
        outbound_now: bool,
        context: Context,
        keys: Keys,
    ) -> Result<MapPlan, SadError> {
        if self.get(sa.spi_in).is_some() {
            return Err(SadError::Installed(sa.spi_in));
        }
        let policy = policy_of(&self.policies, sa);
        let lenient = policy.is_some_and(|(_, p)| p.lenient);
        let entry = SaEntry {
            lease,
            ceiling,
            reported_edge: 0,
            local_only: context.alone,
            outbound_in_use: false,
            may_move: false,
            installed: context.now,
            flags: record::flags(sa, lenient, context.alone, false),
            connection: index_of(&self.connections, &sa.connection),
            pairs: record::pairs(sa)?,
            switched: 0,
            part: Part::None,
            lifetimes: policy
                .and_then(|(_, p)| p.lifetimes)
                .unwrap_or(self.settings.lifetimes),
            handling: policy.map(|(_, p)| p.handling).unwrap_or_default(),
            learnt_mtu: None,
            base: Usage::default(),
            told: Usage::default(),
            reported: None,
            due_at: None,
            meters: [Meter::default(); 2],
            record: sa.clone(),
        };
        let mut plan = self.records_plan(&entry, keys)?;
        let held = self.spis.holds(sa.spi_in);
        let slot = entry.slot();
        self.yield_slot(slot);
        self.spis.adopt(sa.spi_in)?;
        self.put(entry);
        self.awaited.remove(&sa.spi_in);
        if outbound_now {
            match self.switch(slot) {
                Ok(rules) => plan.extend(rules),
                Err(error) => {
                    self.take(slot);
                    if !held {
                        self.spis.release(sa.spi_in);
                    }
                    return Err(error);
                }
            }
        }
        let mut whole = self.end_lingering_in(slot);
        whole.extend(plan);
        Ok(whole)
    }

    /// Keys, counters, records: in this order, so that a record that can be seen has all that it needs.
    fn records_plan(&self, entry: &SaEntry, keys: Keys) -> Result<MapPlan, SadError> {
        let (slot, sa) = (entry.slot(), &entry.record);
        let inbound = record::inbound(entry);
        let outbound = record::outbound(entry, self.settings.outside_mtu);
        let spi = sa.spi_in.0;
        let mut ops = vec![MapOp::ResetRuntime { slot, spi }];
        if keys == Keys::Expanded {
            ops.extend(record::keys(sa)?);
        }
        ops.push(MapOp::PutOutbound {
            slot,
            record: Box::new(outbound),
        });
        ops.push(MapOp::PutInbound {
            slot,
            record: Box::new(inbound),
        });
        Ok(MapPlan { ops })
    }

    fn switch(&mut self, slot: u32) -> Result<MapPlan, SadError> {
        let Some((effect, switched)) = self.effect_of(slot) else {
            return Ok(MapPlan::default());
        };
        let Some(entry) = self.entries.get_mut(&slot) else {
            return Ok(MapPlan::default());
        };
        let name = &entry.record.connection;
        let plan = self.spd.put(Holder::Slot(slot), effect, &entry.pairs, name)?;
        self.switches = switched;
        (entry.outbound_in_use, entry.switched) = (true, switched);
        Ok(plan)
    }

    /// As a switch of outbound traffic to the SA, without publishing its rules; `touched` gets their prefixes.
    pub(crate) fn stage_switch(&mut self, slot: u32, touched: &mut BTreeSet<Prefix>) {
        let Some((effect, switched)) = self.effect_of(slot) else {
            return;
        };
        if let Some(entry) = self.entries.get_mut(&slot) {
            self.spd.unstage(Holder::Slot(slot), touched);
            self.spd.stage(Holder::Slot(slot), effect, &entry.pairs, touched);
            self.switches = switched;
            (entry.outbound_in_use, entry.switched) = (true, switched);
        }
    }

    /// What the rules of an SA do once outbound traffic is switched to it, and the number of that switch.
    fn effect_of(&self, slot: u32) -> Option<(Effect, u64)> {
        let entry = self.entries.get(&slot)?;
        let policy = policy_of(&self.policies, &entry.record);
        if policy.is_some_and(|(_, p)| p.action != PolicyAction::Protect) {
            return None;
        }
        let at = self.rank_of(&entry.record);
        let switched = self.switches + 1;
        let effect = Effect {
            recency: Effect::recency(switched),
            ..Effect::of_sa(entry, entry.connection, at)
        };
        Some((effect, switched))
    }

    /// Writes the rules that point at an SA once more, after it has changed; their precedence stays.
    pub(crate) fn restate(&mut self, slot: u32) -> Result<MapPlan, SadError> {
        let Some(entry) = self.entries.get(&slot).filter(|entry| entry.outbound_in_use) else {
            return Ok(MapPlan::default());
        };
        let at = self.rank_of(&entry.record);
        let effect = Effect::of_sa(entry, entry.connection, at);
        let name = &entry.record.connection;
        Ok(self.spd.put(Holder::Slot(slot), effect, &entry.pairs, name)?)
    }

    /// Policy first (the configured one shows again, and traps), then the records.
    pub(crate) fn remove(&mut self, spi: EspSpi) -> MapPlan {
        let slot = spi_slot(spi.0);
        let mut plan = self.spd.remove(Holder::Slot(slot));
        self.take(slot);
        self.spis.release(spi);
        // Nobody is led to a slot that is empty.
        plan.extend(self.siblings.plan(self.settings.cpus));
        plan.ops.push(MapOp::ClearSlot { slot });
        plan
    }

    fn entry_of(&self, spi: EspSpi) -> Result<&SaEntry, SadError> {
        self.get(spi).ok_or(SadError::Unknown(spi))
    }

    pub(crate) fn entry_mut_of(&mut self, spi: EspSpi) -> Result<&mut SaEntry, SadError> {
        self.entries
            .get_mut(&spi_slot(spi.0))
            .filter(|e| e.record.spi_in == spi)
            .ok_or(SadError::Unknown(spi))
    }
}

fn limits(limit: u64, step: u64, epoch: Epoch) -> Limits {
    Limits {
        limit,
        step,
        floor: 0,
        epoch: u32::from(epoch.low16()),
        reserved: 0,
    }
}

pub(crate) fn index_of(connections: &[String], name: &str) -> u16 {
    connections
        .iter()
        .position(|c| c == name)
        .map_or(0, |at| at as u16 + 1)
}

pub(crate) fn policy_of<'a>(policies: &'a [Policy], record: &ChildSaRecord) -> Option<(u32, &'a Policy)> {
    policies
        .iter()
        .position(|p| p.connection == record.connection && p.child == record.child)
        .map(|at| (at as u32, &policies[at]))
}
