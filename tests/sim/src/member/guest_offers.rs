//! Which Child SAs per member there are to be: SPIs that are kept ready for others, and those that are asked for.

use super::guests::Ownerships;
use super::{Cx, Member};
use ike::{Command, Resource};
use model::{EspSpi, GroupId, Instant, MemberId, SegmentId};
use sad::SaEntry;
use std::collections::BTreeSet;
use std::time::Duration;

/// Sooner than the agent does, since a run is short.
const AGAIN: Duration = Duration::from_secs(2);

/// Names a resource of another member among what was asked for; CPUs of the owner's are below.
fn asked_key(resource: Resource) -> u32 {
    u32::from(resource.member.0) << 16 | u32::from(resource.cpu)
}

impl Member {
    /// SPIs of this member's segments for the other members' IKE SAs.
    pub(super) fn keep_ready(&mut self, cx: &mut Cx<'_>) {
        if self.layout.count() == 1 {
            return;
        }
        let per_cpu = self.guests.ready.len() > 1;
        let (layout, me, serving) = (self.layout, self.me, &self.serving);
        let owned: BTreeSet<GroupId> = layout.groups().filter(|g| self.owns(*g)).collect();
        let (sad, last) = (&mut self.sad, &mut self.guests.segment);
        let mut drawn = Vec::new();
        let mut reserve = |cpu: u16| {
            for _ in 0..=u8::MAX {
                *last = last.wrapping_add(1);
                let segment = SegmentId(*last);
                let group = layout.group_of(segment);
                if !owned.contains(&group) || !serving.contains(&group) {
                    continue;
                }
                let spi = match per_cpu {
                    true => sad.reserve_spi_on(segment, u32::from(cpu)),
                    false => sad.reserve_spi(segment),
                };
                drawn.extend(spi);
                return spi;
            }
            None
        };
        let lives = self.node.lives();
        let host = &mut self.guests.machine.host;
        host.keep_ready(cx.now, &lives, &self.guests.ready, &mut reserve);
        for spi in drawn {
            cx.watch
                .drawn(cx.now, me, self.life, crate::around::Drawn::Esp(spi));
        }
    }

    /// Once a second: Child SAs that members lack beside shared ones.
    pub(super) fn ask_for_members(&mut self, cx: &mut Cx<'_>) {
        if !self.guests.wanted() {
            return;
        }
        let mut wanted = Vec::new();
        for (_, entry) in self.sad.shared_after(None) {
            let ike_spi = entry.record.ike_spi;
            let served = self.serving.contains(&self.group_of(ike_spi));
            if served && self.engine.contains(ike_spi) {
                wanted.extend(self.lacking(cx.now, entry));
            }
        }
        for (beside, resource) in wanted {
            self.asked.insert((beside, asked_key(resource)), cx.now);
            self.engine_command(cx, Command::CreateResourceChild { beside, resource });
        }
    }

    /// Members, or their CPUs, that have no Child SA beside a shared one, and could have one now.
    fn lacking(&self, now: Instant, shared: &SaEntry) -> Vec<(EspSpi, Resource)> {
        let record = &shared.record;
        let connections = &self.engine.config().connections;
        let connection = connections.iter().find(|c| c.name == record.connection);
        let (Some(connection), Some(sa)) = (connection, self.engine.status_of(record.ike_spi)) else {
            return Vec::new();
        };
        let owners = Ownerships {
            me: self.me,
            now,
            layout: self.layout,
            node: &self.node,
            ownership: &self.ownership,
            serving: &self.serving,
            plane: &self.plane,
        };
        let there = |resource: &Resource| {
            let mut children = sa.children.iter();
            children
                .any(|c| c.child == record.child && c.resource == Some(*resource) && c.phase != "deleting")
        };
        let asked = |resource: &Resource| {
            let at = self.asked.get(&(record.spi_in, asked_key(*resource)));
            at.is_some_and(|at| now.since(*at) < AGAIN)
        };
        let cpu = |resource: &Resource| (resource.cpu != Resource::ANY_CPU).then_some(resource.cpu);
        let sponsor = &self.guests.machine.sponsor;
        let of_members = connection.resources.iter();
        of_members
            .filter(|r| r.member != MemberId(0) && r.member != self.me)
            .filter(|resource| !there(resource) && !asked(resource))
            .filter(|resource| sponsor.has(&owners, resource.member, cpu(resource)))
            .map(|resource| (record.spi_in, *resource))
            .collect()
    }
}
