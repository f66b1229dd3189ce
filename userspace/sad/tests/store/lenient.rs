//! Lenient anti-replay is the policy's choice.

use crate::world::{World, policy};
use maps_schema::sad::{SA_LENIENT, spi_slot};
use model::OutboundUse;

#[test]
fn a_policy_is_strict_unless_it_says_so() {
    let flags = |lenient| {
        let mut world = World::new(1);
        let strict = policy("net", "10.2.0.0-10.2.0.255");
        world.configure(vec![sad::Policy { lenient, ..strict }]);
        let spi = world.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
        world.plane.inbound[spi_slot(spi.0) as usize].flags & SA_LENIENT
    };
    assert_eq!(flags(false), 0);
    assert_eq!(flags(true), SA_LENIENT);
}
