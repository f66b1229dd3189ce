//! EAP-TLS, packets of the authenticator (RFC 5216 3.1): messages of TLS in fragments. TLS itself is elsewhere ([`crate::TlsRequest`]).

use model::SecretBytes;
use serde::{Deserialize, Serialize};

const LENGTH_INCLUDED: u8 = 0x80;
const MORE_FRAGMENTS: u8 = 0x40;
const START: u8 = 0x20;
/// Octets of TLS in a packet of ours: with all headers the IKE message needs no fragmentation anywhere.
const FRAGMENT: usize = 1024;
/// Octets of a peer's message; certificates fit many times.
const MESSAGE_MAX: usize = 32_768;

/// Where the conversation is. The state of TLS is not in it: it is in the member that began, so nobody else can go on.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Conversation {
    /// The peer's message, as far as it has come.
    incoming: Vec<u8>,
    /// What the peer has not got of our message.
    outgoing: Vec<u8>,
    /// The peer has sent a message before.
    begun: bool,
    end: Option<End>,
}

/// What comes when the peer has got all.
#[derive(Serialize, Deserialize)]
enum End {
    Success(SecretBytes),
    Failure(String),
}

/// What a packet leads to.
pub(crate) enum Turn {
    /// Data of our next request.
    Ask(Vec<u8>),
    /// A whole message is for TLS. `first`: it begins the handshake.
    Feed {
        first: bool,
        octets: Vec<u8>,
    },
    /// Both sides have the key.
    Success(SecretBytes),
    Failure(String),
}

impl Conversation {
    /// Data of the request that begins.
    pub fn start() -> Vec<u8> {
        vec![START]
    }

    /// Data of the peer's packet.
    pub fn take(&mut self, data: &[u8]) -> Turn {
        let malformed = || Turn::Failure("an EAP-TLS packet cannot be read".to_owned());
        let (flags, mut rest) = match data.split_first() {
            Some((flags, rest)) => (*flags, rest),
            None => (0, data),
        };
        if flags & LENGTH_INCLUDED != 0 {
            let Some((length, octets)) = rest.split_first_chunk::<4>() else {
                return malformed();
            };
            if u32::from_be_bytes(*length) as usize > MESSAGE_MAX {
                return Turn::Failure(format!("a TLS message of more than {MESSAGE_MAX} octets"));
            }
            rest = octets;
        }
        let more = flags & MORE_FRAGMENTS != 0;
        if rest.is_empty() && !more {
            return self.acknowledged();
        }
        if !self.outgoing.is_empty() || self.end.is_some() {
            return Turn::Failure("the peer sends TLS out of turn".to_owned());
        }
        if rest.is_empty() || self.incoming.len() + rest.len() > MESSAGE_MAX {
            return malformed();
        }
        self.incoming.extend_from_slice(rest);
        if more {
            return Turn::Ask(vec![0]);
        }
        Turn::Feed {
            first: !std::mem::replace(&mut self.begun, true),
            octets: std::mem::take(&mut self.incoming),
        }
    }

    fn acknowledged(&mut self) -> Turn {
        if !self.outgoing.is_empty() {
            return Turn::Ask(self.next());
        }
        match &self.end {
            Some(End::Success(msk)) => Turn::Success(msk.clone()),
            Some(End::Failure(why)) => Turn::Failure(why.clone()),
            None => Turn::Failure("the peer gave up the TLS handshake without an alert".to_owned()),
        }
    }

    /// TLS has said this. Data of our next request.
    pub fn say(&mut self, octets: Vec<u8>) -> Vec<u8> {
        let length = (octets.len() as u32).to_be_bytes();
        let whole = octets.len() <= FRAGMENT;
        self.outgoing = octets;
        let mut data = self.next();
        if !whole && let Some(flags) = data.first_mut() {
            *flags |= LENGTH_INCLUDED;
            data.splice(1..1, length);
        }
        data
    }

    /// TLS has said this, and the handshake is complete.
    pub fn complete(&mut self, octets: Vec<u8>, msk: SecretBytes) -> Vec<u8> {
        self.end = Some(End::Success(msk));
        self.say(octets)
    }

    /// TLS has said this (an alert), and refuses the peer.
    pub fn refuse(&mut self, alert: Vec<u8>, why: String) -> Vec<u8> {
        self.end = Some(End::Failure(why));
        self.say(alert)
    }

    /// Whether the peer is told already that it is refused.
    pub fn refuses(&self) -> bool {
        matches!(self.end, Some(End::Failure(_)))
    }

    fn next(&mut self) -> Vec<u8> {
        let rest = self.outgoing.split_off(self.outgoing.len().min(FRAGMENT));
        let fragment = std::mem::replace(&mut self.outgoing, rest);
        let flags = if self.outgoing.is_empty() {
            0
        } else {
            MORE_FRAGMENTS
        };
        let mut data = vec![flags];
        data.extend(fragment);
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(turn: Turn) -> (bool, Vec<u8>) {
        match turn {
            Turn::Feed { first, octets } => (first, octets),
            _ => panic!("a whole message"),
        }
    }

    #[test]
    fn messages_go_in_fragments_and_each_is_acknowledged() {
        let mut talk = Conversation::default();
        let ask = |turn| match turn {
            Turn::Ask(data) => data,
            _ => panic!("a request"),
        };
        // The peer's first message in two fragments.
        assert_eq!(ask(talk.take(&[0xc0, 0, 0, 0, 3, 1, 2])), [0]);
        assert_eq!(fed(talk.take(&[0, 3])), (true, vec![1, 2, 3]));
        // Ours in three.
        let ours: Vec<u8> = (0..2500u32).map(|n| n as u8).collect();
        let first = talk.say(ours.clone());
        assert_eq!(first[..5], [0xc0, 0, 0, 0x09, 0xc4]);
        let second = ask(talk.take(&[0]));
        let third = ask(talk.take(&[]));
        assert_eq!((second[0], third[0]), (0x40, 0));
        assert_eq!([&first[5..], &second[1..], &third[1..]].concat(), ours);
        assert_eq!(fed(talk.take(&[0, 9])), (false, vec![9]));
        let data = talk.complete(vec![7], SecretBytes::new(vec![8; 64]));
        assert_eq!(data, [0, 7]);
        assert!(matches!(talk.take(&[0]), Turn::Success(msk) if msk.expose() == [8; 64]));
    }

    #[test]
    fn a_peer_that_does_not_keep_to_the_turns_fails() {
        let failure = |turn| match turn {
            Turn::Failure(why) => why,
            _ => panic!("a failure"),
        };
        let new = Conversation::default;
        assert!(failure(new().take(&[0])).contains("gave up"));
        assert!(failure(new().take(&[0x80, 0, 0])).contains("cannot be read"));
        assert!(failure(new().take(&[0x80, 0, 1, 0, 0, 1])).contains("more than"));
        assert!(failure(new().take(&[0x40])).contains("cannot be read"));
        let mut talk = new();
        talk.say(vec![0; 2000]);
        assert!(failure(talk.take(&[0, 1])).contains("out of turn"));
        let mut talk = new();
        for _ in 0..MESSAGE_MAX / 1024 {
            assert!(matches!(
                talk.take(&[&[0x40][..], &[1; 1024]].concat()),
                Turn::Ask(_)
            ));
        }
        assert!(failure(talk.take(&[0, 1])).contains("cannot be read"));
        let mut talk = new();
        talk.refuse(vec![1], "no".to_owned());
        assert!(talk.refuses());
        assert_eq!(failure(talk.take(&[0])), "no");
    }
}
