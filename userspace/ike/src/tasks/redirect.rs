//! Redirection, both roles (RFC 5685): a gateway sends its clients to another one, before they have an IKE SA with it or while they do.

use super::{Pending, ike_init, notify};
use crate::config::Connection;
use crate::event::EventKind;
use crate::ike_sa::IkeSa;
use crate::ike_sa::message::send_request;
use crate::ike_sa::phase::Phase;
use crate::ike_sa::windows::Task;
use crate::outbox::Context;
use ike_wire::{ExchangeType, Gateway, Notify, NotifyType, Payload, PayloadList};
use model::{IkeSpi, Instant};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

/// MAX_REDIRECTS (RFC 5685 9).
const REDIRECTS_MAX: usize = 5;
/// REDIRECT_LOOP_DETECT_PERIOD (RFC 5685 9).
const PERIOD: Duration = Duration::from_secs(300);
/// A client that was told to go elsewhere has deleted its IKE SA after this time, or we do.
const PATIENCE: Duration = Duration::from_secs(30);

/// How an IKE SA came to its gateway.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Redirected {
    /// The gateway that sent us here.
    pub from: IpAddr,
    /// Our IKE SA with that one, which ends once this one is up.
    pub replaces: Option<IkeSpi>,
}

/// When the peer of each connection last redirected us. A member that takes over begins anew: it follows five times more at most.
#[derive(Default)]
pub(crate) struct Redirects(HashMap<String, VecDeque<Instant>>);

impl Redirects {
    //= rfc5685#5
    // The client MUST detect and handle the situation where it gets redirected in a loop.
    fn may_follow(&mut self, connection: &str, now: Instant) -> bool {
        let times = self.0.entry(connection.to_owned()).or_default();
        times.retain(|at| now.since(*at) < PERIOD);
        let may = times.len() < REDIRECTS_MAX;
        if may {
            times.push_back(now);
        }
        may
    }
}

/// What an initiator says of redirection in its first message.
pub(crate) fn announce(sa: &IkeSa, connection: Option<&Connection>) -> Option<Payload> {
    connection.filter(|connection| connection.follow_redirects)?;
    Some(match &sa.more.redirected {
        //= rfc5685#3
        // the client MUST include the REDIRECTED_FROM payload in the new IKE_SA_INIT request
        Some(redirected) => Payload::Notify(Notify::redirected_from(redirected.from)),
        None => notify(NotifyType::REDIRECT_SUPPORTED),
    })
}

/// Whether the peer's first message says that it can be redirected.
pub(crate) fn is_supported(payloads: &PayloadList) -> bool {
    let says = |kind| payloads.notify(kind).is_some();
    says(NotifyType::REDIRECT_SUPPORTED) || says(NotifyType::REDIRECTED_FROM)
}

/// Where a gateway is that was named. What a stranger's first answer says is looked up nowhere: it has to be a name of the configuration.
fn named(sa: &IkeSa, connection: &Connection, name: &str) -> Result<IpAddr, String> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let of = connection
        .names
        .iter()
        .find(|(of, _)| of.eq_ignore_ascii_case(name));
    let Some((_, addresses)) = of else {
        // Whatever the peer's octets are, the text stays on its line.
        return Err(format!(
            "to {name:?}, which is no `remote` of the connection, so it is not looked up; add it there if it is to be followed"
        ));
    };
    let fits = |address: &&IpAddr| {
        address.is_ipv4() == connection.local.is_ipv4() && **address != sa.path.remote.ip()
    };
    addresses.iter().find(fits).copied().ok_or_else(|| {
        format!(
            "to {name}, which leads to no other address that can be reached from {}",
            connection.local
        )
    })
}

/// Where to go, or why not.
fn target(
    sa: &IkeSa,
    ctx: &mut Context<'_>,
    connection: &Connection,
    gateway: &Gateway<'_>,
) -> Result<IpAddr, String> {
    let address = match gateway {
        Gateway::Address(address) => *address,
        Gateway::Name(name) => named(sa, connection, &String::from_utf8_lossy(name))?,
    };
    if address.is_ipv4() != connection.local.is_ipv4() || address.is_unspecified() || address.is_multicast() {
        return Err(format!(
            "to {address}, which cannot be reached from {}",
            connection.local
        ));
    }
    if address == sa.path.remote.ip() {
        return Err(format!("to {address}, which is itself"));
    }
    if !ctx.redirects.may_follow(&connection.name, ctx.now) {
        return Err(format!(
            "to {address}, but there were {REDIRECTS_MAX} redirections within {} s: the gateways send us round",
            PERIOD.as_secs()
        ));
    }
    Ok(address)
}

/// Initiator: the answer to the first message is a redirection. It is not authentic, but bound to our nonce.
pub(crate) fn on_init(sa: &mut IkeSa, ctx: &mut Context<'_>, redirect: &Notify, nonce: &[u8]) {
    let Some(connection) = sa.connection(ctx.config).filter(|c| c.follow_redirects) else {
        return;
    };
    //= rfc5685#3
    // the client MUST match the nonce ... it MUST silently discard the response
    let Some((gateway, shown)) = redirect.as_redirect() else {
        return;
    };
    if shown != nonce {
        return;
    }
    let from = sa.path.remote.ip();
    match target(sa, ctx, connection, &gateway) {
        Ok(address) => {
            let text = format!("gateway {from} sends us to {address}");
            ctx.event(sa, EventKind::Redirected, text);
            drop(sa.our.take_all());
            sa.path.remote.set_ip(address);
            let replaces = sa
                .more
                .redirected
                .as_ref()
                .and_then(|redirected| redirected.replaces);
            sa.more.redirected = Some(Box::new(Redirected { from, replaces }));
            ike_init::begin_or_vanish(sa, ctx);
        }
        Err(why) => {
            let text = format!("gateway {from} sends us {why}");
            ctx.event(sa, EventKind::Trouble, text.clone());
            super::delete::vanish(sa, ctx, &text);
        }
    }
}

/// Client: the gateway of an IKE SA that is up sends us elsewhere. The new IKE SA comes first, then the old one ends.
pub(crate) fn follow(sa: &mut IkeSa, ctx: &mut Context<'_>, payloads: &PayloadList) {
    let redirect = payloads
        .notify(NotifyType::REDIRECT)
        .and_then(Notify::as_redirect);
    let Some((gateway, _)) = redirect.filter(|_| matches!(sa.phase, Phase::Established(_))) else {
        return;
    };
    let Some(connection) = sa.connection(ctx.config).filter(|c| c.follow_redirects) else {
        return;
    };
    let from = sa.path.remote.ip();
    let begun = target(sa, ctx, connection, &gateway).and_then(|address| {
        let redirected = Redirected {
            from,
            replaces: Some(sa.spi),
        };
        let mut new = ike_init::start_at(ctx, connection, address, redirected)?;
        let before = sa.more.authentication.as_ref().map_or(0, |a| a.generation);
        ike_init::prepare(&mut new, ctx, before.saturating_add(1));
        Ok((address, new))
    });
    match begun {
        Ok((address, mut new)) => {
            let text = format!("gateway {from} sends us to {address}");
            ctx.event(sa, EventKind::Redirected, text);
            // Children that were brought up by hand go along.
            for child in &sa.children {
                if connection.child(&child.name).is_some_and(|child| !child.start) {
                    new.our.push(Task::CreateChild {
                        child: child.name.clone(),
                    });
                }
            }
            ctx.put_back(new);
        }
        Err(why) => {
            let text = format!("gateway {from} sends us {why}; we stay");
            ctx.event(sa, EventKind::Trouble, text);
        }
    }
}

/// The IKE SA with the gateway that we were sent to is up: the old one ends.
pub(crate) fn arrived(sa: &IkeSa, ctx: &mut Context<'_>) {
    let replaced = sa
        .more
        .redirected
        .as_ref()
        .and_then(|redirected| redirected.replaces);
    if let Some(mut old) = replaced.and_then(|spi| ctx.table.take(spi)) {
        if matches!(old.phase, Phase::Established(_)) {
            old.our.push_front(Task::DeleteIke);
            super::start_next(&mut old, ctx);
        }
        ctx.put_back(old);
    }
}

/// Gateway: new clients of this connection are sent elsewhere. Gives the stateless answer.
pub(crate) fn refuse(
    ctx: &mut Context<'_>,
    connection: &Connection,
    payloads: &PayloadList,
    local: IpAddr,
    remote: std::net::SocketAddr,
) -> Option<Notify> {
    let to = connection.redirect.filter(|to| *to != local)?;
    let nonce = payloads.nonce().filter(|_| is_supported(payloads))?;
    let text = format!("{remote} is sent to gateway {to}");
    ctx.event_without_sa(EventKind::Redirected, Some(&connection.name), Some(remote), text);
    Some(Notify::redirect(to, nonce))
}

/// Gateway: tells a client that has an IKE SA where to go.
pub(crate) fn start(sa: &mut IkeSa, ctx: &mut Context<'_>, to: IpAddr) {
    let payloads = [Payload::Notify(Notify::redirect(to, &[]))];
    let text = format!("the peer is sent to gateway {to}");
    if send_request(sa, ctx, ExchangeType::INFORMATIONAL, &payloads, Pending::Redirect) {
        ctx.event(sa, EventKind::Redirected, text);
    }
}

/// Gateway: the client has heard it. It deletes the IKE SA once it has another one; we do not wait for ever.
pub(crate) fn finish(sa: &mut IkeSa, ctx: &mut Context<'_>) {
    sa.our.push_at(Task::DeleteIke, ctx.now + PATIENCE, 0);
}
