//! ESP SPI allocator: generation 8 (never 0) | allocating member - 1 in 4 | slot 20; slot mod 256 is the segment.
//!
//! The member's bits make SPIs of two members differ for ever, also while they do not see each other; the
//! generation makes a reused slot's SPI differ from its predecessor's, so that a late packet meets `unknown_spi`.

use model::{EspSpi, MemberId, SegmentId};
use std::collections::{HashMap, VecDeque};
use thiserror::Error;

/// Slots that 20 bits can name.
pub const SLOTS_MAX: u32 = 1 << 20;

/// Why an SPI cannot be taken as in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AdoptError {
    /// The slot is beyond this member's maps.
    #[error(
        "SPI {spi} names slot {slot}, but this member's maps have {max_slots}: raise `slots` on this member"
    )]
    BeyondSlots {
        /// The SPI.
        spi: EspSpi,
        /// Its slot.
        slot: u32,
        /// Size of the maps.
        max_slots: u32,
    },
    /// Another SPI holds the slot.
    #[error("slot {slot} of SPI {spi} is in use by SPI {holder}")]
    Occupied {
        /// The SPI.
        spi: EspSpi,
        /// Its slot.
        slot: u32,
        /// Who holds it.
        holder: EspSpi,
    },
    /// Generation 0, which no allocator gives out.
    #[error("SPI {0} has generation 0: no member of this cluster allocated it")]
    Foreign(EspSpi),
}

struct Slot {
    /// Generation of the last SPI seen in this slot, whoever allocated it.
    generation: u8,
    /// The SPI in use.
    holder: Option<EspSpi>,
}

#[derive(Default)]
struct Segment {
    /// Number of slots of this segment that were looked at as fresh; the next fresh slot is `segment + 256 * fresh`.
    fresh: u32,
    /// Freed slots, oldest first.
    freed: VecDeque<u32>,
}

/// Gives out inbound ESP SPIs. Fresh slots go first, then freed ones in the order in which they were freed.
pub struct SpiAllocator {
    member: MemberId,
    max_slots: u32,
    first_generation: u8,
    slots: HashMap<u32, Slot>,
    segments: Vec<Segment>,
    in_use: usize,
}

impl SpiAllocator {
    /// An empty allocator. `first_generation` should differ between incarnations (any octet from the caller's
    /// randomness), so that an agent that forgot everything does not start with the SPIs of its last life.
    pub fn new(member: MemberId, max_slots: u32, first_generation: u8) -> Self {
        Self {
            member,
            max_slots: max_slots.min(SLOTS_MAX),
            first_generation: first_generation.max(1),
            slots: HashMap::new(),
            segments: (0..maps_schema::segment::SEGMENTS)
                .map(|_| Segment::default())
                .collect(),
            in_use: 0,
        }
    }

    /// An SPI of this segment, in use from now on; `None` when all its slots are taken.
    pub fn reserve(&mut self, segment: SegmentId) -> Option<EspSpi> {
        self.reserve_where(segment, |_| true)
    }

    /// As [`SpiAllocator::reserve`], out of the slots that are `wanted`.
    pub fn reserve_where(&mut self, segment: SegmentId, wanted: impl Fn(u32) -> bool) -> Option<EspSpi> {
        let slot = self.take_slot(segment, wanted)?;
        let first = self.first_generation;
        let entry = self.slots.entry(slot).or_insert(Slot {
            generation: 0,
            holder: None,
        });
        entry.generation = if entry.generation == 0 {
            first
        } else {
            next_generation(entry.generation)
        };
        let member = u32::from(self.member.0.saturating_sub(1) & 0xf);
        let spi = EspSpi((u32::from(entry.generation) << 24) | (member << 20) | slot);
        entry.holder = Some(spi);
        self.in_use += 1;
        Some(spi)
    }

    /// Frees the SPI's slot. Returns false (and does nothing) where this SPI does not hold it.
    pub fn release(&mut self, spi: EspSpi) -> bool {
        let slot = maps_schema::sad::spi_slot(spi.0);
        match self.slots.get_mut(&slot) {
            Some(entry) if entry.holder == Some(spi) => {
                entry.holder = None;
                self.segments[usize::from(maps_schema::sad::spi_segment(spi.0))]
                    .freed
                    .push_back(slot);
                self.in_use -= 1;
                true
            }
            _ => false,
        }
    }

    /// A mirror learns of an SPI in use, whoever allocated it. Adopting one twice is no error.
    pub fn adopt(&mut self, spi: EspSpi) -> Result<(), AdoptError> {
        let slot = maps_schema::sad::spi_slot(spi.0);
        let generation = (spi.0 >> 24) as u8;
        if generation == 0 {
            return Err(AdoptError::Foreign(spi));
        }
        if slot >= self.max_slots {
            return Err(AdoptError::BeyondSlots {
                spi,
                slot,
                max_slots: self.max_slots,
            });
        }
        let known = self.slots.contains_key(&slot);
        let entry = self.slots.entry(slot).or_insert(Slot {
            generation,
            holder: None,
        });
        match entry.holder {
            Some(holder) if holder == spi => return Ok(()),
            Some(holder) => return Err(AdoptError::Occupied { spi, slot, holder }),
            None => {}
        }
        entry.generation = generation;
        entry.holder = Some(spi);
        self.in_use += 1;
        if known {
            // Known and free means that it waits in the queue. Queues are short, and a slot is adopted out of one
            // only after another member reused it.
            let freed = &mut self.segments[usize::from(maps_schema::sad::spi_segment(spi.0))].freed;
            freed.retain(|s| *s != slot);
        }
        Ok(())
    }

    /// Frees every SPI of these segments that was reserved and is not `installed`.
    pub fn release_where(&mut self, of: impl Fn(SegmentId) -> bool, installed: impl Fn(EspSpi) -> bool) {
        let unused = self
            .slots
            .values()
            .filter_map(|slot| slot.holder)
            .filter(|spi| of(SegmentId(maps_schema::sad::spi_segment(spi.0))) && !installed(*spi));
        let mut unused: Vec<EspSpi> = unused.collect();
        // The order in which slots are used again must not depend on a hash.
        unused.sort_unstable();
        for spi in unused {
            self.release(spi);
        }
    }

    /// Whether this SPI holds its slot.
    pub fn holds(&self, spi: EspSpi) -> bool {
        self.slots
            .get(&maps_schema::sad::spi_slot(spi.0))
            .is_some_and(|s| s.holder == Some(spi))
    }

    /// SPIs in use.
    pub fn in_use(&self) -> usize {
        self.in_use
    }

    fn take_slot(&mut self, segment: SegmentId, wanted: impl Fn(u32) -> bool) -> Option<u32> {
        let queue = &mut self.segments[usize::from(segment.0)];
        let slot_of = |fresh: u32| u32::from(segment.0) + 256 * fresh;
        // A slot that is already known was adopted, or taken out of its turn: it is in use, or it waits in the queue.
        while slot_of(queue.fresh) < self.max_slots && self.slots.contains_key(&slot_of(queue.fresh)) {
            queue.fresh += 1;
        }
        let fresh = (queue.fresh..)
            .map(slot_of)
            .take_while(|slot| *slot < self.max_slots);
        let mut free = fresh.filter(|slot| !self.slots.contains_key(slot));
        if let Some(slot) = free.find(|slot| wanted(*slot)) {
            return Some(slot);
        }
        let at = queue.freed.iter().position(|slot| wanted(*slot))?;
        queue.freed.remove(at)
    }
}

fn next_generation(generation: u8) -> u8 {
    if generation == u8::MAX { 1 } else { generation + 1 }
}
