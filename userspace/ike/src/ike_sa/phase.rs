//! Phases of an IKE SA, each named for what it waits for and holding only what it has.

use super::extras::HeldTicket;
use crate::auth::eap::Step;
use crate::proposal::Proposal;
use crate::tasks::child_create::ChildOffer;
use crypto::IkeKeys;
use model::{IkeSpi, SecretBytes};
use serde::{Deserialize, Serialize};

/// Keys and the algorithms that were agreed on.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Protected {
    pub keys: IkeKeys,
    pub suite: Proposal,
}

/// What IKE_AUTH signs, besides the identities.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct InitTranscript {
    #[serde(with = "model::octets")]
    pub request: Vec<u8>,
    #[serde(with = "model::octets")]
    pub response: Vec<u8>,
    #[serde(with = "model::octets")]
    pub nonce_i: Vec<u8>,
    #[serde(with = "model::octets")]
    pub nonce_r: Vec<u8>,
}

/// Initiator: IKE_SA_INIT request is out.
#[derive(Serialize, Deserialize)]
pub(crate) struct AwaitInitResponse {
    pub nonce_i: Vec<u8>,
    pub group: u16,
    pub dh: SecretBytes,
    pub offered: Vec<Proposal>,
    pub cookie: Option<Vec<u8>>,
    /// Times that a cookie or another group was asked for.
    pub restarts: u8,
}

/// Initiator: IKE_SESSION_RESUME request is out (RFC 5723).
#[derive(Serialize, Deserialize)]
pub(crate) struct AwaitResumeResponse {
    pub nonce_i: Vec<u8>,
    pub held: HeldTicket,
    pub cookie: Option<Vec<u8>>,
    /// Times that a cookie was asked for.
    pub restarts: u8,
}

/// Initiator: IKE_INTERMEDIATE request is out (RFC 9370 2.2.2).
#[derive(Serialize, Deserialize)]
pub(crate) struct AwaitIntermediateResponse {
    pub protected: Protected,
    pub transcript: InitTranscript,
    /// The responder does without a Child SA in IKE_AUTH.
    pub childless_allowed: bool,
    /// Our private key in this exchange.
    pub dh: SecretBytes,
}

/// Initiator: IKE_AUTH request is out.
#[derive(Serialize, Deserialize)]
pub(crate) struct AwaitAuthResponse {
    pub protected: Protected,
    pub transcript: InitTranscript,
    pub child: Option<ChildOffer>,
}

/// Responder: IKE_SA_INIT was answered.
#[derive(Serialize, Deserialize)]
pub(crate) struct AwaitAuthRequest {
    pub protected: Protected,
    pub transcript: InitTranscript,
}

/// Both sides are authenticated.
#[derive(Serialize, Deserialize)]
pub(crate) struct Established {
    pub protected: Protected,
    /// The peer's rekey of this IKE SA crossed ours: its new IKE SA, and the lower of that exchange's nonces.
    pub crossing: Option<(IkeSpi, Vec<u8>)>,
}

/// Initiator: all that IKE_AUTH needs but our signature.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct AwaitSignature {
    pub protected: Protected,
    pub transcript: InitTranscript,
    /// The responder takes IKE_AUTH without a Child SA.
    pub childless: bool,
}

/// Responder: the peer authenticates by EAP.
#[derive(Serialize, Deserialize)]
pub(crate) struct AwaitEap {
    pub protected: Protected,
    pub transcript: InitTranscript,
    /// Payloads of the peer's first IKE_AUTH request: type of the first, octets of the chain.
    pub request: (u8, Vec<u8>),
    /// Who the peer said it is.
    pub identity: Option<String>,
    /// Of the EAP request that is out.
    pub identifier: u8,
    pub rounds: u8,
    pub step: Step,
}

#[derive(Serialize, Deserialize)]
pub(crate) enum Phase {
    AwaitInitResponse(Box<AwaitInitResponse>),
    AwaitAuthResponse(Box<AwaitAuthResponse>),
    AwaitAuthRequest(Box<AwaitAuthRequest>),
    Established(Box<Established>),
    /// The peer replaced this IKE SA and will delete it.
    Rekeyed(Box<Protected>),
    /// Our Delete for this IKE SA is out.
    Deleting(Box<Protected>),
    /// Over; kept for a while to repeat the last response.
    Closed(Box<Protected>),
    // Last, so that the numbers of the others stay what they were in older records.
    AwaitResumeResponse(Box<AwaitResumeResponse>),
    AwaitIntermediateResponse(Box<AwaitIntermediateResponse>),
    AwaitSignature(Box<AwaitSignature>),
    AwaitEap(Box<AwaitEap>),
    /// Initiator: the private key for IKE_SA_INIT is being made.
    AwaitKey,
}

impl Phase {
    pub const fn name(&self) -> &'static str {
        match self {
            Self::AwaitKey | Self::AwaitInitResponse(_) | Self::AwaitResumeResponse(_) => "connecting",
            Self::AwaitIntermediateResponse(_)
            | Self::AwaitSignature(_)
            | Self::AwaitAuthResponse(_)
            | Self::AwaitAuthRequest(_)
            | Self::AwaitEap(_) => "authenticating",
            Self::Established(_) => "established",
            Self::Rekeyed(_) => "rekeyed",
            Self::Deleting(_) => "deleting",
            Self::Closed(_) => "closed",
        }
    }

    pub fn protected(&self) -> Option<&Protected> {
        match self {
            Self::AwaitKey | Self::AwaitInitResponse(_) | Self::AwaitResumeResponse(_) => None,
            Self::AwaitIntermediateResponse(phase) => Some(&phase.protected),
            Self::AwaitSignature(phase) => Some(&phase.protected),
            Self::AwaitEap(phase) => Some(&phase.protected),
            Self::AwaitAuthResponse(phase) => Some(&phase.protected),
            Self::AwaitAuthRequest(phase) => Some(&phase.protected),
            Self::Established(phase) => Some(&phase.protected),
            Self::Rekeyed(protected) | Self::Deleting(protected) | Self::Closed(protected) => Some(protected),
        }
    }

    /// Where the keys may still change: before IKE_AUTH.
    pub fn protected_mut(&mut self) -> Option<&mut Protected> {
        match self {
            Self::AwaitIntermediateResponse(phase) => Some(&mut phase.protected),
            Self::AwaitAuthRequest(phase) => Some(&mut phase.protected),
            _ => None,
        }
    }
}
