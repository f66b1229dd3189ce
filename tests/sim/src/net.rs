//! The networks: delay, loss, duplication, reordering, and who cannot reach whom.

use crate::rng::Rng;
use cluster::Link;
use model::{Instant, MemberId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// A kind of path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Road {
    /// Synch network, between members.
    Synch,
    /// Outside network, between members: heartbeats and second hops.
    Outside,
    /// Inside network, between members: second hops.
    Inside,
    /// From a member or peer to the other.
    Peer,
    /// To and from the ownership engine.
    Engine,
}

/// How a road treats what travels on it.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Shortest way, microseconds.
    pub delay_us: u64,
    /// What may come on top of it, microseconds: also what reorders.
    pub jitter_us: u64,
    /// Lost, in a thousand.
    pub loss: u64,
    /// Delivered twice, in a thousand.
    pub double: u64,
}

impl Weather {
    /// A quiet local network.
    pub const CALM: Self = Self {
        delay_us: 100,
        jitter_us: 100,
        loss: 0,
        double: 0,
    };
}

/// A stream connection between two members over one link.
#[derive(Default)]
pub struct Stream {
    /// Both ends know it as up.
    pub up: bool,
    /// Rises with every connection.
    pub number: u64,
    /// Last delivery in each direction: order is kept.
    last: [Instant; 2],
    /// What was sent while the way was cut, per direction.
    held: [VecDeque<Vec<u8>>; 2],
    /// Since when one direction is cut.
    pub cut_since: Option<Instant>,
    /// How long it lives without a word.
    pub idle: Duration,
}

/// All networks.
pub struct Net {
    rng: Rng,
    weather: BTreeMap<Road, Weather>,
    /// Directed cuts: from, to, road. Member 0 is everybody who is no member.
    cut: BTreeSet<(u8, u8, Road)>,
    streams: BTreeMap<(u8, u8, u8), Stream>,
}

fn road(link: Link) -> Road {
    match link {
        Link::Synch => Road::Synch,
        Link::Outside => Road::Outside,
    }
}

fn key(a: MemberId, b: MemberId, link: Link) -> (u8, u8, u8) {
    (a.0.min(b.0), a.0.max(b.0), u8::from(link == Link::Outside))
}

impl Net {
    /// Calm networks without connections.
    pub fn new(rng: Rng) -> Self {
        Self {
            rng,
            weather: BTreeMap::new(),
            cut: BTreeSet::new(),
            streams: BTreeMap::new(),
        }
    }

    /// Sets the weather of a road.
    pub fn set(&mut self, road: Road, weather: Weather) {
        self.weather.insert(road, weather);
    }

    /// Cuts or mends one direction.
    pub fn set_cut(&mut self, from: u8, to: u8, road: Road, cut: bool) {
        if cut {
            self.cut.insert((from, to, road));
        } else {
            self.cut.remove(&(from, to, road));
        }
    }

    /// Mends everything.
    pub fn heal(&mut self) {
        self.cut.clear();
        self.weather.clear();
    }

    /// Whether anything is cut between two members.
    pub fn any_cut(&self, a: u8, b: u8) -> bool {
        self.cut
            .iter()
            .any(|(x, y, _)| (*x, *y) == (a, b) || (*x, *y) == (b, a))
    }

    /// Whether one direction works.
    pub fn open(&self, from: u8, to: u8, road: Road) -> bool {
        !self.cut.contains(&(from, to, road))
    }

    fn weather(&self, road: Road) -> Weather {
        self.weather.get(&road).copied().unwrap_or(Weather::CALM)
    }

    fn delay(&mut self, road: Road) -> Duration {
        let w = self.weather(road);
        Duration::from_micros(w.delay_us + self.rng.below(w.jitter_us + 1))
    }

    /// When copies of a datagram or frame arrive; none where it is lost.
    pub fn arrivals(&mut self, now: Instant, from: u8, to: u8, road: Road) -> Vec<Instant> {
        if !self.open(from, to, road) {
            return Vec::new();
        }
        let w = self.weather(road);
        let mut out = Vec::new();
        if !self.rng.permille(w.loss) {
            out.push(now + self.delay(road));
            if self.rng.permille(w.double) {
                let late = Duration::from_micros(self.rng.below(20_000));
                out.push(now + self.delay(road) + late);
            }
        }
        out
    }

    /// The stream of two members over a link.
    pub fn stream(&mut self, a: MemberId, b: MemberId, link: Link) -> &mut Stream {
        self.streams.entry(key(a, b, link)).or_default()
    }

    /// Sends a record on a stream: when it arrives and on which connection; `None` where it is held back or lost.
    pub fn send(
        &mut self,
        now: Instant,
        from: MemberId,
        to: MemberId,
        link: Link,
        bytes: Vec<u8>,
    ) -> Option<(Instant, u64, Vec<u8>)> {
        let open = self.open(from.0, to.0, road(link)) && self.open(to.0, from.0, road(link));
        let mut at = now + self.delay(road(link));
        // Lost packets are sent again by the transport.
        let loss = self.weather(road(link)).loss;
        while self.rng.permille(loss.min(900)) {
            at = at + Duration::from_millis(5 + self.rng.below(15));
        }
        let side = usize::from(from.0 > to.0);
        let stream = self.stream(from, to, link);
        if !stream.up {
            return None;
        }
        if !open || !stream.held[side].is_empty() {
            stream.held[side].push_back(bytes);
            return None;
        }
        at = at.max(stream.last[side]);
        stream.last[side] = at;
        Some((at, stream.number, bytes))
    }

    /// What a cut held back arrives now that it is mended: direction (from the lower id?), time, connection, record.
    pub fn release(
        &mut self,
        now: Instant,
        a: MemberId,
        b: MemberId,
        link: Link,
    ) -> Vec<(bool, Instant, u64, Vec<u8>)> {
        let mut at = now + self.delay(road(link));
        let stream = self.stream(a, b, link);
        stream.cut_since = None;
        let mut out = Vec::new();
        for side in [0, 1] {
            at = at.max(stream.last[side]);
            for bytes in std::mem::take(&mut stream.held[side]) {
                out.push((side == 0, at, stream.number, bytes));
            }
            stream.last[side] = at;
        }
        out
    }

    /// The connection is lost, with everything that was under way.
    pub fn close(&mut self, a: MemberId, b: MemberId, link: Link) {
        let stream = self.stream(a, b, link);
        stream.up = false;
        stream.number += 1;
        stream.held = [VecDeque::new(), VecDeque::new()];
        stream.cut_since = None;
    }
}
