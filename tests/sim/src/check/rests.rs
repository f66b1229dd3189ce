//! No outbound number is in what two members have of one tainted lease (ADR 20). The mirrors' comparison cannot see that, since the parts of the
//! two of a planned takeover differ by design; and R4 sees it only once both have used a number, which takes a minute of traffic.
//!
//! What counts is what the programs of a host would give out: limits in its maps, and owner words that name it in the epoch of these limits.
//! At a distance of one epoch or more tainted limits hold nothing. It holds at every instant, so it is looked at whenever a host's maps or
//! words were written.

use crate::member::Member;
use datapath::limits::is_tainted;
use std::collections::BTreeMap;

/// What a member may still give out of a tainted lease, by the SA's key.
pub type Parts = BTreeMap<u64, Part>;

/// First and last number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// SPI in packets, for a reader.
    pub spi: u32,
    /// First number.
    pub first: u64,
    /// Last number.
    pub last: u64,
}

/// The parts that a member has. An owner whose word has expired has its parts too: it may be confirmed again.
pub fn parts(member: &Member) -> Parts {
    let mut parts = Parts::new();
    for entry in member.sad.iter() {
        let Some(lease) = member.plane.lease(entry.slot()) else {
            continue;
        };
        let limits = &lease.limits;
        let word = member.plane.word(entry.segment().0);
        let here = word.owner == member.me.0 && word.epoch == limits.epoch as u16;
        if is_tainted(limits) && here && limits.floor < limits.limit {
            let part = Part {
                spi: lease.spi,
                first: limits.floor + 1,
                last: limits.limit,
            };
            parts.insert(lease.key, part);
        }
    }
    parts
}

/// The first SA of which both have a number, in words.
pub fn overlap(one: &Parts, other: &Parts) -> Option<String> {
    one.iter().find_map(|(key, a)| {
        let b = other.get(key)?;
        let (first, last) = (a.first.max(b.first), a.last.min(b.last));
        (first <= last).then(|| {
            format!(
                "SPI {:08x}: both have {first} to {last} of a tainted lease, one of {} to {}, the other of {} to {}",
                a.spi, a.first, a.last, b.first, b.last
            )
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(first: u64, last: u64) -> Parts {
        Parts::from([(7, Part { spi: 1, first, last })])
    }

    #[test]
    fn parts_that_touch_are_disjoint_and_one_number_in_both_is_too_many() {
        assert_eq!(overlap(&of(1, 10), &of(11, 20)), None);
        assert_eq!(overlap(&of(11, 20), &of(1, 10)), None);
        let text = overlap(&of(1, 11), &of(11, 20)).expect("11 is in both");
        assert!(text.contains("both have 11 to 11"), "{text}");
        assert_eq!(overlap(&of(1, 10), &Parts::new()), None);
        let another = Parts::from([(8, of(1, 10)[&7])]);
        assert_eq!(overlap(&of(1, 10), &another), None, "another key");
    }
}
