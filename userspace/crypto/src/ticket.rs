//! Protection of session resumption tickets (RFC 5723 6.1): "the ticket content MUST be integrity protected and encrypted".
//!
//! All members make and read each other's tickets without telling each other anything: the key of a period of time follows
//! from a common secret and the period's number. Two generations are read, the present one and the one before. Layout:
//!
//! ```text
//! version (1) | reserved (3) | key id (8) | salt (16) | state, AES-256-GCM | ICV (16)
//! ```
//!
//! The key of each ticket is derived with its random salt, so the number of tickets under one period's key is not bounded by
//! the 96 bits of a GCM nonce, which is zero.

use crate::{CryptoError, Random, hmac_sha256};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use model::SecretBytes;
use zeroize::Zeroizing;

/// Seconds for which new tickets get one key. RFC 5723 6.2: "significantly longer than the lifetime of an IKE SA".
pub const TICKET_KEY_PERIOD: u64 = 24 * 3600;
/// Octets that a ticket adds to the state in it.
pub const TICKET_OVERHEAD: usize = PREFIX_LEN + ICV_LEN;
/// Longer ones are none of ours.
pub const TICKET_MAX: usize = 2048;

/// Seconds by which the clocks of members may differ: a ticket of the next period is read that much too early.
const CLOCK_SKEW: u64 = 300;
const VERSION: u8 = 1;
const SALT_LEN: usize = 16;
const PREFIX_LEN: usize = 4 + 8 + SALT_LEN;
const ICV_LEN: usize = 16;

/// Why a ticket cannot be read. None of these costs more than two HMACs and one decryption.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Too short, too long, or of another version.
    #[error("not a ticket of this cluster's format")]
    Format,
    /// The period of its key is over, or has not begun.
    #[error("made under a key that is not in use")]
    UnknownKey,
    /// Changed, or made by somebody else.
    #[error("not made by this cluster")]
    Integrity,
}

fn key(secret: &SecretBytes, period: u64, salt: &[u8]) -> Result<LessSafeKey, CryptoError> {
    let generation = Zeroizing::new(hmac_sha256(
        secret.expose(),
        &[b"ticket key", &period.to_be_bytes()],
    ));
    let key = Zeroizing::new(hmac_sha256(&generation[..], &[salt]));
    let key = UnboundKey::new(&AES_256_GCM, &key[..]).map_err(|_| CryptoError::Provider)?;
    Ok(LessSafeKey::new(key))
}

fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

/// A ticket with this state. `now`: seconds since 1970.
///
/// # Errors
/// [`CryptoError::Provider`].
pub fn seal_ticket(
    secret: &SecretBytes,
    now: u64,
    random: Random<'_>,
    state: &SecretBytes,
) -> Result<Vec<u8>, CryptoError> {
    let period = now / TICKET_KEY_PERIOD;
    let mut ticket = Vec::with_capacity(state.len() + TICKET_OVERHEAD);
    ticket.extend_from_slice(&[VERSION, 0, 0, 0]);
    ticket.extend_from_slice(&period.to_be_bytes());
    let mut salt = [0; SALT_LEN];
    random(&mut salt);
    ticket.extend_from_slice(&salt);
    let mut text = Zeroizing::new(state.expose().to_vec());
    let icv = key(secret, period, &salt)?
        .seal_in_place_separate_tag(nonce(), Aad::from(&ticket), &mut text)
        .map_err(|_| CryptoError::Provider)?;
    ticket.extend_from_slice(&text);
    ticket.extend_from_slice(icv.as_ref());
    Ok(ticket)
}

/// The state in a ticket. `now`: seconds since 1970.
///
/// # Errors
/// [`TicketError`].
pub fn open_ticket(secret: &SecretBytes, now: u64, ticket: &[u8]) -> Result<SecretBytes, TicketError> {
    if ticket.len() < TICKET_OVERHEAD || ticket.len() > TICKET_MAX || ticket[0] != VERSION {
        return Err(TicketError::Format);
    }
    let (prefix, rest) = ticket.split_at(PREFIX_LEN);
    let (text, icv) = rest.split_at(rest.len() - ICV_LEN);
    let (id, salt) = prefix[4..].split_at(8);
    let period = id.iter().fold(0, |id, octet| (id << 8) | u64::from(*octet));
    let oldest = (now / TICKET_KEY_PERIOD).saturating_sub(1);
    let newest = now.saturating_add(CLOCK_SKEW) / TICKET_KEY_PERIOD;
    if !(oldest..=newest).contains(&period) {
        return Err(TicketError::UnknownKey);
    }
    let key = key(secret, period, salt).map_err(|_| TicketError::Integrity)?;
    let mut state = text.to_vec();
    key.open_in_place_separate_tag(nonce(), Aad::from(prefix), icv, &mut state)
        .map_err(|_| TicketError::Integrity)?;
    Ok(SecretBytes::new(state))
}
