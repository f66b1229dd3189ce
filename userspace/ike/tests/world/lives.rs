//! Engines of a side: how they begin, how one takes over from another, and who computes for them.

use super::World;
use ike::{Engine, EngineConfig, Input, Surroundings};

/// An engine as the agent makes it: key exchanges are computed beside it.
pub fn engine(config: EngineConfig) -> Engine {
    let mut engine = Engine::new(config);
    engine.exchange_beside();
    engine
}

impl World {
    /// Computes the key exchanges that were asked for.
    pub fn compute(&mut self, side: usize) {
        let now = self.now;
        let s = &mut self.sides[side];
        for request in std::mem::take(&mut s.to_compute) {
            let computed = request.run(&mut |out| s.around.random(out));
            s.engine.handle(Input::Computed { now, computed }, &mut s.around);
        }
        self.drain(side, true);
        let here = self.sides[side].engine.computed_here();
        assert_eq!(here, 0, "computed in the engine\n{}", self.story());
    }

    /// A standby with the journal takes over.
    pub fn take_over(&mut self, side: usize) {
        let now = self.now;
        let s = &mut self.sides[side];
        let mut engine = super::lives::engine(s.engine.config().clone());
        for (spi, record) in &s.journal {
            engine
                .adopt(now, *spi, record)
                .expect("a record that was just committed");
        }
        s.engine = engine;
        s.around.epoch += 1;
        s.around.member = 3 - s.around.member;
        self.trace.push(format!("   {} is taken over", s.name));
        s.engine.resume(now, &mut s.around);
        self.drain(side, true);
    }

    /// The whole cluster at a side starts anew: nothing is left, and it knows that.
    pub fn lose_everything(&mut self, side: usize) {
        let s = &mut self.sides[side];
        s.engine = super::lives::engine(s.engine.config().clone());
        s.journal.clear();
        s.children.clear();
        s.outbound.clear();
        s.bound.clear();
        s.shared.clear();
        s.around.allocated.clear();
        s.around.epoch += 1;
        s.around.may_show = true;
        self.trace.push(format!("   {} loses everything", s.name));
    }
}
