//! Rekey of the IKE SA, also when both sides start it at once (RFC 7296 1.3.2, 2.8, 2.18, 2.25.2).

use super::child_answer::{Refusal, key_exchange, temporary_failure};
use super::child_create::NONCE_LEN;
use super::follow_up::{self, Unfinished};
use super::{Pending, delete, ike_auth, ike_init, notify, put_off, qcd, send_create, ticket};
use crate::event::EventKind;
use crate::ike_sa::IkeSa;
use crate::ike_sa::phase::{Established, Phase, Protected};
use crate::ike_sa::windows::Task;
use crate::negotiate;
use crate::outbox::Context;
use crate::proposal::{self, Proposal, TransformKind};
use crypto::{DhGroup, KeyInputs};
use ike_wire::{DhTransform, KeyExchange, Notify, NotifyType, Payload, PayloadList, ProtocolId};
use model::{ChildSaChange, IkeSpi, SecretBytes};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The peer deletes an IKE SA that it replaced; if it does not within this time, we forget it.
pub(crate) const REPLACED_KEPT: Duration = Duration::from_secs(120);

/// What we asked for and must remember until the response.
#[derive(Serialize, Deserialize)]
pub(crate) struct IkeOffer {
    pub spi: IkeSpi,
    pub nonce: Vec<u8>,
    pub group: u16,
    pub dh: SecretBytes,
    pub proposals: Vec<Proposal>,
    pub tries: u8,
    /// Already repeated with the group that the peer asked for.
    pub regrouped: bool,
}

/// A successor that has been agreed on.
#[derive(Serialize, Deserialize)]
pub(crate) struct AgreedIke {
    /// Ours.
    pub spi: IkeSpi,
    pub peer_spi: IkeSpi,
    pub suite: Proposal,
    /// Nonces of the exchange's initiator and responder.
    pub nonce_i: Vec<u8>,
    pub nonce_r: Vec<u8>,
    pub g_ir: SecretBytes,
    /// Whether we initiated the exchange.
    pub initiated: bool,
}

impl AgreedIke {
    fn lowest_nonce(&self) -> Vec<u8> {
        (&self.nonce_i).min(&self.nonce_r).clone()
    }

    /// The new IKE SA with its keys. `additional`: secrets of additional key exchanges.
    fn successor(self, old: &IkeSa, additional: &[SecretBytes]) -> Option<IkeSa> {
        let (prf, cipher, _) = negotiate::ike_suite(&self.suite)?;
        let (spi_i, spi_r) = if self.initiated {
            (self.spi, self.peer_spi)
        } else {
            (self.peer_spi, self.spi)
        };
        let inputs = KeyInputs {
            nonce_i: &self.nonce_i,
            nonce_r: &self.nonce_r,
            spi_i,
            spi_r,
        };
        let old_keys = &old.phase.protected()?.keys;
        let keys = old_keys.rekey(prf, cipher, inputs, &self.g_ir, additional).ok()?;
        let protected = Protected {
            keys,
            suite: self.suite,
        };
        Some(successor(old, self.spi, self.peer_spi, self.initiated, protected))
    }
}

pub(crate) fn start(sa: &mut IkeSa, ctx: &mut Context<'_>, tries: u8) {
    if follow_up::peer_replaces(sa, None) {
        // The peer's rekey may still come to nothing.
        return put_off(sa, ctx, Task::RekeyIke, tries, "rekey by the peer");
    }
    begin(sa, ctx, tries, None);
}

fn begin(sa: &mut IkeSa, ctx: &mut Context<'_>, tries: u8, group: Option<u16>) {
    let Some(connection) = sa.connection(ctx.config) else {
        ctx.event(
            sa,
            EventKind::CommandFailed,
            "not rekeyed: the connection is no longer in the configuration",
        );
        return;
    };
    let proposals = connection.ike_proposals.clone();
    let id = group.or_else(|| ike_init::first_group(connection).map(DhGroup::transform_id));
    let made = id.and_then(|id| {
        let group = DhGroup::from_transform_id(id)?;
        let made = ctx.generate(group).ok()?;
        Some((id, made.secret, made.public))
    });
    let Some((id, dh, public)) = made else {
        ctx.event(
            sa,
            EventKind::Trouble,
            "not rekeyed: no usable key exchange group",
        );
        return;
    };
    let spi = ctx.around.successor_ike_spi(sa.spi);
    let nonce = ctx.random(NONCE_LEN);
    let payloads = [
        Payload::SecurityAssociation(negotiate::offer(
            &proposals,
            ProtocolId::IKE,
            &spi.0.to_be_bytes(),
        )),
        Payload::Nonce(nonce.clone()),
        Payload::KeyExchange(KeyExchange {
            group: DhTransform(id),
            data: public,
        }),
    ];
    let offer = IkeOffer {
        spi,
        nonce,
        group: id,
        dh,
        proposals,
        tries,
        regrouped: group.is_some(),
    };
    send_create(sa, ctx, &payloads, Pending::RekeyIke(Box::new(offer)));
}

/// The response to our offer.
pub(crate) fn finish(sa: &mut IkeSa, ctx: &mut Context<'_>, offer: IkeOffer, payloads: &PayloadList) {
    if let Some(error) = payloads.error() {
        return refused(sa, ctx, offer, error);
    }
    match read_response(ctx, &offer, payloads) {
        Ok(agreed) if agreed.suite.has_additional() => {
            //= rfc9370#2.2.4
            // the initiator of this exchange just stops the rekeying process
            let redundant = |(_, lowest): &(IkeSpi, Vec<u8>)| agreed.lowest_nonce() < *lowest;
            if crossing(sa).is_some_and(redundant) && yield_to_crossing(sa, ctx) {
                return;
            }
            follow_up::start_ike(sa, ctx, agreed, offer.tries, payloads);
        }
        Ok(agreed) => finished(sa, ctx, agreed, &[], payloads),
        Err(why) => {
            ctx.event(
                sa,
                EventKind::PeerMisbehaved,
                format!("response to the IKE SA's rekey has {why}"),
            );
            // The peer has replaced the IKE SA by one that we cannot use.
            if take_crossing(sa).is_none() {
                delete::start_ike(sa, ctx);
            }
        }
    }
}

/// All key exchanges of our rekey are over. `payloads`: the last response.
pub(crate) fn finished(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    agreed: AgreedIke,
    additional: &[SecretBytes],
    payloads: &PayloadList,
) {
    let ours_lowest = agreed.lowest_nonce();
    let crossing = take_crossing(sa).filter(|(other, _)| ctx.table.contains(*other));
    let Some(mut new) = agreed.successor(sa, additional) else {
        return ctx.event(sa, EventKind::Trouble, "rekey of the IKE SA: no usable keys");
    };
    qcd::take(&mut new, payloads);
    match crossing {
        Some((other, lowest)) if ours_lowest < lowest => {
            // Ours is redundant: the children go to the peer's, and we delete what we made.
            new.successor = Some(other);
            ike_auth::start_timers(&mut new, ctx);
            delete::start_ike(&mut new, ctx);
            ctx.put_back(new);
            hand_over_to(sa, ctx, other);
        }
        crossing => {
            if let Some(mut redundant) = crossing.and_then(|(other, _)| ctx.table.take(other)) {
                // The peer made it and deletes it, unless our Delete of the old one overtakes our answer: then
                // the peer never gets to know it, and it ends with the time set here.
                redundant.successor = Some(new.spi);
                replaced(&mut redundant, ctx);
                redundant.dirty = true;
                ctx.put_back(redundant);
            }
            hand_over(sa, ctx, &mut new);
            // RFC 6290 4.3: the responder's token came with its answer, ours needs an exchange.
            new.our.push(Task::Refresh);
            ctx.put_back(new);
            delete::start_ike(sa, ctx);
        }
    }
}

fn read_response(
    ctx: &mut Context<'_>,
    offer: &IkeOffer,
    payloads: &PayloadList,
) -> Result<AgreedIke, &'static str> {
    let theirs = negotiate::read(payloads.sa().ok_or("no SA payload")?, ProtocolId::IKE);
    let [their] = theirs.as_slice() else {
        return Err("not exactly one proposal");
    };
    let peer_spi = ike_spi(&their.spi).ok_or("a bad SPI")?;
    let (_, suite) = proposal::choose(&offer.proposals, std::slice::from_ref(&their.proposal))
        .ok_or("algorithms that we did not offer")?;
    let (_, _, group) = negotiate::ike_suite(&suite).ok_or("algorithms that are not implemented")?;
    let ke = payloads.ke().ok_or("no KE payload")?;
    if group.transform_id() != offer.group || ke.group.0 != offer.group {
        return Err("another key exchange group");
    }
    let nonce_r = payloads.nonce().ok_or("no nonce")?.to_vec();
    let g_ir = ctx
        .agree(group, &offer.dh, &ke.data)
        .map_err(|_| "a public value that is not valid")?;
    Ok(AgreedIke {
        spi: offer.spi,
        peer_spi,
        suite,
        nonce_i: offer.nonce.clone(),
        nonce_r,
        g_ir,
        initiated: true,
    })
}

fn ike_spi(octets: &[u8]) -> Option<IkeSpi> {
    let spi = u64::from_be_bytes(octets.try_into().ok()?);
    (spi != 0).then_some(IkeSpi(spi))
}

fn refused(sa: &mut IkeSa, ctx: &mut Context<'_>, offer: IkeOffer, error: &Notify) {
    if yield_to_crossing(sa, ctx) {
        return;
    }
    if let Some(group) = error.as_invalid_ke() {
        let offered = offer
            .proposals
            .iter()
            .any(|p| p.of(TransformKind::Dh).any(|t| t.id == group.0));
        if offered && !offer.regrouped {
            return begin(sa, ctx, offer.tries, Some(group.0));
        }
    }
    if error.kind == NotifyType::TEMPORARY_FAILURE {
        return put_off(sa, ctx, Task::RekeyIke, offer.tries, "rekey of the IKE SA");
    }
    let text = format!(
        "rekey of the IKE SA: the peer refused with {}; we offered {}",
        error.kind,
        proposal::list(&offer.proposals)
    );
    ctx.event(sa, EventKind::NoProposal, text);
}

fn crossing(sa: &IkeSa) -> Option<&(IkeSpi, Vec<u8>)> {
    match &sa.phase {
        Phase::Established(phase) => phase.crossing.as_ref(),
        _ => None,
    }
}

fn take_crossing(sa: &mut IkeSa) -> Option<(IkeSpi, Vec<u8>)> {
    match &mut sa.phase {
        Phase::Established(phase) => phase.crossing.take(),
        _ => None,
    }
}

/// If the peer's rekey crossed ours and ours leads nowhere, the peer's IKE SA is the successor.
pub(crate) fn yield_to_crossing(sa: &mut IkeSa, ctx: &mut Context<'_>) -> bool {
    let Some((other, _)) = take_crossing(sa).filter(|(other, _)| ctx.table.contains(*other)) else {
        return false;
    };
    hand_over_to(sa, ctx, other);
    true
}

fn hand_over_to(sa: &mut IkeSa, ctx: &mut Context<'_>, other: IkeSpi) {
    if let Some(mut new) = ctx.table.take(other) {
        hand_over(sa, ctx, &mut new);
        replaced(sa, ctx);
        ctx.put_back(new);
    }
}

/// The peer will delete this IKE SA.
fn replaced(sa: &mut IkeSa, ctx: &Context<'_>) {
    if let Some(protected) = sa.phase.protected().cloned() {
        sa.phase = Phase::Rekeyed(Box::new(protected));
    }
    sa.timers.rekey = None;
    (sa.timers.reauth, sa.timers.reauth_due) = (None, None);
    sa.timers.switch = None;
    sa.timers.liveness = None;
    sa.timers.keepalive = None;
    sa.timers.expire = Some(ctx.now + REPLACED_KEPT);
}

/// A new IKE SA with the old one's peer and path.
fn successor(old: &IkeSa, spi: IkeSpi, peer_spi: IkeSpi, initiator: bool, protected: Protected) -> IkeSa {
    let phase = Phase::Established(Box::new(Established {
        protected,
        crossing: None,
    }));
    let mut new = IkeSa::new(spi, peer_spi, initiator, old.path, phase);
    new.connection = old.connection.clone();
    new.remote_id = old.remote_id.clone();
    new.more.fragment_size = old.more.fragment_size;
    new.more.virtual_addresses = old.more.virtual_addresses.clone();
    new.more.mobike = old.more.mobike;
    new.more.roaming.clone_from(&old.more.roaming);
    new.more.redirectable = old.more.redirectable;
    // A rekey is no authentication (RFC 7296 2.8.3).
    new.more.authentication.clone_from(&old.more.authentication);
    new.extras.wants_ticket = old.extras.wants_ticket;
    new.extras.sync.message_ids = old.extras.sync.message_ids;
    new.extras.sync.counters = old.extras.sync.counters;
    new.extras.sync.counters_asked = old.extras.sync.counters_asked;
    new
}

/// Children and waiting tasks move to the successor.
fn hand_over(old: &mut IkeSa, ctx: &mut Context<'_>, new: &mut IkeSa) {
    for child in std::mem::take(&mut old.children) {
        ctx.out.child_changes.push(ChildSaChange::MoveIkeSa {
            spi_in: child.spi_in,
            ike_spi: new.spi,
        });
        new.children.push(child);
    }
    for queued in std::mem::take(&mut old.our.queue) {
        if !matches!(
            queued.task,
            Task::RekeyIke | Task::Liveness | Task::Refresh | Task::Routability
        ) {
            new.our.queue.push_back(queued);
        }
    }
    // RFC 5723 6.2: with the rekey the ticket has become invalid.
    if new.extras.wants_ticket && new.extras.ticket.is_none() {
        new.our.push(Task::Refresh);
    }
    ticket::revoke(old, ctx);
    old.extras.ticket = None;
    old.successor = Some(new.spi);
    old.dirty = true;
    // The peer may have said more about it since the two keys crossed.
    new.more.authentication.clone_from(&old.more.authentication);
    new.dirty = true;
    ike_auth::start_timers(new, ctx);
    let suite = new
        .phase
        .protected()
        .map(|p| p.suite.to_string())
        .unwrap_or_default();
    let text = format!(
        "IKE SA {} is replaced by {}: {suite}, {} children moved",
        old.spi,
        new.spi,
        new.children.len()
    );
    ctx.event(new, EventKind::IkeSaRekeyed, text);
}

/// The peer replaces the IKE SA.
pub(crate) fn respond(sa: &mut IkeSa, ctx: &mut Context<'_>, payloads: &PayloadList) -> Vec<Payload> {
    // RFC 7296 2.25.2: not while children are being made, rekeyed or deleted, nor while we delete the IKE SA.
    let busy = |pending: &Pending| {
        matches!(
            pending,
            Pending::CreateChild(_) | Pending::FollowUp(_) | Pending::DeleteChild { .. } | Pending::DeleteIke
        )
    };
    if sa.our.pending().any(busy) || follow_up::is_awaited(sa) {
        return temporary_failure();
    }
    let crosses = sa
        .our
        .pending()
        .any(|pending| matches!(pending, Pending::RekeyIke(_)));
    if matches!(&sa.phase, Phase::Established(phase) if phase.crossing.is_some()) {
        return temporary_failure();
    }
    let (mut answer, agreed) = match answer(sa, ctx, payloads) {
        Ok(agreed) => agreed,
        Err(refusal) => return vec![refusal.report(sa, ctx)],
    };
    if agreed.suite.has_additional() {
        if crosses {
            return temporary_failure();
        }
        answer.push(follow_up::promise(sa, ctx, Unfinished::Ike(Box::new(agreed))));
        return answer;
    }
    let lowest = agreed.lowest_nonce();
    let Some(mut new) = agreed.successor(sa, &[]) else {
        return vec![notify(NotifyType::NO_PROPOSAL_CHOSEN)];
    };
    answer.extend(qcd::own_token(&new, ctx));
    answer.extend(ticket::grant(&mut new, ctx, payloads));
    if crosses {
        // Who keeps what is decided with the response to ours.
        if let Phase::Established(phase) = &mut sa.phase {
            phase.crossing = Some((new.spi, lowest));
        }
        ike_auth::start_timers(&mut new, ctx);
    } else {
        hand_over(sa, ctx, &mut new);
        replaced(sa, ctx);
    }
    ctx.put_back(new);
    answer
}

/// Responder: all key exchanges of the peer's rekey are over. Gives what belongs into the last answer.
pub(crate) fn replace(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    agreed: AgreedIke,
    additional: &[SecretBytes],
) -> Option<Payload> {
    let Some(mut new) = agreed.successor(sa, additional) else {
        ctx.event(sa, EventKind::Trouble, "rekey of the IKE SA: no usable keys");
        return Some(notify(NotifyType::NO_PROPOSAL_CHOSEN));
    };
    let token = qcd::own_token(&new, ctx);
    hand_over(sa, ctx, &mut new);
    replaced(sa, ctx);
    ctx.put_back(new);
    token
}

fn answer(
    sa: &IkeSa,
    ctx: &mut Context<'_>,
    payloads: &PayloadList,
) -> Result<(Vec<Payload>, AgreedIke), Refusal> {
    let malformed = |what: &str| Refusal {
        notify: Notify::status(NotifyType::INVALID_SYNTAX),
        event: EventKind::PeerMisbehaved,
        text: format!("rekey of the IKE SA: request without {what}"),
    };
    let offered = payloads.sa().ok_or_else(|| malformed("SA payload"))?;
    let nonce_i = payloads.nonce().ok_or_else(|| malformed("nonce"))?.to_vec();
    let theirs = negotiate::read(offered, ProtocolId::IKE);
    let their_proposals: Vec<Proposal> = theirs.iter().map(|their| their.proposal.clone()).collect();
    let ours = sa
        .connection(ctx.config)
        .map(|connection| connection.ike_proposals.as_slice())
        .unwrap_or_default();
    let no_common = || Refusal {
        notify: Notify::status(NotifyType::NO_PROPOSAL_CHOSEN),
        event: EventKind::NoProposal,
        text: format!(
            "rekey of the IKE SA: no common proposal: the peer offers {}, we have {}",
            proposal::list(&their_proposals),
            proposal::list(ours)
        ),
    };
    let (index, suite) = proposal::choose(ours, &their_proposals).ok_or_else(no_common)?;
    negotiate::ike_suite(&suite).ok_or_else(no_common)?;
    let their = theirs.get(index).ok_or_else(no_common)?;
    let peer_spi = ike_spi(&their.spi).ok_or_else(|| malformed("a valid SPI"))?;
    let (shared, public) = key_exchange(ctx, &suite, payloads)?;
    let (Some(g_ir), Some(public)) = (shared, public) else {
        return Err(no_common());
    };
    let spi = ctx.around.successor_ike_spi(sa.spi);
    let nonce_r = ctx.random(NONCE_LEN);
    let accepted = negotiate::accept(&suite, their.number, ProtocolId::IKE, &spi.0.to_be_bytes());
    let answer = vec![
        Payload::SecurityAssociation(accepted),
        Payload::Nonce(nonce_r.clone()),
        Payload::KeyExchange(public),
    ];
    let agreed = AgreedIke {
        spi,
        peer_spi,
        suite,
        nonce_i,
        nonce_r,
        g_ir,
        initiated: false,
    };
    Ok((answer, agreed))
}
