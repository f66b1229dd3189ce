//! An IKE SA: phase x our window x the peer's window, and its Child SAs.
//!
//! Everything here but the timers is the record that other members get.

pub(crate) mod authentication;
pub(crate) mod child;
pub(crate) mod extras;
pub(crate) mod fragments;
pub(crate) mod message;
pub(crate) mod more;
pub(crate) mod phase;
pub(crate) mod record;
pub(crate) mod windows;

use crate::config::{Connection, EngineConfig, Identity};
use crate::exchange::Computing;
use crate::status::{Agreed, ChildSaStatus, IkeSaStatus};
use crate::tasks::eap_tls::Asked;
use crate::tasks::proof::Signing;
use child::ChildSa;
use extras::Extras;
use model::{EspSpi, IkeSpi, Instant};
use more::More;
use phase::Phase;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::time::Duration;
use windows::{OurWindow, Task, TheirWindow};

/// Requests that wait for their response at the same time, whatever the peer announces.
const WINDOW_MAX: u32 = 64;

/// Where the messages go, and what lies between.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Path {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// We are behind a NAT.
    pub nat_local: bool,
    /// The peer is behind a NAT.
    pub nat_remote: bool,
    /// ESP goes in UDP.
    pub encap: bool,
}

/// Points in time; they start anew after a takeover, so they are not part of the record.
#[derive(Clone, Copy, Default)]
pub(crate) struct Timers {
    /// Half-open or closed: forget it then.
    pub expire: Option<Instant>,
    pub rekey: Option<Instant>,
    /// When its authentication is looked at; when it is to be done anew, or was to be by the peer; how often that has failed, and whether
    /// an attempt was begun.
    pub reauth: Option<Instant>,
    pub reauth_due: Option<Instant>,
    pub reauth_tries: u8,
    pub reauth_begun: bool,
    /// A Child SA that replaces one of another IKE SA waits no longer for the end of that.
    pub switch: Option<Instant>,
    pub liveness: Option<Instant>,
    pub keepalive: Option<Instant>,
    /// The ticket is to be replaced by a new one.
    pub ticket: Option<Instant>,
    /// The peer's series of additional key exchanges is given up.
    pub follow_up: Option<Instant>,
    /// Responses are not kept for ever.
    pub forget: Option<Instant>,
    /// When an unprotected message last made us check the peer.
    pub hinted: Instant,
    /// When a QCD token that is none of the peer's was last reported.
    pub refused_token: Option<Instant>,
    /// Since when it is established (on this member).
    pub since: Instant,
}

/// An IKE SA. No `Debug`: it holds keys.
#[derive(Serialize, Deserialize)]
pub(crate) struct IkeSa {
    pub spi: IkeSpi,
    pub peer_spi: IkeSpi,
    /// Whether we were the original initiator: decides the I flag, whose SPI stands first, and which keys are ours.
    pub initiator: bool,
    /// Not known to a responder before IKE_AUTH.
    pub connection: Option<String>,
    pub remote_id: Option<Identity>,
    pub path: Path,
    pub phase: Phase,
    pub our: OurWindow,
    pub their: TheirWindow,
    pub children: Vec<ChildSa>,
    /// The IKE SA that replaced this one.
    pub successor: Option<IkeSpi>,
    /// Next value of the 40-bit counter in the IVs.
    pub iv_counter: u64,
    /// The record's second part.
    #[serde(skip)]
    pub extras: Extras,
    /// The record's third part.
    #[serde(skip)]
    pub more: More,
    /// Fragments of the message that is expected.
    #[serde(skip)]
    pub fragments: Option<Box<fragments::Reassembly>>,
    #[serde(skip)]
    pub timers: Timers,
    /// A signature that is waited for. A member that takes over asks for one of its own.
    #[serde(skip)]
    pub signing: Option<Box<Signing>>,
    /// A message of EAP-TLS that TLS was asked about.
    #[serde(skip)]
    pub tls: Option<Box<Asked>>,
    /// Key exchanges that are waited for: a member that takes over asks for its own. As many as the IKE SA can wait for.
    #[serde(skip)]
    pub computing: Vec<Computing>,
    /// Standbys know it, so its removal has to be told.
    #[serde(skip)]
    pub committed: bool,
    /// Changed while the current input is handled.
    #[serde(skip)]
    pub dirty: bool,
    /// To be removed at the end of the current input.
    #[serde(skip)]
    pub gone: bool,
}

impl IkeSa {
    /// A new IKE SA in its first phase.
    pub fn new(spi: IkeSpi, peer_spi: IkeSpi, initiator: bool, path: Path, phase: Phase) -> Self {
        Self {
            spi,
            peer_spi,
            initiator,
            connection: None,
            remote_id: None,
            path,
            phase,
            our: OurWindow::default(),
            their: TheirWindow::default(),
            children: Vec::new(),
            successor: None,
            iv_counter: 0,
            extras: Extras::default(),
            more: More::default(),
            fragments: None,
            timers: Timers::default(),
            signing: None,
            tls: None,
            computing: Vec::new(),
            committed: false,
            dirty: true,
            gone: false,
        }
    }

    /// Initiator's SPI and responder's SPI, as in the header.
    pub fn header_spis(&self) -> (IkeSpi, IkeSpi) {
        if self.initiator {
            (self.spi, self.peer_spi)
        } else {
            (self.peer_spi, self.spi)
        }
    }

    pub fn connection<'c>(&self, config: &'c EngineConfig) -> Option<&'c Connection> {
        let name = self.connection.as_deref()?;
        config
            .connections
            .iter()
            .find(|connection| connection.name == name)
    }

    pub fn child(&self, spi_in: EspSpi) -> Option<&ChildSa> {
        self.children.iter().find(|child| child.spi_in == spi_in)
    }

    pub fn child_mut(&mut self, spi_in: EspSpi) -> Option<&mut ChildSa> {
        self.children.iter_mut().find(|child| child.spi_in == spi_in)
    }

    /// The Child SA with this SPI of the peer's.
    pub fn child_by_out(&self, spi_out: EspSpi) -> Option<&ChildSa> {
        self.children.iter().find(|child| child.spi_out == spi_out)
    }

    /// When it wants to be woken.
    pub fn wake(&self) -> Option<Instant> {
        let t = &self.timers;
        let own = [
            t.expire,
            t.rekey,
            t.reauth,
            t.switch,
            t.liveness,
            t.keepalive,
            t.ticket,
            t.follow_up,
            t.forget,
        ];
        // Nothing is begun in other phases: what is queued there must not wake anybody, again and again.
        // What waits for a private key goes on when that has come.
        let begins = matches!(self.phase, Phase::Established(_)) && !self.awaits_key();
        let queued = self.our.first_queued().filter(|_| begins);
        let queued = queued.filter(|queued| self.may_start(&queued.task));
        let queued = queued.map(|queued| queued.not_before);
        let children = self.children.iter().filter_map(|child| child.rekey_at);
        let repeated = self.our.all().filter_map(|outstanding| outstanding.clock.at);
        let own = own.into_iter().flatten();
        own.chain(repeated).chain(queued).chain(children).min()
    }

    /// Size of the peer's window, as far as we use it.
    pub fn send_window(&self) -> u32 {
        self.more.peer_window.unwrap_or(1).clamp(1, WINDOW_MAX)
    }

    /// Size of ours.
    pub fn receive_window(&self) -> u32 {
        self.more.our_window.unwrap_or(1)
    }

    /// Whether a task may start now: beside others only where the peer's window has room.
    pub fn may_start(&self, task: &Task) -> bool {
        self.our.is_idle() || (self.our.has_room(self.send_window()) && self.our.goes_beside(task))
    }

    /// Whether both sides were authenticated at any time.
    pub fn was_up(&self) -> bool {
        matches!(
            self.phase,
            Phase::Established(_) | Phase::Rekeyed(_) | Phase::Deleting(_)
        )
    }

    pub fn is_half_open(&self) -> bool {
        matches!(self.phase, Phase::AwaitAuthRequest(_) | Phase::AwaitEap(_))
    }

    pub fn status(&self, now: Instant) -> IkeSaStatus {
        IkeSaStatus {
            connection: self.connection.clone(),
            spi: self.spi,
            peer_spi: self.peer_spi,
            initiator: self.initiator,
            phase: self.phase.name(),
            local: self.path.local,
            remote: self.path.remote,
            remote_id: self.remote_id.as_ref().map(ToString::to_string),
            virtual_addresses: self.more.virtual_addresses.to_vec(),
            age: now.since(self.timers.since),
            authenticated: self.more.authentication.as_ref().map(|a| a.age(now)),
            reauth_in: self.timers.reauth_due.map(|due| due.since(now)),
            suite: self
                .phase
                .protected()
                .map(|p| p.suite.to_string())
                .unwrap_or_default(),
            nat_local: self.path.nat_local,
            nat_remote: self.path.nat_remote,
            next_send: self.our.next,
            next_receive: self.their.next,
            outstanding: !self.our.is_idle(),
            agreed: self.agreed(),
            children: self
                .children
                .iter()
                .map(|child| self.child_status(child, now))
                .collect(),
        }
    }

    /// What was agreed with the peer beyond RFC 7296.
    pub fn agreed(&self) -> Agreed {
        Agreed {
            crash_detection: !self.extras.qcd.is_empty(),
            resumption: self.extras.ticket.is_some() || self.extras.granted.is_some(),
            message_id_sync: self.extras.sync.message_ids,
            counter_sync: self.extras.sync.counters,
            per_resource: self.children.iter().any(|child| child.multiple),
        }
    }

    fn child_status(&self, child: &ChildSa, now: Instant) -> ChildSaStatus {
        ChildSaStatus {
            child: child.name.clone(),
            spi_in: child.spi_in,
            spi_out: child.spi_out,
            resource: child.resource,
            phase: child.phase.name(),
            suite: child.suite.to_string(),
            udp_encap: self.path.encap,
            ts_local: child.ts_local.clone(),
            ts_remote: child.ts_remote.clone(),
            age: now.since(child.since),
        }
    }
}

/// `base` less a random part of `jitter`, never below half of `base`.
pub(crate) fn jittered(base: Duration, jitter: Duration, random: u32) -> Duration {
    let jitter = jitter.min(base / 2);
    base - jitter.mul_f64(f64::from(random) / f64::from(u32::MAX))
}
