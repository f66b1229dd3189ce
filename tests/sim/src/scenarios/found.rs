//! Stories that were faults of the product once.

use super::{PLAIN, Scenario};

pub(super) const NOTHING_YET: Scenario = Scenario {
    name: "no-faults",
    about: "nothing happens at all",
    weight: 1,
    ..PLAIN
};
