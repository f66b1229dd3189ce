//! EAP methods, as authenticator (RFC 3748). Each step is a value: packets in, packets out, nothing hidden, so that a member that takes
//! over goes on in the middle.

pub(crate) mod mschapv2;
pub(crate) mod tls;

use ike_wire::{Eap, EapCode, EapType};
use model::SecretBytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Names and passwords. No `Debug`.
#[derive(Clone, Default)]
pub struct Users(BTreeMap<String, SecretBytes>);

impl Users {
    /// Passwords are UTF-8.
    pub fn new(users: BTreeMap<String, SecretBytes>) -> Self {
        Self(users)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn password(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.0.get(name)?.expose()).ok()
    }
}

/// Where the conversation is. No `Debug`: it may hold a key.
#[derive(Serialize, Deserialize)]
pub(crate) enum Step {
    /// The peer was asked who it is.
    Identity,
    /// The peer was challenged.
    Challenged(mschapv2::Challenged),
    /// The peer was told that it is right.
    Confirming { msk: SecretBytes },
    /// The peer was told that it is wrong, and why not.
    Refusing { why: String },
    /// EAP has succeeded: AUTH payloads with this key are next.
    Done { msk: SecretBytes },
    /// TLS is under way. Last, so that the numbers of the others stay what they were in older records.
    Tls(tls::Conversation),
}

/// What is next.
pub(crate) enum Next {
    /// This request goes out, and this is waited for.
    Ask(Eap, Step),
    /// EAP-Success goes out.
    Success { msk: SecretBytes },
    /// EAP-Failure goes out.
    Failure(String),
    /// Not an answer to what was asked: silence (RFC 3748 4.1).
    Nothing,
}

/// The first request.
pub(crate) fn begin(identifier: u8) -> Eap {
    Eap::request(identifier, EapType::IDENTITY, Vec::new())
}

/// The peer's answer. `identity`: what it said to the first request, which is filled in here.
pub(crate) fn proceed(
    step: &Step,
    users: &Users,
    identity: &mut Option<String>,
    identifier: u8,
    answer: &Eap,
    challenge: [u8; 16],
) -> Next {
    let expected = answer.code == EapCode::RESPONSE && answer.identifier == identifier;
    let Some((kind, data)) = answer.body.as_ref().filter(|_| expected) else {
        return Next::Nothing;
    };
    if *kind == EapType::NAK {
        let wanted: Vec<_> = data.iter().map(|kind| EapType(*kind).to_string()).collect();
        return Next::Failure(format!(
            "the peer refuses EAP-MSCHAPv2 and would like EAP method {}: configure it for MSCHAPv2",
            wanted.join(" or ")
        ));
    }
    let next = identifier.wrapping_add(1);
    match step {
        Step::Identity if *kind == EapType::IDENTITY => {
            let Ok(name) = std::str::from_utf8(data) else {
                return Next::Failure("the peer's EAP identity is no text".to_owned());
            };
            *identity = Some(name.to_owned());
            let (data, challenged) = mschapv2::challenge(next, challenge);
            Next::Ask(
                Eap::request(next, EapType::MSCHAPV2, data),
                Step::Challenged(challenged),
            )
        }
        Step::Challenged(challenged) if *kind == EapType::MSCHAPV2 => {
            let name = identity.as_deref().unwrap_or_default();
            match mschapv2::judge(challenged, users, name, data) {
                Ok(proved) => {
                    let data = mschapv2::success(challenged, &proved.response);
                    let step = Step::Confirming { msk: proved.msk };
                    Next::Ask(Eap::request(next, EapType::MSCHAPV2, data), step)
                }
                Err(why) => {
                    let data = mschapv2::failure(challenged, challenge);
                    Next::Ask(
                        Eap::request(next, EapType::MSCHAPV2, data),
                        Step::Refusing { why },
                    )
                }
            }
        }
        Step::Confirming { msk } if *kind == EapType::MSCHAPV2 => match mschapv2::is_success(data) {
            true => Next::Success { msk: msk.clone() },
            false => Next::Failure("the peer does not believe us, though its password is right".to_owned()),
        },
        Step::Refusing { why } => Next::Failure(why.clone()),
        _ => Next::Failure(format!(
            "the peer answers by EAP method {kind}, which was not asked for"
        )),
    }
}
