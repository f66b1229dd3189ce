//! Message IDs, both directions; the window size is 1 (RFC 7296 2.3).

use crate::config::Resource;
use crate::tasks::Pending;
use model::{EspSpi, Instant};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Tasks that may wait for the outstanding request; more are refused.
const QUEUE_MAX: usize = 256;

/// A request of ours without its response.
#[derive(Serialize, Deserialize)]
pub(crate) struct Outstanding {
    pub id: u32,
    /// Sent again unchanged.
    pub bytes: Vec<u8>,
    /// What is needed to finish the exchange.
    pub pending: Pending,
}

/// What is to be done next.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Task {
    CreateChild {
        child: String,
    },
    RekeyChild {
        spi_in: EspSpi,
    },
    DeleteChild {
        spi_in: EspSpi,
    },
    RekeyIke,
    DeleteIke,
    Liveness,
    /// Give and ask for what belongs to a new IKE SA after a rekey.
    Refresh,
    /// Ask the peer to raise its sequence numbers.
    SyncCounters {
        delta: u64,
    },
    /// One more Child SA like the one that is up.
    CreateResourceChild {
        child: String,
        resource: Resource,
    },
    /// Whether the peer can be reached where it moved to (RFC 4555).
    Routability,
    /// Tell the peer where we are (RFC 4555).
    UpdateAddresses,
}

/// A task and the time before which it must not start (for retries; not kept over a takeover).
#[derive(Serialize, Deserialize)]
pub(crate) struct Queued {
    pub task: Task,
    #[serde(skip)]
    pub not_before: Instant,
    /// How often the peer put it off already.
    pub tries: u8,
}

/// Our requests.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct OurWindow {
    /// Message ID of the next request.
    pub next: u32,
    pub outstanding: Option<Outstanding>,
    pub queue: VecDeque<Queued>,
}

impl OurWindow {
    /// Adds a task unless it is there already.
    pub fn push(&mut self, task: Task) {
        self.push_at(task, Instant::default(), 0);
    }

    pub fn push_at(&mut self, task: Task, not_before: Instant, tries: u8) {
        if self.queue.len() < QUEUE_MAX && !self.queue.iter().any(|queued| queued.task == task) {
            self.queue.push_back(Queued {
                task,
                not_before,
                tries,
            });
        }
    }

    /// Deletes go first: they make room, and nothing else matters for what is being deleted.
    pub fn push_front(&mut self, task: Task) {
        self.queue.retain(|queued| queued.task != task);
        self.queue.push_front(Queued {
            task,
            not_before: Instant::default(),
            tries: 0,
        });
    }

    pub fn pop_ready(&mut self, now: Instant) -> Option<Queued> {
        let index = self.queue.iter().position(|queued| queued.not_before <= now)?;
        self.queue.remove(index)
    }

    pub fn earliest_queued(&self) -> Option<Instant> {
        self.queue.iter().map(|queued| queued.not_before).min()
    }
}

/// The peer's requests.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct TheirWindow {
    /// Message ID that the next request must have.
    pub next: u32,
    /// Response to the request before it; sent again unchanged.
    pub last_response: Option<Vec<u8>>,
}

/// What a request's Message ID says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Order {
    New,
    Repeated,
    OutOfWindow,
}

impl TheirWindow {
    pub fn order(&self, id: u32) -> Order {
        if id == self.next {
            Order::New
        } else if id.checked_add(1) == Some(self.next) && self.last_response.is_some() {
            Order::Repeated
        } else {
            Order::OutOfWindow
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_next_and_the_last_request_count() {
        let window = TheirWindow {
            next: 5,
            last_response: Some(vec![1]),
        };
        assert_eq!(window.order(5), Order::New);
        assert_eq!(window.order(4), Order::Repeated);
        for id in [0, 3, 6, u32::MAX] {
            assert_eq!(window.order(id), Order::OutOfWindow, "{id}");
        }
        assert_eq!(TheirWindow::default().order(u32::MAX), Order::OutOfWindow);
    }

    #[test]
    fn a_task_is_queued_once_and_waits_for_its_time() {
        let mut window = OurWindow::default();
        window.push_at(Task::RekeyIke, Instant(10), 1);
        window.push(Task::RekeyIke);
        assert!(window.pop_ready(Instant(9)).is_none());
        assert_eq!(window.earliest_queued(), Some(Instant(10)));
        assert!(window.pop_ready(Instant(10)).is_some());
        assert!(window.queue.is_empty());
    }
}
