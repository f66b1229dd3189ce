//! Message IDs, both directions (RFC 7296 2.3). A window has size 1 until its receiver announces another one.

use crate::config::Resource;
use crate::proposal::Proposal;
use crate::tasks::Pending;
use model::{EspSpi, Instant};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

/// Tasks that may wait for the outstanding request; more are refused.
const QUEUE_MAX: usize = 256;

/// A request of ours without its response.
#[derive(Serialize, Deserialize)]
pub(crate) struct Outstanding {
    pub id: u32,
    /// Sent again unchanged.
    #[serde(with = "model::octets")]
    pub bytes: Vec<u8>,
    /// What is needed to finish the exchange.
    pub pending: Pending,
    /// Its retransmissions.
    #[serde(skip)]
    pub clock: Clock,
}

/// Retransmissions of a request.
#[derive(Clone, Copy, Default)]
pub(crate) struct Clock {
    /// The next one.
    pub at: Option<Instant>,
    /// So far.
    pub sent: u32,
}

/// What a request or a task is about, where others may be under way beside it.
#[derive(PartialEq, Eq)]
pub(crate) enum Subject<'a> {
    Child(&'a str),
    Sa(EspSpi),
}

impl Outstanding {
    /// `None`: nothing else may be under way.
    fn subject(&self) -> Option<Subject<'_>> {
        match &self.pending {
            // Its response may be the beginning of a series of exchanges.
            Pending::CreateChild(offer) if offer.proposals.iter().any(Proposal::has_additional) => None,
            Pending::CreateChild(offer) => match (offer.rekeys, offer.resource) {
                (Some(old), _) => Some(Subject::Sa(old)),
                (None, None) => Some(Subject::Child(&offer.name)),
                (None, Some(_)) => None,
            },
            Pending::DeleteChild { spi_in } => Some(Subject::Sa(*spi_in)),
            _ => None,
        }
    }
}

impl Task {
    fn subject(&self) -> Option<Subject<'_>> {
        match self {
            Self::CreateChild { child } => Some(Subject::Child(child)),
            Self::RekeyChild { spi_in } | Self::DeleteChild { spi_in } => Some(Subject::Sa(*spi_in)),
            _ => None,
        }
    }
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
    /// The peer is to go to another gateway (RFC 5685).
    Redirect {
        to: IpAddr,
    },
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
    /// The oldest request without a response. Boxed: most of the time there is none.
    outstanding: Option<Box<Outstanding>>,
    pub queue: VecDeque<Queued>,
    /// Further ones, rising. In the record's third part.
    #[serde(skip)]
    further: Vec<Outstanding>,
}

impl OurWindow {
    /// Requests without a response, rising.
    pub fn all(&self) -> impl Iterator<Item = &Outstanding> {
        self.outstanding.as_deref().into_iter().chain(&self.further)
    }

    /// As [`OurWindow::all`].
    pub fn all_mut(&mut self) -> impl Iterator<Item = &mut Outstanding> {
        self.outstanding
            .as_deref_mut()
            .into_iter()
            .chain(&mut self.further)
    }

    /// What they are about.
    pub fn pending(&self) -> impl Iterator<Item = &Pending> {
        self.all().map(|outstanding| &outstanding.pending)
    }

    pub fn is_idle(&self) -> bool {
        self.outstanding.is_none()
    }

    /// All but the oldest one.
    pub fn further(&self) -> &[Outstanding] {
        &self.further
    }

    /// Adds a request that is higher than all others.
    pub fn put(&mut self, outstanding: Outstanding) {
        match &self.outstanding {
            None => self.outstanding = Some(Box::new(outstanding)),
            Some(_) => self.further.push(outstanding),
        }
    }

    /// Takes the request with this Message ID out.
    pub fn take(&mut self, id: u32) -> Option<Outstanding> {
        if self.outstanding.as_ref().is_some_and(|oldest| oldest.id == id) {
            let next = (!self.further.is_empty()).then(|| Box::new(self.further.remove(0)));
            return std::mem::replace(&mut self.outstanding, next).map(|oldest| *oldest);
        }
        let at = self.further.iter().position(|outstanding| outstanding.id == id)?;
        Some(self.further.remove(at))
    }

    /// Takes all out.
    pub fn take_all(&mut self) -> impl Iterator<Item = Outstanding> + use<> {
        let further = std::mem::take(&mut self.further);
        let oldest = self.outstanding.take().map(|oldest| *oldest);
        oldest.into_iter().chain(further)
    }

    //= rfc7296#2.3
    // An endpoint MUST NOT exceed the peer's stated window size for transmitted IKE requests.
    /// Whether one more request may be sent to a peer with a window of this size.
    pub fn has_room(&self, size: u32) -> bool {
        self.outstanding
            .as_ref()
            .is_none_or(|oldest| self.next.wrapping_sub(oldest.id) < size)
    }

    /// Whether a task may be under way beside what is.
    pub fn goes_beside(&self, task: &Task) -> bool {
        let subject = task.subject();
        let apart = |outstanding: &Outstanding| match (outstanding.subject(), &subject) {
            (Some(theirs), Some(ours)) => theirs != *ours,
            _ => false,
        };
        self.all().all(apart)
    }

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

    /// The task that goes next: of those that may start at the same time, the first of the queue.
    fn head(&self) -> Option<usize> {
        let times = self.queue.iter().map(|queued| queued.not_before);
        times
            .enumerate()
            .min_by_key(|(_, at)| *at)
            .map(|(index, _)| index)
    }

    /// The task that goes next, and when.
    pub fn first_queued(&self) -> Option<&Queued> {
        self.queue.get(self.head()?)
    }

    /// The next task, if it may start now.
    pub fn ready(&self, now: Instant) -> Option<&Task> {
        let queued = self.first_queued().filter(|queued| queued.not_before <= now)?;
        Some(&queued.task)
    }

    pub fn pop_ready(&mut self, now: Instant) -> Option<Queued> {
        self.ready(now)?;
        self.queue.remove(self.head()?)
    }

    /// What could start now does not before this time.
    pub fn pause(&mut self, now: Instant, until: Instant) {
        for queued in self.queue.iter_mut().filter(|queued| queued.not_before <= now) {
            queued.not_before = until;
        }
    }
}

/// The peer's requests.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct TheirWindow {
    /// Lowest Message ID of a request that has not come.
    pub next: u32,
    /// Response to the request before it; sent again unchanged.
    #[serde(with = "model::octets::optional")]
    last_response: Option<Vec<u8>>,
    /// Responses to other requests that the peer may not have seen: earlier ones, and those that came before their turn. `None`:
    /// none could be made. In the record's third part.
    #[serde(skip)]
    others: BTreeMap<u32, Option<Vec<u8>>>,
}

/// What a request's Message ID says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Order {
    New,
    Repeated,
    OutOfWindow,
}

impl TheirWindow {
    /// `size`: of the window that we have announced.
    pub fn order(&self, id: u32, size: u32) -> Order {
        let is_near = id.abs_diff(self.next) < size && !self.others.contains_key(&id);
        if id == self.next || (id > self.next && is_near) {
            Order::New
        } else if self.response(id).is_some() {
            Order::Repeated
        } else {
            Order::OutOfWindow
        }
    }

    /// The response to a request, as long as the peer may ask for it.
    pub fn response(&self, id: u32) -> Option<&Vec<u8>> {
        if id.checked_add(1) == Some(self.next) {
            return self.last_response.as_ref();
        }
        self.others.get(&id)?.as_ref()
    }

    /// A request was consumed. `response`: `None` where none could be made.
    pub fn answered(&mut self, id: u32, response: Option<Vec<u8>>, size: u32) {
        if id != self.next {
            self.others.insert(id, response);
        } else {
            self.advance(response, size);
            while let Some(response) = self.others.remove(&self.next) {
                self.advance(response, size);
            }
        }
        //= rfc7296#2.3
        // An IKE endpoint MUST be prepared to ... retransmit its response to any request whose Message ID is in the window
        let oldest = self.above_all().saturating_sub(size);
        while let Some(entry) = self.others.first_entry().filter(|entry| *entry.key() < oldest) {
            entry.remove();
        }
    }

    fn advance(&mut self, response: Option<Vec<u8>>, size: u32) {
        let before = std::mem::replace(&mut self.last_response, response);
        if size > 1
            && let Some(id) = self.next.checked_sub(1)
        {
            self.others.insert(id, before);
        }
        self.next = self.next.wrapping_add(1);
    }

    //= rfc7296#2.1
    // In order to allow saving memory, responders are allowed to forget a response after a timeout of several minutes.
    /// Forgets responses; which requests were answered stays known.
    pub fn forget(&mut self) {
        self.last_response = None;
        let next = self.next;
        self.others.retain(|id, response| {
            *response = None;
            *id > next
        });
    }

    /// Whether there are responses to forget.
    pub fn has_responses(&self) -> bool {
        self.last_response.is_some() || !self.others.is_empty()
    }

    /// Message IDs go on from here (RFC 6311); nothing of before is repeated.
    pub fn jump(&mut self, next: u32) {
        if self.next != next {
            self.next = next;
            self.last_response = None;
            self.others.clear();
        }
    }

    /// The lowest Message ID that is above all that have come.
    pub fn above_all(&self) -> u32 {
        let highest = self.others.keys().next_back().map(|id| id.wrapping_add(1));
        highest.unwrap_or(0).max(self.next)
    }

    /// Responses beside the last one.
    pub fn others(&self) -> &BTreeMap<u32, Option<Vec<u8>>> {
        &self.others
    }
}

impl OurWindow {
    /// Takes in what the record's third part has.
    pub fn join(&mut self, further: Vec<Outstanding>) {
        self.further = further;
    }
}

impl TheirWindow {
    /// Takes in what the record's third part has.
    pub fn join(&mut self, others: BTreeMap<u32, Option<Vec<u8>>>) {
        self.others = others;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_next_and_the_last_request_count_in_a_window_of_1() {
        let mut window = TheirWindow {
            next: 4,
            ..TheirWindow::default()
        };
        window.answered(4, Some(vec![1]), 1);
        assert_eq!(window.order(5, 1), Order::New);
        assert_eq!(window.order(4, 1), Order::Repeated);
        for id in [0, 3, 6, u32::MAX] {
            assert_eq!(window.order(id, 1), Order::OutOfWindow, "{id}");
        }
        assert_eq!(TheirWindow::default().order(u32::MAX, 1), Order::OutOfWindow);
        assert!(window.others.is_empty());
    }

    /// What a window of 4 says to each Message ID from 0 on: new, repeated, or out of it.
    fn picture(window: &TheirWindow) -> String {
        let letter = |id| match window.order(id, 4) {
            Order::New => 'n',
            Order::Repeated => 'r',
            Order::OutOfWindow => '-',
        };
        (0..14).map(letter).collect()
    }

    #[test]
    fn requests_come_in_any_order_within_a_larger_window() {
        let mut window = TheirWindow::default();
        let rows = [
            (0, "rnnnn---------"),
            // 2 and 3 overtake 1.
            (2, "rnrnn---------"),
            (3, "rnrrn---------"),
            (1, "rrrrnnnn------"),
            (4, "-rrrrnnnn-----"),
            // The peer uses 7, so it has the responses up to 3.
            (7, "----rnnrn-----"),
            (5, "----rrnrnn----"),
            (6, "----rrrrnnnn--"),
        ];
        for (id, expected) in rows {
            assert_eq!(window.order(id, 4), Order::New, "{id}");
            window.answered(id, Some(vec![id as u8]), 4);
            assert_eq!(picture(&window), expected, "after {id}");
            assert_eq!(window.response(id), Some(&vec![id as u8]), "{id}");
        }
        assert!(window.others.len() <= 4);
    }

    fn delete(id: u32, spi_in: u32) -> Outstanding {
        Outstanding {
            id,
            bytes: vec![],
            pending: Pending::DeleteChild {
                spi_in: EspSpi(spi_in),
            },
            clock: Clock::default(),
        }
    }

    #[test]
    fn the_oldest_request_without_a_response_holds_the_window() {
        let mut window = OurWindow::default();
        for id in 0..3 {
            assert!(window.has_room(3), "{id}");
            window.put(delete(id, id));
            window.next = id + 1;
        }
        assert!(!window.has_room(3));
        assert_eq!(window.take(1).map(|o| o.id), Some(1));
        assert!(!window.has_room(3), "0 is still to be answered");
        assert_eq!(window.take(0).map(|o| o.id), Some(0));
        assert!(window.has_room(2) && !window.has_room(1));
        assert_eq!(window.all().map(|o| o.id).collect::<Vec<_>>(), [2]);
        assert!(window.take(1).is_none());
    }

    #[test]
    fn what_concerns_one_child_waits_for_it_and_what_concerns_the_ike_sa_for_all() {
        let mut window = OurWindow::default();
        assert!(window.goes_beside(&Task::RekeyIke));
        window.put(delete(0, 0x500));
        for (task, goes) in [
            (
                Task::DeleteChild {
                    spi_in: EspSpi(0x500),
                },
                false,
            ),
            (
                Task::RekeyChild {
                    spi_in: EspSpi(0x500),
                },
                false,
            ),
            (
                Task::RekeyChild {
                    spi_in: EspSpi(0x501),
                },
                true,
            ),
            (Task::CreateChild { child: "c".into() }, true),
            (Task::RekeyIke, false),
            (Task::DeleteIke, false),
            (Task::Liveness, false),
            (Task::Refresh, false),
        ] {
            assert_eq!(window.goes_beside(&task), goes);
        }
    }

    #[test]
    fn a_task_is_queued_once_and_waits_for_its_time() {
        let mut window = OurWindow::default();
        window.push_at(Task::RekeyIke, Instant(10), 1);
        window.push(Task::RekeyIke);
        assert!(window.pop_ready(Instant(9)).is_none());
        assert_eq!(window.first_queued().map(|q| q.not_before), Some(Instant(10)));
        assert!(window.pop_ready(Instant(10)).is_some());
        assert!(window.queue.is_empty());
    }
}
