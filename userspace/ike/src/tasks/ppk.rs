//! Post-quantum pre-shared keys (RFC 8784), both roles: a key beside the proof of identity is mixed into SK_d, SK_pi and SK_pr.
//!
//! SK_e and SK_a stay as they are, so messages look the same with and without it.

use crate::config::{Connection, EngineConfig, Ppk};
use crate::ike_sa::IkeSa;
use crate::ike_sa::phase::{InitTranscript, Protected};
use crypto::{AuthInput, IkeKeys, psk_auth};
use ike_wire::{Notify, NotifyType, Payload, PayloadList};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// PPK_ID_FIXED (RFC 8784 5.1): the identifier is a name that both sides know.
const PPK_ID_FIXED: u8 = 2;

/// How far it is, while the IKE SA is set up. No `Debug`: it holds keys.
#[derive(Serialize, Deserialize)]
pub(crate) enum PpkState {
    /// Both sides can do it.
    Agreed,
    /// Initiator: the keys are mixed; these are the ones before, for a responder that does not know our key.
    Mixed(Box<IkeKeys>),
    /// Responder: mixed.
    Used,
}

/// First message: whether we can.
pub(crate) fn supported(connection: Option<&Connection>) -> Option<Payload> {
    connection?.ppk.as_ref()?;
    Some(super::notify(NotifyType::USE_PPK))
}

//= rfc8784#3
// If the initiator ... is configured to use a PPK ... and it is mandatory, and the responder does not support it, then the initiator
// MUST abort the exchange.
/// Initiator: IKE_SA_INIT was answered. `Err`: why it ends.
pub(crate) fn on_init_response(
    sa: &mut IkeSa,
    config: &EngineConfig,
    payloads: &PayloadList,
) -> Result<(), String> {
    let Some(ppk) = sa
        .connection(config)
        .and_then(|connection| connection.ppk.as_ref())
    else {
        return Ok(());
    };
    if payloads.notify(NotifyType::USE_PPK).is_some() {
        sa.more.ppk = Some(PpkState::Agreed);
        return Ok(());
    }
    if ppk.required {
        return Err(
            "the peer has no post-quantum pre-shared keys, and ours is required (ppk_required)".to_owned(),
        );
    }
    Ok(())
}

/// Initiator: mixes the key in, before anything is proved.
pub(crate) fn mix(sa: &mut IkeSa, connection: &Connection, protected: &mut Protected) {
    if !matches!(sa.more.ppk, Some(PpkState::Agreed)) {
        return;
    }
    let mixed = connection
        .ppk
        .as_ref()
        .and_then(|ppk| protected.keys.with_ppk(&ppk.secret).ok());
    if let Some(mixed) = mixed {
        let before = std::mem::replace(&mut protected.keys, mixed);
        sa.more.ppk = Some(PpkState::Mixed(Box::new(before)));
    }
}

/// Initiator: PPK_IDENTITY and, where we can do without, the proof that holds without it (NO_PPK_AUTH). That one is made for
/// pre-shared keys only: with a signature of ours the key is always required.
pub(crate) fn identity(
    sa: &IkeSa,
    connection: &Connection,
    transcript: &InitTranscript,
    id_body: &[u8],
    intermediate: &[u8],
) -> Vec<Payload> {
    let (Some(PpkState::Mixed(before)), Some(ppk)) = (&sa.more.ppk, &connection.ppk) else {
        return Vec::new();
    };
    let mut data = vec![PPK_ID_FIXED];
    data.extend_from_slice(ppk.id.as_bytes());
    let mut payloads = vec![Payload::Notify(Notify::new(NotifyType::PPK_IDENTITY, data))];
    if !ppk.required && !connection.psk.is_empty() {
        let input = AuthInput {
            message: &transcript.request,
            nonce: &transcript.nonce_r,
            sk_p: &before.sk_pi,
            id_body,
            intermediate,
        };
        let auth = psk_auth(before.prf, &connection.psk, input);
        payloads.push(Payload::Notify(Notify::new(NotifyType::NO_PPK_AUTH, auth)));
    }
    payloads
}

/// Initiator: whether the responder has used the key; without it the keys are those before. `Err`: we may not do without.
pub(crate) fn settle(
    sa: &mut IkeSa,
    connection: &Connection,
    payloads: &PayloadList,
) -> Result<Option<IkeKeys>, String> {
    let Some(PpkState::Mixed(before)) = sa.more.ppk.take() else {
        return Ok(None);
    };
    if payloads.notify(NotifyType::PPK_IDENTITY).is_some() {
        return Ok(None);
    }
    match &connection.ppk {
        Some(ppk) if ppk.required => Err(format!(
            "the peer did not use the post-quantum pre-shared key {:?}, which is required (ppk_required)",
            ppk.id
        )),
        _ => Ok(Some(*before)),
    }
}

/// Responder: IKE_SA_INIT. Whether we can, too.
pub(crate) fn on_init_request(candidates: &[&Connection], payloads: &PayloadList) -> bool {
    payloads.notify(NotifyType::USE_PPK).is_some()
        && candidates.iter().any(|connection| connection.ppk.is_some())
}

/// Responder: IKE_AUTH, before the proof is checked: the key that the initiator names is mixed in, or, where we do not have it,
/// the proof that holds without it takes the place of the other.
pub(crate) fn choose(sa: &mut IkeSa, config: &EngineConfig, payloads: &mut PayloadList) {
    if !matches!(sa.more.ppk, Some(PpkState::Agreed)) {
        return;
    }
    sa.more.ppk = None;
    let Some(named) = payloads.notify(NotifyType::PPK_IDENTITY) else {
        return;
    };
    let known = match named.data.split_first() {
        Some((&PPK_ID_FIXED, id)) => find(config, (sa.path.local, sa.path.remote), id),
        _ => None,
    };
    if let (Some(ppk), Some(protected)) = (known, sa.phase.protected_mut())
        && let Ok(mixed) = protected.keys.with_ppk(&ppk.secret)
    {
        protected.keys = mixed;
        sa.more.ppk = Some(PpkState::Used);
        return;
    }
    let without = payloads
        .notify(NotifyType::NO_PPK_AUTH)
        .map(|notify| notify.data.clone());
    for payload in &mut payloads.0 {
        if let (Payload::Authentication(auth), Some(data)) = (payload, &without) {
            auth.data.clone_from(data);
        }
    }
}

fn find<'c>(
    config: &'c EngineConfig,
    (local, remote): (SocketAddr, SocketAddr),
    id: &[u8],
) -> Option<&'c Ppk> {
    let at_these = config
        .connections
        .iter()
        .filter(|c| c.takes(local.ip(), remote.ip()));
    at_these
        .filter_map(|connection| connection.ppk.as_ref())
        .find(|ppk| ppk.id.as_bytes() == id)
}

/// Responder: whether the connection that it is may do with what was used.
pub(crate) fn suffices(sa: &IkeSa, connection: &Connection) -> bool {
    let used = matches!(sa.more.ppk, Some(PpkState::Used));
    used || !connection.ppk.as_ref().is_some_and(|ppk| ppk.required)
}

/// Responder: says that the key was used.
pub(crate) fn confirmation(sa: &mut IkeSa) -> Option<Payload> {
    let used = matches!(sa.more.ppk.take(), Some(PpkState::Used));
    used.then(|| super::notify(NotifyType::PPK_IDENTITY))
}
