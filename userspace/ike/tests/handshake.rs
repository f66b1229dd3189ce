//! IKE_SA_INIT and IKE_AUTH between two engines.

mod world;

use ike::{ChildConfig, Command, ConnectionPhase, EventKind, Identity};
use model::{EspSuite, SecretBytes};
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
    assert!(
        text.starts_with("t (198.51.100.1:500): ") && text.contains("b.example"),
        "{text}"
    );
}

#[test]
fn every_suite_works() {
    let ciphers = [
        "aes128gcm16",
        "aes256gcm16",
        "chacha20poly1305",
        "aes128-sha256",
        "aes256-sha512",
    ];
    let prfs = ["prfsha256", "prfsha384", "prfsha512"];
    let groups = ["x25519", "ecp256"];
    let esps = [
        "aes128gcm16",
        "aes256gcm16-esn",
        "chacha20poly1305-noesn-esn",
        "aes128-sha256",
        "aes256-sha256-esn",
    ];
    for (index, cipher) in ciphers.iter().enumerate() {
        for (prf, group) in prfs
            .iter()
            .flat_map(|prf| groups.iter().map(move |group| (prf, group)))
        {
            let text = format!("{cipher}-{prf}-{group}");
            let mut world = World::with(2, |_, connection| {
                connection.ike_proposals = ike(&text);
                connection.children[0].esp_proposals = esp(esps[index]);
            });
            world.initiate(A);
            world.settle();
            world.assert_up(1);
            assert_eq!(
                world.sides[B].children.values().next().unwrap().form.esn,
                esps[index].ends_with("-esn") && !esps[index].contains("noesn")
            );
        }
    }
}

#[test]
fn under_load_a_cookie_is_asked_for_first() {
    let mut world = World::with_config(3, |side| {
        let mut config = config(vec![connection(side)]);
        config.endpoint.cookie_threshold = 0;
        config
    });
    world.initiate(A);
    // a ---> b  HDR, SAi1, KEi, Ni
    world.step();
    assert!(
        world.sides[B].journal.is_empty() && world.sides[B].engine.ike_sa_count() == 0,
        "a cookie needs no state"
    );
    // a <--- b  HDR, N(COOKIE)
    // a ---> b  HDR, N(COOKIE), SAi1, KEi, Ni
    let asked = world.sides[B].sent[0].len();
    assert!(asked <= world.sides[A].sent[0].len());
    world.settle();
    world.assert_up(1);
    assert_eq!(world.sides[A].sent.len(), 3);
    assert!(world.has_event(B, EventKind::CookieMode));
}

#[test]
fn first_messages_are_dropped_when_too_many_are_half_open() {
    let mut world = World::with_config(4, |side| {
        let mut config = config(vec![connection(side)]);
        config.endpoint.half_open_max = 0;
        config
    });
    world.initiate(A);
    world.settle();
    assert!(world.sides[B].sent.is_empty() && world.has_event(B, EventKind::Flooded));
}

#[test]
fn the_initiator_tries_the_group_that_the_responder_wants() {
    let mut world = World::with(5, |side, connection| {
        connection.ike_proposals = ike([
            "aes128gcm16-prfsha256-x25519-ecp256",
            "aes128gcm16-prfsha256-ecp256-x25519",
        ][side]);
    });
    world.initiate(A);
    // a ---> b  HDR, SAi1, KEi(31), Ni
    // a <--- b  HDR, N(INVALID_KE_PAYLOAD)
    // a ---> b  HDR, SAi1, KEi(19), Ni
    world.settle();
    world.assert_up(1);
    assert_eq!(world.only(A).suite, "aes128gcm16-prfsha256-ecp256");
    assert_eq!(world.sides[A].sent.len(), 3);
}

#[test]
fn a_group_that_was_not_offered_ends_the_attempt() {
    let mut world = World::with(6, |side, connection| {
        connection.ike_proposals =
            ike(["aes128gcm16-prfsha256-x25519", "aes128gcm16-prfsha256-ecp256"][side]);
    });
    world.initiate(A);
    world.settle();
    world.assert_all_gone();
    let text = world.event(B, EventKind::NoProposal).to_string();
    assert!(
        text.contains("aes128gcm16-prfsha256-x25519") && text.contains("aes128gcm16-prfsha256-ecp256"),
        "{text}"
    );
    assert!(world.has_event(A, EventKind::NoProposal) && world.has_event(A, EventKind::IkeSaDown));
    assert_eq!(world.sides[A].engine.connection_phase("t"), ConnectionPhase::Down);
}

#[test]
fn behind_a_nat_both_change_to_port_4500_and_udp_encapsulation() {
    let mut world = World::new(7);
    for (inside, outside) in [
        ("192.0.2.1:500", "203.0.113.9:1111"),
        ("192.0.2.1:4500", "203.0.113.9:2222"),
    ] {
        world
            .nat
            .insert(inside.parse().unwrap(), outside.parse().unwrap());
    }
    for side in &mut world.sides {
        let mut config = side.engine.config().clone();
        config.connections[0].remotes = if side.name == "b" {
            vec![]
        } else {
            config.connections[0].remotes.clone()
        };
        side.engine.set_config(config);
    }
    world.initiate(A);
    world.settle();
    world.assert_up(1);
    let (a, b) = (world.only(A), world.only(B));
    assert!(a.nat_local && !a.nat_remote && b.nat_remote && !b.nat_local);
    assert_eq!(
        (a.local.port(), a.remote.port(), b.local.port()),
        (4500, 4500, 4500)
    );
    assert_eq!(b.remote, "203.0.113.9:2222".parse().unwrap());
    let child = world.sides[B].children.values().next().unwrap();
    assert!(child.udp_encap && child.remote == b.remote && child.local.port() == 4500);
    // The one behind the NAT keeps the mapping alive.
    world.pass(Duration::from_secs(50));
    let keepalives = world.sides[A]
        .events
        .iter()
        .filter(|event| event.kind == EventKind::NatKeepalive)
        .count();
    assert_eq!(keepalives, 2);
    assert!(!world.has_event(B, EventKind::NatKeepalive));

    // The NAT forgets the mapping and makes a new one: the next authentic message moves the peer.
    world.nat.insert(
        "192.0.2.1:4500".parse().unwrap(),
        "203.0.113.9:3333".parse().unwrap(),
    );
    let spi = world.only(A).spi;
    world.command(A, Command::Liveness { spi });
    world.settle();
    let moved = "203.0.113.9:3333".parse().unwrap();
    assert_eq!(world.only(B).remote, moved);
    assert_eq!(world.sides[B].children.values().next().unwrap().remote, moved);
    assert!(world.has_event(B, EventKind::PeerMoved));
    world.assert_up(1);
}

#[test]
fn forced_encapsulation_works_from_either_side() {
    for forcing in [A, B] {
        let mut world = World::with(8, |side, connection| connection.force_encap = side == forcing);
        world.initiate(A);
        world.settle();
        world.assert_up(1);
        assert_eq!(world.only(A).remote.port(), 4500);
        assert!(
            world
                .sides
                .iter()
                .all(|side| side.children.values().all(|child| child.udp_encap))
        );
        assert!(!world.only(forcing).nat_local);
    }
}

#[test]
fn a_wrong_key_is_refused_and_both_sides_say_what_to_compare() {
    let mut world = World::with(9, |side, connection| {
        if side == B {
            connection.psk = SecretBytes::new(b"another".to_vec());
        }
    });
    world.initiate(A);
    world.settle();
    assert!(
        world
            .event(A, EventKind::AuthFailed)
            .text
            .contains("pre-shared key")
    );
    assert!(
        world
            .event(B, EventKind::AuthFailed)
            .text
            .contains("pre-shared key")
    );
    world.assert_all_gone();
    // The responder repeats its refusal for a while, then forgets all.
    world.pass(Duration::from_secs(61));
    assert!(
        world
            .sides
            .iter()
            .all(|side| side.journal.is_empty() && side.engine.ike_sa_count() == 0)
    );
}

#[test]
fn a_responder_that_lies_about_its_identity_is_told_to_go() {
    let mut world = World::with(10, |side, connection| {
        if side == A {
            connection.remote_id = None;
        } else {
            connection.local_id = Identity::parse("mallory.example");
        }
    });
    world.initiate(A);
    world.settle();
    world.assert_up(1);

    let mut world = World::with(10, |side, connection| {
        if side == B {
            connection.psk = connection.psk.clone();
            connection.local_id = Identity::parse("mallory.example");
        }
    });
    world.initiate(A);
    world.settle();
    assert!(
        world.event(B, EventKind::AuthFailed).text.contains("identities"),
        "{}",
        world.story()
    );
    world.assert_all_gone();
}

#[test]
fn the_connection_is_chosen_by_identity() {
    let mut world = World::with_config(11, |side| {
        let mut right = connection(side);
        if side == A {
            return config(vec![right]);
        }
        let mut anyone = connection(side);
        anyone.name = "anyone".into();
        anyone.remote_id = None;
        anyone.psk = SecretBytes::new(b"x".to_vec());
        let mut other = connection(side);
        other.name = "other".into();
        other.remote_id = Some(Identity::parse("other.example"));
        right.name = "right".into();
        config(vec![anyone, other, right])
    });
    world.initiate(A);
    world.settle();
    world.assert_up(1);
    assert_eq!(world.only(B).connection.as_deref(), Some("right"));
}

#[test]
fn unknown_addresses_are_told_apart_from_unknown_proposals() {
    let mut world = World::with(12, |side, connection| {
        if side == B {
            connection.remotes = vec!["203.0.113.77".parse().unwrap()];
        }
    });
    world.initiate(A);
    world.settle();
    assert!(world.has_event(B, EventKind::NoConnection) && !world.has_event(B, EventKind::NoProposal));
    assert!(world.has_event(A, EventKind::NoProposal));
    world.assert_all_gone();
}

#[test]
fn selectors_are_narrowed_to_what_both_have() {
    let mut world = World::with(13, |side, connection| {
        let wide = model::TrafficSelector {
            last: [10, 2, 255, 255].into(),
            ..net([10, 2, 0])
        };
        let narrow = net([10, 2, 7]);
        let child = &mut connection.children[0];
        if side == A {
            child.remote_ts = vec![wide];
        } else {
            child.local_ts = vec![narrow];
        }
    });
    world.initiate(A);
    world.settle();
    world.assert_up(1);
    assert_eq!(
        world.sides[A].children.values().next().unwrap().ts_remote,
        vec![net([10, 2, 7])]
    );
}

#[test]
fn without_common_selectors_the_ike_sa_stays_up_without_child() {
    let mut world = World::with(14, |side, connection| {
        if side == B {
            connection.children[0].local_ts = vec![net([10, 99, 0])];
        }
    });
    world.initiate(A);
    world.settle();
    world.assert_up(0);
    assert!(
        world
            .event(A, EventKind::ChildFailed)
            .text
            .contains("TS_UNACCEPTABLE")
    );
    let text = &world.event(B, EventKind::ChildFailed).text;
    assert!(
        text.contains("10.2.0.0/24") && text.contains("10.99.0.0/24"),
        "{text}"
    );
    assert_eq!(
        world.sides[A].engine.connection_phase("t"),
        ConnectionPhase::Partial
    );
}

#[test]
fn without_common_esp_proposal_both_are_shown() {
    let mut world = World::with(15, |side, connection| {
        connection.children[0].esp_proposals = esp(["aes128gcm16", "chacha20poly1305"][side]);
    });
    world.initiate(A);
    world.settle();
    world.assert_up(0);
    let text = &world.event(B, EventKind::NoProposal).text;
    assert!(
        text.contains("aes128gcm16") && text.contains("chacha20poly1305"),
        "{text}"
    );
}

/// A member that could not read the record of the Child SA keeps its suite out of the negotiation, whoever begins.
#[test]
fn a_suite_that_a_member_does_not_know_is_neither_offered_nor_accepted() {
    for (older, esps, up) in [
        (A, "aes256-sha256", false),
        (B, "aes256-sha256", false),
        (A, "aes256gcm16", true),
    ] {
        let mut world = World::with(19, |_, connection| {
            connection.children[0].esp_proposals = esp(esps);
        });
        world.sides[older].around.older_member = true;
        world.initiate(A);
        world.settle();
        assert_eq!(world.sides[B].children.len(), usize::from(up), "{esps}");
        if !up {
            let kind = if older == A {
                EventKind::ChildFailed
            } else {
                EventKind::NoProposal
            };
            let text = &world.event(older, kind).text;
            assert!(text.contains("upgrade all members"), "{text}");
        }
    }
    // Where there is something else, that is used.
    for older in [A, B] {
        let mut world = World::with(20, |_, connection| {
            connection.children[0].esp_proposals = [esp("aes128-sha256"), esp("aes128gcm16")].concat();
        });
        world.sides[older].around.older_member = true;
        world.initiate(A);
        world.settle();
        let suites: Vec<_> = world.sides[B]
            .children
            .values()
            .map(|child| child.suite)
            .collect();
        assert_eq!(suites, [EspSuite::Aes128Gcm16]);
    }
}

#[test]
fn without_children_the_ike_sa_alone_comes_up() {
    let mut world = World::with(16, |side, connection| {
        if side == A {
            connection.children[0].start = false;
        }
    });
    world.initiate(A);
    world.settle();
    world.assert_up(0);
    world.command(
        A,
        Command::CreateChild {
            connection: "t".into(),
            child: "c".into(),
        },
    );
    world.settle();
    world.assert_up(1);
}

#[test]
fn several_children_come_up_one_after_the_other() {
    let mut world = World::with(17, |side, connection| {
        for index in 1..5u8 {
            let nets = [net([10, 1, index]), net([10, 2, index])];
            let (local, remote) = (nets[side].clone(), nets[1 - side].clone());
            connection
                .children
                .push(ChildConfig::new(&format!("c{index}"), vec![local], vec![remote]));
        }
    });
    world.initiate(A);
    world.initiate(A);
    world.settle();
    world.assert_up(5);
    // Asking again changes nothing.
    let sent = world.sides[A].sent.len();
    world.initiate(A);
    world.settle();
    assert_eq!(world.sides[A].sent.len(), sent);
    assert_eq!(world.sides[A].engine.connection_phase("t"), ConnectionPhase::Up);
}

#[test]
fn a_peer_that_begins_anew_replaces_its_old_ike_sa() {
    let mut world = World::new(18);
    world.initiate(A);
    world.settle();
    world.sides[A].engine.clear();
    world.sides[A].journal.clear();
    world.sides[A].children.clear();
    world.sides[A].outbound.clear();
    world.sides[A].around.allocated.clear();
    world.initiate(A);
    world.settle();
    world.assert_up(1);
    assert!(world.has_event(B, EventKind::InitialContact) && world.has_event(B, EventKind::IkeSaDown));
}

#[test]
fn a_half_open_ike_sa_is_forgotten() {
    let mut world = World::new(19);
    world.initiate(A);
    world.step();
    assert_eq!((world.sides[B].journal.len(), world.status(B).len()), (1, 1));
    world.net.clear();
    world.now = world.now + Duration::from_secs(31);
    world.timeout();
    assert_eq!((world.sides[B].journal.len(), world.status(B).len()), (0, 0));
}

#[test]
fn without_an_answer_the_initiator_backs_off_and_gives_up() {
    let mut world = World::new(20);
    world.initiate(A);
    let start = world.now;
    let mut at = Vec::new();
    while let Some(next) = world.sides[A].engine.next_timeout() {
        world.net.clear();
        world.now = next;
        world.timeout();
        at.push(next.since(start).as_millis());
    }
    assert_eq!(at, [1000, 2800, 6040, 11872, 22369, 41265]);
    let sent = &world.sides[A].sent;
    assert!(
        sent.len() == 6 && sent.iter().all(|bytes| *bytes == sent[0]),
        "the same octets each time"
    );
    assert!(world.has_event(A, EventKind::PeerSilent) && world.has_event(A, EventKind::IkeSaDown));
    world.assert_all_gone();
}

#[test]
fn out_of_spis_is_reported_and_the_ike_sa_stays() {
    for side in [A, B] {
        let mut world = World::new(21);
        world.sides[side].around.out_of_spis = true;
        world.initiate(A);
        world.settle();
        world.assert_up(0);
        assert!(world.has_event(side, EventKind::Trouble));
    }
}

#[test]
fn both_sides_may_initiate_at_once() {
    for seed in 0..100 {
        let mut rng = Rng(seed);
        let mut world = World::with(seed, |_, connection| {
            connection.dpd_delay = Some(Duration::from_secs(30))
        });
        for side in [A, B] {
            world.initiate(side);
        }
        while !world.net.is_empty() {
            let index = rng.below(world.net.len() as u64) as usize;
            let packet = world.net.remove(index).expect("in range");
            world.deliver(packet);
        }
        world.pass(Duration::from_secs(200));
        // One IKE SA or two in parallel, but never one that only one side knows.
        let pairs = |side: usize| {
            let mut spis: Vec<_> = world
                .status(side)
                .iter()
                .map(|sa| (sa.spi, sa.peer_spi))
                .collect();
            spis.sort_unstable_by_key(|(ours, theirs)| {
                if side == A {
                    (*ours, *theirs)
                } else {
                    (*theirs, *ours)
                }
            });
            spis
        };
        let mirrored: Vec<_> = pairs(B)
            .into_iter()
            .map(|(ours, theirs)| (theirs, ours))
            .collect();
        assert_eq!(pairs(A), mirrored, "seed {seed}\n{}", world.story());
        assert!(!mirrored.is_empty());
        world.assert_children_match();
    }
}
