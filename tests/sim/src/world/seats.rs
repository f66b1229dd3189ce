//! Lives of members, and the connections between them.

use super::{Item, Seat, State, What, World};
use crate::member::Member;
use cluster::{Input, Link};
use model::{Instant, MemberId};
use std::time::Duration;

const LINKS: [Link; 2] = [Link::Synch, Link::Outside];

impl World {
    /// A member starts and knows nothing.
    pub(super) fn start(&mut self, member: u8) {
        let now = self.now;
        let id = Self::member_id(member);
        if !matches!(self.seat(member).state, State::Down | State::AgentDead) {
            return;
        }
        // Incarnations rise over all starts: the agent takes the wall clock at its start.
        let life = now.0 / 1000 + u64::from(member);
        let config = self.setup.member(id, life, self.sabotage);
        let rng = self.rng.fork(life);
        let seat = self.seat(member);
        // Of an agent that died on a living host there is a file.
        let left = seat.member.as_mut().map(Member::left_forks);
        let mut begun = Member::new(config, rng, now);
        begun.take_up_forks(now, left.unwrap_or_default());
        *seat = Seat {
            state: State::Up,
            member: Some(begun),
            life,
            inbox: Default::default(),
            turn: Instant(u64::MAX),
            slow: Duration::ZERO,
            late_until: now,
            links: Default::default(),
            up_since: now,
        };
        self.trace.note(now, "start", [u64::from(member), life], || {
            format!("member {member} starts, incarnation {life}")
        });
        self.watch.truth.started(now, id, life);
        self.step(member, |m, cx| m.turn(cx));
    }

    /// A member's agent (and its host) is gone.
    pub(super) fn kill(&mut self, member: u8, host: bool) {
        let now = self.now;
        let seat = self.seat(member);
        if seat.state == State::Down || (seat.state == State::AgentDead && !host) {
            return;
        }
        seat.inbox.clear();
        seat.state = if host { State::Down } else { State::AgentDead };
        let untold = host && seat.member.as_ref().is_some_and(|m| m.has_untold_forks());
        if host {
            seat.member = None;
        }
        self.untold |= untold;
        self.watch.truth.died(now, Self::member_id(member));
        for other in self.members() {
            for link in LINKS {
                if other != member {
                    self.lose(member, other, link, None);
                }
            }
        }
    }

    pub(super) fn pause(&mut self, member: u8) {
        let now = self.now;
        let seat = self.seat(member);
        if seat.state == State::Up {
            seat.state = State::Paused;
            self.watch.truth.awake(now, Self::member_id(member), false);
        }
    }

    /// The agent goes on: first its clocks, then what has arrived.
    pub(super) fn resume(&mut self, member: u8) {
        let now = self.now;
        let seat = self.seat(member);
        if seat.state != State::Paused {
            return;
        }
        seat.state = State::Up;
        seat.up_since = now;
        seat.turn = Instant(u64::MAX);
        let items = std::mem::take(&mut seat.inbox);
        self.watch.truth.awake(now, Self::member_id(member), true);
        self.step(member, |m, cx| m.turn(cx));
        for item in items {
            self.take(member, item);
        }
    }

    /// Something reaches an agent: at once, later (it is slow), or when it goes on.
    pub(super) fn hand(&mut self, member: u8, item: Item) {
        let now = self.now;
        let seat = self.seat(member);
        match seat.state {
            State::Up if seat.slow.is_zero() && seat.late_until <= now => self.take(member, item),
            State::Up => {
                seat.late_until = seat.late_until.max(now + seat.slow);
                let (at, life) = (seat.late_until, seat.life);
                self.put(at, What::Late { member, life, item });
            }
            State::Paused => seat.inbox.push_back(item),
            State::AgentDead | State::Down => {}
        }
    }

    pub(super) fn take(&mut self, member: u8, item: Item) {
        let now = self.now;
        match item {
            Item::Record {
                from,
                link,
                connection,
                bytes,
            } => {
                let peer = MemberId(from);
                let stream = self.net.stream(Self::member_id(member), peer, link);
                if stream.up && stream.number == connection {
                    self.step(member, |m, cx| m.record(cx, peer, link, bytes));
                }
            }
            Item::Link {
                peer,
                link,
                connection,
                up,
            } => self.take_link(member, peer, link, connection, up),
            Item::Ike(datagram) => self.step(member, |m, cx| m.ike_datagram(cx, &datagram)),
            Item::Answer { token, answer } => self.step(member, |m, cx| {
                m.node_input(cx, Input::OwnershipAnswered { now, token, answer });
            }),
            Item::Tells { group, record } => self.step(member, |m, cx| {
                m.node_input(cx, Input::OwnershipSeen { now, group, record });
            }),
        }
    }

    /// News of a connection. The end of an old one comes before the beginning of a new one, and is heard once.
    fn take_link(&mut self, member: u8, peer: u8, link: Link, connection: u64, up: bool) {
        let known = self.seat(member).links.get(&(peer, link)).copied();
        let lost = if up {
            known.is_some()
        } else {
            known == Some(connection)
        };
        if lost {
            self.seat(member).links.remove(&(peer, link));
            self.step(member, |m, cx| m.link(cx, MemberId(peer), link, false));
        }
        if up && known.is_none_or(|known| known < connection) {
            self.seat(member).links.insert((peer, link), connection);
            self.step(member, |m, cx| m.link(cx, MemberId(peer), link, true));
        }
    }

    /// A connection is lost. Both ends (that still run) notice after a while; `noticed`: at once.
    fn lose(&mut self, a: u8, b: u8, link: Link, noticed: Option<Duration>) {
        let (ia, ib) = (Self::member_id(a), Self::member_id(b));
        let stream = self.net.stream(ia, ib, link);
        if !stream.up {
            return;
        }
        let (idle, connection) = (stream.idle, stream.number);
        self.net.close(ia, ib, link);
        let at = self.now + noticed.unwrap_or(idle);
        for (member, peer) in [(a, b), (b, a)] {
            let life = self.seat(member).life;
            self.put(
                at,
                What::LinkLost {
                    member,
                    life,
                    peer,
                    link,
                    connection,
                },
            );
        }
    }

    /// Connections that can be made are made; those that were silent for too long are lost.
    pub(super) fn look_at_links(&mut self) {
        let pairs: Vec<(u8, u8)> = self
            .members()
            .flat_map(|a| (a + 1..=self.setup.members).map(move |b| (a, b)))
            .collect();
        for (a, b) in pairs {
            for link in LINKS {
                self.look_at_link(a, b, link);
            }
        }
    }

    fn look_at_link(&mut self, a: u8, b: u8, link: Link) {
        let road = if link == Link::Synch {
            crate::net::Road::Synch
        } else {
            crate::net::Road::Outside
        };
        let open = self.net.open(a, b, road) && self.net.open(b, a, road);
        let run = |world: &mut World, m: u8| world.seat(m).state == State::Up;
        let both = run(self, a) && run(self, b);
        let works = open && both;
        let now = self.now;
        let (ia, ib) = (Self::member_id(a), Self::member_id(b));
        let idle = Duration::from_millis(self.rng.range(300, 1200));
        let chance = self.rng.permille(500);
        let stream = self.net.stream(ia, ib, link);
        match (stream.up, works) {
            (true, true) => self.mended(a, b, link),
            (true, false) => {
                let since = *stream.cut_since.get_or_insert(now);
                if now.since(since) > stream.idle {
                    self.lose(a, b, link, Some(Duration::ZERO));
                }
            }
            (false, true) if chance => {
                stream.up = true;
                stream.number += 1;
                stream.idle = idle;
                let connection = stream.number;
                for (member, peer) in [(a, b), (b, a)] {
                    self.hand(
                        member,
                        Item::Link {
                            peer,
                            link,
                            connection,
                            up: true,
                        },
                    );
                }
            }
            (false, _) => {}
        }
    }

    /// What a cut held back goes on.
    pub(super) fn mended(&mut self, a: u8, b: u8, link: Link) {
        let (low, high) = (a.min(b), a.max(b));
        let held = self
            .net
            .release(self.now, Self::member_id(low), Self::member_id(high), link);
        for (from_low, at, connection, bytes) in held {
            let (from, to) = if from_low { (low, high) } else { (high, low) };
            self.put(
                at,
                What::Record {
                    from,
                    to,
                    link,
                    connection,
                    bytes,
                },
            );
        }
    }
}
