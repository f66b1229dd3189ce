//! Planned moves of a group of which a lost standby knew Child SAs (ADR 13, ADR 20).

use crate::world::World;
use cluster::io::EventKind;
use cluster::message::RESTS_SINCE;
use cluster::{Command, LeaseRest, Link, Solo};
use model::{EspSpi, MemberId};

fn rest(spi: u32) -> LeaseRest {
    LeaseRest {
        spi_in: EspSpi(spi),
        above: 100,
        last: 200,
    }
}

/// A pair whose standby was lost and is back; its life before knew three Child SAs. `speaks`: newest format of its records.
fn after_a_loss(speaks: u8) -> World {
    let mut world = World::new(1, Solo::Continue);
    world.run_until(2000, "a pair forms", |w| w.settled(0));
    world.kill(1);
    world.run(300);
    world.restart(1);
    world.members[1].node.speak_at_most(speaks);
    world.relink();
    world.suspects(0, 3);
    world.suspects(1, 3);
    world.run_until(3000, "the standby is back", |w| w.settled(0));
    world
}

fn moved(world: &World) -> bool {
    world.settled(1)
}

/// ```text
///   owner: LeaveRests -> 3 rests | HandoverRests, HandoverOffer --> taker: TakeRests, then Flip
/// ```
#[test]
fn a_taker_is_left_a_part_of_leases_that_nobody_may_raise_before_it_flips() {
    let mut world = after_a_loss(RESTS_SINCE);
    world.members[0].rests = vec![rest(1), rest(2), rest(3)];
    let commanded = world.now;
    world.take_over(0, 2);
    world.run_until(200, "the move waits for nothing", moved);
    let (epoch, rests) = world.members[1].rests_taken.remove(0);
    assert_eq!(epoch, world.members[1].epoch());
    assert_eq!(rests, [rest(1), rest(2), rest(3)]);
    assert!(world.members[1].rests_taken.is_empty(), "once");
    let took = world.now.since(commanded).as_millis();
    assert!(took < 100, "{took} ms");
    assert!(!world.saw(0, |kind| matches!(kind, EventKind::MoveWaits { .. })));
}

#[test]
fn what_was_left_is_said_again_when_the_stream_breaks_and_counts_once() {
    let mut world = after_a_loss(RESTS_SINCE);
    world.members[0].rests = (1..=10_000).map(rest).collect();
    // The offer is written into a connection that is gone.
    world.cut = vec![Link::Synch, Link::Outside];
    world.take_over(0, 2);
    world.run(3);
    world.cut.clear();
    world.run_until(3000, "the move comes to its end", moved);
    assert_eq!(world.members[1].rests_taken.len(), 1);
    assert_eq!(world.members[1].rests_taken[0].1, world.members[0].rests);
}

#[test]
fn what_was_left_for_a_handover_that_came_to_nothing_is_not_taken_in_another_epoch() {
    let mut world = after_a_loss(RESTS_SINCE);
    world.members[0].rests = vec![rest(1)];
    world.take_over(0, 2);
    // The owner dies with the offer on its way: what the standby claims by itself rests on no offer.
    world.kill(0);
    world.run_until(1000, "the standby takes over", |w| w.members[1].is_owner());
    assert!(world.members[1].rests_taken.is_empty());
}

#[test]
fn without_suspects_nobody_is_asked_for_rests() {
    let mut world = after_a_loss(RESTS_SINCE);
    world.suspects(0, 0);
    world.members[0].rests = vec![rest(1)];
    world.take_over(0, 2);
    world.run_until(200, "the move", moved);
    assert!(world.members[1].rests_taken.is_empty());
}

#[test]
fn a_move_to_a_member_that_cannot_be_told_waits_for_the_rekeys() {
    let mut world = after_a_loss(RESTS_SINCE - 1);
    world.command(0, Command::Drain);
    world.run(4000);
    assert!(world.serves(0) && !world.members[1].is_owner());
    let status = world.members[0].status();
    assert_eq!((status.suspects, status.move_waits), (3, Some(MemberId(2))));
    let said = |w: &World| {
        let said = |e: &&cluster::Event| matches!(e.kind, EventKind::MoveWaits { suspects: 3, .. });
        w.members[0].events.iter().filter(said).count()
    };
    assert_eq!(said(&world), 1);
    world.suspects(0, 1);
    world.run(1000);
    assert!(world.serves(0));
    world.suspects(0, 0);
    world.run_until(200, "the last one is rekeyed", moved);
    assert_eq!(world.members[0].status().move_waits, None);
    assert!(!world.saw(0, |kind| matches!(kind, EventKind::MoveWaitedInVain { .. })));
}

#[test]
fn it_does_not_wait_for_ever_and_says_so() {
    let mut world = after_a_loss(RESTS_SINCE - 1);
    world.take_over(0, 2);
    world.run(9900);
    assert!(world.serves(0));
    world.run_until(400, "ten seconds are over", moved);
    assert!(world.saw(0, |kind| matches!(
        kind,
        EventKind::MoveWaitedInVain { suspects: 3, .. }
    )));
}

#[test]
fn a_member_whose_data_plane_does_not_work_does_not_wait() {
    let mut world = after_a_loss(RESTS_SINCE - 1);
    world.command(0, Command::Drain);
    world.run(1000);
    assert!(world.serves(0));
    world.health(0, Some("eth0 is down"));
    world.run_until(200, "it goes at once", moved);
}

#[test]
fn a_member_that_is_not_drained_any_more_stays() {
    let mut world = after_a_loss(RESTS_SINCE - 1);
    world.command(0, Command::Drain);
    world.run(1000);
    world.command(0, Command::Undrain);
    world.suspects(0, 0);
    world.run(2000);
    assert!(world.settled(0), "nobody wants the move any more");
    // What somebody has asked for by itself goes on.
    world.suspects(0, 3);
    world.command(0, Command::Drain);
    world.run(100);
    world.take_over(0, 2);
    world.command(0, Command::Undrain);
    world.suspects(0, 0);
    world.run_until(200, "the operator's own wish", moved);
}
