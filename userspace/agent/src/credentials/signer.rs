//! Signs beside the event loop: an RSA signature takes most of a millisecond, one by a token far longer.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use anyhow::{Context, Result};
use ike::{SignRequest, TlsOutcome, TlsRequest};
use model::IkeSpi;
use tokio::sync::mpsc::UnboundedSender;

use super::key::PrivateKey;
use super::tls::{self, Sessions};

/// Requests that wait; a flood beyond is refused at once.
const WAITING: usize = 4096;

/// A finished signature, or why there is none.
pub struct Signed {
    /// The IKE SA that waits for it.
    pub ike_spi: IkeSpi,
    /// Of its request.
    pub token: u64,
    /// ECDSA as DER.
    pub signature: Result<Vec<u8>, String>,
}

/// What TLS said.
pub struct Said {
    /// The IKE SA that waits for it.
    pub ike_spi: IkeSpi,
    /// Of its request.
    pub token: u64,
    /// What.
    pub outcome: TlsOutcome,
}

/// What the thread has done.
pub enum Done {
    /// A signature.
    Signed(Signed),
    /// A step of TLS.
    Said(Said),
}

/// Private keys by connection.
pub type Keys = HashMap<String, Arc<PrivateKey>>;

enum Job {
    Sign(SignRequest),
    Tls(TlsRequest),
    Keys(Keys, tls::Settings),
}

/// The thread that has the private keys.
pub struct Signer {
    jobs: SyncSender<Job>,
    done: UnboundedSender<Done>,
}

impl Signer {
    /// Starts the thread; what it signs goes to `done`.
    ///
    /// # Errors
    /// There is no thread.
    pub fn start(keys: Keys, tls: tls::Settings, done: UnboundedSender<Done>) -> Result<Self> {
        let (jobs, work) = sync_channel(WAITING);
        let out = done.clone();
        std::thread::Builder::new()
            .name("signer".to_owned())
            .spawn(move || run(keys, Sessions::new(tls), &work, &out))
            .context("cannot start the thread that signs")?;
        Ok(Self { jobs, done })
    }

    /// Other keys from now on.
    pub fn replace(&self, keys: Keys, tls: tls::Settings) {
        // The thread ends with this sender only.
        let _ = self.jobs.send(Job::Keys(keys, tls));
    }

    /// Gives a message to TLS. The outcome comes to `done`.
    pub fn tls(&self, request: TlsRequest) {
        let (Err(TrySendError::Full(Job::Tls(request))) | Err(TrySendError::Disconnected(Job::Tls(request)))) =
            self.jobs.try_send(Job::Tls(request))
        else {
            return;
        };
        let _ = self.done.send(Done::Said(Said {
            ike_spi: request.ike_spi,
            token: request.token,
            outcome: TlsOutcome::Failed {
                alert: Vec::new(),
                why: "too many handshakes are waited for".to_owned(),
            },
        }));
    }

    /// Asks for a signature. It comes to `done`.
    pub fn sign(&self, request: SignRequest) {
        let refused = |job: Job, why: &str| {
            if let Job::Sign(request) = job {
                let _ = self.done.send(Done::Signed(Signed {
                    ike_spi: request.ike_spi,
                    token: request.token,
                    signature: Err(why.to_owned()),
                }));
            }
        };
        match self.jobs.try_send(Job::Sign(request)) {
            Ok(()) => {}
            Err(TrySendError::Full(job)) => refused(job, "too many signatures are waited for"),
            Err(TrySendError::Disconnected(job)) => refused(job, "the thread that signs has ended"),
        }
    }
}

fn run(mut keys: Keys, mut sessions: Sessions, work: &Receiver<Job>, done: &UnboundedSender<Done>) {
    while let Ok(job) = work.recv() {
        let request = match job {
            Job::Keys(new, tls) => {
                keys = new;
                sessions.replace(tls);
                continue;
            }
            Job::Tls(request) => {
                let said = Said {
                    ike_spi: request.ike_spi,
                    token: request.token,
                    outcome: sessions.run(&request),
                };
                if done.send(Done::Said(said)).is_err() {
                    return;
                }
                continue;
            }
            Job::Sign(request) => request,
        };
        let signature = match keys.get(&request.key) {
            Some(key) => key.sign(&request),
            None => Err(format!("there is no private key for connection {}", request.key)),
        };
        let signed = Signed {
            ike_spi: request.ike_spi,
            token: request.token,
            signature,
        };
        if done.send(Done::Signed(signed)).is_err() {
            return;
        }
    }
}
