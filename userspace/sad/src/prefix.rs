//! Address ranges as prefixes over mapped addresses.

use model::address::mapped;
use std::net::IpAddr;

/// A destination prefix over 128 bits. Ordered so that a prefix comes right before all that it contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    /// First address as a number.
    pub first: u128,
    /// Length in bits, 0 to 128.
    pub len: u8,
}

/// `::ffff:0:0/96`, which holds every IPv4 destination.
pub const MAPPED_IPV4: Prefix = Prefix {
    first: 0xffff << 32,
    len: 96,
};

impl Prefix {
    /// Last address of the prefix.
    pub const fn last(self) -> u128 {
        self.first | host_mask(self.len)
    }

    /// Whether `other` lies within this prefix (or is it).
    pub const fn contains(self, other: Prefix) -> bool {
        self.len <= other.len && other.first & !host_mask(self.len) == self.first
    }

    /// Whether it holds IPv4 destinations only.
    pub const fn is_ipv4(self) -> bool {
        MAPPED_IPV4.contains(self)
    }

    /// This prefix cut to `len` bits (at most its own length).
    pub const fn cut(self, len: u8) -> Prefix {
        Prefix {
            first: self.first & !host_mask(len),
            len,
        }
    }

    /// Octets in network order, as the map's key has them.
    pub const fn octets(self) -> [u8; 16] {
        self.first.to_be_bytes()
    }
}

const fn host_mask(len: u8) -> u128 {
    if len == 0 {
        u128::MAX
    } else {
        (1u128 << (128 - len as u32)).wrapping_sub(1)
    }
}

/// The address as a 128-bit number (IPv4 mapped).
pub fn number(address: IpAddr) -> u128 {
    u128::from_be_bytes(mapped(address))
}

/// The fewest prefixes that make up an inclusive range, by rising address; none where `first > last`.
pub fn split(first: u128, last: u128) -> Vec<Prefix> {
    let mut prefixes = Vec::new();
    let mut at = first;
    while at <= last {
        // The largest block that starts at `at` (by alignment) and ends by `last`.
        let mut bits = at.trailing_zeros().min(128);
        while bits > 0 {
            let span = if bits == 128 {
                u128::MAX
            } else {
                (1u128 << bits) - 1
            };
            if span <= last - at {
                break;
            }
            bits -= 1;
        }
        let prefix = Prefix {
            first: at,
            len: (128 - bits) as u8,
        };
        prefixes.push(prefix);
        match prefix.last().checked_add(1) {
            Some(next) => at = next,
            None => break,
        }
    }
    prefixes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v4(text: &str) -> u128 {
        number(text.parse().expect("test address"))
    }

    #[test]
    fn ipv4_any_is_the_mapped_prefix() {
        assert_eq!(split(v4("0.0.0.0"), v4("255.255.255.255")), vec![MAPPED_IPV4]);
    }

    #[test]
    fn everything_is_one_prefix() {
        assert_eq!(split(0, u128::MAX), vec![Prefix { first: 0, len: 0 }]);
    }

    #[test]
    fn an_ipv4_range_splits_at_powers_of_two() {
        let got: Vec<_> = split(v4("10.0.0.1"), v4("10.0.0.6"))
            .iter()
            .map(|p| (p.first - v4("10.0.0.0"), p.len - 96))
            .collect();
        assert_eq!(got, vec![(1, 32), (2, 31), (4, 31), (6, 32)]);
    }

    proptest! {
        #[test]
        fn split_covers_the_range_exactly_and_in_order(a in any::<u128>(), b in any::<u128>(), shift in 0u32..120) {
            let (first, last) = ((a >> shift).min(b >> shift), (a >> shift).max(b >> shift));
            let prefixes = split(first, last);
            prop_assert!(prefixes.len() <= 254);
            prop_assert_eq!(prefixes[0].first, first);
            prop_assert_eq!(prefixes.last().map(|p| p.last()), Some(last));
            for pair in prefixes.windows(2) {
                prop_assert_eq!(pair[0].last() + 1, pair[1].first);
            }
        }
    }
}
