//! What the IKE engines of all members share, so that any of them can help a peer after everything was lost.

use ike::EndpointConfig;
use model::SecretBytes;

use super::Core;
use crate::pki::Identity;

/// Gives the engine the secrets that are derived from the cluster's secret. They never change while the cluster lives: a
/// member that starts anew makes the same tokens as before.
pub fn give(endpoint: &mut EndpointConfig, identity: &Identity) {
    let secret = |label: &str| SecretBytes::new(identity.derive(label).to_vec());
    endpoint.qcd_secret = Some(secret("ike quick crash detection"));
    endpoint.ticket_secret = Some(secret("ike session resumption"));
}

impl Core {
    /// Whether an IKE SA that this member does not know is nowhere (RFC 6290 9.2). An owner is certain: it took over as a
    /// member of the in-sync set, so it has every committed IKE SA, or it began when nobody else was heard, with nothing.
    /// In a pair that is split under `solo = "continue"` both are owners, and only one has the IKE SA; a peer whose packets
    /// reach the other one cannot reach it either, and is told so by the token.
    pub(super) fn knows_all(&self) -> bool {
        self.owns()
    }
}
