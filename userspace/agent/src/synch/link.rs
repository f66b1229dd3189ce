//! One connection at a time per peer and link: dialling, accepting, and moving records.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use model::MemberId;
use quinn::{Connection, Endpoint};
use rustls_pki_types::CertificateDer;
use tokio::sync::mpsc;

use super::{LinkId, STREAM_QUEUE, SendError, SynchCounters, SynchEvent, frame};
use crate::pki;

/// Time between two attempts to reach a member.
const REDIAL: Duration = Duration::from_millis(100);
/// A handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(2);

/// The connection of a peer and link, if there is one.
#[derive(Default)]
pub(super) struct Slot(Mutex<SlotState>);

#[derive(Default)]
struct SlotState {
    generation: u64,
    current: Option<Current>,
}

struct Current {
    connection: Connection,
    records: mpsc::Sender<Vec<u8>>,
}

impl Slot {
    fn state(&self) -> std::sync::MutexGuard<'_, SlotState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn send_record(&self, record: Vec<u8>) -> Result<(), SendError> {
        let state = self.state();
        let current = state.current.as_ref().ok_or(SendError::Down)?;
        match current.records.try_send(record) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(SendError::Down),
            Err(mpsc::error::TrySendError::Full(_)) => {
                current
                    .connection
                    .close(1_u32.into(), b"the peer does not keep up");
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

    pub fn close(&self, why: &str) {
        if let Some(current) = &self.state().current {
            current.connection.close(2_u32.into(), why.as_bytes());
        }
    }

    /// Makes `connection` the current one; the one before is closed. Returns its generation.
    fn install(&self, connection: &Connection, records: mpsc::Sender<Vec<u8>>) -> (u64, bool) {
        let mut state = self.state();
        state.generation += 1;
        let before = state.current.replace(Current {
            connection: connection.clone(),
            records,
        });
        if let Some(before) = &before {
            before
                .connection
                .close(3_u32.into(), b"replaced by a newer connection");
        }
        (state.generation, before.is_some())
    }

    /// Whether this generation was the current one.
    fn remove(&self, generation: u64) -> bool {
        let mut state = self.state();
        let current = state.generation == generation && state.current.is_some();
        if current {
            state.current = None;
        }
        current
    }
}

/// What all tasks of a peer and link share.
#[derive(Clone)]
pub(super) struct Shared {
    pub peer: MemberId,
    pub link: LinkId,
    pub slot: Arc<Slot>,
    pub events: mpsc::Sender<SynchEvent>,
    pub counters: Arc<SynchCounters>,
}

impl Shared {
    /// Serves a connection to its end.
    async fn serve(&self, connection: Connection) {
        let (sender, records) = mpsc::channel(STREAM_QUEUE);
        let (generation, replaced) = self.slot.install(&connection, sender);
        if replaced {
            self.tell(SynchEvent::Down(
                self.peer,
                self.link,
                "replaced by a newer connection".to_owned(),
            ))
            .await;
        }
        self.tell(SynchEvent::Up(self.peer, self.link)).await;
        let why = tokio::select! {
            why = self.write(&connection, records) => why,
            why = self.read(&connection, generation) => why,
            why = self.datagrams(&connection, generation) => why,
        };
        connection.close(0_u32.into(), why.as_bytes());
        if self.slot.remove(generation) {
            self.tell(SynchEvent::Down(self.peer, self.link, why)).await;
        }
    }

    async fn tell(&self, event: SynchEvent) {
        // The core loop is gone only when the agent stops.
        let _ = self.events.send(event).await;
    }

    fn is_current(&self, generation: u64) -> bool {
        self.slot.state().generation == generation
    }

    async fn write(&self, connection: &Connection, mut records: mpsc::Receiver<Vec<u8>>) -> String {
        let mut stream = match connection.open_uni().await {
            Ok(stream) => stream,
            Err(error) => return error.to_string(),
        };
        while let Some(record) = records.recv().await {
            let length = record.len() + 4;
            if let Err(error) = frame::write(&mut stream, record).await {
                return error.to_string();
            }
            SynchCounters::add(&self.counters.stream_sent, length);
        }
        "replaced".to_owned()
    }

    async fn read(&self, connection: &Connection, generation: u64) -> String {
        let mut stream = match connection.accept_uni().await {
            Ok(stream) => stream,
            Err(error) => return error.to_string(),
        };
        loop {
            match frame::read(&mut stream).await {
                Ok(Some(record)) if self.is_current(generation) => {
                    SynchCounters::add(&self.counters.stream_received, record.len() + 4);
                    self.tell(SynchEvent::Record(self.peer, self.link, record)).await;
                }
                Ok(Some(_)) => return "replaced".to_owned(),
                Ok(None) => return "the peer closed its stream".to_owned(),
                Err(error) => return error.to_string(),
            }
        }
    }

    async fn datagrams(&self, connection: &Connection, generation: u64) -> String {
        loop {
            match connection.read_datagram().await {
                Ok(datagram) => {
                    SynchCounters::add(&self.counters.datagram_received, datagram.len());
                    if self.is_current(generation)
                        && self
                            .events
                            .try_send(SynchEvent::Datagram(self.peer, self.link, datagram))
                            .is_err()
                    {
                        SynchCounters::add(&self.counters.datagram_lost, 1);
                    }
                }
                Err(error) => return error.to_string(),
            }
        }
    }
}

/// Keeps a connection to a member with a higher id.
pub(super) struct Dialer {
    pub endpoint: Endpoint,
    pub address: SocketAddr,
    pub name: String,
    pub shared: Shared,
}

impl Dialer {
    pub async fn run(self) {
        while !self.shared.events.is_closed() {
            match self.endpoint.connect(self.address, &self.name) {
                Ok(connecting) => match tokio::time::timeout(HANDSHAKE, connecting).await {
                    Ok(Ok(connection)) => self.shared.serve(connection).await,
                    Ok(Err(error)) => tracing::debug!(
                        peer = %self.shared.peer, link = self.shared.link.name(), %error, "member not reached"
                    ),
                    Err(_) => tracing::debug!(
                        peer = %self.shared.peer, link = self.shared.link.name(), "member does not answer"
                    ),
                },
                Err(quinn::ConnectError::EndpointStopping) => return,
                Err(error) => tracing::warn!(peer = %self.shared.peer, %error, "cannot dial the member"),
            }
            tokio::time::sleep(REDIAL).await;
        }
    }
}

/// Accepts members with a lower id.
pub(super) struct Listener {
    pub endpoint: Endpoint,
    pub cluster: String,
    pub members: Vec<MemberId>,
    pub peers: HashMap<MemberId, Shared>,
    pub counters: Arc<SynchCounters>,
}

impl Listener {
    pub async fn run(self) {
        let this = Arc::new(self);
        while let Some(incoming) = this.endpoint.accept().await {
            let this = this.clone();
            tokio::spawn(async move {
                match this.admit(incoming).await {
                    Ok((shared, connection)) => shared.serve(connection).await,
                    Err(why) => {
                        this.counters.refused.fetch_add(1, Ordering::Relaxed);
                        tracing::debug!(why, "refused a connection to the synch channel");
                    }
                }
            });
        }
    }

    async fn admit(&self, incoming: quinn::Incoming) -> Result<(Shared, Connection), String> {
        let connecting = incoming.accept().map_err(|e| e.to_string())?;
        let connection = tokio::time::timeout(HANDSHAKE, connecting)
            .await
            .map_err(|_| "the handshake took too long".to_owned())?
            .map_err(|e| e.to_string())?;
        let certificates = connection
            .peer_identity()
            .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
            .ok_or("no certificate")?;
        let member = certificates
            .first()
            .and_then(|c| pki::member_of(c, &self.cluster, &self.members));
        let shared = member.and_then(|m| self.peers.get(&m));
        match shared {
            Some(shared) => Ok((shared.clone(), connection)),
            None => {
                connection.close(4_u32.into(), b"not a member that dials here");
                Err("the certificate names no member that dials here".to_owned())
            }
        }
    }
}
