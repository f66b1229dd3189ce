//! When the peers of an IKE SA authenticated each other, which its rekeys do not change (RFC 7296 2.8.3).

use model::Instant;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// In the record's third part. Rekeys of the IKE SA hand it on.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Authentication {
    /// Seconds since 1970; `None` where nobody knows them. Clocks of members need not agree better than operators' patience.
    at: Option<u64>,
    /// We initiated it, so the next one is for us to begin, whoever has rekeyed the IKE SA since.
    pub initiated: bool,
    /// How many there were before with this peer, one IKE SA beside the other. Of two IKE SAs that we initiated, the one with the higher
    /// number is the younger one, whatever clocks say.
    pub generation: u32,
    /// Seconds from `at` that the peer lets it last (RFC 4478).
    pub lifetime: Option<u64>,
    /// Its age at some point of this member's time.
    #[serde(skip)]
    as_of: (Instant, Duration),
    /// Somebody will ask for it: other members need it.
    #[serde(skip)]
    pub is_needed: bool,
}

impl Authentication {
    /// One that happens now.
    pub fn new(now: Instant, unix: Option<u64>, initiated: bool, generation: u32) -> Self {
        Self {
            at: unix,
            initiated,
            generation,
            lifetime: None,
            as_of: (now, Duration::ZERO),
            is_needed: false,
        }
    }

    /// It has happened now: it was being prepared before, or its IKE SA resumes a session, which is no authentication (RFC 5723).
    pub fn completed(&mut self, now: Instant, unix: Option<u64>) {
        self.at = unix;
        self.as_of = (now, Duration::ZERO);
    }

    /// After a takeover: how old it is by the clock of this member. A clock that is behind makes it new, and never younger than that.
    pub fn taken_over(&mut self, now: Instant, unix: Option<u64>) {
        let age = match (self.at, unix) {
            (Some(at), Some(unix)) => unix.saturating_sub(at),
            _ => 0,
        };
        self.as_of = (now, Duration::from_secs(age));
        self.is_needed = true;
    }

    /// Time since it happened.
    pub fn age(&self, now: Instant) -> Duration {
        self.as_of.1.saturating_add(now.since(self.as_of.0))
    }

    /// The point of time at which it has this age; now, where that has passed.
    pub fn when(&self, now: Instant, age: Duration) -> Instant {
        now + age.saturating_sub(self.age(now))
    }

    /// Seconds since 1970 when it happened.
    pub fn at(&self) -> Option<u64> {
        self.at
    }

    /// One that happened at that time, seen from now: what a ticket remembers.
    pub fn remembered(now: Instant, unix: u64, at: u64, initiated: bool) -> Self {
        let mut this = Self::new(now, Some(at), initiated, 0);
        this.taken_over(now, Some(unix));
        this
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Instant {
        Instant::from_millis(seconds * 1000)
    }

    #[test]
    fn its_age_goes_on_over_a_takeover_whatever_the_two_members_call_the_time() {
        let first = Authentication::new(at(5000), Some(1_800_000_000), true, 0);
        assert_eq!(first.age(at(5060)), Duration::from_secs(60));
        assert_eq!(first.when(at(5060), Duration::from_secs(100)), at(5100));
        let octets = postcard::to_stdvec(&first).unwrap();
        let mut taken: Authentication = postcard::from_bytes(&octets).unwrap();
        // The other member has just started.
        taken.taken_over(at(3), Some(1_800_000_090));
        assert_eq!(taken.age(at(3)), Duration::from_secs(90));
        assert_eq!(taken.when(at(3), Duration::from_secs(100)), at(13));
        assert_eq!(taken.when(at(3), Duration::from_secs(80)), at(3), "it has passed");
        taken.taken_over(at(3), Some(1_700_000_000));
        assert_eq!(taken.age(at(4)), Duration::from_secs(1), "a clock that is behind");
        taken.taken_over(at(3), None);
        assert_eq!(taken.age(at(4)), Duration::from_secs(1));
    }
}
