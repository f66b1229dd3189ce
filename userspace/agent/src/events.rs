//! The event log: the last things that happened, for `espalier events`.

use std::collections::VecDeque;

use crate::api::LoggedEvent;
use crate::clock;

/// Events kept.
const KEPT: usize = 4096;

/// A ring of events; every event goes to the log as well.
#[derive(Default)]
pub struct EventLog {
    ring: VecDeque<LoggedEvent>,
}

impl EventLog {
    /// Notes an event that an operator need not look at.
    pub fn note(&mut self, kind: &str, text: impl Into<String>) {
        let text = text.into();
        tracing::info!(kind, "{text}");
        self.push(kind, text);
    }

    /// Notes an event that an operator should look at.
    pub fn warn(&mut self, kind: &str, text: impl Into<String>) {
        let text = text.into();
        tracing::warn!(kind, "{text}");
        self.push(kind, text);
    }

    fn push(&mut self, kind: &str, text: String) {
        if self.ring.len() == KEPT {
            self.ring.pop_front();
        }
        self.ring.push_back(LoggedEvent {
            monotonic_ns: clock::now().0,
            wall_ns: clock::wall_ns(),
            kind: kind.to_owned(),
            text,
        });
    }

    /// All events that are kept, oldest first.
    pub fn all(&self) -> Vec<LoggedEvent> {
        self.ring.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_keeps_the_last_events() {
        let mut log = EventLog::default();
        for i in 0..KEPT + 10 {
            log.note("test", format!("event {i}"));
        }
        let all = log.all();
        assert_eq!(all.len(), KEPT);
        assert_eq!(all[0].text, "event 10");
        assert!(all.windows(2).all(|w| w[0].monotonic_ns <= w[1].monotonic_ns));
    }
}
