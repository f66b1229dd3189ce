//! What one input brings about, collected until it has been handled completely.

use crate::config::EngineConfig;
use crate::event::{Event, EventKind};
use crate::exchange::{ComputeRequest, Exchanges};
use crate::ike_sa::{IkeSa, Path};
use crate::io::{SignRequest, Surroundings, TlsRequest, Transmit};
use crate::table::Table;
use crate::tasks::redirect::Redirects;
use crate::tickets::Tickets;
use model::{ChildSaChange, EspSpi, IkeSpi, Instant};
use std::net::SocketAddr;

/// Effects of one input.
#[derive(Default)]
pub(crate) struct Outbox {
    /// IKE SAs whose record changed, in order of the first change.
    pub dirty: Vec<IkeSpi>,
    /// IKE SAs that standbys know and that are gone.
    pub removed: Vec<IkeSpi>,
    pub child_changes: Vec<ChildSaChange>,
    /// Released by the commit.
    pub transmits: Vec<Transmit>,
    /// Retransmissions and stateless answers.
    pub plain: Vec<Transmit>,
    /// Signatures that are needed.
    pub signs: Vec<SignRequest>,
    /// Messages for TLS.
    pub tls: Vec<TlsRequest>,
    /// Key exchanges that are needed.
    pub computes: Vec<ComputeRequest>,
    pub events: Vec<Event>,
}

/// What a task may use.
pub(crate) struct Context<'a> {
    pub now: Instant,
    pub config: &'a EngineConfig,
    pub around: &'a mut dyn Surroundings,
    pub out: &'a mut Outbox,
    /// The other IKE SAs; the one at hand has been taken out.
    pub table: &'a mut Table,
    pub tickets: &'a mut Tickets,
    pub exchanges: &'a mut Exchanges,
    pub redirects: &'a mut Redirects,
    /// Our address and the peer's on the datagram that is handled.
    pub from: Option<(SocketAddr, SocketAddr)>,
    /// Where the IKE SA's messages went before that datagram.
    pub path_before: Option<Path>,
}

impl Context<'_> {
    /// Fresh random octets.
    pub fn random(&mut self, len: usize) -> Vec<u8> {
        let mut octets = vec![0; len];
        self.around.random(&mut octets);
        octets
    }

    pub fn random_u64(&mut self) -> u64 {
        let mut octets = [0; 8];
        self.around.random(&mut octets);
        u64::from_ne_bytes(octets)
    }

    pub fn random_u32(&mut self) -> u32 {
        let mut octets = [0; 4];
        self.around.random(&mut octets);
        u32::from_ne_bytes(octets)
    }

    /// Reports something about an IKE SA.
    pub fn event(&mut self, sa: &IkeSa, kind: EventKind, text: impl Into<String>) {
        self.child_event(sa, None, kind, text);
    }

    /// Reports that a Child SA came or went.
    pub fn named_child_event(
        &mut self,
        sa: &IkeSa,
        (child, spi_in): (&str, EspSpi),
        kind: EventKind,
        text: impl Into<String>,
    ) {
        self.child_event(sa, Some(spi_in), kind, text);
        if let Some(event) = self.out.events.last_mut() {
            event.child = Some(child.to_owned());
        }
    }

    /// Reports something about a Child SA.
    pub fn child_event(
        &mut self,
        sa: &IkeSa,
        spi_in: Option<EspSpi>,
        kind: EventKind,
        text: impl Into<String>,
    ) {
        self.out.events.push(Event {
            kind,
            connection: sa.connection.clone(),
            local: Some(sa.path.local),
            peer: Some(sa.path.remote),
            ike_spi: Some(sa.spi),
            spi_in,
            child: None,
            was_up: sa.was_up(),
            text: text.into(),
        });
    }

    /// Reports something that belongs to no IKE SA.
    pub fn event_without_sa(
        &mut self,
        kind: EventKind,
        connection: Option<&str>,
        peer: Option<SocketAddr>,
        text: impl Into<String>,
    ) {
        self.out.events.push(Event {
            kind,
            connection: connection.map(str::to_owned),
            local: None,
            peer,
            ike_spi: None,
            spi_in: None,
            child: None,
            was_up: false,
            text: text.into(),
        });
    }

    /// Puts an IKE SA back after it has been handled, or lets it go.
    pub fn put_back(&mut self, sa: impl Into<Box<IkeSa>>) {
        let mut sa = sa.into();
        if sa.gone {
            self.out.dirty.retain(|spi| *spi != sa.spi);
            if sa.committed {
                self.out.removed.push(sa.spi);
            }
            self.table.forget(&sa);
            return;
        }
        if sa.dirty {
            sa.dirty = false;
            sa.committed = true;
            if !self.out.dirty.contains(&sa.spi) {
                self.out.dirty.push(sa.spi);
            }
        }
        self.table.put(sa);
    }
}
