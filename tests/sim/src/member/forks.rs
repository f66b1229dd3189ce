//! What an owner that goes on alone changes without the knowledge of its lost standby, and what is done about it once such a fork has lost:
//! `userspace/agent/src/core/forks.rs` in small.

use super::{Cx, Member};
use crate::entry::{EntryChange, spi_of};
use crate::sabotage::Sabotage;
use cluster::{Input, SetMember};
use ike::Transmit;
use model::{ChildSaChange, GroupId, IkeSpi, Instant};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const EXCHANGE_AT: usize = 18;
const CREATE_CHILD_SA: u8 = 36;
const PER_SECOND: usize = 32;
const AGAIN: Duration = Duration::from_secs(30);

/// Of one member.
#[derive(Default)]
pub(super) struct Forks {
    /// Groups that this member serves alone, unfenced, and what it touched there.
    touched: BTreeMap<GroupId, BTreeSet<IkeSpi>>,
    /// What others have named: each IKE SA with the time at which it was begun anew.
    named: BTreeMap<(GroupId, SetMember), Part>,
}

struct Part {
    number: u64,
    spis: BTreeMap<IkeSpi, Option<Instant>>,
}

impl Forks {
    /// The standby is lost.
    pub fn begin(&mut self, group: GroupId) {
        self.touched.entry(group).or_default();
    }

    /// A standby is in sync.
    pub fn end(&mut self, group: GroupId) {
        self.touched.remove(&group);
    }

    /// Another member owns the group.
    pub fn forget(&mut self, group: GroupId) {
        self.named.retain(|(g, _), _| *g != group);
    }
}

impl Member {
    /// An entry takes effect on the owner.
    pub(super) fn note_touched(&mut self, group: GroupId, changes: &[EntryChange], transmits: &[Transmit]) {
        let Some(touched) = self.forks.touched.get_mut(&group) else {
            return;
        };
        let about_children = transmits
            .iter()
            .filter(|t| t.bytes.get(EXCHANGE_AT) == Some(&CREATE_CHILD_SA));
        touched.extend(about_children.filter_map(|t| t.ike_spi));
        for change in changes {
            match change {
                EntryChange::IkePut(spi, _)
                    if self
                        .engine
                        .status_of(*spi)
                        .is_some_and(|sa| sa.children.iter().any(|child| child.phase != "installed")) =>
                {
                    touched.insert(*spi);
                }
                EntryChange::IkeRemove(spi) => drop(touched.insert(*spi)),
                EntryChange::Child(child) => {
                    match child {
                        ChildSaChange::Install { record, .. } => drop(touched.insert(record.ike_spi)),
                        ChildSaChange::MoveIkeSa { ike_spi, .. } => drop(touched.insert(*ike_spi)),
                        _ => {}
                    }
                    touched.extend(self.sad.get(spi_of(child)).map(|e| e.record.ike_spi));
                }
                // A record alone says no more than that Message IDs have moved.
                _ => {}
            }
        }
    }

    /// The fork is discarded.
    pub(super) fn tell_touched(&mut self, cx: &mut Cx<'_>, group: GroupId) {
        let touched = self.forks.touched.remove(&group).unwrap_or_default();
        if touched.is_empty() || self.sabotage == Some(Sabotage::ForkForgotten) {
            return;
        }
        cx.trace.note(cx.now, "fork", [u64::from(self.me.0), 0], || {
            format!(
                "member {}: its fork of group {group} touched {touched:?}",
                self.me
            )
        });
        self.node.handle(Input::ForkTouched {
            now: cx.now,
            group,
            touched: touched.into_iter().collect(),
        });
    }

    /// A member names what its fork touched.
    pub(super) fn fork_touched(
        &mut self,
        cx: &mut Cx<'_>,
        group: GroupId,
        from: SetMember,
        number: u64,
        touched: &[IkeSpi],
    ) {
        let known = self.forks.named.get(&(group, from));
        if known.is_none_or(|known| known.number != number) {
            let spis = touched.iter().map(|spi| (*spi, None)).collect();
            self.forks.named.insert((group, from), Part { number, spis });
            self.reestablish(cx);
        }
    }

    /// Once a second, and when there is something new.
    pub(super) fn reestablish(&mut self, cx: &mut Cx<'_>) {
        let mut due = Vec::new();
        for Part { spis, .. } in self.forks.named.values_mut() {
            let (mirror, engine) = (&self.mirror, &self.engine);
            spis.retain(|spi, _| mirror.contains_key(spi) || engine.status_of(*spi).is_some());
            for (spi, last) in spis {
                if due.len() < PER_SECOND && last.is_none_or(|at| cx.now.since(at) >= AGAIN) {
                    *last = Some(cx.now);
                    due.push(*spi);
                }
            }
        }
        for spi in due {
            self.engine_command(cx, ike::Command::Reestablish { spi });
        }
        let named = std::mem::take(&mut self.forks.named);
        let (done, open): (Vec<_>, Vec<_>) = named.into_iter().partition(|(_, part)| part.spis.is_empty());
        self.forks.named = open.into_iter().collect();
        for ((group, from), Part { number, .. }) in done {
            let (now, member) = (cx.now, from.member);
            self.node_input(
                cx,
                Input::ForkSettled {
                    now,
                    group,
                    member,
                    number,
                },
            );
        }
    }
}
