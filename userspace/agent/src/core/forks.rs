//! The end of a split: which IKE SAs a discarded fork touched, and what the winner does about them (design section 3).
//!
//! Liveness checks find a fork that used other Message IDs than the winner's half. They do not find one whose Message IDs
//! happen to agree, though it replaced Child SAs: the peer then sends on SAs that nobody here has. So the loser names what it
//! changed, and the winner has those IKE SAs established anew.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cluster::{Input, SetMember};
use ike::Transmit;
use model::{ChildSaChange, GroupId, IkeSpi, Instant};

use super::Core;
use super::entry::EntryChange;
use crate::clock;

/// IKE SAs that are begun anew in a second: each takes a key exchange.
const PER_SECOND: usize = 32;
/// One that is still there after this time (its peer does not answer, say) is asked for again.
const AGAIN: Duration = Duration::from_secs(30);
/// IKE SAs that a fork remembers; liveness checks are left to find the others.
const MOST: usize = 1 << 17;

/// Where an IKE message names its exchange (RFC 7296 3.1).
const EXCHANGE_AT: usize = 18;
/// The exchange that makes and replaces Child SAs, and IKE SAs.
const CREATE_CHILD_SA: u8 = 36;

/// What an owner that goes on alone, unfenced, changes without the knowledge of the standby that it lost.
#[derive(Default)]
pub struct Touched {
    recording: bool,
    spis: BTreeSet<IkeSpi>,
}

impl Touched {
    /// The standby is lost, and may take over.
    pub fn begin(&mut self) {
        self.recording = true;
    }

    /// A standby holds all of it: whoever takes over goes on from there.
    pub fn end(&mut self) {
        *self = Self::default();
    }

    /// A change takes effect. `ike_spi_of`: the IKE SA of a Child SA as it is before.
    pub fn note(&mut self, change: &EntryChange, ike_spi_of: impl Fn(model::EspSpi) -> Option<IkeSpi>) {
        if !self.recording {
            return;
        }
        let child = match change {
            EntryChange::IkeRemove(spi) => return self.add(*spi),
            EntryChange::Child(child) => child,
            // A record alone says no more than that Message IDs have moved, which liveness checks find.
            _ => return,
        };
        match child {
            ChildSaChange::Install { record, .. } => self.add(record.ike_spi),
            ChildSaChange::MoveIkeSa { ike_spi, .. } => self.add(*ike_spi),
            _ => {}
        }
        if let Some(spi) = ike_spi_of(child.spi_in()) {
            self.add(spi);
        }
    }

    /// A message about Child SAs goes out, or one of them is on its way out: the peer may do its part, whether we hear of that or not.
    pub fn exchanged(&mut self, spi: IkeSpi) {
        if self.recording {
            self.add(spi);
        }
    }

    fn add(&mut self, spi: IkeSpi) {
        if self.spis.len() < MOST {
            self.spis.insert(spi);
        }
    }

    /// The fork is discarded.
    pub fn take(&mut self) -> Vec<IkeSpi> {
        std::mem::take(self).spis.into_iter().collect()
    }
}

/// A part of what another member's fork touched, by IKE SA: when it was begun anew last.
struct Part {
    number: u64,
    spis: BTreeMap<IkeSpi, Option<Instant>>,
}

/// What others have named and is not dealt with.
#[derive(Default)]
pub struct Forks {
    parts: BTreeMap<(GroupId, SetMember), Part>,
}

impl Forks {
    /// A member names a part; returns whether it is a new one. The one before is settled, or that member has forgotten it.
    pub fn named(&mut self, group: GroupId, from: SetMember, number: u64, touched: &[IkeSpi]) -> bool {
        let key = (group, from);
        if self.parts.get(&key).is_some_and(|part| part.number == number) {
            return false;
        }
        let spis = touched.iter().map(|spi| (*spi, None)).collect();
        self.parts.insert(key, Part { number, spis });
        true
    }

    /// Another member owns the group now: it will hear of it by itself.
    pub fn forget(&mut self, group: GroupId) {
        self.parts.retain(|(g, _), _| *g != group);
    }

    /// IKE SAs that are to be begun anew now, at most `room`. Those that are not `here` any more are done.
    pub fn next(&mut self, now: Instant, room: usize, here: impl Fn(IkeSpi) -> bool) -> Vec<IkeSpi> {
        let mut due = Vec::new();
        for part in self.parts.values_mut() {
            part.spis.retain(|spi, _| here(*spi));
            for (spi, last) in &mut part.spis {
                if due.len() < room && last.is_none_or(|at| now.since(at) >= AGAIN) {
                    *last = Some(now);
                    due.push(*spi);
                }
            }
        }
        due
    }

    /// Parts of which nothing is left, each once.
    pub fn settled(&mut self) -> Vec<(GroupId, SetMember, u64)> {
        let done = self.parts.iter().filter(|(_, part)| part.spis.is_empty());
        let done = done.map(|((group, from), part)| (*group, *from, part.number));
        let done = done.collect::<Vec<_>>();
        self.parts.retain(|_, part| !part.spis.is_empty());
        done
    }
}

impl Core {
    /// An entry takes effect on the owner, and its messages go out.
    pub(super) fn note_touched(&mut self, id: GroupId, changes: &[EntryChange], transmits: &[Transmit]) {
        let (sad, engine) = (&self.sad, &self.engine);
        let touched = &mut self.groups.get_mut(id).touched;
        if !touched.recording {
            return;
        }
        for change in changes {
            touched.note(change, |spi_in| sad.get(spi_in).map(|e| e.record.ike_spi));
            if let EntryChange::IkePut(spi, _) = change
                && engine
                    .status_of(*spi)
                    .is_some_and(|sa| sa.children.iter().any(|child| child.phase != "installed"))
            {
                touched.exchanged(*spi);
            }
        }
        let about_children = transmits
            .iter()
            .filter(|t| t.bytes.get(EXCHANGE_AT) == Some(&CREATE_CHILD_SA));
        for spi in about_children.filter_map(|t| t.ike_spi) {
            touched.exchanged(spi);
        }
    }

    /// Owner: a member names what its discarded fork touched.
    pub(super) fn fork_touched(&mut self, id: GroupId, from: SetMember, number: u64, touched: &[IkeSpi]) {
        let layout = self.groups.layout;
        if touched.iter().any(|spi| layout.group_of(spi.segment()) != id) {
            tracing::warn!(member = %from.member, "IKE SAs of another group are named as touched by a fork: ignored");
            return;
        }
        if self.forks.named(id, from, number, touched) {
            let known = touched.iter().filter(|spi| self.mirror.contains_key(spi)).count();
            let text = format!(
                "the fork of member {} that was discarded touched {} IKE SAs, of which {known} are here: they are established anew, {PER_SECOND} a second",
                from.member,
                touched.len()
            );
            self.log.note_of(id, "fork_touched", text);
            self.reestablish();
        }
    }

    /// Once a second, and when there is something new.
    pub(super) fn reestablish(&mut self) {
        let (mirror, engine) = (&self.mirror, &self.engine);
        let due = self.forks.next(clock::now(), PER_SECOND, |spi| {
            mirror.contains_key(&spi) || engine.status_of(spi).is_some()
        });
        for spi in due {
            self.adopt_first(spi);
            self.engine_command(ike::Command::Reestablish { spi });
        }
        for (group, from, number) in self.forks.settled() {
            self.node_input(Input::ForkSettled {
                now: clock::now(),
                group,
                member: from.member,
                number,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{EspSpi, Incarnation, MemberId};

    fn of(spi: EspSpi) -> Option<IkeSpi> {
        (spi == EspSpi(5)).then_some(IkeSpi(50))
    }

    #[test]
    fn a_fork_remembers_what_changed_child_sas_and_not_what_moved_message_ids() {
        let mut touched = Touched::default();
        let remove = EntryChange::Child(ChildSaChange::Remove { spi_in: EspSpi(5) });
        touched.note(&remove, of);
        assert!(touched.take().is_empty(), "a standby was there");
        touched.begin();
        touched.note(
            &EntryChange::IkePut(IkeSpi(7), model::SecretBytes::new(vec![1])),
            of,
        );
        assert!(touched.spis.is_empty());
        touched.exchanged(IkeSpi(6));
        assert_eq!(touched.spis.len(), 1, "the peer may have heard of it");
        touched.note(&remove, of);
        touched.note(&EntryChange::IkeRemove(IkeSpi(8)), of);
        let moved = ChildSaChange::MoveIkeSa {
            spi_in: EspSpi(5),
            ike_spi: IkeSpi(9),
        };
        touched.note(&EntryChange::Child(moved), of);
        assert_eq!(touched.take(), [IkeSpi(6), IkeSpi(8), IkeSpi(9), IkeSpi(50)]);
        touched.note(&remove, of);
        assert!(touched.take().is_empty(), "that fork is over");
        touched.begin();
        touched.note(&remove, of);
        touched.end();
        assert!(touched.take().is_empty(), "the next standby holds it");
    }

    #[test]
    fn a_part_is_settled_once_none_of_its_ike_sas_is_here_any_more() {
        let mut forks = Forks::default();
        let from = SetMember {
            member: MemberId(1),
            incarnation: Incarnation(4),
        };
        let at = |seconds: u64| Instant::from_millis(seconds * 1000);
        let spis = [IkeSpi(1), IkeSpi(2), IkeSpi(3)];
        assert!(forks.named(GroupId(0), from, 1, &spis));
        assert_eq!(forks.next(at(0), 1, |_| true), [IkeSpi(1)], "at a limited rate");
        assert!(!forks.named(GroupId(0), from, 1, &spis), "said again");
        assert_eq!(forks.next(at(1), 9, |spi| spi != IkeSpi(2)), [IkeSpi(3)]);
        assert!(forks.settled().is_empty());
        assert_eq!(
            forks.next(at(30), 9, |spi| spi != IkeSpi(2)),
            [IkeSpi(1)],
            "still there"
        );
        assert!(forks.next(at(31), 9, |_| false).is_empty());
        assert_eq!(forks.settled(), [(GroupId(0), from, 1)]);
        assert!(forks.settled().is_empty());
        assert!(forks.named(GroupId(0), from, 2, &[]), "nothing of it is here");
        assert_eq!(forks.settled(), [(GroupId(0), from, 2)]);
    }
}
