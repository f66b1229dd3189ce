//! The event log: the last things that happened, for `espalier events`.

use std::collections::VecDeque;

use crate::clock;
use crate::status::EventEntry;

/// Events kept.
const KEPT: usize = 4096;

/// A ring of events; every event goes to the log as well.
#[derive(Default)]
pub struct EventLog {
    ring: VecDeque<EventEntry>,
    next: u64,
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
        self.next += 1;
        self.ring.push_back(EventEntry {
            number: self.next,
            wall: clock::wall(),
            monotonic_ns: clock::now().0,
            kind: kind.to_owned(),
            text,
        });
    }

    /// Events after `number`.
    pub fn since(&self, number: u64) -> Vec<EventEntry> {
        self.ring.iter().filter(|e| e.number > number).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_keeps_the_last_events_and_numbers_them() {
        let mut log = EventLog::default();
        for i in 0..KEPT + 10 {
            log.note("test", format!("event {i}"));
        }
        let all = log.since(0);
        assert_eq!(all.len(), KEPT);
        assert_eq!(all[0].number, 11);
        assert_eq!(log.since(all[0].number).len(), KEPT - 1);
        assert!(log.since(u64::MAX).is_empty());
    }
}
