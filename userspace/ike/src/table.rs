//! All IKE SAs of this member with the indexes that find them; every look-up and change is logarithmic.

use crate::ike_sa::IkeSa;
use crate::ike_sa::extras::{HeldTicket, TicketId};
use model::{EspSpi, IkeSpi, Instant};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;

/// Used tickets that are remembered; beyond that the one that expires first is forgotten.
const SPENT_MAX: usize = 4096;

/// Tickets that belong to no IKE SA. Those that a live IKE SA was resumed with or holds are part of its record; these are not
/// replicated, since all that a loss of them costs is a full handshake.
#[derive(Default)]
pub(crate) struct Tickets {
    /// By connection: granted by a peer that was lost.
    held: BTreeMap<String, HeldTicket>,
    /// Granted by us and used, with the second of their expiry, soonest first.
    spent_by_expiry: BTreeSet<(u64, TicketId)>,
    spent: HashMap<TicketId, u64>,
}

impl Tickets {
    pub fn keep(&mut self, connection: String, ticket: HeldTicket) {
        self.held.insert(connection, ticket);
    }

    pub fn take(&mut self, connection: &str) -> Option<HeldTicket> {
        self.held.remove(connection)
    }

    /// Remembers until it expires that a ticket was used.
    pub fn spend(&mut self, id: TicketId, expires: u64, now: u64) {
        while let Some((soonest, id)) = self.spent_by_expiry.first().copied()
            && (soonest <= now || self.spent.len() >= SPENT_MAX)
        {
            self.spent_by_expiry.remove(&(soonest, id));
            self.spent.remove(&id);
        }
        if expires > now && self.spent.insert(id, expires).is_none() {
            self.spent_by_expiry.insert((expires, id));
        }
    }

    pub fn is_spent(&self, id: &TicketId, now: u64) -> bool {
        self.spent.get(id).is_some_and(|expires| *expires > now)
    }

    /// Forgets the peers' tickets: the policy may have changed.
    pub fn forget_held(&mut self) {
        self.held.clear();
    }
}

#[derive(Default)]
pub(crate) struct Table {
    pub tickets: Tickets,
    sas: HashMap<IkeSpi, IkeSa>,
    /// Half-open IKE SAs that we respond to, by the initiator's SPI and address: finds repeated first messages.
    first: HashMap<(IkeSpi, SocketAddr), IkeSpi>,
    children: HashMap<EspSpi, IkeSpi>,
    by_connection: BTreeMap<String, BTreeSet<IkeSpi>>,
    wake: BTreeSet<(Instant, IkeSpi)>,
}

impl Table {
    /// Takes an IKE SA out to work on it; it has to be put back or forgotten.
    pub fn take(&mut self, spi: IkeSpi) -> Option<IkeSa> {
        let sa = self.sas.remove(&spi)?;
        if let Some(at) = sa.wake() {
            self.wake.remove(&(at, spi));
        }
        if sa.is_half_open() {
            self.first.remove(&(sa.peer_spi, sa.path.remote));
        }
        for child in &sa.children {
            if self.children.get(&child.spi_in) == Some(&spi) {
                self.children.remove(&child.spi_in);
            }
        }
        Some(sa)
    }

    pub fn put(&mut self, sa: IkeSa) {
        let spi = sa.spi;
        if let Some(at) = sa.wake() {
            self.wake.insert((at, spi));
        }
        if sa.is_half_open() {
            self.first.insert((sa.peer_spi, sa.path.remote), spi);
        }
        for child in &sa.children {
            self.children.insert(child.spi_in, spi);
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

    /// Removes what [`Table::take`] leaves in the indexes.
    pub fn forget(&mut self, sa: &IkeSa) {
        if let Some(name) = &sa.connection
            && let Some(spis) = self.by_connection.get_mut(name)
        {
            spis.remove(&sa.spi);
            if spis.is_empty() {
                self.by_connection.remove(name);
            }
        }
    }

    pub fn get(&self, spi: IkeSpi) -> Option<&IkeSa> {
        self.sas.get(&spi)
    }

    pub fn contains(&self, spi: IkeSpi) -> bool {
        self.sas.contains_key(&spi)
    }

    pub fn by_first(&self, peer_spi: IkeSpi, remote: SocketAddr) -> Option<IkeSpi> {
        self.first.get(&(peer_spi, remote)).copied()
    }

    pub fn by_child(&self, spi_in: EspSpi) -> Option<IkeSpi> {
        self.children.get(&spi_in).copied()
    }

    /// IKE SAs of a connection, by SPI.
    pub fn of_connection(&self, name: &str) -> Vec<IkeSpi> {
        self.by_connection
            .get(name)
            .map(|spis| spis.iter().copied().collect())
            .unwrap_or_default()
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
        self.sas.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn used_tickets_are_remembered_until_they_expire_and_in_bounded_number() {
        let mut tickets = Tickets::default();
        let id = |n: u64| {
            let mut id = TicketId::default();
            id[..8].copy_from_slice(&n.to_be_bytes());
            id
        };
        tickets.spend(id(1), 100, 50);
        assert!(tickets.is_spent(&id(1), 99) && !tickets.is_spent(&id(1), 100));
        assert!(!tickets.is_spent(&id(2), 50));
        for n in 0..2 * SPENT_MAX as u64 {
            tickets.spend(id(1000 + n), 1000 + n, 200);
        }
        assert!(tickets.spent.len() <= SPENT_MAX && tickets.spent_by_expiry.len() == tickets.spent.len());
        assert!(!tickets.spent.contains_key(&id(1)), "expired");
        assert!(
            tickets.is_spent(&id(1000 + 2 * SPENT_MAX as u64 - 1), 200),
            "the last one"
        );
        assert!(!tickets.is_spent(&id(1000), 200), "the soonest made room");
    }
}
