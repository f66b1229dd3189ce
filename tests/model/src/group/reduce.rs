//! Symmetry: the members that begin as standbys are alike, so of all states that differ in their order only, one is
//! explored. (Hence the numbers of members in a trace may change from one step to the next.)
//!
//! Nothing in the rules looks at the order of members: epochs with equal numbers and different owners do not exist
//! under an engine.

use crate::group::state::{Body, Ep, Key, Lives, MEMBERS, Member, State, Write};
use std::collections::BTreeMap;

/// New place of each member.
type Places = [usize; MEMBERS];

/// The representative of a state.
pub fn representative(state: State, members: usize) -> State {
    let mut order: [usize; MEMBERS] = std::array::from_fn(|at| at);
    // Member 1 began as the owner; by what a member holds, not by whom it names.
    order[1..members].sort_by_key(|at| {
        let m = &state.members[*at];
        (
            (
                m.up,
                m.life,
                m.role,
                m.epoch.number,
                m.mirror,
                m.lim,
                m.counter,
                m.seen,
            ),
            (
                &m.journal, m.armed, m.doubt, m.version, m.restate, m.alone, m.sent, m.frozen,
            ),
            (
                m.write.map(|w| (w.purpose, w.landed, w.new.epoch.number)),
                m.join_id,
            ),
            (state.key.set[*at], state.key.epoch.owner == *at as u8),
            (state.members[0].known[*at], state.members[0].acknowledged[*at]),
            state.members[0].open.map(|open| open.missing[*at]),
        )
    });
    if order.is_sorted() {
        return state;
    }
    let mut places = [0; MEMBERS];
    for (place, at) in order.into_iter().enumerate() {
        places[at] = place;
    }
    moved(state, &places)
}

fn moved(mut state: State, places: &Places) -> State {
    state.key = key(state.key, places);
    for late in &mut state.late {
        *late = write(*late, places);
    }
    for member in &mut state.members {
        rename(member, places);
    }
    state.members = array(state.members, places);
    for record in &mut state.network {
        record.from = places[usize::from(record.from)] as u8;
        record.epoch = epoch(record.epoch, places);
        match &mut record.body {
            Body::NewEpoch { old, set, .. } => {
                *old = epoch(*old, places);
                *set = array(*set, places);
            }
            Body::Snapshot { to, .. } | Body::Joined { to, .. } | Body::Excluded { to: (to, _), .. } => {
                *to = places[usize::from(*to)] as u8;
            }
            Body::Offer { key: offered } => *offered = key(*offered, places),
            Body::Raise { .. }
            | Body::RaiseAck { .. }
            | Body::EpochAck { .. }
            | Body::Entry { .. }
            | Body::EntryAck { .. }
            | Body::JoinRequest { .. }
            | Body::SnapshotAck { .. } => {}
        }
    }
    state.network.sort_unstable();
    let used = std::mem::take(&mut state.ghost.used);
    state.ghost.used = used
        .into_iter()
        .map(|((owner, number), used)| ((places[usize::from(owner)] as u8, number), used))
        .collect::<BTreeMap<_, _>>();
    state
}

fn array<T>(old: [T; MEMBERS], places: &Places) -> [T; MEMBERS] {
    let mut pairs: Vec<(usize, T)> = places.iter().copied().zip(old).collect();
    pairs.sort_by_key(|(place, _)| *place);
    let mut values = pairs.into_iter().map(|(_, value)| value);
    std::array::from_fn(|_| values.next().expect("as many as before"))
}

fn epoch(old: Ep, places: &Places) -> Ep {
    Ep {
        owner: places[usize::from(old.owner)] as u8,
        ..old
    }
}

fn key(old: Key, places: &Places) -> Key {
    Key {
        epoch: epoch(old.epoch, places),
        set: array(old.set, places),
        ..old
    }
}

fn write(old: Write, places: &Places) -> Write {
    Write {
        expected: key(old.expected, places),
        new: key(old.new, places),
        ..old
    }
}

fn rename(member: &mut Member, places: &Places) {
    let lives = |lives: Lives| array(lives, places);
    member.epoch = epoch(member.epoch, places);
    member.write = member.write.map(|w| write(w, places));
    member.known = lives(member.known);
    member.following = lives(member.following);
    member.acknowledged = lives(member.acknowledged);
    member.admitted = lives(member.admitted);
    if let Some(open) = &mut member.open {
        open.missing = lives(open.missing);
    }
    if let Some(join) = &mut member.join {
        join.at = places[usize::from(join.at)] as u8;
    }
}
