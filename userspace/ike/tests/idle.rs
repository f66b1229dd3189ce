//! What an IKE SA costs that has nothing to do: octets of memory, and no work at all.

mod world;

use ike::{Engine, Input};
use model::{EspSpi, IkeSpi, Instant, SecretBytes};
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use world::*;

/// Octets that are allocated now, as the C library rounds them: a word in front, multiples of 16, 32 at least.
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

struct Counting;

fn rounded(size: usize) -> usize {
    (size + 8).next_multiple_of(16).max(32)
}

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(rounded(layout.size()), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(rounded(layout.size()), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// As many as a test without optimisation makes in a moment; the cost of each does not depend on it.
const COUNT: u64 = 20_000;
const LIMIT: usize = 2048;

fn varint(mut value: u64) -> Vec<u8> {
    let mut octets = Vec::new();
    while value >= 0x80 {
        octets.push(value as u8 | 0x80);
        value >>= 7;
    }
    octets.push(value as u8);
    octets
}

/// The same record with another number in place of this one: both have varints of one length.
fn replaced(record: &[u8], old: u64, new: u64) -> Vec<u8> {
    let (old, new) = (varint(old), varint(new));
    assert_eq!(old.len(), new.len());
    let mut out = record.to_vec();
    let mut at = 0;
    while at + old.len() <= out.len() {
        if out[at..at + old.len()] == old {
            out[at..at + old.len()].copy_from_slice(&new);
            at += old.len();
        } else {
            at += 1;
        }
    }
    out
}

#[test]
fn a_hundred_thousand_idle_ike_sas_cost_two_kibibytes_each_and_no_look() {
    let mut world = World::with(1, |_, connection| {
        connection.dpd_delay = None;
        connection.retransmit.initial = Duration::from_millis(500);
    });
    for side in [A, B] {
        world.sides[side].around.next_esp = 0x8100_0000 + side as u32 * 0x1_0000;
    }
    world.initiate(A);
    world.settle();
    world.assert_up(1);
    for side in [A, B] {
        let (spi, record) = world.sides[side].journal.iter().next().unwrap();
        let (spi, record) = (*spi, record.expose().to_vec());
        let child = world.spi_in(side);
        let records: Vec<_> = (0..COUNT)
            .map(|n| {
                let new = IkeSpi((spi.0 & !0xff_ffff) | n);
                let record = replaced(&record, spi.0, new.0);
                let record = replaced(&record, u64::from(child.0), u64::from(0x9000_0000 + n as u32));
                (new, record)
            })
            .collect();
        let config = world.sides[side].engine.config().clone();
        let around = &mut world.sides[side].around;
        let before = ALLOCATED.load(Ordering::Relaxed);
        let mut engine = Engine::new(config);
        let mut mirror: BTreeMap<IkeSpi, SecretBytes> = BTreeMap::new();
        let start = Instant::from_millis(10_000);
        for (spi, record) in records {
            let record = SecretBytes::new(record);
            engine.adopt(start, spi, &record).unwrap();
            mirror.insert(spi, record);
        }
        engine.resume(start, around);
        while engine.poll().is_some() {}
        let fresh = ALLOCATED.load(Ordering::Relaxed) - before;
        // What is kept for repetitions goes after some minutes.
        let later = start + Duration::from_secs(600);
        let mut turns = 0;
        while engine.next_timeout().is_some_and(|at| at <= later) {
            engine.handle(Input::Timeout { now: later }, around);
            while engine.poll().is_some() {}
            turns += 1;
            assert!(turns < COUNT, "it never rests");
        }
        let with_mirror = ALLOCATED.load(Ordering::Relaxed) - before;
        let record = mirror.values().next().unwrap().len();
        drop(mirror);
        let alone = ALLOCATED.load(Ordering::Relaxed) - before;
        let each = |octets: usize| octets / COUNT as usize;
        println!(
            "{}: {} octets each at first, {} at rest, {} of these in the engine; the record has {record}",
            world.sides[side].name,
            each(fresh),
            each(with_mirror),
            each(alone),
        );
        assert!(each(with_mirror) <= LIMIT, "{} octets each", each(with_mirror));
        assert_eq!(engine.ike_sa_count() as u64, COUNT);
        assert_eq!(
            engine
                .ike_spi_of_child(EspSpi(0x9000_0000))
                .map(|spi| spi.0 & 0xff_ffff),
            Some(0)
        );
        // Nobody is looked at before its rekey.
        assert!(
            engine
                .next_timeout()
                .is_none_or(|at| at > later + Duration::from_secs(60))
        );
    }
}
