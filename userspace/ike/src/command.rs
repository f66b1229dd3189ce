//! What the operator and the agent want.

use crate::config::EngineConfig;
use crate::event::EventKind;
use crate::ike_sa::IkeSa;
use crate::ike_sa::child::ChildPhase;
use crate::ike_sa::phase::Phase;
use crate::ike_sa::windows::Task;
use crate::io::Command;
use crate::outbox::Context;
use crate::status::ConnectionPhase;
use crate::table::Table;
use crate::tasks::{
    Pending, child_create, counter_sync, delete, ike_auth, ike_init, message_id_sync, mobike_initiator,
    reauth, rebinding, resume, start_next, ticket,
};
use model::{EspSpi, IkeSpi};
use std::net::IpAddr;

pub(crate) fn run(ctx: &mut Context<'_>, command: Command) {
    match command {
        Command::Initiate { connection } => initiate(ctx, &connection, None, None),
        Command::InitiateTo { connection, remote } => initiate(ctx, &connection, None, Some(remote)),
        Command::PeerSeen { spi_in, remote } => rebinding::seen(ctx, spi_in, remote),
        Command::MoveLocal { spi, local } => move_local(ctx, spi, local),
        Command::RestartTimers { spi } => restart_timers(ctx, spi),
        Command::CreateChild { connection, child } => initiate(ctx, &connection, Some(&child), None),
        Command::CreateResourceChild { beside, resource } => {
            let named = ctx.table.by_child(beside).and_then(|spi| ctx.table.get(spi));
            let child = named
                .and_then(|sa| sa.child(beside))
                .map(|child| child.name.clone());
            let child = child.unwrap_or_default();
            on_child(ctx, beside, Task::CreateResourceChild { child, resource });
        }
        Command::RekeyChild { spi_in } => on_child(ctx, spi_in, Task::RekeyChild { spi_in }),
        Command::DeleteChild { spi_in } => on_child(ctx, spi_in, Task::DeleteChild { spi_in }),
        Command::RepairInbound { spi_in, delta } => repair(ctx, spi_in, delta),
        Command::SyncMessageIds { spi, margin } => sync_message_ids(ctx, spi, margin),
        Command::RekeyIke { spi } => on_ike(ctx, spi, Task::RekeyIke),
        Command::Reauthenticate { spi } => reauthenticate(ctx, spi),
        Command::Liveness { spi } => on_ike(ctx, spi, Task::Liveness),
        Command::Redirect { spi, to } => match ctx.table.get(spi) {
            Some(sa) if !sa.more.redirectable => {
                let text = "the peer cannot be redirected: it did not say so when it began (RFC 5685)";
                let name = sa.connection.clone();
                failed(ctx, name.as_deref(), text.to_owned());
            }
            _ => on_ike(ctx, spi, Task::Redirect { to }),
        },
        Command::DeleteIke { spi } => on_ike(ctx, spi, Task::DeleteIke),
        Command::Reestablish { spi } => reestablish(ctx, spi),
        Command::Terminate { connection } => {
            let spis = ctx.table.of_connection(&connection);
            // RFC 5723 6.2: what is ended is not resumed.
            ctx.tickets.take(&connection);
            if spis.is_empty() {
                failed(
                    ctx,
                    Some(&connection),
                    "nothing to terminate: no IKE SA is up".to_owned(),
                );
            }
            for spi in spis {
                on_ike(ctx, spi, Task::DeleteIke);
            }
        }
        Command::Forget {
            connection,
            remote_id,
            except,
        } => forget(ctx, &connection, &remote_id, except),
    }
}

fn failed(ctx: &mut Context<'_>, connection: Option<&str>, text: String) {
    ctx.event_without_sa(EventKind::CommandFailed, connection, None, text);
}

/// The connection's IKE SA that new children go to.
pub(crate) fn usable(table: &Table, name: &str) -> Option<IkeSpi> {
    let candidates = table.iter_connection(name).filter(|sa| sa.successor.is_none());
    let mut connecting = None;
    // A connection may have very many: the first one that is up will do.
    for sa in candidates {
        match sa.phase {
            Phase::Established(_) => return Some(sa.spi),
            Phase::AwaitKey
            | Phase::AwaitInitResponse(_)
            | Phase::AwaitResumeResponse(_)
            | Phase::AwaitIntermediateResponse(_)
            | Phase::AwaitSignature(_)
            | Phase::AwaitAuthResponse(_) => {
                connecting = connecting.or(Some(sa.spi));
            }
            _ => {}
        }
    }
    connecting
}

/// A peer has lost its IKE SA: a connection that is to be up is initiated again at once, if this member is the one to do so.
pub(crate) fn begin_again(ctx: &mut Context<'_>, name: &str) {
    let wanted = ctx.config.connections.iter().any(|c| c.name == name && c.start);
    if wanted && ctx.around.may_initiate(name) {
        initiate(ctx, name, None, None);
    }
}

fn initiate(ctx: &mut Context<'_>, name: &str, child: Option<&str>, remote: Option<IpAddr>) {
    let config = ctx.config;
    let Some(connection) = config
        .connections
        .iter()
        .find(|connection| connection.name == name)
    else {
        return failed(ctx, None, format!("no connection {name:?} in the configuration"));
    };
    if let Some(child) = child
        && connection.child(child).is_none()
    {
        return failed(ctx, Some(name), format!("no child {child:?} in this connection"));
    }
    let wanted: Vec<&str> = match child {
        Some(child) => vec![child],
        None => connection
            .children
            .iter()
            .filter(|c| c.start)
            .map(|c| c.name.as_str())
            .collect(),
    };
    if let Some(spi) = usable(ctx.table, name) {
        if let Some(mut sa) = ctx.table.take(spi) {
            for child in wanted {
                if !is_up_or_coming(&sa, child) {
                    sa.our.push(Task::CreateChild {
                        child: child.to_owned(),
                    });
                }
            }
            start_next(&mut sa, ctx);
            ctx.put_back(sa);
        }
        return;
    }
    let begun = match ticket::to_show(ctx, connection) {
        Some(held) => resume::start(ctx, connection, remote, held),
        None => ike_init::start(ctx, connection, remote),
    };
    match begun {
        Ok(mut sa) => {
            if let Some(child) = child.filter(|child| !is_up_or_coming(&sa, child)) {
                sa.our.push(Task::CreateChild {
                    child: child.to_owned(),
                });
            }
            ctx.put_back(sa);
        }
        Err(why) => failed(ctx, Some(name), format!("cannot initiate: {why}")),
    }
}

/// Children that come up with a connection which is up, and are neither up nor on their way.
pub(crate) fn missing_children(config: &EngineConfig, table: &Table, name: &str) -> Vec<String> {
    let sa = usable(table, name).and_then(|spi| table.get(spi));
    let Some(sa) = sa.filter(|sa| matches!(sa.phase, Phase::Established(_))) else {
        return Vec::new();
    };
    let connection = config.connections.iter().find(|c| c.name == name);
    let children = connection
        .into_iter()
        .flat_map(|c| &c.children)
        .filter(|c| c.start);
    let missing = children.filter(|child| !is_up_or_coming(sa, &child.name));
    missing.map(|child| child.name.clone()).collect()
}

/// Whether an IKE SA has a child, or has asked or is about to ask for it.
pub(crate) fn is_up_or_coming(sa: &IkeSa, child: &str) -> bool {
    let installed = |phase| matches!(phase, ChildPhase::Installed | ChildPhase::AwaitsSwitch { .. });
    let up = sa
        .children
        .iter()
        .any(|c| c.name == child && c.resource.is_none() && installed(c.phase));
    let asked = sa.our.pending().any(|pending| match pending {
        Pending::CreateChild(offer) => offer.name == child && offer.resource.is_none(),
        Pending::FollowUp(asked) => {
            let coming = Task::CreateChild {
                child: child.to_owned(),
            };
            asked.task == coming
        }
        _ => false,
    });
    let waits = sa.our.queue.iter().any(|queued| match &queued.task {
        Task::CreateChild { child: name } => name == child,
        _ => false,
    });
    let first = match &sa.phase {
        Phase::AwaitAuthResponse(phase) => phase.child.as_ref(),
        _ => None,
    };
    up || asked || waits || first.is_some_and(|offer| offer.name == child)
}

fn move_local(ctx: &mut Context<'_>, spi: IkeSpi, local: IpAddr) {
    let Some(mut sa) = ctx.table.take(spi) else {
        return failed(ctx, None, format!("no IKE SA with our SPI {spi}"));
    };
    match mobike_initiator::move_local(&mut sa, ctx, local) {
        Ok(()) => start_next(&mut sa, ctx),
        Err(why) => ctx.event(
            &sa,
            EventKind::CommandFailed,
            format!("it cannot move to {local}: {why}"),
        ),
    }
    ctx.put_back(sa);
}

/// Established IKE SAs look after their peer, and are rekeyed, as the configuration says now.
fn restart_timers(ctx: &mut Context<'_>, spi: IkeSpi) {
    let Some(mut sa) = ctx.table.take(spi) else {
        return;
    };
    if matches!(sa.phase, Phase::Established(_)) {
        let (since, ticket) = (sa.timers.since, sa.timers.ticket);
        let needed = |sa: &IkeSa| sa.more.authentication.as_ref().is_some_and(|a| a.is_needed);
        let before = needed(&sa);
        ike_auth::start_timers(&mut sa, ctx);
        (sa.timers.since, sa.timers.ticket) = (since, ticket);
        // The others are to know since when, now that it matters.
        sa.dirty |= needed(&sa) != before;
        let mut children = std::mem::take(&mut sa.children);
        for child in &mut children {
            if child.phase == ChildPhase::Installed {
                child_create::start_rekey_timer(&sa, ctx, child);
            }
        }
        sa.children = children;
    }
    ctx.put_back(sa);
}

fn on_child(ctx: &mut Context<'_>, spi_in: EspSpi, task: Task) {
    match ctx.table.by_child(spi_in) {
        Some(spi) => on_ike(ctx, spi, task),
        None => failed(ctx, None, format!("no Child SA with our inbound SPI {spi_in}")),
    }
}

fn repair(ctx: &mut Context<'_>, spi_in: EspSpi, delta: u64) {
    let Some(mut sa) = ctx.table.by_child(spi_in).and_then(|spi| ctx.table.take(spi)) else {
        return failed(ctx, None, format!("no Child SA with our inbound SPI {spi_in}"));
    };
    if matches!(sa.phase, Phase::Established(_)) {
        counter_sync::repair(&mut sa, ctx, spi_in, delta);
        start_next(&mut sa, ctx);
    }
    ctx.put_back(sa);
}

fn sync_message_ids(ctx: &mut Context<'_>, spi: IkeSpi, margin: u32) {
    let Some(mut sa) = ctx.table.take(spi) else {
        return failed(ctx, None, format!("no IKE SA with our SPI {spi}"));
    };
    if let Err(why) = message_id_sync::start(&mut sa, ctx, margin) {
        ctx.event(&sa, EventKind::CommandFailed, why);
    }
    ctx.put_back(sa);
}

fn on_ike(ctx: &mut Context<'_>, spi: IkeSpi, task: Task) {
    let Some(mut sa) = ctx.table.take(spi) else {
        return failed(ctx, None, format!("no IKE SA with our SPI {spi}"));
    };
    match (&sa.phase, &task) {
        (Phase::Established(_), Task::DeleteIke) => sa.our.push_front(task),
        (Phase::Established(_), _) => sa.our.push(task),
        // Not up yet: there is nobody to tell.
        (
            Phase::AwaitKey
            | Phase::AwaitInitResponse(_)
            | Phase::AwaitResumeResponse(_)
            | Phase::AwaitIntermediateResponse(_)
            | Phase::AwaitSignature(_)
            | Phase::AwaitAuthResponse(_)
            | Phase::AwaitAuthRequest(_)
            | Phase::AwaitEap(_),
            Task::DeleteIke,
        ) => {
            delete::vanish(&mut sa, ctx, "terminated while it was set up");
        }
        (Phase::Rekeyed(_) | Phase::Deleting(_) | Phase::Closed(_), Task::DeleteIke) => {}
        (phase, _) => {
            let text = format!(
                "IKE SA {spi} is {}, only an established one can do that",
                phase.name()
            );
            ctx.event(&sa, EventKind::CommandFailed, text);
        }
    }
    if !sa.gone {
        start_next(&mut sa, ctx);
    }
    ctx.put_back(sa);
}

fn reauthenticate(ctx: &mut Context<'_>, spi: IkeSpi) {
    let Some(mut sa) = ctx.table.take(spi) else {
        return failed(ctx, None, format!("no IKE SA with our SPI {spi}"));
    };
    let done = match sa.phase {
        Phase::Established(_) => reauth::now(&mut sa, ctx),
        _ => Err("only an established IKE SA can do that"),
    };
    match done {
        Ok(()) => start_next(&mut sa, ctx),
        Err(why) => ctx.event(&sa, EventKind::CommandFailed, format!("IKE SA {spi}: {why}")),
    }
    ctx.put_back(sa);
}

fn reestablish(ctx: &mut Context<'_>, spi: IkeSpi) {
    // Who names one that a fork touched may not know of the rekeys that came after.
    let spi = ctx.table.latest(spi);
    let Some(mut sa) = ctx.table.take(spi) else {
        return failed(ctx, None, format!("no IKE SA with our SPI {spi}"));
    };
    let configured = sa.connection(ctx.config).filter(|connection| connection.start);
    let name = configured.map(|connection| connection.name.clone());
    let name = name.filter(|name| ctx.around.may_initiate(name));
    let up = matches!(sa.phase, Phase::Established(_));
    if let Some(name) = name.filter(|_| up && sa.successor.is_none()) {
        delete::vanish(
            &mut sa,
            ctx,
            "a fork of it was lost, and the peer may have followed that: it is begun anew",
        );
        ctx.put_back(sa);
        return initiate(ctx, &name, None, None);
    }
    ctx.put_back(sa);
    on_ike(ctx, spi, Task::DeleteIke);
}

fn forget(ctx: &mut Context<'_>, connection: &str, remote_id: &str, except: IkeSpi) {
    for spi in ctx.table.of_connection(connection) {
        let same_peer = ctx.table.get(spi).is_some_and(|sa| {
            sa.remote_id
                .as_ref()
                .is_some_and(|id| id.to_string() == remote_id)
        });
        if spi != except
            && same_peer
            && let Some(mut sa) = ctx.table.take(spi)
        {
            delete::vanish(&mut sa, ctx, "the peer began anew with another member");
            ctx.put_back(sa);
        }
    }
}

pub(crate) fn connection_phase(config: &EngineConfig, table: &Table, name: &str) -> ConnectionPhase {
    let Some(spi) = usable(table, name) else {
        return ConnectionPhase::Down;
    };
    let Some(sa) = table.get(spi) else {
        return ConnectionPhase::Down;
    };
    if !matches!(sa.phase, Phase::Established(_)) {
        return ConnectionPhase::Connecting;
    }
    let children = config
        .connections
        .iter()
        .find(|c| c.name == name)
        .map(|c| c.children.as_slice());
    let up = |name: &str| {
        let installed = |phase| matches!(phase, ChildPhase::Installed | ChildPhase::AwaitsSwitch { .. });
        table.iter_connection(name_of(sa)).any(|sa| {
            sa.children
                .iter()
                .any(|child| child.name == name && child.resource.is_none() && installed(child.phase))
        })
    };
    let complete = children
        .unwrap_or_default()
        .iter()
        .filter(|child| child.start)
        .all(|child| up(&child.name));
    if complete {
        ConnectionPhase::Up
    } else {
        ConnectionPhase::Partial
    }
}

fn name_of(sa: &IkeSa) -> &str {
    sa.connection.as_deref().unwrap_or_default()
}
