//! A standby takes over unseen, dies and comes back empty, as in `unseen.rs`; then people move the group to it, and back, before the SAs that
//! its life before knew are rekeyed.

use super::unseen::{both_are_reached, unseen_until};
use super::{PLAIN, Scenario, one_way_in};
use crate::faults::{Fault, Schedule};
use crate::net::Road;
use crate::setup::{Engine, Setup};
use model::Instant;
use std::time::Duration;

fn story(setup: &Setup, from: Instant) -> Schedule {
    let serves = 300 + setup.steer_key[0] % 500;
    let mut schedule = unseen_until(from, serves);
    // Its next life is in sync some 150 ms after it has begun. Sometimes the owner dies in the middle of a move, sometimes the taker.
    let first = from + Duration::from_millis(serves + 400 + setup.steer_key[1] % 700);
    let after = |ms: u64| first + Duration::from_millis(ms);
    schedule.push((first, Fault::TakeoverTo(2)));
    match setup.steer_key[0] / 500 % 6 {
        0 | 1 => schedule.push((after(60 + setup.steer_key[1] / 700 % 300), Fault::TakeoverTo(1))),
        // The taker hears the offer, and is heard no more: both serve.
        2 | 3 => {
            let cut = after(setup.steer_key[1] / 700 % 12);
            for road in [Road::Synch, Road::Outside, Road::Inside] {
                schedule.push((cut, Fault::Cut(2, 1, road)));
                schedule.push((cut + Duration::from_millis(1500), Fault::Mend(2, 1, road)));
            }
        }
        victim => {
            let member = victim as u8 - 3;
            let at = setup.steer_key[1] / 700 % 80;
            schedule.push((after(at), Fault::KillHost(member)));
            schedule.push((after(at + 1200), Fault::Start(member)));
        }
    }
    schedule
}

/// What the owner leaves of tainted leases is one member's or the other's (docs/adr/0020).
pub(super) const AFTER_A_LOSS: Scenario = Scenario {
    name: "planned-after-loss",
    about: "a standby that took over unseen is back, and the group moves to it before its SAs are rekeyed",
    weight: 0,
    engine: Some(Engine::Pair),
    schedule: Some(story),
    adjust: both_are_reached,
    ..PLAIN
};

/// The standby is lost this often, and each time the owner leaves out an epoch.
const LOSSES: u64 = 2;
/// After each loss the cluster has this time: the standby is back after 300 ms, and rekeys are over.
const LOSS: u64 = 2000;

fn moves(setup: &Setup, from: Instant) -> Schedule {
    let after = |ms: u64| from + Duration::from_millis(ms);
    let mut schedule = Schedule::new();
    for loss in 0..LOSSES {
        schedule.push((after(loss * LOSS), Fault::KillHost(2)));
        schedule.push((after(loss * LOSS + 300), Fault::Start(2)));
    }
    let mut at = LOSSES * LOSS + setup.steer_key[0] % 300;
    for to in [2, 1, 2] {
        schedule.push((after(at), Fault::TakeoverTo(to)));
        at += 150 + setup.steer_key[1] % 400;
    }
    schedule
}

fn either_way_in(setup: &mut Setup) {
    one_way_in(setup);
    both_are_reached(setup);
}

/// Between the ceiling of the old owner and the floor of the taker lies the headroom of each epoch that was left out. Numbers in there are no one's
/// of the two while both serve: the taker sends them to the old owner, which passes them on, and they are held until windows are merged.
pub(super) const AFTER_SKIPPED_EPOCHS: Scenario = Scenario {
    name: "skipped-epochs",
    about: "a pair that has lost its standby twice, then planned takeovers with two ways in: no packet may be lost",
    weight: 0,
    engine: Some(Engine::Pair),
    schedule: Some(moves),
    lasts: Duration::from_millis(LOSSES * LOSS + 2500),
    planned_from: Some(Duration::from_millis(LOSSES * LOSS)),
    adjust: either_way_in,
    ..PLAIN
};
