//! Which key exchanges a message or a task needs, so that they are computed before it is looked at. What is not foreseen here is
//! computed at once, which is right but slow.

use super::{Pending, ike_init, intermediate};
use crate::config::EngineConfig;
use crate::ike_sa::IkeSa;
use crate::ike_sa::phase::Phase;
use crate::ike_sa::windows::Task;
use crate::negotiate;
use crate::outbox::Context;
use crate::proposal::{Proposal, TransformKind};
use crypto::{DhGroup, DhWork};
use ike_wire::{KeyExchange, PayloadList, ProtocolId};
use model::SecretBytes;

/// The shared secret, where the peer used our method.
fn agree(group: Option<DhGroup>, private: &SecretBytes, ke: Option<&KeyExchange>) -> Option<DhWork> {
    let (group, ke) = (group?, ke?);
    (ke.group.0 == group.transform_id()).then(|| DhWork::Agree(group, private.clone(), ke.data.clone()))
}

/// Our key for the first additional key exchange that the peer has chosen.
pub(super) fn first_additional(payloads: &PayloadList, protocol: ProtocolId) -> Option<DhWork> {
    let chosen = negotiate::read(payloads.sa()?, protocol);
    let group = negotiate::additional(&chosen.first()?.proposal)?.first().copied();
    group.map(DhWork::Generate)
}

/// A key of the method that the peer asks for, if it is one of these.
pub(super) fn another(payloads: &PayloadList, offered: &[Proposal], ours: Option<u16>) -> Option<DhWork> {
    let wanted = payloads.error()?.as_invalid_ke()?.0;
    let is_offered = offered
        .iter()
        .any(|p| p.of(TransformKind::Dh).any(|t| t.id == wanted));
    (is_offered && ours != Some(wanted))
        .then(|| DhGroup::from_transform_id(wanted))
        .flatten()
        .map(DhWork::Generate)
}

/// For the response to the request with this Message ID.
pub(crate) fn by_response(sa: &IkeSa, ctx: &Context<'_>, id: u32, payloads: &PayloadList) -> Vec<DhWork> {
    if !ctx.exchanges.beside {
        return Vec::new();
    }
    let ke = payloads.ke();
    let asked = sa.our.all().find(|outstanding| outstanding.id == id);
    let work = match asked.map(|outstanding| &outstanding.pending) {
        Some(Pending::CreateChild(offer)) => {
            let group = offer.dh.as_ref().map(|(group, _)| *group);
            let agreed = offer
                .dh
                .as_ref()
                .and_then(|(group, private)| agree(DhGroup::from_transform_id(*group), private, ke));
            match payloads.error() {
                Some(_) => [another(payloads, &offer.proposals, group), None],
                None => [agreed, first_additional(payloads, ProtocolId::ESP)],
            }
        }
        Some(Pending::RekeyIke(offer)) => match payloads.error() {
            Some(_) => [another(payloads, &offer.proposals, Some(offer.group)), None],
            None => [
                agree(DhGroup::from_transform_id(offer.group), &offer.dh, ke),
                first_additional(payloads, ProtocolId::IKE),
            ],
        },
        Some(Pending::Intermediate) => {
            let Phase::AwaitIntermediateResponse(phase) = &sa.phase else {
                return Vec::new();
            };
            let [this, next] = intermediate::next_groups(sa);
            let agreed = agree(this, &phase.dh, ke);
            let next = next.filter(|_| agreed.is_some()).map(DhWork::Generate);
            [agreed, next]
        }
        Some(Pending::FollowUp(asked)) => {
            let [this, next] = asked.next_groups();
            let agreed = agree(this, asked.private(), ke);
            let next = next.filter(|_| agreed.is_some()).map(DhWork::Generate);
            [agreed, next]
        }
        _ => return Vec::new(),
    };
    work.into_iter().flatten().collect()
}

/// The method of the private key that a task begins with.
pub(crate) fn by_task(sa: &IkeSa, config: &EngineConfig, task: &Task) -> Option<DhGroup> {
    let connection = sa.connection(config)?;
    let first = |proposals: &[Proposal]| {
        let transform = proposals.first()?.first(TransformKind::Dh)?;
        DhGroup::from_transform_id(transform.id)
    };
    match task {
        Task::CreateChild { child } | Task::CreateResourceChild { child, .. } => {
            first(&connection.child(child)?.esp_proposals)
        }
        Task::RekeyChild { spi_in } => {
            let old = sa.child(*spi_in)?;
            match connection.child(&old.name) {
                Some(child) => first(&child.esp_proposals),
                None => first(std::slice::from_ref(&old.suite)),
            }
        }
        Task::RekeyIke => ike_init::first_group(connection),
        _ => None,
    }
}
