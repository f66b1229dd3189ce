//! The clocks of this host. Everything below the agent gets time as an argument.

use model::Instant;

/// `CLOCK_MONOTONIC`: the clock of the programs and of every core.
pub fn now() -> Instant {
    match nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC) {
        Ok(time) => Instant(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64),
        // The call cannot fail for this clock; time standing still stops timers, which is safe.
        Err(_) => Instant(0),
    }
}

/// Wall-clock time, nanoseconds since 1970, for people.
pub fn wall_ns() -> u64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
