//! Faults of the product that the simulation found: a mix that shows each, and seeds with which it failed before it was mended.

use super::{NO_FAULTS, PLAIN, Scenario};
use crate::faults::Mix;

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
    seeds: Some(&[1, 2, 3]),
    ..PLAIN
};

/// An owner that had slept for longer than the time limit of acknowledgements dropped its standby at the first tick, before it had read
/// that this one had taken over: it committed alone, and sent other octets under Message IDs that were used.
pub(super) const LATE_AFTER_SLEEP: Scenario = Scenario {
    name: "late-after-sleep",
    about: "an owner wakes up with a commit that nobody has acknowledged",
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
    seeds: Some(&[1, 2, 3]),
    ..PLAIN
};
