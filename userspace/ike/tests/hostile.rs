//! Bad networks and bad peers: nothing panics, nothing is believed, nothing is amplified.

mod world;

use ike::{ChildConfig, Command, EventKind, Input, Output, Surroundings};
use proptest::prelude::*;
use std::time::Duration;
use world::Rng;
use world::*;

/// All extensions are on, so that the weather meets their exchanges too.
fn world_of_two_children(seed: u64) -> World {
    let mut world = World::with_config(seed, |side| {
        let mut connection = connection(side);
        two_children(side, &mut connection);
        let mut config = config(vec![connection]);
        config.endpoint.qcd_secret = Some(model::SecretBytes::new(vec![side as u8; 32]));
        config.endpoint.ticket_secret = config.endpoint.qcd_secret.clone();
        config
    });
    for side in &mut world.sides {
        side.around.unix_time = Some(1_800_000_000);
    }
    world
}

fn two_children(side: usize, connection: &mut ike::Connection) {
    let nets = [net([10, 1, 9]), net([10, 2, 9])];
    let mut child = ChildConfig::new("d", vec![nets[side].clone()], vec![nets[1 - side].clone()]);
    child.esp_proposals = esp("chacha20poly1305-x25519");
    connection.children.push(child);
    connection.mid_sync = ike::MidSync::OnFork;
    connection.retransmit.initial = Duration::from_millis(300);
    connection.retransmit.tries = 12;
}

/// Delivers what is in flight with loss, duplication and reordering, and lets timers fire in between.
fn rough_weather(world: &mut World, rng: &mut Rng, steps: u32) {
    for _ in 0..steps {
        if world.net.is_empty() {
            let Some(at) = world
                .sides
                .iter()
                .filter_map(|side| side.engine.next_timeout())
                .min()
            else {
                return;
            };
            // Far timers (forgetting, rekeying) do not belong to the weather.
            if at.since(world.now) > Duration::from_secs(15) {
                return;
            }
            world.now = world.now.max(at);
            world.timeout();
            continue;
        }
        let index = rng.below(world.net.len() as u64) as usize;
        match rng.below(10) {
            0 | 1 => drop(world.net.remove(index)),
            2 => {
                let packet = world.net[index].clone();
                world.deliver(packet);
            }
            _ => {
                let packet = world.net.remove(index).expect("in range");
                world.deliver(packet);
            }
        }
    }
}

#[test]
fn loss_duplication_reordering_and_takeovers_break_nothing() {
    let seeds = std::env::var("SEEDS")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(300);
    for seed in 0..seeds {
        let mut rng = Rng(seed);
        let mut world = world_of_two_children(seed);
        world.initiate(A);
        rough_weather(&mut world, &mut rng, 60);
        for _ in 0..6 {
            let side = rng.below(2) as usize;
            let mine = world.status(side);
            if let Some(sa) = mine.get(rng.below(mine.len().max(1) as u64) as usize) {
                let child = sa.children.first().map(|child| child.spi_in);
                let command = match (rng.below(8), child) {
                    (0 | 1, Some(spi_in)) => Command::RekeyChild { spi_in },
                    (2, Some(spi_in)) => Command::DeleteChild { spi_in },
                    (3, _) => Command::RekeyIke { spi: sa.spi },
                    (6, Some(spi_in)) => Command::RepairInbound { spi_in, delta: 100 },
                    (7, _) => Command::SyncMessageIds {
                        spi: sa.spi,
                        margin: 5,
                    },
                    (4, _) => Command::Initiate {
                        connection: "t".into(),
                    },
                    _ => Command::Liveness { spi: sa.spi },
                };
                world.command(side, command);
            }
            if rng.below(3) == 0 {
                world.take_over(rng.below(2) as usize);
            }
            rough_weather(&mut world, &mut rng, 40);
        }
        // The weather clears.
        world.pass(Duration::from_secs(400));
        let silent = world.has_event(A, EventKind::PeerSilent) || world.has_event(B, EventKind::PeerSilent);
        assert!(
            !silent,
            "seed {seed}: given up although messages arrived\n{}",
            world.story()
        );
        world.trace.push(format!("(seed {seed})"));
        let children = world.only(A).children.len();
        world.assert_up(children);
        world.initiate(A);
        world.pass(Duration::from_secs(20));
        world.assert_up(2);
    }
}

/// A world stopped after `at` messages of a handshake and a rekey.
fn stopped_at(at: usize) -> World {
    let mut world = World::new(77);
    world.initiate(A);
    for _ in 0..at {
        if world.net.is_empty() {
            let spi_in = world.spi_in(A);
            world.command(A, Command::RekeyChild { spi_in });
        }
        world.step();
    }
    world
}

const STOPS: usize = 8;

/// Gives an engine octets from a stranger's hand; checks that nothing changes and nothing grows.
fn offer_octets(world: &mut World, side: usize, packet: &Packet, bytes: &[u8], may_begin: bool) {
    let before: Vec<_> = records(world, side);
    let s = &mut world.sides[side];
    let input = Input::Datagram {
        now: world.now,
        local: packet.local,
        remote: packet.remote,
        bytes,
    };
    s.engine.handle(input, &mut s.around);
    let mut answered = 0;
    let mut commits = 0;
    while let Some(output) = s.engine.poll() {
        match output {
            Output::Commit(_) => commits += 1,
            Output::Transmit(transmit) => answered += transmit.bytes.len(),
            Output::Sign(_) | Output::Tls(_) => panic!("pre-shared keys only"),
            Output::Compute(request) => {
                let computed = request.run(&mut |out| s.around.random(out));
                let now = world.now;
                s.engine.handle(Input::Computed { now, computed }, &mut s.around);
            }
            Output::Event(_) => {}
        }
    }
    if may_begin {
        return;
    }
    assert_eq!(commits, 0, "committed something for {bytes:02x?}");
    assert!(
        records(world, side) == before,
        "changed something for {bytes:02x?}"
    );
    assert!(
        answered <= bytes.len(),
        "answered {answered} octets to {}",
        bytes.len()
    );
}

fn records(world: &World, side: usize) -> Vec<(model::IkeSpi, Vec<u8>)> {
    world.sides[side]
        .engine
        .export()
        .into_iter()
        .map(|(spi, record)| (spi, record.expose().to_vec()))
        .collect()
}

fn in_flight(world: &World) -> Packet {
    world.net.front().cloned().unwrap_or(Packet {
        to: B,
        local: "198.51.100.1:500".parse().unwrap(),
        remote: "192.0.2.1:500".parse().unwrap(),
        bytes: world.sides[A].sent[0].clone(),
    })
}

#[test]
fn every_truncation_of_every_message_is_ignored() {
    for at in 0..STOPS {
        let mut world = stopped_at(at);
        let packet = in_flight(&world);
        for cut in 0..packet.bytes.len() {
            let bytes = packet.bytes[..cut].to_vec();
            offer_octets(&mut world, packet.to, &packet, &bytes, false);
        }
        world.settle();
        world.assert_up(1);
    }
}

#[test]
fn every_flipped_bit_of_a_protected_message_is_ignored() {
    for at in 2..STOPS {
        let mut world = stopped_at(at);
        let packet = in_flight(&world);
        if packet.bytes[18] == 34 {
            continue;
        }
        for bit in 0..packet.bytes.len() * 8 {
            let mut bytes = packet.bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            // Bits of the header can make a first message or one of another IKE SA of it; never a valid one.
            offer_octets(&mut world, packet.to, &packet, &bytes, false);
        }
        world.settle();
        world.assert_up(1);
    }
}

#[test]
fn a_repeated_request_gets_the_same_octets_and_an_old_one_nothing() {
    let mut world = World::new(5);
    world.initiate(A);
    world.settle();
    let spi = world.only(A).spi;
    let mut requests = Vec::new();
    let mut responses = Vec::new();
    for _ in 0..3 {
        world.command(A, Command::Liveness { spi });
        requests.push(world.net.front().unwrap().clone());
        world.step();
        responses.push(world.net.front().unwrap().bytes.clone());
        world.step();
    }
    world.deliver(requests[2].clone());
    assert_eq!(world.net.pop_front().unwrap().bytes, responses[2]);
    world.deliver(requests[1].clone());
    world.deliver(requests[0].clone());
    assert!(world.net.is_empty(), "an old request is not worth an answer");
    // A repeated response is ignored.
    let before = world.sides[A].engine.message_ids(spi);
    let packet = Packet {
        to: A,
        local: requests[0].remote,
        remote: requests[0].local,
        bytes: responses[2].clone(),
    };
    world.deliver(packet);
    assert_eq!(world.sides[A].engine.message_ids(spi), before);
    world.assert_up(1);
}

/// RFC 7296 2.1: a repeated IKE_SA_INIT request of an IKE SA whose IKE_AUTH request is here is ignored.
#[test]
fn a_first_message_that_comes_after_ike_auth_begins_nothing() {
    for taken_over in [false, true] {
        let mut world = World::new(7);
        world.initiate(A);
        let first = world.net.front().unwrap().clone();
        world.settle();
        if taken_over {
            world.take_over(B);
            world.settle();
        }
        world.deliver(first.clone());
        assert!(world.net.is_empty(), "{}", world.story());
        world.assert_up(1);
        // Neither does one from another port: that of the peer's NAT may have changed since.
        let mut moved = first.clone();
        moved.remote.set_port(4711);
        world.deliver(moved);
        assert!(world.net.is_empty(), "{}", world.story());
        // From another address it is another peer's: it is answered, here with a refusal.
        let mut other = first;
        other.remote.set_ip([192, 0, 2, 77].into());
        world.deliver(other);
        assert_eq!(world.net.len(), 1, "{}", world.story());
    }
}

#[test]
fn unprotected_errors_end_nothing_but_make_us_ask() {
    let mut world = World::new(6);
    world.initiate(A);
    world.settle();
    let sa = world.only(A);
    let header = ike_wire::Header {
        spi_i: sa.spi,
        spi_r: sa.peer_spi,
        exchange: ike_wire::ExchangeType::INFORMATIONAL,
        flags: ike_wire::Flags {
            initiator: false,
            version: false,
            response: true,
        },
        message_id: 2,
    };
    let notify = ike_wire::Notify::status(ike_wire::NotifyType::INVALID_IKE_SPI);
    let bytes = ike_wire::encode_message(&header, &[ike_wire::Payload::Notify(notify)]).unwrap();
    let packet = Packet {
        to: A,
        local: sa.local,
        remote: sa.remote,
        bytes,
    };
    for _ in 0..50 {
        world.deliver(packet.clone());
        world.settle();
    }
    let requests = world.sides[A].sent.len();
    assert_eq!(
        requests, 3,
        "IKE_SA_INIT, IKE_AUTH and one liveness check, not fifty"
    );
    world.assert_up(1);
}

#[test]
fn a_request_for_an_unknown_ike_sa_gets_a_short_answer_at_a_limited_rate() {
    let mut world = World::new(7);
    world.initiate(A);
    world.settle();
    let spi = world.only(A).spi;
    world.sides[B].engine.clear();
    world.command(A, Command::Liveness { spi });
    let request = world.net.pop_front().unwrap();
    for _ in 0..1000 {
        world.deliver(request.clone());
    }
    assert_eq!(world.net.len(), 100);
    assert!(
        world
            .net
            .iter()
            .all(|packet| packet.bytes.len() <= request.bytes.len())
    );
}

#[test]
fn a_flood_of_first_messages_is_bounded() {
    let mut world = World::with_config(8, |side| {
        let mut connection = connection(side);
        connection.remotes = if side == B { vec![] } else { vec![address(B)] };
        let mut config = config(vec![connection]);
        config.endpoint.cookie_threshold = 10;
        config.endpoint.half_open_max = 20;
        config
    });
    world.initiate(A);
    let packet = world.net.pop_front().unwrap();
    for index in 0..1000u64 {
        let mut bytes = packet.bytes.clone();
        bytes[..8].copy_from_slice(&(index + 1).to_be_bytes());
        world.deliver(Packet {
            bytes,
            ..packet.clone()
        });
    }
    assert_eq!(
        world.sides[B].engine.ike_sa_count(),
        10,
        "from then on a cookie is needed"
    );
    assert!(
        world.sides[B]
            .sent
            .iter()
            .skip(10)
            .all(|bytes| bytes.len() <= packet.bytes.len())
    );
    // Honest peers get through by the cookie.
    world.net.clear();
    world.pass(Duration::from_secs(20));
    assert!(
        world.status(A).iter().any(|sa| sa.phase == "established"),
        "{}",
        world.story()
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

    #[test]
    fn arbitrary_octets_are_ignored(at in 0..STOPS, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut world = stopped_at(at);
        let packet = in_flight(&world);
        for side in [A, B] {
            offer_octets(&mut world, side, &packet, &bytes, false);
        }
    }

    #[test]
    fn damaged_messages_never_panic_and_never_change_an_established_sa(
        at in 0..STOPS,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        header in proptest::option::of((0usize..28, any::<u8>())),
    ) {
        let mut world = stopped_at(at);
        let packet = in_flight(&world);
        let mut bytes = packet.bytes.clone();
        for (index, value) in damage {
            let index = index.index(bytes.len());
            bytes[index] ^= value;
        }
        if let Some((index, value)) = header {
            bytes[index] = value;
        }
        let first = bytes[18] == 34;
        if bytes != packet.bytes {
            offer_octets(&mut world, packet.to, &packet, &bytes, first);
        }
    }
}
