//! The peer's request for a Child SA: which child of the configuration it is, and what is answered (RFC 7296 2.7, 2.9).

use super::child_create::{Agreed, NONCE_LEN, install};
use super::follow_up::{self, Unfinished};
use super::{configuration, notify, padding, reauth, resource, transport};
use crate::config::{ChildConfig, Connection};
use crate::event::EventKind;
use crate::ike_sa::IkeSa;
use crate::ike_sa::child::{ChildPhase, ChildSa};
use crate::negotiate::{self, narrow, show};
use crate::outbox::Context;
use crate::proposal::{self, Proposal, TransformKind};
use crypto::DhGroup;
use ike_wire::{DhTransform, KeyExchange, Notify, NotifyType, Payload, PayloadList, ProtocolId};
use model::{EspSpi, OutboundUse, SaMode, SecretBytes, TrafficSelector};

/// Child SAs of one IKE SA; a peer that asks for more is refused.
const CHILDREN_MAX: usize = 256;

/// Why a request for a Child SA is refused.
pub(crate) struct Refusal {
    pub notify: Notify,
    pub event: EventKind,
    pub text: String,
}

impl Refusal {
    /// Reports it, unless it is no fault of anybody: a guess at the key exchange group is corrected by the answer.
    pub fn report(self, sa: &IkeSa, ctx: &mut Context<'_>) -> Payload {
        if !ctx.exchanges.is_wanting() && self.notify.kind != NotifyType::INVALID_KE_PAYLOAD {
            ctx.event(sa, self.event, self.text);
        }
        Payload::Notify(self.notify)
    }
}

/// The peer's request for a new Child SA.
pub(crate) fn respond(sa: &mut IkeSa, ctx: &mut Context<'_>, payloads: &PayloadList) -> Vec<Payload> {
    match answer(sa, ctx, payloads, None, None) {
        Ok((_, agreed)) if agreed.suite.has_additional() && follow_up::is_awaited(sa) => {
            ctx.around.release_esp_spi(agreed.spi_in);
            temporary_failure()
        }
        Ok((mut answer, agreed)) if agreed.suite.has_additional() => {
            let unfinished = Unfinished::Child(Box::new(agreed));
            answer.push(follow_up::promise(sa, ctx, unfinished));
            answer
        }
        Ok((answer, agreed)) => {
            install_new(sa, ctx, agreed);
            answer
        }
        Err(refusal) => vec![refusal.report(sa, ctx)],
    }
}

/// A Child SA that the peer has asked for. Where the peer is authenticating anew, one of the old IKE SA is its like: that goes on to
/// carry our packets until it ends, since the peer does not have the new one before our answer.
pub(crate) fn install_new(sa: &mut IkeSa, ctx: &mut Context<'_>, mut agreed: Agreed) {
    match reauth::replaced_child(sa, ctx.table, &agreed) {
        Some(replaces) => {
            agreed.outbound = OutboundUse::Later;
            install(sa, ctx, agreed, ChildPhase::AwaitsSwitch { replaces });
            reauth::start_switch(sa, ctx);
        }
        None => {
            install(sa, ctx, agreed, ChildPhase::Installed);
        }
    }
}

/// Chooses a child of the configuration, algorithms and selectors; gives the answer and what was agreed on. In IKE_AUTH
/// the nonces are those of IKE_SA_INIT and there is no key exchange of its own.
pub(crate) fn answer(
    sa: &IkeSa,
    ctx: &mut Context<'_>,
    payloads: &PayloadList,
    auth_nonces: Option<(&[u8], &[u8])>,
    rekeyed: Option<&ChildSa>,
) -> Result<(Vec<Payload>, Agreed), Refusal> {
    let malformed = |what: &str| Refusal {
        notify: Notify::status(NotifyType::INVALID_SYNTAX),
        event: EventKind::PeerMisbehaved,
        text: format!("request for a Child SA without {what}"),
    };
    if sa.children.len() >= CHILDREN_MAX {
        return Err(Refusal {
            notify: Notify::status(NotifyType::NO_ADDITIONAL_SAS),
            event: EventKind::PeerMisbehaved,
            text: format!("the peer asks for more than {CHILDREN_MAX} Child SAs"),
        });
    }
    let offered = payloads.sa().ok_or_else(|| malformed("SA payload"))?;
    let ts_i = payloads.ts_i().ok_or_else(|| malformed("TSi"))?;
    let ts_r = payloads.ts_r().ok_or_else(|| malformed("TSr"))?;
    let nonce_i = match auth_nonces {
        Some((nonce_i, _)) => nonce_i.to_vec(),
        None => payloads.nonce().ok_or_else(|| malformed("nonce"))?.to_vec(),
    };
    let connection = sa.connection(ctx.config).ok_or_else(|| Refusal {
        notify: Notify::status(NotifyType::NO_ADDITIONAL_SAS),
        event: EventKind::ChildFailed,
        text: "the connection is no longer in the configuration".to_owned(),
    })?;
    let mut theirs = negotiate::read(offered, ProtocolId::ESP);
    let all = theirs.len();
    theirs.retain(|their| their.proposal.is_known_to_members(&*ctx.around));
    if theirs.is_empty() && all > 0 {
        return Err(Refusal {
            notify: Notify::status(NotifyType::NO_PROPOSAL_CHOSEN),
            event: EventKind::NoProposal,
            text: "a member of an earlier release could not read the record of a Child SA as the peer wants it; upgrade all members first"
                .to_owned(),
        });
    }
    let in_auth = auth_nonces.is_some();
    if in_auth {
        // RFC 7296 1.2: no key exchange for the first Child SA, whatever is offered.
        theirs
            .iter_mut()
            .for_each(|their| their.proposal = their.proposal.without_dh());
    }
    let choice = choose_child(
        sa,
        connection,
        &theirs,
        transport::wanted(payloads),
        &ts_i.selectors,
        &ts_r.selectors,
        in_auth,
        rekeyed,
        configuration::selectors(sa, connection).as_deref(),
    )?;
    // A rekey stays on its resource, whether the request says so or not (RFC 9611 3).
    let bound = match rekeyed {
        Some(old) => old.resource,
        None => resource::choose(sa, &*ctx.around, connection, &choice.name, payloads)?,
    };
    if let (Some(_), None, Some(first)) = (bound, rekeyed, resource::first(sa, &choice.name)) {
        as_the_first(&choice, first)?;
    }
    let (shared, public) = key_exchange(ctx, &choice.suite, payloads)?;
    let no_spi = || Refusal {
        notify: Notify::status(match bound {
            Some(_) => NotifyType::TS_MAX_QUEUE,
            None => NotifyType::NO_ADDITIONAL_SAS,
        }),
        event: EventKind::Trouble,
        text: format!(
            "child {}: no free ESP SPI in this segment; delete unused Child SAs",
            choice.name
        ),
    };
    let spi_in = match bound {
        Some(resource) => ctx.around.resource_esp_spi(sa.spi, resource),
        None => ctx.around.esp_spi(sa.spi),
    };
    let spi_in = spi_in.ok_or_else(no_spi)?;
    let nonce_r = match auth_nonces {
        Some((_, nonce_r)) => nonce_r.to_vec(),
        None => ctx.random(NONCE_LEN),
    };
    let accepted = negotiate::accept(
        &choice.suite,
        choice.number,
        ProtocolId::ESP,
        &spi_in.0.to_be_bytes(),
    );
    let mut answer = vec![Payload::SecurityAssociation(accepted)];
    if !in_auth {
        answer.push(Payload::Nonce(nonce_r.clone()));
    }
    answer.extend(public.map(Payload::KeyExchange));
    answer.push(Payload::TsInitiator(choice.ts_remote.clone().into()));
    answer.push(Payload::TsResponder(choice.ts_local.clone().into()));
    if choice.mode == SaMode::Transport {
        answer.push(notify(NotifyType::USE_TRANSPORT_MODE));
    }
    answer.extend(padding::refusal(Some(connection), &choice.name, choice.mode));
    let multiple = resource::is_offered(payloads) && resource::is_wanted(connection);
    if multiple {
        answer.push(resource::info(sa, ctx, bound));
    }
    let agreed = Agreed {
        name: choice.name,
        spi_in,
        spi_out: choice.spi_out,
        suite: choice.suite,
        ts_local: choice.ts_local,
        ts_remote: choice.ts_remote,
        nonce_i,
        nonce_r,
        g_ir: shared,
        additional: Vec::new(),
        initiated: false,
        replaces: rekeyed.map(|old| old.spi_in),
        outbound: if rekeyed.is_some() {
            OutboundUse::Later
        } else {
            OutboundUse::Now
        },
        resource: bound,
        multiple: bound.is_none() && (multiple || rekeyed.is_some_and(|old| old.multiple)),
        mode: choice.mode,
    };
    Ok((answer, agreed))
}

//= rfc9611#3
// These resource-specific Child SAs MUST be negotiated with identical Child SA properties that were negotiated for the initial
// Child SA.
fn as_the_first(choice: &Choice, first: &ChildSa) -> Result<(), Refusal> {
    let (kind, what) = if (&choice.ts_local, &choice.ts_remote) != (&first.ts_local, &first.ts_remote) {
        (NotifyType::TS_UNACCEPTABLE, "selectors")
    } else if choice.suite.without_dh() != first.suite.without_dh() {
        (NotifyType::NO_PROPOSAL_CHOSEN, "algorithms")
    } else {
        return Ok(());
    };
    Err(Refusal {
        notify: Notify::status(kind),
        event: EventKind::ChildFailed,
        text: format!(
            "child {}: the peer asks for a further Child SA with other {what}",
            choice.name
        ),
    })
}

struct Choice {
    name: String,
    number: u8,
    spi_out: EspSpi,
    suite: Proposal,
    ts_local: Vec<TrafficSelector>,
    ts_remote: Vec<TrafficSelector>,
    mode: SaMode,
}

/// The first child whose selectors overlap and whose proposals fit; one of the mode that is asked for goes first, then one that
/// fits without narrowing.
#[expect(
    clippy::too_many_arguments,
    reason = "each is a part of the request, or of what is known of the peer"
)]
fn choose_child(
    sa: &IkeSa,
    connection: &Connection,
    theirs: &[negotiate::TheirProposal],
    wanted: SaMode,
    ts_i: &[TrafficSelector],
    ts_r: &[TrafficSelector],
    in_auth: bool,
    rekeyed: Option<&ChildSa>,
    virtual_ts: Option<&[TrafficSelector]>,
) -> Result<Choice, Refusal> {
    let their_proposals: Vec<Proposal> = theirs.iter().map(|their| their.proposal.clone()).collect();
    let seen = transport::as_seen(sa.path, ts_r, ts_i);
    let mut overlapping = Vec::new();
    let mut declined = false;
    for child in &connection.children {
        if rekeyed.is_some_and(|old| old.name != child.name) {
            continue;
        }
        if !transport::suits(child, wanted) {
            declined = true;
            continue;
        }
        let (local, remote) = transport::selectors(sa, child);
        let (ts_r, ts_i) = match child.mode {
            SaMode::Transport => (seen.0.as_slice(), seen.1.as_slice()),
            SaMode::Tunnel => (ts_r, ts_i),
        };
        let ts_local = narrow(&local, ts_r);
        let mut ts_remote = narrow(&remote, ts_i);
        if let Some(virtual_ts) = virtual_ts {
            ts_remote = narrow(&ts_remote, virtual_ts);
        }
        if !ts_local.is_empty() && !ts_remote.is_empty() {
            let exact = ts_local == local && ts_remote == remote;
            let rank = (child.mode != wanted, !exact);
            overlapping.push((rank, child, ts_local, ts_remote));
        }
    }
    overlapping.sort_by_key(|(rank, ..)| *rank);
    if overlapping.is_empty() {
        let configured =
            |child: &ChildConfig| format!("{} === {}", show(&child.local_ts), show(&child.remote_ts));
        let ours: Vec<_> = connection.children.iter().map(configured).collect();
        return Err(Refusal {
            notify: Notify::status(NotifyType::TS_UNACCEPTABLE),
            event: EventKind::ChildFailed,
            text: format!(
                "no child has these selectors: the peer asks for {} === {}, configured: {}{}{}",
                show(ts_r),
                show(ts_i),
                ours.join(", "),
                if declined {
                    "; the peer asks for tunnel mode, and a child in transport mode is left out: give both sides one mode"
                } else {
                    ""
                },
                transport::explain(sa, wanted)
            ),
        });
    }
    let mut ours_shown = Vec::new();
    for (_, child, ts_local, ts_remote) in overlapping {
        let ours: Vec<Proposal> = if in_auth {
            child.esp_proposals.iter().map(Proposal::without_dh).collect()
        } else {
            child.esp_proposals.clone()
        };
        let chosen = proposal::choose(&ours, &their_proposals)
            .and_then(|(index, suite)| theirs.get(index).map(|their| (their, suite)));
        if let Some((their, suite)) = chosen
            && let Ok(spi) = <[u8; 4]>::try_from(their.spi.as_slice())
            && u32::from_be_bytes(spi) >= 256
        {
            let spi_out = EspSpi(u32::from_be_bytes(spi));
            return Ok(Choice {
                name: child.name.clone(),
                number: their.number,
                spi_out,
                suite,
                ts_local,
                ts_remote,
                mode: child.mode,
            });
        }
        ours_shown.extend(ours);
    }
    Err(Refusal {
        notify: Notify::status(NotifyType::NO_PROPOSAL_CHOSEN),
        event: EventKind::NoProposal,
        text: format!(
            "no common ESP proposal: the peer offers {}, we have {}",
            proposal::list(&their_proposals),
            proposal::list(&ours_shown)
        ),
    })
}

type Exchanged = (Option<SecretBytes>, Option<KeyExchange>);

/// Our side of the key exchange, if one was chosen.
pub(crate) fn key_exchange(
    ctx: &mut Context<'_>,
    suite: &Proposal,
    payloads: &PayloadList,
) -> Result<Exchanged, Refusal> {
    let Some(chosen) = suite.first(TransformKind::Dh) else {
        return Ok((None, None));
    };
    let refuse = |notify, text: &str| Refusal {
        notify,
        event: EventKind::NoProposal,
        text: text.to_owned(),
    };
    let wrong_group = || {
        let text = format!("asked the peer to use key exchange group {chosen}");
        refuse(Notify::invalid_ke(DhTransform(chosen.id)), &text)
    };
    let bad = || {
        refuse(
            Notify::status(NotifyType::INVALID_SYNTAX),
            "the peer's public value is not valid",
        )
    };
    let group = DhGroup::from_transform_id(chosen.id).ok_or_else(wrong_group)?;
    let ke = payloads
        .ke()
        .filter(|ke| ke.group.0 == chosen.id)
        .ok_or_else(wrong_group)?;
    let Some(worked) = ctx.respond(group, &ke.data) else {
        // Nobody is told: the message waits, and comes here once more.
        return Err(refuse(Notify::status(NotifyType::TEMPORARY_FAILURE), "it waits"));
    };
    let worked = worked.map_err(|_| bad())?;
    let public = KeyExchange {
        group: DhTransform(chosen.id),
        data: worked.public,
    };
    Ok((Some(worked.secret), Some(public)))
}

/// The answer to a request that names a Child SA which we do not have.
pub(crate) fn not_found(spi: EspSpi) -> Vec<Payload> {
    vec![Payload::Notify(Notify::about_esp(
        NotifyType::CHILD_SA_NOT_FOUND,
        spi,
    ))]
}

/// Not now.
pub(crate) fn temporary_failure() -> Vec<Payload> {
    vec![notify(NotifyType::TEMPORARY_FAILURE)]
}
