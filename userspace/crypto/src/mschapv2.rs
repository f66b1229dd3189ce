//! MS-CHAPv2 (RFC 2759) and the keys that come of it (RFC 3079), for EAP-MSCHAPv2. MD4 and DES are what Windows and phones speak
//! here; they only ever run inside an IKE SA whose responder has proved itself by a certificate.

use crate::ct_eq;
use aws_lc_rs::digest;
use des::Des;
use des::cipher::{Array, BlockCipherEncrypt, KeyInit};
use md4::{Digest, Md4};
use model::SecretBytes;
use zeroize::{Zeroize, Zeroizing};

/// What both sides of one authentication contribute.
#[derive(Clone, Copy)]
pub struct Exchange<'a> {
    /// The authenticator's challenge.
    pub authenticator: &'a [u8; 16],
    /// The peer's challenge.
    pub peer: &'a [u8; 16],
    /// The user's name, without a domain in front.
    pub user: &'a str,
    /// The user's password.
    pub password: &'a str,
}

/// What the authenticator says and derives once the peer has proved itself.
pub struct Proved {
    /// `S=` and 40 hexadecimal digits: proves that the authenticator knows the password as well.
    pub response: String,
    /// 64 octets for AUTH payloads.
    pub msk: SecretBytes,
}

fn sha1(parts: &[&[u8]]) -> [u8; 20] {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    parts.iter().for_each(|part| context.update(part));
    let mut out = [0; 20];
    out.copy_from_slice(context.finish().as_ref());
    out
}

fn md4(octets: &[u8]) -> Zeroizing<[u8; 16]> {
    Zeroizing::new(Md4::digest(octets).into())
}

/// NtPasswordHash (8.3): MD4 of the password in UTF-16LE.
fn password_hash(password: &str) -> Zeroizing<[u8; 16]> {
    let utf16 = Zeroizing::new(
        password
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect::<Vec<u8>>(),
    );
    md4(&utf16)
}

/// ChallengeHash (8.2).
fn challenge(exchange: Exchange<'_>) -> [u8; 8] {
    let hash = sha1(&[exchange.peer, exchange.authenticator, exchange.user.as_bytes()]);
    std::array::from_fn(|at| hash[at])
}

/// DesEncrypt (8.6): 56 bits of key spread over 8 octets; parity does not count.
fn des(clear: [u8; 8], key: &[u8]) -> [u8; 8] {
    let bits = key.iter().fold(0u64, |bits, octet| bits << 8 | u64::from(*octet));
    let mut spread: [u8; 8] = std::array::from_fn(|at| ((bits >> (49 - 7 * at)) as u8) << 1);
    let mut block = Array::from(clear);
    Des::new(&Array::from(spread)).encrypt_block(&mut block);
    spread.zeroize();
    block.into()
}

/// GenerateNTResponse (8.1): the proof of a peer that knows the password.
pub fn nt_response(exchange: Exchange<'_>) -> [u8; 24] {
    let mut key = Zeroizing::new([0; 21]);
    key[..16].copy_from_slice(&*password_hash(exchange.password));
    let challenge = challenge(exchange);
    let mut out = [0; 24];
    for (block, key) in out.chunks_exact_mut(8).zip(key.chunks_exact(7)) {
        block.copy_from_slice(&des(challenge, key));
    }
    out
}

/// Checks the peer's NT-Response. `None`: it does not know the password.
pub fn verify(exchange: Exchange<'_>, response: &[u8; 24]) -> Option<Proved> {
    if !ct_eq(&nt_response(exchange), response) {
        return None;
    }
    let twice = md4(&*password_hash(exchange.password));
    // GenerateAuthenticatorResponse (8.7).
    const MAGIC_1: &[u8] = b"Magic server to client signing constant";
    const MAGIC_2: &[u8] = b"Pad to make it do more than one iteration";
    let digest = sha1(&[&*twice, response, MAGIC_1]);
    let digest = sha1(&[&digest, &challenge(exchange), MAGIC_2]);
    let hex: String = digest.iter().map(|octet| format!("{octet:02X}")).collect();
    Some(Proved {
        response: format!("S={hex}"),
        msk: msk(&twice, response),
    })
}

/// RFC 3079 3.3 and 3.4: the server's receive key, then its send key, then zeros.
fn msk(twice: &[u8; 16], response: &[u8; 24]) -> SecretBytes {
    const MASTER: &[u8] = b"This is the MPPE Master Key";
    const RECEIVE: &[u8] =
        b"On the client side, this is the send key; on the server side, it is the receive key.";
    const SEND: &[u8] =
        b"On the client side, this is the receive key; on the server side, it is the send key.";
    let mut master = sha1(&[twice, response, MASTER]);
    let mut out = vec![0; 64];
    for (at, magic) in [(0, RECEIVE), (16, SEND)] {
        let mut key = sha1(&[&master[..16], &[0; 40], magic, &[0xf2; 40]]);
        out[at..at + 16].copy_from_slice(&key[..16]);
        key.zeroize();
    }
    master.zeroize();
    SecretBytes::new(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUTHENTICATOR: [u8; 16] = *b"\x5b\x5d\x7c\x7d\x7b\x3f\x2f\x3e\x3c\x2c\x60\x21\x32\x26\x26\x28";
    const PEER: [u8; 16] = *b"\x21\x40\x23\x24\x25\x5e\x26\x2a\x28\x29\x5f\x2b\x3a\x33\x7c\x7e";
    const RESPONSE: [u8; 24] =
        *b"\x82\x30\x9e\xcd\x8d\x70\x8b\x5e\xa0\x8f\xaa\x39\x81\xcd\x83\x54\x42\x33\x11\x4a\x3d\x85\xd6\xdf";

    fn exchange(password: &'static str) -> Exchange<'static> {
        Exchange {
            authenticator: &AUTHENTICATOR,
            peer: &PEER,
            user: "User",
            password,
        }
    }

    #[test]
    fn the_vectors_of_rfc_2759_9_2_and_rfc_3079_3_5_3() {
        let hash = password_hash("clientPass");
        assert_eq!(
            *hash,
            *b"\x44\xeb\xba\x8d\x53\x12\xb8\xd6\x11\x47\x44\x11\xf5\x69\x89\xae"
        );
        assert_eq!(
            challenge(exchange("clientPass")),
            *b"\xd0\x2e\x43\x86\xbc\xe9\x12\x26"
        );
        assert_eq!(nt_response(exchange("clientPass")), RESPONSE);
        let proved = verify(exchange("clientPass"), &RESPONSE).unwrap();
        assert_eq!(proved.response, "S=407A5589115FD0D6209F510FE9C04566932CDA56");
        // SendStartKey128 of the server.
        let send = b"\x8b\x7c\xdc\x14\x9b\x99\x3a\x1b\xa1\x18\xcb\x15\x3f\x56\xdc\xcb";
        assert_eq!(&proved.msk.expose()[16..32], send);
        assert_eq!(proved.msk.expose()[32..], [0; 32]);
    }

    #[test]
    fn another_password_name_or_challenge_proves_nothing() {
        assert!(verify(exchange("clientpass"), &RESPONSE).is_none());
        let mut other = exchange("clientPass");
        other.user = "user";
        assert!(verify(other, &RESPONSE).is_none());
        other.user = "User";
        other.authenticator = &PEER;
        assert!(verify(other, &RESPONSE).is_none());
    }
}
