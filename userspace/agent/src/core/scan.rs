//! The round over all SAs: raises (events may be lost when their ring buffer is full), ceilings that are too high, lifetimes,
//! edges for the standbys.
//!
//! An SA that carries nothing costs three words read from shared memory by round. It is looked at when these words have
//! changed, and from then on until it is at rest again. Ages are kept in order, so that nobody looks for the oldest.

use std::collections::BTreeSet;
use std::time::Duration;

use cluster::Input;
use cluster::guest::Wish;
use dataplane::Activity;
use maps_schema::segment::SEGMENTS;
use model::{Epoch, EspSpi, Instant, SegmentId};
use sad::lifetime::{LifetimeEvent, LifetimeKind};

use super::Core;
use crate::clock;

/// SAs whose words one turn reads: a fraction of a millisecond.
const SLICE: usize = 8192;
/// SAs that one turn looks at: about a millisecond.
const LOOKS: usize = 1024;
/// SAs that one turn looks at though nothing has happened to them.
const SPARE_LOOKS: usize = 256;
/// Lifetimes by age that one turn acts on.
const DUE: usize = 64;
/// From the start of a round over all SAs to the next.
const ROUND: Duration = Duration::from_millis(100);
/// From one turn to the next within a round.
const PAUSE: Duration = Duration::from_millis(2);
/// Reading the words of SAs that carry nothing takes one part in so many of the core's time at most: rounds over very many
/// SAs come less often. Events of the programs do not wait for a round.
const IDLE_SHARE: u32 = 30;
/// The rest of a round takes one part in so many at most.
const SHARE: u32 = 4;
/// Every SA is looked at this often, whatever its counters say: nothing that was overlooked stays so.
const EVERYTHING: Duration = Duration::from_secs(30);

/// What the last look at a slot saw.
#[derive(Clone, Copy, Default)]
struct Seen {
    activity: Activity,
    /// Part of the lease and of the headroom that was left.
    lowest: [Option<f32>; 2],
}

/// Where the round is.
#[derive(Default)]
pub struct Scan {
    /// First slot of the next turn; 0: a new round.
    slot: u32,
    began: Instant,
    /// Time that the round has taken so far: reading words, and all the rest.
    read: Duration,
    worked: Duration,
    /// When the next turn is due.
    pub due: Instant,
    /// By slot.
    seen: Vec<Seen>,
    /// Slots of SAs that are not at rest.
    busy: BTreeSet<u32>,
    /// All SAs are being looked at: the next slot.
    everything: Option<u32>,
    everything_due: Instant,
    lowest: Lowest,
    /// Of the last whole round.
    pub lowest_before: Lowest,
}

/// Smallest part of a lease and of a headroom that is left among all SAs of this member.
#[derive(Clone, Copy, Default)]
pub struct Lowest {
    pub lease: Option<f64>,
    pub headroom: Option<f64>,
}

fn least(now: Option<f64>, value: Option<f32>) -> Option<f64> {
    let value = value.map(f64::from);
    [now, value].into_iter().flatten().min_by(f64::total_cmp)
}

impl Scan {
    /// An SA has other limits: the next round looks at it.
    pub fn look_again(&mut self, slot: u32) {
        self.busy.insert(slot);
    }

    /// Ownership or the in-sync set has changed: all SAs are looked at, in turns.
    pub fn look_at_everything(&mut self) {
        self.everything = Some(0);
    }

    fn of(&mut self, slot: u32) -> &mut Seen {
        let at = slot as usize;
        if at >= self.seen.len() {
            self.seen.resize((at + 1).next_multiple_of(4096), Seen::default());
        }
        &mut self.seen[at]
    }
}

impl Core {
    /// One turn of the round.
    pub(super) fn scan_turn(&mut self, now: Instant) {
        if self.scan.slot == 0 {
            self.scan.began = now;
            (self.scan.read, self.scan.worked) = (Duration::ZERO, Duration::ZERO);
            self.scan.lowest = Lowest::default();
        }
        let next = if self.groups.owns_any() {
            self.scan_some(now)
        } else {
            self.scan.busy.clear();
            None
        };
        self.scan.worked += clock::now().since(now);
        (self.scan.slot, self.scan.due) = match next {
            Some(slot) => (slot, now + PAUSE),
            None => {
                self.scan.lowest_before = self.scan.lowest;
                let rest = self.scan.worked.saturating_sub(self.scan.read);
                let share = self.scan.began + self.scan.read * IDLE_SHARE + rest * SHARE;
                (0, (self.scan.began + ROUND).max(share).max(now + PAUSE))
            }
        };
    }

    /// Returns the slot where the next turn begins, if the round is not over.
    fn scan_some(&mut self, now: Instant) -> Option<u32> {
        let mut epochs = [None; SEGMENTS];
        for (segment, epoch) in (0..=u8::MAX).zip(&mut epochs) {
            *epoch = self.groups.epoch_if_owned(SegmentId(segment));
        }
        if self.scan.slot == 0 {
            let due = self.sad.due_by_age(
                now,
                DUE,
                |segment| epochs[usize::from(segment.0)].is_some(),
                |slot| self.counters.counters(slot),
            );
            due.into_iter().for_each(|due| self.lifetime(due));
        }
        let before = clock::now();
        let (looks, next) = self.moved(&epochs);
        self.scan.read += clock::now().since(before);
        self.look_at(looks, &epochs, now);
        next
    }

    /// SAs of the next slice that something has happened to, and those whose turn it is.
    fn moved(&mut self, epochs: &[Option<Epoch>; SEGMENTS]) -> (Vec<u32>, Option<u32>) {
        let mut looks = Vec::new();
        let (mut count, mut next) = (0, None);
        for slot in self.sad.slots_from(self.scan.slot) {
            if count == SLICE || looks.len() == LOOKS {
                next = Some(slot);
                break;
            }
            count += 1;
            if epochs[usize::from(slot as u8)].is_none() {
                continue;
            }
            let Some(activity) = self.counters.activity(slot) else {
                continue;
            };
            let seen = *self.scan.of(slot);
            let [lease, headroom] = seen.lowest;
            self.scan.lowest.lease = least(self.scan.lowest.lease, lease);
            self.scan.lowest.headroom = least(self.scan.lowest.headroom, headroom);
            if seen.activity != activity || self.scan.busy.contains(&slot) {
                looks.push(slot);
            }
        }
        if self.scan.everything.is_none() && self.scan.everything_due <= self.scan.began {
            self.scan.everything = Some(0);
        }
        if let Some(from) = self.scan.everything {
            let mut slots = self.sad.slots_from(from);
            let owned = |slot: &u32| epochs[usize::from(*slot as u8)].is_some();
            looks.extend(slots.by_ref().take(SPARE_LOOKS).filter(owned));
            self.scan.everything = slots.next();
            if self.scan.everything.is_none() {
                self.scan.everything_due = self.scan.began + EVERYTHING;
            }
        }
        (looks, next)
    }

    /// Looks at SAs, and acts on what is seen.
    fn look_at(&mut self, slots: Vec<u32>, epochs: &[Option<Epoch>; SEGMENTS], now: Instant) {
        let (mut raises, mut lowerings) = (Vec::new(), Vec::new());
        let (mut due, mut edges) = (Vec::new(), Vec::new());
        for slot in slots.iter().copied() {
            // Words first: what happens between the two makes another look necessary.
            let activity = self.counters.activity(slot);
            let (Some(epoch), Some(activity), Some(counters)) = (
                epochs[usize::from(slot as u8)],
                activity,
                self.counters.counters(slot),
            ) else {
                continue;
            };
            let Some(look) = self.sad.look(slot, now, epoch, &counters) else {
                continue;
            };
            raises.extend(look.raises);
            lowerings.extend(look.lowering);
            due.extend(look.due);
            if look.at_rest {
                self.scan.busy.remove(&slot);
            } else {
                self.scan.busy.insert(slot);
            }
            let lowest = self.left(slot, &counters);
            *self.scan.of(slot) = Seen { activity, lowest };
            edges.extend(self.edge(slot, &counters));
        }
        if !raises.is_empty() {
            self.raise(raises);
        }
        if !lowerings.is_empty() {
            self.lower_ceilings(lowerings);
        }
        due.into_iter().for_each(|due| self.lifetime(due));
        self.report_usage(&slots);
        if !edges.is_empty() {
            self.reported
                .extend(edges.iter().map(|(_, spi, edge)| (*spi, *edge)));
            self.node_input(Input::Report { edges });
        }
    }

    fn lifetime(&mut self, due: LifetimeEvent) {
        let wish = match due.kind {
            LifetimeKind::Soft => Wish::Rekey,
            LifetimeKind::Hard => Wish::Delete,
        };
        self.log.note(
            "lifetime",
            format!(
                "{}/{} SA {}: {:?}",
                due.connection, due.child, due.spi_in, due.kind
            ),
        );
        self.have_done(due.spi_in, wish);
    }

    /// What is left of the lease and of the headroom, as parts of their sizes.
    fn left(&self, slot: u32, counters: &sad::SaCounters) -> [Option<f32>; 2] {
        let Some(entry) = self.sad.by_slot(slot).filter(|entry| !entry.local_only) else {
            return [None; 2];
        };
        let part = |last: Option<u64>, used: u64, step: u64| {
            let last = last.filter(|last| *last < u64::MAX)?;
            let left = last.saturating_sub(used) as f32 / step.max(1) as f32;
            Some(left.min(1.0))
        };
        [
            part(self.lease_in(entry), counters.outbound.seq, entry.lease.step),
            part(self.ceiling_in(entry), counters.inbound.edge, entry.ceiling.step),
        ]
    }

    /// How far the window is, where the standbys are still to be told: base of the evidence rule after a takeover.
    fn edge(&self, slot: u32, counters: &sad::SaCounters) -> Option<(u32, EspSpi, u64)> {
        let (spi, edge) = (EspSpi(counters.inbound.spi), counters.inbound.edge);
        let known = self.reported.get(&spi).copied().unwrap_or(0);
        let entry = self.sad.by_slot(slot)?;
        let with_standby = !self.node.is_alone(self.groups.layout.group_of(entry.segment()));
        (edge > known && entry.record.spi_in == spi && with_standby).then_some((slot, spi, edge))
    }
}
