//! Commands of operators that wait for their outcome: the core loop goes on, and events of the engine answer them.

use std::net::SocketAddr;
use std::time::Duration;

use ike::{Command, ConnectionPhase, Event, EventKind, MessageIdWindows};
use model::{ChildSaChange, EspSpi, GroupId, IkeSpi, Instant, SegmentId};
use tokio::sync::oneshot;

use super::entry::EntryChange;
use super::{Core, NotApplied};
use crate::clock;
use crate::control::Outcome;

/// An outcome that takes longer than this is none: retransmissions may go on, and `espalier events` tells.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// A committed SA in place of this Child SA.
    Child(EspSpi),
    /// An IKE SA in place of this one.
    Ike(IkeSpi),
    /// The same, authenticated anew.
    Reauth(IkeSpi),
    /// The peer's answer to a request of ours with a Message ID below this one.
    Answer(IkeSpi, u32),
    /// The connection is up; it is initiated by the owner of this segment.
    Up(SegmentId),
    /// The connection has no IKE SA any more here.
    Down(SegmentId),
}

impl Goal {
    pub fn segment(self) -> SegmentId {
        match self {
            Self::Child(spi_in) => spi_in.segment(),
            Self::Ike(spi) | Self::Reauth(spi) | Self::Answer(spi, _) => spi.segment(),
            Self::Up(segment) | Self::Down(segment) => segment,
        }
    }

    /// The answer to a liveness check that is about to be asked for. Where a request is outstanding, the answer to it is a
    /// sign of life as good as any.
    pub fn sign_of_life(spi: IkeSpi, now: MessageIdWindows) -> Self {
        let sent = if now.outstanding {
            now.next_send
        } else {
            now.next_send.wrapping_add(1)
        };
        Self::Answer(spi, sent)
    }

    fn answered(ids: MessageIdWindows, sent: u32) -> bool {
        // Message IDs only rise, and an IKE SA is rekeyed long before they wrap.
        ids.next_send > sent || (ids.next_send == sent && !ids.outstanding)
    }
}

/// One thing that an order waits for.
pub struct Part {
    pub goal: Goal,
    pub connection: String,
    pub peer: SocketAddr,
}

impl Part {
    fn concerns(&self, event: &Event) -> bool {
        event.connection.as_ref() == Some(&self.connection) && event.peer == Some(self.peer)
    }

    /// Whether the event says that the goal will not be reached.
    fn fails_by(&self, event: &Event) -> bool {
        // The peer's port may change on the way.
        let of_connection = event.connection.as_ref() == Some(&self.connection);
        match self.goal {
            Goal::Down(_) => return false,
            // Of the two IKE SAs the old one only says that it came to nothing.
            Goal::Reauth(spi) => {
                return event.ike_spi == Some(spi)
                    && matches!(
                        event.kind,
                        EventKind::ReauthFailed | EventKind::CommandFailed | EventKind::IkeSaDown
                    );
            }
            Goal::Up(_) if of_connection && event.kind == EventKind::AuthFailed => return true,
            Goal::Up(_) if of_connection => {}
            Goal::Up(_) => return false,
            _ if self.concerns(event) => {}
            _ => return false,
        }
        match event.kind {
            EventKind::IkeSaDown | EventKind::PeerSilent => true,
            EventKind::ChildFailed => match self.goal {
                Goal::Child(spi_in) => event.spi_in.is_none_or(|named| named == spi_in),
                Goal::Ike(_) => event.spi_in.is_none(),
                Goal::Up(_) => true,
                Goal::Answer(..) | Goal::Down(_) | Goal::Reauth(_) => false,
            },
            EventKind::CommandFailed | EventKind::NoProposal | EventKind::Trouble => true,
            _ => false,
        }
    }
}

struct Order {
    open: Vec<Part>,
    /// What to say at the end.
    done: String,
    until: Instant,
    answer: oneshot::Sender<Outcome>,
}

/// All commands that wait.
#[derive(Default)]
pub struct Orders(Vec<Order>);

impl Orders {
    fn add(&mut self, open: Vec<Part>, done: String, until: Instant, answer: oneshot::Sender<Outcome>) {
        self.0.push(Order {
            open,
            done,
            until,
            answer,
        });
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes parts off; whoever has none left is answered.
    fn reached(&mut self, mut reached: impl FnMut(&Part) -> bool) {
        for order in &mut self.0 {
            order.open.retain(|part| !reached(part));
        }
        for order in self.0.extract_if(.., |order| order.open.is_empty()) {
            // Whoever asked may be gone: then nobody reads the answer.
            let _ = order.answer.send(Ok(order.done));
        }
    }

    /// Answers every order one part of which has failed; the reason is given for the part.
    fn failed(&mut self, mut why: impl FnMut(&Part) -> Option<String>) {
        let orders = std::mem::take(&mut self.0);
        for order in orders {
            match order.open.iter().find_map(&mut why) {
                Some(why) => drop(order.answer.send(Err(why))),
                None => self.0.push(order),
            }
        }
    }

    /// Answers the orders whose time is over.
    fn overdue(&mut self, now: Instant) {
        for order in self.0.extract_if(.., |order| order.until <= now) {
            let list = order
                .open
                .iter()
                .map(|part| format!("{} ({})", part.connection, part.peer))
                .collect::<std::collections::BTreeSet<_>>();
            let list = list.into_iter().collect::<Vec<_>>().join(", ");
            let _ = order.answer.send(Err(format!(
                "{list}: no outcome within {} s; is the peer reachable? see espalier events",
                PATIENCE.as_secs()
            )));
        }
    }
}

impl Core {
    /// Gives the engine commands, and answers once every part has come to its end.
    pub(super) fn order(
        &mut self,
        parts: Vec<(Part, Command)>,
        done: String,
        answer: oneshot::Sender<Outcome>,
    ) {
        let (open, commands): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        // First: a command may fail at once.
        self.orders.add(open, done, clock::now() + PATIENCE, answer);
        for command in commands {
            self.engine_command(command);
        }
    }

    /// After every turn of the event loop: answers of peers, and time.
    pub(super) fn orders_turn(&mut self, now: Instant) {
        if self.orders.is_empty() {
            return;
        }
        let engine = &self.engine;
        self.orders.reached(|part| match part.goal {
            Goal::Answer(spi, sent) => engine
                .message_ids(spi)
                .is_some_and(|ids| Goal::answered(ids, sent)),
            Goal::Up(_) => engine.connection_phase(&part.connection) == ConnectionPhase::Up,
            Goal::Down(_) => engine.connection_phase(&part.connection) == ConnectionPhase::Down,
            _ => false,
        });
        self.orders.overdue(now);
    }

    /// An event of the engine.
    pub(super) fn orders_event(&mut self, event: &Event) {
        if self.orders.is_empty() {
            return;
        }
        if event.kind == EventKind::IkeSaRekeyed {
            // The peer has answered: a check of the old IKE SA has its sign of life too.
            self.orders
                .reached(|part| matches!(part.goal, Goal::Ike(_) | Goal::Answer(..)) && part.concerns(event));
        }
        if event.kind == EventKind::Reauthenticated {
            self.orders.reached(|part| match part.goal {
                Goal::Ike(spi) | Goal::Reauth(spi) | Goal::Answer(spi, _) => event.ike_spi == Some(spi),
                _ => false,
            });
        }
        self.orders
            .failed(|part| part.fails_by(event).then(|| event.to_string()));
    }

    /// A commit took effect, apart from what `failed`.
    pub(super) fn orders_committed(&mut self, changes: &[EntryChange], failed: &[(EspSpi, NotApplied)]) {
        if self.orders.is_empty() {
            return;
        }
        for change in changes {
            match change {
                EntryChange::Child(ChildSaChange::Install {
                    record,
                    replaces: Some(old),
                    ..
                }) => match failed.iter().find(|(spi, _)| *spi == record.spi_in) {
                    None => self.orders.reached(|part| part.goal == Goal::Child(*old)),
                    Some((_, error)) => self.orders.failed(|part| {
                        let text = || format!("{} ({}): the new SA: {error}", part.connection, part.peer);
                        (part.goal == Goal::Child(*old)).then(text)
                    }),
                },
                EntryChange::Child(ChildSaChange::Remove { spi_in }) => self.orders.failed(|part| {
                    let text = || {
                        format!(
                            "{} ({}): SA {spi_in} was deleted, not rekeyed; see espalier events",
                            part.connection, part.peer
                        )
                    };
                    (part.goal == Goal::Child(*spi_in)).then(text)
                }),
                _ => {}
            }
        }
    }

    /// Child SAs that other members serve were replaced.
    pub(super) fn orders_replaced(&mut self, old: &[EspSpi]) {
        self.orders
            .reached(|part| matches!(part.goal, Goal::Child(spi_in) if old.contains(&spi_in)));
    }

    /// This member serves the group no more.
    pub(super) fn orders_given_up(&mut self, group: GroupId) {
        let layout = self.groups.layout;
        self.orders.failed(|part| {
            let gone = layout.group_of(part.goal.segment()) == group;
            gone.then(|| "another member serves these SAs now; ask that one".to_owned())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(goal: Goal) -> Part {
        Part {
            goal,
            connection: "branch".to_owned(),
            peer: "192.0.2.9:500".parse().unwrap(),
        }
    }

    fn order(orders: &mut Orders, goals: &[Goal]) -> oneshot::Receiver<Outcome> {
        let (answer, wait) = oneshot::channel();
        let parts = goals.iter().copied().map(part).collect();
        orders.add(parts, "done".to_owned(), Instant(10_000), answer);
        wait
    }

    fn event(kind: EventKind, spi_in: Option<EspSpi>) -> Event {
        Event {
            kind,
            connection: Some("branch".to_owned()),
            local: None,
            peer: Some("192.0.2.9:500".parse().unwrap()),
            ike_spi: None,
            spi_in,
            child: None,
            was_up: true,
            text: "what happened".to_owned(),
        }
    }

    #[test]
    fn an_order_is_done_when_its_last_part_is() {
        let mut orders = Orders::default();
        let (a, b) = (Goal::Child(EspSpi(1)), Goal::Child(EspSpi(2)));
        let mut wait = order(&mut orders, &[a, b]);
        orders.reached(|part| part.goal == a);
        assert!(wait.try_recv().is_err(), "one part is open");
        orders.reached(|part| part.goal == b);
        assert_eq!(wait.try_recv().unwrap(), Ok("done".to_owned()));
        assert!(orders.is_empty());
    }

    #[test]
    fn time_runs_out_with_connection_and_peer_named() {
        let mut orders = Orders::default();
        let mut wait = order(&mut orders, &[Goal::Ike(IkeSpi(1))]);
        orders.overdue(Instant(9_999));
        assert!(wait.try_recv().is_err());
        orders.overdue(Instant(10_000));
        let why = wait.try_recv().unwrap().unwrap_err();
        assert!(why.starts_with("branch (192.0.2.9:500): "), "{why}");
    }

    #[test]
    fn a_failure_of_another_child_is_not_this_ones() {
        let rekey = part(Goal::Child(EspSpi(1)));
        assert!(rekey.fails_by(&event(EventKind::ChildFailed, Some(EspSpi(1)))));
        assert!(rekey.fails_by(&event(EventKind::ChildFailed, None)));
        assert!(!rekey.fails_by(&event(EventKind::ChildFailed, Some(EspSpi(2)))));
        assert!(rekey.fails_by(&event(EventKind::PeerSilent, None)));
        assert!(!rekey.fails_by(&event(EventKind::ChildUp, Some(EspSpi(1)))));
        assert!(!part(Goal::Answer(IkeSpi(1), 3)).fails_by(&event(EventKind::ChildFailed, None)));
        let mut elsewhere = event(EventKind::PeerSilent, None);
        elsewhere.peer = Some("192.0.2.10:500".parse().unwrap());
        assert!(!rekey.fails_by(&elsewhere));
    }

    #[test]
    fn a_connection_that_is_started_fails_by_whatever_its_peer_refuses_and_one_that_is_stopped_does_not() {
        let segment = SegmentId(7);
        let (up, down) = (part(Goal::Up(segment)), part(Goal::Down(segment)));
        for kind in [
            EventKind::AuthFailed,
            EventKind::PeerSilent,
            EventKind::ChildFailed,
            EventKind::IkeSaDown,
        ] {
            let mut elsewhere = event(kind, None);
            elsewhere.peer = Some("192.0.2.9:4500".parse().unwrap());
            assert!(up.fails_by(&elsewhere), "{kind:?}, behind a NAT");
            assert!(!down.fails_by(&elsewhere), "{kind:?}");
            elsewhere.connection = Some("another".to_owned());
            assert!(!up.fails_by(&elsewhere), "{kind:?}");
        }
        assert!(!up.fails_by(&event(EventKind::Established, None)));
    }

    #[test]
    fn a_reauthentication_fails_by_what_the_old_ike_sa_says_only() {
        let order = part(Goal::Reauth(IkeSpi(1)));
        let of = |kind, spi| Event {
            ike_spi: Some(IkeSpi(spi)),
            ..event(kind, None)
        };
        assert!(order.fails_by(&of(EventKind::ReauthFailed, 1)));
        for kind in [EventKind::IkeSaDown, EventKind::PeerSilent, EventKind::AuthFailed] {
            assert!(
                !order.fails_by(&of(kind, 2)),
                "{kind:?} of an attempt: another may follow"
            );
        }
        assert!(order.fails_by(&of(EventKind::IkeSaDown, 1)));
        assert!(!order.fails_by(&of(EventKind::Reauthenticated, 1)));
    }

    #[test]
    fn the_answer_to_any_request_that_was_outstanding_or_is_sent_now_is_a_sign_of_life() {
        let ids = |next_send, outstanding| MessageIdWindows {
            next_send,
            outstanding,
            next_receive: 0,
        };
        let Goal::Answer(_, sent) = Goal::sign_of_life(IkeSpi(1), ids(4, false)) else {
            panic!("a check waits for an answer");
        };
        assert!(!Goal::answered(ids(4, false), sent), "not sent yet");
        assert!(!Goal::answered(ids(5, true), sent));
        assert!(Goal::answered(ids(5, false), sent));
        assert!(Goal::answered(ids(6, true), sent));
        let Goal::Answer(_, sent) = Goal::sign_of_life(IkeSpi(1), ids(4, true)) else {
            panic!("a check waits for an answer");
        };
        assert!(!Goal::answered(ids(4, true), sent));
        assert!(Goal::answered(ids(5, true), sent));
        assert!(Goal::answered(ids(4, false), sent));
    }
}
