//! What losses have made of connections is told to the other members, so that one that takes over goes on with it. What an operator has
//! stopped is in the journal (`stops`).
//!
//! It is told about once a second, in the facts that members tell of themselves, and no more than that: it says who waits for whom and is
//! no part of any SA, so a member that dies within that second leaves what `start` says.

use std::collections::BTreeMap;

use model::{GroupId, MemberId};
use serde::{Deserialize, Serialize};

use super::Core;
use super::around::segment_of_name;
use super::dial::Wanted;
use super::member::Facts;

/// So many are told. More are lost at once only where the network is, and then `start` may count as well.
const TOLD_MAX: usize = 4096;

/// What a connection, or a child of one, is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Fate {
    /// Whatever the peer makes of it.
    Rest,
    /// Initiated when a packet asks for it.
    Trap,
    /// Up.
    Up,
}

impl From<Wanted> for Fate {
    fn from(wanted: Wanted) -> Self {
        match wanted {
            Wanted::Rest => Self::Rest,
            Wanted::Trap => Self::Trap,
            Wanted::Up => Self::Up,
        }
    }
}

impl From<Fate> for Wanted {
    fn from(fate: Fate) -> Self {
        match fate {
            Fate::Rest => Self::Rest,
            Fate::Trap => Self::Trap,
            Fate::Up => Self::Up,
        }
    }
}

/// Fates by [`name_of`].
pub type Told = BTreeMap<u64, Fate>;

/// A connection, or one of its children, in a few octets. FNV-1a: two names in one configuration that give the same would share a fate.
fn name_of(connection: &str, child: Option<&str>) -> u64 {
    let parts = [
        connection.as_bytes(),
        &[0][..],
        child.unwrap_or_default().as_bytes(),
    ];
    let octets = parts.into_iter().flatten();
    octets.fold(0xcbf2_9ce4_8422_2325, |hash, octet| {
        (hash ^ u64::from(*octet)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl Core {
    /// What is to be told now.
    fn fates(&self) -> Told {
        let lost = self
            .wanted
            .iter()
            .map(|(name, wanted)| (name_of(name, None), Fate::from(*wanted)));
        let children = self.children.iter();
        let children = children.map(|(name, child, wanted)| (name_of(name, Some(child)), wanted.into()));
        let all: Told = lost.chain(children).collect();
        all.into_iter().take(TOLD_MAX).collect()
    }

    /// Facts about this member, as they are now.
    fn facts_now(&self) -> Facts {
        Facts {
            macs: self.ports.macs(),
            secrets: self.secrets.ids(),
            fates: self.fates(),
        }
    }

    /// Tells the others what this member is and what it goes by.
    pub(super) fn share(&mut self) {
        let facts = self.facts_now();
        let shared = self.policies.shared(&self.secrets);
        self.node.share(shared, facts.encode());
        self.told = facts.fates;
    }

    /// Once a second.
    pub(super) fn tell_fates(&mut self) {
        if self.fates() != self.told {
            self.share();
            self.settle();
        }
    }

    /// This member serves a group: what the one that served it before has told of its connections counts now, and what this member has kept
    /// from an earlier time does not.
    pub(super) fn inherit_fates(&mut self, group: GroupId) {
        let before = self.groups.get(group).before.owner;
        let Some(facts) = before.filter(|m| *m != self.me).and_then(|m| self.facts.get(&m)) else {
            return;
        };
        let fates = facts.fates.clone();
        let of_group = |name: &str| {
            let segment = segment_of_name(self.steer_key, name);
            self.groups.layout.group_of(segment) == group
        };
        let connections = self.config.connections.iter().filter(|c| of_group(&c.name));
        let connections = connections.cloned().collect::<Vec<_>>();
        let mut inherited = 0;
        for config in connections {
            let name = config.name.as_str();
            self.wanted.remove(name);
            self.children.forget(name);
            if let Some(fate) = fates.get(&name_of(name, None)) {
                inherited += 1;
                self.wanted.insert(name.to_owned(), Wanted::from(*fate));
            }
            for child in &config.children {
                if let Some(fate) = fates.get(&name_of(name, Some(&child.name))) {
                    inherited += 1;
                    self.children.closed(name, &child.name, Wanted::from(*fate));
                }
            }
        }
        if inherited > 0 {
            let before = before.unwrap_or(MemberId(0));
            let text =
                format!("{inherited} connections and children stay what they became at member {before}");
            self.log.note_of(group, "fates", text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_and_its_children_have_names_of_their_own() {
        let names = [
            name_of("a", None),
            name_of("a", Some("b")),
            name_of("ab", None),
            name_of("b", Some("a")),
        ];
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
    }

    #[test]
    fn what_was_told_is_what_was_wanted() {
        for wanted in [Wanted::Rest, Wanted::Trap, Wanted::Up] {
            assert_eq!(Wanted::from(Fate::from(wanted)), wanted);
        }
    }
}
