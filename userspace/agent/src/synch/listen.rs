//! Accepts members with a lower id, and spends little on anybody else.
//!
//! Before a single signature is made: the address must be a member's that dials here, it must be proven to be the
//! sender's (a Retry, RFC 9000 section 8.1.2, which keeps nothing here), and it must not have come too often. So what a
//! stranger can cause is bounded by the number of members, however many packets it sends.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use model::MemberId;
use quinn::{Connection, Endpoint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::frame::FrameError;
use super::gate::Budget;
use super::link::{Shared, code, greet, peer_certificate};
use super::refusal::{Refusal, Refusals};
use super::tls::Credentials;
use super::{Limits, LinkId};
use crate::pki;

/// A handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(2);

/// A member that dials here.
pub(super) struct Caller {
    shared: Shared,
    half_open: Arc<Semaphore>,
    rate: Mutex<Budget>,
}

impl Caller {
    pub fn new(shared: Shared, limits: Limits) -> Self {
        Self {
            shared,
            half_open: Arc::new(Semaphore::new(limits.half_open)),
            rate: Mutex::new(Budget::full(limits.burst.into())),
        }
    }

    fn may_open(&self, limits: Limits) -> bool {
        let mut budget = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        budget.take(limits.burst.into(), limits.per_second.into(), Instant::now())
    }
}

/// A handshake that has begun.
struct Begun {
    connecting: quinn::Connecting,
    /// Version of the credentials shown in it.
    version: u64,
    half_open: OwnedSemaphorePermit,
}

/// Accepts members with a lower id.
pub(super) struct Listener {
    pub endpoint: Endpoint,
    pub link: LinkId,
    pub cluster: String,
    /// Members that dial here, by the address that they dial from.
    pub callers: HashMap<SocketAddr, Caller>,
    /// Every other member's address on this link.
    pub members: HashMap<SocketAddr, MemberId>,
    pub limits: Limits,
    pub credentials: watch::Receiver<Arc<Credentials>>,
    pub refusals: Arc<Refusals>,
}

impl Listener {
    pub async fn run(self) {
        let this = Arc::new(self);
        while let Some(incoming) = this.endpoint.accept().await {
            let from = incoming.remote_address();
            match this.consider(incoming) {
                Ok(None) => {}
                Ok(Some(begun)) => drop(tokio::spawn(this.clone().serve(from, begun))),
                Err(why) => this.refuse(why, from, ""),
            }
        }
    }

    fn refuse(&self, why: Refusal, from: SocketAddr, detail: &str) {
        self.refusals.note(why, &from, self.link.name(), detail);
    }

    /// Whether a handshake is begun; `None` where the sender is first to prove its address.
    fn consider(&self, incoming: quinn::Incoming) -> Result<Option<Begun>, Refusal> {
        let from = incoming.remote_address();
        let Some(caller) = self.callers.get(&from) else {
            // Not even an answer: it could be sent to a third one.
            incoming.ignore();
            return Err(match self.members.get(&from) {
                Some(_) => Refusal::NotADialer,
                None => Refusal::UnknownAddress,
            });
        };
        if !incoming.remote_address_validated() {
            if let Err(error) = incoming.retry() {
                error.into_incoming().ignore();
            }
            return Ok(None);
        }
        if !caller.may_open(self.limits) {
            incoming.ignore();
            return Err(Refusal::Rate);
        }
        let Ok(permit) = caller.half_open.clone().try_acquire_owned() else {
            incoming.ignore();
            return Err(Refusal::HalfOpen);
        };
        if caller.shared.slot.is_young() {
            incoming.refuse();
            return Err(Refusal::TooSoon);
        }
        let credentials = self.credentials.borrow().clone();
        match incoming.accept_with(credentials.server.clone()) {
            Ok(connecting) => Ok(Some(Begun {
                connecting,
                version: credentials.version,
                half_open: permit,
            })),
            Err(error) => Err(Refusal::of(&error).unwrap_or(Refusal::Handshake)),
        }
    }

    async fn serve(self: Arc<Self>, from: SocketAddr, begun: Begun) {
        let Some(caller) = self.callers.get(&from) else {
            return;
        };
        let shared = &caller.shared;
        let connection = match tokio::time::timeout(HANDSHAKE, begun.connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                if let Some(why) = Refusal::of(&error) {
                    self.refuse(why, from, &error.to_string());
                }
                return;
            }
            Err(_) => return self.refuse(Refusal::HandshakeSlow, from, ""),
        };
        if let Err((why, detail)) = self.check(&connection, shared.peer) {
            connection.close(code::REFUSED.into(), why.text().as_bytes());
            return self.refuse(why, from, &detail);
        }
        let greeted = match greet(connection, false).await {
            Ok(greeted) => greeted,
            Err(FrameError::Refused(why)) => return self.refuse(why, from, ""),
            Err(FrameError::Lost(why)) => {
                return tracing::debug!(%from, why, "a connection was lost before it was greeted");
            }
        };
        match shared.admit(greeted, begun.version).await {
            Ok(serving) => {
                drop(begun.half_open);
                serving.run().await;
            }
            Err(why) => self.refuse(why, from, ""),
        }
    }

    /// A certificate for member N is accepted only from the address that member N is configured with.
    fn check(&self, connection: &Connection, expected: MemberId) -> Result<(), (Refusal, String)> {
        let certificate = peer_certificate(connection).ok_or((Refusal::NoCertificate, String::new()))?;
        if pki::member_of(&certificate, &self.cluster, &[expected]).is_some() {
            return Ok(());
        }
        let subject = pki::CertificateFacts::of(&certificate).map_or(String::new(), |facts| facts.subject);
        Err((
            Refusal::WrongMember,
            format!("it is {subject}'s, at the address of member {expected}"),
        ))
    }
}
