//! Raises under way: idempotent by (SA direction, version), sent again until everybody asked has acknowledged.

use crate::message::{RaiseItem, RaiseKey, SetMember};
use crate::rules::{self, Ack, EpochId};
use crate::rules_doubt::Doubt;
use model::Instant;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

struct Open {
    item: RaiseItem,
    version: u64,
    /// Version of the first raise of this SA direction since all members agreed on it: one that this raise superseded may
    /// be armed here and there.
    first: u64,
    missing: BTreeSet<SetMember>,
    sent: Instant,
    since: Instant,
}

/// The owner's raises.
#[derive(Default)]
pub struct Raises {
    version: u64,
    open: BTreeMap<RaiseKey, Open>,
}

impl Raises {
    /// Opens a raise; an older one of the same SA direction is superseded. Returns its version.
    pub fn open(&mut self, now: Instant, item: RaiseItem, asked: BTreeSet<SetMember>) -> u64 {
        self.version += 1;
        let version = self.version;
        let key = item.key();
        let before = self.open.get(&key);
        let (first, since) = before.map_or((version, now), |open| (open.first, open.since));
        self.open.insert(
            key,
            Open {
                item,
                version,
                first,
                missing: asked,
                sent: now,
                since,
            },
        );
        version
    }

    /// The last version given out.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Gives what is open new versions, above those that a snapshot stands for, and has it sent again.
    pub fn renumber(&mut self) {
        for open in self.open.values_mut() {
            self.version += 1;
            open.version = self.version;
            open.sent = Instant(0);
        }
    }

    /// An acknowledgement of one version. Returns the item where it was the last one missing.
    pub fn acknowledge(
        &mut self,
        now: Instant,
        epoch: EpochId,
        key: RaiseKey,
        ack: &Ack,
    ) -> Option<RaiseItem> {
        let open = self.open.get_mut(&key)?;
        if !rules::ack_counts(epoch, &open.missing, open.version, ack) {
            if ack.epoch == epoch && open.missing.contains(&ack.from) && ack.version >= open.first {
                // Of a raise that was superseded meanwhile: the member is not silent.
                open.since = now;
            }
            return None;
        }
        open.missing.remove(&ack.from);
        if open.missing.is_empty() {
            self.open.remove(&key).map(|open| open.item)
        } else {
            None
        }
    }

    /// Versions up to this one are armed by everybody who was asked.
    pub fn settled(&self) -> u64 {
        rules::settled(self.open.values().map(|open| open.first), self.version)
    }

    /// Raises to send again, by whom they lack: not acknowledged for `interval`.
    pub fn due(&mut self, now: Instant, interval: Duration) -> BTreeMap<SetMember, Vec<(u64, RaiseItem)>> {
        let mut due: BTreeMap<SetMember, Vec<(u64, RaiseItem)>> = BTreeMap::new();
        for open in self.open.values_mut() {
            if now.since(open.sent) >= interval {
                open.sent = now;
                for member in &open.missing {
                    due.entry(*member).or_default().push((open.version, open.item));
                }
            }
        }
        due
    }

    /// Members that have owed an acknowledgement for `limit`. A raise is never forgotten: it may be armed at some of them.
    pub fn overdue(&self, now: Instant, limit: Duration) -> BTreeSet<SetMember> {
        self.open
            .values()
            .filter(|open| now.since(open.since) >= limit)
            .flat_map(|open| open.missing.iter().copied())
            .collect()
    }

    /// This member did not run for a while: nobody has owed anything for longer than from now on.
    pub fn restart_clocks(&mut self, now: Instant) {
        for open in self.open.values_mut() {
            open.since = now;
        }
    }

    /// Nobody is left to ask: all open items.
    pub fn take_all(&mut self) -> Vec<RaiseItem> {
        std::mem::take(&mut self.open)
            .into_values()
            .map(|open| open.item)
            .collect()
    }

    /// Somebody more has to acknowledge what is open (a member starts to join).
    pub fn ask_also(&mut self, member: SetMember) {
        for open in self.open.values_mut() {
            open.missing.insert(member);
        }
    }

    /// Somebody need not acknowledge any more. Returns what is complete by that.
    pub fn excuse(&mut self, member: SetMember) -> Vec<RaiseItem> {
        let mut complete = Vec::new();
        self.open.retain(|_, open| {
            open.missing.remove(&member);
            if open.missing.is_empty() {
                complete.push(open.item);
            }
            !open.missing.is_empty()
        });
        complete
    }

    /// SA directions with a raise under way.
    pub fn keys(&self) -> Vec<RaiseKey> {
        self.open.keys().copied().collect()
    }

    /// Whether a raise of this SA direction is under way.
    pub fn is_open(&self, key: &RaiseKey) -> bool {
        self.open.contains_key(key)
    }

    /// Raises that are not acknowledged.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

/// A standby's memory of raises: only rising versions are armed, and those of which it is not known that everybody has
/// armed them are in doubt.
#[derive(Default)]
pub struct ArmedRaises {
    /// Versions up to this one are part of the snapshot.
    through: u64,
    versions: HashMap<RaiseKey, u64>,
    /// Up to here everybody has armed what was asked.
    settled: u64,
    /// SA directions that others may have differently.
    doubts: BTreeMap<RaiseKey, Doubt>,
}

/// Directions remembered at most; more SAs than slots exist cannot be.
const ARMED_MAX: usize = 1 << 21;

impl ArmedRaises {
    /// Whether this version is to be armed: it is not older than one armed before.
    pub fn wanted(&self, key: &RaiseKey, version: u64) -> bool {
        version > self.through && self.versions.get(key).is_none_or(|armed| version >= *armed)
    }

    /// It is about to be armed.
    pub fn doubt(&mut self, key: RaiseKey, version: u64) {
        let doubt = Doubt::Version(version);
        if doubt.remains(self.settled) {
            self.doubts.insert(key, doubt);
        } else {
            self.doubts.remove(&key);
        }
    }

    /// Everybody has armed what was asked up to `version`.
    pub fn settle(&mut self, version: u64) {
        if version > self.settled {
            self.settled = version;
            self.doubts.retain(|_, doubt| doubt.remains(version));
        }
    }

    /// SA directions whose limits other members may have differently.
    pub fn doubtful(&self) -> Vec<RaiseKey> {
        self.doubts.keys().copied().collect()
    }

    /// Another owner, whose versions begin anew.
    pub fn next_epoch(&mut self) {
        for doubt in self.doubts.values_mut() {
            *doubt = doubt.in_next_epoch();
        }
        self.versions.clear();
        self.through = 0;
        self.settled = 0;
    }

    /// It was armed.
    pub fn armed(&mut self, key: RaiseKey, version: u64) {
        if self.versions.len() >= ARMED_MAX {
            // Refusing some that are still wanted is safe (they come again with a new version); arming an old one is not.
            self.through = self.versions.values().copied().max().unwrap_or(self.through);
            self.versions.clear();
        }
        self.versions.insert(key, version);
    }

    /// A snapshot that stands for all versions up to `through`.
    pub fn start_after(&mut self, through: u64) {
        *self = Self {
            through,
            settled: through,
            ..Self::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Direction;
    use model::{Epoch, Incarnation, MemberId};

    fn item(slot: u32, limit: u64) -> RaiseItem {
        RaiseItem {
            slot,
            spi: slot,
            direction: Direction::Outbound,
            limit,
            step: 1,
        }
    }

    fn member(member: u8) -> SetMember {
        SetMember {
            member: MemberId(member),
            incarnation: Incarnation(1),
        }
    }

    #[test]
    fn a_raise_that_supersedes_another_keeps_the_doubt_of_the_first() {
        let mut raises = Raises::default();
        let asked = BTreeSet::from([member(2), member(3)]);
        let epoch = EpochId {
            number: Epoch(1),
            owner: MemberId(1),
        };
        assert_eq!(raises.settled(), 0);
        raises.open(Instant(0), item(7, 10), asked.clone());
        let second = raises.open(Instant(0), item(7, 20), asked.clone());
        assert_eq!(raises.settled(), 0, "the first may be armed at one of them");
        raises.open(Instant(0), item(8, 5), asked.clone());
        for from in asked {
            let ack = Ack {
                epoch,
                from,
                version: second,
            };
            raises.acknowledge(Instant(0), epoch, item(7, 20).key(), &ack);
        }
        assert_eq!(raises.settled(), 2, "what is open now begins at version 3");
    }

    #[test]
    fn doubt_ends_when_everybody_has_armed_and_outlives_an_epoch() {
        let mut armed = ArmedRaises::default();
        let (a, b) = (item(1, 1).key(), item(2, 1).key());
        armed.doubt(a, 1);
        armed.doubt(b, 2);
        armed.settle(1);
        assert_eq!(armed.doubtful(), [b]);
        armed.next_epoch();
        armed.settle(9);
        assert_eq!(armed.doubtful(), [b], "the taker has not stated it yet");
        armed.doubt(b, 10);
        assert_eq!(armed.doubtful(), [b], "nor has everybody armed it");
        armed.settle(10);
        assert!(armed.doubtful().is_empty());
    }
}
