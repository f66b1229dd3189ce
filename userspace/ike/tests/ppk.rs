//! Post-quantum pre-shared keys (RFC 8784).

mod world;

use ike::{Connection, EventKind, Ppk};
use model::SecretBytes;
use std::time::Duration;
use world::*;

fn ppk(id: &str, secret: &[u8], required: bool) -> Option<Ppk> {
    Some(Ppk {
        id: id.to_owned(),
        secret: SecretBytes::new(secret.to_vec()),
        required,
    })
}

const KEY: &[u8] = b"thirty-two octets of real entropy";

fn meet(seed: u64, adjust: impl Fn(usize, &mut Connection)) -> World {
    let mut world = World::with(seed, adjust);
    world.initiate(A);
    world.settle();
    world
}

/// (A's key, B's key): ids, keys, required; whether they meet.
#[test]
fn both_sides_mix_the_key_in_and_do_without_it_only_where_both_may() {
    let rows = [
        (ppk("k", KEY, true), ppk("k", KEY, true), true),
        (ppk("k", KEY, false), ppk("k", KEY, true), true),
        (ppk("k", KEY, true), ppk("k", KEY, false), true),
        (ppk("k", KEY, false), None, true),
        (None, ppk("k", KEY, false), true),
        (None, None, true),
        // The responder does not know the name: NO_PPK_AUTH helps where the initiator sent it.
        (ppk("k", KEY, false), ppk("other", KEY, false), true),
        (ppk("k", KEY, true), ppk("other", KEY, false), false),
        (ppk("k", KEY, false), ppk("other", KEY, true), false),
        (ppk("k", KEY, true), None, false),
        (None, ppk("k", KEY, true), false),
        // The same name for different keys: a mistake that is never passed over.
        (ppk("k", KEY, false), ppk("k", b"another", false), false),
    ];
    for (number, (a, b, expected)) in rows.into_iter().enumerate() {
        let world = meet(number as u64, |side, connection| {
            connection.ppk = if side == A { a.clone() } else { b.clone() };
        });
        if expected {
            world.assert_up(1);
        } else {
            assert!(
                world.sides.iter().all(|side| side.children.is_empty()),
                "{number}\n{}",
                world.story()
            );
            let failed =
                world.has_event(A, EventKind::AuthFailed) || world.has_event(B, EventKind::AuthFailed);
            assert!(failed, "{number}\n{}", world.story());
        }
    }
}

/// With the same randomness on both sides, everything but the key is the same.
#[test]
fn keys_of_child_sas_depend_on_it() {
    let keys = |secret: Option<&[u8]>| {
        let world = meet(42, |_, connection| {
            connection.ppk = secret.and_then(|secret| ppk("k", secret, true));
        });
        world.assert_up(1);
        let child = world.sides[A].children.values().next().unwrap();
        child.key_in.expose().to_vec()
    };
    let (one, same, other) = (keys(Some(KEY)), keys(Some(KEY)), keys(Some(b"other")));
    assert!(one == same);
    assert!(one != other && one != keys(None));
}

#[test]
fn takeover_at_any_point_and_additional_key_exchanges_go_with_it() {
    for at in 0..8 {
        for taken in [A, B] {
            let mut world = World::with(5, |_, connection| {
                connection.ppk = ppk("k", KEY, true);
                connection.ike_proposals = ike("aes256gcm16-prfsha384-x25519-ke1_mlkem768");
                connection.retransmit.initial = Duration::from_millis(500);
            });
            world.initiate(A);
            for _ in 0..at {
                world.step();
            }
            world.take_over(taken);
            world.pass(Duration::from_secs(60));
            world.assert_up(1);
            let spi = world.only(A).spi;
            world.command(A, ike::Command::RekeyIke { spi });
            world.pass(Duration::from_secs(10));
            world.assert_up(1);
        }
    }
}
