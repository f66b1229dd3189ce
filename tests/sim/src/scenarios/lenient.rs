//! Policies with lenient anti-replay (`anti_replay = "lenient"`): after a failover what came between the last reported edge and the ceiling is
//! accepted once more, and counted.

use super::{NO_FAULTS, PLAIN, Scenario};
use crate::faults::Mix;
use crate::setup::Setup;

const MIX: Mix = Mix {
    kill: 5,
    attack: 8,
    burst: 2,
    ..NO_FAULTS
};

/// A planned takeover hands a window on as it is; what a failover before had left open in it is not counted a second time.
fn stay(setup: &mut Setup) {
    setup.rebalance = None;
}

fn lenient(setup: &mut Setup) {
    stay(setup);
    setup.lenient = true;
}

/// Whatever is accepted twice is counted as such.
pub(super) const LENIENT: Scenario = Scenario {
    name: "lenient",
    about: "kills and replays under lenient policies: what is accepted twice is counted",
    mix: MIX,
    adjust: lenient,
    weight: 0,
    ..PLAIN
};

/// The same runs, with the policy that is the default.
pub(super) const STRICT: Scenario = Scenario {
    name: "lenient-not",
    about: "the same under strict policies: nothing is accepted twice",
    mix: MIX,
    adjust: stay,
    weight: 0,
    ..PLAIN
};
