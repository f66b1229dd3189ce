//! One operation per file: how its request is made, how the peer's is answered, how the response is used.

pub(crate) mod child_answer;
pub(crate) mod child_create;
pub(crate) mod child_rekey;
pub(crate) mod configuration;
pub(crate) mod counter_sync;
pub(crate) mod delete;
pub(crate) mod eap;
pub(crate) mod eap_tls;
pub(crate) mod follow_up;
pub(crate) mod ike_auth;
pub(crate) mod ike_auth_answer;
pub(crate) mod ike_init;
pub(crate) mod ike_init_answer;
pub(crate) mod ike_rekey;
pub(crate) mod informational;
pub(crate) mod intermediate;
pub(crate) mod liveness;
pub(crate) mod message_id_sync;
pub(crate) mod mobike;
pub(crate) mod mobike_initiator;
pub(crate) mod padding;
pub(crate) mod ppk;
pub(crate) mod proof;
pub(crate) mod qcd;
pub(crate) mod reauth;
pub(crate) mod rebinding;
pub(crate) mod redirect;
pub(crate) mod refresh;
pub(crate) mod resource;
pub(crate) mod resume;
pub(crate) mod ticket;
pub(crate) mod transport;
pub(crate) mod wanted;
pub(crate) mod window;

use crate::event::EventKind;
use crate::exchange::{self, Inner, Then};
use crate::ike_sa::IkeSa;
use crate::ike_sa::message::{send_request, send_response};
use crate::ike_sa::phase::Phase;
use crate::ike_sa::windows::Task;
use crate::outbox::Context;
use child_create::ChildOffer;
use crypto::DhWork;
use ike_rekey::IkeOffer;
use ike_wire::{Delete, ExchangeType, Notify, NotifyType, Payload, PayloadList, WireError};
use model::EspSpi;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::time::Duration;

/// What the outstanding request is about, and what is needed to use its response.
#[derive(Serialize, Deserialize)]
pub(crate) enum Pending {
    /// The phase holds the rest.
    Init,
    /// The phase holds the rest.
    Auth,
    CreateChild(Box<ChildOffer>),
    RekeyIke(Box<IkeOffer>),
    DeleteChild {
        spi_in: EspSpi,
    },
    DeleteIke,
    Liveness,
    Refresh,
    SyncCounters,
    MessageIdSync(message_id_sync::Asked),
    /// The phase holds the rest.
    Intermediate,
    FollowUp(Box<follow_up::Asked>),
    /// Whether the peer can be reached where it moved to (RFC 4555).
    Routability {
        cookie: Vec<u8>,
    },
    /// Where we are now (RFC 4555): our address and the peer's when it was sent first.
    UpdateAddresses {
        local: SocketAddr,
        remote: SocketAddr,
    },
    /// The peer is told to go elsewhere (RFC 5685).
    Redirect,
}

/// A peer that keeps putting us off is asked this often.
const TRIES_MAX: u8 = 8;

/// A finished IKE SA repeats its last response for this time: longer than peers repeat their requests.
pub(crate) const CLOSED_KEPT: Duration = Duration::from_secs(60);

/// A notification as a payload.
pub(crate) fn notify(kind: NotifyType) -> Payload {
    Payload::Notify(Notify::status(kind))
}

/// The inbound SPIs that unfinished exchanges have promised: of ours, and one of the peer's.
pub(crate) fn promised_spis(sa: &IkeSa) -> impl Iterator<Item = EspSpi> {
    promised_by_us(sa).chain(follow_up::promised(sa))
}

fn promised_by_us(sa: &IkeSa) -> impl Iterator<Item = EspSpi> {
    let asked = sa.our.pending().filter_map(|pending| match pending {
        Pending::CreateChild(offer) => Some(offer.spi_in),
        Pending::FollowUp(asked) => asked.unfinished.spi_in(),
        _ => None,
    });
    let first = match &sa.phase {
        Phase::AwaitAuthResponse(phase) => phase.child.as_ref().map(|offer| offer.spi_in),
        _ => None,
    };
    asked.chain(first)
}

/// Starts queued tasks as long as the window has room for them.
pub(crate) fn start_next(sa: &mut IkeSa, ctx: &mut Context<'_>) {
    if !matches!(sa.phase, Phase::Established(_)) {
        return;
    }
    while matches!(sa.phase, Phase::Established(_)) {
        let may_start = |task: &&Task| sa.may_start(task) && !resource::waits(sa, ctx.config, task);
        let Some(task) = sa.our.ready(ctx.now).filter(may_start) else {
            return;
        };
        if let Some(group) =
            wanted::by_task(sa, ctx.config, task).filter(|group| !ctx.exchanges.has_key(*group))
        {
            if !sa.awaits_key() {
                exchange::wait(sa, ctx, vec![DhWork::Generate(group)], Then::Start);
            }
            return;
        }
        let Some(queued) = sa.our.pop_ready(ctx.now) else {
            return;
        };
        let tries = queued.tries;
        match queued.task {
            Task::CreateChild { child } => child_create::start(sa, ctx, &child, tries),
            Task::RekeyChild { spi_in } => child_rekey::start(sa, ctx, spi_in, tries),
            Task::DeleteChild { spi_in } => delete::start_child(sa, ctx, spi_in),
            Task::RekeyIke => ike_rekey::start(sa, ctx, tries),
            Task::DeleteIke => delete::start_ike(sa, ctx),
            Task::Liveness => liveness::start(sa, ctx),
            Task::Routability => mobike::check(sa, ctx),
            Task::UpdateAddresses => mobike_initiator::start(sa, ctx),
            Task::Redirect { to } => redirect::start(sa, ctx, to),
            Task::Refresh => refresh::start(sa, ctx),
            Task::CreateResourceChild { child, resource } => {
                resource::start(sa, ctx, &child, resource, tries);
            }
            Task::SyncCounters { delta } => counter_sync::start(sa, ctx, delta),
        }
    }
}

/// The peer cannot do it now: try again later, a limited number of times.
pub(crate) fn put_off(sa: &mut IkeSa, ctx: &mut Context<'_>, task: Task, tries: u8, what: &str) {
    if tries >= TRIES_MAX {
        let text =
            format!("{what}: the peer put it off {TRIES_MAX} times, given up until the next rekey time");
        ctx.event(sa, EventKind::ChildFailed, text);
        return;
    }
    // A random part keeps two peers that collide from colliding again.
    let millis = 500 * (1 << tries.min(5)) + u64::from(ctx.random_u32() % 1000);
    sa.our
        .push_at(task, ctx.now + Duration::from_millis(millis), tries + 1);
}

/// Handles an authentic request with the expected Message ID. Where it comes to want a key exchange that is not there yet, nothing
/// has happened.
pub(crate) fn on_request(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    inner: &Inner,
    parsed: Result<PayloadList, WireError>,
) {
    let (exchange, message_id) = (inner.header.exchange, inner.header.message_id);
    let payloads = match parsed {
        Ok(payloads) => payloads,
        Err(error) => return refuse_malformed(sa, ctx, exchange, message_id, error),
    };
    let answer = match (&sa.phase, exchange) {
        (Phase::AwaitAuthRequest(_), ExchangeType::IKE_INTERMEDIATE) => {
            intermediate::respond(sa, ctx, &payloads, inner)
        }
        (Phase::AwaitAuthRequest(_), ExchangeType::IKE_AUTH) if intermediate::is_incomplete(sa) => {
            let text = "IKE_AUTH comes before the additional key exchanges that were agreed on";
            ctx.event(sa, EventKind::PeerMisbehaved, text);
            delete::close(sa, ctx, text);
            vec![notify(NotifyType::INVALID_SYNTAX)]
        }
        (Phase::AwaitAuthRequest(_), ExchangeType::IKE_AUTH) => {
            match ike_auth_answer::respond(sa, ctx, message_id, payloads) {
                Some(answer) => answer,
                // It comes with our signature.
                None => return,
            }
        }
        (Phase::AwaitEap(_), ExchangeType::IKE_AUTH) => match eap::respond(sa, ctx, message_id, &payloads) {
            Some(answer) => answer,
            None => return,
        },
        (Phase::Established(_), ExchangeType::CREATE_CHILD_SA) => respond_create(sa, ctx, &payloads),
        (Phase::Established(_), ExchangeType::IKE_FOLLOWUP_KE) => follow_up::respond(sa, ctx, &payloads),
        (Phase::Rekeyed(_) | Phase::Deleting(_), ExchangeType::IKE_FOLLOWUP_KE) => {
            vec![notify(NotifyType::STATE_NOT_FOUND)]
        }
        (Phase::Rekeyed(_) | Phase::Deleting(_), ExchangeType::CREATE_CHILD_SA) => {
            // RFC 7296 2.25.2.
            vec![notify(NotifyType::TEMPORARY_FAILURE)]
        }
        (Phase::Established(_), ExchangeType::INFORMATIONAL)
            if payloads.deletes().any(|delete| *delete == Delete::Ike)
                && reauth::switch_before_end(sa, ctx) =>
        {
            // What is on its way on the old Child SAs arrives before they end: the peer repeats its Delete.
            return;
        }
        (Phase::Established(_) | Phase::Rekeyed(_) | Phase::Deleting(_), ExchangeType::INFORMATIONAL) => {
            informational::respond(sa, ctx, &payloads)
        }
        (Phase::Established(_) | Phase::Rekeyed(_) | Phase::Deleting(_), _) => {
            ctx.event(
                sa,
                EventKind::PeerMisbehaved,
                format!("{exchange} request does not belong here"),
            );
            vec![notify(NotifyType::INVALID_SYNTAX)]
        }
        _ => return,
    };
    if ctx.exchanges.is_wanting() {
        return;
    }
    send_response(sa, ctx, exchange, message_id, &answer);
}

/// CREATE_CHILD_SA has three uses (RFC 7296 1.3).
fn respond_create(sa: &mut IkeSa, ctx: &mut Context<'_>, payloads: &PayloadList) -> Vec<Payload> {
    // With a window of 1 the peer has given up the series of exchanges that it began before.
    if sa.receive_window() == 1 {
        follow_up::forget(sa, ctx);
    }
    let is_ike = payloads.sa().is_some_and(|sa| {
        sa.proposals
            .iter()
            .any(|p| p.protocol == ike_wire::ProtocolId::IKE)
    });
    if is_ike {
        return ike_rekey::respond(sa, ctx, payloads);
    }
    // RFC 7296 2.25.2: while our rekey of the IKE SA is under way, children have to wait.
    let waits = |pending: &Pending| match pending {
        Pending::RekeyIke(_) | Pending::DeleteIke => true,
        Pending::FollowUp(asked) => asked.task == Task::RekeyIke,
        _ => false,
    };
    if sa.our.pending().any(waits) {
        return vec![notify(NotifyType::TEMPORARY_FAILURE)];
    }
    match payloads.notify(NotifyType::REKEY_SA) {
        Some(rekey) => child_rekey::respond(sa, ctx, payloads, rekey),
        None => child_answer::respond(sa, ctx, payloads),
    }
}

/// The request is authentic but cannot be read (RFC 7296 2.21.3, 2.5).
fn refuse_malformed(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    exchange: ExchangeType,
    message_id: u32,
    error: WireError,
) {
    ctx.event(
        sa,
        EventKind::PeerMisbehaved,
        format!("{exchange} request cannot be read: {error}"),
    );
    send_response(sa, ctx, exchange, message_id, &[Payload::Notify(error.notify())]);
    let fatal = !matches!(error, WireError::UnsupportedCritical(_)) || sa.is_half_open();
    if fatal {
        delete::close(sa, ctx, "the peer sent a malformed message");
    }
}

/// Handles an authentic response to the request with this Message ID.
pub(crate) fn on_response(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    id: u32,
    parsed: Result<PayloadList, WireError>,
) {
    // RFC 6311 5.1: an answer to another synchronisation is dropped, the right one may still come.
    if let Some(Pending::MessageIdSync(asked)) = sa.our.all().find(|o| o.id == id).map(|o| &o.pending)
        && !parsed
            .as_ref()
            .is_ok_and(|payloads| message_id_sync::read_response(asked, payloads).is_some())
    {
        return;
    }
    let Some(outstanding) = sa.our.take(id) else {
        return;
    };
    sa.dirty = true;
    if !matches!(outstanding.pending, Pending::UpdateAddresses { .. }) {
        mobike_initiator::answered(sa, ctx);
    }
    let payloads = match parsed {
        Ok(payloads) => payloads,
        Err(error) => {
            ctx.event(
                sa,
                EventKind::PeerMisbehaved,
                format!("response cannot be read: {error}"),
            );
            // Whatever was asked for has not happened on our side.
            PayloadList(vec![Payload::Notify(error.notify())])
        }
    };
    match outstanding.pending {
        // IKE_SA_INIT responses are not protected and come another way.
        Pending::Init => {}
        Pending::Auth => ike_auth::finish(sa, ctx, &payloads),
        Pending::Intermediate => intermediate::finish(sa, ctx, &payloads),
        Pending::CreateChild(offer) => child_create::finish(sa, ctx, *offer, &payloads),
        Pending::RekeyIke(offer) => ike_rekey::finish(sa, ctx, *offer, &payloads),
        Pending::FollowUp(asked) => follow_up::finish(sa, ctx, *asked, &payloads),
        Pending::DeleteChild { spi_in } => delete::finish_child(sa, ctx, spi_in),
        Pending::DeleteIke => delete::finish_ike(sa, ctx),
        Pending::Liveness => {}
        Pending::Redirect => redirect::finish(sa, ctx),
        Pending::Routability { cookie } => mobike::checked(sa, ctx, &cookie, &payloads),
        Pending::UpdateAddresses { local, remote } => {
            mobike_initiator::finish(sa, ctx, (local, remote), &payloads);
        }
        Pending::Refresh => refresh::finish(sa, ctx, &payloads),
        Pending::SyncCounters => {}
        Pending::MessageIdSync(asked) => message_id_sync::finish(sa, ctx, &asked, &payloads),
    }
    // RFC 7296 2.21.3: INVALID_SYNTAX in a response means that the peer has dropped the IKE SA.
    let dropped = payloads.notify(NotifyType::INVALID_SYNTAX).is_some();
    if dropped && !sa.gone && !matches!(sa.phase, Phase::Closed(_)) {
        ctx.event(
            sa,
            EventKind::PeerMisbehaved,
            "the peer could not read our request and drops the IKE SA",
        );
        delete::vanish(sa, ctx, "the peer answered INVALID_SYNTAX");
    }
}

/// The outstanding requests of an established IKE SA will never be answered, since Message IDs jump over them: what they were for is
/// begun again. A synchronisation request stands outside of the window and stays.
pub(crate) fn abandon_outstanding(sa: &mut IkeSa, ctx: &mut Context<'_>) {
    let stays = |pending: &Pending| matches!(pending, Pending::MessageIdSync(_) | Pending::DeleteIke);
    // Such a request is alone.
    if sa.our.pending().any(stays) {
        return;
    }
    for outstanding in sa.our.take_all() {
        sa.dirty = true;
        begin_anew(sa, ctx, outstanding.pending);
    }
}

fn begin_anew(sa: &mut IkeSa, ctx: &mut Context<'_>, pending: Pending) {
    match pending {
        Pending::CreateChild(offer) => {
            ctx.around.release_esp_spi(offer.spi_in);
            // Where the peer's rekey crossed ours, the SA is being replaced already.
            if offer.crossing.is_none() {
                sa.our.push_front(offer.task());
            }
        }
        Pending::RekeyIke(_) => sa.our.push_front(Task::RekeyIke),
        Pending::FollowUp(asked) => {
            if let Some(spi_in) = asked.unfinished.spi_in() {
                ctx.around.release_esp_spi(spi_in);
            }
            sa.our.push_front(asked.task);
        }
        Pending::DeleteChild { spi_in } => sa.our.push_front(Task::DeleteChild { spi_in }),
        Pending::Liveness => sa.our.push(Task::Liveness),
        Pending::Routability { .. } => sa.our.push(Task::Routability),
        Pending::UpdateAddresses { .. } => sa.our.push_front(Task::UpdateAddresses),
        Pending::Refresh => sa.our.push(Task::Refresh),
        // The peer's cluster has just failed over itself; evidence will come again if it is still needed.
        Pending::SyncCounters => {}
        // Whether it heard it will show.
        Pending::Redirect => redirect::finish(sa, ctx),
        Pending::Init
        | Pending::Auth
        | Pending::Intermediate
        | Pending::DeleteIke
        | Pending::MessageIdSync(_) => {}
    }
}

/// Sends a request in the exchange of Child SAs.
pub(crate) fn send_create(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    payloads: &[Payload],
    pending: Pending,
) -> bool {
    send_request(sa, ctx, ExchangeType::CREATE_CHILD_SA, payloads, pending)
}
