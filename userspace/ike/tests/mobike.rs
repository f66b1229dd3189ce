//! A peer that changes its address (RFC 4555), written by hand.

mod world;

use ike::EventKind;
use ike_wire::{ExchangeType, Notify, NotifyType, Payload, PayloadList};
use std::net::SocketAddr;
use world::scripted::{Peer, esp, selectors};
use world::{B, config, connection};

const NEW: &str = "192.0.2.99:4500";

fn mobile() -> Peer {
    let mut gateway = connection(B);
    gateway.remotes.clear();
    let mut peer = Peer::with(config(vec![gateway]), vec![]);
    let mut payloads = peer.auth(b"a secret that both know");
    payloads.push(Payload::Notify(Notify::status(NotifyType::MOBIKE_SUPPORTED)));
    payloads.push(esp(0x1000, 20, Some(256)));
    payloads.extend(selectors());
    let answer = peer.request(ExchangeType::IKE_AUTH, &payloads).unwrap();
    assert!(answer.notify(NotifyType::MOBIKE_SUPPORTED).is_some() && answer.sa().is_some());
    peer
}

fn update() -> [Payload; 2] {
    [
        Payload::Notify(Notify::status(NotifyType::UPDATE_SA_ADDRESSES)),
        Payload::Notify(Notify::new(NotifyType::COOKIE2, vec![7; 16])),
    ]
}

fn moved(peer: &mut Peer) -> PayloadList {
    peer.address = NEW.parse().unwrap();
    peer.request(ExchangeType::INFORMATIONAL, &update()).unwrap()
}

#[test]
fn the_ike_sa_and_its_children_follow_the_peer_and_its_reachability_is_checked() {
    let mut peer = mobile();
    let answer = moved(&mut peer);
    // <-- HDR, SK {N(COOKIE2)} to the new address
    assert_eq!(answer.notify(NotifyType::COOKIE2).unwrap().data, [7; 16]);
    let new: SocketAddr = NEW.parse().unwrap();
    assert_eq!(peer.world.only(B).remote, new);
    assert!(
        peer.world.sides[B]
            .children
            .values()
            .all(|child| child.remote == new)
    );
    let text = peer.world.event(B, EventKind::PeerMoved).to_string();
    assert!(text.contains("MOBIKE") && text.contains(NEW), "{text}");
    // <-- HDR, SK {N(COOKIE2)}: is it really there?
    let (header, request) = peer.expect_request();
    let cookie = request.notify(NotifyType::COOKIE2).expect("COOKIE2").clone();
    peer.respond(header, &[Payload::Notify(cookie)]);
    assert_eq!(peer.world.only(B).phase, "established");
    // A taker goes on with the new address, and the peer may move again.
    peer.world.take_over(B);
    assert_eq!(peer.world.only(B).remote, new);
    peer.address = "192.0.2.100:4500".parse().unwrap();
    peer.request(ExchangeType::INFORMATIONAL, &update()[..1]).unwrap();
    assert_eq!(peer.world.only(B).remote, peer.address);
}

/// A peer that looks for an address which works (RFC 4555 3.10) is answered there, but stays where it was until it says that it
/// moves (3.5), behind a NAT too.
#[test]
fn a_request_from_another_address_is_answered_there_and_moves_nothing() {
    let mut peer = mobile();
    let before = peer.world.only(B).remote;
    let children = |peer: &Peer| {
        let children = peer.world.sides[B].children.values();
        children.map(|child| child.remote).collect::<Vec<_>>()
    };
    let children_before = children(&peer);
    peer.address = NEW.parse().unwrap();
    let probe = [Payload::Notify(Notify::new(NotifyType::COOKIE2, vec![9; 16]))];
    let answer = peer.request(ExchangeType::INFORMATIONAL, &probe).unwrap();
    assert_eq!(answer.notify(NotifyType::COOKIE2).unwrap().data, [9; 16]);
    assert_eq!(peer.world.only(B).remote, before);
    assert_eq!(children(&peer), children_before);
    let answer = moved(&mut peer);
    assert_eq!(answer.notify(NotifyType::COOKIE2).unwrap().data, [7; 16]);
    assert_eq!(peer.world.only(B).remote, NEW.parse().unwrap());
    let text = peer.world.event(B, EventKind::PeerMoved).to_string();
    assert!(text.contains("MOBIKE"), "{text}");
}

#[test]
fn whoever_answers_for_the_peer_without_our_cookie_ends_the_ike_sa() {
    let mut peer = mobile();
    moved(&mut peer);
    let (header, _) = peer.expect_request();
    peer.respond(
        header,
        &[Payload::Notify(Notify::new(NotifyType::COOKIE2, vec![1; 16]))],
    );
    assert_eq!(peer.world.only(B).phase, "deleting");
    let text = peer.world.event(B, EventKind::PeerMisbehaved).to_string();
    assert!(text.contains("COOKIE2"), "{text}");
}

#[test]
fn without_mobike_nobody_moves() {
    let mut peer = Peer::established();
    let before = peer.world.only(B).remote;
    peer.address = NEW.parse().unwrap();
    let answer = peer.request(ExchangeType::INFORMATIONAL, &update()).unwrap();
    assert!(answer.notify(NotifyType::COOKIE2).is_none());
    assert_eq!(peer.world.only(B).remote, before);
}
