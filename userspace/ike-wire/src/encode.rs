//! Payloads to bytes.

use crate::header::{HEADER_LEN, Header};
use crate::payload::Payload;
use crate::registry::PayloadType;
use crate::view::{Fragment, GENERIC_HEADER_LEN};

/// What cannot be encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A payload or message does not fit its length field.
    #[error("{what} of {got} octets does not fit its length field")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// Its octets.
        got: usize,
    },
    /// More than 255 of something that is counted in one octet.
    #[error("{got} {what} do not fit their count field")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// How many.
        got: usize,
    },
    /// A traffic selector mixes IPv4 and IPv6.
    #[error("a traffic selector's first and last address are of different families")]
    MixedFamilies,
    /// SPIs within one SPI list have different lengths.
    #[error("SPIs of one Delete payload have different lengths")]
    MixedSpis,
}

/// Encodes payloads as a chain without IKE header: the plaintext of an SK payload. Gives the first payload's type and the octets.
///
/// # Errors
/// [`EncodeError`].
pub fn encode_chain(payloads: &[Payload]) -> Result<(PayloadType, Vec<u8>), EncodeError> {
    let mut out = Vec::new();
    write_chain(payloads, &mut out)?;
    Ok((first_kind(payloads), out))
}

/// Encodes a message in clear.
///
/// # Errors
/// [`EncodeError`].
pub fn encode_message(header: &Header, payloads: &[Payload]) -> Result<Vec<u8>, EncodeError> {
    let mut out = vec![0; HEADER_LEN];
    write_chain(payloads, &mut out)?;
    let length = message_length(out.len())?;
    let mut head = Vec::with_capacity(HEADER_LEN);
    header.write(&mut head, first_kind(payloads), length);
    out[..HEADER_LEN].copy_from_slice(&head);
    Ok(out)
}

/// IKE header and generic header of an SK payload with final lengths: associated data, and the start of the message. The caller
/// appends `sealed_len` octets of IV, ciphertext and ICV. `first` comes from [`encode_chain`].
///
/// # Errors
/// [`EncodeError::TooLong`].
pub fn encode_sk_prefix(
    header: &Header,
    first: PayloadType,
    sealed_len: usize,
) -> Result<Vec<u8>, EncodeError> {
    let payload_len = GENERIC_HEADER_LEN + sealed_len;
    let mut out = Vec::with_capacity(HEADER_LEN + payload_len);
    header.write(
        &mut out,
        PayloadType::SK,
        message_length(HEADER_LEN + payload_len)?,
    );
    write_generic(&mut out, first, payload_len)?;
    Ok(out)
}

/// As [`encode_sk_prefix`] for one fragment (RFC 7383 2.5). `first` is the inner chain's first type for fragment 1, and is
/// sent as 0 in later ones.
///
/// # Errors
/// [`EncodeError::TooLong`].
pub fn encode_skf_prefix(
    header: &Header,
    first: PayloadType,
    fragment: Fragment,
    sealed_len: usize,
) -> Result<Vec<u8>, EncodeError> {
    let payload_len = GENERIC_HEADER_LEN + Fragment::LEN + sealed_len;
    let mut out = Vec::with_capacity(HEADER_LEN + payload_len);
    header.write(
        &mut out,
        PayloadType::SKF,
        message_length(HEADER_LEN + payload_len)?,
    );
    write_generic(
        &mut out,
        if fragment.number == 1 {
            first
        } else {
            PayloadType::NONE
        },
        payload_len,
    )?;
    out.extend_from_slice(&fragment.number.to_be_bytes());
    out.extend_from_slice(&fragment.total.to_be_bytes());
    Ok(out)
}

fn first_kind(payloads: &[Payload]) -> PayloadType {
    payloads.first().map_or(PayloadType::NONE, Payload::kind)
}

fn message_length(len: usize) -> Result<u32, EncodeError> {
    // One UDP datagram carries at most 65,507 octets; anything longer can never be sent.
    if len > 65_507 {
        return Err(EncodeError::TooLong {
            what: "message",
            got: len,
        });
    }
    Ok(len as u32)
}

fn write_chain(payloads: &[Payload], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let mut rest = payloads;
    while let Some((payload, tail)) = rest.split_first() {
        let start = out.len();
        out.extend_from_slice(&[0; GENERIC_HEADER_LEN]);
        payload.write_body(out)?;
        let mut generic = Vec::with_capacity(GENERIC_HEADER_LEN);
        write_generic(&mut generic, first_kind(tail), out.len() - start)?;
        out[start..start + GENERIC_HEADER_LEN].copy_from_slice(&generic);
        rest = tail;
    }
    Ok(())
}

// RFC 7296 3.2: the critical bit MUST be zero for payload types that the RFC defines, and we send no others.
fn write_generic(out: &mut Vec<u8>, next: PayloadType, length: usize) -> Result<(), EncodeError> {
    let length = u16_length("payload", length)?;
    out.extend_from_slice(&[next.0, 0]);
    out.extend_from_slice(&length.to_be_bytes());
    Ok(())
}

pub(crate) fn u16_length(what: &'static str, got: usize) -> Result<u16, EncodeError> {
    u16::try_from(got).map_err(|_| EncodeError::TooLong { what, got })
}

pub(crate) fn u8_count(what: &'static str, got: usize) -> Result<u8, EncodeError> {
    u8::try_from(got).map_err(|_| EncodeError::TooMany { what, got })
}
