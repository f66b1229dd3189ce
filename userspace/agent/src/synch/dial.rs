//! Keeps a connection to a member with a higher id.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::Endpoint;
use tokio::sync::watch;

use super::frame::FrameError;
use super::link::{Serving, Shared, YOUNG, greet};
use super::refusal::Refusal;
use super::tls::Credentials;

/// An attempt that takes longer is given up. QUIC asks again after growing pauses; at this time the next one would come
/// no sooner than that of a new attempt.
const ATTEMPT: Duration = Duration::from_millis(800);
/// First and longest pause between two attempts: a link that was cut is back soon.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// How much later the other side may have made a connection its link's.
const LATER: Duration = Duration::from_millis(200);

/// Growing pauses, half of each by chance: members that lost each other at the same time do not dial in step.
struct Backoff(Duration);

impl Backoff {
    fn next(&mut self) -> Duration {
        let longest = self.0;
        self.0 = (longest * 2).min(PAUSE.1);
        let mut chance = [0; 2];
        // Without randomness the pause is the longest, which is as good.
        let _ = getrandom::fill(&mut chance);
        longest - longest / 2 * u32::from(u16::from_le_bytes(chance)) / 65_536
    }
}

/// Why an attempt failed.
enum Failure {
    Refused(Refusal, String),
    Unreachable(String),
}

impl From<FrameError> for Failure {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Refused(why) => Self::Refused(why, String::new()),
            FrameError::Lost(why) => Self::Unreachable(why),
        }
    }
}

/// Keeps a connection to a member with a higher id.
pub(super) struct Dialer {
    pub endpoint: Endpoint,
    pub address: SocketAddr,
    pub name: String,
    pub credentials: watch::Receiver<Arc<Credentials>>,
    pub shared: Shared,
}

impl Dialer {
    pub async fn run(self) {
        let shared = &self.shared;
        let mut backoff = Backoff(PAUSE.0);
        while !shared.events.is_closed() {
            match self.connect().await {
                Ok(serving) => {
                    self.keep(serving).await;
                    backoff = Backoff(PAUSE.0);
                }
                Err(failure) => self.failed(&failure),
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    /// Serves a connection, and whatever replaces it, until the link is down.
    async fn keep(&self, serving: Serving) {
        let slot = &self.shared.slot;
        let mut task = tokio::spawn(serving.run());
        loop {
            let renewed = async {
                slot.renew.notified().await;
                // The other side knows the present connection a little later. A peer that asks all the time is heeded no
                // more often than this.
                if let Some(facts) = slot.facts() {
                    tokio::time::sleep((YOUNG + LATER).saturating_sub(facts.since.elapsed())).await;
                }
                self.connect().await
            };
            tokio::select! {
                _ = &mut task => return,
                renewed = renewed => match renewed {
                    // The old one is closed by the other side; its task ends by itself.
                    Ok(serving) => task = tokio::spawn(serving.run()),
                    // The old one stays.
                    Err(failure) => self.failed(&failure),
                }
            }
        }
    }

    fn failed(&self, failure: &Failure) {
        match failure {
            Failure::Refused(why, detail) => self.shared.refuse(*why, detail),
            Failure::Unreachable(why) => tracing::debug!(
                peer = %self.shared.peer, link = self.shared.link.name(), why, "member not reached"
            ),
        }
    }

    /// Dials, greets, and makes the connection the link's.
    async fn connect(&self) -> Result<Serving, Failure> {
        let credentials = self.credentials.borrow().clone();
        let unreachable = |error: &dyn std::fmt::Display| Failure::Unreachable(error.to_string());
        let connecting = self
            .endpoint
            .connect_with(credentials.client.clone(), self.address, &self.name)
            .map_err(|error| unreachable(&error))?;
        let connection = tokio::time::timeout(ATTEMPT, connecting)
            .await
            .map_err(|_| unreachable(&"it does not answer"))?
            .map_err(|error| match Refusal::of(&error) {
                Some(why) => Failure::Refused(why, error.to_string()),
                None => unreachable(&error),
            })?;
        let greeted = greet(connection, true).await?;
        self.shared
            .admit(greeted, credentials.version)
            .await
            .map_err(|why| Failure::Refused(why, String::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_half_a_second_and_never_beyond() {
        let mut backoff = Backoff(PAUSE.0);
        let mut longest = PAUSE.0;
        for _ in 0..100 {
            let pause = backoff.next();
            assert!(
                pause <= longest && pause >= longest / 2,
                "{pause:?} with at most {longest:?}"
            );
            longest = (longest * 2).min(Duration::from_millis(500));
        }
    }
}
