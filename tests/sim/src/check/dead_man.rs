//! The dead-man's switch: the programs of a host whose agent does not run serve no longer than T.

use super::Truth;
use model::{Instant, MemberId};
use std::time::Duration;

/// T, and the millisecond to which owner words are exact.
pub(super) const AT_MOST: Duration = Duration::from_millis(81);

pub(super) fn serves(now: Instant, me: MemberId, truth: &Truth) -> Result<(), String> {
    match truth.silent_since(me) {
        Some(since) if now.since(since) > AT_MOST => Err(format!(
            "member {me} serves, though its agent has not run for {} ms",
            now.since(since).as_millis()
        )),
        _ => Ok(()),
    }
}
