//! Windows that are handed over in a planned takeover.

use crate::world::{EPOCH, World};
use maps_schema::sad::{InboundSaRuntime, spi_slot};
use model::{Epoch, OutboundUse};

/// Owner one accepts up to its ceiling and dies; owner two takes over, and hands over in turn before a packet has come.
#[test]
fn an_owner_without_a_packet_hands_over_what_those_before_it_may_have_accepted_as_seen() {
    let mut world = World::new(1);
    let spi = world.install("10.2.0.0-10.2.0.255", OutboundUse::Now, None);
    let ceiling = world.sad.get(spi).expect("it is there").ceiling.limit;
    let untouched = InboundSaRuntime {
        spi: spi.0,
        ..InboundSaRuntime::default()
    };
    let entry = world.sad.get(spi).expect("it is there");
    let next = Epoch(EPOCH.0 + 1);
    let window = entry.final_window(&untouched, false, next).expect("its window");
    assert_eq!((window.slot, window.spi), (spi_slot(spi.0), spi.0));
    assert_eq!(window.edge, ceiling, "all up to the old ceiling counts as seen");
    assert!(window.floor > ceiling, "this owner's own ceiling lies above");
    for seq in 1..=ceiling {
        let block = window.blocks[(seq / 64) as usize % window.blocks.len()];
        assert_eq!(block >> (seq % 64) & 1, 1, "number {seq}");
    }
    // The first owner itself has accepted nothing, and says so.
    let first = entry.final_window(&untouched, false, EPOCH).expect("its window");
    assert_eq!((first.edge, first.floor), (0, ceiling));
    let other = InboundSaRuntime {
        spi: spi.0 ^ 0x0100_0000,
        ..untouched
    };
    let unused = entry.final_window(&other, false, next).expect("its window");
    assert_eq!(
        (unused.edge, unused.floor),
        (window.edge, window.floor),
        "a former SA's window says nothing"
    );
    assert_eq!(unused.blocks, window.blocks);
    assert!(
        entry
            .final_window(&untouched, false, Epoch(EPOCH.0 - 1))
            .is_none()
    );
}
