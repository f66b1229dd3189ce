//! Child SAs per CPU and per member (RFC 9611): which SA each CPU uses in place of the shared one that policies point at.
//!
//! A family is what one child of one IKE SA has: shared SAs (two during a rekey), and SAs that are bound to a CPU or a member. Each
//! member works out from the slots which CPU of its own serves which, so members may have different CPU counts. On one CPU the bound
//! SA that was taken into use last is used; without any, the shared one.
//!
//! A bound SA on another segment than the shared one's is a guest (ADR 11): it is for whichever member serves that segment, where the
//! shared one is another member's. A CPU without one of its own then uses one of its member's other CPUs.

use crate::port::{MapOp, MapPlan};
use crate::store::{SaEntry, Sad, SadError};
use maps_schema::sad::{slot_place, spi_slot};
use model::{ChildSaChange, EspSpi, IkeSpi, SegmentId};
use std::collections::{BTreeMap, BTreeSet};

/// An SA's part in a family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Part {
    /// Of no family: the peer has not agreed, or was not asked.
    #[default]
    None,
    /// All CPUs may use it.
    Shared,
    /// Its CPU alone; since the switch with this number, where it is in use outbound.
    Bound(Option<u64>),
}

#[derive(Default)]
struct Family {
    shared: BTreeSet<u32>,
    /// In use outbound, by the number of their switch.
    bound: BTreeMap<u64, u32>,
    /// Bound, and not in use outbound yet.
    waiting: BTreeSet<u32>,
}

impl Family {
    fn put(&mut self, slot: u32, part: Part) {
        match part {
            Part::None => {}
            Part::Shared => drop(self.shared.insert(slot)),
            Part::Bound(None) => drop(self.waiting.insert(slot)),
            Part::Bound(Some(switched)) => drop(self.bound.insert(switched, slot)),
        }
    }

    /// Whether it was a shared one.
    fn take(&mut self, slot: u32) -> bool {
        self.bound.retain(|_, bound| *bound != slot);
        self.waiting.remove(&slot);
        self.shared.remove(&slot)
    }

    fn slots(&self) -> impl Iterator<Item = u32> {
        let shared = self.shared.iter().chain(&self.waiting);
        shared.chain(self.bound.values()).copied()
    }

    fn contains(&self, slot: u32) -> bool {
        self.shared.contains(&slot)
            || self.waiting.contains(&slot)
            || self.bound.values().any(|bound| *bound == slot)
    }

    fn is_empty(&self) -> bool {
        self.shared.is_empty() && self.bound.is_empty() && self.waiting.is_empty()
    }
}

/// Names a family: IKE SA and child.
pub type Key = (IkeSpi, String);

/// Whether the SA in a slot is on another segment than its IKE SA.
fn is_guest(key: &Key, slot: u32) -> bool {
    key.0.segment().0 != segment(slot)
}

/// All families, and what the map says of them.
#[derive(Default)]
pub(crate) struct Siblings {
    families: BTreeMap<Key, Family>,
    /// Families whose entries may have to change.
    touched: BTreeSet<Key>,
    /// Own slots by CPU, for each shared one that has any.
    published: BTreeMap<u32, BTreeMap<u32, u32>>,
    /// Shared slots that are none any more.
    gone: BTreeSet<u32>,
    /// Segments that this member serves.
    served: BTreeSet<u8>,
    /// Families with guests, which depend on that.
    guests: BTreeMap<Key, usize>,
    /// Of those, the ones that are still to be looked at after a change of ownership.
    stale: BTreeSet<Key>,
}

/// Segment of a slot.
fn segment(slot: u32) -> u8 {
    slot as u8
}

impl Siblings {
    /// An SA came in, or its part is another one than before.
    pub fn put(&mut self, key: Key, slot: u32, part: Part) {
        if part == Part::None {
            return;
        }
        if part == Part::Shared {
            self.gone.remove(&slot);
        }
        if is_guest(&key, slot) {
            self.guest_came(&key);
        }
        self.families.entry(key.clone()).or_default().put(slot, part);
        self.touched.insert(key);
    }

    /// An SA goes, or gets another part.
    pub fn take(&mut self, key: Key, slot: u32) {
        let Some(family) = self.families.get_mut(&key) else {
            return;
        };
        if !family.contains(slot) {
            return;
        }
        if family.take(slot) {
            self.gone.insert(slot);
        }
        if family.is_empty() {
            self.families.remove(&key);
        }
        if is_guest(&key, slot) {
            self.guest_went(&key);
        }
        self.touched.insert(key);
    }

    /// An SA goes from one IKE SA to another. Its family follows in the same batch, so what the map says stays right; guests follow
    /// in batches of their own, and are looked at when they come.
    fn move_to(&mut self, from: &Key, to: Key, slot: u32, part: Part) {
        let guest = is_guest(from, slot);
        if let Some(family) = self.families.get_mut(from) {
            family.take(slot);
            if family.is_empty() {
                self.families.remove(from);
            }
        }
        if part == Part::None {
            return;
        }
        if guest {
            self.guest_went(from);
            self.guest_came(&to);
            self.touched.insert(to.clone());
        }
        self.families.entry(to).or_default().put(slot, part);
    }

    /// From what the map holds to what it has to hold.
    pub fn plan(&mut self, cpus: u32) -> MapPlan {
        let mut plan = MapPlan::default();
        for slot in std::mem::take(&mut self.gone) {
            self.publish(slot, BTreeMap::new(), &mut plan);
        }
        for key in std::mem::take(&mut self.touched) {
            let Some(family) = self.families.get(&key) else {
                continue;
            };
            for slot in family.shared.clone() {
                let own = self.own_beside(&key, slot, cpus);
                self.publish(slot, own, &mut plan);
            }
        }
        plan
    }

    /// What the CPUs of this member use in place of the shared SA in a slot.
    fn own_beside(&self, key: &Key, shared: u32, cpus: u32) -> BTreeMap<u32, u32> {
        let Some(family) = self.families.get(key) else {
            return BTreeMap::new();
        };
        let cpu = |slot: &u32| slot_place(*slot, cpus).0;
        let (here, guests): (Vec<u32>, Vec<u32>) = family
            .bound
            .values()
            .partition(|slot| segment(**slot) == segment(shared));
        let mut own: BTreeMap<u32, u32> = here.iter().map(|slot| (cpu(slot), *slot)).collect();
        if self.served.contains(&segment(shared)) {
            return own;
        }
        let mine: Vec<u32> = guests
            .into_iter()
            .filter(|slot| self.served.contains(&segment(*slot)))
            .collect();
        if let Some(latest) = mine.last() {
            own = (0..cpus.max(1)).map(|cpu| (cpu, *latest)).collect();
            own.extend(mine.iter().map(|slot| (cpu(slot), *slot)));
        }
        own
    }

    fn guest_came(&mut self, key: &Key) {
        *self.guests.entry(key.clone()).or_default() += 1;
    }

    fn guest_went(&mut self, key: &Key) {
        if let Some(count) = self.guests.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.guests.remove(key);
            }
        }
    }

    /// Every entry, for maps that are empty.
    pub fn full_plan(&self) -> MapPlan {
        let entries = self.published.iter().flat_map(|(slot, own)| {
            own.iter().map(|(cpu, own)| MapOp::PutCpuSlot {
                cpu: *cpu,
                slot: *slot,
                own: Some(*own),
            })
        });
        MapPlan {
            ops: entries.collect(),
        }
    }

    fn publish(&mut self, slot: u32, own: BTreeMap<u32, u32>, plan: &mut MapPlan) {
        let before = self.published.remove(&slot).unwrap_or_default();
        let cpus: BTreeSet<u32> = before.keys().chain(own.keys()).copied().collect();
        for cpu in cpus {
            let (was, is) = (before.get(&cpu), own.get(&cpu).copied());
            if was.copied() != is {
                plan.ops.push(MapOp::PutCpuSlot { cpu, slot, own: is });
            }
        }
        if !own.is_empty() {
            self.published.insert(slot, own);
        }
    }
}

impl Sad {
    /// An inbound SPI of this segment whose slot is served by this CPU of this member's; as [`Sad::reserve_spi`].
    pub fn reserve_spi_on(&mut self, segment: SegmentId, cpu: u32) -> Option<EspSpi> {
        let cpus = self.settings.cpus.max(1);
        self.spis
            .reserve_where(segment, |slot| slot_place(slot, cpus).0 == cpu % cpus)
    }

    /// This member serves some segments, or does not any more. What that means for SAs per member follows in
    /// [`Sad::republish`]; until then packets take a way that is longer, and right.
    pub fn set_served(&mut self, segments: impl Iterator<Item = SegmentId>, served: bool) {
        let mut changed = false;
        for segment in segments {
            changed |= if served {
                self.siblings.served.insert(segment.0)
            } else {
                self.siblings.served.remove(&segment.0)
            };
        }
        if changed {
            self.siblings.stale = self.siblings.guests.keys().cloned().collect();
        }
    }

    /// SAs on another segment than their IKE SA's.
    pub fn guests(&self) -> impl Iterator<Item = &SaEntry> {
        let families = self.siblings.guests.keys();
        let families = families.filter_map(|key| Some((key, self.siblings.families.get(key)?)));
        families
            .flat_map(|(key, family)| family.slots().filter(move |slot| is_guest(key, *slot)))
            .filter_map(|slot| self.by_slot(slot))
    }

    /// Whether [`Sad::republish`] has something to do.
    pub fn is_stale(&self) -> bool {
        !self.siblings.stale.is_empty()
    }

    /// Brings some families with SAs per member to what this member serves.
    pub fn republish(&mut self, some: usize) -> MapPlan {
        for _ in 0..some {
            let Some(key) = self.siblings.stale.pop_first() else {
                break;
            };
            self.siblings.touched.insert(key);
        }
        self.siblings.plan(self.settings.cpus)
    }

    /// Shared SAs, by IKE SA and child, behind `after`.
    pub fn shared_after(&self, after: Option<&Key>) -> impl Iterator<Item = (Key, &SaEntry)> {
        let from = after.map_or(std::ops::Bound::Unbounded, |key| {
            std::ops::Bound::Excluded(key.clone())
        });
        self.siblings
            .families
            .range((from, std::ops::Bound::Unbounded))
            .filter_map(|(key, family)| {
                let entry = self.by_slot(*family.shared.last()?)?;
                Some((key.clone(), entry))
            })
    }

    /// Whether further SAs may stand beside this one, which all CPUs may use.
    pub fn is_shared(&self, spi_in: EspSpi) -> bool {
        self.get(spi_in).is_some_and(|entry| entry.part == Part::Shared)
    }

    /// Whether a shared SA has a sibling that this CPU uses in its place.
    pub fn has_own(&self, slot: u32, cpu: u32) -> bool {
        let own = self.siblings.published.get(&slot);
        own.is_some_and(|own| own.contains_key(&cpu))
    }

    /// What a joiner has to be told beside the snapshot: the part of every SA that has one, in the order in which they were taken into
    /// use.
    pub fn parts_where(&self, of: impl Fn(SegmentId) -> bool) -> Vec<ChildSaChange> {
        let spi_of = |slot: &u32| self.by_slot(*slot).map(|entry| entry.record.spi_in);
        let mut bound: BTreeMap<u64, EspSpi> = BTreeMap::new();
        let mut changes = Vec::new();
        for family in self.siblings.families.values() {
            let shared = family.shared.iter().filter_map(spi_of);
            changes.extend(shared.map(|spi_in| ChildSaChange::Share { spi_in }));
            let waiting = family.waiting.iter().filter_map(spi_of);
            changes.extend(waiting.map(|spi_in| ChildSaChange::Bind { spi_in, now: false }));
            let in_use = family.bound.iter();
            bound.extend(in_use.filter_map(|(switched, slot)| Some((*switched, spi_of(slot)?))));
        }
        let in_use = bound.into_values();
        changes.extend(in_use.map(|spi_in| ChildSaChange::Bind { spi_in, now: true }));
        changes.retain(|change| of(change.spi_in().segment()));
        changes
    }

    /// Gives an SA another part.
    pub(crate) fn set_part(&mut self, spi_in: EspSpi, part: Part) -> Result<MapPlan, SadError> {
        let entry = self.entry_mut_of(spi_in)?;
        entry.part = part;
        let (key, slot) = (entry.family(), entry.slot());
        self.siblings.take(key.clone(), slot);
        self.siblings.put(key, slot, part);
        Ok(self.siblings.plan(self.settings.cpus))
    }

    /// The SA belongs to another IKE SA from now on, with its part.
    pub(crate) fn move_to_ike_sa(&mut self, spi_in: EspSpi, ike_spi: IkeSpi) -> Result<(), SadError> {
        let entry = self.entry_mut_of(spi_in)?;
        let (from, slot, part) = (entry.family(), entry.slot(), entry.part);
        entry.record.ike_spi = ike_spi;
        let to = entry.family();
        self.siblings.move_to(&from, to, slot, part);
        Ok(())
    }

    /// Outbound, its CPU uses this bound SA from now on.
    pub(crate) fn use_bound(&mut self, spi_in: EspSpi) -> Result<MapPlan, SadError> {
        self.switches += 1;
        self.set_part(spi_in, Part::Bound(Some(self.switches)))
    }

    /// The SA is one that all CPUs may use, and further ones may stand beside it.
    pub(crate) fn share(&mut self, spi_in: EspSpi) -> Result<MapPlan, SadError> {
        let mut plan = self.set_part(spi_in, Part::Shared)?;
        // Rules that point at it have to say so.
        plan.extend(self.restate(spi_slot(spi_in.0))?);
        Ok(plan)
    }
}

impl SaEntry {
    /// Whether it is on another segment than its IKE SA: another member may serve it (ADR 11).
    pub fn is_guest(&self) -> bool {
        self.record.ike_spi.segment() != self.segment()
    }

    /// Whether its CPU or member alone uses it outbound, beside a shared SA.
    pub fn is_bound(&self) -> bool {
        matches!(self.part, Part::Bound(_))
    }

    /// Whether outbound traffic may use it: policies point at it, or its CPU uses it in place of such a one.
    pub fn carries_outbound(&self) -> bool {
        self.outbound_in_use || matches!(self.part, Part::Bound(Some(_)))
    }

    pub(crate) fn family(&self) -> Key {
        (self.record.ike_spi, self.record.child.clone())
    }
}
