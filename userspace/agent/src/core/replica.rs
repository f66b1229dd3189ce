//! A cluster of one member: every proposal is acknowledged at once, ownership is confirmed by the agent's own loop.

use std::collections::VecDeque;
use std::time::Duration;

use model::{Epoch, Instant};
use sad::LimitRaise;

/// Names a proposal until it is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

/// What the replica wants done.
pub enum Effect {
    /// The entry is acknowledged by every in-sync standby; `alone`: there is none.
    Committed { token: Token, alone: bool },
    /// The raises are acknowledged.
    RaiseCommitted { token: Token },
    /// Own all segments from now on.
    Flip { epoch: Epoch, alone: bool, valid_until_ms: u64 },
    /// The owner words hold until then.
    ExtendValidity { until_ms: u64 },
}

/// Replication for a cluster of one.
pub struct Replica {
    effects: VecDeque<Effect>,
    next: u64,
    heartbeat: Duration,
    dead_man: Duration,
    wake: Instant,
    started: bool,
}

impl Replica {
    pub fn new(heartbeat: Duration, dead_man: Duration, now: Instant) -> Self {
        Self { effects: VecDeque::new(), next: 0, heartbeat, dead_man, wake: now, started: false }
    }

    fn token(&mut self) -> Token {
        self.next += 1;
        Token(self.next)
    }

    pub fn propose(&mut self, _entry: Vec<u8>) -> Token {
        let token = self.token();
        self.effects.push_back(Effect::Committed { token, alone: true });
        token
    }

    pub fn raise(&mut self, _raises: &[LimitRaise]) -> Token {
        let token = self.token();
        self.effects.push_back(Effect::RaiseCommitted { token });
        token
    }

    pub fn tick(&mut self, now: Instant) {
        if now < self.wake {
            return;
        }
        self.wake = now + self.heartbeat;
        let until_ms = (now + self.dead_man).millis();
        if self.started {
            self.effects.push_back(Effect::ExtendValidity { until_ms });
        } else {
            self.started = true;
            self.effects.push_back(Effect::Flip { epoch: Epoch(1), alone: true, valid_until_ms: until_ms });
        }
    }

    pub fn next_wake(&self) -> Instant {
        self.wake
    }

    pub fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }
}
