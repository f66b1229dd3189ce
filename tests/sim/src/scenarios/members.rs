//! Child SAs per member, alone and beside those per CPU (RFC 9611, ADR 11), under every kind of fault.

use super::{NO_FAULTS, PLAIN, Scenario, found};
use crate::faults::Mix;
use crate::setup::{Engine, PerResource, Setup};

/// Several groups, so that IKE SAs and the Child SAs of other members are of different ones; packets come to all members in turn.
pub(super) fn members(setup: &mut Setup) {
    let drawn = setup.steer_key[0];
    setup.groups = 2 + (drawn % 5) as u8;
    setup.weights = vec![1; setup.weights.len()];
    setup.spread = !drawn.is_multiple_of(3);
    for (at, peer) in setup.peers.iter_mut().enumerate() {
        peer.per_resource = match (drawn >> (8 * at)) & 3 {
            0 => PerResource::Both,
            _ => PerResource::Member,
        };
    }
}

const MEMBERS: Scenario = Scenario {
    engine: Some(Engine::Etcd),
    adjust: members,
    ..PLAIN
};

/// All kinds of faults.
pub(super) const EVERYTHING: Scenario = Scenario {
    name: "members",
    about: "Child SAs per member, and all kinds of faults",
    weight: 16,
    mix: found::EVERYTHING,
    ..MEMBERS
};

/// A peer's deletion of the Child SA that every CPU may use crossed the request for a further one: that was a further one for who asked, and the
/// first one for who answered, whose policies led nowhere once it was deleted.
pub(super) const CROSSING_DELETION: Scenario = Scenario {
    name: "crossing-deletion",
    about: "a deletion of the first Child SA crosses the request for one per CPU or member",
    weight: 0,
    mix: found::EVERYTHING,
    seeds: Some(&[50_002_749]),
    ..MEMBERS
};

/// Deaths.
pub(super) const KILLS: Scenario = Scenario {
    name: "members-kills",
    about: "Child SAs per member: hosts and sponsors die and start again",
    weight: 6,
    mix: Mix {
        kill: 5,
        peer: 4,
        attack: 2,
        burst: 2,
        ..NO_FAULTS
    },
    ..MEMBERS
};

/// Sleep.
pub(super) const PAUSES: Scenario = Scenario {
    name: "members-pauses",
    about: "Child SAs per member: agents stop and go on, or are slow",
    weight: 3,
    mix: Mix {
        pause: 5,
        slow: 2,
        peer: 4,
        attack: 2,
        burst: 1,
        ..NO_FAULTS
    },
    ..MEMBERS
};

/// Partitions.
pub(super) const CUTS: Scenario = Scenario {
    name: "members-cuts",
    about: "Child SAs per member: partitions, one way or both",
    weight: 3,
    mix: Mix {
        cut: 4,
        one_way: 4,
        weather: 2,
        peer: 4,
        attack: 2,
        burst: 1,
        ..NO_FAULTS
    },
    ..MEMBERS
};

/// Groups move while exchanges run.
pub(super) const PLANNED: Scenario = Scenario {
    name: "members-planned",
    about: "Child SAs per member: planned takeovers, drains and rebalancing",
    weight: 4,
    mix: Mix {
        operator: 8,
        weather: 1,
        peer: 5,
        burst: 2,
        ..NO_FAULTS
    },
    ..MEMBERS
};

/// The engine fails.
pub(super) const ENGINE: Scenario = Scenario {
    name: "members-engine",
    about: "Child SAs per member: the ownership engine is down, slow, loses answers",
    weight: 3,
    mix: found::ENGINE,
    ..MEMBERS
};

/// Records between sponsors and hosts are lost, doubled and overtake each other.
pub(super) const NOISE: Scenario = Scenario {
    name: "members-noise",
    about: "Child SAs per member: loss, duplication and disorder on the synch network only",
    weight: 3,
    mix: Mix {
        synch_noise: 6,
        burst: 1,
        ..NO_FAULTS
    },
    noise_only: true,
    ..MEMBERS
};
