//! A standby with the journal goes on at every point of every exchange.

mod world;

use ike::{ChildConfig, Command};
use std::time::Duration;
use world::*;

#[derive(Clone, Copy, Debug)]
enum Story {
    Handshake,
    HandshakeWithCookieAndGroup,
    CreateChild,
    RekeyChild,
    RekeyIke,
    DeleteChild,
    DeleteIke,
    Liveness,
    CrossingChildRekeys,
    CrossingIkeRekeys,
}

const STORIES: [Story; 10] = [
    Story::Handshake,
    Story::HandshakeWithCookieAndGroup,
    Story::CreateChild,
    Story::RekeyChild,
    Story::RekeyIke,
    Story::DeleteChild,
    Story::DeleteIke,
    Story::Liveness,
    Story::CrossingChildRekeys,
    Story::CrossingIkeRekeys,
];

/// Begins a story; `who` acts. Gives the number of children that it ends with, `None` for no IKE SA.
fn begin(story: Story, who: usize, seed: u64) -> (World, Option<usize>) {
    let with_cookie = matches!(story, Story::HandshakeWithCookieAndGroup);
    let mut world = World::with_config(seed, |side| {
        let mut connection = connection(side);
        connection.retransmit.initial = Duration::from_millis(500);
        let nets = [net([10, 1, 9]), net([10, 2, 9])];
        let mut child = ChildConfig::new("d", vec![nets[side].clone()], vec![nets[1 - side].clone()]);
        child.start = false;
        child.esp_proposals = esp("chacha20poly1305-x25519");
        connection.children.push(child);
        if with_cookie {
            let texts = [
                "aes128gcm16-prfsha256-x25519-ecp256",
                "aes128gcm16-prfsha256-ecp256-x25519",
            ];
            connection.ike_proposals = ike(texts[side]);
        }
        let mut config = config(vec![connection]);
        config.endpoint.qcd_secret = Some(model::SecretBytes::new(vec![side as u8; 32]));
        config.endpoint.ticket_secret = config.endpoint.qcd_secret.clone();
        if with_cookie {
            config.endpoint.cookie_threshold = 0;
        }
        config
    });
    for side in &mut world.sides {
        side.around.unix_time = Some(1_800_000_000);
    }
    if !matches!(story, Story::Handshake | Story::HandshakeWithCookieAndGroup) {
        world.initiate(A);
        world.settle();
        world.assert_up(1);
    }
    let (ike, child) = match story {
        Story::Handshake | Story::HandshakeWithCookieAndGroup => {
            world.initiate(who);
            return (world, Some(1));
        }
        _ => (
            [world.only(A).spi, world.only(B).spi],
            [world.spi_in(A), world.spi_in(B)],
        ),
    };
    let end = match story {
        Story::CreateChild => {
            world.command(
                who,
                Command::CreateChild {
                    connection: "t".into(),
                    child: "d".into(),
                },
            );
            Some(2)
        }
        Story::RekeyChild => {
            world.command(who, Command::RekeyChild { spi_in: child[who] });
            Some(1)
        }
        Story::RekeyIke => {
            world.command(who, Command::RekeyIke { spi: ike[who] });
            Some(1)
        }
        Story::DeleteChild => {
            world.command(who, Command::DeleteChild { spi_in: child[who] });
            Some(0)
        }
        Story::DeleteIke => {
            world.command(who, Command::DeleteIke { spi: ike[who] });
            None
        }
        Story::Liveness => {
            world.command(who, Command::Liveness { spi: ike[who] });
            Some(1)
        }
        Story::CrossingChildRekeys => {
            world.command(A, Command::RekeyChild { spi_in: child[A] });
            world.command(B, Command::RekeyChild { spi_in: child[B] });
            Some(1)
        }
        Story::CrossingIkeRekeys => {
            world.command(A, Command::RekeyIke { spi: ike[A] });
            world.command(B, Command::RekeyIke { spi: ike[B] });
            Some(1)
        }
        Story::Handshake | Story::HandshakeWithCookieAndGroup => unreachable!("returned above"),
    };
    (world, end)
}

fn finish(mut world: World, end: Option<usize>, what: &str) {
    // Long enough for retransmissions and for forgetting what is over.
    world.pass(Duration::from_secs(300));
    world.trace.push(format!("(this was {what})"));
    match end {
        Some(children) => world.assert_up(children),
        None => world.assert_all_gone(),
    }
    for side in &world.sides {
        let expected = usize::from(end.is_some());
        assert_eq!(
            side.journal.len(),
            expected,
            "{what}: {} keeps leftovers\n{}",
            side.name,
            world.story()
        );
        let trouble = side.events.iter().find(|event| {
            matches!(
                event.kind,
                ike::EventKind::PeerSilent | ike::EventKind::PeerMisbehaved | ike::EventKind::Trouble
            )
        });
        assert!(trouble.is_none(), "{what}: {trouble:?}\n{}", world.story());
    }
}

/// How many messages a story has when nothing goes wrong.
fn length(story: Story, who: usize, seed: u64) -> usize {
    let (mut world, _) = begin(story, who, seed);
    let mut steps = 0;
    while world.step() {
        steps += 1;
    }
    steps
}

#[test]
fn takeover_between_any_two_messages_changes_nothing() {
    for story in STORIES {
        for who in [A, B] {
            for taken in [A, B] {
                for at in 0..=length(story, who, 1) {
                    let (mut world, end) = begin(story, who, 1);
                    for _ in 0..at {
                        world.step();
                    }
                    world.take_over(taken);
                    let what = format!("{story:?} by {who}, {taken} taken over after {at} messages");
                    finish(world, end, &what);
                }
            }
        }
    }
}

#[test]
fn takeover_after_the_commit_and_before_the_send_changes_nothing() {
    for story in STORIES {
        for who in [A, B] {
            for at in 0..length(story, who, 2) {
                let (mut world, end) = begin(story, who, 2);
                for _ in 0..at {
                    world.step();
                }
                let Some(packet) = world.net.pop_front() else {
                    continue;
                };
                let taken = packet.to;
                // Handled and committed, but the answer dies with the member.
                world.deliver_then(packet, false);
                world.take_over(taken);
                finish(
                    world,
                    end,
                    &format!("{story:?} by {who}, {taken} dies with message {at}"),
                );
            }
        }
    }
}

#[test]
fn takeover_with_everything_in_flight_lost_changes_nothing() {
    for story in STORIES {
        for who in [A, B] {
            for taken in [A, B] {
                for at in 0..=length(story, who, 3) {
                    let (mut world, end) = begin(story, who, 3);
                    for _ in 0..at {
                        world.step();
                    }
                    world.net.clear();
                    world.take_over(taken);
                    let what =
                        format!("{story:?} by {who}, all lost and {taken} taken over after {at} messages");
                    finish(world, end, &what);
                }
            }
        }
    }
}

#[test]
fn after_takeover_the_outstanding_request_is_the_same_octets() {
    let (mut world, _) = begin(Story::RekeyChild, A, 4);
    let request = world.net.front().unwrap().bytes.clone();
    world.take_over(A);
    let promised = world.sides[A].engine.pending_esp_spis();
    assert!(promised.len() == 1 && world.sides[A].around.allocated.contains(&promised[0]));
    assert_eq!(world.net.len(), 2);
    assert_eq!(world.net.back().unwrap().bytes, request);
    let ids = world.sides[A].engine.message_ids(world.only(A).spi).unwrap();
    world.settle();
    // The Delete of the old Child SA follows: exactly one number further.
    let after = world.sides[A].engine.message_ids(world.only(A).spi).unwrap();
    assert_eq!(after.next_send, ids.next_send + 1);
    world.assert_up(1);
}

#[test]
fn the_same_request_to_old_and_new_owner_gives_the_same_octets() {
    let (mut world, _) = begin(Story::RekeyChild, A, 5);
    let request = world.net.front().unwrap().clone();
    world.step();
    let first = world.net.pop_front().unwrap().bytes;
    world.take_over(B);
    world.deliver(request);
    assert_eq!(world.net.pop_front().unwrap().bytes, first);
}

#[test]
fn repeated_takeovers_do_no_harm() {
    let (mut world, end) = begin(Story::RekeyIke, A, 6);
    for side in [A, B, A, A, B] {
        world.take_over(side);
        world.step();
        world.take_over(1 - side);
    }
    finish(world, end, "a takeover at each message");
}

#[test]
fn records_that_do_not_fit_are_refused_with_a_reason() {
    use ike::AdoptError;
    use model::{IkeSpi, Instant, SecretBytes};
    let (mut world, _) = begin(Story::Liveness, A, 7);
    world.settle();
    let (spi, record) = world.sides[A].engine.export().remove(0);
    let now = Instant::from_millis(1);
    let engine = &mut world.sides[A].engine;
    let mut octets = record.expose().to_vec();
    octets[0] = 99;
    assert_eq!(
        engine.adopt(now, spi, &SecretBytes::new(octets)),
        Err(AdoptError::Version { found: 99 })
    );
    for cut in 0..record.len() {
        let cut = SecretBytes::new(record.expose()[..cut].to_vec());
        assert!(matches!(
            engine.adopt(now, spi, &cut),
            Err(AdoptError::Corrupt(_))
        ));
    }
    assert!(matches!(
        engine.adopt(now, IkeSpi(5), &record),
        Err(AdoptError::WrongSpi { .. })
    ));
    let mut other = ike::Engine::new(config(vec![]));
    // While members read another configuration one after the other, a taker may not have the connection (any more).
    assert_eq!(other.adopt(now, spi, &record), Ok(()));
    let there = other.status_of(spi).map(|sa| (sa.connection, sa.children.len()));
    assert_eq!(there, Some((Some("t".to_owned()), 1)));
}

#[test]
fn segments_that_go_to_another_member_take_along_what_was_not_fetched() {
    let mut world = World::new(9);
    world.initiate(A);
    world.settle();
    world.assert_up(1);
    let spi = world.only(A).spi;
    let (now, here) = (world.now, spi.segment());

    // A request that the agent has not fetched when the segment goes.
    let side = &mut world.sides[A];
    let command = Command::Liveness { spi };
    side.engine
        .handle(ike::Input::Command { now, command }, &mut side.around);
    drop(side.engine.remove_segments(|segment| segment != here));
    assert!(
        side.engine.contains(spi),
        "another segment's end is nothing to this one"
    );
    drop(side.engine.remove_segments(|segment| segment == here));
    assert!(!side.engine.contains(spi) && side.engine.spis().is_empty());
    assert!(side.engine.status_of(spi).is_none() && side.engine.next_timeout().is_none());
    while let Some(output) = side.engine.poll() {
        assert!(
            matches!(output, ike::Output::Event(_)),
            "nothing is committed or sent for it"
        );
    }
}

/// Octets of a record file: hexadecimal, white space skipped.
fn record_file(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits
        .chunks(2)
        .map(|pair| (pair[0] * 16 + pair[1]) as u8)
        .collect()
}

#[test]
fn records_of_the_first_format_are_still_taken_over() {
    use model::{IkeSpi, SecretBytes};
    // Both sides of one established IKE SA, as they were written before records had a second part.
    let files = [include_str!("records/v1-a.hex"), include_str!("records/v1-b.hex")];
    let mut world = World::new(7);
    let now = world.now;
    for (side, file) in files.into_iter().enumerate() {
        let record = record_file(file);
        assert_eq!(record[0], 1);
        // The record begins with our SPI: a varint of ten octets or fewer.
        let spi = record[1..]
            .iter()
            .take(10)
            .enumerate()
            .fold((0u64, true), |(value, more), (at, octet)| match more {
                true => (value | u64::from(octet & 0x7f) << (7 * at), octet & 0x80 != 0),
                false => (value, false),
            });
        let side = &mut world.sides[side];
        side.engine
            .adopt(now, IkeSpi(spi.0), &SecretBytes::new(record))
            .unwrap();
        side.engine.resume(now, &mut side.around);
        let adopted = side.engine.export();
        assert_eq!(
            (adopted.len(), adopted[0].1.expose()[0]),
            (1, 2),
            "written back in the new format"
        );
    }
    let old = world.only(A);
    world.command(A, Command::Liveness { spi: old.spi });
    world.settle();
    assert_eq!(world.only(B).next_receive, old.next_send + 1);
    assert_eq!(
        (world.only(A).children.len(), world.only(B).children.len()),
        (1, 1)
    );
}

#[test]
fn records_are_written_so_that_a_member_of_the_older_version_reads_them() {
    assert_eq!(ike::RECORD_VERSIONS, 1..=3);
    let mut world = World::new(8);
    for side in &mut world.sides {
        side.engine.set_record_version(1);
    }
    world.initiate(A);
    world.settle();
    for side in [A, B] {
        assert!(
            world.sides[side]
                .journal
                .values()
                .all(|record| record.expose()[0] == 1)
        );
        assert_eq!(world.sides[side].engine.export()[0].1.expose()[0], 1);
        world.take_over(side);
    }
    world.settle();
    world.assert_up(1);
    world.sides[A].engine.set_record_version(77);
    assert_eq!(
        world.sides[A].engine.export()[0].1.expose()[0],
        2,
        "the newest that such a record needs, not nonsense"
    );
}

/// ```text
///   A --->  SK {}                         (its answer is lost: the window is full)
///   A: terminate; A is lost; the standby was told by other means which IKE SAs were to end
///   standby --->  SK {} again             <---  SK {}
///           --->  SK {D}                  <---  SK {}
/// ```
#[test]
fn a_standby_ends_an_ike_sa_whose_deletion_was_waiting_for_the_window() {
    let (mut world, _) = begin(Story::Liveness, A, 77);
    world.net.clear();
    let connection = String::from("t");
    world.command(A, Command::Terminate { connection });
    world.take_over(A);
    let spi = world.only(A).spi;
    // As the agent does. Where the record says it too, a second word does no harm.
    world.command(A, Command::DeleteIke { spi });
    finish(world, None, "a deletion that waited");
}
