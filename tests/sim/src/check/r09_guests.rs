//! R9: a Child SA of another member's (ADR 11) is in its host's journal before a message of the exchange leaves, is used by nobody before
//! the record of its IKE SA names it, and in the end both say the same of it.

use crate::entry::EntryChange;
use crate::member::Member;
use crate::plane::Esp;
use cluster::Layout;
use model::{ChildSaChange, EspSpi, GroupId, MemberId};
use sad::store::SaEntry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Guests of a run.
#[derive(Default)]
pub(super) struct GuestSas {
    /// Our SPI, by the peer's address and SPI.
    installed: BTreeMap<(IpAddr, u32), EspSpi>,
    /// All that ever took effect at a host, or were in the journal that a taker goes on with.
    journalled: BTreeSet<EspSpi>,
    /// All that the record of an IKE SA has named.
    recorded: BTreeSet<EspSpi>,
    /// Packets that were sealed with one.
    pub packets: u64,
}

impl GuestSas {
    /// An entry has taken effect at an owner.
    pub(super) fn effective(&mut self, layout: Layout, changes: &[EntryChange]) {
        for change in changes {
            if let EntryChange::Child(ChildSaChange::Install { record, .. }) = change
                && layout.group_of(record.ike_spi.segment()) != layout.group_of(record.spi_in.segment())
            {
                let peer = (record.remote.ip(), record.spi_out.0);
                self.installed.insert(peer, record.spi_in);
                self.journalled.insert(record.spi_in);
            }
        }
    }

    /// A member serves, with these Child SAs. A host may have died before an entry of its journal took effect there: the taker has it.
    pub(super) fn resumed(&mut self, layout: Layout, children: &[&SaEntry]) {
        for entry in children {
            let record = &entry.record;
            if layout.group_of(record.ike_spi.segment()) != layout.group_of(record.spi_in.segment()) {
                let peer = (record.remote.ip(), record.spi_out.0);
                self.installed.insert(peer, record.spi_in);
                self.journalled.insert(record.spi_in);
            }
        }
    }

    pub(super) fn recorded(&mut self, guests: &[EspSpi]) {
        self.recorded.extend(guests);
    }

    /// Messages leave that tell the peer of these.
    pub(super) fn promised(&self, me: MemberId, guests: &[EspSpi]) -> Result<(), String> {
        match guests.iter().find(|spi| !self.journalled.contains(spi)) {
            Some(spi) => Err(format!(
                "member {me} goes on with an exchange, though guest {spi} is in no journal"
            )),
            None => Ok(()),
        }
    }

    pub(super) fn sealed(&mut self, me: MemberId, esp: &Esp, frame: &[u8]) -> Result<(), String> {
        let peer = frame.get(30..34).and_then(|a| <[u8; 4]>::try_from(a).ok());
        let spi_in = peer.and_then(|peer| self.installed.get(&(IpAddr::from(peer), esp.spi)));
        match spi_in {
            Some(spi) if !self.recorded.contains(spi) => Err(format!(
                "member {me} seals with guest {spi}, which no record of its IKE SA names"
            )),
            found => {
                self.packets += u64::from(found.is_some());
                Ok(())
            }
        }
    }
}

/// What sponsors and hosts say differently, and what members lack. `owner`: who serves a group.
pub fn disagreements<'a>(
    layout: Layout,
    owner: impl Fn(GroupId) -> Option<&'a Member>,
    wants: impl Fn(&str) -> bool,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let group_of = |spi: EspSpi| layout.group_of(spi.segment());
    for group in layout.groups() {
        let Some(here) = owner(group) else { continue };
        // The host's view: the sponsor knows of it.
        for entry in here
            .sad
            .guests()
            .filter(|e| layout.group_of(e.segment()) == group)
        {
            let (spi_in, ike_spi) = (entry.record.spi_in, entry.record.ike_spi);
            let of = layout.group_of(ike_spi.segment());
            let known = owner(of).and_then(|sponsor| sponsor.engine.status_of(ike_spi));
            if of != group && !known.is_some_and(|sa| sa.children.iter().any(|c| c.spi_in == spi_in)) {
                wrong.push(format!(
                    "guest {spi_in} of IKE SA {ike_spi} is at member {}, but its sponsor does not know it",
                    here.me
                ));
            }
        }
        // The sponsor's view: each guest is at its host, and in use there; and each member that serves something has one.
        for sa in here.engine.status() {
            if layout.group_of(sa.spi.segment()) != group || sa.phase != "established" {
                continue;
            }
            let mut has = BTreeSet::new();
            for child in sa.children.iter().filter(|c| group_of(c.spi_in) != group) {
                let there = owner(group_of(child.spi_in));
                let entry = there.and_then(|host| host.sad.get(child.spi_in));
                let follows = entry.is_some_and(|e| e.record.ike_spi == sa.spi && e.carries_outbound());
                if child.phase != "installed" || !follows {
                    wrong.push(format!(
                        "guest {} of IKE SA {} is {}; its host has it: {}, rightly: {follows}",
                        child.spi_in,
                        sa.spi,
                        child.phase,
                        entry.is_some()
                    ));
                }
                has.extend(child.resource.map(|resource| resource.member));
            }
            let connection = sa.connection.as_deref().unwrap_or_default();
            if !wants(connection) || !sa.children.iter().any(|c| c.resource.is_none()) {
                continue;
            }
            let serving = layout.groups().filter_map(&owner).map(|member| member.me);
            for member in serving.filter(|m| *m != here.me).collect::<BTreeSet<_>>() {
                if !has.contains(&member) {
                    wrong.push(format!("member {member} has no guest of IKE SA {}", sa.spi));
                }
            }
        }
    }
    wrong
}
