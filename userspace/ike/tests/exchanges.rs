//! What happens on an established IKE SA: new children, rekeys, deletions, liveness.

mod world;

use ike::{ChildConfig, Command, EventKind};
use std::time::Duration;
use world::*;

fn up(seed: u64) -> World {
    up_with(seed, |_, _| {})
}

fn up_with(seed: u64, adjust: impl Fn(usize, &mut ike::Connection)) -> World {
    let mut world = World::with(seed, adjust);
    world.initiate(A);
    world.settle();
    world.assert_up(1);
    for side in &mut world.sides {
        side.changes.clear();
        side.sent.clear();
    }
    world
}

#[test]
fn child_rekey_switches_without_a_gap() {
    for side in [A, B] {
        let mut world = up(1);
        let (old, old_peer) = (world.spi_in(side), world.spi_in(1 - side));
        // side --->       SK {N(REKEY_SA), SA, Ni, TSi, TSr}
        // side <---       SK {SA, Nr, TSi, TSr}
        // side --->       SK {D}
        // side <---       SK {D}
        world.command(side, Command::RekeyChild { spi_in: old });
        world.settle();
        world.assert_up(1);
        let (new, new_peer) = (world.spi_in(side), world.spi_in(1 - side));
        assert_ne!(old, new);
        assert_eq!(
            world.sides[side].changes,
            [format!("install {new} Now"), format!("remove {old}")],
            "initiator: new SA for both directions, then the old one goes"
        );
        assert_eq!(
            world.sides[1 - side].changes,
            [
                format!("install {new_peer} Later"),
                format!("use {new_peer}"),
                format!("remove {old_peer}")
            ],
            "responder: outbound changes with the Delete"
        );
        assert!(
            world.has_event(side, EventKind::ChildRekeyed) && !world.has_event(side, EventKind::ChildDown)
        );
        assert!(!world.has_event(1 - side, EventKind::ChildDown));
    }
}

#[test]
fn child_rekey_with_perfect_forward_secrecy_finds_the_group() {
    let mut world = up_with(2, |side, connection| {
        connection.children[0].esp_proposals = esp(["aes256gcm16-x25519-ecp256", "aes256gcm16-ecp256"][side]);
    });
    let spi_in = world.spi_in(A);
    // a ---> b  SK {N(REKEY_SA), SA, Ni, KEi(31), ..}
    // a <--- b  SK {N(INVALID_KE_PAYLOAD)}
    // a ---> b  SK {N(REKEY_SA), SA, Ni, KEi(19), ..}
    world.command(A, Command::RekeyChild { spi_in });
    world.settle();
    world.assert_up(1);
    assert_eq!(world.only(B).children[0].suite, "aes256gcm16-ecp256");
    assert_ne!(world.spi_in(A), spi_in);
    assert_eq!(world.sides[A].sent.len(), 3);
}

#[test]
fn simultaneous_child_rekeys_leave_one_sa() {
    // (nonces of a's exchange, nonces of b's exchange): the SA of the lowest nonce is redundant.
    for (seed, a_is_lower) in [(3, true), (4, false)] {
        let mut world = up(seed);
        let old = [world.spi_in(A), world.spi_in(B)];
        world.sides[A].around.nonce_bias = Some(if a_is_lower { 0 } else { 9 });
        world.sides[B].around.nonce_bias = Some(if a_is_lower { 9 } else { 0 });
        world.command(A, Command::RekeyChild { spi_in: old[A] });
        world.command(B, Command::RekeyChild { spi_in: old[B] });
        // Responses draw their nonces too: far above either.
        for side in &mut world.sides {
            side.around.nonce_bias = Some(200);
        }
        world.settle();
        world.assert_up(1);
        let winner = if a_is_lower { B } else { A };
        let kept = world.spi_in(winner);
        assert_eq!(
            world.sides[winner].changes[0],
            format!("install {} Later", first_installed(&world, winner, 0))
        );
        assert!(
            world.sides[winner]
                .changes
                .contains(&format!("install {kept} Now")),
            "{}",
            world.story()
        );
        for side in [A, B] {
            assert!(!world.has_event(side, EventKind::ChildDown), "{}", world.story());
            assert!(!world.sides[side].children.contains_key(&old[side]));
        }
    }
}

fn first_installed(world: &World, side: usize, index: usize) -> String {
    let installs: Vec<_> = world.sides[side]
        .changes
        .iter()
        .filter(|c| c.starts_with("install"))
        .collect();
    installs[index].split(' ').nth(1).unwrap().to_owned()
}

#[test]
fn simultaneous_rekeys_of_anything_end_well_for_any_order_and_nonces() {
    for seed in 0..200 {
        let mut rng = Rng(seed);
        let mut world = up(seed);
        let spis = [world.spi_in(A), world.spi_in(B)];
        let ike = [world.only(A).spi, world.only(B).spi];
        for side in [A, B] {
            let command = match rng.below(3) {
                0 => Command::RekeyChild { spi_in: spis[side] },
                1 => Command::RekeyIke { spi: ike[side] },
                _ => Command::Liveness { spi: ike[side] },
            };
            world.command(side, command);
        }
        while !world.net.is_empty() {
            let index = rng.below(world.net.len() as u64) as usize;
            let packet = world.net.remove(index).unwrap();
            world.deliver(packet);
        }
        world.pass(Duration::from_secs(200));
        let count = world.status(A).len();
        assert_eq!(count, 1, "seed {seed}\n{}", world.story());
        world.assert_up(1);
    }
}

#[test]
fn a_rekey_of_a_child_that_is_being_deleted_has_to_wait() {
    let mut world = up(5);
    let (a, b) = (world.spi_in(A), world.spi_in(B));
    world.command(B, Command::DeleteChild { spi_in: b });
    world.command(A, Command::RekeyChild { spi_in: a });
    // a <--- b  SK {D}                  (crosses)
    // a ---> b  SK {N(REKEY_SA), ..}
    // a <--- b  SK {N(TEMPORARY_FAILURE)} and a's answer to the Delete
    world.settle();
    world.pass(Duration::from_secs(30));
    world.assert_up(0);
}

#[test]
fn an_sa_that_the_peer_replaced_and_we_delete_leaves_traffic_on_its_successor() {
    let mut world = up(3);
    let (a, b) = (world.spi_in(A), world.spi_in(B));
    // a --->  SK {N(REKEY_SA), SA, Ni, TSi, TSr}   b answers and waits for the Delete of the old SA
    world.command(A, Command::RekeyChild { spi_in: a });
    world.step();
    // b --->  SK {D}, before a has seen the answer: a's own Delete has nothing left to delete
    world.command(B, Command::DeleteChild { spi_in: b });
    world.settle();
    world.assert_up(1);
    for side in [A, B] {
        let only = world.spi_in(side);
        assert_eq!(
            world.sides[side].outbound.get("c"),
            Some(&only),
            "side {side} sends on the new SA\n{}",
            world.story()
        );
    }
}

#[test]
fn children_are_deleted_by_either_side_and_by_both_at_once() {
    for who in [vec![A], vec![B], vec![A, B]] {
        let mut world = up(7);
        for side in &who {
            let spi_in = world.spi_in(*side);
            world.command(*side, Command::DeleteChild { spi_in });
        }
        world.settle();
        world.assert_up(0);
        assert!(world.has_event(A, EventKind::ChildDown) && world.has_event(B, EventKind::ChildDown));
    }
}

#[test]
fn ike_sas_are_deleted_by_either_side_and_by_both_at_once() {
    for who in [vec![A], vec![B], vec![A, B]] {
        let mut world = up(8);
        for side in &who {
            world.command(
                *side,
                Command::Terminate {
                    connection: "t".into(),
                },
            );
        }
        world.settle();
        world.assert_all_gone();
        for side in [A, B] {
            assert_eq!(
                world.sides[side]
                    .events
                    .iter()
                    .filter(|e| e.kind == EventKind::IkeSaDown)
                    .count(),
                1
            );
        }
        world.pass(Duration::from_secs(61));
        assert!(world.sides.iter().all(|side| side.journal.is_empty()));
    }
}

#[test]
fn a_lost_answer_to_the_deletion_of_an_ike_sa_is_repeated() {
    let mut world = up(9);
    world.command(
        A,
        Command::Terminate {
            connection: "t".into(),
        },
    );
    world.step();
    world.net.clear();
    world.pass(Duration::from_secs(3));
    world.assert_all_gone();
    assert!(world.sides[B].sent.len() == 2 && world.sides[B].sent[0] == world.sides[B].sent[1]);
    assert!(!world.has_event(A, EventKind::PeerSilent));
}

#[test]
fn ike_rekey_keeps_the_children() {
    for side in [A, B] {
        let mut world = up(10);
        let (old, child) = (world.only(side).spi, world.spi_in(side));
        // side --->  SK {SA, Ni, KEi}
        // side <---  SK {SA, Nr, KEr}
        // side --->  SK {D}          (old IKE SA)
        // side <---  SK {}
        world.command(side, Command::RekeyIke { spi: old });
        world.settle();
        world.assert_up(1);
        let new = world.only(side);
        assert_ne!(new.spi, old);
        assert_eq!(
            new.spi.segment(),
            old.segment(),
            "the successor stays in its segment"
        );
        assert!(
            new.initiator,
            "who rekeys is the original initiator of the new IKE SA"
        );
        assert_eq!(new.next_send, 0);
        assert_eq!(world.spi_in(side), child, "children stay");
        assert_eq!(world.sides[side].children[&child].ike_spi, new.spi);
        assert!(
            world.sides.iter().all(|side| side.changes.is_empty()),
            "no traffic SA is touched"
        );
        assert!(!world.has_event(A, EventKind::IkeSaDown) && !world.has_event(B, EventKind::IkeSaDown));
        // And the new one works.
        let spi_in = world.spi_in(side);
        world.command(side, Command::RekeyChild { spi_in });
        world.settle();
        world.assert_up(1);
        world.pass(Duration::from_secs(61));
        assert!(world.sides.iter().all(|side| side.journal.len() == 1));
    }
}

#[test]
fn simultaneous_ike_rekeys_leave_one_ike_sa() {
    for (seed, a_is_lower) in [(11, true), (12, false)] {
        let mut world = up(seed);
        let ike = [world.only(A).spi, world.only(B).spi];
        world.sides[A].around.nonce_bias = Some(if a_is_lower { 0 } else { 9 });
        world.sides[B].around.nonce_bias = Some(if a_is_lower { 9 } else { 0 });
        world.command(A, Command::RekeyIke { spi: ike[A] });
        world.command(B, Command::RekeyIke { spi: ike[B] });
        // Responses draw their nonces too: far above either.
        for side in &mut world.sides {
            side.around.nonce_bias = Some(200);
        }
        world.settle();
        world.pass(Duration::from_secs(30));
        world.assert_up(1);
        assert_eq!(
            world.only(A).initiator,
            !a_is_lower,
            "the one with the lowest nonce is redundant\n{}",
            world.story()
        );
    }
}

#[test]
fn rekey_timers_keep_everything_young() {
    let mut world = up_with(13, |_, connection| {
        connection.child_rekey_time = Some(Duration::from_secs(60));
        connection.ike_rekey_time = Some(Duration::from_secs(250));
        connection.rekey_jitter = Duration::from_secs(20);
        connection.dpd_delay = Some(Duration::from_secs(30));
    });
    world.pass(Duration::from_secs(3600));
    world.assert_up(1);
    let rekeys = |kind| {
        world.sides[A]
            .events
            .iter()
            .filter(|event| event.kind == kind)
            .count()
    };
    assert!(
        rekeys(EventKind::ChildRekeyed) >= 60,
        "{}",
        rekeys(EventKind::ChildRekeyed)
    );
    assert!(
        rekeys(EventKind::IkeSaRekeyed) >= 14,
        "{}",
        rekeys(EventKind::IkeSaRekeyed)
    );
    assert!(
        !world.has_event(A, EventKind::ChildDown) && !world.has_event(A, EventKind::IkeSaDown),
        "{}",
        world.story()
    );
}

#[test]
fn a_silent_peer_is_noticed_and_everything_cleared() {
    let mut world = up_with(14, |side, connection| {
        if side == A {
            connection.dpd_delay = Some(Duration::from_secs(10));
        }
    });
    world.pass(Duration::from_secs(35));
    assert_eq!(world.sides[A].sent.len(), 3, "one check each 10 s");
    world.assert_up(1);
    // The peer's machine burns down.
    while let Some(next) = world.sides[A].engine.next_timeout() {
        world.net.clear();
        world.now = next;
        world.timeout();
    }
    assert!(world.has_event(A, EventKind::PeerSilent) && world.sides[A].children.is_empty());
    assert!(world.sides[A].journal.is_empty());
}

#[test]
fn traffic_on_the_ike_sa_puts_liveness_checks_off() {
    let mut world = up_with(15, |side, connection| {
        connection.dpd_delay = (side == A).then_some(Duration::from_secs(10));
    });
    for _ in 0..5 {
        world.pass(Duration::from_secs(6));
        let spi = world.only(B).spi;
        world.command(B, Command::Liveness { spi });
        world.settle();
    }
    let requests = world.sides[A]
        .sent
        .iter()
        .filter(|bytes| bytes[19] & 0x20 == 0)
        .count();
    assert_eq!(requests, 0, "{}", world.story());
}

#[test]
fn a_second_child_is_created_by_the_responder_too() {
    let mut world = up_with(16, |side, connection| {
        let nets = [net([10, 1, 9]), net([10, 2, 9])];
        let mut child = ChildConfig::new("d", vec![nets[side].clone()], vec![nets[1 - side].clone()]);
        child.start = false;
        child.esp_proposals = esp("chacha20poly1305-x25519");
        connection.children.push(child);
    });
    world.command(
        B,
        Command::CreateChild {
            connection: "t".into(),
            child: "d".into(),
        },
    );
    world.settle();
    world.assert_up(2);
    let terminate = world
        .only(B)
        .children
        .iter()
        .find(|child| child.child == "d")
        .unwrap()
        .spi_in;
    world.command(B, Command::DeleteChild { spi_in: terminate });
    world.settle();
    world.assert_up(1);
}

#[test]
fn commands_that_cannot_be_carried_out_say_why() {
    let mut world = up(17);
    world.command(
        A,
        Command::Initiate {
            connection: "nobody".into(),
        },
    );
    world.command(
        A,
        Command::RekeyChild {
            spi_in: model::EspSpi(77),
        },
    );
    world.command(
        A,
        Command::RekeyIke {
            spi: model::IkeSpi(77),
        },
    );
    world.command(
        A,
        Command::CreateChild {
            connection: "t".into(),
            child: "x".into(),
        },
    );
    let failed = world.sides[A]
        .events
        .iter()
        .filter(|event| event.kind == EventKind::CommandFailed)
        .count();
    assert_eq!(failed, 4, "{}", world.story());
    assert!(world.net.is_empty());
}

#[test]
fn message_ids_count_up_by_one_in_each_direction() {
    let mut world = up(18);
    let spi = [world.only(A).spi, world.only(B).spi];
    let before = [A, B].map(|side| world.sides[side].engine.message_ids(spi[side]).unwrap());
    for (side, times) in [(A, 3), (B, 2)] {
        for _ in 0..times {
            world.command(side, Command::Liveness { spi: spi[side] });
            world.settle();
        }
    }
    let after = [A, B].map(|side| world.sides[side].engine.message_ids(spi[side]).unwrap());
    assert_eq!(after[A].next_send, before[A].next_send + 3);
    assert_eq!(after[B].next_receive, before[B].next_receive + 3);
    assert_eq!(after[B].next_send, before[B].next_send + 2);
    assert!(!after[A].outstanding && !after[B].outstanding);
}
