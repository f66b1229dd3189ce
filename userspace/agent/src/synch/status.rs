//! The channel's part of `espalier status`.

use super::Synch;
use crate::api::{ChannelLink, ChannelStatus};
use crate::clock;

impl Synch {
    /// Certificate, links, refusals.
    pub fn status(&self) -> ChannelStatus {
        let inner = &self.inner;
        let now = clock::wall_ns() / 1_000_000_000;
        let own = inner.credentials.borrow().clone();
        let mut links = inner
            .slots
            .iter()
            .map(|((peer, link), slot)| {
                let facts = slot.facts();
                let facts = facts.as_ref();
                let certificate = facts.and_then(|f| f.peer.as_ref());
                ChannelLink {
                    member: peer.0,
                    link: link.name().to_owned(),
                    up_s: facts.map(|f| f.since.elapsed().as_secs()),
                    rtt_ms: facts.map(|f| f.rtt.as_secs_f64() * 1000.0),
                    release: facts.map(|f| f.greeting.release.clone()),
                    records: facts.map(|f| f.greeting.records),
                    certificate: certificate.map(|c| c.serial.clone()),
                    days_left: certificate.map(|c| c.days_left(now)),
                }
            })
            .collect::<Vec<_>>();
        links.sort_by(|a, b| (a.member, &b.link).cmp(&(b.member, &a.link)));
        ChannelStatus {
            certificate: own.facts.serial.clone(),
            issuer: own.facts.issuer.clone(),
            not_after: own.facts.not_after,
            days_left: own.facts.days_left(now),
            renewing: inner.slots.values().any(|slot| slot.is_stale(own.version)),
            links,
            connections: inner
                .counters
                .connections
                .load(std::sync::atomic::Ordering::Relaxed),
            refused: inner.refusals.by_name(),
        }
    }
}
