//! The event loop: waits for whatever comes first and hands it to the core.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use dataplane::{EventReader, LogReader, SlowReader};
use ike::Input;
use model::Instant;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::pace::Pace;
use super::setup::Io;
use super::{Core, Stop};
use crate::config::Config;
use crate::control::{self, Request};
use crate::net::batch::Inbox;
use crate::pki::Identity;
use crate::synch::SynchEvent;
use crate::{clock, net};

/// Records of the synch channel taken in one turn.
const RECORDS: usize = 64;
/// Asks for next hops this often: well within the time after which the kernel lets an entry go stale.
const NEIGHBOURS: Duration = Duration::from_secs(5);

/// Waits for a ring buffer.
fn watch<T: AsRawFd>(reader: T) -> Result<AsyncFd<T>> {
    // SAFETY: the readers own their ring buffer's descriptor and show the same one for all their life.
    let watched = unsafe { AsyncFd::register_with_interest(reader, Interest::READABLE) };
    watched.map_err(|error| anyhow::anyhow!("cannot watch a ring buffer: {}", error.into_parts().1))
}

/// Runs a member until it is told to stop. `file` is what the configuration was read from, and is read again by a reload.
///
/// # Errors
/// It cannot be brought up: cause and remedy are in the text.
pub fn run(config: Config, file: &Path) -> Result<()> {
    let pace = Pace::default();
    let resting = pace.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_park(move || resting.before_waiting())
        .build()
        .context("cannot start the event loop")?;
    runtime.block_on(serve(config, file, &pace))
}

async fn serve(config: Config, file: &Path, pace: &Pace) -> Result<()> {
    let identity = Identity::load(&config.cluster.pki, config.cluster.member)?;
    let (requests, mut wishes) = mpsc::channel(64);
    let socket = control::serve_socket(&config.control.socket, requests.clone())?;
    if let Some(address) = config.control.metrics {
        control::serve_metrics(address, requests.clone()).await?;
    }
    let (to_core, mut synch) = mpsc::channel(4096);
    let (mut core, mut io) = Core::start(config, file, &identity, to_core).await?;
    let events = watch(
        core.plane
            .take_events()
            .context("the ring buffer of events is taken")?,
    )?;
    let frames = watch(
        core.plane
            .take_slow()
            .context("the ring buffer of frames is taken")?,
    )?;
    keep_neighbours(&core, &io);
    let logs = core.plane.take_log().map(watch).transpose()?;
    let rings = Rings { events, frames, logs };
    let result = event_loop(&mut core, &mut io, rings, &mut wishes, &mut synch, pace).await;
    socket.close().await;
    core.synch.close().await;
    if core.stopping == Some(Stop::Kept) {
        // Programs, maps and pins stay: the next life goes on with them.
        return result;
    }
    core.plane.detach().context("cannot remove the pins")?;
    result
}

/// Keeps next hops resolved, in a task of its own.
fn keep_neighbours(core: &Core, io: &Io) {
    let handle = io.netlink.clone();
    let interfaces = core.ports.all().map(|p| p.index).collect::<Vec<_>>();
    let known = core.reload.peers();
    tokio::spawn(async move {
        loop {
            let peers = known.borrow().clone();
            for (index, address) in net::neighbour::next_hops(&handle, &interfaces, &peers).await {
                net::neighbour::probe(&handle, index, address).await;
            }
            tokio::time::sleep(NEIGHBOURS).await;
        }
    });
}

fn drain(core: &mut Core, events: &mut AsyncFd<EventReader>, frames: &mut AsyncFd<SlowReader>) {
    let mut seen = Vec::new();
    events.get_mut().drain(|event| seen.push(event));
    core.program_events(&seen);
    frames.get_mut().drain(|head, frame| core.slow_frame(head, frame));
}

/// The ring buffers of the programs.
struct Rings {
    events: AsyncFd<EventReader>,
    frames: AsyncFd<SlowReader>,
    /// `None` where the programs do not log.
    logs: Option<AsyncFd<LogReader>>,
}

/// Waits for a ring buffer that need not be there.
async fn readable<T: AsRawFd>(ring: Option<&AsyncFd<T>>) {
    match ring {
        Some(ring) => {
            if let Ok(mut ready) = ring.readable().await {
                ready.clear_ready();
            }
        }
        None => std::future::pending().await,
    }
}

/// What a handshake is made of, and that is there by now: all of it belongs to this turn, so that it is journalled and leaves together.
fn gather(
    core: &mut Core,
    io: &mut Io,
    synch: &mut mpsc::Receiver<SynchEvent>,
    inbox: &mut Inbox,
    pace: &Pace,
) {
    for _ in 0..RECORDS {
        let Ok(event) = synch.try_recv() else { break };
        core.synch_event(event);
    }
    for _ in 0..RECORDS {
        let Ok(computed) = io.computed.try_recv() else {
            break;
        };
        core.computed(computed);
    }
    let sockets = io.sockets.clone();
    if sockets.receive(inbox, |local, remote, bytes| core.datagram(local, remote, bytes)) {
        pace.found(clock::now());
    }
}

async fn event_loop(
    core: &mut Core,
    io: &mut Io,
    rings: Rings,
    wishes: &mut mpsc::Receiver<Request>,
    synch: &mut mpsc::Receiver<SynchEvent>,
    pace: &Pace,
) -> Result<()> {
    let Rings {
        mut events,
        mut frames,
        mut logs,
    } = rings;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut inbox = Inbox::new();
    let mut packet = vec![0; 65_536];
    let mut esp = vec![0; 65_536];
    let mut second = clock::now();
    let mut leaving: Option<Instant> = None;
    // One timer for all turns, set to the next time to wake up: most turns end with the same one.
    let alarm = tokio::time::sleep(Duration::ZERO);
    tokio::pin!(alarm);
    let mut set = Instant(0);
    loop {
        let now = clock::now();
        // First what others wait for: heartbeats, owner words, acknowledgements.
        if core.node.next_wake() <= now {
            core.node_input(cluster::Input::Tick { now });
        }
        if core.engine.next_timeout().is_some_and(|at| at <= now) {
            core.engine_input(Input::Timeout { now });
        }
        core.announce_again(now);
        core.orders_turn(now);
        core.linger_turn(now);
        if core.scan.due <= now {
            drain(core, &mut events, &mut frames);
            core.scan_turn(now);
        }
        // Each of these takes two milliseconds of a turn at most, and has another one at once while there is more to do.
        core.merge_turn(now);
        core.adopt_turn(now);
        core.snapshot_turn(now);
        core.list_turn(now);
        core.reload_turn(now);
        core.guests_turn(now);
        core.forks_turn(now);
        core.end_turn();
        if second <= now {
            second = now + Duration::from_secs(1);
            core.every_second();
        }
        match core.stopping {
            Some(Stop::Kept) => return Ok(()),
            Some(Stop::Leave) if leaving.is_none() => leaving = Some(core.leave()),
            _ => {}
        }
        if leaving.is_some_and(|until| now >= until || core.has_left()) {
            return Ok(());
        }
        let wake = core.next_wake().min(second);
        let left = wake.since(clock::now());
        if left.is_zero() {
            // The synch channel's tasks share this thread.
            tokio::task::yield_now().await;
        }
        if wake != set || alarm.is_elapsed() {
            set = wake;
            alarm.as_mut().reset(tokio::time::Instant::now() + left);
        }
        tokio::select! {
            biased;
            _ = terminate.recv(), if leaving.is_none() => leaving = Some(core.leave()),
            _ = interrupt.recv(), if leaving.is_none() => leaving = Some(core.leave()),
            _ = hangup.recv() => {
                match core.reload_pki() {
                    Ok(text) => tracing::info!("SIGHUP: {text}"),
                    Err(why) => tracing::warn!("SIGHUP: certificates and secrets stay as they were: {why}"),
                }
                core.hangup();
            }
            Some(told) = io.reloads.recv() => core.reload_told(told),
            Some(seen) = io.seen.recv() => core.devices_seen(&seen),
            Some(event) = synch.recv() => core.synch_event(event),
            Some(told) = io.ownership.recv() => core.ownership_told(told),
            Some(made) = io.snapshots.recv() => core.snapshot_made(made),
            Some(signed) = io.signed.recv() => core.signed(signed),
            Some(computed) = io.computed.recv() => core.computed(computed),
            Some(answer) = io.named.recv() => core.name_answered(answer),
            Some(event) = io.network.recv() => core.net_event(&event),
            ready = events.readable() => {
                if let Ok(mut ready) = ready { ready.clear_ready(); }
                drain(core, &mut events, &mut frames);
            }
            ready = frames.readable() => {
                if let Ok(mut ready) = ready { ready.clear_ready(); }
                drain(core, &mut events, &mut frames);
            }
            () = readable(logs.as_ref()) => {
                if let Some(logs) = &mut logs { logs.get_mut().drain(); }
            }
            // It is read below.
            () = io.sockets.readable() => {}
            Some(wish) = wishes.recv() => core.answer(wish),
            Ok(length) = io.tun.recv(&mut packet) => core.local_packet(&packet[..length]),
            Ok(length) = io.esp.receive(&mut esp) => core.reassembled(&esp[..length]),
            // Last: whatever has come goes before work that can wait. Timers are looked at in every turn.
            () = &mut alarm => {}
        }
        gather(core, io, synch, &mut inbox, pace);
    }
}

impl Core {
    /// When the loop has something to do of itself.
    fn next_wake(&self) -> Instant {
        let turns = self.is_adopting()
            || self.snapshots.is_busy()
            || self.reload.is_busy()
            || self.forks.is_searching();
        if turns || !self.merging.is_empty() || !self.listings.is_empty() {
            return Instant(0);
        }
        let timers = [
            self.engine.next_timeout(),
            self.announce_due(),
            self.sad.lingering_due(),
        ];
        let timers = timers.into_iter().flatten();
        timers
            .chain([self.node.next_wake(), self.scan.due])
            .min()
            .unwrap_or(Instant(0))
    }
}
