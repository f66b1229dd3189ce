//! SPIs of two members never collide, and a freed slot comes back with another SPI.

use model::{EspSpi, MemberId, SegmentId};
use proptest::prelude::*;
use sad::spi::{AdoptError, SpiAllocator};
use std::collections::HashSet;

/// xorshift64: reproducible, and the seed is in the assertion messages.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[test]
fn two_members_that_do_not_see_each_other_never_give_out_the_same_spi() {
    let seed = 0x6e5f_1c2d_3b4a_5968u64;
    let mut random = Random(seed);
    let mut members = [
        (SpiAllocator::new(MemberId(1), 1 << 16, 7), Vec::new()),
        (SpiAllocator::new(MemberId(2), 1 << 16, 7), Vec::new()),
    ];
    let mut given: [HashSet<EspSpi>; 2] = Default::default();
    let mut allocations = 0u32;
    while allocations < 2_000_000 {
        let who = (random.next() & 1) as usize;
        let (allocator, live) = &mut members[who];
        let full = live.len() > 40_000;
        if full || (random.next().is_multiple_of(3) && !live.is_empty()) {
            let at = (random.next() as usize) % live.len();
            let spi: EspSpi = live.swap_remove(at);
            assert!(allocator.release(spi), "seed {seed:x}: {spi} was live");
        } else if let Some(spi) = allocator.reserve(SegmentId((random.next() >> 8) as u8)) {
            assert!(
                !given[1 - who].contains(&spi),
                "seed {seed:x}: both members gave out {spi}"
            );
            given[who].insert(spi);
            live.push(spi);
            allocations += 1;
        }
    }
    for (allocator, live) in &members {
        let distinct: HashSet<_> = live.iter().collect();
        assert_eq!(distinct.len(), live.len(), "seed {seed:x}: an SPI is live twice");
        assert_eq!(allocator.in_use(), live.len());
    }
}

#[test]
fn an_spi_names_generation_member_slot_and_segment() {
    let mut allocator = SpiAllocator::new(MemberId(16), 1 << 20, 0x21);
    let spi = allocator.reserve(SegmentId(0xab)).expect("empty allocator");
    assert_eq!(spi, EspSpi(0x21f0_00ab));
    assert_eq!(allocator.reserve(SegmentId(0xab)), Some(EspSpi(0x21f0_01ab)));
}

#[test]
fn freed_slots_come_back_oldest_first_with_the_next_generation_that_is_never_zero() {
    let mut allocator = SpiAllocator::new(MemberId(1), 512, 254);
    let first = allocator.reserve(SegmentId(9)).expect("free");
    let second = allocator.reserve(SegmentId(9)).expect("free");
    assert_eq!((first, second), (EspSpi(0xfe00_0009), EspSpi(0xfe00_0109)));
    assert_eq!(
        allocator.reserve(SegmentId(9)),
        None,
        "512 slots are two per segment"
    );
    assert!(allocator.release(second));
    assert!(allocator.release(first));
    assert!(!allocator.release(first), "twice");
    assert_eq!(allocator.reserve(SegmentId(9)), Some(EspSpi(0xff00_0109)));
    assert!(allocator.release(EspSpi(0xff00_0109)));
    assert_eq!(allocator.reserve(SegmentId(9)), Some(EspSpi(0xff00_0009)));
    assert_eq!(
        allocator.reserve(SegmentId(9)),
        Some(EspSpi(0x0100_0109)),
        "255 is followed by 1"
    );
}

#[test]
fn a_mirror_keeps_away_from_slots_in_use_and_refuses_what_cannot_be() {
    let mut allocator = SpiAllocator::new(MemberId(2), 512, 1);
    let theirs = EspSpi(0x0500_0009);
    allocator.adopt(theirs).expect("free slot");
    allocator.adopt(theirs).expect("adopting twice is no error");
    assert_eq!(allocator.in_use(), 1);
    assert_eq!(allocator.reserve(SegmentId(9)), Some(EspSpi(0x0110_0109)));
    assert_eq!(
        allocator.adopt(EspSpi(0x0600_0009)),
        Err(AdoptError::Occupied {
            spi: EspSpi(0x0600_0009),
            slot: 9,
            holder: theirs
        })
    );
    assert!(matches!(
        allocator.adopt(EspSpi(0x0100_0200)),
        Err(AdoptError::BeyondSlots { slot: 512, .. })
    ));
    assert_eq!(allocator.adopt(EspSpi(9)), Err(AdoptError::Foreign(EspSpi(9))));
    assert!(allocator.release(theirs));
    assert_eq!(
        allocator.reserve(SegmentId(9)),
        Some(EspSpi(0x0610_0009)),
        "the generation after the adopted one"
    );
}

proptest! {
    /// Whatever is reserved, released and adopted: a slot has one holder, and all of a segment's slots can be had.
    #[test]
    fn no_slot_is_lost_or_given_twice(steps in proptest::collection::vec((0u8..3, any::<u16>()), 1..200)) {
        let mut allocator = SpiAllocator::new(MemberId(3), 256 * 8, 1);
        let mut live: Vec<EspSpi> = Vec::new();
        for (kind, number) in steps {
            match kind {
                0 => live.extend(allocator.reserve(SegmentId(1))),
                1 if !live.is_empty() => {
                    let spi = live.swap_remove(usize::from(number) % live.len());
                    prop_assert!(allocator.release(spi));
                }
                _ => {
                    let spi = EspSpi(0x2200_0001 + u32::from(number % 8) * 256);
                    let taken = live.iter().any(|l| l.0 & 0xfffff == spi.0 & 0xfffff);
                    let result = allocator.adopt(spi);
                    prop_assert_eq!(result.is_ok(), !taken || live.contains(&spi));
                    if result.is_ok() && !live.contains(&spi) {
                        live.push(spi);
                    }
                }
            }
        }
        while let Some(spi) = allocator.reserve(SegmentId(1)) {
            live.push(spi);
        }
        let slots: HashSet<u32> = live.iter().map(|s| s.0 & 0xfffff).collect();
        prop_assert_eq!(live.len(), 8);
        prop_assert_eq!(slots.len(), 8);
    }
}

#[test]
fn reservations_of_unfinished_exchanges_give_way_when_another_member_serves() {
    let mut here = SpiAllocator::new(MemberId(1), 1024, 1);
    let mut there = SpiAllocator::new(MemberId(2), 1024, 1);
    let installed = here.reserve(SegmentId(9)).expect("free");
    let promised = here.reserve(SegmentId(9)).expect("free");
    let elsewhere = here.reserve(SegmentId(10)).expect("free");
    // The other one takes over, knows nothing of the promise, and gives the slot to an SA of its own.
    there.adopt(installed).expect("a mirror");
    let theirs = there.reserve(SegmentId(9)).expect("free");
    assert!(here.adopt(theirs).is_err(), "the promise still holds the slot");
    here.release_where(|segment| segment == SegmentId(9), |spi| spi == installed);
    assert_eq!(here.adopt(theirs), Ok(()));
    assert!(here.holds(installed) && here.holds(elsewhere) && !here.holds(promised));
}
