//! How long an authentication lasts, told after it (RFC 4478 3): the responder may say so in an INFORMATIONAL exchange of its own.
//!
//! ```text
//!   A ===== IKE SA ===== by hand
//!   A <---  SK {N(AUTH_LIFETIME)}
//!   A --->  SK {}
//!   A --->  IKE_SA_INIT                       before the time is over
//! ```

mod world;

use ike::EventKind;
use ike_wire::{ExchangeType, Message, Notify, NotifyType, Payload};
use std::time::Duration;
use world::scripted::Peer;
use world::scripted::answering::{Answerer, UNIX};
use world::*;

fn tell(peer: &mut Answerer, told: Notify) {
    let answer = peer.request(ExchangeType::INFORMATIONAL, &[Payload::Notify(told)]);
    assert!(answer.is_empty(), "{answer:?}");
}

/// Seconds until the engine authenticates anew.
fn left(peer: &Answerer) -> Option<u64> {
    peer.world.only(A).reauth_in.map(|left| left.as_secs())
}

fn pass(world: &mut World, seconds: u64) {
    world.now = world.now + Duration::from_secs(seconds);
    world.sides[A].around.unix_time = Some(UNIX + world.now.millis() / 1000);
    world.timeout();
}

#[test]
fn the_last_word_counts_from_the_message_that_it_is_in() {
    let mut peer = Answerer::established(vec![Payload::Notify(Notify::auth_lifetime(36_000))]);
    assert_eq!(left(&peer), Some(32_400), "a tenth before");
    pass(&mut peer.world, 100);
    // Of 3700 s since the authentication a tenth is left.
    tell(&mut peer, Notify::auth_lifetime(3600));
    assert_eq!(left(&peer), Some(3230));
    // A longer one is believed as well.
    pass(&mut peer.world, 200);
    tell(&mut peer, Notify::auth_lifetime(7200));
    assert_eq!(left(&peer), Some(6450));
    // It is in the record.
    peer.world.take_over(A);
    assert_eq!(left(&peer), Some(6450), "{}", peer.world.story());
}

#[test]
fn without_any_before_it_the_engine_begins_anew_in_time() {
    let mut peer = Answerer::established(Vec::new());
    assert_eq!(left(&peer), None);
    pass(&mut peer.world, 1000);
    tell(&mut peer, Notify::auth_lifetime(300));
    // Of 1300 s a tenth is more than a minute.
    assert_eq!(left(&peer), Some(170));
    pass(&mut peer.world, 169);
    assert!(peer.world.net.is_empty(), "not due");
    pass(&mut peer.world, 1);
    let packet = peer
        .world
        .net
        .pop_front()
        .expect("a new IKE SA beside the old one");
    let header = Message::parse(&packet.bytes).unwrap().header;
    assert_eq!(header.exchange, ExchangeType::IKE_SA_INIT);
    assert!(!peer.world.has_event(A, EventKind::PeerMisbehaved));
}

#[test]
fn one_that_is_over_is_obeyed_at_once_and_one_that_is_malformed_is_ignored() {
    let mut peer = Answerer::established(Vec::new());
    pass(&mut peer.world, 600);
    for data in [vec![], vec![0, 0, 1], vec![0, 0, 0, 1, 0]] {
        tell(&mut peer, Notify::new(NotifyType::AUTH_LIFETIME, data));
        assert_eq!(left(&peer), None);
    }
    // 600 s are over, and a minute earlier was the time.
    tell(&mut peer, Notify::auth_lifetime(0));
    assert_eq!(left(&peer), Some(0));
    pass(&mut peer.world, 0);
    assert!(!peer.world.net.is_empty(), "{}", peer.world.story());
}

#[test]
fn the_one_that_initiated_has_nothing_to_say_about_it() {
    let mut peer = Peer::established();
    let told = [Payload::Notify(Notify::auth_lifetime(1))];
    let answer = peer
        .request(ExchangeType::INFORMATIONAL, &told)
        .expect("an answer");
    assert!(answer.is_empty(), "{answer:?}");
    assert_eq!(peer.world.only(B).reauth_in, None);
}
