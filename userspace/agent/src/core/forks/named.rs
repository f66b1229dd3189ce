//! The side that wins: what others name as touched by forks of theirs is established anew, or looked after, at a limited rate.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cluster::message::PeerMark;
use cluster::{Input, SetMember};
use ike::{Command, IkeSaPeer};
use model::{GroupId, IkeSpi, Instant};

use crate::clock;
use crate::core::Core;

/// IKE SAs that are begun anew, or checked, in a second: the first takes a key exchange.
const PER_SECOND: usize = 32;
/// One that is still there after this time (its peer does not answer, say) is asked for again.
const AGAIN: Duration = Duration::from_secs(30);
/// IKE SAs are compared with marks for this long before the core does something else.
const TURN: Duration = Duration::from_millis(2);

/// What is to become of an IKE SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Begun anew.
    Anew,
    /// Its peer, which began anew with the fork, has dropped it as a rule, and only that one can begin: if it does not answer, the IKE SA goes.
    Check,
}

/// A part of what another member's fork touched.
struct Part {
    number: u64,
    /// IKE SAs, and when each was begun anew last.
    anew: BTreeMap<IkeSpi, Option<Instant>>,
    check: BTreeSet<IkeSpi>,
    /// Peers whose IKE SAs are still to be found.
    peers: BTreeSet<PeerMark>,
}

impl Part {
    /// What becomes of an IKE SA, if the part names its peer. `begins`: this side can begin its connection.
    fn remedy(&self, peer: &IkeSaPeer<'_>, begins: bool) -> Option<Remedy> {
        let connection = peer.connection.filter(|_| peer.phase == "established")?;
        let named = |id| self.peers.contains(&PeerMark::of(connection, id));
        let by_id = peer.remote_id.as_deref().is_some_and(|id| named(Some(id)));
        // A connection that the fork initiated has one peer; one that others initiate may have many.
        match (by_id || named(None), begins && (by_id || peer.initiator)) {
            (false, _) => None,
            (true, true) => Some(Remedy::Anew),
            (true, false) => Some(Remedy::Check),
        }
    }
}

/// What others have named and is not dealt with.
#[derive(Default)]
pub struct Forks {
    parts: BTreeMap<(GroupId, SetMember), Part>,
    /// IKE SAs that are still to be compared with the peers that were named.
    search: Vec<IkeSpi>,
    searching: bool,
}

impl Forks {
    /// A member names a part; returns whether it is a new one. The one before is settled, or that member has forgotten it.
    pub fn named(
        &mut self,
        group: GroupId,
        from: SetMember,
        number: u64,
        touched: &[IkeSpi],
        peers: &[PeerMark],
    ) -> bool {
        let key = (group, from);
        if self.parts.get(&key).is_some_and(|part| part.number == number) {
            return false;
        }
        let part = Part {
            number,
            anew: touched.iter().map(|spi| (*spi, None)).collect(),
            check: BTreeSet::new(),
            peers: peers.iter().copied().collect(),
        };
        self.parts.insert(key, part);
        // From the beginning, for the new ones.
        self.searching = false;
        true
    }

    /// Another member owns the group now: it will hear of it by itself.
    pub fn forget(&mut self, group: GroupId) {
        self.parts.retain(|(g, _), _| *g != group);
    }

    /// Whether IKE SAs are to be compared with peers that were named.
    pub fn is_searching(&self) -> bool {
        self.parts.values().any(|part| !part.peers.is_empty())
    }

    /// The next IKE SA to compare, of `all` when a search begins; at the end of it nothing is left to be found.
    pub fn next_to_compare(&mut self, all: impl FnOnce() -> Vec<IkeSpi>) -> Option<IkeSpi> {
        if !self.is_searching() {
            return None;
        }
        if !std::mem::replace(&mut self.searching, true) {
            self.search = all();
        }
        let next = self.search.pop();
        if next.is_none() {
            self.parts.values_mut().for_each(|part| part.peers.clear());
            self.searching = false;
        }
        next
    }

    /// Compares an IKE SA with the peers that were named.
    pub fn compare(&mut self, spi: IkeSpi, peer: &IkeSaPeer<'_>, begins: bool) {
        for part in self.parts.values_mut() {
            match part.remedy(peer, begins) {
                Some(Remedy::Anew) => drop(part.anew.entry(spi).or_default()),
                Some(Remedy::Check) if !part.anew.contains_key(&spi) => drop(part.check.insert(spi)),
                Some(Remedy::Check) | None => {}
            }
        }
    }

    /// IKE SAs about which something is to be done now, at most `room`. Those that are not `here` any more are done, and so are those
    /// whose check is begun.
    pub fn next(
        &mut self,
        now: Instant,
        room: usize,
        here: impl Fn(IkeSpi) -> bool,
    ) -> Vec<(IkeSpi, Remedy)> {
        let mut due = Vec::new();
        for part in self.parts.values_mut() {
            part.anew.retain(|spi, _| here(*spi));
            for (spi, last) in &mut part.anew {
                if due.len() < room && last.is_none_or(|at| now.since(at) >= AGAIN) {
                    *last = Some(now);
                    due.push((*spi, Remedy::Anew));
                }
            }
            while due.len() < room
                && let Some(spi) = part.check.pop_first()
            {
                if here(spi) {
                    due.push((spi, Remedy::Check));
                }
            }
        }
        due
    }

    /// Parts of which nothing is left, each once.
    pub fn settled(&mut self) -> Vec<(GroupId, SetMember, u64)> {
        let left = |part: &Part| !part.anew.is_empty() || !part.check.is_empty() || !part.peers.is_empty();
        let done = self.parts.iter().filter(|(_, part)| !left(part));
        let done = done.map(|((group, from), part)| (*group, *from, part.number));
        let done = done.collect::<Vec<_>>();
        self.parts.retain(|_, part| left(part));
        done
    }
}

impl Core {
    /// Owner: a member names what its discarded fork touched.
    pub(in crate::core) fn fork_touched(
        &mut self,
        id: GroupId,
        from: SetMember,
        number: u64,
        touched: &[IkeSpi],
        peers: &[PeerMark],
    ) {
        let layout = self.groups.layout;
        if touched.iter().any(|spi| layout.group_of(spi.segment()) != id) {
            tracing::warn!(member = %from.member, "IKE SAs of another group are named as touched by a fork: ignored");
            return;
        }
        if self.forks.named(id, from, number, touched, peers) {
            let known = touched.iter().filter(|spi| self.mirror.contains_key(spi)).count();
            let text = format!(
                "the fork of member {} that was discarded touched {} IKE SAs, of which {known} are here, and began others with {} peers: \
                 what is here of them is established anew or checked, {PER_SECOND} a second",
                from.member,
                touched.len(),
                peers.len()
            );
            self.log.note_of(id, "fork_touched", text);
            self.forks_turn(clock::now());
            self.reestablish();
        }
    }

    /// Looks for IKE SAs with peers that were named, for as long as a turn may take.
    pub(in crate::core) fn forks_turn(&mut self, now: Instant) {
        // Before it is adopted, nobody knows whose an IKE SA is.
        if !self.forks.is_searching() || self.is_adopting() {
            return;
        }
        let until = now + TURN;
        while let Some(spi) = self.forks.next_to_compare(|| self.engine.spis()) {
            if let Some(peer) = self.engine.peer_of(spi) {
                let begins = peer.connection.is_some_and(|name| self.begins(name));
                self.forks.compare(spi, &peer, begins);
            }
            if clock::now() > until {
                return;
            }
        }
        self.reestablish();
    }

    /// Whether an IKE SA of this connection that is begun anew is initiated by this member.
    fn begins(&self, connection: &str) -> bool {
        let mut connections = self.engine.config().connections.iter();
        connections.any(|c| c.name == connection && c.start) && self.initiates(connection)
    }

    /// Once a second, and when there is something new.
    pub(in crate::core) fn reestablish(&mut self) {
        let (mirror, engine) = (&self.mirror, &self.engine);
        let due = self.forks.next(clock::now(), PER_SECOND, |spi| {
            let latest = engine.latest(spi);
            mirror.contains_key(&latest) || engine.contains(latest)
        });
        for (spi, remedy) in due {
            let spi = self.engine.latest(spi);
            self.adopt_first(spi);
            self.engine_command(match remedy {
                Remedy::Anew => Command::Reestablish { spi },
                Remedy::Check => Command::Liveness { spi },
            });
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
    use model::{Incarnation, MemberId};

    const FROM: SetMember = SetMember {
        member: MemberId(1),
        incarnation: Incarnation(4),
    };

    fn at(seconds: u64) -> Instant {
        Instant::from_millis(seconds * 1000)
    }

    fn due(
        forks: &mut Forks,
        seconds: u64,
        room: usize,
        here: impl Fn(IkeSpi) -> bool,
    ) -> Vec<(u64, Remedy)> {
        let due = forks.next(at(seconds), room, here);
        due.into_iter().map(|(spi, remedy)| (spi.0, remedy)).collect()
    }

    #[test]
    fn a_part_is_settled_once_none_of_its_ike_sas_is_here_any_more() {
        use Remedy::Anew;
        let mut forks = Forks::default();
        let spis = [IkeSpi(1), IkeSpi(2), IkeSpi(3)];
        assert!(forks.named(GroupId(0), FROM, 1, &spis, &[]));
        assert_eq!(due(&mut forks, 0, 1, |_| true), [(1, Anew)], "at a limited rate");
        assert!(!forks.named(GroupId(0), FROM, 1, &spis, &[]), "said again");
        assert_eq!(due(&mut forks, 1, 9, |spi| spi != IkeSpi(2)), [(3, Anew)]);
        assert!(forks.settled().is_empty());
        let again = due(&mut forks, 30, 9, |spi| spi != IkeSpi(2));
        assert_eq!(again, [(1, Anew)], "still there");
        assert!(due(&mut forks, 31, 9, |_| false).is_empty());
        assert_eq!(forks.settled(), [(GroupId(0), FROM, 1)]);
        assert!(forks.settled().is_empty());
        assert!(
            forks.named(GroupId(0), FROM, 2, &[], &[]),
            "nothing of it is here"
        );
        assert_eq!(forks.settled(), [(GroupId(0), FROM, 2)]);
    }

    /// IKE SAs here: of a connection that this side begins (1, and 2, which the peer began), and of road warriors (3 to 5).
    fn search(forks: &mut Forks) {
        let all = [
            (1, "site", "@site", true),
            (2, "site", "@other", false),
            (3, "roam", "@a", false),
            (4, "roam", "@b", false),
            (5, "roam", "@c", false),
        ];
        let spis = || all.iter().map(|(spi, ..)| IkeSpi(*spi)).collect();
        while let Some(spi) = forks.next_to_compare(spis) {
            let (_, connection, id, initiator) = all[spi.0 as usize - 1];
            let phase = if id == "@c" {
                "authenticating"
            } else {
                "established"
            };
            let peer = IkeSaPeer {
                connection: Some(connection),
                remote_id: Some(id.to_owned()),
                initiator,
                phase,
            };
            forks.compare(spi, &peer, connection == "site");
        }
    }

    #[test]
    fn the_own_ike_sas_with_named_peers_are_begun_anew_or_checked() {
        use Remedy::{Anew, Check};
        let mut forks = Forks::default();
        let initiated = PeerMark::of("site", None);
        let roaming = ["@a", "@c", "@stranger"].map(|id| PeerMark::of("roam", Some(id)));
        let peers = [&[initiated][..], &roaming].concat();
        assert!(forks.named(GroupId(0), FROM, 1, &[], &peers));
        assert!(forks.settled().is_empty(), "nobody has looked yet");
        search(&mut forks);
        assert!(!forks.is_searching());
        let first = due(&mut forks, 0, 9, |_| true);
        assert_eq!(
            first,
            [(1, Anew), (2, Check), (3, Check)],
            "5 is not up yet, 4 is of nobody that was named"
        );
        assert!(forks.settled().is_empty());
        // What was begun anew is another IKE SA, and not looked for again; a check sees to the rest by itself.
        assert!(due(&mut forks, 1, 9, |spi| spi != IkeSpi(1)).is_empty());
        assert_eq!(forks.settled(), [(GroupId(0), FROM, 1)]);

        // The peer itself initiated to the fork: whoever can begin does.
        let other = [PeerMark::of("site", Some("@other"))];
        assert!(forks.named(GroupId(0), FROM, 2, &[], &other));
        search(&mut forks);
        assert_eq!(due(&mut forks, 2, 9, |_| true), [(2, Anew)]);
    }

    #[test]
    fn a_part_that_comes_while_another_one_is_searched_for_is_searched_for_from_the_beginning() {
        let mut forks = Forks::default();
        forks.named(GroupId(0), FROM, 1, &[], &[PeerMark::of("roam", Some("@a"))]);
        let spis = || vec![IkeSpi(1), IkeSpi(2)];
        assert_eq!(forks.next_to_compare(spis), Some(IkeSpi(2)));
        forks.named(GroupId(1), FROM, 2, &[], &[PeerMark::of("roam", Some("@b"))]);
        assert_eq!(forks.next_to_compare(spis), Some(IkeSpi(2)));
        assert_eq!(forks.next_to_compare(spis), Some(IkeSpi(1)));
        assert_eq!(forks.next_to_compare(spis), None);
        assert_eq!(forks.settled().len(), 2);
    }
}
