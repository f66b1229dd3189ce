//! Packets that wait for an SA: few, not for long, and of bounded size. Those of policies without SA (`on_miss = "hold"`) wait by the counter
//! index of their connection, those that come before their SA (`early`) by its SPI.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use dataplane::Entry;
use model::{ChildSaChange, Instant, OutboundUse};

use super::Core;
use super::entry::EntryChange;

/// Packets of one connection, or of one SPI, that wait.
const PER_KEY: usize = 64;
/// Octets of all packets that wait.
const OCTETS: usize = 4 << 20;
/// A packet that waited longer is of no use to anybody: TCP has sent it again.
const AGE: Duration = Duration::from_secs(5);

struct Packet {
    since: Instant,
    ifindex: u32,
    octets: Vec<u8>,
}

/// All of them, by what they wait for.
#[derive(Default)]
pub struct Held {
    waiting: HashMap<u32, VecDeque<Packet>>,
    octets: usize,
    /// Packets that were given up: too many, too old.
    pub given_up: u64,
}

impl Held {
    /// Takes a packet, if there is room. Of one key the oldest gives way, so that what waits is what was sent last.
    pub fn put(&mut self, now: Instant, key: u32, ifindex: u32, octets: Vec<u8>) {
        if self.octets + octets.len() > OCTETS {
            self.expire(now);
        }
        if self.octets + octets.len() > OCTETS {
            self.given_up += 1;
            return;
        }
        self.octets += octets.len();
        let queue = self.waiting.entry(key).or_default();
        queue.push_back(Packet {
            since: now,
            ifindex,
            octets,
        });
        if queue.len() > PER_KEY
            && let Some(oldest) = queue.pop_front()
        {
            self.octets -= oldest.octets.len();
            self.given_up += 1;
        }
    }

    /// Gives up what has waited too long.
    pub fn expire(&mut self, now: Instant) {
        let (octets, given_up) = (&mut self.octets, &mut self.given_up);
        self.waiting.retain(|_, queue| {
            while let Some(oldest) = queue.pop_front_if(|p| now.since(p.since) >= AGE) {
                *octets -= oldest.octets.len();
                *given_up += 1;
            }
            !queue.is_empty()
        });
    }

    /// What waits for a key, in the order in which it came: interface and frame.
    pub fn take(&mut self, key: u32) -> impl Iterator<Item = (u32, Vec<u8>)> + use<> {
        let taken = self.waiting.remove(&key).unwrap_or_default();
        self.octets -= taken.iter().map(|p| p.octets.len()).sum::<usize>();
        taken.into_iter().map(|packet| (packet.ifindex, packet.octets))
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// For what something waits.
    pub fn keys(&self) -> impl Iterator<Item = u32> {
        self.waiting.keys().copied()
    }
}

impl Core {
    /// SAs came up: what waited for them goes through the programs again. A packet whose policy still has none comes back.
    pub(super) fn run_held_for(&mut self, changes: &[EntryChange]) {
        if self.held.is_empty() {
            return;
        }
        let now = crate::clock::now();
        self.held.expire(now);
        for change in changes {
            let spi_in = match change {
                EntryChange::Child(ChildSaChange::Install { record, outbound, .. })
                    if *outbound == OutboundUse::Now =>
                {
                    record.spi_in
                }
                EntryChange::Child(ChildSaChange::UseOutbound { spi_in }) => *spi_in,
                _ => continue,
            };
            let Some(entry) = self.sad.get(spi_in) else {
                continue;
            };
            let index = self.sad.connection_index(&entry.record.connection).unwrap_or(0);
            let slot = entry.slot();
            for (ifindex, octets) in self.held.take(u32::from(index)) {
                self.run_frame(Entry::Inside, slot, ifindex, &octets);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Instant = Instant(1_000_000_000);

    #[test]
    fn a_connection_holds_its_newest_packets_in_their_order() {
        let mut held = Held::default();
        for i in 0..100_u8 {
            held.put(T0, 3, 7, vec![i; 10]);
        }
        held.put(T0, 4, 7, vec![1; 10]);
        assert_eq!((held.given_up, held.octets), (36, 65 * 10));
        let first = held.take(3).map(|(_, octets)| octets[0]).collect::<Vec<_>>();
        assert_eq!(first, (36..100).collect::<Vec<_>>());
        assert_eq!(held.octets, 10);
        assert_eq!(held.take(3).count(), 0);
    }

    #[test]
    fn octets_and_age_are_bounded() {
        let mut held = Held::default();
        let most = OCTETS / 3000;
        for i in 0..most as u32 + 50 {
            held.put(T0, i / 60, 7, vec![0; 3000]);
        }
        assert_eq!((held.octets, held.given_up), (most * 3000, 50));
        held.expire(T0 + (AGE - Duration::from_millis(1)));
        assert!(held.octets > 0);
        // Room is made of what is too old.
        held.put(T0 + AGE, 9999, 7, vec![0; 3000]);
        assert_eq!(held.octets, 3000);
        assert_eq!(held.given_up as usize, 50 + most);
    }
}
