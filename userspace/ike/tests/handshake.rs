//! IKE_SA_INIT and IKE_AUTH between two engines.

mod world;

use ike::{Command, ConnectionPhase, EventKind};
use std::time::Duration;
use world::*;

#[test]
fn psk_handshake_brings_up_ike_and_child_sa() {
    let mut world = World::new(1);
    world.initiate(A);
    // a ---> b  HDR, SAi1, KEi, Ni, N(NAT_DETECTION_*)
    // a <--- b  HDR, SAr1, KEr, Nr, N(NAT_DETECTION_*), N(CHILDLESS)
    // a ---> b  HDR, SK {IDi, N(INITIAL_CONTACT), IDr, AUTH, SAi2, TSi, TSr}
    // a <--- b  HDR, SK {IDr, AUTH, SAr2, TSi, TSr}
    for _ in 0..4 {
        assert!(world.step());
    }
    assert!(world.net.is_empty());
    world.assert_up(1);
    assert_eq!(world.only(A).remote.port(), 500, "no NAT, no change of ports");
    assert!(!world.sides[A].children.values().next().unwrap().udp_encap);
    assert_eq!(world.sides[A].engine.connection_phase("t"), ConnectionPhase::Up);
    assert!(world.has_event(A, EventKind::Established) && world.has_event(B, EventKind::ChildUp));
    let text = world.event(A, EventKind::Established).to_string();
    assert!(text.starts_with("t (198.51.100.1:500): ") && text.contains("b.example"), "{text}");
}

#[test]
fn every_suite_works() {
    let ciphers = ["aes128gcm16", "aes256gcm16", "chacha20poly1305", "aes128-sha256", "aes256-sha512"];
    let prfs = ["prfsha256", "prfsha384", "prfsha512"];
    let groups = ["x25519", "ecp256"];
    let esps = ["aes128gcm16", "aes256gcm16-esn", "chacha20poly1305-noesn-esn"];
    for (index, cipher) in ciphers.iter().enumerate() {
        for (prf, group) in prfs.iter().flat_map(|prf| groups.iter().map(move |group| (prf, group))) {
            let text = format!("{cipher}-{prf}-{group}");
            let mut world = World::with(2, |_, connection| {
                connection.ike_proposals = ike(&text);
                connection.children[0].esp_proposals = esp(esps[index % 3]);
            });
            world.initiate(A);
            world.settle();
            world.assert_up(1);
            assert_eq!(world.sides[B].children.values().next().unwrap().esn, index % 3 == 1);
        }
    }
}
