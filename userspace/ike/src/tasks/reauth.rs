//! Reauthentication: a new IKE SA beside the old one, then the end of the old one (RFC 7296 2.8.3), and how long an authentication
//! lasts (RFC 4478).
//!
//! Nothing remembers how far it is. Whenever the old IKE SA is looked at, what there is says what comes next: no younger one, then
//! one is begun; a younger one that is not up, then we wait; one that is up with the children, then the old one is deleted. So a takeover
//! or a lost message at any point ends with one IKE SA.

use super::{ike_init, start_next};
use crate::command::is_up_or_coming;
use crate::config::{ChildConfig, Connection};
use crate::event::EventKind;
use crate::ike_sa::authentication::Authentication;
use crate::ike_sa::child::ChildPhase;
use crate::ike_sa::phase::Phase;
use crate::ike_sa::windows::Task;
use crate::ike_sa::{IkeSa, jittered};
use crate::outbox::Context;
use crate::table::Table;
use ike_wire::{Notify, Payload, PayloadList};
use model::{ChildSaChange, EspSpi, IkeSpi};
use std::time::Duration;

/// An attempt that is under way is looked at again after this time.
const AGAIN: Duration = Duration::from_secs(1);
/// The old IKE SA is deleted so long after the new one is complete: what was sent on its Child SAs before has arrived by then,
/// also at peers whose SAs end with the Delete.
const SETTLES: Duration = Duration::from_secs(1);
/// Responder: so long the new Child SA waits for the end of the old one before it carries our packets. The peer has our answer by
/// then, and one that has lost the old one without a word is not kept waiting.
const SWITCHES: Duration = Duration::from_secs(1);
/// Pause after the first attempt that failed; it doubles with each further one.
const PAUSE_FIRST: Duration = Duration::from_secs(10);
const PAUSE_MOST: Duration = Duration::from_secs(300);
/// A peer that lets an authentication last for less is not obeyed to the letter: it would have us do nothing else.
const LIFETIME_LEAST: Duration = Duration::from_secs(20);
/// We authenticate anew so long before the peer's patience ends: a tenth of it, and at least this, up to half of it.
const MARGIN: Duration = Duration::from_secs(60);
/// And so much longer than said is our own: a tenth, and at least this.
const GRACE: Duration = Duration::from_secs(60);

/// When an initiator authenticates anew, counted from the last time. `own`: as configured; `told`: for how long the peer lets it last.
fn due_after(own: Option<Duration>, told: Option<Duration>) -> Option<Duration> {
    let told = told.map(|told| {
        let told = told.max(LIFETIME_LEAST);
        told - (told / 10).max(MARGIN).min(told / 2)
    });
    [own, told].into_iter().flatten().min()
}

/// When a peer that has not authenticated anew is not believed any more.
fn lapses_after(told: Duration) -> Duration {
    told.saturating_add((told / 10).max(GRACE))
}

/// Both sides have proved who they are. A resumed session goes on with the authentication that it comes from (RFC 5723 5).
pub(crate) fn authenticated(sa: &mut IkeSa, ctx: &Context<'_>) {
    let (now, unix) = (ctx.now, ctx.around.unix_time());
    let resumes = sa.extras.resumed.is_some();
    match &mut sa.more.authentication {
        Some(_) if resumes => {}
        Some(authentication) => authentication.completed(now, unix),
        None => {
            let new = Authentication::new(now, unix, sa.initiator, 0);
            sa.more.authentication = Some(Box::new(new));
        }
    }
}

/// Timers of an established IKE SA, by the age of its authentication.
pub(crate) fn start_timers(sa: &mut IkeSa, ctx: &mut Context<'_>) {
    let now = ctx.now;
    let awaits = sa.children.iter().any(|child| awaits_elsewhere(sa, child.phase));
    sa.timers.switch = awaits.then(|| now + SWITCHES);
    (sa.timers.reauth_tries, sa.timers.reauth_begun) = (0, false);
    let connection = sa.connection(ctx.config);
    let own = connection.and_then(|connection| connection.reauth_time);
    let jitter = connection.map(|connection| connection.rekey_jitter);
    let (unix, initiator) = (ctx.around.unix_time(), sa.initiator);
    let new = || Box::new(Authentication::new(now, unix, initiator, 0));
    let authentication = sa.more.authentication.get_or_insert_with(new);
    let told = authentication.lifetime.map(Duration::from_secs);
    let after = match (authentication.initiated, connection) {
        (_, None) => None,
        (true, Some(_)) => due_after(own, told).map(|after| {
            let jitter = jitter.unwrap_or_default().min(after / 10);
            jittered(after, jitter, ctx.random_u32())
        }),
        // What the peer was never told it need not keep to.
        (false, Some(_)) => told.filter(|_| own.is_some()).map(lapses_after),
    };
    authentication.is_needed |= own.is_some() || told.is_some() || authentication.generation > 0;
    sa.timers.reauth_due = after.map(|after| authentication.when(now, after));
    // A younger one may have asked for a look already: it is as good as new after a takeover, or came up just now.
    let looks = [sa.timers.reauth, sa.timers.reauth_due];
    sa.timers.reauth = looks.into_iter().flatten().min();
    wake_elders(sa, ctx);
}

/// Which of two IKE SAs of a connection that we initiated is the younger one.
fn order(sa: &IkeSa) -> Option<(u32, IkeSpi)> {
    let authentication = sa.more.authentication.as_ref().filter(|a| a.initiated)?;
    let ended = matches!(
        sa.phase,
        Phase::Rekeyed(_) | Phase::Deleting(_) | Phase::Closed(_)
    );
    (!ended && sa.successor.is_none()).then_some((authentication.generation, sa.spi))
}

/// The IKE SA that is to take this one's place, up or under way.
fn younger<'t>(table: &'t Table, sa: &IkeSa) -> Option<&'t IkeSa> {
    let name = sa.connection.as_deref()?;
    let this = order(sa)?;
    let all = table.iter_connection(name);
    let younger = all.filter(|other| order(other).is_some_and(|other| other > this));
    younger.max_by_key(|other| (matches!(other.phase, Phase::Established(_)), order(other)))
}

/// Those that this one is to take the place of.
fn elders(table: &Table, sa: &IkeSa) -> Vec<IkeSpi> {
    let (Some(name), Some(this)) = (sa.connection.as_deref(), order(sa)) else {
        return Vec::new();
    };
    // The first one with a peer has none; most are.
    if this.0 == 0 {
        return Vec::new();
    }
    let is_elder = |other: &&IkeSa| {
        matches!(other.phase, Phase::Established(_)) && order(other).is_some_and(|other| other < this)
    };
    table
        .iter_connection(name)
        .filter(is_elder)
        .map(|sa| sa.spi)
        .collect()
}

/// The new IKE SA has come further: the old one is looked at soon.
pub(crate) fn wake_elders(sa: &IkeSa, ctx: &mut Context<'_>) {
    if !matches!(sa.phase, Phase::Established(_)) {
        return;
    }
    for spi in elders(ctx.table, sa) {
        if let Some(mut old) = ctx.table.take(spi) {
            old.timers.reauth = Some(ctx.now + SETTLES);
            ctx.put_back(old);
        }
    }
}

/// The children that a new IKE SA is to have: those of the old one. `None`: there is no old one.
pub(crate) fn children<'c>(
    sa: &IkeSa,
    table: &Table,
    connection: &'c Connection,
) -> Option<Vec<&'c ChildConfig>> {
    let old = elders(table, sa).into_iter().filter_map(|spi| table.get(spi));
    let old = old.max_by_key(|old| order(old))?;
    Some(wanted(old, connection))
}

/// Those children of an IKE SA that are in the configuration still.
fn wanted<'c>(sa: &IkeSa, connection: &'c Connection) -> Vec<&'c ChildConfig> {
    let has = |name: &str| {
        let mut children = sa.children.iter();
        children.any(|child| {
            child.name == name && child.resource.is_none() && child.phase != ChildPhase::Deleting
        })
    };
    connection.children.iter().filter(|c| has(&c.name)).collect()
}

/// The time of an established IKE SA has come: to be authenticated anew, or to be looked at once more.
pub(crate) fn due(sa: &mut IkeSa, ctx: &mut Context<'_>) {
    sa.timers.reauth = None;
    let up = matches!(sa.phase, Phase::Established(_)) && sa.successor.is_none();
    let Some(connection) = sa.connection(ctx.config).filter(|_| up) else {
        return;
    };
    if sa.more.authentication.as_ref().is_none_or(|a| !a.initiated) {
        return lapsed(sa, ctx);
    }
    // Not all IKE SAs of the group are here yet, the younger one perhaps; or another member initiates the connection.
    if ctx.around.pool_share(sa.spi).is_none() || !ctx.around.may_initiate(&connection.name) {
        sa.timers.reauth = Some(ctx.now + AGAIN);
        return;
    }
    let Some(new) = younger(ctx.table, sa) else {
        let due = sa.timers.reauth_due;
        if due.is_none_or(|due| due > ctx.now) && !sa.timers.reauth_begun {
            // There was a younger one, and it is gone.
            sa.timers.reauth = due;
            return;
        }
        return begin(sa, ctx, connection);
    };
    if !matches!(new.phase, Phase::Established(_)) {
        sa.timers.reauth = Some(ctx.now + AGAIN);
        return;
    }
    let (spi, wanted) = (new.spi, wanted(sa, connection));
    let missing = wanted.into_iter().filter(|child| !has_child(new, &child.name));
    let missing: Vec<&str> = missing.map(|child| child.name.as_str()).collect();
    if missing.is_empty() {
        sa.our.push_front(Task::DeleteIke);
        return;
    }
    if missing.iter().all(|child| is_up_or_coming(new, child)) {
        sa.timers.reauth = Some(ctx.now + AGAIN);
        return;
    }
    let text = format!("IKE SA {spi} is up, but without {}", missing.join(", "));
    failed(sa, ctx, &text);
    if let Some(mut new) = ctx.table.take(spi) {
        for child in missing {
            let child = child.to_owned();
            new.our.push(Task::CreateChild { child });
        }
        start_next(&mut new, ctx);
        ctx.put_back(new);
    }
}

fn has_child(sa: &IkeSa, name: &str) -> bool {
    let up = |phase| matches!(phase, ChildPhase::Installed | ChildPhase::AwaitsSwitch { .. });
    let mut children = sa.children.iter();
    children.any(|child| child.name == name && child.resource.is_none() && up(child.phase))
}

/// Begins the new IKE SA, unless the last attempt has just come to nothing.
fn begin(sa: &mut IkeSa, ctx: &mut Context<'_>, connection: &Connection) {
    if std::mem::take(&mut sa.timers.reauth_begun) {
        return failed(sa, ctx, "it came to nothing");
    }
    let generation = sa.more.authentication.as_ref().map_or(0, |a| a.generation);
    match ike_init::start_beside(ctx, connection, sa.path, generation.saturating_add(1)) {
        Ok(new) => {
            ctx.put_back(new);
            sa.timers.reauth_begun = true;
            sa.timers.reauth = Some(ctx.now + AGAIN);
        }
        Err(why) => failed(sa, ctx, &why),
    }
}

/// The old IKE SA stays up, and it is tried again later.
fn failed(sa: &mut IkeSa, ctx: &mut Context<'_>, why: &str) {
    let tries = sa.timers.reauth_tries;
    sa.timers.reauth_tries = tries.saturating_add(1);
    let pause = PAUSE_FIRST.saturating_mul(1 << tries.min(8)).min(PAUSE_MOST);
    // A quarter more or less, so that many peers of one gateway do not come back together.
    let pause = pause.mul_f64(0.75 + 0.5 * f64::from(ctx.random_u32()) / f64::from(u32::MAX));
    sa.timers.reauth = Some(ctx.now + pause);
    let text = format!(
        "reauthentication: {why}; IKE SA {} stays up, tried again in {} s",
        sa.spi,
        pause.as_secs()
    );
    ctx.event(sa, EventKind::ReauthFailed, text);
}

/// Responder: the peer was told how long its authentication lasts, and that is over.
fn lapsed(sa: &mut IkeSa, ctx: &mut Context<'_>) {
    // One that has come back as another IKE SA has only forgotten this one.
    if goes_on(sa, ctx).is_none() {
        let text = format!(
            "the peer has not authenticated anew, though it was told to {} s ago (RFC 4478): IKE SA {} ends",
            sa.more
                .authentication
                .as_ref()
                .map_or(0, |a| a.age(ctx.now).as_secs()),
            sa.spi
        );
        ctx.event(sa, EventKind::AuthLapsed, text);
    }
    sa.our.push_front(Task::DeleteIke);
}

/// An operator wants it now.
pub(crate) fn now(sa: &mut IkeSa, ctx: &mut Context<'_>) -> Result<(), &'static str> {
    if sa.more.authentication.as_ref().is_none_or(|a| !a.initiated) {
        return Err("only the side that initiated the connection can authenticate anew");
    }
    (sa.timers.reauth_tries, sa.timers.reauth_begun) = (0, false);
    sa.timers.reauth_due = Some(ctx.now);
    due(sa, ctx);
    Ok(())
}

/// Responder: what the last IKE_AUTH response says about it (RFC 4478 3).
pub(crate) fn lifetime(sa: &mut IkeSa, ctx: &mut Context<'_>, connection: &Connection) -> Option<Payload> {
    let time = connection.reauth_time?;
    let authentication = sa.more.authentication.as_mut()?;
    authentication.lifetime = Some(time.as_secs());
    let left = time.saturating_sub(authentication.age(ctx.now));
    let seconds = u32::try_from(left.as_secs()).unwrap_or(u32::MAX);
    start_timers(sa, ctx);
    Some(Payload::Notify(Notify::auth_lifetime(seconds)))
}

/// Initiator: what the peer says about it, in the IKE_AUTH response or later.
pub(crate) fn take_lifetime(sa: &mut IkeSa, ctx: &mut Context<'_>, payloads: &PayloadList) {
    let now = ctx.now;
    let told = payloads.notifies().find_map(Notify::as_auth_lifetime);
    let authentication = sa.more.authentication.as_mut().filter(|a| a.initiated);
    let (Some(seconds), Some(authentication)) = (told, authentication) else {
        return;
    };
    // It counts from this message on.
    let age = authentication.age(now).as_secs();
    authentication.lifetime = Some(age.saturating_add(u64::from(seconds)));
    sa.dirty = true;
    start_timers(sa, ctx);
}

/// The IKE SA with the same peer that goes on when this one ends: one that was authenticated later.
pub(crate) fn goes_on<'t>(sa: &IkeSa, ctx: &'t Context<'_>) -> Option<&'t IkeSa> {
    let age = |sa: &IkeSa| sa.more.authentication.as_ref().map(|a| a.age(ctx.now));
    let is_younger = |other: &&IkeSa| match (order_of_ours(sa), order_of_ours(other)) {
        (Some(this), Some(other)) => other > this,
        // What nobody has written down is older than what somebody has.
        _ => age(sa).is_none_or(|this| age(other).is_some_and(|other| other <= this)),
    };
    ctx.table.beside(sa).find(is_younger)
}

/// As [`order`], also of one that ends.
fn order_of_ours(sa: &IkeSa) -> Option<(u32, IkeSpi)> {
    let authentication = sa.more.authentication.as_ref().filter(|a| a.initiated)?;
    Some((authentication.generation, sa.spi))
}

/// Responder: the Child SA of an older IKE SA that one like this replaces, if there is one.
pub(crate) fn replaced_child(
    sa: &IkeSa,
    table: &Table,
    agreed: &super::child_create::Agreed,
) -> Option<EspSpi> {
    let others = table.beside(sa).flat_map(|other| &other.children);
    let mut same = others.filter(|child| {
        (&child.name, &child.ts_local, &child.ts_remote)
            == (&agreed.name, &agreed.ts_local, &agreed.ts_remote)
            && child.phase == ChildPhase::Installed
            && (child.resource, agreed.resource) == (None, None)
    });
    same.next().map(|child| child.spi_in)
}

fn awaits_elsewhere(sa: &IkeSa, phase: ChildPhase) -> bool {
    matches!(phase, ChildPhase::AwaitsSwitch { replaces } if sa.child(replaces).is_none())
}

/// Responder: a Child SA that replaces one of another IKE SA waits for the end of that.
pub(crate) fn start_switch(sa: &mut IkeSa, ctx: &Context<'_>) {
    sa.timers.switch = Some(ctx.now + SWITCHES);
}

/// Responder: the peer did not delete the old one in time, and certainly uses the new one.
pub(crate) fn switch_due(sa: &mut IkeSa, ctx: &mut Context<'_>) {
    sa.timers.switch = None;
    let waiting = sa
        .children
        .iter()
        .filter(|child| awaits_elsewhere(sa, child.phase));
    let waiting: Vec<EspSpi> = waiting.map(|child| child.spi_in).collect();
    switch(sa, ctx, |child| waiting.contains(&child.spi_in));
}

/// The peer deletes an IKE SA whose Child SAs carry our packets still. They change over now. Returns whether any did: then the Delete is
/// left for its repetition, or packets that we have sealed for the old ones would meet their end, here or at the peer.
pub(crate) fn switch_before_end(sa: &IkeSa, ctx: &mut Context<'_>) -> bool {
    let before = ctx.out.child_changes.len();
    let spis: Vec<EspSpi> = sa.children.iter().map(|child| child.spi_in).collect();
    switch_beside(sa, ctx, &spis);
    ctx.out.child_changes.len() > before
}

/// Child SAs of this IKE SA end: those of others that wait for that carry our packets from now on.
pub(crate) fn switch_beside(sa: &IkeSa, ctx: &mut Context<'_>, ended: &[EspSpi]) {
    let waits = |child: &crate::ike_sa::child::ChildSa| matches!(child.phase, ChildPhase::AwaitsSwitch { replaces } if ended.contains(&replaces));
    let others = ctx.table.beside(sa);
    let others = others.filter(|other| other.children.iter().any(waits));
    let others: Vec<IkeSpi> = others.map(|other| other.spi).collect();
    for spi in others {
        if let Some(mut other) = ctx.table.take(spi) {
            switch(&mut other, ctx, waits);
            ctx.put_back(other);
        }
    }
}

fn switch(sa: &mut IkeSa, ctx: &mut Context<'_>, which: impl Fn(&crate::ike_sa::child::ChildSa) -> bool) {
    for child in sa.children.iter_mut().filter(|child| which(child)) {
        child.phase = ChildPhase::Installed;
        let change = ChildSaChange::UseOutbound { spi_in: child.spi_in };
        ctx.out.child_changes.push(change);
        sa.dirty = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn we_come_before_the_peers_patience_ends_and_never_without_pause() {
        let told = |lifetime| due_after(None, Some(seconds(lifetime))).unwrap();
        assert_eq!(told(3600), seconds(3240), "a tenth before");
        assert_eq!(told(300), seconds(240), "a minute before");
        assert_eq!(told(60), seconds(30), "half of it");
        for hostile in [0, 1, 20] {
            assert_eq!(told(hostile), seconds(10), "{hostile}");
        }
        assert!(told(u64::MAX) > seconds(u64::MAX / 2));
        assert_eq!(
            due_after(Some(seconds(100)), Some(seconds(3600))),
            Some(seconds(100))
        );
        assert_eq!(
            due_after(Some(seconds(9000)), Some(seconds(3600))),
            Some(seconds(3240))
        );
        assert_eq!(due_after(None, None), None);
    }

    #[test]
    fn a_peer_has_a_tenth_more_than_it_was_told_and_at_least_a_minute() {
        for (told, lapses) in [(10, 70), (600, 660), (3600, 3960), (u64::MAX, u64::MAX)] {
            assert_eq!(lapses_after(seconds(told)).as_secs(), lapses);
        }
    }
}
