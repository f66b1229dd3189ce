//! The model: initial state, actions, properties.

use crate::rules::Rules;
use crate::state::{Body, Broken, Ghost, Left, Lim, Member, Open, Record, Role, Sa, State};
use crate::steps::{Actor, DIRECTIONS};
use cluster::rules::{Solo, Standing};
use cluster::{Direction, EpochId};
use model::{Epoch, MemberId};
use stateright::{Model, Property};
use std::collections::BTreeSet;

/// A pair: member 1 owns in epoch 1, member 2 is in sync; both hold the SA with lease 1 and ceiling 1.
#[derive(Clone)]
pub struct World {
    /// The decisions.
    pub rules: Rules,
    /// Bounds.
    pub bounds: Left,
    /// What an unfenced loss did to an SA stays with the SA.
    pub taint: bool,
    /// An owner may go on alone.
    pub solo_continue: bool,
    /// Where the exploration begins.
    pub start: Start,
}

/// Where the exploration begins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Owner and in-sync standby.
    Pair,
    /// The standby acknowledged an open raise, died without taking over, and has just started again.
    StandbyRestarted,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A record arrives.
    Deliver(usize, Record),
    /// A member dies.
    Crash(usize),
    /// It starts again and knows nothing.
    Restart(usize),
    /// A standby believes that the owner is gone.
    TakeOver(usize),
    /// An owner believes that the standby is gone.
    Exclude(usize),
    /// A member without place asks to join.
    AskToJoin(usize),
    /// The owner looks whether the joiner has everything.
    Enter(usize),
    /// The owner wants more numbers.
    Raise(usize, u8),
    /// The owner writes an entry.
    Write(usize),
    /// It sends the octets of a committed entry.
    SendEntry(usize),
    /// It sends an ESP packet.
    SendPacket(usize),
    /// An ESP packet arrives at a member that believes to be the owner.
    Packet(usize, u8),
}

impl World {
    fn actor<'a>(&'a self, state: &'a mut State, at: usize) -> Actor<'a> {
        Actor {
            state,
            at,
            rules: &self.rules,
            taint: self.taint,
            solo: if self.solo_continue {
                Solo::Continue
            } else {
                Solo::Stop
            },
        }
    }
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let lim = Lim {
            limit: 1,
            step: 1,
            floor: 0,
            epoch: 1,
            tainted: false,
        };
        let sa = Sa {
            outbound: lim,
            inbound: lim,
            counter: 0,
            seen: 0,
        };
        let first = EpochId {
            number: Epoch(1),
            owner: MemberId(1),
        };
        let blank = Member {
            epoch: first,
            sa: Some(sa),
            ..Member::blank(1)
        };
        let mut members = [
            Member {
                role: Role::Owner,
                ..blank.clone()
            },
            Member {
                role: Role::InSync,
                ..blank
            },
        ];
        let set: BTreeSet<_> = [members[0].name(0), members[1].name(1)].into();
        for member in &mut members {
            member.set = Some(set.clone());
        }
        let mut network = BTreeSet::new();
        if self.start == Start::StandbyRestarted {
            let from = members[1].name(1);
            members[0].version = 1;
            members[0].open[0] = Some(Open {
                version: 1,
                limit: 4,
                missing: BTreeSet::from([from]),
            });
            network.insert(Record {
                from,
                epoch: first,
                body: Body::RaiseAck {
                    direction: 0,
                    version: 1,
                },
            });
            members[1] = Member::blank(2);
        }
        let heartbeat = Record {
            from: members[0].name(0),
            epoch: first,
            body: Body::Owns,
        };
        network.insert(heartbeat);
        vec![State {
            members,
            network,
            ghost: Ghost::default(),
            left: self.bounds,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let left = &state.left;
        for at in 0..2 {
            let me = &state.members[at];
            if !me.up {
                if left.restarts > 0 {
                    actions.push(Action::Restart(at));
                }
                continue;
            }
            if left.crashes > 0 {
                actions.push(Action::Crash(at));
            }
            for record in state
                .network
                .iter()
                .filter(|r| r.from.member.0 as usize != at + 1)
            {
                actions.push(Action::Deliver(at, record.clone()));
            }
            match me.role {
                // A joining member may lose its patience too; only the rules stop it.
                Role::InSync | Role::Following if left.takeovers > 0 => actions.push(Action::TakeOver(at)),
                Role::Blank if left.joins > 0 && me.epoch != EpochId::NONE => {
                    actions.push(Action::AskToJoin(at))
                }
                Role::Owner => self.owner_actions(state, at, actions),
                _ => {}
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Deliver(at, record) => self.actor(&mut state, at).deliver(&record),
            Action::Crash(at) => {
                let incarnation = state.members[at].incarnation;
                state.members[at] = Member {
                    up: false,
                    ..Member::blank(incarnation)
                };
                state.left.crashes -= 1;
            }
            Action::Restart(at) => {
                let incarnation = state.members[at].incarnation + 1;
                state.members[at] = Member::blank(incarnation);
                state.left.restarts -= 1;
            }
            Action::TakeOver(at) => {
                state.left.takeovers -= 1;
                self.actor(&mut state, at).take_over();
            }
            Action::Exclude(at) => {
                state.left.exclusions -= 1;
                self.actor(&mut state, at).lose_standby(false, false);
            }
            Action::AskToJoin(at) => {
                state.left.joins -= 1;
                self.actor(&mut state, at).ask_to_join();
            }
            Action::Enter(at) => self.actor(&mut state, at).try_enter(),
            Action::Raise(at, direction) => {
                let direction = DIRECTIONS[usize::from(direction)];
                match direction {
                    Direction::Outbound => state.left.outbound_raises -= 1,
                    Direction::Inbound => state.left.inbound_raises -= 1,
                }
                self.actor(&mut state, at).raise(direction);
            }
            Action::Write(at) => {
                state.left.entries -= 1;
                self.actor(&mut state, at).write();
            }
            Action::SendEntry(at) => self.actor(&mut state, at).send_entry(),
            Action::SendPacket(at) => self.actor(&mut state, at).send_packet(),
            Action::Packet(at, number) => self.actor(&mut state, at).accept(number),
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn holds(state: &State, what: Broken) -> bool {
            !state.ghost.broken.contains(&what)
        }
        vec![
            Property::always(R4, |_, s: &State| holds(s, Broken::OutboundTwice)),
            Property::always(R10, |_, s: &State| holds(s, Broken::NonceTwice)),
            Property::always(R6, |_, s: &State| holds(s, Broken::InboundTwice)),
            Property::always(R3, |_, s: &State| holds(s, Broken::EntryLost)),
            Property::always(SURVIVOR, |_, s: &State| holds(s, Broken::NoSurvivor)),
        ]
    }
}

impl World {
    fn owner_actions(&self, state: &State, at: usize, actions: &mut Vec<Action>) {
        let (left, me) = (&state.left, &state.members[at]);
        let others = me.set.as_ref().is_some_and(|s| s.len() > 1);
        if others && left.exclusions > 0 && self.solo_continue {
            actions.push(Action::Exclude(at));
        }
        if me.join.is_some() {
            actions.push(Action::Enter(at));
        }
        if left.outbound_raises > 0 {
            actions.push(Action::Raise(at, 0));
        }
        if left.inbound_raises > 0 {
            actions.push(Action::Raise(at, 1));
        }
        if left.entries > 0 {
            actions.push(Action::Write(at));
        }
        if usize::from(me.sent) < me.journal.len() {
            actions.push(Action::SendEntry(at));
        }
        let mut scratch = state.clone();
        let actor = self.actor(&mut scratch, at);
        if actor.next_outbound().is_some() {
            actions.push(Action::SendPacket(at));
        }
        for number in 1..=left.inbound_max {
            if actor.accepts(number) {
                actions.push(Action::Packet(at, number));
            }
        }
    }
}

/// Outbound sequence numbers.
pub const R4: &str = "R4: no outbound sequence number twice under one key";
/// Nonces.
pub const R10: &str = "R10: no (member, epoch, number) nonce twice under one key";
/// Inbound sequence numbers.
pub const R6: &str = "R6: no inbound number accepted twice, unless by one half of a split";
/// The journal.
pub const R3: &str = "R3, R8: what went on the wire is in the taker's journal";
/// Liveness, as far as a state can show it.
pub const SURVIVOR: &str = "a member that is in sync can take over";

/// Whether a state is of interest to the sanity checks: they show that the exploration gets where it should.
pub fn standing_is_solo(state: &State) -> bool {
    state
        .members
        .iter()
        .any(|m| m.up && m.role == Role::Owner && m.standing == Standing::AloneUnfenced)
}
