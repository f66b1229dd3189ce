//! What happened, as a digest of everything and as words for the last events.

use crate::rng::mix;
use model::Instant;
use std::collections::VecDeque;

/// The story of a run.
pub struct Trace {
    keep: usize,
    /// Digest of every event: two runs of a seed must agree.
    pub digest: u64,
    /// Events so far.
    pub steps: u64,
    recent: VecDeque<String>,
}

impl Trace {
    /// `keep`: so many of the last events are kept in words; all of them are in the digest.
    pub fn new(keep: usize) -> Self {
        Self {
            keep,
            digest: 0,
            steps: 0,
            recent: VecDeque::new(),
        }
    }

    /// Notes an event. The words are made only where they are kept; empty ones are not shown.
    pub fn note(
        &mut self,
        now: Instant,
        kind: &'static str,
        numbers: [u64; 2],
        words: impl FnOnce() -> String,
    ) {
        self.steps += 1;
        self.digest = mix(self.digest, now.0);
        let kind_word = kind
            .bytes()
            .fold(0_u64, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
        self.digest = mix(mix(mix(self.digest, kind_word), numbers[0]), numbers[1]);
        if self.keep > 0 {
            let words = words();
            if words.is_empty() {
                return;
            }
            if self.recent.len() == self.keep {
                self.recent.pop_front();
            }
            let ms = now.0 as f64 / 1e6;
            self.recent
                .push_back(format!("{:>7} {ms:>11.3} ms  {kind:<10} {words}", self.steps));
        }
    }

    /// The last events.
    pub fn recent(&self) -> Vec<String> {
        self.recent.iter().cloned().collect()
    }
}
