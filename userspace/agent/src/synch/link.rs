//! One connection at a time per peer and link: installing, replacing, and moving records.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use model::MemberId;
use quinn::{Connection, RecvStream, SendStream};
use rustls_pki_types::CertificateDer;
use tokio::sync::{Notify, mpsc, watch};

use super::frame::{self, Frame, FrameError, Greeting};
use super::refusal::{Refusal, Refusals};
use super::{LinkId, QUEUE_OCTETS, RECORD_VERSIONS, STREAM_QUEUE, SendError, SynchCounters, SynchEvent};
use crate::pki::CertificateFacts;

/// A connection younger than this is not replaced by another one while it lives. So two that claim to be the same member
/// cannot take the link from each other faster than that.
pub(super) const YOUNG: Duration = Duration::from_secs(1);
/// The peer has greeted after this time.
const GREETING: Duration = Duration::from_secs(2);

/// Codes with which connections are closed.
pub(super) mod code {
    pub const BACKLOGGED: u32 = 1;
    pub const RESET: u32 = 2;
    pub const REPLACED: u32 = 3;
    pub const REFUSED: u32 = 4;
    pub const ENDED: u32 = 0;
}

/// The connection of a peer and link, if there is one.
pub(super) struct Slot {
    state: Mutex<SlotState>,
    /// Number of the last connection: changes with every one.
    pub installed: watch::Sender<u64>,
    /// The member that dials is to dial again, and then to leave the present connection.
    pub renew: Notify,
}

#[derive(Default)]
struct SlotState {
    generation: u64,
    current: Option<Current>,
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            installed: watch::Sender::new(0),
            renew: Notify::new(),
        }
    }
}

struct Current {
    connection: Connection,
    frames: mpsc::Sender<Frame>,
    /// Octets of records that wait for the stream.
    queued: Arc<AtomicUsize>,
    since: Instant,
    greeting: Greeting,
    /// Version of our credentials under which it was made.
    credentials: u64,
    peer: Option<CertificateDer<'static>>,
    /// Why it was closed from here.
    why: Option<String>,
}

impl Current {
    fn close(&mut self, code: u32, why: &str) {
        if self.connection.close_reason().is_none() {
            self.connection.close(code.into(), why.as_bytes());
            self.why = Some(why.to_owned());
        }
    }
}

/// What is known of a connection.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub since: Instant,
    pub greeting: Greeting,
    pub peer: Option<CertificateFacts>,
    pub rtt: Duration,
}

impl Slot {
    fn state(&self) -> std::sync::MutexGuard<'_, SlotState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn send_record(&self, record: Vec<u8>, refuse: impl FnOnce()) -> Result<(), SendError> {
        let mut state = self.state();
        let current = state.current.as_mut().ok_or(SendError::Down)?;
        let length = record.len();
        let waiting = current.queued.fetch_add(length, Ordering::Relaxed) + length;
        let sent = if waiting > QUEUE_OCTETS {
            Err(mpsc::error::TrySendError::Full(()))
        } else {
            let sent = current.frames.try_send(Frame::Record(record));
            sent.map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => mpsc::error::TrySendError::Full(()),
                mpsc::error::TrySendError::Closed(_) => mpsc::error::TrySendError::Closed(()),
            })
        };
        match sent {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(())) => Err(SendError::Down),
            Err(mpsc::error::TrySendError::Full(())) => {
                if current.connection.close_reason().is_none() {
                    current.close(code::BACKLOGGED, Refusal::Backlogged.text());
                    refuse();
                }
                Err(SendError::Backlogged)
            }
        }
    }

    pub fn send_datagram(&self, datagram: Bytes) -> bool {
        self.state()
            .current
            .as_ref()
            .is_some_and(|c| c.connection.send_datagram(datagram).is_ok())
    }

    pub fn close(&self, code: u32, why: &str) {
        if let Some(current) = &mut self.state().current {
            current.close(code, why);
        }
    }

    /// Asks the peer, which dials, for a new connection.
    pub fn ask_to_renew(&self) {
        if let Some(current) = &self.state().current {
            let _ = current.frames.try_send(Frame::Renew);
        }
    }

    /// What is known of the present connection; `None` while there is none.
    pub fn facts(&self) -> Option<Facts> {
        self.state().current.as_ref().map(|current| Facts {
            since: current.since,
            greeting: current.greeting.clone(),
            peer: current.peer.as_ref().and_then(|c| CertificateFacts::of(c).ok()),
            rtt: current.connection.rtt(),
        })
    }

    /// The certificate that the peer has shown.
    pub fn certificate(&self) -> Option<CertificateDer<'static>> {
        self.state().current.as_ref().and_then(|c| c.peer.clone())
    }

    /// Whether the present connection may not be replaced yet.
    pub fn is_young(&self) -> bool {
        self.state()
            .current
            .as_ref()
            .is_some_and(|c| c.since.elapsed() < YOUNG && c.connection.close_reason().is_none())
    }

    /// Whether a connection is there that was made under older credentials.
    pub fn is_stale(&self, credentials: u64) -> bool {
        self.state()
            .current
            .as_ref()
            .is_some_and(|c| c.credentials < credentials)
    }

    /// Makes this the current connection. Returns its number, and the one before.
    fn install(&self, next: Current) -> (u64, Option<Connection>) {
        let mut state = self.state();
        state.generation += 1;
        let before = state.current.replace(next);
        let generation = state.generation;
        drop(state);
        self.installed.send_replace(generation);
        (generation, before.map(|before| before.connection))
    }

    /// Ends this connection if it is the current one: why it was closed from here, if it was.
    fn remove(&self, generation: u64) -> Option<Option<String>> {
        let mut state = self.state();
        if state.generation != generation {
            return None;
        }
        state.current.take().map(|current| current.why)
    }

    fn is_current(&self, generation: u64) -> bool {
        self.state().generation == generation
    }
}

/// A connection whose peer has greeted.
pub(super) struct Greeted {
    pub connection: Connection,
    /// This member's stream; `None` where its greeting is still to come.
    send: Option<SendStream>,
    receive: RecvStream,
    greeting: Greeting,
}

fn lost(error: quinn::ConnectionError) -> FrameError {
    match Refusal::of(&error) {
        Some(why) => FrameError::Refused(why),
        None => FrameError::Lost(error.to_string()),
    }
}

/// Opens this member's stream with its greeting.
async fn open(connection: &Connection) -> Result<SendStream, FrameError> {
    let mut send = connection.open_uni().await.map_err(lost)?;
    let greeting = Greeting {
        records: RECORD_VERSIONS,
        release: env!("CARGO_PKG_VERSION").to_owned(),
    };
    match frame::write(&mut send, Frame::Greeting(greeting)).await {
        Ok(_) => Ok(send),
        Err(error) => Err(FrameError::Lost(error.to_string())),
    }
}

/// Waits for the peer's greeting. The member that was dialled greets first: by that the other one knows that its
/// certificate was accepted (in TLS 1.3 its own handshake ends before), makes the connection its link's, and only then
/// greets. So when the one that was dialled hears a greeting, the other one no longer needs the connection before.
pub(super) async fn greet(connection: Connection, dials: bool) -> Result<Greeted, FrameError> {
    let greeted = tokio::time::timeout(GREETING, async {
        let send = if dials {
            None
        } else {
            Some(open(&connection).await?)
        };
        let mut receive = connection.accept_uni().await.map_err(lost)?;
        match frame::read(&mut receive).await? {
            Some(Frame::Greeting(greeting)) => Ok((send, receive, greeting)),
            _ => Err(FrameError::Refused(Refusal::GreetingMissing)),
        }
    })
    .await;
    let failure = match greeted {
        Ok(Ok((send, receive, greeting))) => {
            return Ok(Greeted {
                connection,
                send,
                receive,
                greeting,
            });
        }
        Ok(Err(error)) => error,
        Err(_) => FrameError::Refused(Refusal::GreetingMissing),
    };
    connection.close(code::REFUSED.into(), failure.to_string().as_bytes());
    Err(failure)
}

/// The certificate that the peer has shown in the handshake.
pub(super) fn peer_certificate(connection: &Connection) -> Option<CertificateDer<'static>> {
    let identity = connection.peer_identity()?;
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.into_iter().next()
}

/// What all tasks of a peer and link share.
#[derive(Clone)]
pub(super) struct Shared {
    pub peer: MemberId,
    pub link: LinkId,
    /// Whether this member is the one that dials.
    pub dials: bool,
    pub slot: Arc<Slot>,
    /// Held while events of the stream are told, so that those of an old connection never follow the new one's `Up`.
    pub order: Arc<tokio::sync::Mutex<()>>,
    pub events: mpsc::Sender<SynchEvent>,
    pub counters: Arc<SynchCounters>,
    pub refusals: Arc<Refusals>,
}

/// Why a connection ends whose successor is there.
const REPLACED: &str = "replaced by a newer connection";

/// Leaves a connection that has a successor. The member that dials has the successor first; it lets the other one close,
/// so that neither is without a connection for even a moment.
async fn leave(connection: Connection, dials: bool) {
    if dials {
        let _ = tokio::time::timeout(GREETING, connection.closed()).await;
    }
    connection.close(code::REPLACED.into(), REPLACED.as_bytes());
}

/// A connection that is the current one of its link, with what is needed to serve it.
pub(super) struct Serving {
    shared: Shared,
    generation: u64,
    connection: Connection,
    send: Option<SendStream>,
    receive: RecvStream,
    frames: mpsc::Receiver<Frame>,
    queued: Arc<AtomicUsize>,
}

impl Shared {
    pub fn refuse(&self, why: Refusal, detail: &str) {
        let who = format_args!("member {}", self.peer);
        self.refusals.note(why, &who, self.link.name(), detail);
    }

    /// Makes a connection the link's. The old one, if any, goes only now that the new one is proven.
    ///
    /// # Errors
    /// The present one is too young.
    pub async fn admit(&self, greeted: Greeted, credentials: u64) -> Result<Serving, Refusal> {
        let _order = self.order.lock().await;
        if self.slot.is_young() {
            let why = Refusal::TooSoon;
            greeted
                .connection
                .close(code::REFUSED.into(), why.text().as_bytes());
            return Err(why);
        }
        let (lowest, highest) = greeted.greeting.records;
        if highest < RECORD_VERSIONS.0 || RECORD_VERSIONS.1 < lowest {
            tracing::warn!(
                peer = %self.peer, release = %greeted.greeting.release,
                "member reads records of versions {lowest} to {highest}, this one {} to {}: run releases that have one in common",
                RECORD_VERSIONS.0, RECORD_VERSIONS.1
            );
        }
        let (sender, frames) = mpsc::channel(STREAM_QUEUE);
        let queued = Arc::new(AtomicUsize::new(0));
        let (generation, before) = self.slot.install(Current {
            connection: greeted.connection.clone(),
            frames: sender,
            queued: queued.clone(),
            since: Instant::now(),
            greeting: greeted.greeting,
            credentials,
            peer: peer_certificate(&greeted.connection),
            why: None,
        });
        if let Some(before) = before {
            tokio::spawn(leave(before, self.dials));
            self.tell(SynchEvent::Down(self.peer, self.link, REPLACED.to_owned()))
                .await;
        }
        SynchCounters::add(&self.counters.connections, 1);
        self.tell(SynchEvent::Up(self.peer, self.link)).await;
        Ok(Serving {
            shared: self.clone(),
            generation,
            connection: greeted.connection,
            send: greeted.send,
            receive: greeted.receive,
            frames,
            queued,
        })
    }

    async fn tell(&self, event: SynchEvent) {
        // The core loop is gone only when the agent stops.
        let _ = self.events.send(event).await;
    }
}

impl Serving {
    /// Serves the connection to its end.
    pub async fn run(mut self) {
        let shared = self.shared.clone();
        let generation = self.generation;
        let connection = self.connection.clone();
        let why = tokio::select! {
            why = write(&shared, &connection, self.send.take(), &mut self.frames, &self.queued) => why,
            why = read(&shared, generation, &connection, &mut self.receive) => why,
            why = datagrams(&shared, generation, &connection) => why,
        };
        // What the connection says is more than what its streams say.
        let why = match connection.close_reason() {
            Some(reason) => reason.to_string(),
            None => why,
        };
        connection.close(code::ENDED.into(), why.as_bytes());
        let _order = shared.order.lock().await;
        if let Some(from_here) = shared.slot.remove(generation) {
            let why = from_here.unwrap_or(why);
            shared.tell(SynchEvent::Down(shared.peer, shared.link, why)).await;
        }
    }
}

async fn write(
    shared: &Shared,
    connection: &Connection,
    stream: Option<SendStream>,
    frames: &mut mpsc::Receiver<Frame>,
    queued: &AtomicUsize,
) -> String {
    let mut stream = match stream {
        Some(stream) => stream,
        None => match open(connection).await {
            Ok(stream) => stream,
            Err(error) => return error.to_string(),
        },
    };
    while let Some(frame) = frames.recv().await {
        let length = match &frame {
            Frame::Record(record) => record.len(),
            _ => 0,
        };
        match frame::write(&mut stream, frame).await {
            Ok(octets) => SynchCounters::add(&shared.counters.stream_sent, octets),
            Err(error) => return error.to_string(),
        }
        queued.fetch_sub(length, Ordering::Relaxed);
    }
    // It has a successor, which sees to its end.
    connection.closed().await.to_string()
}

async fn read(shared: &Shared, generation: u64, connection: &Connection, stream: &mut RecvStream) -> String {
    loop {
        match frame::read(stream).await {
            Ok(Some(Frame::Record(record))) => {
                SynchCounters::add(&shared.counters.stream_received, record.len() + 4);
                let order = shared.order.lock().await;
                if !shared.slot.is_current(generation) {
                    drop(order);
                    return connection.closed().await.to_string();
                }
                shared
                    .tell(SynchEvent::Record(shared.peer, shared.link, record))
                    .await;
            }
            Ok(Some(Frame::Renew)) => shared.slot.renew.notify_one(),
            // Once is enough, more do no harm.
            Ok(Some(Frame::Greeting(_))) => {}
            Ok(None) => return "the peer closed its stream".to_owned(),
            Err(FrameError::Refused(why)) => {
                shared.refuse(why, "");
                return why.text().to_owned();
            }
            Err(FrameError::Lost(why)) => return why,
        }
    }
}

async fn datagrams(shared: &Shared, generation: u64, connection: &Connection) -> String {
    loop {
        match connection.read_datagram().await {
            Ok(datagram) => {
                SynchCounters::add(&shared.counters.datagram_received, datagram.len());
                if shared.slot.is_current(generation)
                    && shared
                        .events
                        .try_send(SynchEvent::Datagram(shared.peer, shared.link, datagram))
                        .is_err()
                {
                    SynchCounters::add(&shared.counters.datagram_lost, 1);
                }
            }
            Err(error) => return error.to_string(),
        }
    }
}
