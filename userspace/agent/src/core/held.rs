//! Packets of policies without SA that wait for one (`on_miss = "hold"`): few, not for long, and of bounded size.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use dataplane::Entry;
use model::{ChildSaChange, Instant, OutboundUse};

use super::Core;
use super::entry::EntryChange;

/// Packets of one connection that wait.
const PER_CONNECTION: usize = 64;
/// Octets of all packets that wait.
const OCTETS: usize = 4 << 20;
/// A packet that waited longer is of no use to anybody: TCP has sent it again.
const AGE: Duration = Duration::from_secs(5);

struct Packet {
    since: Instant,
    ifindex: u32,
    octets: Vec<u8>,
}

/// All of them, by the counter index of their connection.
#[derive(Default)]
pub struct Held {
    waiting: HashMap<u32, VecDeque<Packet>>,
    octets: usize,
    /// Packets that were given up: too many, too old.
    pub given_up: u64,
}

impl Held {
    /// Takes a packet, if there is room. Of one connection the oldest gives way, so that what waits is what was sent last.
    pub fn put(&mut self, now: Instant, connection: u32, ifindex: u32, octets: Vec<u8>) {
        if self.octets + octets.len() > OCTETS {
            self.expire(now);
        }
        if self.octets + octets.len() > OCTETS {
            self.given_up += 1;
            return;
        }
        self.octets += octets.len();
        let queue = self.waiting.entry(connection).or_default();
        queue.push_back(Packet {
            since: now,
            ifindex,
            octets,
        });
        if queue.len() > PER_CONNECTION
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

    /// What waits for a connection, in the order in which it came.
    fn take(&mut self, connection: u32) -> VecDeque<Packet> {
        let taken = self.waiting.remove(&connection).unwrap_or_default();
        self.octets -= taken.iter().map(|p| p.octets.len()).sum::<usize>();
        taken
    }
}

impl Core {
    /// SAs came up: what waited for them goes through the programs again. A packet whose policy still has none comes back.
    pub(super) fn run_held_for(&mut self, changes: &[EntryChange]) {
        if self.held.waiting.is_empty() {
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
            for packet in self.held.take(u32::from(index)) {
                self.run_frame(Entry::Inside, slot, packet.ifindex, &packet.octets);
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
        let taken = held.take(3);
        let first = taken.iter().map(|p| p.octets[0]).collect::<Vec<_>>();
        assert_eq!(first, (36..100).collect::<Vec<_>>());
        assert_eq!(held.octets, 10);
        assert!(held.take(3).is_empty());
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
