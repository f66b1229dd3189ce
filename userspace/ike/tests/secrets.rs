//! The secrets of cookies, tokens and tickets are replaced while IKE SAs are up: what peers were given before is honoured.

mod world;

use ike::{Command, EndpointConfig, EventKind, OtherSecrets};
use ike_wire::ExchangeType;
use ike_wire::Message;
use model::SecretBytes;
use world::*;

const NOW: u64 = 1_800_000_000;

fn secret(octet: u8) -> SecretBytes {
    SecretBytes::new(vec![octet; 32])
}

/// Makes everything with the first secret, and honours the others.
fn endpoint(secrets: &[u8]) -> EndpointConfig {
    let mut endpoint = EndpointConfig::new(secret(secrets[0]));
    endpoint.qcd_secret = Some(secret(secrets[0]));
    endpoint.ticket_secret = Some(secret(secrets[0]));
    let others = secrets[1..].iter().map(|octet| OtherSecrets {
        cookie: secret(*octet),
        qcd: secret(*octet),
        ticket: secret(*octet),
    });
    endpoint.also_honoured = others.collect();
    endpoint
}

/// Side B is the gateway whose secret changes from 1 to 2; A initiates whenever it is down.
fn established() -> World {
    let mut world = World::with_config(1, |side| {
        let mut connection = connection(side);
        connection.start = side == A;
        let mut config = config(vec![connection]);
        config.endpoint = endpoint(&[1]);
        config
    });
    for side in &mut world.sides {
        side.around.unix_time = Some(NOW);
    }
    world.initiate(A);
    world.settle();
    world.assert_up(1);
    world
}

/// B loses all, and A looks after it. Gives the exchange that A comes back by, if it learns of the loss.
fn crash(world: &mut World) -> Option<ExchangeType> {
    let old = world.only(A);
    world.lose_everything(B);
    world.command(A, Command::Liveness { spi: old.spi });
    world.step();
    world.step();
    world.has_event(A, EventKind::PeerCrashed).then(|| {
        let first = world.net.front().expect("A begins again");
        Message::parse(&first.bytes).unwrap().header.exchange
    })
}

#[test]
fn a_token_and_a_ticket_of_the_secret_before_are_honoured_and_the_next_ones_are_of_the_new() {
    let mut world = established();
    // First it is known, then used, then the old one is forgotten.
    for secrets in [&[1, 2][..], &[2, 1]] {
        world.sides[B].engine.set_secrets(endpoint(secrets));
    }
    let before = world.only(A).spi;
    world.settle();
    assert_eq!(world.only(A).spi, before, "nobody notices");
    assert_eq!(crash(&mut world), Some(ExchangeType::IKE_SESSION_RESUME));
    world.settle();
    world.assert_up(1);
    assert!(world.has_event(B, EventKind::Resumed), "{}", world.story());

    // What A has now is of the new secret alone.
    world.sides[B].engine.set_secrets(endpoint(&[2]));
    assert_eq!(crash(&mut world), Some(ExchangeType::IKE_SESSION_RESUME));
    world.settle();
    world.assert_up(1);
}

#[test]
fn a_member_that_is_still_to_use_the_new_secret_honours_what_others_have_made_with_it() {
    let mut world = established();
    world.sides[B].engine.set_secrets(endpoint(&[2, 1]));
    assert_eq!(crash(&mut world), Some(ExchangeType::IKE_SESSION_RESUME));
    world.settle();
    world.assert_up(1);
    // Another member takes over, which has not followed yet.
    world.sides[B].engine.set_secrets(endpoint(&[1, 2]));
    assert_eq!(crash(&mut world), Some(ExchangeType::IKE_SESSION_RESUME));
    world.settle();
    world.assert_up(1);
}

#[test]
fn a_secret_that_is_forgotten_too_early_costs_the_token_and_no_false_one_is_believed() {
    let mut world = established();
    world.sides[B].engine.set_secrets(endpoint(&[2]));
    let before = world.only(A).spi;
    assert_eq!(crash(&mut world), None);
    assert_eq!(world.only(A).spi, before, "only its own patience ends it");
    assert!(world.has_event(A, EventKind::TokenRefused));
}
