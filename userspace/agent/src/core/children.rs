//! Children that are missing while their connection is up: which of them come up again by themselves, and when.

use std::collections::HashMap;

use ike::{Command, ConnectionPhase};
use model::Instant;

use super::Core;
use super::around;
use super::dial::{Wanted, pause};
use crate::config::{ConnectionConfig, Retry};

/// One that is missing.
#[derive(Clone, Copy, Debug)]
struct Missing {
    /// What it is to be; a connection's own wish where the peer did not end it.
    wanted: Wanted,
    /// By the peer. Else nobody knows why.
    ended: bool,
    attempts: u32,
    not_before: Instant,
}

/// All of them, by connection and child.
#[derive(Default)]
pub struct Children(HashMap<String, HashMap<String, Missing>>);

impl Children {
    /// The peer has ended one.
    pub fn closed(&mut self, connection: &str, child: &str, wanted: Wanted) {
        let of = self.0.entry(connection.to_owned()).or_default();
        let missing = Missing {
            wanted,
            ended: true,
            attempts: 0,
            not_before: Instant::default(),
        };
        of.insert(child.to_owned(), missing);
    }

    /// One is up.
    pub fn up(&mut self, connection: &str, child: &str) {
        if let Some(of) = self.0.get_mut(connection) {
            of.remove(child);
            if of.is_empty() {
                self.0.remove(connection);
            }
        }
    }

    /// Nothing is remembered of a connection: it begins anew, or is wanted otherwise.
    pub fn forget(&mut self, connection: &str) {
        self.0.remove(connection);
    }

    /// What the peer has ended, and what it is to be: connection, child, wish.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, Wanted)> {
        self.0.iter().flat_map(|(connection, of)| {
            let ended = of.iter().filter(|(_, missing)| missing.ended);
            ended.map(move |(child, missing)| (connection.as_str(), child.as_str(), missing.wanted))
        })
    }

    /// Whether any child of a connection is to be something of its own.
    fn has(&self, connection: &str) -> bool {
        self.0.contains_key(connection)
    }

    /// Whether packets bring a child up.
    pub fn is_at_rest(&self, connection: &str, child: &str) -> bool {
        let of = self.0.get(connection).and_then(|of| of.get(child));
        of.is_some_and(|missing| missing.wanted == Wanted::Rest)
    }

    /// Whether a missing child is to be asked for now. `wanted`: what its connection is to be. One that is seen missing for the first time
    /// may be on its way.
    fn is_due(&mut self, connection: &str, child: &str, wanted: Wanted, retry: Retry, now: Instant) -> bool {
        let of = self.0.entry(connection.to_owned()).or_default();
        let missing = of.entry(child.to_owned()).or_insert(Missing {
            wanted,
            ended: false,
            attempts: 0,
            not_before: now + retry.first,
        });
        if missing.wanted != Wanted::Up || now < missing.not_before {
            return false;
        }
        missing.attempts = missing.attempts.saturating_add(1);
        let mut random = [0; 4];
        around::random(&mut random);
        missing.not_before = now + pause(retry, missing.attempts, u32::from_ne_bytes(random));
        true
    }
}

impl Core {
    /// Once a second: asks peers for children that are to be up and are not, with growing pauses.
    pub(super) fn children_turn(&mut self, now: Instant) {
        let concerned = |c: &&ConnectionConfig| self.children.has(&c.name) || self.wanted(c) == Wanted::Up;
        let concerned = self.config.connections.iter().filter(concerned);
        let partial = concerned.filter(|c| self.engine.connection_phase(&c.name) == ConnectionPhase::Partial);
        let partial = partial.filter(|c| !self.stops.contains(&c.name));
        for config in partial.cloned().collect::<Vec<_>>() {
            let wanted = self.wanted(&config);
            for child in self.engine.missing_children(&config.name) {
                let connection = config.name.clone();
                let retry = config.dial.retry;
                if self.children.is_due(&connection, &child, wanted, retry, now) {
                    self.engine_command(Command::CreateChild { connection, child });
                }
            }
        }
    }

    /// Asks the peer of a connection that is up for the children that are missing, less those that the peer has ended for good.
    pub(super) fn ask_for_children(&mut self, name: &str) {
        let connection = name.to_owned();
        if !self.children.has(name) {
            return self.engine_command(Command::Initiate { connection });
        }
        let config = self.config.connections.iter().find(|c| c.name == name);
        let children = config.into_iter().flat_map(|c| &c.children).map(|c| &c.name);
        let wanted = children.filter(|child| !self.children.is_at_rest(name, child));
        for child in wanted.cloned().collect::<Vec<_>>() {
            let connection = connection.clone();
            self.engine_command(Command::CreateChild { connection, child });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const RETRY: Retry = Retry {
        first: Duration::from_secs(2),
        most: Duration::from_secs(60),
    };

    fn seconds(at: u64) -> Instant {
        Instant::from_millis(at * 1000)
    }

    #[test]
    fn a_child_that_the_peer_has_ended_is_what_the_file_says_until_it_is_up() {
        let mut children = Children::default();
        let due = |children: &mut Children, at| children.is_due("t", "c", Wanted::Rest, RETRY, seconds(at));
        children.closed("t", "c", Wanted::Up);
        assert!(due(&mut children, 1), "at once");
        assert!(!due(&mut children, 2), "then with a pause");
        assert!(due(&mut children, 4));
        children.closed("t", "c", Wanted::Rest);
        assert!(children.is_at_rest("t", "c") && !due(&mut children, 1000));
        children.closed("t", "c", Wanted::Trap);
        assert!(!children.is_at_rest("t", "c") && !due(&mut children, 1000));
        children.up("t", "c");
        assert!(!children.has("t"));
    }

    #[test]
    fn a_child_that_does_not_come_up_is_asked_for_with_growing_pauses() {
        let mut children = Children::default();
        let mut asked = Vec::new();
        for at in 0..200 {
            if children.is_due("t", "c", Wanted::Up, RETRY, seconds(at)) {
                asked.push(at);
            }
        }
        assert_eq!(asked.first(), Some(&2), "it may be on its way");
        let pauses: Vec<u64> = asked.windows(2).map(|w| w[1] - w[0]).collect();
        assert!((4..=7).contains(&pauses.len()), "{asked:?}");
        for (pause, wanted) in pauses.iter().zip([2, 4, 8, 16, 32, 60]) {
            assert!((wanted * 3 / 4..=wanted * 5 / 4 + 1).contains(pause), "{asked:?}");
        }
        children.forget("t");
        assert!(!children.has("t"));
    }
}
