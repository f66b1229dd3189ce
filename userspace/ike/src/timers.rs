//! What happens when time passes.

use crate::event::EventKind;
use crate::ike_sa::IkeSa;
use crate::ike_sa::child::ChildPhase;
use crate::ike_sa::message::{RESPONSES_KEPT, repeat};
use crate::ike_sa::phase::Phase;
use crate::ike_sa::windows::{Outstanding, Task};
use crate::outbox::Context;
use crate::tasks::{
    CLOSED_KEPT, child_create, delete, follow_up, ike_auth, ike_init, mobike_initiator, reauth, start_next,
    ticket,
};
use model::Instant;
use std::time::Duration;

/// A Child SA that is busy when its rekey time comes is looked at again after this time.
const BUSY: Duration = Duration::from_secs(10);

fn due(at: Option<Instant>, now: Instant) -> bool {
    at.is_some_and(|at| at <= now)
}

/// Serves whatever is due at this IKE SA.
pub(crate) fn expired(sa: &mut IkeSa, ctx: &mut Context<'_>) {
    let now = ctx.now;
    if due(sa.timers.expire, now) {
        let why = match sa.phase {
            Phase::AwaitAuthRequest(_) | Phase::AwaitEap(_) => "the peer never authenticated",
            Phase::AwaitSignature(_) => "our signature never came",
            Phase::AwaitKey => "our private key was never made",
            _ => "over",
        };
        return delete::vanish(sa, ctx, why);
    }
    if sa.our.all().any(|outstanding| due(outstanding.clock.at, now)) {
        retransmit(sa, ctx);
        if sa.gone {
            return;
        }
    }
    if due(sa.timers.keepalive, now) {
        let interval = sa.connection(ctx.config).map(|connection| connection.keepalive);
        sa.timers.keepalive = interval.map(|interval| now + interval.max(Duration::from_secs(1)));
        ctx.event(sa, EventKind::NatKeepalive, "NAT keepalive");
    }
    if due(sa.timers.forget, now) {
        sa.timers.forget = None;
        sa.their.forget();
    }
    if due(sa.timers.follow_up, now) {
        follow_up::forget(sa, ctx);
    }
    if due(sa.timers.ticket, now) {
        sa.timers.ticket = None;
        if matches!(sa.phase, Phase::Established(_)) {
            sa.our.push(Task::Refresh);
        }
    }
    if due(sa.timers.rekey, now) {
        sa.timers.rekey = Some(now + rekey_again(sa, ctx));
        sa.our.push(Task::RekeyIke);
    }
    rekey_children(sa, ctx);
    if due(sa.timers.switch, now) {
        reauth::switch_due(sa, ctx);
    }
    if due(sa.timers.reauth, now) {
        reauth::due(sa, ctx);
    }
    if due(sa.timers.liveness, now) {
        let delay = sa
            .connection(ctx.config)
            .and_then(|connection| connection.dpd_delay);
        sa.timers.liveness = delay.map(|delay| now + delay.max(Duration::from_millis(10)));
        // While a request is outstanding, its retransmissions show whether the peer lives.
        if sa.our.is_idle() && matches!(sa.phase, Phase::Established(_)) {
            sa.our.push(Task::Liveness);
        }
    }
    start_next(sa, ctx);
}

/// A rekey that came to nothing is tried again after this time.
fn rekey_again(sa: &IkeSa, ctx: &Context<'_>) -> Duration {
    let time = sa
        .connection(ctx.config)
        .and_then(|connection| connection.ike_rekey_time);
    time.unwrap_or(Duration::from_secs(3600))
        .max(Duration::from_secs(1))
}

fn rekey_children(sa: &mut IkeSa, ctx: &mut Context<'_>) {
    let now = ctx.now;
    let again = sa
        .connection(ctx.config)
        .and_then(|connection| connection.child_rekey_time)
        .unwrap_or(Duration::from_secs(3600))
        .max(Duration::from_secs(1));
    for child in &mut sa.children {
        if !due(child.rekey_at, now) {
            continue;
        }
        if child.phase == ChildPhase::Installed {
            child.rekey_at = Some(now + again);
            sa.our.push(Task::RekeyChild { spi_in: child.spi_in });
        } else {
            child.rekey_at = Some(now + BUSY);
        }
    }
}

/// The same octets again, or the end of patience (RFC 7296 2.4).
fn retransmit(sa: &mut IkeSa, ctx: &mut Context<'_>) {
    let timing = sa
        .connection(ctx.config)
        .map(|connection| connection.retransmit)
        .unwrap_or_default();
    let now = ctx.now;
    let is_due = |outstanding: &Outstanding| due(outstanding.clock.at, now);
    let tired = sa.our.all().find(|o| is_due(o) && o.clock.sent >= timing.tries);
    if let Some(sent) = tired.map(|o| o.clock.sent) {
        let silence = format!("no answer to {} transmissions", sent + 1);
        let text =
            format!("{silence}: is the peer up, and do UDP ports 500 and 4500 pass in both directions?");
        ctx.event(sa, EventKind::PeerSilent, text);
        if sa.successor.is_none() && !matches!(sa.phase, Phase::Deleting(_)) {
            ticket::keep(sa, ctx);
        }
        return delete::vanish(sa, ctx, &silence);
    }
    let (mut again, mut sent) = (Vec::new(), 0);
    for outstanding in sa.our.all_mut().filter(|o| due(o.clock.at, now)) {
        let clock = &mut outstanding.clock;
        clock.sent += 1;
        clock.at = Some(now + timing.wait(clock.sent));
        sent = sent.max(clock.sent);
        again.push(outstanding.id);
    }
    mobike_initiator::before_repetition(sa, ctx, sent);
    for outstanding in sa.our.all().filter(|o| again.contains(&o.id)) {
        repeat(sa, ctx, &outstanding.bytes);
    }
}

/// After a takeover: all timers start anew, and the outstanding request is sent again.
pub(crate) fn restart(sa: &mut IkeSa, ctx: &mut Context<'_>) {
    if let Some(authentication) = &mut sa.more.authentication {
        authentication.taken_over(ctx.now, ctx.around.unix_time());
    }
    match &sa.phase {
        Phase::AwaitInitResponse(_)
        | Phase::AwaitResumeResponse(_)
        | Phase::AwaitIntermediateResponse(_)
        | Phase::AwaitAuthResponse(_)
        | Phase::Deleting(_) => {}
        Phase::AwaitAuthRequest(_) | Phase::AwaitEap(_) => {
            sa.timers.expire = Some(ctx.now + ctx.config.endpoint.half_open_timeout);
        }
        Phase::AwaitSignature(_) => ike_auth::ask_again(sa, ctx),
        Phase::AwaitKey => ike_init::begin_or_vanish(sa, ctx),
        Phase::Established(_) => ike_auth::start_timers(sa, ctx),
        Phase::Rekeyed(_) => sa.timers.expire = Some(ctx.now + crate::tasks::ike_rekey::REPLACED_KEPT),
        Phase::Closed(_) => sa.timers.expire = Some(ctx.now + CLOSED_KEPT),
    }
    if sa.gone {
        return;
    }
    let mut children = std::mem::take(&mut sa.children);
    for child in &mut children {
        if !matches!(child.phase, ChildPhase::Deleting | ChildPhase::Rekeyed { .. }) {
            child_create::start_rekey_timer(sa, ctx, child);
        }
    }
    sa.children = children;
    sa.timers.forget = sa.their.has_responses().then(|| ctx.now + RESPONSES_KEPT);
    sa.timers.follow_up = sa.more.follow_up.as_ref().map(|_| ctx.now + follow_up::KEPT);
    ike_init::repeat_outstanding(sa, ctx);
    start_next(sa, ctx);
}
