//! Child SAs that a lost standby knew. It may have taken over unseen, so numbers above the leases may be used already: nobody
//! but this owner sends on them any more, up to the leases, and each is rekeyed once a standby is in sync again
//! (docs/SYNCH-CHANNEL.md, rule R4).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cluster::rules_doubt::tainted_by_loss;
use cluster::{Direction, Input, Solo, Standing};
use maps_schema::sad::spi_slot;
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

    /// Forgets those that nothing has come of.
    pub fn retain(&mut self, is_there: impl Fn(EspSpi) -> bool) {
        self.spis.retain(|spi, _| is_there(*spi));
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

    /// How many there are.
    pub fn len(&self) -> usize {
        self.spis.len()
    }

    /// The next ones to rekey, at most `room`, and whether that has come to nothing before. `sent`: when the SA carried something last,
    /// ms; those that traffic is on go first. `None`: it cannot be rekeyed now.
    pub fn next(
        &mut self,
        now: Instant,
        room: usize,
        sent: impl Fn(EspSpi) -> Option<u64>,
    ) -> Vec<(EspSpi, bool)> {
        if !self.begun || room == 0 {
            return Vec::new();
        }
        let is_due = |asked: &Option<Instant>| asked.is_none_or(|at| now.since(at) >= AGAIN);
        let due = self.spis.iter().filter(|(_, asked)| is_due(asked));
        let mut waiting = due
            .filter_map(|(spi, _)| Some((Reverse(sent(*spi)?), *spi)))
            .collect::<Vec<_>>();
        if waiting.len() > room {
            waiting.select_nth_unstable(room - 1);
            waiting.truncate(room);
        }
        waiting.sort_unstable();
        let begin = |(_, spi): (_, EspSpi)| {
            let before = self.spis.insert(spi, Some(now)).flatten();
            (spi, before.is_some())
        };
        waiting.into_iter().map(begin).collect()
    }
}

/// An SA that was asked for or proposed while the standby was there, and takes effect after that one was lost: it may have taken over and finished
/// the exchange by itself, so that it began at the first number (not above a lease), and nobody here may use any. The SA is rekeyed
/// like all suspects.
pub fn without_numbers(change: &ChildSaChange, directions: &[sad::Direction]) -> ChildSaChange {
    let mut change = change.clone();
    if let ChildSaChange::Install { record, .. } = &mut change {
        for direction in directions {
            match direction {
                sad::Direction::Outbound => record.limits.lease = 0,
                sad::Direction::Inbound => record.limits.ceiling = 0,
            }
        }
    }
    change
}

fn installs(changes: &[EntryChange]) -> impl Iterator<Item = EspSpi> {
    changes.iter().filter_map(|change| match change {
        EntryChange::Child(change @ ChildSaChange::Install { .. }) => Some(change.spi_in()),
        _ => None,
    })
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
        // What the node does not have yet no standby knows.
        let proposed = group.pending.iter().filter(|p| p.proposed && !p.alone);
        let proposed = proposed.flat_map(|p| installs(&p.changes));
        // Its requests are in the journal: a standby that takes over repeats them, and the peer gives it the same answers.
        let ours = self.engine.spis().into_iter();
        let ours = ours.filter(|spi| layout.group_of(spi.segment()) == id);
        let asked = ours.flat_map(|spi| self.engine.pending_esp_spis_of(spi));
        let asked = asked.filter(|spi| layout.group_of(spi.segment()) == id);
        let all = installed.chain(proposed).chain(asked).collect::<Vec<_>>();
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

    pub(super) fn tainted_directions(&self) -> Vec<sad::Direction> {
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
        let suspects = &mut self.groups.get_mut(id).suspects;
        let begun = suspects.begun;
        let count = suspects.begin();
        if count > 0 && !begun {
            self.log.note_of(
                id,
                "rekey_after_loss",
                format!(
                    "{count} Child SAs were known to a standby that was lost and may have served; rekeying them, {PER_SECOND} a second"
                ),
            );
        }
    }

    /// The node is told how many there are, where that has changed.
    pub(super) fn tell_suspects(&mut self) {
        let mut news = Vec::new();
        for group in self.groups.iter_mut() {
            let count = group.suspects.len();
            if std::mem::replace(&mut group.suspects_told, count) != count {
                news.push((group.id, count));
            }
        }
        for (group, count) in news {
            let now = clock::now();
            self.node_input(Input::Suspects { now, group, count });
        }
    }

    /// Exchanges under way at the loss have come to nothing: their SAs are no suspects any more.
    fn forget_unmade_suspects(&mut self) {
        let (sad, engine, me) = (&self.sad, &self.engine, self.me);
        let of_ours =
            |group: &&mut super::groups::Group| group.ownership.owner == Some(me) && group.adoption.is_none();
        for group in self.groups.iter_mut().filter(of_ours) {
            let is_made = |spi: EspSpi| sad.get(spi).is_some();
            if group.suspects.spis.keys().all(|spi| is_made(*spi)) {
                continue;
            }
            let mut coming: BTreeSet<EspSpi> = engine.pending_esp_spis().into_iter().collect();
            coming.extend(group.pending.iter().flat_map(|p| installs(&p.changes)));
            group.suspects.retain(|spi| is_made(spi) || coming.contains(&spi));
        }
    }

    /// Once a second.
    pub(super) fn rekey_suspects(&mut self) {
        self.forget_unmade_suspects();
        let (sad, engine, counters, me) = (&self.sad, &self.engine, &self.counters, self.me);
        // One that another has replaced already only waits for its deletion.
        let sent = |spi: EspSpi| {
            let ready =
                sad.get(spi).is_some_and(|e| e.carries_outbound()) && engine.ike_spi_of_child(spi).is_some();
            let last = || {
                counters
                    .counters(spi_slot(spi.0))
                    .map_or(0, |c| c.outbound.last_ms)
            };
            ready.then(last)
        };
        let (mut room, now) = (PER_SECOND, clock::now());
        let mut next = Vec::new();
        for group in self.groups.iter_mut() {
            if group.ownership.owner == Some(me) {
                let found = group.suspects.next(now, room, sent);
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
            suspects.next(at(0), 9, |_| Some(0)).is_empty(),
            "no standby is in sync yet"
        );
        suspects.remove(EspSpi(2));
        assert!(suspects.contains(EspSpi(1)) && !suspects.contains(EspSpi(2)));
        assert_eq!(suspects.begin(), 4);
        assert_eq!(
            suspects.next(at(1), 2, |spi| (spi != EspSpi(1)).then_some(0)),
            [(EspSpi(3), false), (EspSpi(4), false)]
        );
        assert_eq!(
            suspects.next(at(2), 9, |_| Some(0)),
            [(EspSpi(1), false), (EspSpi(5), false)]
        );
        assert!(suspects.next(at(10), 9, |_| Some(0)).is_empty());
        suspects.remove(EspSpi(3));
        assert_eq!(
            suspects.next(at(11), 9, |_| Some(0)),
            [(EspSpi(4), true)],
            "it is still there"
        );
    }

    #[test]
    fn those_that_carried_something_last_are_rekeyed_first() {
        let mut suspects = Suspects::default();
        suspects.suspect((1..=100).map(EspSpi));
        suspects.begin();
        let sent = |spi: EspSpi| Some(u64::from(spi.0 * 37 % 101));
        let (mut order, mut second) = (Vec::new(), 0);
        while order.len() < 100 {
            let now = Instant::from_millis(second * 1000);
            order.extend(suspects.next(now, 20, sent).into_iter().map(|(spi, _)| spi));
            second += 1;
        }
        assert!(order.is_sorted_by_key(|spi| Reverse(sent(*spi))), "{order:?}");
        assert_eq!(second, 5);
    }

    #[test]
    fn what_was_asked_for_and_never_made_is_forgotten_and_the_others_wait_on() {
        let mut suspects = Suspects::default();
        suspects.suspect((1..=3).map(EspSpi));
        suspects.begin();
        suspects.retain(|spi| spi != EspSpi(2));
        assert!(!suspects.contains(EspSpi(2)));
        assert_eq!(suspects.len(), 2);
        let next = suspects.next(Instant::default(), 9, |_| Some(0));
        assert_eq!(next, [(EspSpi(1), false), (EspSpi(3), false)]);
    }

    #[test]
    fn a_taker_rekeys_what_the_owner_had_not_finished() {
        let mut owner = Suspects::default();
        owner.suspect([EspSpi(7), EspSpi(8)]);
        owner.begin();
        let first = owner.next(Instant::default(), 1, |_| Some(0));
        assert_eq!(first, [(EspSpi(7), false)]);
        let mut taker = Suspects::of(owner.spis());
        assert_eq!(taker.begin(), 2);
    }
}
