//! The replay ring against the plainest model of RFC 4303 3.4.3: the set of all numbers ever accepted.

use std::collections::BTreeSet;

use datapath::aead::DONE;
use datapath::replay::{self, IcvVerified};
use maps_schema::sad::{FinalWindow, InboundSaRuntime, REPLAY_WINDOW};
use maps_schema::verdict::Verdict;
use proptest::prelude::*;

#[derive(Default)]
struct Model {
    seen: BTreeSet<u64>,
    edge: u64,
}

impl Model {
    fn verdict(&self, seq: u64) -> Option<Verdict> {
        if seq == 0 || (seq <= self.edge && self.edge - seq >= REPLAY_WINDOW) {
            Some(Verdict::ReplayTooOld)
        } else if self.seen.contains(&seq) {
            Some(Verdict::ReplayDuplicate)
        } else {
            None
        }
    }

    fn accept(&mut self, seq: u64) {
        self.seen.insert(seq);
        self.edge = self.edge.max(seq);
    }
}

/// Offers a number to both; both must say the same.
fn offer(window: &mut InboundSaRuntime, model: &mut Model, seq: u64) -> Result<(), TestCaseError> {
    match replay::check(window, seq) {
        Err(verdict) => prop_assert_eq!(Some(verdict), model.verdict(seq), "number {}", seq),
        Ok(checked) => {
            prop_assert_eq!(None, model.verdict(seq), "number {}", seq);
            let proof = IcvVerified::from_status(DONE).expect("done is verified");
            let before = replay::mark(window, checked, proof);
            prop_assert_eq!(before, model.edge);
            model.accept(seq);
        }
    }
    prop_assert_eq!(window.edge, model.edge);
    Ok(())
}

/// Steps of the right edge: small ones, block sizes, whole windows; negative ones are late packets.
fn steps() -> impl Strategy<Value = Vec<i64>> {
    let step = prop_oneof![
        4 => -70i64..70,
        2 => -2100i64..2100,
        1 => prop::sample::select(vec![-1984, -1983, -2048, 63, 64, 65, 1983, 1984, 1985, 2047, 2048, 2049, 100_000]),
    ];
    prop::collection::vec(step, 1..300)
}

fn follow(window: &mut InboundSaRuntime, model: &mut Model, steps: &[i64]) -> Result<(), TestCaseError> {
    for step in steps {
        let seq = model.edge.saturating_add_signed(*step);
        offer(window, model, seq)?;
    }
    Ok(())
}

proptest! {
    #[test]
    fn the_ring_says_what_the_set_says(start in 0u64..5000, steps in steps()) {
        let (mut window, mut model) = (InboundSaRuntime::default(), Model::default());
        replay::prepare(&mut window, 7, 1, 0);
        offer(&mut window, &mut model, start.max(1))?;
        follow(&mut window, &mut model, &steps)?;
    }

    #[test]
    fn a_floor_counts_all_up_to_it_as_seen(first in steps(), floor in 1u64..9000, second in steps()) {
        let (mut window, mut model) = (InboundSaRuntime::default(), Model::default());
        replay::prepare(&mut window, 7, 1, 0);
        follow(&mut window, &mut model, &first)?;
        replay::prepare(&mut window, 7, 2, floor);
        model.seen.extend(1..=floor);
        model.edge = model.edge.max(floor);
        follow(&mut window, &mut model, &second)?;
        for seq in model.edge.saturating_sub(3000)..model.edge + 10 {
            prop_assert_eq!(replay::check(&window, seq).err(), model.verdict(seq), "number {}", seq);
        }
    }

    #[test]
    fn a_merged_window_is_the_union_of_both(
        old_steps in steps(),
        headroom in prop_oneof![1u64..20, 1900u64..2100, Just(50_000)],
        new_steps in prop::collection::vec(1i64..40, 0..20),
        skipped in 0u64..30,
        tainted: bool,
    ) {
        let (mut old, mut old_model) = (InboundSaRuntime::default(), Model::default());
        replay::prepare(&mut old, 7, 1, 0);
        offer(&mut old, &mut old_model, 1)?;
        follow(&mut old, &mut old_model, &old_steps)?;
        // The old owner's ceiling: it accepted nothing above. The taker's floor lies higher where epochs were left out.
        let ceiling = old_model.edge + headroom;
        let floor = ceiling + skipped;
        let (mut new, mut new_model) = (InboundSaRuntime::default(), Model::default());
        replay::prepare(&mut new, 7, 2, floor);
        new_model.edge = floor;
        new_model.seen.extend(1..=floor);
        follow(&mut new, &mut new_model, &new_steps)?;
        let last = FinalWindow { slot: 0, spi: 7, edge: old.edge, floor: ceiling, blocks: old.blocks };
        prop_assert!(replay::merge(&mut new, &last, tainted));
        prop_assert!(!replay::merge(&mut new, &last, tainted), "a second merge");
        // Where nothing came in between, the old owner's window as it is.
        let closed = if tainted { ceiling + 1..=floor } else { floor + 1..=floor };
        let edge = if new_model.edge == floor && closed.is_empty() { old_model.edge } else { new_model.edge };
        prop_assert_eq!(new.edge, edge);
        let mut union = Model { seen: old_model.seen.clone(), edge };
        union.seen.extend(1..=old_model.edge.saturating_sub(REPLAY_WINDOW));
        union.seen.extend(new_model.seen.range(floor + 1..));
        union.seen.extend(closed);
        for seq in union.edge.saturating_sub(5000).max(1)..=union.edge + 5 {
            prop_assert_eq!(replay::check(&new, seq).err(), union.verdict(seq), "number {}, floor {}", seq, floor);
        }
    }

    #[test]
    fn the_high_half_is_inferred_near_the_edge(edge in 0u64..1 << 36, ahead in 0u64..1 << 31, late in 0u64..REPLAY_WINDOW) {
        let next = edge + ahead;
        prop_assert_eq!(replay::infer(edge, next as u32), next);
        if late <= edge {
            prop_assert_eq!(replay::infer(edge, (edge - late) as u32), edge - late);
        }
        prop_assert_eq!(replay::infer_under(edge, next as u32, u64::MAX), next);
    }
}
