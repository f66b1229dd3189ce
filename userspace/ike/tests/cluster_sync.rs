//! Message ID and replay counter synchronisation between two engines (RFC 6311). Side B is the cluster, A its peer.

mod world;

use ike::{ChildConfig, Command, Connection, EventKind, MidSync};
use ike_wire::Message;
use model::{EspSpi, IkeSpi, SecretBytes};
use std::collections::BTreeMap;
use std::time::Duration;
use world::*;

const MARGIN: u32 = 16;

fn world_with(seed: u64, adjust: impl Fn(usize, &mut Connection)) -> World {
    let mut world = World::with(seed, |side, connection| {
        connection.mid_sync = MidSync::OnFork;
        connection.retransmit.initial = Duration::from_millis(500);
        adjust(side, connection);
    });
    world.initiate(A);
    world.settle();
    world
}

fn established(seed: u64) -> World {
    world_with(seed, |_, _| {})
}

fn check(world: &mut World, side: usize, times: u32) {
    for _ in 0..times {
        let spi = world.only(side).spi;
        world.command(side, Command::Liveness { spi });
        world.settle();
    }
}

type Fork = BTreeMap<IkeSpi, SecretBytes>;

/// What side B knows now. [`discard_fork`] goes back to it.
fn fork(world: &World) -> Fork {
    world.sides[B].journal.clone()
}

/// The half of B that talked to A since `fork` is discarded; another member goes on with what it knows.
fn discard_fork(world: &mut World, fork: &Fork) {
    let now = world.now;
    let s = &mut world.sides[B];
    let mut engine = world::lives::engine(s.engine.config().clone());
    for (spi, record) in fork {
        engine.adopt(now, *spi, record).unwrap();
    }
    s.engine = engine;
    s.journal = fork.clone();
    s.around.epoch += 1;
    s.around.member = 3 - s.around.member;
    s.engine.resume(now, &mut s.around);
    world.drain(B, true);
}

fn sync(world: &mut World) {
    let spi = world.only(B).spi;
    world.command(B, Command::SyncMessageIds { spi, margin: MARGIN });
}

fn assert_in_step(world: &mut World) {
    world.settle();
    world.assert_up(1);
    check(world, A, 2);
    check(world, B, 2);
    world.assert_up(1);
}

#[test]
fn a_discarded_fork_is_caught_up_with() {
    for (theirs, ours) in [(0, 0), (3, 0), (0, 3), (5, 2), (1, 9)] {
        let mut world = established(1);
        let known = fork(&world);
        check(&mut world, A, theirs);
        check(&mut world, B, ours);
        let (next_a, next_b) = (world.only(A).next_send, world.only(B).next_send);
        discard_fork(&mut world, &known);
        // a <--- b  HDR(0), SK {N(MESSAGE_ID_SYNC: nonce, M1, P1)}
        sync(&mut world);
        let header = Message::parse(&world.net.front().unwrap().bytes).unwrap().header;
        assert_eq!((header.message_id, header.flags.response), (0, false));
        world.step();
        // a ---> b  HDR(0), SK {N(MESSAGE_ID_SYNC: nonce, P2, M2)}
        let header = Message::parse(&world.net.front().unwrap().bytes).unwrap().header;
        assert_eq!((header.message_id, header.flags.response), (0, true));
        world.step();
        let b = world.only(B);
        assert_eq!(b.next_receive, next_a, "P2 is one more than the peer used");
        assert!(b.next_send > next_b, "M2 is above all that was used");
        assert!(
            world.has_event(A, EventKind::MessageIdsSynched)
                && world.has_event(B, EventKind::MessageIdsSynched)
        );
        assert_in_step(&mut world);
    }
}

/// The fork replaced the Child SA, and Message IDs agree all the same: nothing tells but the word of whoever lost it.
#[test]
fn what_a_discarded_fork_touched_is_begun_anew_by_whoever_initiates() {
    for cluster_initiates in [true, false] {
        let mut world = world_with(31, |side, connection| {
            connection.start = (side == B) == cluster_initiates;
        });
        let known = fork(&world);
        let allocated = world.sides[B].around.allocated.clone();
        let (children, outbound) = (world.sides[B].children.clone(), world.sides[B].outbound.clone());
        let spi_in = world.spi_in(B);
        world.command(B, Command::RekeyChild { spi_in });
        world.settle();
        discard_fork(&mut world, &known);
        world.sides[B].around.allocated = allocated;
        (world.sides[B].children, world.sides[B].outbound) = (children, outbound);
        sync(&mut world);
        world.settle();
        check(&mut world, B, 2);
        check(&mut world, A, 2);
        let old = world.only(B).spi;
        assert_eq!(world.spi_in(B), spi_in, "it sends where nobody listens any more");
        world.command(B, Command::Reestablish { spi: old });
        world.settle();
        if !cluster_initiates {
            assert!(world.status(A).is_empty(), "the peer is told");
            world.initiate(A);
            world.settle();
        }
        world.assert_up(1);
        assert_ne!(world.only(B).spi, old);
        world.command(B, Command::Reestablish { spi: old });
        assert!(world.has_event(B, EventKind::CommandFailed), "it is gone");
    }
}

/// The winner has rekeyed the IKE SA before it hears what the other one's fork touched (simulation, seed 50009746).
#[test]
fn an_ike_sa_that_a_fork_touched_is_followed_over_its_rekeys() {
    let mut world = world_with(32, |side, connection| connection.start = side == B);
    let named = world.only(B).spi;
    for _ in 0..2 {
        let spi = world.only(B).spi;
        world.command(B, Command::RekeyIke { spi });
        world.settle();
    }
    let before = world.only(B).spi;
    assert_ne!(before, named);
    world.command(B, Command::Reestablish { spi: named });
    world.settle();
    world.assert_up(1);
    assert_ne!(world.only(B).spi, before);
}

#[test]
fn lost_and_repeated_messages_of_the_exchange_do_no_harm() {
    for lost in 0..2 {
        let mut world = established(2);
        let known = fork(&world);
        check(&mut world, A, 3);
        discard_fork(&mut world, &known);
        sync(&mut world);
        let request = world.net.front().unwrap().clone();
        for _ in 0..lost {
            world.step();
        }
        world.net.clear();
        world.pass(Duration::from_secs(5));
        let answers = world.sides[A]
            .sent
            .iter()
            .rev()
            .take(2)
            .cloned()
            .collect::<Vec<_>>();
        if lost == 1 {
            assert_eq!(answers[0], answers[1], "the same octets for the same octets");
        }
        assert_in_step(&mut world);
        // Replayed later: the last answer once more, which B drops.
        let before = (world.only(A), world.only(B));
        for _ in 0..10 {
            world.deliver(request.clone());
        }
        world.settle();
        assert_eq!((world.only(A), world.only(B)), before);
        assert_in_step(&mut world);
    }
}

#[test]
fn an_older_synchronisation_is_dropped_after_a_newer_one() {
    let mut world = established(3);
    let known = fork(&world);
    let mut requests = Vec::new();
    for _ in 0..3 {
        check(&mut world, A, 1);
        discard_fork(&mut world, &known);
        let more = MARGIN * (1 + requests.len() as u32);
        let spi = world.only(B).spi;
        world.command(B, Command::SyncMessageIds { spi, margin: more });
        requests.push(world.net.front().unwrap().clone());
        assert_in_step(&mut world);
    }
    let before = world.only(A);
    for request in &requests[..2] {
        world.deliver(request.clone());
        assert!(world.net.is_empty(), "silently");
    }
    assert_eq!(world.only(A), before);
    assert_in_step(&mut world);
}

#[test]
fn what_the_peer_was_doing_is_done_again_with_new_message_ids() {
    let commands: [fn(&World) -> Command; 4] = [
        |world| Command::RekeyChild {
            spi_in: world.spi_in(A),
        },
        |world| Command::RekeyIke {
            spi: world.only(A).spi,
        },
        |world| Command::Liveness {
            spi: world.only(A).spi,
        },
        |world| Command::DeleteChild {
            spi_in: world.spi_in(A),
        },
    ];
    for (index, command) in commands.into_iter().enumerate() {
        let mut world = established(4);
        let known = fork(&world);
        check(&mut world, A, 2);
        let command = command(&world);
        world.command(A, command);
        world.net.clear();
        discard_fork(&mut world, &known);
        sync(&mut world);
        world.pass(Duration::from_secs(10));
        world.assert_up(usize::from(index != 3));
        check(&mut world, A, 1);
        check(&mut world, B, 1);
        world.assert_up(usize::from(index != 3));
    }
}

#[test]
fn both_sides_may_have_failed_over() {
    let mut world = established(5);
    check(&mut world, A, 2);
    check(&mut world, B, 3);
    for side in [A, B] {
        let spi = world.only(side).spi;
        world.command(side, Command::SyncMessageIds { spi, margin: MARGIN });
    }
    assert_in_step(&mut world);
}

#[test]
fn it_is_off_unless_configured_and_negotiated() {
    for case in 0..3 {
        let mut world = world_with(6, |side, connection| match case {
            0 => connection.mid_sync = MidSync::Never,
            1 => connection.cluster_sync = side == A,
            _ => connection.cluster_sync = side == B,
        });
        sync(&mut world);
        assert!(world.net.is_empty(), "{case}");
        assert!(world.has_event(B, EventKind::CommandFailed));
    }
    assert_eq!(connection(A).mid_sync, MidSync::Never, "the default");
}

#[test]
fn a_peer_that_did_not_agree_ignores_synchronisation() {
    let mut world = established(7);
    check(&mut world, B, 2);
    let sa = world.only(A);
    // A takes over from a record without extensions: nothing was agreed.
    let record = world.sides[A].journal[&sa.spi].expose().to_vec();
    assert_eq!(record[0], 3);
    sync(&mut world);
    let request = world.net.pop_front().unwrap();
    let mut first = record.clone();
    first[0] = 1;
    let now = world.now;
    let s = &mut world.sides[A];
    s.engine.adopt(now, sa.spi, &SecretBytes::new(first)).unwrap();
    let before = s.engine.message_ids(sa.spi);
    world.deliver(request);
    assert!(world.net.is_empty());
    assert_eq!(world.sides[A].engine.message_ids(sa.spi), before);
}

#[test]
fn a_takeover_in_the_middle_of_a_synchronisation_changes_nothing() {
    for taken in [A, B] {
        for at in 0..3 {
            let mut world = established(8);
            let known = fork(&world);
            check(&mut world, A, 3);
            discard_fork(&mut world, &known);
            sync(&mut world);
            for _ in 0..at {
                world.step();
            }
            world.take_over(taken);
            world.pass(Duration::from_secs(10));
            assert_in_step(&mut world);
        }
    }
}

#[test]
fn no_damaged_synchronisation_is_believed() {
    let mut world = established(9);
    let known = fork(&world);
    check(&mut world, A, 3);
    discard_fork(&mut world, &known);
    sync(&mut world);
    for round in 0..2 {
        let packet = world.net.front().unwrap().clone();
        let before: Vec<_> = [A, B].map(|side| world.only(side)).into();
        for bit in 0..packet.bytes.len() * 8 {
            let mut bytes = packet.bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            world.deliver(Packet {
                bytes,
                ..packet.clone()
            });
            while world.net.len() > 1 {
                world.net.pop_back();
            }
        }
        for len in 0..packet.bytes.len() {
            let bytes = packet.bytes[..len].to_vec();
            world.deliver(Packet {
                bytes,
                ..packet.clone()
            });
        }
        let ids = |sas: &[ike::IkeSaStatus]| {
            sas.iter()
                .map(|sa| (sa.next_send, sa.next_receive))
                .collect::<Vec<_>>()
        };
        let after: Vec<_> = [A, B].map(|side| world.only(side)).into();
        assert_eq!(ids(&before), ids(&after), "round {round}");
        assert_eq!(world.net.front().unwrap().bytes, packet.bytes);
        world.net.truncate(1);
        world.step();
    }
    assert_in_step(&mut world);
}

fn children(world: &World, side: usize) -> Vec<EspSpi> {
    let mut spis: Vec<_> = world
        .only(side)
        .children
        .iter()
        .map(|child| child.spi_in)
        .collect();
    spis.sort_unstable();
    spis
}

/// Two Child SAs, `esp` for the first and `esp_d` for the second.
fn two_children(seed: u64, esp_c: &str, esp_d: &str) -> World {
    world_with(seed, |side, connection| {
        let nets = [net([10, 1, 9]), net([10, 2, 9])];
        let mut child = ChildConfig::new("d", vec![nets[side].clone()], vec![nets[1 - side].clone()]);
        child.esp_proposals = esp(esp_d);
        connection.children[0].esp_proposals = esp(esp_c);
        connection.children.push(child);
    })
}

#[test]
fn after_a_takeover_the_peer_raises_the_numbers_of_all_child_sas_at_once() {
    for esn in [false, true] {
        let suite = if esn {
            "aes128gcm16-esn"
        } else {
            "aes128gcm16-noesn"
        };
        let mut world = two_children(10, suite, suite);
        world.assert_up(2);
        world.sides[A].around.advanced = Some(Vec::new());
        world.take_over(B);
        let before = (children(&world, A), children(&world, B));
        let spi_in = before.1[0];
        let messages = world.sides[B].sent.len();
        world.command(B, Command::RepairInbound { spi_in, delta: 5000 });
        world.settle();
        let mut advanced = world.sides[A].around.advanced.clone().unwrap();
        advanced.sort_unstable();
        let all: Vec<_> = before.0.iter().map(|spi| (*spi, 5000)).collect();
        assert_eq!(advanced, all);
        assert_eq!(world.sides[B].sent.len(), messages + 1, "one exchange, no rekey");
        assert_eq!((children(&world, A), children(&world, B)), before);
        // Not twice for one failover: what is still below is rekeyed.
        world.command(B, Command::RepairInbound { spi_in, delta: 5000 });
        world.settle();
        assert_eq!(world.sides[A].around.advanced.as_ref().unwrap().len(), 2);
        assert!(!children(&world, B).contains(&spi_in), "rekeyed");
        world.assert_up(2);
        // In the next epoch it may be asked again.
        world.take_over(B);
        let spi_in = children(&world, B)[0];
        world.command(B, Command::RepairInbound { spi_in, delta: 77 });
        world.settle();
        assert_eq!(world.sides[A].around.advanced.as_ref().unwrap().len(), 4);
    }
}

#[test]
fn where_the_peer_cannot_raise_them_child_sas_are_rekeyed() {
    // The peer's data plane cannot.
    let mut world = two_children(11, "aes128gcm16", "aes128gcm16");
    let before = children(&world, B);
    world.command(
        B,
        Command::RepairInbound {
            spi_in: before[0],
            delta: 5000,
        },
    );
    world.pass(Duration::from_secs(5));
    world.assert_up(2);
    assert!(
        children(&world, B).iter().all(|spi| !before.contains(spi)),
        "both, by the peer"
    );
    // The peer has not agreed; the Child SAs differ; the jump is too large; there is none.
    let rows: [(&str, bool, u64); 4] = [
        ("aes128gcm16", false, 5000),
        ("aes128gcm16-esn", true, 5000),
        ("aes128gcm16", true, 1 << 40),
        ("aes128gcm16", true, 0),
    ];
    for (second, agreed, delta) in rows {
        let mut world = two_children(12, "aes128gcm16", second);
        if !agreed {
            world = world_with(12, |side, connection| connection.cluster_sync = side == B);
        }
        world.sides[A].around.advanced = Some(Vec::new());
        let before = children(&world, B);
        world.command(
            B,
            Command::RepairInbound {
                spi_in: before[0],
                delta,
            },
        );
        world.settle();
        assert_eq!(
            world.sides[A].around.advanced,
            Some(vec![]),
            "{second} {agreed} {delta}"
        );
        let after = children(&world, B);
        assert!(!after.contains(&before[0]) && after.len() == before.len());
    }
}

#[test]
fn a_repair_of_a_child_sa_that_is_gone_says_so() {
    let mut world = established(13);
    world.command(
        B,
        Command::RepairInbound {
            spi_in: EspSpi(0x999),
            delta: 1,
        },
    );
    assert!(world.has_event(B, EventKind::CommandFailed));
}
