//! The least agent: carries out what a node wants, with a mirror of entries and limits as numbers.

use crate::register::Ask;
use crate::world::{Flight, World};
use cluster::{Direction, Input, Link, Output, RaiseItem};
use std::time::Duration;

/// First octet of an entry in the brief form; no test proposes one that begins so.
const BRIEF: u8 = b'~';

/// The brief form of an entry here: the octets backwards.
pub fn brief(entry: &[u8]) -> Vec<u8> {
    std::iter::once(BRIEF)
        .chain(entry.iter().rev().copied())
        .collect()
}

impl World {
    /// Carries out what the node wants, as an agent would.
    pub(crate) fn settle(&mut self, index: usize) {
        while let Some(output) = self.members[index].node.poll() {
            let now = self.now;
            let incarnation = self.members[index].node.status().me.incarnation.0;
            let member = &mut self.members[index];
            match output {
                Output::SendStream { peer, link, bytes } => {
                    self.streams.push_back(Flight {
                        at: now + Duration::from_millis(1),
                        from: index,
                        to: usize::from(peer.0) - 1,
                        link,
                        bytes,
                    });
                }
                Output::SendDatagram { peer, link, bytes } => {
                    self.datagram(index, usize::from(peer.0) - 1, link, bytes);
                }
                Output::Ownership { token, group, op } => {
                    let wait = self.register.delay + self.dice.below(2);
                    self.register.asks.push(Ask {
                        at: now + Duration::from_millis(wait),
                        answer: None,
                        from: index,
                        incarnation,
                        token,
                        group,
                        op,
                    });
                }
                Output::Committed { token } => {
                    let (group, entry) = member.proposed.remove(&token).expect("a token that was proposed");
                    let part = &mut member.groups[usize::from(group.0)];
                    part.mirror.push(entry.clone());
                    part.committed.push(entry);
                }
                Output::Refused { token, .. } => {
                    member.proposed.remove(&token);
                    member.refused += 1;
                }
                Output::RaiseCommitted { group, items } => {
                    let part = &mut member.groups[usize::from(group.0)];
                    for item in items {
                        part.limits
                            .insert((item.slot, item.direction == Direction::Outbound), item.limit);
                    }
                }
                Output::RaiseRefused { items, .. } => member.raise_refused.extend(items),
                Output::Apply {
                    group,
                    token,
                    mut entry,
                    ..
                } => {
                    if std::mem::take(&mut member.misfit) {
                        member.node.handle(Input::DoesNotFit { now, token });
                        continue;
                    }
                    if entry.first() == Some(&BRIEF) {
                        member.briefs += 1;
                        entry = entry[1..].iter().rev().copied().collect();
                    }
                    member.groups[usize::from(group.0)].mirror.push(entry);
                    self.arm(index, token);
                }
                Output::ApplyRaises {
                    group, token, items, ..
                } => {
                    if member.refuses_limits {
                        // An SA that is here does not take them: nothing is said.
                        continue;
                    }
                    let part = &mut member.groups[usize::from(group.0)];
                    for item in items {
                        let key = (item.slot, item.direction == Direction::Outbound);
                        part.limits.insert(key, item.limit);
                    }
                    self.arm(index, token);
                }
                Output::RestateLimits {
                    group, token, keys, ..
                } => {
                    member.restated += 1;
                    let part = &member.groups[usize::from(group.0)];
                    let items = keys
                        .iter()
                        .filter_map(|key| {
                            let limit = *part
                                .limits
                                .get(&(key.slot, key.direction == Direction::Outbound))?;
                            Some(RaiseItem {
                                slot: key.slot,
                                spi: key.spi,
                                direction: key.direction,
                                limit: limit + 10,
                                step: 10,
                            })
                        })
                        .collect();
                    member.node.handle(Input::Restated { now, token, items });
                }
                Output::CapLimits { group, token } => {
                    let part = &member.groups[usize::from(group.0)];
                    let limits: Vec<((u32, bool), u64)> = part.limits.iter().map(|(k, v)| (*k, *v)).collect();
                    let bytes = postcard::to_stdvec(&(&part.mirror, limits)).expect("plain data");
                    member.node.handle(Input::Snapshot { now, token, bytes });
                }
                Output::VerifyCaps { token, .. } => {
                    member.node.handle(Input::CapsVerified {
                        now,
                        token,
                        items: vec![],
                    });
                }
                Output::InstallSnapshot { group, token, bytes } => {
                    type Snapshot = (Vec<Vec<u8>>, Vec<((u32, bool), u64)>);
                    let (mirror, limits): Snapshot = postcard::from_bytes(&bytes).expect("what was sent");
                    let part = &mut member.groups[usize::from(group.0)];
                    part.mirror = mirror;
                    part.limits = limits.into_iter().collect();
                    if member.slow_snapshot {
                        member.held.push(token);
                    } else {
                        self.arm(index, token);
                    }
                }
                Output::Flip(flip) => {
                    let part = &mut member.groups[usize::from(flip.group.0)];
                    part.serving = flip.epoch.owner.0 == index as u8 + 1;
                    part.valid_until = flip.valid_until;
                    let token = flip.token;
                    part.flip = Some(flip);
                    self.arm(index, token);
                }
                Output::ExtendValidity { group, until, .. } => {
                    member.groups[usize::from(group.0)].valid_until = until;
                }
                Output::DiscardFork { group } => {
                    let part = &mut member.groups[usize::from(group.0)];
                    part.mirror.clear();
                    part.limits.clear();
                    part.discards += 1;
                    let touched = std::mem::take(&mut part.touched);
                    let peers = std::mem::take(&mut part.met);
                    member.node.handle(Input::ForkTouched {
                        now,
                        group,
                        touched,
                        peers,
                    });
                }
                Output::ForkTouched {
                    group,
                    from,
                    number,
                    touched,
                    peers,
                } => {
                    let part = &mut member.groups[usize::from(group.0)];
                    part.told.push((from.member.0, number, touched));
                    part.named.extend(peers);
                    if !member.keeps_forks {
                        member.node.handle(Input::ForkSettled {
                            now,
                            group,
                            member: from.member,
                            number,
                        });
                    }
                }
                Output::LeaveRests { token, .. } => {
                    let rests = member.rests.clone();
                    member.node.handle(Input::RestsLeft { now, token, rests });
                }
                Output::TakeRests { epoch, rests, .. } => {
                    assert!(!member.groups[0].serving, "before the flip");
                    member.rests_taken.push((epoch, rests));
                }
                Output::CloseLegacy { token, .. } => {
                    member.node.handle(Input::FinalWindows {
                        now,
                        token,
                        bytes: b"windows".to_vec(),
                    });
                }
                Output::MergeWindows { token, bytes, .. } => {
                    assert_eq!(bytes, b"windows");
                    self.arm(index, token);
                }
                Output::ResumeIke { group } => member.groups[usize::from(group.0)].resumed += 1,
                Output::Event(event) => member.events.push(event),
                Output::ApplyReport { .. }
                | Output::Announce { .. }
                | Output::SuspendIke { .. }
                | Output::PeerFacts { .. }
                | Output::Guest { .. } => {}
            }
        }
    }

    pub(crate) fn datagram(&mut self, from: usize, to: usize, link: Link, bytes: Vec<u8>) {
        let copies = if self.dice.percent(self.loss) {
            0
        } else {
            1 + u64::from(self.dice.percent(self.duplication))
        };
        for _ in 0..copies {
            let delay = 1 + if self.delay > 0 {
                self.dice.below(self.delay)
            } else {
                0
            };
            let at = self.now + Duration::from_millis(delay);
            self.datagrams.push(Flight {
                at,
                from,
                to,
                link,
                bytes: bytes.clone(),
            });
        }
    }
}
