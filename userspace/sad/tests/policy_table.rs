//! The policy table: against a search through all prefixes, also between any two stores of a change, with look-ups half done.

use datapath::headers::{self, Address};
use datapath::spd::{self, Changing, Table, holds, look_up};
use maps_schema::spd::{HALF_LEFT, SpdBucket, SpdEntry, SpdHead, SpdPlace};
use proptest::prelude::*;
use sad::policy_table::{Lengths, Memory, PolicyTable, TableError};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};

/// One store.
#[derive(Clone)]
enum Store {
    Way(u32, usize, u64),
    Stamp(u32, u64),
    Fill(u32, Box<SpdPlace>),
    Leave(u32),
    Lengths(Lengths, u64),
    Changes(u64),
}

#[derive(Default)]
struct Stores(VecDeque<Store>);

impl Memory for Stores {
    fn way(&mut self, bucket: u32, way: usize, word: u64) {
        self.0.push_back(Store::Way(bucket, way, word));
    }
    fn stamp(&mut self, place: u32, stamp: u64) {
        self.0.push_back(Store::Stamp(place, stamp));
    }
    fn fill(&mut self, place: u32, content: &SpdPlace) {
        self.0.push_back(Store::Fill(place, Box::new(*content)));
    }
    fn leave(&mut self, place: u32) {
        self.0.push_back(Store::Leave(place));
    }
    fn lengths(&mut self, of: Lengths, sum: u64) {
        self.0.push_back(Store::Lengths(of, sum));
    }
    fn changes(&mut self, count: u64) {
        self.0.push_back(Store::Changes(count));
    }
}

/// The arrays as a program sees them. Every access hands out the value of that moment, and may let some stores happen first.
struct Arrays {
    head: RefCell<SpdHead>,
    buckets: RefCell<Vec<SpdBucket>>,
    places: RefCell<Vec<SpdPlace>>,
    /// Stores to come.
    stores: RefCell<Stores>,
    /// Accesses until the first of them, and stores at each access from then on.
    wait: Cell<u32>,
    burst: Cell<usize>,
}

fn kept<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

impl Arrays {
    fn new(table: &PolicyTable, places: u32) -> Self {
        Self {
            head: RefCell::new(*table.head()),
            buckets: RefCell::new(vec![
                SpdBucket::default();
                (table.head().bucket_mask + 1) as usize
            ]),
            places: RefCell::new(vec![SpdPlace::default(); places as usize]),
            stores: RefCell::default(),
            wait: Cell::new(0),
            burst: Cell::new(0),
        }
    }

    fn step(&self) -> bool {
        let Some(store) = self.stores.borrow_mut().0.pop_front() else {
            return false;
        };
        match store {
            Store::Way(bucket, way, word) => self.buckets.borrow_mut()[bucket as usize].ways[way] = word,
            Store::Stamp(place, stamp) => self.places.borrow_mut()[place as usize].stamp = stamp,
            Store::Fill(place, content) => {
                let place = &mut self.places.borrow_mut()[place as usize];
                *place = SpdPlace {
                    stamp: place.stamp,
                    ..*content
                };
            }
            Store::Leave(place) => {
                let place = &mut self.places.borrow_mut()[place as usize];
                (place.half, place.length) = (HALF_LEFT, 0);
            }
            Store::Lengths(Lengths::V4, sum) => self.head.borrow_mut().lengths_v4 = sum,
            Store::Lengths(Lengths::V6(half), sum) => self.head.borrow_mut().lengths_v6[half as usize] = sum,
            Store::Changes(count) => self.head.borrow_mut().changes = count,
        }
        true
    }

    fn settle(&self) {
        while self.step() {}
    }

    fn access(&self) {
        match self.wait.get() {
            0 => {
                for _ in 0..self.burst.get() {
                    self.step();
                }
            }
            left => self.wait.set(left - 1),
        }
    }
}

impl Table for Arrays {
    fn head(&self) -> Option<&SpdHead> {
        Some(kept(*self.head.borrow()))
    }
    fn bucket(&self, at: u32) -> Option<&SpdBucket> {
        self.access();
        self.buckets.borrow().get(at as usize).map(|bucket| kept(*bucket))
    }
    fn place(&self, at: u32) -> Option<&SpdPlace> {
        self.access();
        self.places.borrow().get(at as usize).map(|place| kept(*place))
    }
    fn probe(&self, destination: Address, half: u32, lengths: u64) -> u32 {
        self.access();
        spd::probe(self, destination, half, lengths)
    }
}

const MULTIPLIERS: [u64; 6] = [
    0x9e37_79b9_7f4a_7c15,
    0xbf58_476d_1ce4_e5b9,
    0x94d0_49bb_1331_11eb,
    0xd6e8_feb8_6659_fd93,
    0xa076_1d64_78bd_642f,
    0xe703_7ed1_a0b4_28db,
];
const PLACES: u32 = 32;

fn entry(mark: u32) -> SpdEntry {
    let mut entry = SpdEntry::default();
    entry.rules[0].slot = mark;
    entry
}

type Model = BTreeMap<(u32, [u8; 16]), u32>;

/// The rules of the longest prefix, found by looking at all.
fn longest(model: &Model, destination: u128) -> Option<u32> {
    let is_v4 = |first: u128| first >> 32 == 0xffff;
    let fits = |len: u32, first: u128| {
        (len == 0 || (destination ^ first) >> (128 - len) == 0)
            && (len >= 96 && is_v4(first)) == is_v4(destination)
    };
    let all = model
        .iter()
        .filter(|((len, first), _)| fits(*len, u128::from_be_bytes(*first)));
    all.max_by_key(|((len, _), _)| *len).map(|(_, mark)| *mark)
}

#[derive(Clone, Debug)]
enum Change {
    Put(u32, u128),
    Delete(u32, u128),
}

/// Few addresses, so that prefixes contain each other; IPv4 and IPv6.
fn address() -> impl Strategy<Value = u128> {
    prop_oneof![
        (0u128..4, 0u128..4).prop_map(|(a, b)| 0xffff_0a00_0000 | a << 16 | b),
        (0u128..4, 0u128..4, 0u128..2).prop_map(|(a, b, c)| 0xfd << 120 | a << 64 | b | c << 120),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    let length = prop_oneof![Just(0u32), 1u32..=128, 96u32..=128];
    let first = |(len, address): (u32, u128)| {
        let v4 = address >> 32 == 0xffff;
        let len = if v4 { len.max(96) } else { len };
        let mask = if len == 0 { 0 } else { u128::MAX << (128 - len) };
        (len, address & mask)
    };
    (any::<bool>(), length, address()).prop_map(move |(put, length, address)| {
        let (len, first) = first((length, address));
        if put {
            Change::Put(len, first)
        } else {
            Change::Delete(len, first)
        }
    })
}

fn apply(table: &mut PolicyTable, model: &mut Model, stores: &mut Stores, change: &Change, mark: u32) {
    match change {
        Change::Put(len, first) => {
            let put = table.put(stores, *len, first.to_be_bytes(), &entry(mark));
            match put {
                Ok(()) => {
                    model.insert((*len, first.to_be_bytes()), mark);
                }
                Err(error) => assert!(matches!(
                    error,
                    TableError::Full(PLACES) | TableError::Crowded { .. }
                )),
            }
        }
        Change::Delete(len, first) => {
            table.delete(stores, *len, first.to_be_bytes());
            model.remove(&(*len, first.to_be_bytes()));
        }
    }
}

/// What a packet gets: the mark of its rules, read in full.
fn get(arrays: &Arrays, destination: u128) -> Result<Option<u32>, Changing> {
    let found = look_up(arrays, headers::address(&destination.to_be_bytes()))?;
    let Some(policy) = found else {
        return Ok(None);
    };
    let mark = policy.entry.rules[0].slot;
    if holds(arrays, &policy) {
        Ok(Some(mark))
    } else {
        Err(Changing)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// After every change, each destination has the rules of its longest prefix; and so it is for who finds the table in memory.
    #[test]
    fn longest_prefix(changes in prop::collection::vec(change(), 1..60), asked in prop::collection::vec(address(), 8)) {
        let mut table = PolicyTable::new(PLACES, MULTIPLIERS);
        let arrays = Arrays::new(&table, PLACES);
        let mut model = Model::new();
        for (mark, change) in (1..).zip(&changes) {
            apply(&mut table, &mut model, &mut arrays.stores.borrow_mut(), change, mark);
            arrays.settle();
            for destination in &asked {
                prop_assert_eq!(get(&arrays, *destination), Ok(longest(&model, *destination)), "{:?}", change);
            }
            if mark % 16 == 0 {
                let (buckets, places) = (arrays.buckets.borrow(), arrays.places.borrow());
                table = PolicyTable::found(
                    *arrays.head.borrow(),
                    PLACES,
                    |at| buckets[at as usize],
                    |at| places[at as usize],
                );
            }
        }
        let mut all: Vec<_> = table.prefixes().collect();
        all.sort_unstable();
        prop_assert_eq!(all, model.into_keys().collect::<Vec<_>>());
    }

    /// Stores of several changes happen while a look-up is under way, at any of its reads: it gets what counted before the first, after
    /// one of them, or is told that it cannot tell.
    #[test]
    fn never_a_mixture(
        before in prop::collection::vec(change(), 0..40),
        during in prop::collection::vec(change(), 1..4),
        destination in address(),
        wait in 0u32..12,
        burst in 1usize..24,
    ) {
        let mut table = PolicyTable::new(PLACES, MULTIPLIERS);
        let arrays = Arrays::new(&table, PLACES);
        let mut model = Model::new();
        let mut mark = 0;
        for change in &before {
            mark += 1;
            apply(&mut table, &mut model, &mut arrays.stores.borrow_mut(), change, mark);
            arrays.settle();
        }
        let mut right = vec![longest(&model, destination)];
        for change in &during {
            mark += 1;
            apply(&mut table, &mut model, &mut arrays.stores.borrow_mut(), change, mark);
            right.push(longest(&model, destination));
        }
        arrays.wait.set(wait);
        arrays.burst.set(burst);
        if let Ok(got) = get(&arrays, destination) {
            prop_assert!(right.contains(&got), "{:?} is none of {:?}", got, right);
        }
        arrays.burst.set(0);
        arrays.settle();
        prop_assert_eq!(get(&arrays, destination), Ok(longest(&model, destination)));
    }
}

/// More prefixes than buckets have room for lie behind their own; when those go, nobody looks there any more.
#[test]
fn full_tables() {
    let mut table = PolicyTable::new(PLACES, MULTIPLIERS);
    let arrays = Arrays::new(&table, PLACES);
    let mut model = Model::new();
    let net = |n: u128| 0xffff_0a00_0000 | n << 8;
    for n in 0..u128::from(PLACES) {
        let change = Change::Put(120, net(n));
        apply(
            &mut table,
            &mut model,
            &mut arrays.stores.borrow_mut(),
            &change,
            n as u32 + 1,
        );
    }
    arrays.settle();
    assert_eq!(model.len(), PLACES as usize, "a full table has room for all");
    for n in 0..u128::from(PLACES) {
        assert_eq!(get(&arrays, net(n) | 9), Ok(Some(n as u32 + 1)));
    }
    let more = table.put(
        &mut *arrays.stores.borrow_mut(),
        120,
        net(99).to_be_bytes(),
        &entry(1),
    );
    assert_eq!(more, Err(TableError::Full(PLACES)));
    for n in 0..u128::from(PLACES) {
        table.delete(&mut *arrays.stores.borrow_mut(), 120, net(n).to_be_bytes());
    }
    arrays.settle();
    assert!(arrays.buckets.borrow().iter().all(|b| *b == SpdBucket::default()));
    assert!(
        arrays
            .places
            .borrow()
            .iter()
            .all(|p| p.entry == SpdEntry::default())
    );
    assert_eq!(arrays.head.borrow().lengths_v4, 0);
}
