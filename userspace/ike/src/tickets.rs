//! Tickets that belong to no IKE SA: peers' for IKE SAs that were lost, and ours that were used.

use crate::ike_sa::extras::{HeldTicket, TicketId};
use std::collections::{BTreeMap, BTreeSet, HashMap};

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
