//! The pair as a stateright model: where it starts, what may happen next, what must hold.

use crate::decisions::Decisions;
use crate::state::{Body, Broken, Budget, Ghost, Lim, Member, Record, Role, Sa, State};
use cluster::rules::Standing;
use stateright::{Model, Property};
use std::collections::BTreeSet;

/// Who decides that a member serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Pair, `solo = "continue"`: nothing fences; both may serve.
    Continue,
    /// Pair, `solo = "stop"`: an owner's words expire before its standby suspects it, and only the standby of the same
    /// epoch extends them again. An owner does not exclude a silent standby.
    Stop,
    /// A witness holds epoch and in-sync set; takeover, exclusion and entry are transactions on it. Words as with `Stop`.
    Witness,
}

/// A model.
#[derive(Clone)]
pub struct Pair {
    /// Who decides.
    pub engine: Engine,
    /// An SA whose other owner was lost, and may have used it, is tainted: what `tainted_by_loss` names is never raised
    /// again, and nobody who takes over uses it.
    pub taint: bool,
    /// A request to join may arrive late and twice (it went by the other link).
    pub late_requests: bool,
    /// Requests to join have rising numbers, and each is looked at once.
    pub named_joins: bool,
    /// R6 is demanded even where nothing fences.
    pub strict: bool,
    /// Decisions.
    pub rules: Decisions,
    /// What may happen.
    pub budget: Budget,
    /// Highest outbound number; 0 for no outbound packets.
    pub outbound_max: u8,
    /// Highest inbound number; 0 for none.
    pub inbound_max: u8,
}

impl Pair {
    /// A split may be seen, and is allowed to cost what the design says it costs.
    pub fn splits(&self) -> bool {
        self.engine == Engine::Continue && !self.strict
    }
}

/// Nothing at all.
pub const NOTHING: Budget = Budget {
    crashes: 0,
    restarts: 0,
    takeovers: 0,
    exclusions: 0,
    joins: 0,
    raises: [0, 0],
    entries: 0,
    cuts: 0,
    moves: 0,
};

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The programs of a member send the next packet of the SA.
    Send(usize),
    /// The peer's packet of this number arrives at a member.
    Accept(usize, u8),
    /// The agent of a member wants a higher lease (0) or ceiling (1).
    Wish(usize, u8),
    /// A datagram arrives.
    Datagram(Record),
    /// The next record of the stream to this member arrives.
    Stream(usize),
    /// A fresh heartbeat of the other one arrives at this member.
    Hear(usize),
    /// A standby loses its patience.
    Suspect(usize),
    /// An owner does.
    Exclude(usize),
    /// A proposal of this owner.
    Propose(usize),
    /// A standby that holds nothing asks for a snapshot.
    Ask(usize),
    /// An operator has this owner hand over.
    Move(usize),
    /// It waits no longer for the taker.
    GiveUp(usize),
    /// The connection is cut and comes back.
    Cut,
    /// A host dies.
    Crash(usize),
    /// It starts again, with a new life.
    Restart(usize),
}

/// First epoch: earlier ones have left acknowledgements behind in the network.
pub const FIRST: u8 = 3;

impl Model for Pair {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let limit = Lim {
            limit: 1,
            step: 1,
            floor: 0,
            epoch: FIRST,
            tainted: false,
        };
        let sa = Sa {
            limits: [limit; 2],
            counter: 0,
            seen: 0,
        };
        let epoch = (FIRST, 1);
        let mut owner = Member::blank(2, 2);
        owner.role = Role::Owner;
        owner.valid = true;
        let mut standby = Member::blank(2, 2);
        standby.role = Role::InSync;
        for m in [&mut owner, &mut standby] {
            m.epoch = epoch;
            m.set = Some([2, 2]);
            m.sa = Some(sa);
            m.standing = Standing::WithStandby;
        }
        let mut datagrams = BTreeSet::new();
        for direction in 0..2 {
            // Versions start over with each epoch: what the standby said in an earlier epoch and in an earlier life.
            for (incarnation, epoch) in [(2, (FIRST - 1, 2)), (1, (FIRST, 1))] {
                if self.budget.raises[usize::from(direction)] > 0 {
                    datagrams.insert(Record {
                        from: 1,
                        incarnation,
                        epoch,
                        body: Body::RaiseAck {
                            direction,
                            version: 1,
                        },
                    });
                }
            }
        }
        vec![State {
            members: [owner, standby],
            datagrams,
            streams: [Vec::new(), Vec::new()],
            budget: self.budget,
            witness: (epoch, [2, 2]),
            ghost: Ghost::default(),
        }]
    }

    fn actions(&self, s: &State, actions: &mut Vec<Action>) {
        if !s.ghost.broken.is_empty() {
            return;
        }
        for m in 0..2 {
            let me = &s.members[m];
            if !me.up {
                if s.budget.restarts > 0 {
                    actions.push(Action::Restart(m));
                }
                continue;
            }
            if me.serves() && me.sa.is_some() {
                if self.outbound_max > 0 {
                    actions.push(Action::Send(m));
                }
                actions.extend((1..=self.inbound_max).map(|n| Action::Accept(m, n)));
            }
            if me.role == Role::Owner {
                if s.budget.exclusions > 0 {
                    actions.push(Action::Exclude(m));
                }
                if me.offered.is_some() {
                    // Frozen.
                    actions.push(Action::GiveUp(m));
                } else {
                    actions.extend(
                        (0..2)
                            .filter(|d| s.budget.raises[usize::from(*d)] > 0)
                            .map(|d| Action::Wish(m, d)),
                    );
                    if s.budget.entries > 0 {
                        actions.push(Action::Propose(m));
                    }
                    if s.budget.moves > 0 && self.may_move(s, m) {
                        actions.push(Action::Move(m));
                    }
                }
            } else {
                if s.budget.takeovers > 0 && me.role != Role::Blank {
                    actions.push(Action::Suspect(m));
                }
                if s.budget.joins > 0 && me.role == Role::Asking {
                    actions.push(Action::Ask(m));
                }
            }
            actions.extend(
                s.datagrams
                    .iter()
                    .filter(|r| usize::from(r.from) != m)
                    .map(|r| Action::Datagram(*r)),
            );
            if !s.streams[m].is_empty() {
                actions.push(Action::Stream(m));
            }
            if s.members[1 - m].up {
                actions.push(Action::Hear(m));
            }
            if s.budget.crashes > 0 {
                actions.push(Action::Crash(m));
            }
        }
        if s.budget.cuts > 0 {
            actions.push(Action::Cut);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut s = last.clone();
        self.step(&mut s, action);
        (s != *last).then_some(s)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(
                "R4: no sequence number is sent twice under the key",
                |_, s: &State| !s.ghost.broken.contains(&Broken::NumberTwice),
            ),
            Property::always("R10: no nonce is used twice under the key", |_, s: &State| {
                !s.ghost.broken.contains(&Broken::NonceTwice)
            }),
            Property::always(
                "R3, R8: what is released is held by every in-sync standby and by every taker",
                |_, s: &State| {
                    !s.ghost.broken.contains(&Broken::ReleasedEarly)
                        && !s.ghost.broken.contains(&Broken::EntryLost)
                },
            ),
            Property::always("an in-sync survivor can take over", |model: &Self, s: &State| {
                model.survivors_can_take_over(s)
            }),
        ];
        if self.splits() {
            properties.push(Property::always(
                "R6 under a split: accepted twice only on the two sides of it",
                |_, s: &State| !s.ghost.broken.contains(&Broken::AcceptedTwiceUndocumented),
            ));
        } else {
            properties.push(Property::always(
                "R6: no inbound number is accepted twice",
                |_, s: &State| !s.ghost.broken.contains(&Broken::AcceptedTwice),
            ));
        }
        if self.budget.takeovers > 0 && self.outbound_max > 1 {
            properties.push(Property::sometimes("a taker sends", |_, s: &State| {
                s.ghost.taker_sent
            }));
        }
        if self.budget.joins > 0 {
            properties.push(Property::sometimes(
                "a member enters by joining",
                |_, s: &State| s.ghost.entered,
            ));
        }
        if self.budget.moves > 0 && self.budget.exclusions > 0 && self.outbound_max > 0 {
            properties.push(Property::sometimes(
                "a planned taker sends what it was left",
                |_, s: &State| s.ghost.rest_sent,
            ));
        }
        if self.budget.takeovers > 0 && self.engine == Engine::Continue {
            properties.push(Property::sometimes("both serve", |_, s: &State| {
                s.members.iter().all(crate::state::Member::serves)
            }));
        }
        if self.budget.entries > 0 {
            properties.push(Property::sometimes(
                "an entry is released with a standby",
                |_, s: &State| !s.ghost.released.is_empty(),
            ));
        }
        properties
    }
}
