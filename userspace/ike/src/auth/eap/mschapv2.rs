//! EAP-MSCHAPv2 (draft-kamath-pppext-eap-mschapv2), packets of the authenticator.

use super::Users;
use crypto::mschapv2::{Exchange, Proved, verify};
use serde::{Deserialize, Serialize};

const CHALLENGE: u8 = 1;
const RESPONSE: u8 = 2;
const SUCCESS: u8 = 3;
const FAILURE: u8 = 4;
/// Peer's challenge 16, reserved 8, NT-Response 24, flags 1.
const RESPONSE_LEN: u8 = 49;
/// Our name, which peers show at most.
const NAME: &[u8] = b"espalier";

/// A challenge that is out.
#[derive(Serialize, Deserialize)]
pub(crate) struct Challenged {
    pub id: u8,
    pub challenge: [u8; 16],
}

/// OpCode, identifier, length of the whole, then this.
fn packet(code: u8, id: u8, rest: &[u8]) -> Vec<u8> {
    let mut out = vec![code, id];
    out.extend_from_slice(&(4 + rest.len() as u16).to_be_bytes());
    out.extend_from_slice(rest);
    out
}

pub(crate) fn challenge(id: u8, challenge: [u8; 16]) -> (Vec<u8>, Challenged) {
    let data = packet(CHALLENGE, id, &[&[16], &challenge[..], NAME].concat());
    (data, Challenged { id, challenge })
}

/// The user's name without a domain in front.
fn plain(name: &str) -> &str {
    name.rsplit_once('\\').map_or(name, |(_, user)| user)
}

/// Whether the peer knows the password of the user that it said it is. `Err`: why not.
pub(crate) fn judge(
    challenged: &Challenged,
    users: &Users,
    identity: &str,
    data: &[u8],
) -> Result<Proved, String> {
    let shown = identity.escape_debug();
    let malformed = || format!("user {shown}: the MSCHAPv2 response cannot be read");
    let (head, rest) = data.split_first_chunk::<5>().ok_or_else(malformed)?;
    let [code, id, high, low, size] = *head;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if code != RESPONSE || id != challenged.id || size != RESPONSE_LEN || length != data.len() {
        return Err(malformed());
    }
    let (value, name) = rest
        .split_at_checked(usize::from(RESPONSE_LEN))
        .ok_or_else(malformed)?;
    let peer = value.first_chunk::<16>().ok_or_else(malformed)?;
    let response = value
        .get(24..48)
        .and_then(|octets| octets.first_chunk::<24>())
        .ok_or_else(malformed)?;
    let name = std::str::from_utf8(name).map_err(|_| malformed())?;
    // Whoever proves to be one user must not be let in as another.
    let same = plain(name) == plain(identity);
    let known = users
        .password(plain(identity))
        .or_else(|| users.password(identity));
    let exchange = Exchange {
        authenticator: &challenged.challenge,
        peer,
        user: plain(name),
        // An unknown user takes as long as a wrong password.
        password: known.unwrap_or_default(),
    };
    let proved = verify(exchange, response);
    match (known, same, proved) {
        (Some(_), true, Some(proved)) => Ok(proved),
        (None, ..) => Err(format!(
            "there is no user {shown}: add a line \"name:password\" to eap_users_file and reload"
        )),
        (_, false, _) => Err(format!(
            "user {shown} answers as {}: both names must be the same",
            name.escape_debug()
        )),
        (Some(_), true, None) => Err(format!("user {shown} has another password than eap_users_file")),
    }
}

pub(crate) fn success(challenged: &Challenged, response: &str) -> Vec<u8> {
    packet(SUCCESS, challenged.id, format!("{response} M=welcome").as_bytes())
}

/// E=691: authentication failure; R=0: no second try in this conversation.
pub(crate) fn failure(challenged: &Challenged, challenge: [u8; 16]) -> Vec<u8> {
    let hex: String = challenge.iter().map(|octet| format!("{octet:02X}")).collect();
    let text = format!("E=691 R=0 C={hex} V=3 M=authentication failed");
    packet(FAILURE, challenged.id, text.as_bytes())
}

pub(crate) fn is_success(data: &[u8]) -> bool {
    data.first() == Some(&SUCCESS)
}
