//! The agent's private keys and TLS, for an engine of the lab.

use agent::credentials::key::PrivateKey;
use agent::credentials::tls::{Sessions, Settings};
use ike::{SignRequest, TlsOutcome, TlsRequest};
use lab::ike_peer::Answers;
use std::collections::HashMap;

/// Keys by the names that the connections' certificates say, and sessions of EAP-TLS.
pub struct Keys {
    keys: HashMap<String, PrivateKey>,
    sessions: Sessions,
}

impl Keys {
    pub fn new(keys: HashMap<String, PrivateKey>, tls: Settings) -> Self {
        Self {
            keys,
            sessions: Sessions::new(tls),
        }
    }
}

impl Answers for Keys {
    fn sign(&mut self, request: &SignRequest) -> Result<Vec<u8>, String> {
        let key = self.keys.get(&request.key);
        key.ok_or_else(|| format!("no key {}", request.key))?
            .sign(request)
    }

    fn tls(&mut self, request: &TlsRequest) -> TlsOutcome {
        self.sessions.run(request)
    }
}
