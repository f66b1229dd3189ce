//! What an old owner says at the end of a planned handover: which numbers of an SA count as seen.

use datapath::limits::InboundRange;
use datapath::replay;
use maps_schema::sad::{FinalWindow, InboundSaRuntime};
use model::{Epoch, EspSpi};

/// The final window of an SA, as the programs of its owner in `epoch` would have it for the next packet: `window` is what they left in
/// the slot, `range` what the owner may accept. Where the owner has had no packet of the SA since it took over, its window is of an earlier
/// time, or another SA's, and the owner before it may have accepted everything up to the floor.
pub fn final_window(
    slot: u32,
    spi: EspSpi,
    window: &InboundSaRuntime,
    range: &InboundRange,
    epoch: Epoch,
) -> FinalWindow {
    let mut window = *window;
    replay::prepare(&mut window, spi.0, epoch.low16(), range.floor);
    FinalWindow {
        slot,
        spi: spi.0,
        edge: window.edge,
        floor: range.ceiling,
        blocks: window.blocks,
    }
}

/// When an SA was last of use, for the order in which windows go: its last packet, or, where there was none, its installation.
pub fn last_of_use(seen: Option<(u32, u64)>, spi: EspSpi, installed: model::Instant) -> u64 {
    let packet = seen
        .filter(|(of, _)| *of == spi.0)
        .map_or(0, |(_, last_ms)| last_ms);
    packet.max(installed.millis())
}

#[cfg(test)]
mod tests {
    use super::*;
    use maps_schema::sad::REPLAY_BLOCKS;

    const SPI: EspSpi = EspSpi(0x0100_0007);
    const EPOCH: Epoch = Epoch(9);

    /// What is in a slot that no packet has come to.
    fn unused() -> InboundSaRuntime {
        InboundSaRuntime {
            spi: 0,
            floor_epoch: 0,
            floor: 0,
            edge: 0,
            blocks: [0; REPLAY_BLOCKS],
            packets: 0,
            bytes: 0,
            last_ms: 0,
            evidence_count: 0,
            evidence_epoch: 0,
            evidence_first_ms: 0,
            evidence_seq: 0,
            above_floor: 0,
        }
    }

    /// 1 to 20 and 25 were accepted in an epoch.
    fn used(epoch: u32) -> InboundSaRuntime {
        let mut window = unused();
        (window.spi, window.floor_epoch, window.edge) = (SPI.0, epoch, 25);
        window.blocks[0] = ((1 << 21) - 2) | 1 << 25;
        window
    }

    fn seen(window: &FinalWindow, range: std::ops::RangeInclusive<u64>) -> Vec<u64> {
        let bit = |seq: &u64| window.blocks[(*seq as usize / 64) % REPLAY_BLOCKS] >> (seq % 64) & 1 == 1;
        range.filter(bit).collect()
    }

    fn range(floor: u64, ceiling: u64) -> InboundRange {
        InboundRange {
            floor,
            ceiling,
            soft: ceiling,
        }
    }

    #[test]
    fn what_was_accepted_in_this_epoch_is_seen_and_nothing_else() {
        let window = final_window(7, SPI, &used(9), &range(0, 40), EPOCH);
        assert_eq!((window.edge, window.floor), (25, 40));
        assert_eq!(seen(&window, 1..=40), (1..=20).chain([25]).collect::<Vec<_>>());
    }

    #[test]
    fn of_an_sa_without_a_packet_nothing_is_seen_whatever_was_in_the_slot_before() {
        let mut other = used(9);
        other.spi += 1 << 24;
        for left in [unused(), other] {
            let window = final_window(7, SPI, &left, &range(0, 2), EPOCH);
            assert_eq!((window.spi, window.edge, window.floor), (SPI.0, 0, 2));
            assert!(seen(&window, 0..=63).is_empty());
        }
    }

    #[test]
    fn an_owner_without_a_packet_since_its_takeover_counts_all_up_to_its_floor_as_seen() {
        // The window is of the time when this member owned before: the owner in between may have accepted up to 30.
        let window = final_window(7, SPI, &used(5), &range(30, 40), EPOCH);
        assert_eq!(window.edge, 30);
        assert_eq!(seen(&window, 1..=40), (1..=30).collect::<Vec<_>>());
        let window = final_window(7, SPI, &unused(), &range(30, 40), EPOCH);
        assert_eq!(seen(&window, 1..=40), (1..=30).collect::<Vec<_>>());
    }
}
