//! Failure suspicion for one peer: silence on all links beyond a threshold that adapts to the jitter seen.
//!
//! Only silence while this member itself was awake counts: a stalled process must not blame the peer for records that
//! wait in its own sockets.

use model::Instant;
use std::time::Duration;

/// Upper bound of the adaptive threshold: a peer so irregular is of no use as an owner.
const THRESHOLD_MAX: Duration = Duration::from_millis(1000);
/// Samples over which mean and deviation forget, as a shift.
const FORGET_SHIFT: u32 = 5;
/// How many deviations beyond the mean an interval may last.
const DEVIATIONS: u64 = 8;

/// Detector of one peer.
#[derive(Clone, Debug)]
pub struct Detector {
    interval: Duration,
    floor: Duration,
    last_heard: Option<Instant>,
    last_tick: Instant,
    /// Awake silence so far, ns.
    silence: u64,
    /// Smoothed interval between heartbeats (any link), ns.
    mean: u64,
    /// Smoothed absolute deviation, ns.
    deviation: u64,
    suspected: bool,
}

impl Detector {
    /// For heartbeats every `interval`; suspicion never comes before `floor`.
    pub fn new(interval: Duration, floor: Duration, now: Instant) -> Self {
        Self {
            interval,
            floor,
            last_heard: None,
            last_tick: now,
            silence: 0,
            mean: nanos(interval),
            deviation: 0,
            suspected: false,
        }
    }

    /// A record of the peer came. Returns whether the peer was not heard before (or was suspected).
    pub fn heard(&mut self, now: Instant) -> bool {
        if let Some(last) = self.last_heard
            && !self.suspected
        {
            // A long gap counts as at most the present threshold, so that one outage does not blind the detector.
            let gap = nanos(now.since(last)).min(nanos(self.threshold()));
            let off = gap.abs_diff(self.mean);
            self.mean = self.mean - (self.mean >> FORGET_SHIFT) + (gap >> FORGET_SHIFT);
            // Grows at once, shrinks slowly.
            self.deviation = if off > self.deviation {
                (self.deviation + off) / 2
            } else {
                self.deviation - (self.deviation >> FORGET_SHIFT) + (off >> FORGET_SHIFT)
            };
        }
        let news = self.last_heard.is_none() || self.suspected;
        self.last_heard = Some(now);
        self.silence = 0;
        self.suspected = false;
        news
    }

    /// Time passed. Returns true once, when silence passes the threshold.
    pub fn tick(&mut self, now: Instant) -> bool {
        let gap = nanos(now.since(self.last_tick)).min(2 * nanos(self.interval));
        self.last_tick = now;
        let Some(last) = self.last_heard.filter(|_| !self.suspected) else {
            return false;
        };
        self.silence = (self.silence + gap).min(nanos(now.since(last)));
        if self.silence >= nanos(self.threshold()) {
            self.suspected = true;
            return true;
        }
        false
    }

    /// Silence that is suspicious.
    pub fn threshold(&self) -> Duration {
        let adaptive = Duration::from_nanos(self.mean + DEVIATIONS * self.deviation);
        adaptive.clamp(self.floor, THRESHOLD_MAX.max(self.floor))
    }

    /// Whether the peer was heard and is not suspected.
    pub fn alive(&self) -> bool {
        self.last_heard.is_some() && !self.suspected
    }

    /// Whether its silence passed the threshold.
    pub fn suspected(&self) -> bool {
        self.suspected
    }

    /// When it was last heard.
    pub fn last_heard(&self) -> Option<Instant> {
        self.last_heard
    }

    /// It is a new life of the peer: forget the old one.
    pub fn reset(&mut self, now: Instant) {
        *self = Self::new(self.interval, self.floor, now);
    }
}

/// Whether a peer that is heard hears this member: its heartbeats name the last one of ours that it has seen.
///
/// Only heartbeats that come and confirm nothing new count, each with the time since the one before, but no more than two
/// intervals: neither the peer's silence nor a stall of this member passes for deafness.
#[derive(Clone, Copy, Debug)]
pub struct Hearing {
    interval: Duration,
    /// Highest number of ours that it has confirmed.
    confirmed: u64,
    last: Option<Instant>,
    /// Time in which it was heard and confirmed nothing, ns.
    unheard: u64,
}

impl Hearing {
    /// For heartbeats every `interval`.
    pub fn new(interval: Duration) -> Self {
        Self {
            interval,
            confirmed: 0,
            last: None,
            unheard: 0,
        }
    }

    /// A heartbeat of the peer came. `confirms`: our heartbeat that it names, if it names one of this life.
    pub fn heartbeat(&mut self, now: Instant, confirms: Option<u64>) {
        let gap = self.last.replace(now).map_or(0, |last| nanos(now.since(last)));
        match confirms {
            Some(number) if number > self.confirmed => {
                self.confirmed = number;
                self.unheard = 0;
            }
            // Before the first confirmation it may not have heard of this member yet.
            _ if self.confirmed == 0 => {}
            _ => self.unheard = self.unheard.saturating_add(gap.min(2 * nanos(self.interval))),
        }
    }

    /// It is heard again, or has answered: what was before says nothing any more.
    pub fn forgive(&mut self) {
        self.unheard = 0;
    }

    /// For how long it has been heard without confirming anything new.
    pub fn unheard(&self) -> Duration {
        Duration::from_nanos(self.unheard)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEAT: Duration = Duration::from_millis(20);
    const FLOOR: Duration = Duration::from_millis(100);

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    fn regular(until_ms: u64) -> Detector {
        let mut detector = Detector::new(BEAT, FLOOR, at(0));
        for ms in (0..=until_ms).step_by(5) {
            if ms % 20 == 0 {
                detector.heard(at(ms));
            }
            assert!(!detector.tick(at(ms)));
        }
        detector
    }

    #[test]
    fn a_regular_peer_is_suspected_at_the_floor() {
        let mut detector = regular(2000);
        let suspected = (2000..3000).step_by(5).find(|ms| detector.tick(at(*ms)));
        assert_eq!(suspected, Some(2100));
        assert!(!detector.tick(at(3000)), "suspicion is reported once");
    }

    #[test]
    fn jitter_raises_the_threshold_and_quiet_lowers_it_again() {
        let mut detector = regular(1000);
        let mut ms = 1000;
        for round in 0..50 {
            ms += if round % 2 == 0 { 70 } else { 10 };
            detector.heard(at(ms));
            detector.tick(at(ms));
        }
        let jittery = detector.threshold();
        assert!(jittery > FLOOR * 2, "{jittery:?}");
        for _ in 0..400 {
            ms += 20;
            detector.heard(at(ms));
            detector.tick(at(ms));
        }
        assert_eq!(detector.threshold(), FLOOR);
    }

    #[test]
    fn a_peer_that_is_heard_and_confirms_nothing_new_is_deaf_and_one_that_is_silent_is_not() {
        let mut hearing = Hearing::new(BEAT);
        let beat = |hearing: &mut Hearing, ms, confirms| {
            hearing.heartbeat(at(ms), confirms);
            hearing.unheard().as_millis()
        };
        assert_eq!(beat(&mut hearing, 0, None), 0);
        assert_eq!(beat(&mut hearing, 500, None), 0, "it has not heard of us yet");
        assert_eq!(beat(&mut hearing, 520, Some(7)), 0);
        assert_eq!(beat(&mut hearing, 540, Some(7)), 20);
        assert_eq!(beat(&mut hearing, 541, Some(6)), 21, "overtaken by a later one");
        assert_eq!(beat(&mut hearing, 560, Some(8)), 0);
        assert_eq!(beat(&mut hearing, 5560, Some(8)), 40, "five seconds of silence");
        assert_eq!(beat(&mut hearing, 5580, None), 60);
        hearing.forgive();
        assert_eq!(beat(&mut hearing, 5590, Some(8)), 10);
        assert_eq!(beat(&mut hearing, 5600, Some(9)), 0);
    }

    #[test]
    fn a_local_stall_is_not_the_peers_silence() {
        let mut detector = regular(1000);
        assert!(
            !detector.tick(at(6000)),
            "five seconds asleep count as two intervals"
        );
        assert!(detector.alive());
    }
}
