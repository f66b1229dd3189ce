//! Peers that have names: what each name leads to, and what waits for that to be known.
//!
//! A name is looked up before each attempt to set a connection up, when a stranger comes (it may be a peer that has moved), and every
//! minute, by every member: one that takes over knows its peers. While it cannot be looked up, what it led to last is good.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ike::Input;
use model::Instant;
use tokio::sync::oneshot;

use super::Core;
use super::around;
use super::dial::pause;
use crate::api::ConnectionRequest;
use crate::clock;
use crate::config::{Config, ConnectionConfig, Remote, Retry};
use crate::control::Outcome;
use crate::net::resolve::{Answer, Resolver};

/// An answer is good for this long where an attempt is to begin.
const FRESH: Duration = Duration::from_secs(1);
/// And where a stranger comes: what spoofed messages cause is one question for each name in this time.
const FRESH_FOR_STRANGERS: Duration = Duration::from_secs(5);
/// A name that leads somewhere is looked up again after this time, whoever needs it.
const AGAIN: Duration = Duration::from_secs(60);
/// And one that does not.
const FAILED: Retry = Retry {
    first: Duration::from_secs(2),
    most: AGAIN,
};
/// So long an attempt waits for name servers where there are addresses of an earlier answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is known of a name.
#[derive(Clone, Debug, Default)]
struct Known {
    /// What it led to last. Addresses that stay keep their places: those of the attempts would change with every answer otherwise.
    addresses: Vec<IpAddr>,
    /// When the last answer came, a failure or not.
    answered: Option<Instant>,
    /// Since when one is waited for.
    asked: Option<Instant>,
    /// When it is looked up without anybody's wish.
    due: Instant,
    /// Failures since it led somewhere.
    failed: u32,
    /// The last failure.
    why: Option<String>,
}

/// What an answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    /// It leads where it led before.
    Same,
    /// It leads elsewhere.
    Elsewhere(Vec<IpAddr>),
    /// It leads nowhere, or cannot be looked up. With the pause before the next look-up.
    Failed(String, Duration),
}

/// All names.
#[derive(Default)]
struct Book(BTreeMap<String, Known>);

impl Book {
    /// There are these names now; what is known of others is forgotten.
    fn keep(&mut self, names: &BTreeSet<&str>) {
        self.0.retain(|name, _| names.contains(name.as_str()));
        for name in names {
            if !self.0.contains_key(*name) {
                self.0.insert((*name).to_owned(), Known::default());
            }
        }
    }

    /// Names that are to be looked up now. Each is waited for from then on.
    fn due(&mut self, now: Instant) -> Vec<String> {
        let due = self
            .0
            .iter_mut()
            .filter(|(_, k)| k.asked.is_none() && k.due <= now);
        due.map(|(name, known)| {
            known.asked = Some(now);
            name.clone()
        })
        .collect()
    }

    /// Whether what is known of a name is no older than this, or nothing newer can be had soon. Else it is to be looked up.
    fn is_fresh(&mut self, name: &str, fresh: Duration, now: Instant) -> bool {
        let Some(known) = self.0.get_mut(name) else {
            return true;
        };
        if known.answered.is_some_and(|at| now.since(at) <= fresh) {
            return true;
        }
        if let Some(asked) = known.asked {
            return !known.addresses.is_empty() && now.since(asked) >= PATIENCE;
        }
        known.due = now;
        false
    }

    /// An answer. `None`: nobody wants to know any more.
    fn answered(&mut self, (name, found): Answer, now: Instant, random: u32) -> Option<Told> {
        let known = self.0.get_mut(&name)?;
        known.asked = None;
        known.answered = Some(now);
        match found {
            Ok(found) => {
                (known.failed, known.why) = (0, None);
                known.due = now + AGAIN;
                let stay = known.addresses.iter().filter(|a| found.contains(a));
                let new = found.iter().filter(|a| !known.addresses.contains(a));
                let addresses = stay.chain(new).copied().collect::<Vec<_>>();
                if addresses == known.addresses {
                    return Some(Told::Same);
                }
                known.addresses.clone_from(&addresses);
                Some(Told::Elsewhere(addresses))
            }
            Err(why) => {
                known.failed = known.failed.saturating_add(1);
                let wait = pause(FAILED, known.failed, random);
                known.due = now + wait;
                known.why = Some(why.clone());
                Some(Told::Failed(why, wait))
            }
        }
    }

    /// Where a peer may be, of one family, each address once.
    fn addresses(&self, remotes: &[Remote], v4: bool) -> Vec<IpAddr> {
        let mut all: Vec<IpAddr> = Vec::new();
        for remote in remotes {
            let of = match remote {
                Remote::Address(address) => std::slice::from_ref(address),
                Remote::Name(name) => self.0.get(name).map_or(&[][..], |known| &known.addresses),
            };
            for address in of.iter().filter(|a| a.is_ipv4() == v4) {
                if !all.contains(address) {
                    all.push(*address);
                }
            }
        }
        all
    }

    /// Why there is none.
    fn why_nowhere(&self, remotes: &[Remote], v4: bool) -> String {
        let family = if v4 { "IPv4" } else { "IPv6" };
        let of = |name: &str| match self.0.get(name) {
            Some(known) if !known.addresses.is_empty() => {
                format!("{name} has no {family} address, which `local` is")
            }
            Some(Known { why: Some(why), .. }) => format!("{name} leads nowhere: {why}"),
            _ => format!("{name} is being looked up"),
        };
        let names = remotes.iter().filter_map(Remote::name);
        names.map(of).collect::<Vec<_>>().join("; ")
    }
}

/// Names of peers, and what waits for them.
pub struct Names {
    book: Book,
    resolver: Resolver,
    /// Connections that are to be initiated once their names are known.
    waiting: BTreeSet<String>,
    /// Commands of operators that wait for the same.
    orders: Vec<(ConnectionRequest, oneshot::Sender<Outcome>)>,
}

impl Names {
    /// Those of this configuration, none of them looked up yet.
    pub fn new(config: &Config, resolver: Resolver) -> Self {
        let mut names = Self {
            book: Book::default(),
            resolver,
            waiting: BTreeSet::new(),
            orders: Vec::new(),
        };
        names.follow(config);
        names
    }

    fn follow(&mut self, config: &Config) {
        let remotes = config.connections.iter().flat_map(|c| &c.remotes);
        self.book.keep(&remotes.filter_map(Remote::name).collect());
    }

    fn ask(&mut self, now: Instant) {
        for name in self.book.due(now) {
            self.resolver.ask(name);
        }
    }

    /// Whether a connection's names are known; else they are being looked up.
    pub fn are_known(&mut self, config: &ConnectionConfig, now: Instant) -> bool {
        let names = config.remotes.iter().filter_map(Remote::name);
        // All of them, so that they are looked up at the same time.
        let fresh = names.filter(|name| !self.book.is_fresh(name, FRESH, now)).count() == 0;
        self.ask(now);
        fresh
    }

    /// Where the peer of a connection may be.
    pub fn addresses(&self, config: &ConnectionConfig) -> Vec<IpAddr> {
        self.book.addresses(&config.remotes, config.local.is_ipv4())
    }

    /// What each of its names leads to.
    fn by_name(&self, config: &ConnectionConfig) -> Vec<(String, Vec<IpAddr>)> {
        let names = config.remotes.iter().filter_map(Remote::name);
        let known = |name: &str| {
            self.book
                .0
                .get(name)
                .map_or(Vec::new(), |known| known.addresses.clone())
        };
        names.map(|name| (name.to_owned(), known(name))).collect()
    }

    /// Whether one of its names has led nowhere so far.
    pub fn lacks_any(&self, config: &ConnectionConfig) -> bool {
        let nowhere = |name: &str| {
            self.book
                .0
                .get(name)
                .is_none_or(|known| known.addresses.is_empty())
        };
        config.remotes.iter().filter_map(Remote::name).any(nowhere)
    }

    /// Why that is nowhere.
    pub fn why_nowhere(&self, config: &ConnectionConfig) -> String {
        self.book.why_nowhere(&config.remotes, config.local.is_ipv4())
    }

    /// A connection is to be initiated once its names are known.
    pub fn wait(&mut self, connection: &str) {
        self.waiting.insert(connection.to_owned());
    }

    /// So is one that an operator starts.
    pub fn wait_order(&mut self, wish: ConnectionRequest, answer: oneshot::Sender<Outcome>) {
        self.orders.push((wish, answer));
    }
}

impl Core {
    /// Once a second: names that are due, and what has waited for long enough.
    pub(super) fn names_turn(&mut self, now: Instant) {
        self.names.ask(now);
        self.go_on_with_names(now);
    }

    /// A stranger came, or a peer at another one's address: its name may lead elsewhere by now.
    pub(super) fn stranger(&mut self) {
        let now = clock::now();
        let names = self.names.book.0.keys().cloned().collect::<Vec<_>>();
        for name in names {
            self.names.book.is_fresh(&name, FRESH_FOR_STRANGERS, now);
        }
        self.names.ask(now);
    }

    /// A name was looked up.
    pub(super) fn name_answered(&mut self, answer: Answer) {
        let now = clock::now();
        let name = answer.0.clone();
        let mut random = [0; 4];
        around::random(&mut random);
        match self.names.book.answered(answer, now, u32::from_ne_bytes(random)) {
            None => return,
            Some(Told::Same) => {}
            Some(Told::Elsewhere(addresses)) => {
                self.log
                    .note("name", format!("{name} leads to {}", list(&addresses)));
                self.follow_names(Some(&name));
            }
            Some(Told::Failed(why, wait)) => {
                *self.ike_events.entry("name_failed").or_default() += 1;
                let known = self.names.book.0.get(&name).cloned().unwrap_or_default();
                // Once for each doubling of the pause, and no more often than that.
                if known.failed.is_power_of_two() {
                    let until = match known.addresses.is_empty() {
                        true => String::new(),
                        false => format!(", until then at {}", list(&known.addresses)),
                    };
                    let text = format!(
                        "{name} cannot be looked up: {why}; again in {:.0} s{until}",
                        wait.as_secs_f64()
                    );
                    self.log.warn("name_failed", text);
                }
            }
        }
        self.go_on_with_names(now);
    }

    /// Whoever needs to know where peers are is told: of the connections with this name, or of all.
    pub(super) fn follow_names(&mut self, name: Option<&str>) {
        self.names.follow(&self.config);
        let with = |config: &&ConnectionConfig| {
            let mut names = config.remotes.iter().filter_map(Remote::name);
            names.any(|of| name.is_none_or(|name| name == of))
        };
        let named = self.config.connections.iter().filter(with);
        let told = named.map(|config| {
            let known = self.names.by_name(config);
            (config.name.clone(), self.names.addresses(config), known)
        });
        for (connection, remotes, names) in told.collect::<Vec<_>>() {
            self.engine_input(Input::Remotes {
                connection: &connection,
                remotes,
                names,
            });
        }
        let peers = self.peer_addresses();
        self.health.watch_peers(&peers);
        self.reload.follow_peers(peers);
    }

    /// Where a connection's peer is, for an operator: names with what they lead to.
    pub(super) fn remote_text(&self, config: &ConnectionConfig) -> String {
        if config.remotes.is_empty() {
            return "any".to_owned();
        }
        let text = |remote: &Remote| match remote {
            Remote::Address(address) => address.to_string(),
            Remote::Name(name) => {
                let addresses = self
                    .names
                    .book
                    .addresses(std::slice::from_ref(remote), config.local.is_ipv4());
                match addresses.is_empty() {
                    true => format!("{name} (unknown)"),
                    false => format!("{name} ({})", list(&addresses)),
                }
            }
        };
        config.remotes.iter().map(text).collect::<Vec<_>>().join(", ")
    }

    /// Addresses of all peers, as far as they are known.
    pub(super) fn peer_addresses(&self) -> Vec<IpAddr> {
        let of = |config: &ConnectionConfig| self.names.addresses(config);
        let all = self.config.connections.iter().flat_map(of);
        all.collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn go_on_with_names(&mut self, now: Instant) {
        let config_of = |core: &Self, name: &str| {
            let mut all = core.config.connections.iter();
            all.find(|c| c.name == name).cloned()
        };
        for name in std::mem::take(&mut self.names.waiting) {
            // It waits again where not all of its names are known.
            if self.initiates(&name) {
                self.attempt(&name, now);
            }
        }
        for (wish, answer) in std::mem::take(&mut self.names.orders) {
            match config_of(self, &wish.connection) {
                Some(config) if !self.names.are_known(&config, now) => self.names.wait_order(wish, answer),
                _ => self.connection_order(&wish, answer),
            }
        }
    }
}

fn list(addresses: &[IpAddr]) -> String {
    let texts = addresses.iter().map(ToString::to_string);
    texts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn book() -> Book {
        let mut book = Book::default();
        book.keep(&BTreeSet::from(["gw.example"]));
        book
    }

    fn answer(book: &mut Book, found: Result<&[&str], &str>, now: Instant) -> Told {
        let found = found.map(|all| all.iter().map(|text| ip(text)).collect());
        let answer = ("gw.example".to_owned(), found.map_err(str::to_owned));
        book.answered(answer, now, u32::MAX / 2).unwrap()
    }

    #[test]
    fn a_name_is_looked_up_at_once_and_once_at_a_time() {
        let mut book = book();
        assert_eq!(book.due(at(1000)), ["gw.example"]);
        assert!(book.due(at(9000)).is_empty(), "its answer is waited for");
        let told = answer(&mut book, Ok(&["203.0.113.7"]), at(9000));
        assert_eq!(told, Told::Elsewhere(vec![ip("203.0.113.7")]));
        assert!(book.due(at(68_999)).is_empty());
        assert_eq!(book.due(at(69_000)), ["gw.example"], "every minute");
    }

    #[test]
    fn an_attempt_wants_an_answer_of_its_own_and_waits_for_it() {
        let mut book = book();
        let fresh = |book: &mut Book, ms| book.is_fresh("gw.example", FRESH, at(ms));
        assert!(!fresh(&mut book, 1000));
        assert_eq!(book.due(at(1000)).len(), 1);
        assert!(!fresh(&mut book, 60_000), "nothing is known that could be used");
        answer(&mut book, Ok(&["203.0.113.7"]), at(60_000));
        assert!(fresh(&mut book, 61_000));
        assert!(!fresh(&mut book, 61_001));
        assert_eq!(book.due(at(61_001)).len(), 1, "before its minute is over");
        assert!(!fresh(&mut book, 66_000));
        assert!(
            fresh(&mut book, 66_001),
            "name servers are not waited for any longer"
        );
        assert!(book.is_fresh("other.example", FRESH, at(0)), "nobody's name");
    }

    #[test]
    fn a_failure_is_no_reason_to_forget_and_the_pauses_grow() {
        let mut book = book();
        answer(&mut book, Ok(&["203.0.113.7"]), at(0));
        let mut now = at(0);
        for seconds in [2, 4, 8, 16, 32, 60, 60] {
            let told = answer(&mut book, Err("no such host"), now);
            let Told::Failed(why, wait) = told else {
                panic!("{told:?}")
            };
            assert_eq!(why, "no such host");
            assert!((wait.as_secs_f64() - f64::from(seconds)).abs() < 0.01, "{wait:?}");
            assert!(book.due(now + wait.mul_f64(0.99)).is_empty());
            now = now + wait;
            assert_eq!(book.due(now).len(), 1);
        }
        let remotes = [Remote::Name("gw.example".into())];
        assert_eq!(book.addresses(&remotes, true), [ip("203.0.113.7")]);
        assert_eq!(answer(&mut book, Ok(&["203.0.113.7"]), now), Told::Same);
    }

    #[test]
    fn addresses_that_stay_keep_their_places() {
        let mut book = book();
        answer(&mut book, Ok(&["203.0.113.7", "203.0.113.8"]), at(0));
        // Name servers turn them round with each answer.
        let told = answer(&mut book, Ok(&["203.0.113.8", "203.0.113.7"]), at(1));
        assert_eq!(told, Told::Same);
        let told = answer(&mut book, Ok(&["203.0.113.9", "203.0.113.8"]), at(2));
        assert_eq!(told, Told::Elsewhere(vec![ip("203.0.113.8"), ip("203.0.113.9")]));
    }

    #[test]
    fn a_peer_is_at_the_addresses_of_our_family_in_the_order_of_the_file() {
        let mut book = book();
        let remotes = [
            Remote::Address(ip("198.51.100.1")),
            Remote::Name("gw.example".into()),
            Remote::Address(ip("203.0.113.7")),
        ];
        assert_eq!(
            book.addresses(&remotes, true),
            [ip("198.51.100.1"), ip("203.0.113.7")]
        );
        answer(&mut book, Ok(&["203.0.113.7", "2001:db8::7"]), at(0));
        assert_eq!(
            book.addresses(&remotes, true),
            [ip("198.51.100.1"), ip("203.0.113.7")]
        );
        assert_eq!(book.addresses(&remotes, false), [ip("2001:db8::7")]);

        let named = [Remote::Name("gw.example".into())];
        answer(&mut book, Ok(&["2001:db8::7"]), at(1));
        let why = book.why_nowhere(&named, true);
        assert!(why.contains("gw.example has no IPv4 address"), "{why}");
        book.keep(&BTreeSet::new());
        book.keep(&BTreeSet::from(["gw.example"]));
        assert!(book.why_nowhere(&named, true).contains("is being looked up"));
        answer(&mut book, Err("no such host"), at(2));
        let why = book.why_nowhere(&named, true);
        assert!(why.contains("leads nowhere: no such host"), "{why}");
        let late = ("other.example".to_owned(), Ok(vec![]));
        assert_eq!(book.answered(late, at(3), 0), None, "nobody's name any more");
    }
}
