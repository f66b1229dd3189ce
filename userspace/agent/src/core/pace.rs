//! Rests of the loop while many IKE messages come (ADR 27).
//!
//! Each time that the thread of the loop wakes up costs it and the standby the same, whether one message has come or ten: changes of
//! thread, a turn of the loop, an entry of the journal with its packets and acknowledgement. So while messages come often, the
//! thread does not wake up for each of them, as a network card under load does not interrupt for each packet. A few in a row, a whole
//! handshake and more, are free: without load nothing waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use model::Instant;
use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_nanosleep};

use crate::clock;

/// Under load the loop looks for messages about this often.
const EVERY: Duration = Duration::from_millis(1);
/// Looks in a row that are free.
const FREE: u32 = 12;

/// How often the loop has found IKE messages of late.
#[derive(Clone, Default)]
pub struct Pace {
    /// Each look that finds messages puts this off by [`EVERY`]; it is in the past when they come seldom.
    spent: Arc<AtomicU64>,
}

impl Pace {
    /// A look at the sockets has found messages.
    pub fn found(&self, now: Instant) {
        let spent = Instant(self.spent.load(Ordering::Relaxed)).max(now) + EVERY;
        // A loop that has no time to rest does not make up for it.
        let spent = spent.min(now + EVERY * (FREE + 1));
        self.spent.store(spent.0, Ordering::Relaxed);
    }

    /// Until when the loop is to rest before it waits for anything: [`EVERY`] at most.
    fn rest(&self, now: Instant) -> Option<Instant> {
        let spent = self.spent.load(Ordering::Relaxed);
        let until = Instant(spent.saturating_sub((EVERY * FREE).as_nanos() as u64));
        (until > now).then_some(until)
    }

    /// The loop has nothing to do and would wait: rests first, where that is due. Whatever comes meanwhile is there afterwards.
    pub fn before_waiting(&self) {
        let Some(until) = self.rest(clock::now()) else {
            return;
        };
        let until = TimeSpec::from_duration(Duration::from_nanos(until.0));
        let absolute = ClockNanosleepFlags::TIMER_ABSTIME;
        while clock_nanosleep(ClockId::CLOCK_MONOTONIC, absolute, &until) == Err(Errno::EINTR) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: Instant = Instant(1_000_000_000);

    #[test]
    fn a_few_messages_wait_for_nothing_and_many_for_a_millisecond_at_most() {
        let pace = Pace::default();
        assert_eq!(pace.rest(T0), None);
        for _ in 0..FREE {
            assert_eq!(pace.rest(T0), None);
            pace.found(T0);
        }
        // However often: a rest is not made up for.
        for _ in 0..100 {
            pace.found(T0);
            assert_eq!(pace.rest(T0), Some(T0 + EVERY));
        }
        assert_eq!(pace.rest(T0 + EVERY), None, "it is over");
        pace.found(T0 + EVERY);
        assert_eq!(pace.rest(T0 + EVERY), Some(T0 + EVERY + EVERY));
        // What comes seldom enough is free again.
        let later = T0 + EVERY * (2 * FREE);
        pace.found(later);
        assert_eq!(pace.rest(later), None);
    }

    #[test]
    fn messages_at_a_lower_rate_never_wait() {
        let pace = Pace::default();
        for nth in 0..10_000 {
            let now = T0 + EVERY * nth;
            assert_eq!(pace.rest(now), None, "{nth}");
            pace.found(now);
        }
    }

    #[test]
    fn it_rests_by_the_clock_of_the_loop() {
        let pace = Pace::default();
        let before = clock::now();
        for _ in 0..=FREE {
            pace.found(before);
        }
        pace.before_waiting();
        assert!(clock::now() >= before + EVERY);
    }
}
