//! Child SAs that a lost standby knew. It may have taken over unseen, so numbers above the leases may be used already: nobody
//! but this owner sends on them any more, up to the leases, and each is rekeyed once a standby is in sync again
//! (docs/SYNCH-CHANNEL.md, rule R4).

use std::collections::BTreeMap;
use std::time::Duration;

use cluster::rules_doubt::tainted_by_loss;
use cluster::{Direction, Solo, Standing};
use model::{ChildSaChange, Epoch, EspSpi, GroupId, Instant};
use sad::MapPlan;

use super::Core;
use super::entry::EntryChange;
use crate::{clock, config};

/// Rekeys begun in a second: no more than a peer with many Child SAs can answer beside its other work.
const PER_SECOND: usize = 20;
/// A rekey that has come to nothing by then is followed by a new IKE SA: nobody may send on the SA, and a peer that refuses to rekey it
/// holds what a half that was lost has made of it (RFC 7296 2.25 has it say TEMPORARY_FAILURE for ever).
const AGAIN: Duration = Duration::from_secs(10);

/// The SAs, by inbound SPI.
#[derive(Default)]
pub struct Suspects {
    /// When the rekey was begun last.
    spis: BTreeMap<EspSpi, Option<Instant>>,
    begun: bool,
}

impl Suspects {
    /// As a snapshot names them.
    pub fn of(spis: Vec<EspSpi>) -> Self {
        Self {
            spis: spis.into_iter().map(|spi| (spi, None)).collect(),
            begun: false,
        }
    }

    /// For a snapshot: a rekey that was begun need not come to its end under this owner.
    pub fn spis(&self) -> Vec<EspSpi> {
        self.spis.keys().copied().collect()
    }

    /// Adds SAs; their rekeys wait for [`Suspects::begin`].
    pub fn suspect(&mut self, spis: impl IntoIterator<Item = EspSpi>) {
        for spi in spis {
            self.spis.insert(spi, None);
        }
        self.begun = false;
    }

    /// Whether a lost standby knew it.
    pub fn contains(&self, spi: EspSpi) -> bool {
        self.spis.contains_key(&spi)
    }

    /// The SA is gone.
    pub fn remove(&mut self, spi: EspSpi) {
        self.spis.remove(&spi);
    }

    /// Rekeys may go on from here; returns how many there are to do.
    pub fn begin(&mut self) -> usize {
        self.begun = true;
        self.spis.values().filter(|asked| asked.is_none()).count()
    }

    /// The next ones to rekey, at most `room`, and whether that has come to nothing before.
    pub fn next(&mut self, now: Instant, room: usize, ready: impl Fn(EspSpi) -> bool) -> Vec<(EspSpi, bool)> {
        if !self.begun {
            return Vec::new();
        }
        let waiting = self
            .spis
            .iter_mut()
            .filter(|(spi, asked)| asked.is_none_or(|at| now.since(at) >= AGAIN) && ready(**spi));
        waiting
            .take(room)
            .map(|(spi, asked)| (*spi, asked.replace(now).is_some()))
            .collect()
    }
}

impl Core {
    /// Whether a lost standby knew the SA and it is not rekeyed yet.
    pub(super) fn is_suspect(&self, spi_in: EspSpi) -> bool {
        self.groups.of(spi_in.segment()).suspects.contains(spi_in)
    }

    /// A standby is lost and may be serving the group: it knows every SA that is not this member's alone.
    pub(super) fn suspect_shared(&mut self, id: GroupId) {
        let layout = self.groups.layout;
        let group = self.groups.get_mut(id);
        let installed = self
            .sad
            .iter()
            .filter(|e| !e.local_only && layout.group_of(e.segment()) == id)
            .map(|e| e.record.spi_in);
        let proposed = group
            .pending
            .iter()
            // What the node does not have yet no standby knows.
            .filter(|p| p.proposed && !p.alone)
            .flat_map(|p| &p.changes)
            .filter_map(|change| match change {
                EntryChange::Child(change @ ChildSaChange::Install { .. }) => Some(change.spi_in()),
                _ => None,
            });
        let all = installed.chain(proposed).collect::<Vec<_>>();
        group.suspects.suspect(all);
        let (spis, epoch) = (group.suspects.spis(), group.ownership.epoch);
        let plan = self.taint(spis, epoch);
        self.execute_or_log(&plan);
    }

    /// The group's SAs are here as their owner, or the life of this member before, has left them: its suspects are marked.
    pub(super) fn taint_suspects(&mut self, id: GroupId) -> MapPlan {
        let spis = self.groups.get(id).suspects.spis();
        let directions = self.tainted_directions();
        self.sad.taint_as_told(spis, &directions)
    }

    /// Leaves no number of these SAs to an owner after the one in `epoch`, which is this member.
    pub(super) fn taint(&mut self, spis: Vec<EspSpi>, epoch: Epoch) -> MapPlan {
        let directions = self.tainted_directions();
        self.sad.taint(spis, &directions, epoch)
    }

    fn tainted_directions(&self) -> Vec<sad::Direction> {
        let solo = match self.config.cluster.solo {
            config::Solo::Continue => Solo::Continue,
            config::Solo::Stop => Solo::Stop,
        };
        let directions = tainted_by_loss(solo, Standing::AloneUnfenced).iter();
        let directions = directions.map(|direction| match direction {
            Direction::Inbound => sad::Direction::Inbound,
            Direction::Outbound => sad::Direction::Outbound,
        });
        directions.collect()
    }

    /// A standby is in sync again, or this member has taken such SAs over.
    pub(super) fn begin_suspects(&mut self, id: GroupId) {
        let count = self.groups.get_mut(id).suspects.begin();
        if count > 0 {
            self.log.note_of(
                id,
                "rekey_after_loss",
                format!(
                    "{count} Child SAs were known to a standby that was lost and may have served; rekeying them, {PER_SECOND} a second"
                ),
            );
        }
    }

    /// Once a second.
    pub(super) fn rekey_suspects(&mut self) {
        let (sad, engine, me) = (&self.sad, &self.engine, self.me);
        // One that another has replaced already only waits for its deletion.
        let ready = |spi| {
            sad.get(spi).is_some_and(|e| e.carries_outbound()) && engine.ike_spi_of_child(spi).is_some()
        };
        let (mut room, now) = (PER_SECOND, clock::now());
        let mut next = Vec::new();
        for group in self.groups.iter_mut() {
            if group.ownership.owner == Some(me) {
                let found = group.suspects.next(now, room, ready);
                room -= found.len();
                next.extend(found);
            }
        }
        for (spi_in, before) in next {
            let command = match self.engine.ike_spi_of_child(spi_in) {
                // A peer that is silent has refused nothing: liveness checks see to that.
                Some(spi) if before && !self.engine.awaits_answer(spi) => ike::Command::Reestablish { spi },
                _ => ike::Command::RekeyChild { spi_in },
            };
            self.engine_command(command);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suspects_wait_for_a_standby_and_are_rekeyed_at_a_limited_rate_and_again_if_that_came_to_nothing() {
        let mut suspects = Suspects::default();
        suspects.suspect((1..=5).map(EspSpi));
        let at = |seconds: u64| Instant::from_millis(seconds * 1000);
        assert!(
            suspects.next(at(0), 9, |_| true).is_empty(),
            "no standby is in sync yet"
        );
        suspects.remove(EspSpi(2));
        assert!(suspects.contains(EspSpi(1)) && !suspects.contains(EspSpi(2)));
        assert_eq!(suspects.begin(), 4);
        assert_eq!(
            suspects.next(at(1), 2, |spi| spi != EspSpi(1)),
            [(EspSpi(3), false), (EspSpi(4), false)]
        );
        assert_eq!(
            suspects.next(at(2), 9, |_| true),
            [(EspSpi(1), false), (EspSpi(5), false)]
        );
        assert!(suspects.next(at(10), 9, |_| true).is_empty());
        suspects.remove(EspSpi(3));
        assert_eq!(
            suspects.next(at(11), 9, |_| true),
            [(EspSpi(4), true)],
            "it is still there"
        );
    }

    #[test]
    fn a_taker_rekeys_what_the_owner_had_not_finished() {
        let mut owner = Suspects::default();
        owner.suspect([EspSpi(7), EspSpi(8)]);
        owner.begin();
        let first = owner.next(Instant::default(), 1, |_| true);
        assert_eq!(first, [(EspSpi(7), false)]);
        let mut taker = Suspects::of(owner.spis());
        assert_eq!(taker.begin(), 2);
    }
}
