//! The tables.

mod cbc;
mod clear;
mod handover;
mod inbound;
mod jumbo;
mod lenient;
mod lifetimes;
mod malformed;
mod marks;
mod moved;
mod neighbour;
mod outbound;
mod per_cpu;
mod ports;
mod segments;
mod sizes;
mod steer;
mod transport;
mod transport_options;
mod ttl;
mod v6;
mod virtual_mac;
mod vlan;
mod wraps;

use crate::case::Case;

/// The tables.
const TABLES: [fn() -> Vec<Case>; 24] = [
    inbound::cases,
    outbound::cases,
    per_cpu::cases,
    steer::cases,
    ports::cases,
    vlan::cases,
    v6::cases,
    moved::cases,
    neighbour::cases,
    virtual_mac::cases,
    handover::cases,
    lenient::cases,
    sizes::cases,
    jumbo::cases,
    marks::cases,
    segments::cases,
    lifetimes::cases,
    malformed::cases,
    wraps::cases,
    cbc::cases,
    clear::cases,
    ttl::cases,
    transport::cases,
    transport_options::cases,
];

/// Every case.
pub fn all() -> Vec<Case> {
    TABLES.iter().flat_map(|table| table()).collect()
}

/// The first case of every table for each program in it: something of everything, for where a case takes long.
pub fn few() -> Vec<Case> {
    chosen(|case| case.program, |at, _| at == 0)
}

/// How many cases of a table may end alike in [`some`].
const ALIKE: usize = 8;

/// Every verdict of every table, [`ALIKE`] times for each program: of rows that differ in a size or an offset only, some from the first to
/// the last one. For emulated kernels, where the whole takes an hour.
pub fn some() -> Vec<Case> {
    chosen(
        |case| (case.program, Some((case.verdict, case.action))),
        |at, all| all <= ALIKE || (0..ALIKE).any(|n| n * (all - 1) / (ALIKE - 1) == at),
    )
}

/// Of the cases of a table that `alike` says the same of: those at the places that are wanted, `(place, how many there are)`.
fn chosen<K: PartialEq>(alike: impl Fn(&Case) -> K, wanted: impl Fn(usize, usize) -> bool) -> Vec<Case> {
    let mut chosen = Vec::new();
    for table in TABLES {
        let cases = table();
        let kinds: Vec<K> = cases.iter().map(&alike).collect();
        for (at, case) in cases.into_iter().enumerate() {
            let before = kinds[..at].iter().filter(|kind| **kind == kinds[at]).count();
            let all = kinds.iter().filter(|kind| **kind == kinds[at]).count();
            if wanted(before, all) {
                chosen.push(case);
            }
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// What rows of the tables end in.
    fn ends(cases: &[Case]) -> BTreeSet<String> {
        let end = |case: &Case| format!("{:?} {:?} {:?}", case.program, case.verdict, case.action);
        cases.iter().map(end).collect()
    }

    #[test]
    fn a_choice_leaves_out_repetition_only() {
        let (all, some, few) = (all(), some(), few());
        assert_eq!(ends(&some), ends(&all));
        assert!(some.len() * 3 < all.len(), "{} of {}", some.len(), all.len());
        assert!(few.len() >= TABLES.len() && few.len() < 60, "{}", few.len());
    }
}
