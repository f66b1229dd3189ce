//! Peers that are authenticated anew every few seconds, a new IKE SA beside the old one (ADR 30), under every kind of fault.

use super::{NO_FAULTS, PLAIN, Scenario, found, one_way_in};
use crate::faults::Mix;
use crate::setup::{PerResource, Setup};
use std::time::Duration;

/// How often, milliseconds: the new IKE SA and the old one are there together for more than a second of that.
const EVERY: std::ops::Range<u64> = 2200..4800;

fn authenticated_anew(setup: &mut Setup) {
    for (at, peer) in setup.peers.iter_mut().enumerate() {
        let drawn = setup.steer_key[1].rotate_left(17 * at as u32) % (EVERY.end - EVERY.start);
        peer.reauth = Some(Duration::from_millis(EVERY.start + drawn));
    }
}

const REAUTH: Scenario = Scenario {
    lasts: Duration::from_secs(9),
    adjust: authenticated_anew,
    ..PLAIN
};

/// All kinds of faults.
pub(super) const EVERYTHING: Scenario = Scenario {
    name: "reauth",
    about: "peers are authenticated anew, and all kinds of faults",
    weight: 10,
    mix: found::EVERYTHING,
    ..REAUTH
};

/// A first message that the network had doubled came again when its IKE SA was up: the responder began another one, and gave it another answer. What comes
/// after IKE_AUTH is ignored now (RFC 7296 2.1).
pub(super) const FIRST_AGAIN: Scenario = Scenario {
    name: "first-again",
    about: "an IKE_SA_INIT request comes again when its IKE SA is up",
    weight: 0,
    seeds: Some(&[28]),
    ..EVERYTHING
};

/// Each Child SA that came up on the new IKE SA gave the old one another second, those of CPUs and rekeys as well: with some of them a second, the old
/// one never ended.
pub(super) const PUT_OFF: Scenario = Scenario {
    name: "put-off-end",
    about: "Child SAs of a new IKE SA are rekeyed all the time while the old one is to end",
    weight: 0,
    seeds: Some(&[196]),
    ..EVERYTHING
};

/// The owner of a pair had asked for a Child SA and stood still when the standby took over unheard, repeated the request, had the peer's answer, sent from the
/// first number on, and died. The old owner went on, had the same answer, and sent from the first number on too.
pub(super) const ASKED_ELSEWHERE: Scenario = Scenario {
    name: "asked-elsewhere",
    about: "both halves of a split have the answer to a request that was in the journal before",
    weight: 0,
    seeds: Some(&[60_000_124]),
    ..EVERYTHING
};

/// Deaths.
pub(super) const KILLS: Scenario = Scenario {
    name: "reauth-kills",
    about: "peers are authenticated anew; hosts and agents die and start again",
    weight: 5,
    mix: Mix {
        kill: 5,
        peer: 4,
        attack: 2,
        burst: 2,
        ..NO_FAULTS
    },
    ..REAUTH
};

/// Sleep.
pub(super) const PAUSES: Scenario = Scenario {
    name: "reauth-pauses",
    about: "peers are authenticated anew; agents stop and go on, or are slow",
    weight: 2,
    mix: Mix {
        pause: 5,
        slow: 2,
        peer: 4,
        attack: 2,
        burst: 1,
        ..NO_FAULTS
    },
    ..REAUTH
};

/// Partitions, and messages to and from peers that are lost.
pub(super) const CUTS: Scenario = Scenario {
    name: "reauth-cuts",
    about: "peers are authenticated anew; partitions, one way or both, between members and towards peers",
    weight: 3,
    mix: Mix {
        cut: 4,
        one_way: 4,
        weather: 2,
        peer_path: 4,
        peer: 3,
        attack: 2,
        burst: 1,
        ..NO_FAULTS
    },
    ..REAUTH
};

/// Groups move while there are two IKE SAs.
pub(super) const PLANNED: Scenario = Scenario {
    name: "reauth-planned",
    about: "peers are authenticated anew; planned takeovers, drains and rebalancing, under some bad weather",
    weight: 4,
    mix: Mix {
        operator: 8,
        weather: 1,
        peer: 4,
        burst: 2,
        ..NO_FAULTS
    },
    ..REAUTH
};

/// The engine fails.
pub(super) const ENGINE: Scenario = Scenario {
    name: "reauth-engine",
    about: "peers are authenticated anew; the ownership engine is down, slow, loses answers",
    weight: 2,
    engine: Some(crate::setup::Engine::Etcd),
    mix: found::ENGINE,
    ..REAUTH
};

fn with_members(setup: &mut Setup) {
    super::members::members(setup);
    authenticated_anew(setup);
}

/// The new IKE SA has guests of its own, beside those of the old one.
pub(super) const MEMBERS: Scenario = Scenario {
    name: "reauth-members",
    about: "peers with Child SAs per member are authenticated anew, and all kinds of faults",
    weight: 4,
    engine: Some(crate::setup::Engine::Etcd),
    adjust: with_members,
    mix: found::EVERYTHING,
    ..REAUTH
};

fn one_way_in_and_anew(setup: &mut Setup) {
    one_way_in(setup);
    authenticated_anew(setup);
}

/// One group: the new IKE SA is the same member's, and neither it nor a move costs a packet.
pub(super) const PLANNED_ONLY: Scenario = Scenario {
    name: "reauth-planned-only",
    about: "peers are authenticated anew, and planned takeovers in one group: no packet may be lost",
    weight: 2,
    mix: found::OPERATOR,
    members: Some(2),
    adjust: one_way_in_and_anew,
    planned_from: Some(Duration::ZERO),
    ..REAUTH
};

/// Nothing else at all.
pub(super) const ONE_GROUP: Scenario = Scenario {
    name: "reauth-only",
    about: "peers are authenticated anew, in one group, and nothing else happens: no packet may be lost",
    weight: 1,
    adjust: one_way_in_and_anew,
    planned_from: Some(Duration::ZERO),
    ..REAUTH
};

fn shared(setup: &mut Setup) {
    one_way_in(setup);
    setup.groups = 4;
    setup.weights = vec![1; setup.weights.len()];
    for peer in &mut setup.peers {
        // Of a connection that the cluster initiates all IKE SAs are in one group.
        (peer.initiates, peer.per_resource) = (true, PerResource::None);
    }
    authenticated_anew(setup);
}

/// The new IKE SA is another member's as often as not. What that costs is counted.
pub(super) const SHARED: Scenario = Scenario {
    name: "reauth-shared",
    about: "peers are authenticated anew in load sharing, and nothing else happens: what is lost is counted",
    weight: 1,
    adjust: shared,
    planned_from: Some(Duration::ZERO),
    may_lose: true,
    ..REAUTH
};
