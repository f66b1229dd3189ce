//! The model: initial state, actions, properties.

use crate::group::actor::Actor;
use crate::group::reduce::representative;
use crate::group::rules::Rules;
use crate::group::state::{
    Broken, Ep, Ghost, Key, Landed, Left, Lim, MEMBERS, Member, Purpose, Record, Role, State, member_id, name,
};
use cluster::Direction;
use stateright::{Model, Property};
use std::collections::{BTreeMap, BTreeSet};

/// Member 1 owns in epoch 1, the others are in sync; all hold the SA with the same limit.
#[derive(Clone)]
pub struct World {
    /// The decisions.
    pub rules: Rules,
    /// Bounds.
    pub bounds: Left,
    /// Which direction of the SA.
    pub direction: Direction,
    /// Members that exist.
    pub members: usize,
    /// Steps that a raise may have.
    pub steps: &'static [u8],
    /// Limit at the start (its step is 1).
    pub limit: u8,
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
    /// A member reads the key and writes its claim.
    Claim(usize, Key),
    /// A write of a member is done, or finds that the key holds something else.
    Land(usize),
    /// So for one that nobody waits for.
    LandLate(usize),
    /// The answer of the engine arrives.
    Learn(usize),
    /// It does not; a read shows the key as it was.
    TimeOut(usize),
    /// An owner or taker believes that a member is gone, and asks for a smaller set.
    Exclude(usize, usize),
    /// A standby hears which raises everybody has armed.
    Hear(usize),
    /// A member without place asks to join.
    AskToJoin(usize),
    /// The owner asks for a set with the joiner.
    Enter(usize),
    /// The owner gives the joiner up.
    DropJoiner(usize),
    /// The owner wants more numbers, with this step.
    Raise(usize, u8),
    /// The owner lowers its ceiling, with this step.
    Lower(usize, u8),
    /// The owner forgets an open raise (a broken rule).
    ForgetRaise(usize),
    /// The owner writes an entry.
    Entry(usize),
    /// The owner asks for a planned move.
    Move(usize, usize),
    /// It goes on meanwhile, because the engine does not answer.
    GoOn(usize),
    /// Packets of the peer with all numbers that are not too high arrive.
    Accept(usize),
    /// A number without upper limit is used.
    UseAlone(usize),
    /// A member begins anew; the flag: it has not heard of the others' present lives.
    BeginAnew(usize, bool),
    /// A member that has lost its owner finds itself in no set, and throws away what it holds.
    GiveUp(usize),
}

impl World {
    fn actor<'a>(&'a self, state: &'a mut State, at: usize) -> Actor<'a> {
        Actor {
            state,
            at,
            rules: &self.rules,
            direction: self.direction,
        }
    }

    fn owner_actions(&self, scratch: &mut State, at: usize, actions: &mut Vec<Action>) {
        let left = scratch.left;
        let me = scratch.members[at].clone();
        let idle = me.write.is_none();
        if left.exclusions > 0 && idle {
            let others = (0..MEMBERS).filter(|m| *m != at && me.known[*m] != 0);
            actions.extend(others.map(|m| Action::Exclude(at, m)));
            if me.join.is_some() {
                actions.push(Action::DropJoiner(at));
            }
        }
        if me.role != Role::Owner {
            return;
        }
        let actor = self.actor(scratch, at);
        let range = actor.range();
        let limited = range.is_some_and(|(_, last)| last != u64::MAX);
        if idle && actor.may_enter() {
            actions.push(Action::Enter(at));
        }
        if left.raises > 0 && !me.frozen && limited {
            actions.extend(self.steps.iter().map(|step| Action::Raise(at, *step)));
        }
        if left.lowerings > 0 && !me.frozen && actor.lower_target().is_some() {
            actions.extend(self.steps.iter().map(|step| Action::Lower(at, *step)));
        }
        if left.expiries > 0 && me.open.is_some() && !self.rules.keeps_raises {
            actions.push(Action::ForgetRaise(at));
        }
        if left.entries > 0 && !me.frozen {
            actions.push(Action::Entry(at));
        }
        if left.moves > 0 && actor.may_move() {
            let others = (0..MEMBERS).filter(|m| *m != at && me.known[*m] != 0);
            actions.extend(others.map(|m| Action::Move(at, m)));
        }
        if me.frozen {
            actions.push(Action::GoOn(at));
        }
        if self.direction == Direction::Inbound && limited {
            actions.push(Action::Accept(at));
        }
        if range.is_some() && !limited && left.alone_uses > 0 {
            actions.push(Action::UseAlone(at));
        }
    }

    fn standby_actions(&self, scratch: &mut State, at: usize, actions: &mut Vec<Action>) {
        let left = scratch.left;
        let role = scratch.members[at].role;
        let actor = self.actor(scratch, at);
        if left.claims > 0 {
            let mut claims = BTreeSet::new();
            for lost in 0u8..1 << MEMBERS {
                if lost & 1 << at == 0 {
                    let lost = (0..MEMBERS)
                        .filter(|m| lost & 1 << m != 0)
                        .map(member_id)
                        .collect();
                    claims.extend(actor.claim(&lost));
                }
            }
            actions.extend(claims.into_iter().map(|key| Action::Claim(at, key)));
        }
        if actor.learns_settled() {
            actions.push(Action::Hear(at));
        }
        if left.beginnings > 0 && actor.is_left_out() {
            actions.push(Action::GiveUp(at));
        }
        if role == Role::Blank && left.joins > 0 {
            actions.push(Action::AskToJoin(at));
        }
        if role == Role::Blank && left.beginnings > 0 {
            actions.extend([false, true].map(|behind| Action::BeginAnew(at, behind)));
        }
    }
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let epoch = Ep { number: 1, owner: 0 };
        let mut set = [0; MEMBERS];
        set[..self.members].fill(1);
        let members = std::array::from_fn(|at| {
            if at >= self.members {
                return Member::blank(0);
            }
            Member {
                role: if at == 0 { Role::Owner } else { Role::InSync },
                epoch,
                mirror: true,
                lim: Lim {
                    limit: self.limit,
                    step: 1,
                    floor: 0,
                    epoch: 1,
                    tainted: false,
                },
                known: if at == 0 { set } else { [0; MEMBERS] },
                ..Member::blank(1)
            }
        });
        let mut state = State {
            key: Key {
                epoch,
                set,
                revision: 0,
            },
            late: Vec::new(),
            members,
            network: Vec::new(),
            ghost: Ghost {
                used: BTreeMap::new(),
                served: 2,
                ..Ghost::default()
            },
            left: self.bounds,
        };
        self.actor(&mut state, 0).spend();
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let mut scratch = state.clone();
        for at in 0..self.members {
            let me = &state.members[at];
            if !me.up {
                if state.left.restarts > 0 {
                    actions.push(Action::Restart(at));
                }
                continue;
            }
            if state.left.crashes > 0 {
                actions.push(Action::Crash(at));
            }
            let actor = self.actor(&mut scratch, at);
            let minded = state.network.iter().filter(|r| actor.minds(r));
            actions.extend(minded.map(|r| Action::Deliver(at, r.clone())));
            match me.write.map(|w| w.landed) {
                None => {}
                Some(Landed::NotYet) => {
                    actions.push(Action::Land(at));
                    if state.left.timeouts > 0 {
                        actions.push(Action::TimeOut(at));
                    }
                }
                Some(_) => actions.push(Action::Learn(at)),
            }
            if me.leads() {
                self.owner_actions(&mut scratch, at, actions);
            } else {
                self.standby_actions(&mut scratch, at, actions);
            }
        }
        actions.extend((0..state.late.len()).map(Action::LandLate));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let compares = |key: &Key, expected: &Key| {
            if self.rules.compares_revision {
                key == expected
            } else {
                (key.epoch, key.set) == (expected.epoch, expected.set)
            }
        };
        match action {
            Action::Deliver(at, record) => self.actor(&mut state, at).deliver(&record),
            Action::Crash(at) => {
                state.left.crashes -= 1;
                self.actor(&mut state, at).forget();
                let life = state.members[at].life;
                state.members[at] = Member {
                    up: false,
                    ..Member::blank(life)
                };
            }
            Action::Restart(at) => {
                state.left.restarts -= 1;
                state.members[at] = Member::blank(state.members[at].life + 1);
            }
            Action::Claim(at, key) => {
                state.left.claims -= 1;
                self.actor(&mut state, at).write_claim(key);
            }
            Action::Land(at) => {
                let key = state.key;
                if let Some(write) = &mut state.members[at].write {
                    let lands = compares(&key, &write.expected);
                    write.landed = if lands { Landed::Done } else { Landed::Failed };
                    if lands {
                        state.key = write.new;
                    }
                }
            }
            Action::LandLate(index) => {
                let write = state.late.remove(index);
                if compares(&state.key, &write.expected) {
                    state.key = write.new;
                }
            }
            Action::Learn(at) => self.actor(&mut state, at).learn(),
            Action::TimeOut(at) => {
                state.left.timeouts -= 1;
                self.actor(&mut state, at).time_out();
            }
            Action::Exclude(at, who) => {
                state.left.exclusions -= 1;
                self.actor(&mut state, at).exclude(who);
            }
            Action::Hear(at) => self.actor(&mut state, at).hear_settled(),
            Action::AskToJoin(at) => {
                state.left.joins -= 1;
                self.actor(&mut state, at).ask_to_join();
            }
            Action::Enter(at) => self.actor(&mut state, at).enter(),
            Action::DropJoiner(at) => {
                state.left.exclusions -= 1;
                self.actor(&mut state, at).drop_joiner();
            }
            Action::Raise(at, step) => {
                state.left.raises -= 1;
                self.actor(&mut state, at).raise(step);
            }
            Action::Lower(at, step) => {
                state.left.lowerings -= 1;
                self.actor(&mut state, at).lower(step);
            }
            Action::ForgetRaise(at) => {
                state.left.expiries -= 1;
                self.actor(&mut state, at).forget_raise();
            }
            Action::Entry(at) => {
                state.left.entries -= 1;
                self.actor(&mut state, at).write_entry();
            }
            Action::Move(at, to) => {
                state.left.moves -= 1;
                self.actor(&mut state, at).ask_to_move(to);
            }
            Action::GoOn(at) => state.members[at].frozen = false,
            Action::Accept(at) => self.actor(&mut state, at).accept(),
            Action::UseAlone(at) => {
                state.left.alone_uses -= 1;
                self.actor(&mut state, at).use_alone();
            }
            Action::GiveUp(at) => self.actor(&mut state, at).give_up(),
            Action::BeginAnew(at, behind) => {
                state.left.beginnings -= 1;
                if !self.actor(&mut state, at).begin_anew(behind) {
                    return None;
                }
            }
        }
        (state != *last).then(|| representative(state, self.members))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn none(state: &State, what: &[Broken]) -> bool {
            !what.iter().any(|b| state.ghost.broken.contains(b))
        }
        vec![
            Property::always(R4, |_, s: &State| none(s, &[Broken::OutboundTwice])),
            Property::always(R10, |_, s: &State| none(s, &[Broken::NonceTwice])),
            Property::always(R6, |_, s: &State| none(s, &[Broken::InboundTwice])),
            Property::always(R3, |_, s: &State| none(s, &[Broken::EntryLost])),
            Property::always(R8, |_, s: &State| none(s, &[Broken::Forked])),
            Property::always(R7, |_, s: &State| none(s, &[Broken::SaLost, Broken::BegunAnew])),
            Property::always(SURVIVOR, |world: &World, s: &State| world.survivor_can_go_on(s)),
            Property::always(SET, |_, s: &State| owner_knows_the_set(s)),
            Property::always(BEGINS, |world: &World, s: &State| world.somebody_begins(s)),
        ]
    }
}

impl World {
    /// If a life that the record lists runs, one that the record lists can go on.
    fn survivor_can_go_on(&self, state: &State) -> bool {
        if state.ghost.anew {
            return true;
        }
        let listed = (0..MEMBERS).any(|m| {
            let member = &state.members[m];
            member.up && state.key.set[m] == member.life && !member.gave_up
        });
        let mut scratch = state.clone();
        let actor = self.actor(&mut scratch, 0);
        !listed || (0..MEMBERS).any(|m| actor.may_go_on(m))
    }
}

impl World {
    /// If every life that the record lists is over, or holds nothing any more, and all members run, one of them can begin anew.
    fn somebody_begins(&self, state: &State) -> bool {
        let members = &state.members[..self.members];
        let holds = |(at, m): (usize, &Member)| {
            let listed = state.key.set[at] == m.life && !m.gave_up;
            !m.up || listed || m.leads() && m.epoch == state.key.epoch
        };
        if members.iter().enumerate().any(holds) {
            return true;
        }
        let lives: BTreeSet<_> = (0..self.members).map(|at| name(at, members[at].life)).collect();
        let record = state.key.wide();
        (0..self.members).any(|at| (self.rules.may_begin_anew)(&record, name(at, members[at].life), &lives))
    }
}

/// The owner of the record's epoch counts on those that the record lists.
fn owner_knows_the_set(state: &State) -> bool {
    let owner = &state.members[usize::from(state.key.epoch.owner)];
    if !owner.leads() || owner.epoch != state.key.epoch {
        return true;
    }
    state.key.set == owner.known
        || owner
            .write
            .is_some_and(|w| w.purpose != Purpose::Claim && w.new.set == state.key.set)
}

/// Outbound sequence numbers.
pub const R4: &str = "R4: no outbound sequence number twice under one key";
/// Nonces.
pub const R10: &str = "R10: no (member, epoch, number) nonce twice under one key";
/// Inbound sequence numbers.
pub const R6: &str = "R6: no inbound number is accepted twice";
/// The journal.
pub const R3: &str = "R3: what went on the wire is in the newest owner's journal";
/// One answer.
pub const R8: &str = "R8: no two different entries at one position go on the wire";
/// No SA dies.
pub const R7: &str = "R7: whatever is lost on the way, who takes over holds the SA";
/// Availability.
pub const SURVIVOR: &str = "an in-sync survivor can always take over";
/// No dead end.
pub const BEGINS: &str = "a group that nobody listed can go on with can be begun anew";
/// Who may claim.
pub const SET: &str = "the record lists exactly those whose acknowledgement its owner waits for";
