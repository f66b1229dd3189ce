//! IKE SAs that are set up without a Child SA (RFC 6023): every setting on either side.

mod world;

use ike::{Childless, Command, Connection, EventKind};
use ike_wire::{ExchangeType, Message, Payload};
use std::time::Duration;
use world::scripted::Peer;
use world::*;

const ALL: [Childless; 3] = [Childless::Allow, Childless::Force, Childless::Never];

fn world(seed: u64, settings: [Childless; 2], start: bool) -> World {
    let mut world = World::with(seed, |side, connection: &mut Connection| {
        connection.childless = settings[side];
        connection.children[0].esp_proposals = esp("aes128gcm16-x25519");
        connection.children[0].start = start;
        connection.retransmit.initial = Duration::from_millis(500);
    });
    world.initiate(A);
    world.settle();
    world
}

fn requests(world: &World, side: usize) -> Vec<ExchangeType> {
    let headers = world.sides[side]
        .sent
        .iter()
        .map(|bytes| Message::parse(bytes).unwrap().header);
    let requests = headers.filter(|header| !header.flags.response);
    let mut all: Vec<_> = requests
        .map(|header| (header.message_id, header.exchange))
        .collect();
    all.dedup();
    all.into_iter().map(|(_, exchange)| exchange).collect()
}

#[test]
fn the_settings_of_both_sides_decide_where_the_first_child_comes_from() {
    use ExchangeType as E;
    for ours in ALL {
        for theirs in ALL {
            let world = world(1, [ours, theirs], true);
            let said = |side: usize, kind| world.has_event(side, kind);
            match (ours, theirs) {
                // a ---> IKE_SA_INIT, IKE_AUTH without SA, CREATE_CHILD_SA with a key exchange of its own
                (Childless::Force, Childless::Allow | Childless::Force) => {
                    world.assert_up(1);
                    assert_eq!(
                        requests(&world, A),
                        [E::IKE_SA_INIT, E::IKE_AUTH, E::CREATE_CHILD_SA]
                    );
                }
                // The notification is not there, so the initiator gives up by name.
                (Childless::Force, Childless::Never) => {
                    assert!(world.status(A).is_empty() && said(A, EventKind::AuthFailed));
                    assert!(world.story().contains("set childless"), "{}", world.story());
                }
                // The IKE SA stands, and the child is refused in IKE_AUTH.
                (_, Childless::Force) => {
                    world.assert_up(0);
                    assert!(said(A, EventKind::ChildFailed) && said(B, EventKind::ChildFailed));
                }
                _ => {
                    world.assert_up(1);
                    assert_eq!(requests(&world, A), [E::IKE_SA_INIT, E::IKE_AUTH]);
                }
            }
        }
    }
}

#[test]
fn a_child_that_was_refused_in_ike_auth_comes_up_in_its_own_exchange() {
    let mut world = world(2, [Childless::Allow, Childless::Force], true);
    world.assert_up(0);
    let (connection, child) = ("t".to_owned(), "c".to_owned());
    world.command(A, Command::CreateChild { connection, child });
    world.settle();
    world.assert_up(1);
}

#[test]
fn without_a_child_to_bring_up_an_initiator_does_without_where_both_allow_it() {
    for (ours, children) in [
        (Childless::Allow, 0),
        (Childless::Force, 0),
        (Childless::Never, 1),
    ] {
        world(3, [ours, Childless::Allow], false).assert_up(children);
    }
    // The responder says nothing of RFC 6023: the first child comes along.
    world(4, [Childless::Allow, Childless::Never], false).assert_up(1);
}

#[test]
fn a_peer_that_asks_for_no_child_is_refused_where_that_is_not_allowed() {
    let mut ours = connection(B);
    ours.childless = Childless::Never;
    let mut peer = Peer::with(config(vec![ours]), vec![]);
    let payloads: Vec<Payload> = peer.auth(b"a secret that both know");
    let answer = peer.request(ExchangeType::IKE_AUTH, &payloads).unwrap();
    let error = answer.error().expect("a refusal");
    assert_eq!(error.kind, ike_wire::NotifyType::INVALID_SYNTAX);
    assert!(answer.auth().is_none());
    assert!(peer.world.story().contains("childless"), "{}", peer.world.story());
}

#[test]
fn takeovers_at_every_message_bring_up_the_same() {
    for dying in [A, B] {
        for after in 0..6 {
            let mut world = World::with(10 + after, |_, connection: &mut Connection| {
                connection.childless = Childless::Force;
                connection.children[0].esp_proposals = esp("aes128gcm16-x25519");
                connection.retransmit.initial = Duration::from_millis(500);
            });
            world.initiate(A);
            for _ in 0..after {
                world.step();
            }
            world.take_over(dying);
            world.pass(Duration::from_secs(20));
            world.assert_up(1);
        }
    }
}
