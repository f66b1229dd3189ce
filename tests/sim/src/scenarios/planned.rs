//! A standby takes over unseen, dies and comes back empty, as in `unseen.rs`; then people move the group to it, and back, before the SAs that
//! its life before knew are rekeyed.

use super::unseen::{both_are_reached, unseen_until};
use super::{PLAIN, Scenario};
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
