//! The owner's side of the journal: consecutive positions, kept until everybody who has to know has acknowledged.

use crate::message::BRIEF_SINCE;
use std::collections::{BTreeMap, VecDeque};

/// A change as octets.
#[derive(Clone)]
pub struct Entry {
    /// By itself.
    pub whole: Vec<u8>,
    /// Against what the entries before it have left.
    pub brief: Option<Vec<u8>>,
}

impl Entry {
    /// For a member that speaks this format. Both forms mean the same to whoever holds all entries before it.
    pub fn in_format(&self, version: u8) -> &[u8] {
        let brief = self.brief.as_ref().filter(|_| version >= BRIEF_SINCE);
        brief.unwrap_or(&self.whole)
    }
}

/// Entries that wait for acknowledgements, and the tokens of their proposals.
#[derive(Default)]
pub struct Journal {
    written: u64,
    committed: u64,
    entries: VecDeque<(u64, Entry)>,
    tokens: BTreeMap<u64, u64>,
}

impl Journal {
    /// Goes on after `position` (a taker's mirror).
    pub fn continue_from(position: u64) -> Self {
        Self {
            written: position,
            committed: position,
            ..Self::default()
        }
    }

    /// Appends an entry; returns its position.
    pub fn append(&mut self, token: u64, entry: Entry, keep: bool) -> u64 {
        self.written += 1;
        if keep {
            self.entries.push_back((self.written, entry));
        }
        self.tokens.insert(self.written, token);
        self.written
    }

    /// Last position written.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Last position committed.
    pub fn committed(&self) -> u64 {
        self.committed
    }

    /// Moves the commit position; returns the tokens that are committed by it, in order. It never moves back.
    pub fn commit_to(&mut self, position: u64) -> Vec<u64> {
        self.committed = self.committed.max(position.min(self.written));
        let later = self.tokens.split_off(&(self.committed + 1));
        std::mem::replace(&mut self.tokens, later).into_values().collect()
    }

    /// Forgets entries up to `position`, which nobody will ask for again.
    pub fn forget_to(&mut self, position: u64) {
        while self.entries.front().is_some_and(|(p, _)| *p <= position) {
            self.entries.pop_front();
        }
    }

    /// Forgets all kept entries: there is nobody left to send them to.
    pub fn forget_all(&mut self) {
        self.entries.clear();
    }

    /// Kept entries after `position`, to send (again) after a reconnection.
    pub fn after(&self, position: u64) -> impl Iterator<Item = (u64, &Entry)> {
        self.entries
            .iter()
            .filter(move |(p, _)| *p > position)
            .map(|(p, e)| (*p, e))
    }

    /// Takes all tokens that are not committed, when this member stops being the owner.
    pub fn abandon(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.tokens).into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_in_order_and_once() {
        let mut journal = Journal::continue_from(7);
        for token in [70, 80, 90] {
            let (whole, brief) = (vec![1, 2], Some(vec![3]));
            journal.append(token, Entry { whole, brief }, true);
        }
        assert_eq!(journal.commit_to(9), [70, 80]);
        assert_eq!(journal.commit_to(8), [], "the commit position never moves back");
        assert_eq!(journal.commit_to(99), [90], "nor beyond what is written");
        assert_eq!(journal.committed(), 10);
        journal.forget_to(9);
        assert_eq!(journal.after(0).map(|(p, _)| p).collect::<Vec<_>>(), [10]);
        let forms = journal
            .after(0)
            .map(|(_, e)| [3, 4].map(|format| e.in_format(format).len()));
        assert_eq!(forms.collect::<Vec<_>>(), [[2, 1]]);
    }
}
