//! Addresses that change: of peers behind a NAT, which only their packets show, and ours.

use std::net::IpAddr;

use ike::Command;
use model::{ChildSaChange, EspSpi, IkeSpi};

use super::Core;
use super::entry::EntryChange;
use crate::net::ports::within;
use crate::net::{Interface, frame};

impl Core {
    /// Commits of this owner took effect: the programs learn whose packets may come from elsewhere.
    pub(super) fn watch_sources(&mut self, changes: &[EntryChange]) {
        for change in changes {
            if let EntryChange::Child(ChildSaChange::Install { record, .. }) = change
                && record.udp_encap
                && self.engine.may_move(record.ike_spi)
            {
                self.watch_source(record.spi_in);
            }
        }
    }

    /// The same for an IKE SA that was adopted.
    pub(super) fn watch_sources_of(&mut self, spi: IkeSpi) {
        if !self.engine.may_move(spi) {
            return;
        }
        let children = self
            .engine
            .status_of(spi)
            .map(|sa| sa.children)
            .unwrap_or_default();
        for child in children {
            self.watch_source(child.spi_in);
        }
    }

    fn watch_source(&mut self, spi_in: EspSpi) {
        let plan = self.sad.may_move(spi_in, true);
        self.execute_or_log(&plan);
    }

    /// An outside interface has gone down: connections that may use an address of another network change to it (RFC 4555). Where the way is
    /// lost further out, the engine finds out by its requests.
    pub(super) fn leave_interface(&mut self, name: &str) {
        let on = |port: &Interface, address: IpAddr| {
            port.networks.iter().any(|(net, len)| within(*net, *len, address))
        };
        let Some(down) = self.ports.outside.iter().find(|port| port.name == name) else {
            return;
        };
        let mut moves = Vec::new();
        for config in self
            .config
            .connections
            .iter()
            .filter(|c| !c.further_locals.is_empty())
        {
            let ours = [config.local]
                .into_iter()
                .chain(config.further_locals.iter().copied());
            let Some(other) = ours.into_iter().find(|address| !on(down, *address)) else {
                continue;
            };
            for spi in self.engine.spis_of(&config.name) {
                let there = self
                    .engine
                    .status_of(spi)
                    .filter(|sa| sa.initiator && sa.phase == "established");
                if there.is_some_and(|sa| on(down, sa.local.ip())) {
                    moves.push((spi, other));
                }
            }
        }
        for (spi, local) in moves {
            self.engine_command(Command::MoveLocal { spi, local });
        }
    }

    /// A copy of an authentic packet, newer than all before, from another source than its SA's peer was at. What the engine makes of
    /// it is committed before anything is sent there.
    pub(super) fn peer_seen(&mut self, slot: u32, octets: &[u8]) {
        let Some(remote) = frame::udp_source(octets) else {
            return;
        };
        let Some(entry) = self.sad.by_slot(slot) else {
            return;
        };
        let (spi_in, ike_spi) = (entry.record.spi_in, entry.record.ike_spi);
        let known = entry.record.remote == remote;
        if known || !self.groups.owns_segment(entry.segment()) {
            return;
        }
        self.adopt_first(ike_spi);
        self.engine_command(Command::PeerSeen { spi_in, remote });
    }
}
