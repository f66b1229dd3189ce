//! Who begins a connection, when, and with which of the peer's addresses: at the start, on traffic, after a loss.

use std::net::IpAddr;
use std::time::Duration;

use ike::{Command, ConnectionPhase, Event, EventKind};
use model::Instant;

use super::Core;
use super::around::{self, segment_of_name};
use super::entry::EntryChange;
use crate::api::RetryStatus;
use crate::clock;
use crate::config::{AfterLoss, ConnectionConfig, Retry, Start};

/// A wish for a connection that another member is to initiate is passed on no sooner again.
const ACQUIRE_AGAIN: Duration = Duration::from_secs(1);

/// What a connection is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Whatever the peer or an operator makes of it.
    Rest,
    /// Initiated when a packet asks for it.
    Trap,
    /// Up: initiated until it is.
    Up,
}

impl From<Start> for Wanted {
    fn from(start: Start) -> Self {
        match start {
            Start::Initiate => Self::Up,
            Start::Trap => Self::Trap,
            Start::Passive => Self::Rest,
        }
    }
}

impl From<AfterLoss> for Wanted {
    fn from(action: AfterLoss) -> Self {
        match action {
            AfterLoss::Clear => Self::Rest,
            AfterLoss::Trap => Self::Trap,
            AfterLoss::Restart => Self::Up,
        }
    }
}

/// Attempts to set up a connection since it was up last.
#[derive(Clone, Debug, Default)]
pub struct Redial {
    not_before: Instant,
    attempts: u32,
    /// Where the last one went.
    remote: Option<IpAddr>,
}

/// The pause after so many rounds over the peer's addresses (from 1 on), made up to a quarter shorter or longer by `random`, so
/// that many connections which were lost together do not come back together.
pub fn pause(retry: Retry, rounds: u32, random: u32) -> Duration {
    let doubled = retry.first.saturating_mul(1 << rounds.saturating_sub(1).min(16));
    let pause = doubled.min(retry.most);
    pause.mul_f64(0.75 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

impl Redial {
    /// The address of the next attempt.
    fn next<'a>(&self, remotes: &'a [IpAddr]) -> Option<&'a IpAddr> {
        remotes.get(self.attempts as usize % remotes.len().max(1))
    }

    /// The pause that is due now: none within a round over so many addresses.
    fn pause(&self, config: &ConnectionConfig, addresses: usize) -> Duration {
        let addresses = (addresses as u32).max(1);
        if !self.attempts.is_multiple_of(addresses) {
            return Duration::ZERO;
        }
        let mut random = [0; 4];
        around::random(&mut random);
        let rounds = self.attempts / addresses;
        pause(config.dial.retry, rounds, u32::from_ne_bytes(random))
    }
}

impl Core {
    /// Whether this member is the one that initiates a connection: it owns the segment of the connection's name. While
    /// IKE SAs are still being adopted, nobody can say whether it is up.
    pub(super) fn initiates(&self, connection: &str) -> bool {
        let segment = segment_of_name(self.steer_key, connection);
        self.groups.serves_segment(segment) && self.groups.iter().all(|g| g.adopting.is_empty())
    }

    /// Whether another member serves the connection: the peer initiated it there.
    pub(super) fn served_elsewhere(&self, connection: &str) -> bool {
        let mut segments = self.sad.children_of(connection);
        segments.any(|(segment, _)| !self.groups.owns_segment(segment))
    }

    fn connection_config(&self, name: &str) -> Option<&ConnectionConfig> {
        self.config.connections.iter().find(|c| c.name == name)
    }

    pub(super) fn wanted(&self, config: &ConnectionConfig) -> Wanted {
        if self.stops.contains(&config.name) {
            return Wanted::Rest;
        }
        let since_loss = self.wanted.get(&config.name).copied();
        since_loss.unwrap_or_else(|| config.dial.start.into())
    }

    /// Initiates what is to be up and is not, with growing pauses.
    pub(super) fn redial(&mut self, now: Instant) {
        self.children_turn(now);
        let wanted = self
            .config
            .connections
            .iter()
            .filter(|c| self.wanted(c) == Wanted::Up);
        let names = wanted.map(|c| c.name.clone()).collect::<Vec<_>>();
        for name in names {
            if self.initiates(&name) && self.engine.connection_phase(&name) == ConnectionPhase::Down {
                self.attempt(&name, now);
            }
        }
    }

    /// Initiates a connection; one that is down not before its pause is over, and with the next of the peer's addresses.
    pub(super) fn attempt(&mut self, name: &str, now: Instant) {
        if self.served_elsewhere(name) {
            return;
        }
        let Some(config) = self.connection_config(name) else {
            return;
        };
        if self.engine.connection_phase(name) != ConnectionPhase::Down {
            // What is missing are children.
            return self.ask_for_children(name);
        }
        let mut redial = self.redial.get(name).cloned().unwrap_or_default();
        if config.remotes.is_empty() || now < redial.not_before {
            return;
        }
        let config = config.clone();
        if !self.names.are_known(&config, now) {
            return self.names.wait(name);
        }
        let remotes = self.names.addresses(&config);
        let remote = redial.next(&remotes).copied();
        redial.attempts = redial.attempts.saturating_add(1);
        redial.not_before = now + redial.pause(&config, remotes.len());
        redial.remote = remote;
        self.redial.insert(name.to_owned(), redial);
        let Some(remote) = remote else {
            let why = self.names.why_nowhere(&config);
            self.reasons.insert(name.to_owned(), why);
            return;
        };
        let connection = name.to_owned();
        self.engine_command(Command::InitiateTo { connection, remote });
    }

    /// A packet met a policy without an SA.
    pub(super) fn acquire(&mut self, connection: u32) {
        let index = u16::try_from(connection).unwrap_or_default();
        let Some(name) = self.sad.connection_name(index).map(str::to_owned) else {
            return;
        };
        let Some(config) = self.connection_config(&name) else {
            return;
        };
        // Where only the peer begins, packets do not.
        if config.remotes.is_empty() || self.wanted(config) == Wanted::Rest {
            return;
        }
        let segment = segment_of_name(self.steer_key, &name);
        let now = clock::now();
        if self.groups.owns_segment(segment) {
            if self.initiates(&name) {
                self.attempt(&name, now);
            }
            return;
        }
        // Traffic that came here is for a group of this member; whoever owns the connection's name reads its journal.
        let told = self.acquired.get(&name);
        let own = self.groups.iter().find(|g| self.groups.owns(g.id)).map(|g| g.id);
        if let Some(group) = own
            && told.is_none_or(|at| now.since(*at) >= ACQUIRE_AGAIN)
        {
            self.acquired.insert(name.clone(), now);
            let asked = vec![EntryChange::Acquire(name)];
            self.propose_changes(group, asked, Vec::new(), Vec::new());
            self.settle();
        }
    }

    /// What an event of the engine says of the state of its connection.
    pub(super) fn dial_event(&mut self, event: &Event) {
        let Some(name) = &event.connection else { return };
        let has_remotes = |c: &ConnectionConfig| c.name == *name && !c.remotes.is_empty();
        // Authenticated anew: what the connection is, and what of it is to be, does not change with one IKE SA of two.
        let is_one_of_two = match event.kind {
            EventKind::Established | EventKind::PeerSilent | EventKind::PeerClosed => {
                self.config.connections.iter().any(has_remotes)
                    && self.engine.is_up_beside(name, event.ike_spi)
            }
            _ => false,
        };
        match event.kind {
            EventKind::Established if is_one_of_two => {
                self.redial.remove(name);
                self.reasons.remove(name);
            }
            EventKind::Established => {
                self.redial.remove(name);
                self.reasons.remove(name);
                self.wanted.remove(name);
                self.children.forget(name);
            }
            EventKind::ChildUp => {
                if let Some(child) = &event.child {
                    self.children.up(name, child);
                }
            }
            kind if kind.is_warning() || kind == EventKind::IkeSaDown => {
                self.reasons.insert(name.clone(), event.text.clone());
            }
            _ => {}
        }
        let Some(config) = self.config.connections.iter().find(|c| c.name == *name) else {
            return;
        };
        let dial = config.dial;
        if let (EventKind::ChildClosed, Some(child), false) =
            (event.kind, &event.child, config.remotes.is_empty())
        {
            return self.children.closed(name, child, dial.close_action.into());
        }
        let after = match event.kind {
            _ if is_one_of_two => return,
            EventKind::PeerSilent if event.was_up => dial.dpd_action,
            EventKind::PeerClosed => dial.close_action,
            EventKind::IkeSaDown if !event.was_up => {
                // The pause counts from the end of the attempt, however long that took.
                let addresses = self.names.addresses(config).len();
                if let Some(redial) = self.redial.get_mut(name) {
                    let pause = redial.pause(config, addresses);
                    redial.not_before = redial.not_before.max(clock::now() + pause);
                }
                return;
            }
            _ => return,
        };
        if config.remotes.is_empty() {
            return;
        }
        self.wanted.insert(name.clone(), after.into());
    }

    /// For `espalier status`: how the attempts go.
    pub(super) fn retry_status(&self, name: &str) -> Option<RetryStatus> {
        let redial = self.redial.get(name).filter(|redial| redial.attempts > 0)?;
        let config = self.connection_config(name)?;
        let now = clock::now();
        let waits = self.engine.connection_phase(name) == ConnectionPhase::Down;
        Some(RetryStatus {
            attempts: redial.attempts,
            last_remote: redial.remote.map(|a| a.to_string()),
            next_remote: redial
                .next(&self.names.addresses(config))
                .filter(|_| waits)
                .map(|a| a.to_string()),
            next_in_ms: waits.then(|| redial.not_before.since(now).as_millis() as u64),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRY: Retry = Retry {
        first: Duration::from_secs(2),
        most: Duration::from_secs(60),
    };

    #[test]
    fn pauses_double_up_to_the_longest_and_differ_by_a_quarter() {
        let middle = u32::MAX / 2;
        let seconds = |rounds, random| pause(RETRY, rounds, random).as_secs_f64();
        for (rounds, expected) in [(1, 2.0), (2, 4.0), (3, 8.0), (6, 60.0), (40, 60.0)] {
            assert!((seconds(rounds, middle) - expected).abs() < 0.001, "{rounds}");
            assert!((seconds(rounds, 0) - expected * 0.75).abs() < 0.001);
            assert!((seconds(rounds, u32::MAX) - expected * 1.25).abs() < 0.001);
        }
    }

    #[test]
    fn the_addresses_are_tried_in_turn() {
        let remotes: Vec<IpAddr> = ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
            .map(|a| a.parse().unwrap())
            .to_vec();
        let mut redial = Redial::default();
        for round in 0..2 {
            for remote in &remotes {
                assert_eq!(redial.next(&remotes), Some(remote), "round {round}");
                redial.attempts += 1;
            }
        }
        assert_eq!(redial.next(&[]), None);
    }

    #[test]
    fn what_start_says_and_what_a_loss_says_are_of_one_kind() {
        assert_eq!(Wanted::from(Start::Passive), Wanted::from(AfterLoss::Clear));
        assert_eq!(Wanted::from(Start::Trap), Wanted::from(AfterLoss::Trap));
        assert_eq!(Wanted::from(Start::Initiate), Wanted::from(AfterLoss::Restart));
    }
}
