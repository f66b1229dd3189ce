//! The event log: the last things that happened, for `espalier events`.

use std::collections::VecDeque;

use model::GroupId;

use crate::api::LoggedEvent;
use crate::clock;

/// Events kept.
const KEPT: usize = 4096;

/// A ring of events; every event goes to the log as well.
#[derive(Default)]
pub struct EventLog {
    ring: VecDeque<LoggedEvent>,
}

/// Whether an operator should look at an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// No need to.
    Note,
    /// Yes.
    Warn,
}

impl EventLog {
    /// Notes an event that an operator need not look at.
    pub fn note(&mut self, kind: &str, text: impl Into<String>) {
        self.add(Level::Note, None, kind, text);
    }

    /// Notes an event that an operator should look at.
    pub fn warn(&mut self, kind: &str, text: impl Into<String>) {
        self.add(Level::Warn, None, kind, text);
    }

    /// [`EventLog::note`] about one group.
    pub fn note_of(&mut self, group: GroupId, kind: &str, text: impl Into<String>) {
        self.add(Level::Note, Some(group), kind, text);
    }

    /// [`EventLog::warn`] about one group.
    pub fn warn_of(&mut self, group: GroupId, kind: &str, text: impl Into<String>) {
        self.add(Level::Warn, Some(group), kind, text);
    }

    /// Adds an event of either level, about one group or the whole member.
    pub fn add(&mut self, level: Level, group: Option<GroupId>, kind: &str, text: impl Into<String>) {
        let (group, text) = (group.map(|id| id.0), text.into());
        match level {
            Level::Note => tracing::info!(kind, group, "{text}"),
            Level::Warn => tracing::warn!(kind, group, "{text}"),
        }
        if self.ring.len() == KEPT {
            self.ring.pop_front();
        }
        self.ring.push_back(LoggedEvent {
            monotonic_ns: clock::now().0,
            wall_ns: clock::wall_ns(),
            group,
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
