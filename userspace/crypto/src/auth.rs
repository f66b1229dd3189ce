//! The AUTH payload with a pre-shared key (RFC 7296 2.15), and after session resumption (RFC 5723 4.3.3).

use crate::{Prf, ct_eq};
use model::SecretBytes;

const KEY_PAD: &[u8] = b"Key Pad for IKEv2";

/// What one side signs: its first message, the other side's nonce, and its own identity under SK_p.
#[derive(Clone, Copy)]
pub struct AuthInput<'a> {
    /// The signer's IKE_SA_INIT message, from the IKE header on (for the initiator the one that was answered, with its cookie).
    pub message: &'a [u8],
    /// Data of the *other* side's nonce.
    pub nonce: &'a [u8],
    /// SK_pi for the original initiator's AUTH, SK_pr for the responder's.
    pub sk_p: &'a SecretBytes,
    /// Body of the signer's ID payload as sent: type, reserved octets, data.
    pub id_body: &'a [u8],
    /// IntAuth, which binds IKE_INTERMEDIATE exchanges (RFC 9242 3.3.2); empty where there were none.
    pub intermediate: &'a [u8],
}

/// AUTH = prf(prf(shared secret, "Key Pad for IKEv2"), message | nonce | prf(SK_p, ID body) | IntAuth).
pub fn psk_auth(prf: Prf, psk: &SecretBytes, input: AuthInput<'_>) -> Vec<u8> {
    let key = prf.compute(psk.expose(), &[KEY_PAD]);
    signed(prf, &key, input)
}

/// prf(key, message | nonce | prf(SK_p, ID body) | IntAuth).
fn signed(prf: Prf, key: &SecretBytes, input: AuthInput<'_>) -> Vec<u8> {
    let maced_id = prf.compute(input.sk_p.expose(), &[input.id_body]);
    let parts = [input.message, input.nonce, maced_id.expose(), input.intermediate];
    prf.compute(key.expose(), &parts).expose().to_vec()
}

/// What a digital signature is made of: message | nonce | prf(SK_p, ID body) | IntAuth (RFC 7296 2.15). It may be shown to who signs it.
pub fn signed_octets(prf: Prf, input: AuthInput<'_>) -> Vec<u8> {
    let maced_id = prf.compute(input.sk_p.expose(), &[input.id_body]);
    [input.message, input.nonce, maced_id.expose(), input.intermediate].concat()
}

/// Whether the data of the peer's AUTH payload is right; compares in constant time.
pub fn verify_psk_auth(prf: Prf, psk: &SecretBytes, input: AuthInput<'_>, auth: &[u8]) -> bool {
    ct_eq(&psk_auth(prf, psk, input), auth)
}

/// After IKE_SESSION_RESUME, whose messages take the place of IKE_SA_INIT's: AUTH = prf(SK_px, message octets), with SK_p of
/// the new IKE SA (RFC 5723 4.3.3).
pub fn resumption_auth(prf: Prf, input: AuthInput<'_>) -> Vec<u8> {
    signed(prf, input.sk_p, input)
}

/// Whether the data of the peer's AUTH payload is right; compares in constant time.
pub fn verify_resumption_auth(prf: Prf, input: AuthInput<'_>, auth: &[u8]) -> bool {
    ct_eq(&resumption_auth(prf, input), auth)
}
