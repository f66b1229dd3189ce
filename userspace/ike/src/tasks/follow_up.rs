//! IKE_FOLLOWUP_KE, both roles (RFC 9370 2.2.4): the additional key exchanges behind a CREATE_CHILD_SA. Its SA is made when the
//! last one is over.
//!
//! ```text
//! CREATE_CHILD_SA: SA, Ni, KEi --->   <--- SA, Nr, KEr, N(ADDITIONAL_KEY_EXCHANGE)(link 1)
//! IKE_FOLLOWUP_KE: KEi(1), link 1 --> <--- KEr(1), link 2
//! IKE_FOLLOWUP_KE: KEi(2), link 2 --> <--- KEr(2)
//! ```
//!
//! Where the rekeys of both sides cross, the one that is to have additional key exchanges is refused with TEMPORARY_FAILURE and
//! tried again after a random time, so that there is never more than one unfinished successor.

use super::child_create::{self, Agreed, ChildOffer};
use super::ike_rekey::{self, AgreedIke};
use super::{Pending, child_rekey, delete, notify, put_off};
use crate::event::EventKind;
use crate::ike_sa::IkeSa;
use crate::ike_sa::child::ChildPhase;
use crate::ike_sa::message::send_request;
use crate::ike_sa::windows::Task;
use crate::negotiate;
use crate::outbox::Context;
use crypto::DhGroup;
use ike_wire::{DhTransform, ExchangeType, KeyExchange, Notify, NotifyType, Payload, PayloadList};
use model::{EspSpi, SaMode, SecretBytes};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A responder waits this long for the next exchange: "5-20 seconds of waiting time should be appropriate in most cases".
pub(crate) const KEPT: Duration = Duration::from_secs(20);
/// Octets of a link.
const LINK_LEN: usize = 16;
/// After so many series in which the peer forgot about us, the IKE SA ends.
const FORGOTTEN_MAX: u8 = 3;

/// What is made once all key exchanges are over.
#[derive(Serialize, Deserialize)]
pub(crate) enum Unfinished {
    Child(Box<Agreed>),
    Ike(Box<AgreedIke>),
}

impl Unfinished {
    fn groups(&self) -> Vec<DhGroup> {
        let suite = match self {
            Self::Child(agreed) => &agreed.suite,
            Self::Ike(agreed) => &agreed.suite,
        };
        negotiate::additional(suite).unwrap_or_default()
    }

    /// Inbound SPI and mode of a Child SA.
    pub fn mode(&self) -> Option<(EspSpi, SaMode)> {
        match self {
            Self::Child(agreed) => Some((agreed.spi_in, agreed.mode)),
            Self::Ike(_) => None,
        }
    }

    pub fn set_mode(&mut self, mode: impl Fn(EspSpi) -> SaMode) {
        if let Self::Child(agreed) = self {
            agreed.mode = mode(agreed.spi_in);
        }
    }

    /// The inbound SPI that is promised to the peer.
    pub fn spi_in(&self) -> Option<EspSpi> {
        match self {
            Self::Child(agreed) => Some(agreed.spi_in),
            Self::Ike(_) => None,
        }
    }
}

/// Initiator: a request is out.
#[derive(Serialize, Deserialize)]
pub(crate) struct Asked {
    pub unfinished: Unfinished,
    /// What the Child SA was asked for with.
    offer: Option<Box<ChildOffer>>,
    pub task: Task,
    tries: u8,
    /// SK(1) and so on.
    secrets: Vec<SecretBytes>,
    /// Our private key in this exchange.
    dh: SecretBytes,
    link: Vec<u8>,
}

impl Asked {
    /// Method of the exchange under way, and of the next one.
    pub fn next_groups(&self) -> [Option<DhGroup>; 2] {
        let (groups, at) = (self.unfinished.groups(), self.secrets.len());
        [at, at + 1].map(|at| groups.get(at).copied())
    }

    /// Our private key in the exchange under way.
    pub fn private(&self) -> &SecretBytes {
        &self.dh
    }

    /// The Child SA that is being replaced.
    pub fn rekeys(&self) -> Option<EspSpi> {
        self.offer.as_ref().and_then(|offer| offer.rekeys)
    }
}

/// Responder: the next request is awaited.
#[derive(Serialize, Deserialize)]
pub(crate) struct Awaited {
    unfinished: Unfinished,
    secrets: Vec<SecretBytes>,
    link: Vec<u8>,
}

impl Awaited {
    /// Inbound SPI and mode of the Child SA that is to be made.
    pub fn mode(&self) -> Option<(EspSpi, SaMode)> {
        self.unfinished.mode()
    }

    pub fn set_mode(&mut self, mode: impl Fn(EspSpi) -> SaMode) {
        self.unfinished.set_mode(mode);
    }
}

fn linked(link: &[u8]) -> Payload {
    Payload::Notify(Notify::new(NotifyType::ADDITIONAL_KEY_EXCHANGE, link.to_vec()))
}

fn link_of(payloads: &PayloadList) -> Option<&[u8]> {
    let notify = payloads.notify(NotifyType::ADDITIONAL_KEY_EXCHANGE)?;
    Some(&notify.data)
}

/// Initiator: CREATE_CHILD_SA was answered, and additional key exchanges were agreed on.
pub(crate) fn start_child(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    offer: ChildOffer,
    agreed: Agreed,
    payloads: &PayloadList,
) {
    let asked = Asked {
        unfinished: Unfinished::Child(Box::new(agreed)),
        task: offer.task(),
        tries: offer.tries,
        offer: Some(Box::new(offer)),
        secrets: Vec::new(),
        dh: SecretBytes::default(),
        link: Vec::new(),
    };
    go_on(sa, ctx, asked, payloads);
}

/// As [`start_child`], for the rekey of the IKE SA.
pub(crate) fn start_ike(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    agreed: AgreedIke,
    tries: u8,
    payloads: &PayloadList,
) {
    let asked = Asked {
        unfinished: Unfinished::Ike(Box::new(agreed)),
        task: Task::RekeyIke,
        tries,
        offer: None,
        secrets: Vec::new(),
        dh: SecretBytes::default(),
        link: Vec::new(),
    };
    go_on(sa, ctx, asked, payloads);
}

/// Initiator: sends the next request. `payloads`: the response that it follows.
fn go_on(sa: &mut IkeSa, ctx: &mut Context<'_>, mut asked: Asked, payloads: &PayloadList) {
    let Some(link) = link_of(payloads) else {
        return failed(sa, ctx, &asked, "no ADDITIONAL_KEY_EXCHANGE notification");
    };
    asked.link = link.to_vec();
    let group = asked.unfinished.groups().get(asked.secrets.len()).copied();
    let made = group.and_then(|group| Some((group, ctx.generate(group).ok()?)));
    let Some((group, made)) = made else {
        return failed(sa, ctx, &asked, "a key exchange that is not possible");
    };
    asked.dh = made.secret;
    let ke = KeyExchange {
        group: DhTransform(group.transform_id()),
        data: made.public,
    };
    let payloads = [Payload::KeyExchange(ke), linked(&asked.link)];
    let spi_in = asked.unfinished.spi_in();
    let pending = Pending::FollowUp(Box::new(asked));
    if !send_request(sa, ctx, ExchangeType::IKE_FOLLOWUP_KE, &payloads, pending) {
        release(ctx, spi_in);
    }
}

fn release(ctx: &mut Context<'_>, spi_in: Option<EspSpi>) {
    if let Some(spi_in) = spi_in {
        ctx.around.release_esp_spi(spi_in);
    }
}

/// Initiator: nothing comes of it. The responder forgets its part by itself.
fn failed(sa: &mut IkeSa, ctx: &mut Context<'_>, asked: &Asked, why: &str) {
    release(ctx, asked.unfinished.spi_in());
    let text = format!("an additional key exchange failed: the peer's response has {why}");
    ctx.event(sa, EventKind::PeerMisbehaved, text);
}

/// Initiator: the response.
pub(crate) fn finish(sa: &mut IkeSa, ctx: &mut Context<'_>, mut asked: Asked, payloads: &PayloadList) {
    if let Some(error) = payloads.error() {
        return refused(sa, ctx, asked, error.kind);
    }
    let groups = asked.unfinished.groups();
    let shared = groups.get(asked.secrets.len()).and_then(|group| {
        let ke = payloads.ke().filter(|ke| ke.group.0 == group.transform_id())?;
        ctx.agree(*group, &asked.dh, &ke.data).ok()
    });
    let Some(shared) = shared else {
        return failed(sa, ctx, &asked, "no usable KE payload");
    };
    asked.secrets.push(shared);
    if asked.secrets.len() < groups.len() {
        return go_on(sa, ctx, asked, payloads);
    }
    match (asked.unfinished, asked.offer) {
        (Unfinished::Child(mut agreed), Some(offer)) => {
            agreed.additional = asked.secrets;
            child_create::agreed(sa, ctx, *offer, *agreed);
        }
        (Unfinished::Child(agreed), None) => ctx.around.release_esp_spi(agreed.spi_in),
        (Unfinished::Ike(agreed), _) => ike_rekey::finished(sa, ctx, *agreed, &asked.secrets, payloads),
    }
}

//= rfc9370#2.2.4
// If the initiator receives this notification in response to an IKE_FOLLOWUP_KE exchange performing an additional key exchange, it
// MUST cancel this exchange and MUST treat the whole series of exchanges started from the CREATE_CHILD_SA exchange as having failed.
fn refused(sa: &mut IkeSa, ctx: &mut Context<'_>, asked: Asked, kind: NotifyType) {
    release(ctx, asked.unfinished.spi_in());
    let what = match &asked.unfinished {
        Unfinished::Child(agreed) => format!("child {}", agreed.name),
        Unfinished::Ike(_) => "rekey of the IKE SA".to_owned(),
    };
    match kind {
        //= rfc9370#2.2.4
        // If the initiator continues to receive STATE_NOT_FOUND notifications after several retries, it MUST treat this situation
        // as a fatal error and delete the IKE SA by sending a DELETE payload.
        NotifyType::STATE_NOT_FOUND if asked.tries >= FORGOTTEN_MAX => {
            let text = format!("{what}: the peer keeps forgetting the key exchange; the IKE SA ends");
            ctx.event(sa, EventKind::PeerMisbehaved, text);
            delete::start_ike(sa, ctx);
        }
        NotifyType::STATE_NOT_FOUND | NotifyType::TEMPORARY_FAILURE => {
            put_off(sa, ctx, asked.task, asked.tries, &what);
        }
        kind => {
            let text = format!("{what}: the peer refused an additional key exchange with {kind}");
            ctx.event(sa, EventKind::ChildFailed, text);
        }
    }
}

/// Responder: CREATE_CHILD_SA is answered with the promise to go on. Gives the link for the answer.
pub(crate) fn promise(sa: &mut IkeSa, ctx: &mut Context<'_>, unfinished: Unfinished) -> Payload {
    forget(sa, ctx);
    let link = ctx.random(LINK_LEN);
    let payload = linked(&link);
    sa.more.follow_up = Some(Box::new(Awaited {
        unfinished,
        secrets: Vec::new(),
        link,
    }));
    sa.timers.follow_up = Some(ctx.now + KEPT);
    payload
}

/// Responder: the initiator gave the series up, or began another one.
pub(crate) fn forget(sa: &mut IkeSa, ctx: &mut Context<'_>) {
    sa.timers.follow_up = None;
    if let Some(awaited) = sa.more.follow_up.take() {
        sa.dirty = true;
        release(ctx, awaited.unfinished.spi_in());
    }
}

/// The inbound SPI that a responder has promised.
pub(crate) fn promised(sa: &IkeSa) -> Option<EspSpi> {
    sa.more
        .follow_up
        .as_ref()
        .and_then(|awaited| awaited.unfinished.spi_in())
}

/// Whether the peer is in the middle of a series: there is one at a time.
pub(crate) fn is_awaited(sa: &IkeSa) -> bool {
    sa.more.follow_up.is_some()
}

/// Whether the peer is in the middle of replacing this Child SA, or (`None`) the IKE SA.
pub(crate) fn peer_replaces(sa: &IkeSa, child: Option<EspSpi>) -> bool {
    match (
        sa.more.follow_up.as_ref().map(|awaited| &awaited.unfinished),
        child,
    ) {
        (Some(Unfinished::Child(agreed)), Some(spi_in)) => agreed.replaces == Some(spi_in),
        (Some(Unfinished::Ike(_)), None) => true,
        _ => false,
    }
}

//= rfc9370#2.2.4
// If the responder receives an IKE_FOLLOWUP_KE message for which it does not have a key exchange state, it MUST send back a new
// error type notification called "STATE_NOT_FOUND".
/// Responder: the next key exchange.
pub(crate) fn respond(sa: &mut IkeSa, ctx: &mut Context<'_>, payloads: &PayloadList) -> Vec<Payload> {
    let fits = |awaited: &Awaited| link_of(payloads).is_some_and(|link| crypto::ct_eq(link, &awaited.link));
    if !sa.more.follow_up.as_deref().is_some_and(fits) {
        return vec![notify(NotifyType::STATE_NOT_FOUND)];
    }
    let groups = sa.more.follow_up.as_ref().map(|awaited| {
        let groups = awaited.unfinished.groups();
        (groups.get(awaited.secrets.len()).copied(), groups.len())
    });
    let (group, count) = groups.unwrap_or_default();
    let exchanged = group.and_then(|group| {
        let ke = payloads.ke().filter(|ke| ke.group.0 == group.transform_id())?;
        let worked = ctx.respond(group, &ke.data)?.ok()?;
        let ke = KeyExchange {
            group: DhTransform(group.transform_id()),
            data: worked.public,
        };
        Some((worked.secret, ke))
    });
    if ctx.exchanges.is_wanting() {
        return Vec::new();
    }
    let Some(mut awaited) = sa.more.follow_up.take() else {
        return vec![notify(NotifyType::STATE_NOT_FOUND)];
    };
    sa.timers.follow_up = None;
    sa.dirty = true;
    let Some((shared, ke)) = exchanged else {
        release(ctx, awaited.unfinished.spi_in());
        let text = "additional key exchange: the peer's request has no usable KE payload";
        ctx.event(sa, EventKind::PeerMisbehaved, text);
        return vec![notify(NotifyType::INVALID_SYNTAX)];
    };
    awaited.secrets.push(shared);
    let mut answer = vec![Payload::KeyExchange(ke)];
    if awaited.secrets.len() < count {
        awaited.link = ctx.random(LINK_LEN);
        answer.push(linked(&awaited.link));
        sa.more.follow_up = Some(awaited);
        sa.timers.follow_up = Some(ctx.now + KEPT);
        return answer;
    }
    match awaited.unfinished {
        Unfinished::Child(mut agreed) => {
            agreed.additional = awaited.secrets;
            match agreed.replaces.filter(|old| sa.child(*old).is_some()) {
                Some(old) => child_rekey::accept(sa, ctx, *agreed, old),
                None => {
                    // New, or the peer has deleted the old one meanwhile.
                    agreed.replaces = None;
                    agreed.outbound = model::OutboundUse::Now;
                    child_create::install(sa, ctx, *agreed, ChildPhase::Installed)
                }
            };
        }
        Unfinished::Ike(agreed) => answer.extend(ike_rekey::replace(sa, ctx, *agreed, &awaited.secrets)),
    }
    answer
}
