//! Pools of addresses for peers that have none of their own in the protected network (RFC 7296 3.15).
//!
//! A pool is cut among the groups of segments that are owned as a whole: address number n belongs to group n mod groups. An IKE SA
//! gets addresses of its own group only, so two members never give one away twice, whatever they know of each other. Within
//! its part an identity has a preferred address, by hash: it gets the same one again, after a reconnection or after
//! everything was lost, unless somebody else has it.

use crate::config::Identity;
use crypto::sha256;
use std::net::IpAddr;

/// Addresses of a larger pool behind these are never given away.
const SIZE_MAX: u128 = 1 << 24;

/// Addresses for peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Name, unique.
    pub name: String,
    /// First address that is given away.
    pub first: IpAddr,
    /// How many there are.
    pub size: u32,
}

/// The part of every pool that an IKE SA's group has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolShare {
    /// Number of the group, below `of`.
    pub group: u8,
    /// How many groups there are.
    pub of: u8,
}

impl PoolShare {
    /// Everything.
    pub const WHOLE: Self = Self { group: 0, of: 1 };
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

impl Pool {
    /// The addresses of a network, but for its first one and, with IPv4, its last one. `None`: there are none left.
    pub fn of_network(name: &str, network: IpAddr, prefix_len: u8) -> Option<Self> {
        let bits = if network.is_ipv4() { 32 } else { 128 };
        let host_bits = u32::from(bits - prefix_len.min(bits));
        let all = 1u128.checked_shl(host_bits).unwrap_or(u128::MAX);
        let reserved = match (network.is_ipv4(), all) {
            (_, 1) => 0,
            (true, 2) => 0,
            (true, _) => 2,
            (false, _) => 1,
        };
        let size = (all - reserved).min(SIZE_MAX) as u32;
        let first = number(network) + u128::from(reserved > 0);
        (size > 0).then(|| Self {
            name: name.to_owned(),
            first: Self::address(network.is_ipv4(), first),
            size,
        })
    }

    fn address(v4: bool, number: u128) -> IpAddr {
        match v4 {
            true => IpAddr::V4((number as u32).into()),
            false => IpAddr::V6(number.into()),
        }
    }

    fn nth(&self, index: u32) -> IpAddr {
        Self::address(self.first.is_ipv4(), number(self.first) + u128::from(index))
    }

    /// Whether an address is one of the pool's.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.index(address).is_some()
    }

    fn index(&self, address: IpAddr) -> Option<u32> {
        let same_family = address.is_ipv4() == self.first.is_ipv4();
        let index = number(address).checked_sub(number(self.first))?;
        (same_family && index < u128::from(self.size)).then_some(index as u32)
    }

    /// An address for this identity out of a group's part: the one that it wants, else the one that it prefers, else the next that
    /// `is_free`. `None`: there is no free one.
    pub(crate) fn choose(
        &self,
        share: PoolShare,
        id: &Identity,
        wanted: Option<IpAddr>,
        is_free: impl Fn(IpAddr) -> bool,
    ) -> Option<IpAddr> {
        let of = u32::from(share.of.max(1));
        let group = u32::from(share.group);
        let own = |index: &u32| index % of == group;
        if let Some(wanted) = wanted
            && self.index(wanted).filter(own).is_some()
            && is_free(wanted)
        {
            return Some(wanted);
        }
        // Indexes of this group: group, group + of, ...
        let count = (self.size.saturating_sub(group)).div_ceil(of);
        let (kind, data) = id.to_wire();
        let digest = sha256(&[b"pool address", self.name.as_bytes(), &[0, kind], &data]);
        let start = digest
            .first_chunk::<8>()
            .map_or(0, |octets| u64::from_be_bytes(*octets));
        let start = start.checked_rem(u64::from(count))? as u32;
        (0..count)
            .map(|step| self.nth((start + step) % count * of + group))
            .find(|address| is_free(*address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn pool(text: &str, len: u8) -> Pool {
        Pool::of_network("p", text.parse().unwrap(), len).unwrap()
    }

    fn id(n: u32) -> Identity {
        Identity::parse(&format!("user{n}@example.org"))
    }

    #[test]
    fn a_network_gives_away_what_is_a_hosts() {
        for (network, len, first, size) in [
            ("10.9.0.0", 24, "10.9.0.1", 254),
            ("10.9.0.4", 30, "10.9.0.5", 2),
            ("10.9.0.4", 31, "10.9.0.4", 2),
            ("10.9.0.4", 32, "10.9.0.4", 1),
            ("0.0.0.0", 0, "0.0.0.1", 1 << 24),
            ("fd00::", 126, "fd00::1", 3),
            ("fd00::", 64, "fd00::1", 1 << 24),
        ] {
            let pool = pool(network, len);
            assert_eq!(
                (pool.first, pool.size),
                (first.parse().unwrap(), size),
                "{network}/{len}"
            );
        }
        let pool = pool("10.9.0.0", 30);
        let ours: Vec<bool> = (0..4).map(|n| pool.contains([10, 9, 0, n].into())).collect();
        assert_eq!(ours, [false, true, true, false]);
        assert!(!pool.contains("fd00::1".parse().unwrap()));
    }

    #[test]
    fn groups_never_give_away_the_same_address_and_together_they_give_away_all() {
        for of in [1, 2, 5, 16, 64] {
            let pool = pool("10.9.0.0", 26);
            let mut given = BTreeSet::new();
            for group in 0..of {
                let share = PoolShare { group, of };
                let mut own = BTreeSet::new();
                for n in 0.. {
                    let free = |address: IpAddr| !own.contains(&address);
                    let Some(address) = pool.choose(share, &id(n), None, free) else {
                        break;
                    };
                    assert!(pool.contains(address));
                    own.insert(address);
                }
                for address in own {
                    assert!(given.insert(address), "{address} twice with {of} groups");
                }
            }
            assert_eq!(given.len(), 62, "{of} groups");
        }
    }

    #[test]
    fn an_identity_gets_its_address_again_and_one_that_it_asks_for_if_it_is_this_groups() {
        let pool = pool("10.9.0.0", 24);
        let share = PoolShare { group: 1, of: 4 };
        let first = pool.choose(share, &id(1), None, |_| true).unwrap();
        assert_eq!(pool.choose(share, &id(1), None, |_| true), Some(first));
        let second = pool.choose(share, &id(1), None, |a| a != first).unwrap();
        assert_ne!(first, second);
        // Number 5 of the pool is 10.9.0.6: group 1's.
        let (own, others) = ("10.9.0.6".parse().unwrap(), "10.9.0.7".parse().unwrap());
        assert_eq!(pool.choose(share, &id(1), Some(own), |_| true), Some(own));
        assert_eq!(pool.choose(share, &id(1), Some(others), |_| true), Some(first));
        assert_eq!(pool.choose(share, &id(1), Some(own), |a| a != own), Some(first));
        assert_eq!(pool.choose(share, &id(1), None, |_| false), None);
        let tiny = Pool::of_network("p", "10.9.0.1".parse().unwrap(), 32).unwrap();
        assert_eq!(
            tiny.choose(share, &id(1), None, |_| true),
            None,
            "its only address is group 0's"
        );
    }
}
