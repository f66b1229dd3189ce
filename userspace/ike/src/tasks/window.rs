//! Windows larger than one (RFC 7296 2.3): who can keep more requests under way says so, in IKE_AUTH, and after a rekey of the IKE SA,
//! whose windows begin with size 1 again, in the INFORMATIONAL exchange that follows.

use crate::config::EngineConfig;
use crate::ike_sa::IkeSa;
use ike_wire::{Notify, NotifyType, Payload, PayloadList};

/// Our window, where it is larger than one and not announced yet.
pub(crate) fn announce(sa: &mut IkeSa, config: &EngineConfig) -> Option<Payload> {
    let size = ours(sa, config);
    if size <= 1 || sa.more.our_window.is_some() {
        return None;
    }
    sa.more.our_window = Some(size);
    sa.dirty = true;
    let size = size.to_be_bytes().to_vec();
    Some(Payload::Notify(Notify::new(NotifyType::SET_WINDOW_SIZE, size)))
}

/// As [`announce`], to a peer that has just announced its own.
pub(crate) fn answer(sa: &mut IkeSa, config: &EngineConfig, payloads: &PayloadList) -> Option<Payload> {
    size(payloads).and_then(|_| announce(sa, config))
}

/// Takes in what the peer announces: it never becomes smaller.
pub(crate) fn take(sa: &mut IkeSa, config: &EngineConfig, payloads: &PayloadList) {
    let Some(size) = size(payloads) else { return };
    let size = size.min(ours(sa, config));
    if size > sa.send_window() {
        sa.more.peer_window = Some(size);
        sa.dirty = true;
    }
}

fn ours(sa: &IkeSa, config: &EngineConfig) -> u32 {
    sa.connection(config).map_or(1, |connection| connection.window)
}

fn size(payloads: &PayloadList) -> Option<u32> {
    let notify = payloads.notify(NotifyType::SET_WINDOW_SIZE)?;
    Some(u32::from_be_bytes(notify.data.as_slice().try_into().ok()?))
}
