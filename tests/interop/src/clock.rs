//! The one clock of the lab: `CLOCK_MONOTONIC` nanoseconds, which the agents use as well.

use nix::time::{ClockId, clock_gettime, clock_nanosleep};
use std::time::Duration;

/// Now, in nanoseconds.
pub fn now_ns() -> u64 {
    read(ClockId::CLOCK_MONOTONIC)
}

/// What must be added to a `CLOCK_REALTIME` stamp (as packet sockets give) to get this clock.
pub fn realtime_to_monotonic_ns() -> i64 {
    now_ns() as i64 - read(ClockId::CLOCK_REALTIME) as i64
}

/// Sleeps until an absolute time, so that a paced sender does not drift.
pub fn sleep_until(at_ns: u64) {
    let at = nix::sys::time::TimeSpec::new((at_ns / 1_000_000_000) as i64, (at_ns % 1_000_000_000) as i64);
    // An interrupted sleep only makes the next packet early; the pace is absolute.
    let _ = clock_nanosleep(
        ClockId::CLOCK_MONOTONIC,
        nix::time::ClockNanosleepFlags::TIMER_ABSTIME,
        &at,
    );
}

/// Asks `done` every `step` until it answers or `limit` has passed.
pub fn wait_for<T>(limit: Duration, step: Duration, mut done: impl FnMut() -> Option<T>) -> Option<T> {
    let end = now_ns() + limit.as_nanos() as u64;
    loop {
        if let Some(value) = done() {
            return Some(value);
        }
        if now_ns() >= end {
            return None;
        }
        sleep_until(now_ns() + step.as_nanos() as u64);
    }
}

/// A limit that suits the machine: in an emulated one, where programs take minutes to load, `ESPALIER_PATIENCE` says how many times as
/// long things take.
pub fn patience(limit: Duration) -> Duration {
    let times = std::env::var("ESPALIER_PATIENCE").ok();
    limit * times.and_then(|times| times.parse().ok()).unwrap_or(1)
}

fn read(clock: ClockId) -> u64 {
    clock_gettime(clock).map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64)
}
