//! Per-resource Child SAs (RFC 9611): further Child SAs with the selectors of the first one, each bound to a member or CPU.
//!
//! The first Child SA stays the one that every CPU may use; it carries SA_RESOURCE_INFO without data, which says that there may
//! be more. Which resource a Child SA of ours belongs to is our own affair: the identifier tells the peer nothing.

use super::Pending;
use super::child_answer::Refusal;
use super::child_create::{self, ChildOffer};
use crate::config::{ChildConfig, Connection, EngineConfig, Resource};
use crate::event::EventKind;
use crate::ike_sa::IkeSa;
use crate::ike_sa::child::{ChildPhase, ChildSa};
use crate::ike_sa::windows::Task;
use crate::io::Surroundings;
use crate::outbox::Context;
use crypto::hmac_sha256;
use ike_wire::{Notify, NotifyType, Payload, PayloadList};
use model::IkeSpi;

/// Octets of our identifiers.
const ID_LEN: usize = 8;

/// SA_RESOURCE_INFO for a Child SA of ours. RFC 9611 3 wants the identifier unique among the Child SAs with these selectors, 7
/// that it gives no knowledge of the hardware: so it is a keyed digest of member and CPU, other ones for every IKE SA.
pub(crate) fn info(sa: &IkeSa, ctx: &Context<'_>, resource: Option<Resource>) -> Payload {
    let data = resource.map_or(Vec::new(), |resource| {
        let key = ctx.config.endpoint.cookie_secret.expose();
        identifier(key, sa.spi, resource).to_vec()
    });
    Payload::Notify(Notify::new(NotifyType::SA_RESOURCE_INFO, data))
}

fn identifier(key: &[u8], spi: IkeSpi, resource: Resource) -> [u8; ID_LEN] {
    let (spi, cpu) = (spi.0.to_be_bytes(), resource.cpu.to_be_bytes());
    let digest = hmac_sha256(key, &[b"resource", &spi, &[resource.member.0], &cpu]);
    std::array::from_fn(|at| digest[at])
}

/// Whether a child may have per-resource Child SAs at all.
pub(crate) fn is_wanted(connection: &Connection) -> bool {
    !connection.resources.is_empty()
}

/// Whether the peer said so too.
pub(crate) fn is_offered(payloads: &PayloadList) -> bool {
    payloads.notify(NotifyType::SA_RESOURCE_INFO).is_some()
}

/// The Child SA that every CPU may use.
pub(crate) fn first<'a>(sa: &'a IkeSa, name: &str) -> Option<&'a ChildSa> {
    let in_use = |child: &&ChildSa| {
        let phase = matches!(
            child.phase,
            ChildPhase::Installed | ChildPhase::AwaitsSwitch { .. }
        );
        child.name == name && child.resource.is_none() && phase
    };
    sa.children.iter().find(in_use)
}

/// Whether we are ending the Child SA that every CPU may use, and the peer may not know it yet.
fn is_ending_first(sa: &IkeSa, name: &str) -> bool {
    let ending = |child: &ChildSa| {
        child.name == name && child.resource.is_none() && child.phase == ChildPhase::Deleting
    };
    sa.children.iter().any(ending)
}

/// Whether the answer to a request for a further Child SA comes when there is no first one any more. The peer may have deleted that
/// before it saw the request, which was one for a new first one then, or afterwards; nothing in the answer tells.
pub(crate) fn has_lost_first(sa: &IkeSa, offer: &ChildOffer) -> bool {
    offer.resource.is_some() && first(sa, &offer.name).is_none()
}

/// Whether a task has to wait for the end of a deletion, however large the window is: where the request for a new first Child SA overtakes
/// the deletion of the old one, it is one for a further one to the peer, and the peer is left without a first one.
pub(crate) fn waits(sa: &IkeSa, config: &EngineConfig, task: &Task) -> bool {
    let deletes = |pending: &Pending| matches!(pending, Pending::DeleteChild { .. });
    matches!(task, Task::CreateChild { .. })
        && sa.connection(config).is_some_and(is_wanted)
        && sa.our.pending().any(deletes)
}

/// Child SAs of a child that are bound to resources and not being replaced or deleted.
fn bound<'a>(sa: &'a IkeSa, name: &'a str) -> impl Iterator<Item = Resource> + 'a {
    sa.children
        .iter()
        .filter(move |child| child.name == name)
        .filter(|child| {
            matches!(
                child.phase,
                ChildPhase::Installed | ChildPhase::AwaitsSwitch { .. }
            )
        })
        .filter_map(|child| child.resource)
}

/// The resource that our unanswered request is for.
fn coming(sa: &IkeSa, name: &str) -> Option<Resource> {
    sa.our.pending().find_map(|pending| match pending {
        Pending::CreateChild(offer) if offer.name == name && offer.rekeys.is_none() => offer.resource,
        _ => None,
    })
}

/// We want a Child SA for a resource.
pub(crate) fn start(sa: &mut IkeSa, ctx: &mut Context<'_>, name: &str, resource: Resource, tries: u8) {
    let config = ctx.config;
    let child = sa
        .connection(config)
        .filter(|connection| connection.resources.contains(&resource))
        .and_then(|connection| connection.child(name));
    let Some(child) = child else {
        let text = format!("child {name}: not in the configuration, or not with {resource}");
        return ctx.event(sa, EventKind::CommandFailed, text);
    };
    if bound(sa, name).any(|used| used == resource) {
        return;
    }
    let Some(first) = first(sa, name) else {
        let text = format!("child {name}: no Child SA that all may use, so none for {resource} either");
        return ctx.event(sa, EventKind::CommandFailed, text);
    };
    if !first.multiple {
        let text = format!("child {name}: the peer does not want Child SAs per resource");
        return ctx.event(sa, EventKind::CommandFailed, text);
    }
    // RFC 9611 3: "negotiated with identical Child SA properties that were negotiated for the initial Child SA". It may have been
    // made in IKE_AUTH without a key exchange of its own; one of its own is no property of the SA.
    let proposals = same_suite(child, &first.suite);
    let like_first = ChildConfig {
        local_ts: first.ts_local.clone(),
        remote_ts: first.ts_remote.clone(),
        esp_proposals: proposals.clone(),
        mode: first.mode,
        ..child.clone()
    };
    let nonce = ctx.random(child_create::NONCE_LEN);
    if let Some(mut offer) = child_create::offer(sa, ctx, &like_first, proposals, nonce, None, Some(resource))
    {
        offer.tries = tries;
        child_create::send_offer(sa, ctx, offer);
    }
}

/// The configured proposals that lead to the suite of the first Child SA.
fn same_suite(child: &ChildConfig, suite: &crate::proposal::Proposal) -> Vec<crate::proposal::Proposal> {
    let wanted = suite.without_dh();
    let fitting: Vec<_> = child
        .esp_proposals
        .iter()
        .filter_map(|proposal| proposal.narrowed_to(&wanted))
        .collect();
    if fitting.is_empty() { vec![wanted] } else { fitting }
}

/// The resource that the peer's request for a further Child SA is bound to: of those that can take one the one with the fewest (RFC
/// 9611 4). `None`: it asks for a first one.
pub(crate) fn choose(
    sa: &IkeSa,
    around: &dyn Surroundings,
    connection: &Connection,
    name: &str,
    payloads: &PayloadList,
) -> Result<Option<Resource>, Refusal> {
    if !is_offered(payloads) {
        return Ok(None);
    }
    if first(sa, name).is_none() {
        if !is_ending_first(sa, name) {
            return Ok(None);
        }
        // As RFC 7296 2.25.1 has it for rekeys. It may be a request for one beside the first one, from a peer that has not seen our Delete
        // yet: the two sides would not agree which one is the first, and the next deletion would take the policies' SA from one of them.
        return Err(Refusal {
            notify: Notify::status(NotifyType::TEMPORARY_FAILURE),
            event: EventKind::ChildFailed,
            text: format!(
                "child {name}: the peer asks for one while the deletion of the one that all may use is under way; it will ask again"
            ),
        });
    }
    //= rfc9611#6
    // An implementation that does not accept any further resource-specific Child SAs MUST NOT return the NO_ADDITIONAL_SAS
    // error [...] Instead, it MUST return TS_MAX_QUEUE.
    let max = 2 * connection.resources.len();
    let used: Vec<_> = bound(sa, name).collect();
    // What we ask for ourselves at this moment is taken, too: two sides that see traffic at once then end up with one for each.
    let coming = coming(sa, name);
    let count = |resource: &Resource| {
        used.iter()
            .chain(&coming)
            .filter(|used| *used == resource)
            .count()
    };
    let ready = connection
        .resources
        .iter()
        .filter(|resource| around.has_resource(sa.spi, **resource));
    match ready.min_by_key(|resource| count(resource)) {
        Some(resource) if used.len() < max => Ok(Some(*resource)),
        None if used.len() < max => Err(Refusal {
            notify: Notify::status(NotifyType::TS_MAX_QUEUE),
            event: EventKind::ChildFailed,
            text: format!("child {name}: no member that could take a further Child SA is there"),
        }),
        _ => Err(Refusal {
            notify: Notify::status(NotifyType::TS_MAX_QUEUE),
            event: EventKind::ChildFailed,
            text: format!(
                "child {name}: the peer asks for more than {max} Child SAs with the same selectors"
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::MemberId;
    use std::collections::BTreeSet;

    #[test]
    fn identifiers_are_unique_per_resource_and_ike_sa_and_keyed() {
        let mut seen = BTreeSet::new();
        for key in [[1; 32], [2; 32]] {
            for spi in [IkeSpi(1), IkeSpi(2)] {
                for member in 1..=16 {
                    for cpu in 0..64 {
                        let member = MemberId(member);
                        assert!(seen.insert(identifier(&key, spi, Resource { member, cpu })));
                    }
                }
            }
        }
    }
}
