//! Traffic flow confidentiality (RFC 4303 2.7): whether the peer may add octets behind what a packet carries. We never do ourselves.

use super::notify;
use crate::config::{ChildConfig, Connection};
use ike_wire::{NotifyType, Payload};
use model::SaMode;

//= rfc7296#1.3.1
// The ESP_TFC_PADDING_NOT_SUPPORTED notification asserts that the sending endpoint will not accept packets that contain Traffic
// Flow Confidentiality (TFC) padding over the Child SA being negotiated.
//
/// What an offer or an answer says of it for the child called `name`. An inner IP packet says how long it is; what follows the ESP
/// header in transport mode need not (GRE), so there nobody could tell padding from payload.
pub(crate) fn refusal(connection: Option<&Connection>, name: &str, mode: SaMode) -> Option<Payload> {
    let unwanted = |child: Option<&ChildConfig>| {
        child.is_some_and(|child| !child.tfc_padding) || mode == SaMode::Transport
    };
    unwanted(connection.and_then(|connection| connection.child(name)))
        .then(|| notify(NotifyType::ESP_TFC_PADDING_NOT_SUPPORTED))
}
