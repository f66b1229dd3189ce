//! Faults of the product that the simulation found: a mix that shows each, and seeds with which it failed before it was mended.

use super::{NO_FAULTS, PLAIN, Scenario};
use crate::faults::Mix;
use crate::setup::{Engine, Setup};
use std::time::Duration;

/// What the scenario `everything` is made of.
pub(super) const EVERYTHING: Mix = Mix {
    kill: 4,
    pause: 4,
    slow: 2,
    cut: 3,
    one_way: 2,
    weather: 3,
    peer_path: 2,
    engine: 3,
    operator: 3,
    peer: 4,
    attack: 6,
    burst: 3,
    synch_noise: 2,
};

/// What the scenario `cuts` is made of.
pub(super) const CUTS: Mix = Mix {
    cut: 4,
    one_way: 4,
    peer: 2,
    attack: 3,
    burst: 2,
    ..NO_FAULTS
};

/// What the scenario `planned-only` is made of.
pub(super) const OPERATOR: Mix = Mix {
    operator: 8,
    ..NO_FAULTS
};

const PAUSES: Mix = Mix {
    pause: 5,
    slow: 2,
    peer: 3,
    attack: 1,
    burst: 1,
    ..NO_FAULTS
};

/// An owner that was replaced kept the ESP SPIs of its unfinished exchanges reserved. The new owner gave the slots to SAs of its own,
/// which the old one could then never mirror: it acknowledged nothing more, and no snapshot could be installed.
pub(super) const KEPT_RESERVATIONS: Scenario = Scenario {
    name: "kept-reservations",
    about: "an SA lands in a slot that an old owner had reserved for an unfinished exchange",
    mix: PAUSES,
    seeds: Some(&[1, 2, 7, 17]),
    ..PLAIN
};

/// An owner that had slept for longer than the time limit of acknowledgements dropped its standby at the first tick, before it had read
/// that this one had taken over: it committed alone, and sent other octets under Message IDs that were used.
pub(super) const LATE_AFTER_SLEEP: Scenario = Scenario {
    name: "late-after-sleep",
    about: "an owner wakes up with a commit that nobody has acknowledged",
    engine: Some(Engine::Pair),
    mix: PAUSES,
    seeds: Some(&[1, 2, 3]),
    ..PLAIN
};

/// A Child SA that the peer had replaced, and that was then deleted from this side: its successor waited for ever for the peer's Delete,
/// and nothing was sent any more.
pub(super) const DELETED_PREDECESSOR: Scenario = Scenario {
    name: "deleted-predecessor",
    about: "a peer deletes the Child SA whose rekey by the other side is on its way",
    mix: Mix {
        pause: 4,
        peer: 8,
        burst: 1,
        ..NO_FAULTS
    },
    seeds: Some(&[101]),
    ..PLAIN
};

/// The mix of the scenario `engine`.
pub(super) const ENGINE: Mix = Mix {
    engine: 6,
    kill: 3,
    pause: 2,
    operator: 2,
    attack: 2,
    ..NO_FAULTS
};

/// The masks of a heartbeat named members, not lives. While one group counted on the old life of a member that was started again,
/// and another one on its new life, standbys believed in sets with both. The taker of a planned move then compared the key with a
/// record that was never there, and could change its set no more ("was it edited?").
pub(super) const TWO_LIVES: Scenario = Scenario {
    name: "two-lives",
    about: "a planned takeover while groups count on different lives of a member",
    weight: 0,
    engine: Some(Engine::Etcd),
    mix: ENGINE,
    seeds: Some(&[1980]),
    ..PLAIN
};

/// The engine had taken a joining member into the set, but the owner died before it said so, and the link to it was closed. The
/// member threw away its mirror and the knowledge that the owner was lost, although nobody else was left to take over.
pub(super) const LOST_WHILE_ENTERING: Scenario = Scenario {
    name: "lost-while-entering",
    about: "an owner dies between the write that adds a member and the word about it",
    weight: 0,
    engine: Some(Engine::Etcd),
    mix: ENGINE,
    seeds: Some(&[1438]),
    ..PLAIN
};

fn late_writes(setup: &mut Setup) {
    setup.late_writes = true;
}

/// A write that a member gave up is carried out later: a joiner that had looked before, and had thrown its mirror away since it was in no
/// set, is in the set after all. Nobody began again then, because that life was there.
pub(super) const LATE_WRITE: Scenario = Scenario {
    name: "late-write",
    about: "writes are carried out after they have been given up",
    weight: 0,
    engine: Some(Engine::Etcd),
    mix: ENGINE,
    adjust: late_writes,
    seeds: Some(&[103, 1264, 2467, 2711]),
    ..PLAIN
};

fn no_lifetimes(setup: &mut Setup) {
    for peer in &mut setup.peers {
        peer.child_rekey = None;
    }
}

/// The lost half of a split rekeyed a Child SA with the peer. Message IDs of both halves happened to agree, so liveness checks found
/// nothing, and until the next rekey all packets met an unknown SPI. Now the loser says what its fork touched.
pub(super) const FORKED_CHILD: Scenario = Scenario {
    name: "forked-child",
    about: "the lost half of a split rekeys Child SAs, and Message IDs of both halves agree",
    weight: 0,
    engine: Some(Engine::Pair),
    mix: Mix {
        cut: 6,
        peer: 4,
        ..NO_FAULTS
    },
    adjust: no_lifetimes,
    seeds: Some(&[206]),
    ..PLAIN
};

/// A half of a split had sent a request about Child SAs that the other half did not know of. The peer answered both halves' requests of that
/// Message ID with the same octets: the winner took the answer to the loser's request for its own.
pub(super) const FORKED_REQUEST: Scenario = Scenario {
    name: "forked-request",
    about: "both halves of a split ask a peer under one Message ID",
    weight: 0,
    mix: EVERYTHING,
    seeds: Some(&[485]),
    ..PLAIN
};

/// An owner that had taken over by force, and handed over again before a packet of an SA had come, gave its window away as it had been
/// before it took over: the floor of an epoch is applied with its first packet. What the first owner had accepted was accepted again.
pub(super) const STALE_WINDOW: Scenario = Scenario {
    name: "stale-window",
    about: "a takeover, then a planned one before a packet has come, then a replay",
    weight: 0,
    mix: CUTS,
    seeds: Some(&[160_164_844]),
    ..PLAIN
};

/// A taker's right edge stayed at the old owner's ceiling when the final window was merged. Each planned takeover moved it on by the headroom,
/// and at last the peer's numbers were too old: nothing came in any more, and no evidence was seen, since the floor was gone.
pub(super) const EDGE_AHEAD: Scenario = Scenario {
    name: "edge-ahead",
    about: "one planned takeover after the other, faster than the peer's numbers rise",
    weight: 0,
    mix: OPERATOR,
    planned_from: Some(Duration::ZERO),
    seeds: Some(&[35]),
    ..PLAIN
};

/// A Child SA was proposed, and nobody had acknowledged it, when the standby took over unheard and finished the exchange by itself: it sent from the
/// first number on, and died. The old owner went on, committed its proposal alone, and sent from the first number on too.
pub(super) const FINISHED_ELSEWHERE: Scenario = Scenario {
    name: "finished-elsewhere",
    about: "both halves of a split finish the exchange that makes a Child SA",
    weight: 0,
    engine: Some(Engine::Pair),
    mix: EVERYTHING,
    seeds: Some(&[5]),
    ..PLAIN
};

/// The checker was at fault: the lost half of a split had accepted a packet that the winner never saw, and owned the group again afterwards in a
/// planned way, with the winner's window. A split of a pair does not keep that (docs/SYNCH-CHANNEL.md), for neither half.
pub(super) const WINNERS_WINDOW: Scenario = Scenario {
    name: "winners-window",
    about: "the lost half of a split owns the group again, with the winner's window",
    weight: 0,
    mix: CUTS,
    seeds: Some(&[50_000_797]),
    ..PLAIN
};

/// What the lost half of a split had touched was an IKE SA that the winner had rekeyed since then: it knew no IKE SA of that name any more, and left
/// alone what had taken its place.
pub(super) const REKEYED_FORK: Scenario = Scenario {
    name: "rekeyed-fork",
    about: "the winner of a split has rekeyed the IKE SA that the loser names",
    weight: 0,
    mix: EVERYTHING,
    seeds: Some(&[50_009_746]),
    ..PLAIN
};

/// A member of a pair knew of an epoch of the other one's, and held nothing of it. The other one was started again, and began below that epoch
/// before the first could make anything of the silence, which stood still itself: it asked to join an epoch that nobody had any more, for ever.
pub(super) const BEGUN_BELOW: Scenario = Scenario {
    name: "begun-below",
    about: "an owner is started again, and begins with a lower epoch than a member knows that wants to join",
    weight: 0,
    mix: EVERYTHING,
    seeds: Some(&[50_005_318]),
    ..PLAIN
};
