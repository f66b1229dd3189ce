//! An in-sync survivor always takes over, and after the faults end service is back.

use crate::frames::Packet;
use cluster::SetMember;
use model::{GroupId, Instant, MemberId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A member that may take over does so within this time (suspicion at 100 to 200 ms, the engine's answers, a margin for loss).
pub const TAKEOVER_WITHIN: Duration = Duration::from_millis(1500);
/// Traffic flows both ways again within this time of the end of all faults: dead peer detection and redialling included.
pub const SERVICE_WITHIN: Duration = Duration::from_secs(20);

/// When what was last seen.
#[derive(Default)]
pub struct Liveness {
    /// The in-sync set as its owner last named it.
    sets: BTreeMap<GroupId, (MemberId, BTreeSet<SetMember>)>,
    /// Since when nobody serves a group although somebody could.
    orphaned: BTreeMap<GroupId, Instant>,
    last: BTreeMap<(u8, bool), Instant>,
}

impl Liveness {
    pub(super) fn in_sync(&mut self, me: MemberId, group: GroupId, set: &BTreeSet<SetMember>) {
        if set.iter().any(|m| m.member == me) {
            self.sets.insert(group, (me, set.clone()));
        }
    }

    /// A member has learnt that it is in the set no more: it cannot take over, and joins anew.
    pub(super) fn is_out(&mut self, me: MemberId, group: GroupId) {
        if let Some((_, set)) = self.sets.get_mut(&group) {
            set.retain(|m| m.member != me);
        }
    }

    pub(super) fn delivered(&mut self, now: Instant, packet: Packet) {
        self.last.insert((packet.peer, packet.outbound), now);
    }

    /// The set that a group's owner last named.
    pub fn set(&self, group: GroupId) -> Option<&BTreeSet<SetMember>> {
        self.sets.get(&group).map(|(_, set)| set)
    }

    /// Looks at a group now and then. `served`: somebody serves it. `able`: somebody of the last named set could.
    ///
    /// # Errors
    /// It has not, for too long.
    pub fn look(&mut self, now: Instant, group: GroupId, served: bool, able: bool) -> Result<(), String> {
        if served || !able {
            self.orphaned.remove(&group);
            return Ok(());
        }
        let since = *self.orphaned.entry(group).or_insert(now);
        if now.since(since) > TAKEOVER_WITHIN {
            self.orphaned.insert(group, now);
            return Err(format!(
                "group {group}: nobody serves it for {} ms, though an in-sync member is up and could",
                now.since(since).as_millis()
            ));
        }
        Ok(())
    }

    /// Whether a packet of this peer came through in this direction after `since`.
    pub fn flows(&self, peer: u8, outbound: bool, since: Instant) -> bool {
        self.last.get(&(peer, outbound)).is_some_and(|at| *at > since)
    }
}
