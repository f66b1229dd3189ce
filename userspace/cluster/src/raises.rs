//! Raises under way: idempotent by (SA direction, version), sent again until everybody asked has acknowledged.

use crate::message::{RaiseItem, RaiseKey, SetMember};
use crate::rules::{self, Ack, EpochId};
use model::Instant;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

struct Open {
    item: RaiseItem,
    version: u64,
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
        self.open.insert(
            item.key(),
            Open {
                item,
                version,
                missing: asked,
                sent: now,
                since: now,
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
    pub fn acknowledge(&mut self, epoch: EpochId, key: RaiseKey, ack: &Ack) -> Option<RaiseItem> {
        let open = self.open.get_mut(&key)?;
        if !rules::ack_counts(epoch, &open.missing, open.version, ack) {
            return None;
        }
        open.missing.remove(&ack.from);
        if open.missing.is_empty() {
            self.open.remove(&key).map(|open| open.item)
        } else {
            None
        }
    }

    /// Raises to send again: not acknowledged for `interval`.
    pub fn due(&mut self, now: Instant, interval: Duration) -> Vec<(u64, RaiseItem)> {
        let mut due = Vec::new();
        for open in self.open.values_mut() {
            if now.since(open.sent) >= interval {
                open.sent = now;
                due.push((open.version, open.item));
            }
        }
        due
    }

    /// Gives up raises that nobody acknowledged for `limit` (the SA is gone on the other side, say).
    pub fn expire(&mut self, now: Instant, limit: Duration) {
        self.open.retain(|_, open| now.since(open.since) < limit);
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

    /// Raises that are not acknowledged.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

/// The standby's memory of raises: only rising versions are armed.
#[derive(Default)]
pub struct ArmedRaises {
    /// Versions up to this one are part of the snapshot.
    through: u64,
    versions: HashMap<RaiseKey, u64>,
}

/// Directions remembered at most; more SAs than slots exist cannot be.
const ARMED_MAX: usize = 1 << 21;

impl ArmedRaises {
    /// Whether this version is to be armed: it is not older than one armed before.
    pub fn wanted(&self, key: &RaiseKey, version: u64) -> bool {
        version > self.through && self.versions.get(key).is_none_or(|armed| version >= *armed)
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
        self.versions.clear();
        self.through = through;
    }
}
