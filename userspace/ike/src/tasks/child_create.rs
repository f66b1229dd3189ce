//! A new Child SA, in CREATE_CHILD_SA or as part of IKE_AUTH (RFC 7296 1.3.1, 2.9, 2.17).

use super::{
    Pending, child_rekey, follow_up, notify, padding, put_off, reauth, resource, send_create, transport,
};
use crate::config::{ChildConfig, Resource};
use crate::event::EventKind;
use crate::ike_sa::child::{ChildPhase, ChildSa};
use crate::ike_sa::windows::Task;
use crate::ike_sa::{IkeSa, Path, jittered};
use crate::negotiate::{self, show};
use crate::outbox::Context;
use crate::proposal::{self, Proposal, TransformKind};
use crypto::{DhGroup, child_keymat};
use ike_wire::{DhTransform, KeyExchange, Notify, NotifyType, Payload, PayloadList, ProtocolId};
use model::{
    ChildSaChange, ChildSaRecord, EspSpi, OutboundUse, SaForm, SaMode, SecretBytes, TrafficSelector,
};
use serde::{Deserialize, Serialize};

/// Octets of our nonces: at least half of the key of the largest PRF (RFC 7296 2.10).
pub(crate) const NONCE_LEN: usize = 32;

/// What we asked for and must remember until the response.
#[derive(Serialize, Deserialize)]
pub(crate) struct ChildOffer {
    pub name: String,
    pub spi_in: EspSpi,
    pub nonce: Vec<u8>,
    /// Group and private key, with perfect forward secrecy.
    pub dh: Option<(u16, SecretBytes)>,
    pub proposals: Vec<Proposal>,
    pub ts_local: Vec<TrafficSelector>,
    pub ts_remote: Vec<TrafficSelector>,
    /// The SA that it replaces.
    pub rekeys: Option<EspSpi>,
    /// The peer's rekey of the same SA crossed ours: its new SA, and the lower of that exchange's nonces.
    pub crossing: Option<(EspSpi, Vec<u8>)>,
    pub tries: u8,
    /// What it will be bound to. In the record's second part, as is the next.
    #[serde(skip)]
    pub resource: Option<Resource>,
    /// In a rekey: whether there are Child SAs per resource beside the old one.
    #[serde(skip)]
    pub multiple: bool,
    /// Our public value, until it is sent.
    #[serde(skip)]
    public: Vec<u8>,
    /// In the record's third part.
    #[serde(skip)]
    pub mode: SaMode,
}

impl ChildOffer {
    /// What it was made for.
    pub fn task(&self) -> Task {
        let child = self.name.clone();
        match (self.rekeys, self.resource) {
            (Some(spi_in), _) => Task::RekeyChild { spi_in },
            (None, Some(resource)) => Task::CreateResourceChild { child, resource },
            (None, None) => Task::CreateChild { child },
        }
    }
}

/// A Child SA that has been agreed on.
#[derive(Serialize, Deserialize)]
pub(crate) struct Agreed {
    pub name: String,
    pub spi_in: EspSpi,
    pub spi_out: EspSpi,
    pub suite: Proposal,
    pub ts_local: Vec<TrafficSelector>,
    pub ts_remote: Vec<TrafficSelector>,
    pub nonce_i: Vec<u8>,
    pub nonce_r: Vec<u8>,
    pub g_ir: Option<SecretBytes>,
    /// Secrets of additional key exchanges.
    pub additional: Vec<SecretBytes>,
    /// Whether we initiated the exchange.
    pub initiated: bool,
    pub replaces: Option<EspSpi>,
    pub outbound: OutboundUse,
    pub resource: Option<Resource>,
    pub multiple: bool,
    /// In the record's third part.
    #[serde(skip)]
    pub mode: SaMode,
}

/// Makes an offer for a child of the configuration. `group`: the one that the peer asked for.
pub(crate) fn offer(
    sa: &IkeSa,
    ctx: &mut Context<'_>,
    child: &ChildConfig,
    mut proposals: Vec<Proposal>,
    nonce: Vec<u8>,
    group: Option<u16>,
    resource: Option<Resource>,
) -> Option<ChildOffer> {
    proposals.retain(|proposal| proposal.is_known_to_members(&*ctx.around));
    if proposals.is_empty() {
        let text = format!(
            "child {}: a member of an earlier release could not read the record of its Child SA; upgrade all members first",
            child.name
        );
        ctx.event(sa, EventKind::ChildFailed, text);
        return None;
    }
    let (ts_local, ts_remote) = transport::selectors(sa, child);
    if ts_local.is_empty() || ts_remote.is_empty() {
        let text = format!(
            "child {}: transport mode is between {} and {}, which its selectors do not hold{}",
            child.name,
            sa.path.local.ip(),
            sa.path.remote.ip(),
            transport::explain(sa, child.mode)
        );
        ctx.event(sa, EventKind::ChildFailed, text);
        return None;
    }
    let wanted = group.or_else(|| {
        proposals
            .first()
            .and_then(|p| p.first(TransformKind::Dh))
            .map(|t| t.id)
    });
    let mut public = Vec::new();
    let dh = match wanted {
        None => None,
        Some(id) => {
            let made = ctx.generate(DhGroup::from_transform_id(id)?).ok()?;
            public = made.public;
            Some((id, made.secret))
        }
    };
    let spi_in = match resource {
        Some(resource) => ctx.around.resource_esp_spi(sa.spi, resource),
        None => ctx.around.esp_spi(sa.spi),
    };
    let Some(spi_in) = spi_in else {
        let text = format!(
            "child {}: no free ESP SPI in this segment; delete unused Child SAs",
            child.name
        );
        ctx.event(sa, EventKind::Trouble, text);
        return None;
    };
    Some(ChildOffer {
        name: child.name.clone(),
        spi_in,
        nonce,
        dh,
        proposals,
        ts_local,
        ts_remote,
        rekeys: None,
        crossing: None,
        tries: 0,
        resource,
        multiple: false,
        public,
        mode: child.mode,
    })
}

/// SA, TSi and TSr of an offer.
pub(crate) fn offer_payloads(offer: &ChildOffer) -> (Payload, [Payload; 2]) {
    let spi = offer.spi_in.0.to_be_bytes();
    (
        Payload::SecurityAssociation(negotiate::offer(&offer.proposals, ProtocolId::ESP, &spi)),
        [
            Payload::TsInitiator(offer.ts_local.clone().into()),
            Payload::TsResponder(offer.ts_remote.clone().into()),
        ],
    )
}

/// Sends an offer in CREATE_CHILD_SA.
pub(crate) fn send_offer(sa: &mut IkeSa, ctx: &mut Context<'_>, mut offer: ChildOffer) {
    let (proposals, selectors) = offer_payloads(&offer);
    let mut payloads = Vec::new();
    if let Some(old) = offer.rekeys {
        payloads.push(Payload::Notify(Notify::about_esp(NotifyType::REKEY_SA, old)));
    }
    payloads.push(proposals);
    payloads.push(Payload::Nonce(offer.nonce.clone()));
    if let Some((group, _)) = &offer.dh {
        payloads.push(Payload::KeyExchange(KeyExchange {
            group: DhTransform(*group),
            data: std::mem::take(&mut offer.public),
        }));
    }
    payloads.extend(selectors);
    if offer.mode == SaMode::Transport {
        payloads.push(notify(NotifyType::USE_TRANSPORT_MODE));
    }
    payloads.extend(padding::refusal(
        sa.connection(ctx.config),
        &offer.name,
        offer.mode,
    ));
    if sa.connection(ctx.config).is_some_and(resource::is_wanted) {
        payloads.push(resource::info(sa, ctx, offer.resource));
    }
    let spi_in = offer.spi_in;
    if !send_create(sa, ctx, &payloads, Pending::CreateChild(Box::new(offer))) {
        ctx.around.release_esp_spi(spi_in);
    }
}

/// Asks for a further child of the connection.
pub(crate) fn start(sa: &mut IkeSa, ctx: &mut Context<'_>, name: &str, tries: u8) {
    let Some(child) = sa
        .connection(ctx.config)
        .and_then(|connection| connection.child(name))
        .cloned()
    else {
        ctx.event(
            sa,
            EventKind::CommandFailed,
            format!("no child {name} in the configuration"),
        );
        return;
    };
    if sa
        .children
        .iter()
        .any(|up| up.name == name && up.resource.is_none() && up.phase == ChildPhase::Installed)
    {
        return;
    }
    let nonce = ctx.random(NONCE_LEN);
    if let Some(mut offer) = offer(sa, ctx, &child, child.esp_proposals.clone(), nonce, None, None) {
        offer.tries = tries;
        send_offer(sa, ctx, offer);
    }
}

/// The response to our offer.
pub(crate) fn finish(sa: &mut IkeSa, ctx: &mut Context<'_>, offer: ChildOffer, payloads: &PayloadList) {
    if let Some(error) = payloads.error() {
        ctx.around.release_esp_spi(offer.spi_in);
        return refused(sa, ctx, offer, error);
    }
    let nonce_r = payloads.nonce().map(<[u8]>::to_vec);
    let agreed = match nonce_r {
        Some(nonce_r) => read_response(ctx, sa.path, &offer, payloads, offer.nonce.clone(), nonce_r),
        None => Err("no nonce"),
    };
    match agreed {
        Ok(agreed) if agreed.suite.has_additional() => {
            if child_rekey::yield_to_crossing(sa, ctx, &offer, &agreed) {
                return;
            }
            follow_up::start_child(sa, ctx, offer, agreed, payloads);
        }
        Ok(agreed) => self::agreed(sa, ctx, offer, agreed),
        Err(why) => {
            // The peer has installed something that we cannot use: have it deleted again (RFC 7296 2.21.3).
            let text = format!(
                "child {}: response has {why}{}",
                offer.name,
                transport::explain(sa, offer.mode)
            );
            ctx.event(sa, fault(why), text);
            abandon(sa, ctx, &offer, payloads);
        }
    }
}

/// Tunnel mode where transport mode was asked for: the peer may say so, and the initiator MUST delete the SA then (RFC 7296 1.3.1).
const DECLINED: &str = "tunnel mode where we asked for transport mode";

/// Whose fault a bad response is.
pub(crate) fn fault(why: &str) -> EventKind {
    if why == DECLINED {
        EventKind::ChildFailed
    } else {
        EventKind::PeerMisbehaved
    }
}

/// All key exchanges are over.
pub(crate) fn agreed(sa: &mut IkeSa, ctx: &mut Context<'_>, offer: ChildOffer, agreed: Agreed) {
    if offer.rekeys.is_some() {
        child_rekey::finish(sa, ctx, offer, agreed);
    } else if resource::has_lost_first(sa, &offer) {
        let text = format!(
            "child {}: the one that all may use went while a further one was made; this one goes, too",
            offer.name
        );
        ctx.event(sa, EventKind::ChildFailed, text);
        withdraw(sa, ctx, &offer);
    } else {
        install(sa, ctx, agreed, ChildPhase::Installed);
    }
}

/// Asks the peer to delete what it made out of an offer that failed on our side.
fn abandon(sa: &mut IkeSa, ctx: &mut Context<'_>, offer: &ChildOffer, payloads: &PayloadList) {
    if payloads.sa().is_some() {
        return withdraw(sa, ctx, offer);
    }
    ctx.around.release_esp_spi(offer.spi_in);
}

/// Asks the peer to delete what it has installed, and we have not.
fn withdraw(sa: &mut IkeSa, ctx: &mut Context<'_>, offer: &ChildOffer) {
    // Where the peer's window is full the SA stays on its side until its own time is over.
    if sa.our.has_room(sa.send_window()) {
        let delete = [Payload::Delete(ike_wire::Delete::Esp(vec![offer.spi_in]))];
        let pending = Pending::DeleteChild { spi_in: offer.spi_in };
        let exchange = ike_wire::ExchangeType::INFORMATIONAL;
        crate::ike_sa::message::send_request(sa, ctx, exchange, &delete, pending);
    }
    ctx.around.release_esp_spi(offer.spi_in);
}

fn refused(sa: &mut IkeSa, ctx: &mut Context<'_>, offer: ChildOffer, error: &Notify) {
    let task = offer.task();
    match error.kind {
        NotifyType::INVALID_KE_PAYLOAD => retry_with_group(sa, ctx, offer, error),
        NotifyType::TEMPORARY_FAILURE => {
            // Where the peer's own rekey crossed ours, the SA is being replaced already.
            if offer.crossing.is_none() {
                put_off(sa, ctx, task, offer.tries, &format!("child {}", offer.name));
            }
        }
        NotifyType::CHILD_SA_NOT_FOUND => child_rekey::peer_lost_it(sa, ctx, &offer),
        kind => {
            let text = format!(
                "child {}: the peer refused with {kind}{}",
                offer.name,
                explain(kind, &offer.proposals, &offer.ts_local, &offer.ts_remote)
            );
            let event = if kind == NotifyType::NO_PROPOSAL_CHOSEN {
                EventKind::NoProposal
            } else {
                EventKind::ChildFailed
            };
            ctx.event(sa, event, text);
        }
    }
}

/// What an operator should compare.
pub(crate) fn explain(
    kind: NotifyType,
    proposals: &[Proposal],
    ts_local: &[TrafficSelector],
    ts_remote: &[TrafficSelector],
) -> String {
    match kind {
        NotifyType::NO_PROPOSAL_CHOSEN => {
            format!(
                ": we offered {}; compare with the peer's proposals",
                proposal::list(proposals)
            )
        }
        NotifyType::TS_MAX_QUEUE => ": it wants no more Child SAs with these selectors".to_owned(),
        NotifyType::TS_UNACCEPTABLE => format!(
            ": we asked for {} === {}; compare with the peer's selectors",
            show(ts_local),
            show(ts_remote)
        ),
        _ => String::new(),
    }
}

fn retry_with_group(sa: &mut IkeSa, ctx: &mut Context<'_>, offer: ChildOffer, error: &Notify) {
    let wanted = error.as_invalid_ke().map(|group| group.0);
    let offered = |id: u16| {
        offer
            .proposals
            .iter()
            .any(|p| p.of(TransformKind::Dh).any(|t| t.id == id))
    };
    let usable = wanted.filter(|id| offered(*id) && offer.dh.as_ref().is_none_or(|(group, _)| group != id));
    let child = sa
        .connection(ctx.config)
        .and_then(|connection| connection.child(&offer.name))
        .cloned();
    let (Some(group), Some(child), true) = (usable, child, offer.tries == 0) else {
        let text = format!(
            "child {}: the peer wants key exchange group {wanted:?}, which we do not offer",
            offer.name
        );
        ctx.event(sa, EventKind::NoProposal, text);
        return;
    };
    if !sa.our.has_room(sa.send_window()) {
        // Once more from the beginning: the guess was wrong, so nothing is lost but a little time.
        let soon = ctx.now + std::time::Duration::from_secs(1);
        return sa.our.push_at(offer.task(), soon, 0);
    }
    let nonce = ctx.random(NONCE_LEN);
    let again = self::offer(
        sa,
        ctx,
        &child,
        offer.proposals.clone(),
        nonce,
        Some(group),
        offer.resource,
    );
    if let Some(mut again) = again {
        again.rekeys = offer.rekeys;
        again.multiple = offer.multiple;
        again.mode = offer.mode;
        again.ts_local = offer.ts_local;
        again.ts_remote = offer.ts_remote;
        again.tries = 1;
        send_offer(sa, ctx, again);
    }
}

/// Checks the peer's answer against our offer.
pub(crate) fn read_response(
    ctx: &mut Context<'_>,
    path: Path,
    offer: &ChildOffer,
    payloads: &PayloadList,
    nonce_i: Vec<u8>,
    nonce_r: Vec<u8>,
) -> Result<Agreed, &'static str> {
    let answer = payloads.sa().ok_or("no SA payload")?;
    let theirs = negotiate::read(answer, ProtocolId::ESP);
    let [their] = theirs.as_slice() else {
        return Err("not exactly one proposal");
    };
    let spi: [u8; 4] = their
        .spi
        .as_slice()
        .try_into()
        .map_err(|_| "an SPI of the wrong length")?;
    let spi_out = EspSpi(u32::from_be_bytes(spi));
    // RFC 4303 2.1: 0 to 255 are reserved.
    if spi_out.0 < 256 {
        return Err("a reserved SPI");
    }
    let (_, suite) = proposal::choose(&offer.proposals, std::slice::from_ref(&their.proposal))
        .ok_or("algorithms that we did not offer")?;
    let chosen_group = suite.first(TransformKind::Dh).map(|t| t.id);
    let g_ir = match (chosen_group, &offer.dh, payloads.ke()) {
        (None, _, _) => None,
        (Some(group), Some((ours, secret)), Some(ke)) if group == *ours && ke.group.0 == group => {
            let group = DhGroup::from_transform_id(group);
            let shared = group.and_then(|group| ctx.agree(group, secret, &ke.data).ok());
            Some(shared.ok_or("a bad public value")?)
        }
        _ => return Err("a key exchange that does not fit"),
    };
    match (offer.mode, transport::wanted(payloads)) {
        (SaMode::Transport, SaMode::Tunnel) => return Err(DECLINED),
        (SaMode::Tunnel, SaMode::Transport) => return Err("transport mode, which we did not ask for"),
        _ => {}
    }
    let selectors = |ts: Option<&ike_wire::TrafficSelectors>| ts.map(|ts| ts.selectors.clone());
    let ts_local = selectors(payloads.ts_i()).ok_or("no TSi")?;
    let ts_remote = selectors(payloads.ts_r()).ok_or("no TSr")?;
    let (ts_local, ts_remote) = match offer.mode {
        SaMode::Transport => transport::as_seen(path, &ts_local, &ts_remote),
        SaMode::Tunnel => (ts_local, ts_remote),
    };
    let fits = !ts_local.is_empty()
        && !ts_remote.is_empty()
        && negotiate::is_within(&ts_local, &offer.ts_local)
        && negotiate::is_within(&ts_remote, &offer.ts_remote);
    if !fits {
        return Err("selectors beyond what we offered");
    }
    Ok(Agreed {
        name: offer.name.clone(),
        spi_in: offer.spi_in,
        spi_out,
        suite,
        ts_local,
        ts_remote,
        nonce_i,
        nonce_r,
        g_ir,
        additional: Vec::new(),
        initiated: true,
        replaces: offer.rekeys,
        outbound: OutboundUse::Now,
        resource: offer.resource,
        multiple: offer.multiple || (offer.resource.is_none() && resource::is_offered(payloads)),
        mode: offer.mode,
    })
}

/// Derives the keys, puts the SA into the list and the change into the commit.
pub(crate) fn install(sa: &mut IkeSa, ctx: &mut Context<'_>, agreed: Agreed, phase: ChildPhase) -> bool {
    let keys = match (sa.phase.protected(), negotiate::esp_suite(&agreed.suite)) {
        (Some(protected), Some((suite, esn))) => child_keymat(
            protected.keys.prf,
            &protected.keys.sk_d,
            agreed.g_ir.as_ref(),
            &agreed.nonce_i,
            &agreed.nonce_r,
            &agreed.additional,
            suite,
        )
        .ok()
        .map(|keys| (keys, suite, esn)),
        _ => None,
    };
    let Some((keys, suite, esn)) = keys else {
        ctx.around.release_esp_spi(agreed.spi_in);
        ctx.event(
            sa,
            EventKind::Trouble,
            format!("child {}: no keys for {}", agreed.name, agreed.suite),
        );
        return false;
    };
    let (key_out, key_in) = if agreed.initiated {
        (keys.initiator, keys.responder)
    } else {
        (keys.responder, keys.initiator)
    };
    let record = ChildSaRecord {
        connection: sa.connection.clone().unwrap_or_default(),
        child: agreed.name.clone(),
        ike_spi: sa.spi,
        spi_in: agreed.spi_in,
        spi_out: agreed.spi_out,
        suite,
        key_in,
        key_out,
        form: SaForm {
            esn,
            mode: agreed.mode,
        },
        udp_encap: sa.path.encap,
        local: sa.path.local,
        remote: sa.path.remote,
        ts_local: agreed.ts_local.clone(),
        ts_remote: agreed.ts_remote.clone(),
        limits: ctx.around.initial_limits(),
    };
    ctx.out.child_changes.push(ChildSaChange::Install {
        record: Box::new(record),
        // Policies go on to use the Child SA that every CPU may use; who serves a resource uses its own beside it.
        outbound: match agreed.resource {
            Some(_) => OutboundUse::Later,
            None => agreed.outbound,
        },
        replaces: agreed.replaces,
    });
    let spi_in = agreed.spi_in;
    match agreed.resource {
        Some(_) => ctx.out.child_changes.push(ChildSaChange::Bind {
            spi_in,
            now: agreed.outbound == OutboundUse::Now,
        }),
        None if agreed.multiple => ctx.out.child_changes.push(ChildSaChange::Share { spi_in }),
        None => {}
    }
    let text = format!(
        "child {} is up: SPI {} in, {} out, {}{}{}, {} === {}",
        agreed.name,
        agreed.spi_in,
        agreed.spi_out,
        agreed.suite,
        match agreed.mode {
            SaMode::Tunnel => "",
            SaMode::Transport => " in transport mode",
        },
        if sa.path.encap { " in UDP" } else { "" },
        show(&agreed.ts_local),
        show(&agreed.ts_remote)
    );
    let text = match agreed.resource {
        Some(resource) => format!("{text}, for {resource}"),
        None => text,
    };
    let kind = if agreed.replaces.is_some() {
        EventKind::ChildRekeyed
    } else {
        EventKind::ChildUp
    };
    ctx.named_child_event(sa, (&agreed.name, agreed.spi_in), kind, text);
    sa.dirty = true;
    let mut child = ChildSa {
        name: agreed.name,
        spi_in: agreed.spi_in,
        spi_out: agreed.spi_out,
        suite: agreed.suite,
        ts_local: agreed.ts_local,
        ts_remote: agreed.ts_remote,
        phase,
        resource: agreed.resource,
        multiple: agreed.multiple,
        mode: agreed.mode,
        rekey_at: None,
        since: ctx.now,
    };
    start_rekey_timer(sa, ctx, &mut child);
    // An older IKE SA waits for those that it has itself, not for others, again and again.
    let is_awaited = child.resource.is_none() && kind == EventKind::ChildUp;
    sa.children.push(child);
    if is_awaited {
        reauth::wake_elders(sa, ctx);
    }
    true
}

/// The Child SA will be replaced some time before its rekey time.
pub(crate) fn start_rekey_timer(sa: &IkeSa, ctx: &mut Context<'_>, child: &mut ChildSa) {
    let times = sa
        .connection(ctx.config)
        .map(|c| (c.child_rekey_time, c.rekey_jitter));
    child.rekey_at = match times {
        Some((Some(time), jitter)) => Some(ctx.now + jittered(time, jitter, ctx.random_u32())),
        _ => None,
    };
}
