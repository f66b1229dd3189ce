//! All IKE SAs of this member with the indexes that find them; every look-up and change is logarithmic.

use crate::ike_sa::IkeSa;
use crate::ike_sa::phase::Phase;
use crate::lineage::Lineage;
use model::{EspSpi, IkeSpi, Instant};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};

/// IKE SAs with one peer that are looked at.
const BESIDE_MAX: usize = 64;

#[derive(Default)]
pub(crate) struct Table {
    /// Each in a piece of memory of its own: a table that grows has room for many, and moves what it holds.
    sas: HashMap<IkeSpi, Box<IkeSa>>,
    /// Half-open IKE SAs that we respond to, by the initiator's SPI and address: finds repeated first messages.
    first: HashMap<(IkeSpi, SocketAddr), IkeSpi>,
    /// IKE SAs that a peer has begun, by its SPI, while there are responses to repeat: a first message that comes late is of one that is there
    /// already.
    begun: BTreeSet<(IkeSpi, IkeSpi)>,
    children: HashMap<EspSpi, IkeSpi>,
    by_connection: BTreeMap<String, BTreeSet<IkeSpi>>,
    wake: BTreeSet<(Instant, IkeSpi)>,
    /// Addresses out of pools and who has them: a peer that authenticates anew has its address in two IKE SAs for a moment.
    leases: BTreeSet<(IpAddr, IkeSpi)>,
    /// Established IKE SAs by a hash of connection and peer.
    peers: BTreeSet<(u64, IkeSpi)>,
    lineage: Lineage,
}

/// The place of an IKE SA in the index of peers. Two peers may have the same: whoever looks there compares.
fn peer_key(sa: &IkeSa) -> Option<u64> {
    let (connection, id) = (sa.connection.as_deref()?, sa.remote_id.as_ref()?);
    let mut hasher = DefaultHasher::new();
    (connection, id).hash(&mut hasher);
    Some(hasher.finish())
}

/// Whether it is up and nothing has replaced it.
fn serves(sa: &IkeSa) -> bool {
    sa.successor.is_none() && matches!(sa.phase, Phase::Established(_))
}

impl Table {
    /// Takes an IKE SA out to work on it; it has to be put back or forgotten.
    pub fn take(&mut self, spi: IkeSpi) -> Option<Box<IkeSa>> {
        let sa = self.sas.remove(&spi)?;
        if let Some(at) = sa.wake() {
            self.wake.remove(&(at, spi));
        }
        if sa.is_half_open() {
            self.first.remove(&(sa.peer_spi, sa.path.remote));
        } else if !sa.initiator {
            self.begun.remove(&(sa.peer_spi, spi));
        }
        for child in &sa.children {
            if self.children.get(&child.spi_in) == Some(&spi) {
                self.children.remove(&child.spi_in);
            }
        }
        for address in &sa.more.virtual_addresses {
            self.leases.remove(&(*address, spi));
        }
        if serves(&sa)
            && let Some(key) = peer_key(&sa)
        {
            self.peers.remove(&(key, spi));
        }
        Some(sa)
    }

    pub fn put(&mut self, sa: impl Into<Box<IkeSa>>) {
        let sa = sa.into();
        let spi = sa.spi;
        if let Some(at) = sa.wake() {
            self.wake.insert((at, spi));
        }
        if sa.is_half_open() {
            self.first.insert((sa.peer_spi, sa.path.remote), spi);
        } else if !sa.initiator && sa.timers.forget.is_some() {
            self.begun.insert((sa.peer_spi, spi));
        }
        for child in &sa.children {
            self.children.insert(child.spi_in, spi);
        }
        // One that was replaced has handed them over.
        if sa.successor.is_none() && !matches!(sa.phase, Phase::Closed(_)) {
            for address in &sa.more.virtual_addresses {
                self.leases.insert((*address, spi));
            }
        }
        if serves(&sa)
            && let Some(key) = peer_key(&sa)
        {
            self.peers.insert((key, spi));
        }
        if let Some(name) = &sa.connection {
            // The common case, an index entry that is there already, costs no allocation.
            match self.by_connection.get_mut(name) {
                Some(spis) => {
                    spis.insert(spi);
                }
                None => {
                    self.by_connection.insert(name.clone(), BTreeSet::from([spi]));
                }
            }
        }
        self.sas.insert(spi, sa);
    }

    /// The IKE SA that rekeys have put in place of this one, which may be gone.
    pub fn latest(&self, spi: IkeSpi) -> IkeSpi {
        self.lineage.latest(spi, |spi| self.get(spi)?.successor)
    }

    /// Removes what [`Table::take`] leaves in the indexes.
    pub fn forget(&mut self, sa: &IkeSa) {
        if let Some(successor) = sa.successor {
            self.lineage.note(sa.spi, successor);
        }
        if let Some(name) = &sa.connection
            && let Some(spis) = self.by_connection.get_mut(name)
        {
            spis.remove(&sa.spi);
            if spis.is_empty() {
                self.by_connection.remove(name);
            }
        }
    }

    /// Takes out every IKE SA that is `gone`. Where that is all of them, they go over as they are.
    pub fn remove_where(&mut self, gone: impl Fn(IkeSpi) -> bool) -> Table {
        let all: Vec<IkeSpi> = self.sas.keys().copied().filter(|spi| gone(*spi)).collect();
        if all.len() == self.sas.len() {
            return std::mem::take(self);
        }
        let mut removed = Table::default();
        for spi in all {
            if let Some(sa) = self.take(spi) {
                self.forget(&sa);
                removed.sas.insert(spi, sa);
            }
        }
        removed
    }

    pub fn get(&self, spi: IkeSpi) -> Option<&IkeSa> {
        self.sas.get(&spi).map(Box::as_ref)
    }

    pub fn contains(&self, spi: IkeSpi) -> bool {
        self.sas.contains_key(&spi)
    }

    pub fn by_first(&self, peer_spi: IkeSpi, remote: SocketAddr) -> Option<IkeSpi> {
        self.first.get(&(peer_spi, remote)).copied()
    }

    /// Whether a first message with this SPI is of an IKE SA that has come further than that; the peer's port may have changed since (RFC 7296
    /// 2.23).
    pub fn has_begun(&self, peer_spi: IkeSpi, remote: IpAddr) -> bool {
        let mut of_spi = self
            .begun
            .range((peer_spi, IkeSpi(0))..=(peer_spi, IkeSpi(u64::MAX)));
        of_spi.any(|(_, spi)| self.get(*spi).is_some_and(|sa| sa.path.remote.ip() == remote))
    }

    pub fn by_child(&self, spi_in: EspSpi) -> Option<IkeSpi> {
        self.children.get(&spi_in).copied()
    }

    /// Which IKE SAs have an address out of a pool.
    pub fn holders(&self, address: IpAddr) -> impl Iterator<Item = &IkeSa> {
        let of_address = (address, IkeSpi(0))..=(address, IkeSpi(u64::MAX));
        let spis = self.leases.range(of_address);
        spis.filter_map(|(_, spi)| self.get(*spi))
    }

    /// All addresses out of pools that peers use.
    pub fn leases(&self) -> impl Iterator<Item = IpAddr> {
        let mut last = None;
        let all = self.leases.iter().map(|(address, _)| *address);
        all.filter(move |address| last.replace(*address) != Some(*address))
    }

    /// The other IKE SAs of this one's connection and peer that are up. Not more than some: a peer with many is many devices with one
    /// identity, and none of them stands for another.
    pub fn beside(&self, sa: &IkeSa) -> impl Iterator<Item = &IkeSa> {
        let key = peer_key(sa);
        let place = key.map(|key| (key, IkeSpi(0))..=(key, IkeSpi(u64::MAX)));
        let spis = place.into_iter().flat_map(|place| self.peers.range(place));
        let spis = spis.take(BESIDE_MAX);
        let others = spis.filter_map(|(_, spi)| self.get(*spi));
        let same = |other: &&IkeSa| other.connection == sa.connection && other.remote_id == sa.remote_id;
        others.filter(move |other| other.spi != sa.spi && same(other))
    }

    /// IKE SAs of a connection, by SPI.
    pub fn of_connection(&self, name: &str) -> Vec<IkeSpi> {
        self.by_connection
            .get(name)
            .map(|spis| spis.iter().copied().collect())
            .unwrap_or_default()
    }

    /// [`Table::of_connection`], one by one.
    pub fn iter_connection(&self, name: &str) -> impl Iterator<Item = &IkeSa> {
        let spis = self.by_connection.get(name).into_iter().flatten();
        spis.filter_map(|spi| self.get(*spi))
    }

    pub fn half_open(&self) -> usize {
        self.first.len()
    }

    pub fn next_wake(&self) -> Option<Instant> {
        self.wake.first().map(|(at, _)| *at)
    }

    /// IKE SAs that are due, up to `limit`.
    pub fn due(&self, now: Instant, limit: usize) -> Vec<IkeSpi> {
        self.wake
            .iter()
            .take_while(|(at, _)| *at <= now)
            .take(limit)
            .map(|(_, spi)| *spi)
            .collect()
    }

    pub fn spis(&self) -> Vec<IkeSpi> {
        let mut spis: Vec<_> = self.sas.keys().copied().collect();
        spis.sort_unstable();
        spis
    }

    pub fn iter(&self) -> impl Iterator<Item = &IkeSa> {
        self.sas.values().map(Box::as_ref)
    }
}
