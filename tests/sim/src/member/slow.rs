//! The slow path: frames that the programs gave to the agent go through them again once they can be served.

use super::{Cx, Member};
use crate::plane::Slow;
use crate::sabotage::Sabotage;
use maps_schema::event::{SLOW_ABOVE_CEILING, SLOW_HELD, SLOW_NO_LEASE};
use sad::Direction;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const PER_SA: usize = 64;
const HELD: usize = 1024;

/// Frames that wait, in the order in which they came.
#[derive(Default)]
pub(super) struct Waiting {
    inbound: BTreeMap<u32, VecDeque<Slow>>,
    outbound: BTreeMap<u32, VecDeque<Slow>>,
    held: VecDeque<Slow>,
}

impl Waiting {
    fn put(&mut self, inbound: bool, frame: Slow) {
        let queues = if inbound {
            &mut self.inbound
        } else {
            &mut self.outbound
        };
        let queue = queues.entry(frame.slot).or_default();
        if queue.len() < PER_SA {
            queue.push_back(frame);
        }
    }

    /// Slots for which something waits.
    pub(super) fn slots(&self) -> BTreeSet<u32> {
        self.inbound.keys().chain(self.outbound.keys()).copied().collect()
    }

    /// Takes out the frames of some slots: another member serves them now.
    fn take_where(&mut self, gone: impl Fn(u32) -> bool) -> Vec<Slow> {
        let mut taken = Vec::new();
        for queues in [&mut self.inbound, &mut self.outbound] {
            let frames = queues.extract_if(.., |slot, _| gone(*slot));
            taken.extend(frames.flat_map(|(_, frames)| frames));
        }
        let held = std::mem::take(&mut self.held).into_iter();
        let (held, others) = held.partition::<VecDeque<_>, _>(|frame| gone(frame.slot));
        self.held = others;
        taken.extend(held);
        taken
    }
}

impl Member {
    pub(super) fn slow_frame(&mut self, cx: &mut Cx<'_>, frame: Slow) {
        let slot = frame.slot;
        let waits = self.owns(self.layout.group_of_slot(slot));
        match frame.kind {
            // After a move the programs pass it on.
            SLOW_ABOVE_CEILING | SLOW_NO_LEASE if !waits => self.run_again(cx, frame),
            // Its SA is removed, and nobody raises the ceiling.
            SLOW_ABOVE_CEILING if self.sad.lingers_below_ceiling(slot) => {}
            SLOW_ABOVE_CEILING => {
                self.slow.put(true, frame);
                let waiting = self.slow.inbound.get(&slot).map_or(0, VecDeque::len);
                if self.sabotage == Some(Sabotage::SlowRaiseKills)
                    && waiting > 3
                    && let Some(connection) = self.sad.by_slot(slot).map(|e| e.record.connection.clone())
                {
                    self.engine_command(cx, ike::Command::Terminate { connection });
                }
                self.run_waiting(cx, slot);
            }
            SLOW_HELD if self.slow.held.len() < HELD => self.slow.held.push_back(frame),
            SLOW_NO_LEASE => {
                self.slow.put(false, frame);
                self.run_waiting(cx, slot);
            }
            _ => {}
        }
    }

    /// Another member owns the group now: what waited goes through the programs again, which send it there.
    pub(super) fn pass_on(&mut self, cx: &mut Cx<'_>, group: model::GroupId) {
        let layout = self.layout;
        for frame in self.slow.take_where(|slot| layout.group_of_slot(slot) == group) {
            self.run_again(cx, frame);
        }
    }

    /// Looks at everything that waits: a raise may have been given up, or its SA is gone.
    pub(super) fn sweep_waiting(&mut self, cx: &mut Cx<'_>) {
        for slot in self.slow.slots() {
            self.run_waiting(cx, slot);
        }
    }

    /// Runs what waited for a raise of this slot; asks for a raise for what still waits.
    pub(super) fn run_waiting(&mut self, cx: &mut Cx<'_>, slot: u32) {
        let mut raises = Vec::new();
        let ceiling = self.ceiling_of(slot);
        while let Some(frame) = self.slow.inbound.get_mut(&slot).and_then(|queue| {
            let ready = queue.front().is_some_and(|f| ceiling.is_none_or(|c| f.seq <= c));
            if ready { queue.pop_front() } else { None }
        }) {
            self.run_again(cx, frame);
        }
        match self
            .slow
            .inbound
            .get(&slot)
            .and_then(|q| q.iter().map(|f| f.seq).max())
        {
            Some(needed) => raises.extend(self.wish(cx.now, slot, Direction::Inbound, Some(needed))),
            None => drop(self.slow.inbound.remove(&slot)),
        }
        let room = match (self.lease_of(slot), self.plane.counters(slot)) {
            (Some(last), Some(counters)) => last.saturating_sub(counters.outbound.seq),
            _ => u64::MAX,
        };
        for _ in 0..room.min(PER_SA as u64) {
            let Some(frame) = self.slow.outbound.get_mut(&slot).and_then(VecDeque::pop_front) else {
                break;
            };
            self.run_again(cx, frame);
        }
        if self.slow.outbound.get(&slot).is_some_and(VecDeque::is_empty) {
            self.slow.outbound.remove(&slot);
        } else if self.slow.outbound.contains_key(&slot) {
            raises.extend(self.wish(cx.now, slot, Direction::Outbound, None));
        }
        self.raise(cx, raises);
    }

    /// The final windows are merged: what was held for them goes through the programs again.
    pub(super) fn run_held(&mut self, cx: &mut Cx<'_>, of: impl Fn(u32) -> bool) {
        let (run, keep): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.slow.held)
            .into_iter()
            .partition(|f| of(f.slot));
        self.slow.held = keep;
        for frame in run {
            self.run_again(cx, frame);
        }
    }

    fn run_again(&mut self, cx: &mut Cx<'_>, frame: Slow) {
        // What the programs say to it is fetched by whoever runs the event loop, not from in here.
        drop(self.frame(cx, frame.inside, frame.octets, false));
    }
}
