//! The side that may lose: what an owner that serves alone does with its peers without the knowledge of the other member.

use std::collections::BTreeSet;

use cluster::message::PeerMark;
use ike::{IkeSaPeer, Transmit};
use model::{ChildSaChange, EspSpi, GroupId, IkeSpi};

use super::{MOST, Named, parted};
use crate::clock;
use crate::core::Core;
use crate::core::entry::EntryChange;

/// Where an IKE message names its exchange (RFC 7296 3.1).
const EXCHANGE_AT: usize = 18;
/// The exchange that makes and replaces Child SAs, and IKE SAs.
const CREATE_CHILD_SA: u8 = 36;

/// What the owner of a group changes without the knowledge of the other member.
#[derive(Default)]
pub struct Touched {
    /// IKE SAs that the other member may have.
    spis: BTreeSet<IkeSpi>,
    /// IKE SAs that it cannot have: they were begun alone.
    own: BTreeSet<IkeSpi>,
    /// With whom.
    peers: BTreeSet<PeerMark>,
    /// What is new since it was asked for last.
    news: Vec<Named>,
}

/// How the winner finds what it has of a peer with which an IKE SA was begun; `None`: the peer has not dropped anything yet.
pub fn mark_of(peer: &IkeSaPeer<'_>) -> Option<PeerMark> {
    let connection = peer.connection?;
    match (peer.initiator, peer.phase) {
        // The peer may act on INITIAL_CONTACT although its answer never comes.
        (true, "authenticating" | "established") => Some(PeerMark::of(connection, None)),
        (false, "established") => Some(PeerMark::of(connection, Some(peer.remote_id.as_deref()?))),
        _ => None,
    }
}

impl Touched {
    /// A change takes effect. `is_here`: whether there is a record of this IKE SA before it; `ike_spi_of`: the IKE SA of a Child SA as it is
    /// before.
    pub fn note(
        &mut self,
        change: &EntryChange,
        is_here: impl Fn(IkeSpi) -> bool,
        ike_spi_of: impl Fn(EspSpi) -> Option<IkeSpi>,
    ) {
        let child = match change {
            EntryChange::IkeRemove(spi) => return self.add(*spi),
            EntryChange::Child(child) => child,
            EntryChange::IkePut(spi, _) if !is_here(*spi) => {
                if self.own.len() < MOST {
                    self.own.insert(*spi);
                }
                return;
            }
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
        self.add(spi);
    }

    /// The record of an IKE SA says whose it is.
    pub fn met(&mut self, spi: IkeSpi, peer: &IkeSaPeer<'_>) {
        if self.own.contains(&spi)
            && self.peers.len() < MOST
            && let Some(mark) = mark_of(peer)
            && self.peers.insert(mark)
        {
            self.news.push(Named::Peer(mark));
        }
    }

    fn add(&mut self, spi: IkeSpi) {
        // Nobody else has one that was begun alone.
        if !self.own.contains(&spi) && self.spis.len() < MOST && self.spis.insert(spi) {
            self.news.push(Named::IkeSa(spi));
        }
    }

    /// What a life before this one, which goes on in its epoch, had recorded.
    pub fn go_on(&mut self, named: Named) {
        match named {
            Named::IkeSa(spi) => drop(self.spis.insert(spi)),
            Named::Peer(mark) => drop(self.peers.insert(mark)),
        }
    }

    /// What was added since this was asked last.
    pub fn news(&mut self) -> Vec<Named> {
        std::mem::take(&mut self.news)
    }

    /// All of it.
    pub fn all(&self) -> impl Iterator<Item = Named> {
        let spis = self.spis.iter().copied().map(Named::IkeSa);
        spis.chain(self.peers.iter().copied().map(Named::Peer))
    }

    /// The fork is discarded; or a standby holds all of it, and whoever takes over goes on from there.
    pub fn end(&mut self) -> Vec<Named> {
        std::mem::take(self).all().collect()
    }
}

impl Core {
    /// An entry takes effect on the owner, and its messages go out.
    pub(in crate::core) fn note_touched(
        &mut self,
        id: GroupId,
        changes: &[EntryChange],
        transmits: &[Transmit],
    ) {
        if !self.node.may_give_way(id) {
            return;
        }
        let (sad, engine, mirror) = (&self.sad, &self.engine, &self.mirror);
        let touched = &mut self.groups.get_mut(id).touched;
        for change in changes {
            let ike_spi_of = |spi_in| sad.get(spi_in).map(|e| e.record.ike_spi);
            touched.note(change, |spi| mirror.contains_key(&spi), ike_spi_of);
            let EntryChange::IkePut(spi, _) = change else {
                continue;
            };
            if let Some(peer) = engine.peer_of(*spi) {
                touched.met(*spi, &peer);
            }
            if engine
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
        let news = touched.news();
        // Before any of it leaves this host: a life that ends now leaves word to the next one.
        self.kept_forks.add(id, &news, &mut self.log);
    }

    /// A standby holds what this owner has done: it is no fork any more.
    pub(in crate::core) fn fork_is_known(&mut self, id: GroupId) {
        if !self.groups.get_mut(id).touched.end().is_empty() {
            self.keep_forks();
        }
    }

    /// The fork is discarded: it is told to whoever owns the group.
    pub(in crate::core) fn tell_fork(&mut self, id: GroupId) {
        let all = self.groups.get_mut(id).touched.end();
        if all.is_empty() {
            return;
        }
        self.kept_forks.owe(id, &all);
        self.keep_forks();
        let (touched, peers) = parted(all);
        self.node.handle(cluster::Input::ForkTouched {
            now: clock::now(),
            group: id,
            touched,
            peers,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(spi: EspSpi) -> Option<IkeSpi> {
        (spi == EspSpi(5)).then_some(IkeSpi(50))
    }

    fn put(spi: u64) -> EntryChange {
        EntryChange::IkePut(IkeSpi(spi), model::SecretBytes::new(vec![1]))
    }

    fn spis(touched: &mut Touched) -> Vec<u64> {
        let (spis, _) = parted(touched.end());
        spis.into_iter().map(|spi| spi.0).collect()
    }

    fn peer(initiator: bool, phase: &'static str, remote_id: Option<&str>) -> IkeSaPeer<'static> {
        IkeSaPeer {
            connection: Some("roam"),
            remote_id: remote_id.map(str::to_owned),
            initiator,
            phase,
        }
    }

    #[test]
    fn a_fork_remembers_what_changed_child_sas_and_not_what_moved_message_ids() {
        let mut touched = Touched::default();
        let known = |_| true;
        touched.note(&put(7), known, of);
        assert!(touched.all().next().is_none());
        touched.exchanged(IkeSpi(6));
        let remove = EntryChange::Child(ChildSaChange::Remove { spi_in: EspSpi(5) });
        touched.note(&remove, known, of);
        touched.note(&EntryChange::IkeRemove(IkeSpi(8)), known, of);
        let moved = ChildSaChange::MoveIkeSa {
            spi_in: EspSpi(5),
            ike_spi: IkeSpi(9),
        };
        touched.note(&EntryChange::Child(moved), known, of);
        assert_eq!(touched.news().len(), 4, "each once");
        touched.exchanged(IkeSpi(6));
        assert!(touched.news().is_empty());
        assert_eq!(spis(&mut touched), [6, 8, 9, 50]);
        assert!(touched.all().next().is_none(), "that fork is over");
    }

    /// Nobody else knows an IKE SA that was begun alone by its SPI: it is named by its peer, from the moment on from which the peer may have
    /// dropped what it had before.
    #[test]
    fn an_ike_sa_that_was_begun_alone_is_named_by_its_peer() {
        let mut touched = Touched::default();
        let unknown = |_| false;
        for spi in [1, 2, 3] {
            touched.note(&put(spi), unknown, of);
        }
        touched.met(IkeSpi(1), &peer(true, "connecting", None));
        touched.met(IkeSpi(2), &peer(false, "authenticating", None));
        assert!(touched.all().next().is_none(), "no peer has done anything yet");
        touched.met(IkeSpi(1), &peer(true, "authenticating", None));
        touched.met(IkeSpi(1), &peer(true, "established", Some("@b")));
        touched.met(IkeSpi(2), &peer(false, "established", Some("@a")));
        touched.met(IkeSpi(4), &peer(false, "established", Some("@known before")));
        touched.exchanged(IkeSpi(1));
        touched.note(&EntryChange::IkeRemove(IkeSpi(2)), |_| true, of);
        let expected = [PeerMark::of("roam", None), PeerMark::of("roam", Some("@a"))];
        assert_eq!(touched.news(), expected.map(Named::Peer));
        let (spis, peers) = parted(touched.end());
        assert!(spis.is_empty(), "their SPIs say nothing to anybody");
        assert_eq!(BTreeSet::from_iter(peers), BTreeSet::from(expected));
    }

    #[test]
    fn what_a_fork_remembers_is_bounded() {
        let mut touched = Touched::default();
        for spi in 0..MOST as u64 + 10 {
            touched.exchanged(IkeSpi(spi));
            touched.note(&put(spi + (1 << 40)), |_| false, of);
            let id = spi.to_string();
            touched.met(
                IkeSpi(spi + (1 << 40)),
                &peer(false, "established", Some(id.as_str())),
            );
        }
        assert_eq!((touched.spis.len(), touched.own.len()), (MOST, MOST));
        assert_eq!(touched.peers.len(), MOST);
    }
}
