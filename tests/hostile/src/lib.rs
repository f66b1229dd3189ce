//! What fuzzers do with whatever comes from peers, from other members, from operators, etcd and the kernel. Each body takes any octets and must not panic; what it asserts
//! holds for every input.
//!
//! The targets in `tests/fuzz` (a workspace of its own, for `cargo xtask fuzz`) call these bodies; `tests/replay.rs` runs each corpus
//! through them with `cargo test`. The body of `frame` is in tests/packet, with the tables that it has its worlds of.

mod choices;
pub mod config;
mod control;
pub mod credential;
mod engine;
// The agent holds no rules worth a library of its own, but it reads these.
#[path = "../../../userspace/agent/src/core/entry.rs"]
pub mod entry;
mod exchange;
mod member;
pub mod net;
mod netlink;
pub mod peer;
mod slow;
mod synch;
#[path = "../../../userspace/ike/tests/world/mod.rs"]
#[allow(missing_docs, clippy::should_implement_trait)]
pub mod world;

pub use config::config;
pub use control::control;
pub use credential::credential;
pub use engine::engine;
pub use exchange::exchange;
pub use member::member;
pub use netlink::netlink;
pub use peer::peer;
pub use slow::slow;
pub use synch::synch;
pub use test_packet::arbitrary::frame;

use ike::Proposal;
use ike_wire::{EncodeError, Message, Payload, PayloadType, encode_chain, encode_message, parse_chain};
use model::SecretBytes;

/// A target's name and body.
pub type Body = (&'static str, fn(&[u8]));

/// All of them.
pub const BODIES: [Body; 16] = [
    ("message", message),
    ("chain", chain),
    ("payload", payload),
    ("proposal", proposal),
    ("record", record),
    ("exchange", exchange),
    ("peer", peer),
    ("credential", credential),
    ("synch", synch),
    ("member", member),
    ("slow", slow),
    ("frame", frame),
    ("config", config),
    ("control", control),
    ("engine", engine),
    ("netlink", netlink),
];

/// Selectors of types that we do not know are noted, but not written again.
fn is_shortened(payload: &Payload) -> bool {
    matches!(
        payload,
        Payload::TsInitiator(ts) | Payload::TsResponder(ts) if ts.selectors.is_empty() || !ts.unknown.is_empty()
    )
}

/// A whole datagram: what can be read in clear is the same after it was written again.
pub fn message(octets: &[u8]) {
    let Ok(message) = Message::parse(octets) else {
        return;
    };
    if message.protected.is_some() || message.payloads.iter().any(is_shortened) {
        return;
    }
    let written =
        encode_message(&message.header, &message.payloads).expect("what was read fits its length fields");
    let again = Message::parse(&written).expect("what was written can be read");
    assert_eq!(again.payloads, message.payloads);
    assert_eq!(again.header, message.header);
}

/// A decrypted chain; its first octet is the type of the first payload.
pub fn chain(octets: &[u8]) {
    let Some((first, rest)) = octets.split_first() else {
        return;
    };
    let Ok(payloads) = parse_chain(PayloadType(*first), rest) else {
        return;
    };
    if payloads.iter().any(is_shortened) {
        return;
    }
    let (first, written) = encode_chain(&payloads).expect("what was read fits its length fields");
    assert_eq!(
        parse_chain(first, &written).expect("what was written can be read"),
        payloads
    );
}

/// The same octets as the body of a payload of every type.
pub fn payload(octets: &[u8]) {
    let Ok(length) = u16::try_from(octets.len() + 4) else {
        return;
    };
    for kind in PayloadType::NAMED {
        let mut chain = vec![0, 0];
        chain.extend_from_slice(&length.to_be_bytes());
        chain.extend_from_slice(octets);
        let Ok(payloads) = parse_chain(*kind, &chain) else {
            continue;
        };
        if payloads.iter().any(is_shortened) {
            continue;
        }
        match encode_chain(&payloads) {
            Ok((first, written)) => {
                let again = parse_chain(first, &written).expect("what was written can be read");
                assert_eq!(again, payloads, "{kind}");
            }
            Err(error @ (EncodeError::TooLong { .. } | EncodeError::TooMany { .. })) => {
                panic!("{kind} was read but cannot be written: {error}")
            }
            Err(_) => {}
        }
    }
}

/// Text of a configuration.
pub fn proposal(octets: &[u8]) {
    let Ok(text) = std::str::from_utf8(octets) else {
        return;
    };
    for parse in [Proposal::parse_ike, Proposal::parse_esp] {
        if let Ok(proposal) = parse(text) {
            assert_eq!(parse(&proposal.to_string()).as_ref(), Ok(&proposal), "{text:?}");
        }
    }
}

/// The record of an IKE SA: version octet and whatever the journal delivers.
pub fn record(octets: &[u8]) {
    let mut world = world::World::new(1);
    let side = &mut world.sides[world::A];
    let record = SecretBytes::new(octets.to_vec());
    let adopted = match side.engine.adopt(world.now, model::IkeSpi(1), &record) {
        // The record says whose it is.
        Err(ike::AdoptError::WrongSpi { found, .. }) => side.engine.adopt(world.now, found, &record),
        result => result,
    };
    if adopted.is_ok() {
        // It goes on as well as it can.
        side.engine.resume(world.now, &mut side.around);
        while side.engine.poll().is_some() {}
    }
}
