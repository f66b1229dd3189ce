//! Protected messages: payloads to octets and back with the keys of an IKE SA.

use super::IkeSa;
use super::windows::Outstanding;
use crate::event::EventKind;
use crate::io::Transmit;
use crate::outbox::Context;
use crate::tasks::Pending;
use crypto::CryptoError;
use ike_wire::{ExchangeType, Flags, Header, Payload, Protected, encode_chain, encode_sk_prefix};

/// Numbers of the 40-bit IV counter.
const IV_COUNTER_MASK: u64 = (1 << 40) - 1;

/// Why a message could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SealError {
    #[error("message cannot be encoded: {0}")]
    Encode(#[from] ike_wire::EncodeError),
    #[error("message cannot be encrypted: {0}")]
    Crypto(#[from] CryptoError),
    #[error("no keys yet")]
    NoKeys,
    #[error("all IVs of the IKE SA are used up; rekey it")]
    IvsUsedUp,
}

fn header(sa: &IkeSa, exchange: ExchangeType, response: bool, message_id: u32) -> Header {
    let (spi_i, spi_r) = sa.header_spis();
    Header {
        spi_i,
        spi_r,
        exchange,
        flags: Flags {
            initiator: sa.initiator,
            version: false,
            response,
        },
        message_id,
    }
}

fn seal(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    header: &Header,
    payloads: &[Payload],
) -> Result<Vec<u8>, SealError> {
    let keys = &sa.phase.protected().ok_or(SealError::NoKeys)?.keys;
    let key = if sa.initiator {
        keys.initiator_key()?
    } else {
        keys.responder_key()?
    };
    let (first, inner) = encode_chain(payloads)?;
    let cipher = key.cipher();
    let iv = if cipher.is_aead() {
        // Member and epoch keep two members apart that both believe they own the IKE SA; the counter does the rest.
        let counter = sa.iv_counter;
        if counter >= IV_COUNTER_MASK {
            return Err(SealError::IvsUsedUp);
        }
        sa.iv_counter += 1;
        let (member, epoch) = ctx.around.iv_prefix(sa.spi);
        let iv = (u64::from(member.0) << 56) | (u64::from(epoch.low16()) << 40) | counter;
        iv.to_be_bytes().to_vec()
    } else {
        // RFC 7296 3.14: for CBC the IV has to be unpredictable.
        ctx.random(cipher.iv_len())
    };
    let mut message = encode_sk_prefix(header, first, cipher.sealed_len(inner.len()))?;
    let sealed = key.seal(&message, &iv, &inner)?;
    message.extend_from_slice(&sealed);
    Ok(message)
}

/// Decrypts what the peer protected.
pub(crate) fn open(sa: &IkeSa, bytes: &[u8], protected: &Protected) -> Result<Vec<u8>, CryptoError> {
    let Some(agreed) = sa.phase.protected() else {
        return Err(CryptoError::Integrity);
    };
    let key = if sa.initiator {
        agreed.keys.responder_key()?
    } else {
        agreed.keys.initiator_key()?
    };
    key.open(protected.prefix(bytes), protected.sealed(bytes))
}

/// Sends a protected request. The window must be free. `false`: it could not be made (reported).
pub(crate) fn send_request(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    exchange: ExchangeType,
    payloads: &[Payload],
    pending: Pending,
) -> bool {
    debug_assert!(sa.our.outstanding.is_none());
    let id = sa.our.next;
    let header = header(sa, exchange, false, id);
    match seal(sa, ctx, &header, payloads) {
        Ok(bytes) => {
            register_request(sa, ctx, bytes, pending);
            true
        }
        Err(error) => {
            ctx.event(sa, EventKind::Trouble, format!("{exchange} request: {error}"));
            false
        }
    }
}

/// Makes finished octets the outstanding request, with the next Message ID, and hands them to the commit.
pub(crate) fn register_request(sa: &mut IkeSa, ctx: &mut Context<'_>, bytes: Vec<u8>, pending: Pending) {
    let id = sa.our.next;
    sa.our.next = id.wrapping_add(1);
    transmit(sa, ctx, bytes.clone());
    sa.our.outstanding = Some(Outstanding { id, bytes, pending });
    start_retransmission(sa, ctx);
    sa.dirty = true;
}

/// Starts the clock of the outstanding request.
pub(crate) fn start_retransmission(sa: &mut IkeSa, ctx: &Context<'_>) {
    sa.timers.sent = 0;
    let timing = sa
        .connection(ctx.config)
        .map(|connection| connection.retransmit)
        .unwrap_or_default();
    sa.timers.retransmit = Some(ctx.now + timing.wait(0));
}

/// Sends a protected response and keeps it for repetition. The request is consumed even when no response can be made.
pub(crate) fn send_response(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    exchange: ExchangeType,
    message_id: u32,
    payloads: &[Payload],
) {
    let header = header(sa, exchange, true, message_id);
    sa.their.next = message_id.wrapping_add(1);
    sa.dirty = true;
    match seal(sa, ctx, &header, payloads) {
        Ok(bytes) => {
            transmit(sa, ctx, bytes.clone());
            sa.their.last_response = Some(bytes);
        }
        Err(error) => {
            sa.their.last_response = None;
            ctx.event(sa, EventKind::Trouble, format!("{exchange} response: {error}"));
        }
    }
}

/// Hands octets to the commit of this input.
pub(crate) fn transmit(sa: &IkeSa, ctx: &mut Context<'_>, bytes: Vec<u8>) {
    ctx.out.transmits.push(addressed(sa, bytes));
}

/// Octets that were committed before: sent again.
pub(crate) fn repeat(sa: &IkeSa, ctx: &mut Context<'_>, bytes: Vec<u8>) {
    ctx.out.plain.push(addressed(sa, bytes));
}

fn addressed(sa: &IkeSa, bytes: Vec<u8>) -> Transmit {
    Transmit {
        local: sa.path.local,
        remote: sa.path.remote,
        ike_spi: Some(sa.spi),
        bytes,
    }
}
