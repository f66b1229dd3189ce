//! What members say to each other, read and written again: records of the synch channel, journal entries, snapshots, patches.

use crate::choices::Choices;
use crate::entry::{
    EntryChange, decode_entry, decode_snapshot, encode_brief, encode_entry, encode_snapshot, encode_tail,
};
use cluster::message::{Message, RECORD_MAX, VERSION};
use cluster::patch;
use model::{IkeSpi, SecretBytes};
use std::collections::BTreeMap;

/// The first octet says what the others are.
pub fn synch(octets: &[u8]) {
    let Some((kind, octets)) = octets.split_first() else {
        return;
    };
    match kind % 4 {
        0 => record(octets),
        1 => entry(octets),
        2 => snapshot(octets),
        _ => patched(octets),
    }
}

fn record(octets: &[u8]) {
    let Ok(message) = Message::decode(octets) else {
        return;
    };
    // What an older format says can be said in the newest one.
    let written = message.encode(VERSION);
    if written.len() > RECORD_MAX {
        return;
    }
    let again = Message::decode(&written).map(|message| message.encode(VERSION));
    assert_eq!(again, Ok(written), "what was written can be read");
}

/// Records that a member holds before an entry comes.
fn before() -> BTreeMap<IkeSpi, SecretBytes> {
    let long: Vec<u8> = (0..2000_u32).map(|at| ((at * at) >> 3) as u8).collect();
    BTreeMap::from([
        (IkeSpi(1), SecretBytes::new(long)),
        (IkeSpi(2), SecretBytes::new(vec![7; 100])),
        (IkeSpi(3), SecretBytes::default()),
    ])
}

fn entry(octets: &[u8]) {
    let before = before();
    let Ok(changes) = decode_entry(octets, &before) else {
        return;
    };
    let whole = encode_entry(&changes);
    let again = decode_entry(&whole, &BTreeMap::new()).expect("what was written can be read");
    assert_eq!(encode_entry(&again), whole);
    if let Some(brief) = encode_brief(&changes, |spi| before.get(&spi)) {
        let again = decode_entry(&brief, &before).expect("what was written briefly can be read");
        assert_eq!(encode_entry(&again), whole, "the brief form says the same");
    }
    let puts = changes.iter().filter_map(EntryChange::as_put);
    assert!(
        puts.map(|(_, record)| record.len())
            .all(|length| length <= RECORD_MAX.max(octets.len()))
    );
}

fn snapshot(octets: &[u8]) {
    let Ok((snapshot, tail)) = decode_snapshot(octets) else {
        return;
    };
    let mut written = encode_snapshot(&snapshot);
    encode_tail(&mut written, &tail);
    let (snapshot, tail) = decode_snapshot(&written).expect("what was written can be read");
    let mut again = encode_snapshot(&snapshot);
    encode_tail(&mut again, &tail);
    assert_eq!(again, written);
}

/// A record, and another one that is written against it, or a patch that comes from elsewhere.
fn patched(octets: &[u8]) {
    let mut choices = Choices::new(octets);
    let base = choices.some();
    let other = choices.rest();
    if let Ok(record) = patch::apply(base, other) {
        assert!(record.len() <= RECORD_MAX);
    }
    // With the right fingerprint in front, which no fuzzer finds.
    let made = patch::make(base, base);
    let forged = [&made.expose()[..8], other].concat();
    if let Ok(record) = patch::apply(base, &forged) {
        assert!(record.len() <= RECORD_MAX);
    }
    let made = patch::make(base, other);
    let again = patch::apply(base, made.expose()).map(|record| record.expose().to_vec());
    assert_eq!(again.as_deref(), Ok(other));
}
