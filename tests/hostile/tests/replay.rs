//! Every corpus through its target's body, and random octets beside it.

use hostile::BODIES;
use std::path::{Path, PathBuf};

/// Bodies that take a good part of a millisecond, or more, for an input.
const COSTLY: [&str; 6] = ["exchange", "peer", "member", "credential", "config", "control"];

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(name)
}

/// splitmix64: a test that fails prints its seed.
fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn files(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = corpus(name);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut all: Vec<_> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read(&path).unwrap())
        })
        .collect();
    all.sort();
    all
}

#[test]
fn every_corpus_is_replayed() {
    for (name, body) in BODIES {
        let files = files(name);
        assert!(!files.is_empty(), "{name} has no corpus");
        for (file, octets) in files {
            println!("{name}/{file}");
            body(&octets);
        }
    }
}

/// The corpus again, each file changed in a few places: what a fuzzer begins with.
#[test]
fn changed_corpora_do_no_harm() {
    for (name, body) in BODIES {
        let files = files(name);
        let rounds = if COSTLY.contains(&name) { 600 } else { 12_000 };
        let rounds = rounds / files.len() as u64 + 1;
        for (file, octets) in files {
            for seed in 0..rounds {
                println!("{name}/{file}, seed {seed}");
                let mut next = random(seed);
                let mut changed = octets.clone();
                for _ in 0..1 + next() % 4 {
                    if changed.is_empty() {
                        break;
                    }
                    let at = (next() % changed.len() as u64) as usize;
                    match next() % 3 {
                        0 => changed[at] = next() as u8,
                        1 => changed.truncate(at),
                        _ => changed.insert(at, next() as u8),
                    }
                }
                body(&changed);
            }
        }
    }
}

#[test]
fn random_octets_do_no_harm() {
    for (name, body) in BODIES {
        let rounds = if COSTLY.contains(&name) { 300 } else { 20_000 };
        for seed in 0..rounds {
            println!("{name}, seed {seed}");
            let mut next = random(seed);
            let octets: Vec<u8> = (0..next() % 300).map(|_| next() as u8).collect();
            body(&octets);
        }
    }
}
