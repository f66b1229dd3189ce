//! Child SAs per CPU (RFC 9611), asked for on demand: `userspace/agent/src/core/per_cpu.rs` in small.

use super::{Cx, Member};
use ike::{Command, Resource};
use std::time::Duration;

/// Sooner than the agent does, since a run is short.
const AGAIN: Duration = Duration::from_secs(2);

impl Member {
    /// A packet used the shared SA in `slot` on a CPU that has none of its own.
    pub(super) fn acquire_for_cpu(&mut self, cx: &mut Cx<'_>, slot: u32, cpu: u32) {
        let Some(beside) = self.sad.by_slot(slot).map(|e| e.record.spi_in) else {
            return;
        };
        let served = self.serving.contains(&self.layout.group_of_slot(slot));
        if !served || !self.sad.is_shared(beside) || self.sad.has_own(slot, cpu) {
            return;
        }
        let resource = Resource::of_owner(cpu as u16);
        // Where only members have their own, a member's CPUs share.
        let connection = self.sad.by_slot(slot).map(|e| e.record.connection.clone());
        let mut connections = self.engine.config().connections.iter();
        let wanted = connections.find(|c| Some(&c.name) == connection.as_ref());
        if !wanted.is_some_and(|c| c.resources.contains(&resource)) {
            return;
        }
        let asked = self.asked.get(&(beside, cpu));
        if asked.is_some_and(|at| cx.now.since(*at) < AGAIN) {
            return;
        }
        self.asked.insert((beside, cpu), cx.now);
        self.engine_command(cx, Command::CreateResourceChild { beside, resource });
    }
}
