//! Protected messages: payloads to octets and back with the keys of an IKE SA.

use super::windows::{Clock, Outstanding};
use super::{IkeSa, fragments};
use crate::event::EventKind;
use crate::io::Transmit;
use crate::outbox::Context;
use crate::tasks::{Pending, intermediate};
use crypto::CryptoError;
use crypto::SkKey;
use ike_wire::{
    ExchangeType, Flags, Fragment, Header, Payload, PayloadType, Protected, encode_chain, encode_sk_prefix,
    encode_skf_prefix,
};
use std::net::SocketAddr;
use std::time::Duration;

/// A response can be asked for again for this time: longer than any peer repeats a request.
pub(crate) const RESPONSES_KEPT: Duration = Duration::from_secs(300);

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
    #[error("message of {0} octets is too long even in fragments")]
    TooLong(usize),
}

/// Octets of a protected message around the IV, ciphertext and ICV: IKE header and payload header.
const SK_OVERHEAD: usize = 28 + 4;
/// IP and UDP headers, and the non-ESP marker.
const IPV4_UDP: usize = 20 + 8;
const IPV6_UDP: usize = 40 + 8;
const NON_ESP_MARKER: usize = 4;

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

/// One datagram, or several behind one another where the message has to be fragmented.
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
    if header.exchange == ExchangeType::IKE_INTERMEDIATE {
        intermediate::cover_sent(sa, header, first, &inner);
    }
    let sealed_len = key.cipher().sealed_len(inner.len());
    match longest_datagram(sa) {
        Some(longest) if SK_OVERHEAD + sealed_len > longest => {
            seal_fragments(sa, ctx, &key, header, first, &inner, longest)
        }
        _ => {
            let mut message = encode_sk_prefix(header, first, sealed_len)?;
            seal_one(sa, ctx, &key, &mut message, &inner)?;
            Ok(message)
        }
    }
}

//= rfc7383#2.5
// Each Encrypted Fragment payload is protected by itself, with its own IV, padding and ICV.
fn seal_fragments(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    key: &SkKey,
    header: &Header,
    first: PayloadType,
    inner: &[u8],
    longest: usize,
) -> Result<Vec<u8>, SealError> {
    let room = longest.saturating_sub(SK_OVERHEAD + Fragment::LEN);
    // Padding depends on the length in steps of a cipher block.
    let chunk = (1..=room)
        .rev()
        .find(|len| key.cipher().sealed_len(*len) <= room)
        .ok_or(SealError::TooLong(inner.len()))?;
    let chunks = inner.chunks(chunk);
    let total = u16::try_from(chunks.len()).map_err(|_| SealError::TooLong(inner.len()))?;
    let mut message = Vec::new();
    for (part, number) in chunks.zip(1..) {
        let fragment = Fragment { number, total };
        let sealed_len = key.cipher().sealed_len(part.len());
        let mut datagram = encode_skf_prefix(header, first, fragment, sealed_len)?;
        seal_one(sa, ctx, key, &mut datagram, part)?;
        message.extend_from_slice(&datagram);
    }
    Ok(message)
}

/// Appends IV, ciphertext and ICV.
fn seal_one(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    key: &SkKey,
    message: &mut Vec<u8>,
    inner: &[u8],
) -> Result<(), SealError> {
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
    let sealed = key.seal(message, &iv, inner)?;
    message.extend_from_slice(&sealed);
    Ok(())
}

/// Octets of an IKE message that fit in one packet; `None`: there are no fragments.
fn longest_datagram(sa: &IkeSa) -> Option<usize> {
    let size = sa.more.fragment_size?;
    let headers = if sa.path.remote.ip().to_canonical().is_ipv4() {
        IPV4_UDP
    } else {
        IPV6_UDP
    };
    Some(usize::from(size).saturating_sub(headers + NON_ESP_MARKER))
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
    debug_assert!(sa.our.has_room(sa.send_window()));
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
    put_request(sa, ctx, id, bytes, pending);
}

fn put_request(sa: &mut IkeSa, ctx: &mut Context<'_>, id: u32, bytes: Vec<u8>, pending: Pending) {
    transmit(sa, ctx, &bytes);
    let clock = first_clock(sa, ctx);
    sa.our.put(Outstanding {
        id,
        bytes,
        pending,
        clock,
    });
    sa.dirty = true;
}

/// A protected message with Message ID 0 outside of the window: Message ID synchronisation (RFC 6311).
pub(crate) fn seal_aside(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    exchange: ExchangeType,
    response: bool,
    payloads: &[Payload],
) -> Option<Vec<u8>> {
    let header = header(sa, exchange, response, 0);
    match seal(sa, ctx, &header, payloads) {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            ctx.event(
                sa,
                EventKind::Trouble,
                format!("{exchange} with Message ID 0: {error}"),
            );
            None
        }
    }
}

/// Makes a request with Message ID 0 the outstanding one; the next Message ID stays.
pub(crate) fn register_aside(sa: &mut IkeSa, ctx: &mut Context<'_>, bytes: Vec<u8>, pending: Pending) {
    put_request(sa, ctx, 0, bytes, pending);
}

/// The clock of a request that is sent now for the first time.
pub(crate) fn first_clock(sa: &IkeSa, ctx: &Context<'_>) -> Clock {
    let timing = sa
        .connection(ctx.config)
        .map(|connection| connection.retransmit)
        .unwrap_or_default();
    Clock {
        at: Some(ctx.now + timing.wait(0)),
        sent: 0,
    }
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
    let size = sa.receive_window();
    sa.dirty = true;
    sa.timers.forget = Some(ctx.now + RESPONSES_KEPT);
    match seal(sa, ctx, &header, payloads) {
        Ok(bytes) => {
            ctx.out
                .transmits
                .extend(datagrams(sa, answer_path(sa, ctx), &bytes));
            sa.their.answered(message_id, Some(bytes), size);
        }
        Err(error) => {
            sa.their.answered(message_id, None, size);
            ctx.event(sa, EventKind::Trouble, format!("{exchange} response: {error}"));
        }
    }
}

/// Hands octets to the commit of this input.
pub(crate) fn transmit(sa: &IkeSa, ctx: &mut Context<'_>, bytes: &[u8]) {
    ctx.out.transmits.extend(addressed(sa, bytes));
}

/// A response that was committed before: sent again, to where it was asked for again.
pub(crate) fn repeat_answer(sa: &IkeSa, ctx: &mut Context<'_>, bytes: &[u8]) {
    ctx.out.plain.extend(datagrams(sa, answer_path(sa, ctx), bytes));
}

/// Octets that were committed before: sent again.
pub(crate) fn repeat(sa: &IkeSa, ctx: &mut Context<'_>, bytes: &[u8]) {
    ctx.out.plain.extend(addressed(sa, bytes));
}

/// Where an answer goes. A peer with MOBIKE asks from other addresses before it moves to one of them: it tries whether they
/// work (RFC 4555 3.10), and RFC 7296 2.11 has the answer go back to where the request came from.
fn answer_path(sa: &IkeSa, ctx: &Context<'_>) -> (SocketAddr, SocketAddr) {
    let path = (sa.path.local, sa.path.remote);
    ctx.from.filter(|_| sa.more.mobike).unwrap_or(path)
}

fn addressed(sa: &IkeSa, bytes: &[u8]) -> impl Iterator<Item = Transmit> {
    datagrams(sa, (sa.path.local, sa.path.remote), bytes)
}

fn datagrams(
    sa: &IkeSa,
    (local, remote): (SocketAddr, SocketAddr),
    bytes: &[u8],
) -> impl Iterator<Item = Transmit> {
    fragments::datagrams(bytes).map(move |datagram| Transmit {
        local,
        remote,
        ike_spi: Some(sa.spi),
        bytes: datagram.to_vec(),
    })
}
