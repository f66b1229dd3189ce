//! Reauthentication, make before break (RFC 7296 2.8.3), and how long an authentication lasts (RFC 4478).
//!
//! ```text
//!   A ===== IKE SA 1, child c ===== B
//!   A --->  IKE_SA_INIT, IKE_AUTH             without INITIAL_CONTACT
//!   A ===== IKE SA 2, child c ===== B
//!   A --->  SK {D} on IKE SA 1                a second later; never before IKE SA 2 has all that IKE SA 1 had
//! ```

mod world;

use ike::{ChildConfig, Command, Connection, EventKind};
use model::{IkeSpi, SecretBytes};
use std::collections::BTreeSet;
use std::time::Duration;
use world::*;

const EPOCH: u64 = 1_800_000_000;

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Both sides see the same wall clock.
fn set_clock(world: &mut World) {
    for side in &mut world.sides {
        side.around.unix_time = Some(EPOCH + world.now.millis() / 1000);
    }
}

/// Lets time pass, on the wall too.
fn pass(world: &mut World, time: Duration) {
    for _ in 0..time.as_secs() {
        world.pass(seconds(1));
        set_clock(world);
        // Ages are as of the latest input.
        world.timeout();
    }
}

/// Up, with A as the initiator.
fn up_with(seed: u64, adjust: impl Fn(usize, &mut Connection)) -> World {
    let mut world = World::with(seed, adjust);
    set_clock(&mut world);
    world.initiate(A);
    world.settle();
    world.assert_up(1);
    world
}

fn a_reauthenticates_after(time: u64) -> impl Fn(usize, &mut Connection) {
    move |side, connection| {
        if side == A {
            connection.reauth_time = Some(seconds(time));
        }
    }
}

fn count(world: &World, side: usize, kind: EventKind) -> usize {
    let events = world.sides[side].events.iter();
    events.filter(|event| event.kind == kind).count()
}

/// Nobody has noticed anything but that it went well.
fn assert_quiet(world: &World) {
    for side in &world.sides {
        let loud = side.events.iter().find(|event| {
            matches!(
                event.kind,
                EventKind::PeerClosed
                    | EventKind::PeerSilent
                    | EventKind::ChildDown
                    | EventKind::ReauthFailed
                    | EventKind::AuthLapsed
                    | EventKind::Trouble
                    | EventKind::PeerMisbehaved
            ) || (event.kind == EventKind::IkeSaDown && event.was_up)
        });
        assert!(loud.is_none(), "{}: {loud:?}\n{}", side.name, world.story());
    }
}

#[test]
fn a_new_ike_sa_takes_the_old_ones_place_before_that_ends() {
    let mut world = up_with(1, a_reauthenticates_after(100));
    let (old, child) = (world.only(A).spi, world.spi_in(A));
    pass(&mut world, seconds(99));
    assert_eq!(world.only(A).spi, old, "not due");
    assert_eq!(world.only(A).reauth_in, Some(seconds(1)));
    let changes = world.sides.each_ref().map(|side| side.changes.len());
    pass(&mut world, seconds(1));
    // Both are there, and traffic of both sides goes on without a gap.
    assert_eq!(world.status(A).len(), 2, "{}", world.story());
    pass(&mut world, seconds(2));
    world.assert_up(1);
    assert_ne!(world.only(A).spi, old);
    assert_quiet(&world);
    for side in [A, B] {
        assert_eq!(count(&world, side, EventKind::Reauthenticated), 1);
        assert_eq!(count(&world, side, EventKind::Established), 2);
    }
    assert_eq!(
        count(&world, B, EventKind::InitialContact),
        1,
        "the first time only"
    );
    let [a, b] = [A, B].map(|side| world.sides[side].changes[changes[side]..].to_vec());
    let kinds = |changes: &[String]| {
        let word = |change: &String| {
            change
                .split(' ')
                .filter(|w| !w.contains("0000"))
                .collect::<Vec<_>>()
                .join(" ")
        };
        changes.iter().map(word).collect::<Vec<_>>()
    };
    // The initiator uses the new one as soon as it has the answer. The responder waits for the Delete, or for a second.
    assert_eq!(kinds(&a), ["install Now", "remove"], "{}", world.story());
    assert_eq!(kinds(&b), ["install Later", "use", "remove"], "{}", world.story());
    assert_ne!(world.spi_in(A), child);
    // And so on.
    pass(&mut world, seconds(1000));
    world.assert_up(1);
    assert_quiet(&world);
    let times = count(&world, A, EventKind::Reauthenticated);
    assert!((9..=11).contains(&times), "{times}");
}

#[test]
fn it_comes_up_to_the_jitter_earlier_at_random() {
    let mut when = BTreeSet::new();
    for seed in 0..8 {
        let mut world = up_with(seed, |side, connection| {
            a_reauthenticates_after(1000)(side, connection);
            connection.rekey_jitter = seconds(100);
        });
        let due = world.only(A).reauth_in.expect("a time");
        assert!((900..=1000).contains(&due.as_secs()), "{due:?}");
        pass(&mut world, due + seconds(4));
        assert_eq!(count(&world, A, EventKind::Reauthenticated), 1);
        when.insert(due);
    }
    assert!(when.len() > 4, "{when:?}");
}

#[test]
fn rekeys_of_the_ike_sa_do_not_put_it_off_whoever_makes_them() {
    for rekeys in [A, B] {
        let mut world = up_with(20, |side, connection| {
            a_reauthenticates_after(1000)(side, connection);
            if side == rekeys {
                connection.ike_rekey_time = Some(seconds(90));
            }
        });
        pass(&mut world, seconds(990));
        assert!(count(&world, A, EventKind::IkeSaRekeyed) >= 10);
        assert_eq!(world.only(A).initiator, rekeys == A, "who has rekeyed it");
        assert_eq!(count(&world, A, EventKind::Reauthenticated), 0);
        // Nor does a takeover, of a member that goes on with what it reads.
        set_clock(&mut world);
        world.take_over(A);
        pass(&mut world, seconds(15));
        world.assert_up(1);
        assert_eq!(
            count(&world, A, EventKind::Reauthenticated),
            1,
            "{}",
            world.story()
        );
        assert_quiet(&world);
    }
}

#[test]
fn where_it_fails_the_old_one_stays_and_it_is_tried_again_with_growing_pauses() {
    let mut world = up_with(3, a_reauthenticates_after(100));
    let old = world.only(A).spi;
    // B has another key now.
    let configs = |psk: &[u8]| {
        let mut connection = connection(B);
        connection.psk = SecretBytes::new(psk.to_vec());
        config(vec![connection])
    };
    world.sides[B].engine.set_config(configs(b"another secret"));
    pass(&mut world, seconds(1000));
    world.assert_up(1);
    assert_eq!(world.only(A).spi, old);
    let failed = count(&world, A, EventKind::ReauthFailed);
    assert!((4..=8).contains(&failed), "{failed}\n{}", world.story());
    let text = world.event(A, EventKind::ReauthFailed).to_string();
    assert!(text.contains("stays up, tried again in"), "{text}");
    assert!(
        !world.sides[A]
            .events
            .iter()
            .any(|e| e.kind == EventKind::IkeSaDown && e.was_up)
    );
    world.sides[B]
        .engine
        .set_config(configs(b"a secret that both know"));
    pass(&mut world, seconds(400));
    world.assert_up(1);
    assert_ne!(world.only(A).spi, old);
    assert!(count(&world, A, EventKind::Reauthenticated) >= 1);
}

/// Child `d` beside `c`, which is brought up by hand.
fn with_second_child(side: usize, connection: &mut Connection) {
    let nets = [net([10, 1, 9]), net([10, 2, 9])];
    let mut child = ChildConfig::new("d", vec![nets[side].clone()], vec![nets[1 - side].clone()]);
    child.start = false;
    connection.children.push(child);
}

fn bring_up_d(world: &mut World) {
    let (connection, child) = ("t".to_owned(), "d".to_owned());
    world.command(A, Command::CreateChild { connection, child });
    world.settle();
    world.assert_up(2);
}

#[test]
fn the_new_one_has_the_children_that_the_old_one_had_and_no_others() {
    for with_d in [true, false] {
        let mut world = up_with(4, |side, connection| {
            a_reauthenticates_after(100)(side, connection);
            with_second_child(side, connection);
        });
        if with_d {
            bring_up_d(&mut world);
        } else {
            // One that would come up with the connection, and that somebody has taken down.
            let spi_in = world.spi_in(A);
            bring_up_d(&mut world);
            world.command(A, Command::DeleteChild { spi_in });
            world.settle();
        }
        pass(&mut world, seconds(110));
        world.assert_up(if with_d { 2 } else { 1 });
        assert_eq!(count(&world, A, EventKind::Reauthenticated), 1);
        let children = world.only(A).children;
        assert!(children.iter().any(|child| child.child == "d"));
    }
}

#[test]
fn the_old_one_does_not_end_before_all_of_its_children_are_up_elsewhere() {
    let mut world = up_with(5, |side, connection| {
        a_reauthenticates_after(1000)(side, connection);
        with_second_child(side, connection);
    });
    bring_up_d(&mut world);
    // B does not know `d` any more, but what is up stays.
    world.sides[B].engine.set_config(config(vec![connection(B)]));
    pass(&mut world, seconds(1300));
    assert_eq!(world.status(A).len(), 2, "{}", world.story());
    assert!(world.has_event(A, EventKind::ReauthFailed) && !world.has_event(A, EventKind::Reauthenticated));
    assert!(world.event(A, EventKind::ReauthFailed).text.contains("without d"));
    let mut again = connection(B);
    with_second_child(B, &mut again);
    world.sides[B].engine.set_config(config(vec![again]));
    pass(&mut world, seconds(400));
    world.assert_up(2);
}

/// The old one waits for a second after the new one has what it has, whatever happens to the children of the new one meanwhile.
#[test]
fn rekeys_of_the_new_ones_children_do_not_put_the_end_of_the_old_one_off() {
    let mut world = up_with(14, a_reauthenticates_after(100));
    let old = world.only(A).spi;
    pass(&mut world, seconds(100));
    assert_eq!(world.status(A).len(), 2, "{}", world.story());
    for round in 1..=6 {
        let all = world.status(A);
        if all.iter().all(|sa| sa.spi != old) {
            assert!(round > 2, "it had its second");
            assert_quiet(&world);
            return world.assert_up(1);
        }
        let new = all.iter().find(|sa| sa.spi != old).expect("the new one");
        let spi_in = new.children[0].spi_in;
        world.command(A, Command::RekeyChild { spi_in });
        world.settle();
        world.pass(Duration::from_millis(400));
        set_clock(&mut world);
    }
    panic!("the old one is there still\n{}", world.story());
}

#[test]
fn an_operator_may_have_it_now_but_only_at_the_side_that_initiated() {
    let mut world = up_with(6, |_, _| {});
    assert_eq!(world.only(A).reauth_in, None);
    for _ in 0..3 {
        let before = world.only(A).spi;
        world.command(A, Command::Reauthenticate { spi: before });
        pass(&mut world, seconds(3));
        world.assert_up(1);
        assert_ne!(world.only(A).spi, before);
    }
    assert_quiet(&world);
    let spi = world.only(B).spi;
    world.command(B, Command::Reauthenticate { spi });
    let text = world.event(B, EventKind::CommandFailed).to_string();
    assert!(text.contains("only the side that initiated"), "{text}");
    assert_eq!(world.only(B).spi, spi);
}

/// Delivers a message, or lets time pass to the next timer. `false`: it is done.
fn step(world: &mut World) -> bool {
    if count(world, A, EventKind::Reauthenticated) > 0 && world.net.is_empty() {
        return false;
    }
    if world.step() {
        return true;
    }
    let next = world
        .sides
        .iter()
        .filter_map(|side| side.engine.next_timeout())
        .min();
    world.now = world.now.max(next.expect("a timer"));
    set_clock(world);
    world.timeout();
    true
}

/// The moment before it is due.
fn before_it_is_due(seed: u64) -> World {
    let mut world = up_with(seed, |side, connection| {
        a_reauthenticates_after(1000)(side, connection);
        connection.retransmit.initial = Duration::from_millis(500);
    });
    pass(&mut world, seconds(999));
    set_clock(&mut world);
    world
}

fn assert_ends_well(mut world: World, old: IkeSpi, what: &str) {
    for _ in 0..30 {
        pass(&mut world, seconds(10));
        set_clock(&mut world);
    }
    world.trace.push(format!("(this was {what})"));
    world.assert_up(1);
    assert_ne!(world.only(A).spi, old, "{what}\n{}", world.story());
    for side in &world.sides {
        assert_eq!(side.journal.len(), 1, "{what}: {} keeps leftovers", side.name);
    }
    assert_quiet(&world);
}

fn length(seed: u64) -> usize {
    let mut world = before_it_is_due(seed);
    let mut steps = 0;
    while step(&mut world) {
        steps += 1;
        assert!(steps < 100, "{}", world.story());
    }
    steps
}

#[test]
fn a_takeover_at_any_point_of_it_ends_with_one_ike_sa() {
    for taken in [&[A][..], &[B], &[A, B]] {
        for lost in [false, true] {
            for at in 0..=length(7) {
                let mut world = before_it_is_due(7);
                let old = world.only(A).spi;
                for _ in 0..at {
                    step(&mut world);
                }
                if lost {
                    world.net.clear();
                }
                for side in taken {
                    world.take_over(*side);
                }
                let what = format!("{taken:?} taken over after {at} steps, what was under way lost: {lost}");
                assert_ends_well(world, old, &what);
            }
        }
    }
}

#[test]
fn a_takeover_after_the_commit_and_before_the_send_ends_with_one_ike_sa() {
    for at in 0..length(8) {
        let mut world = before_it_is_due(8);
        let old = world.only(A).spi;
        for _ in 0..at {
            step(&mut world);
        }
        let Some(packet) = world.net.pop_front() else {
            continue;
        };
        let taken = packet.to;
        world.deliver_then(packet, false);
        world.take_over(taken);
        assert_ends_well(world, old, &format!("{taken} dies with step {at}"));
    }
}

#[test]
fn a_lost_message_at_any_point_of_it_ends_with_one_ike_sa() {
    for at in 0..length(9) {
        let mut world = before_it_is_due(9);
        let old = world.only(A).spi;
        for _ in 0..at {
            step(&mut world);
        }
        world.net.clear();
        assert_ends_well(world, old, &format!("all lost after {at} steps"));
    }
}

#[test]
fn a_member_that_has_not_taken_over_everything_yet_begins_nothing() {
    let mut world = before_it_is_due(10);
    world.sides[A].around.pool_share = None;
    pass(&mut world, seconds(20));
    assert_eq!(world.status(A).len(), 1, "the younger one may still be to come");
    world.sides[A].around.pool_share = Some(ike::PoolShare::WHOLE);
    pass(&mut world, seconds(5));
    world.assert_up(1);
    assert_eq!(count(&world, A, EventKind::Reauthenticated), 1);
}

#[test]
fn the_initiator_comes_before_the_time_that_the_responder_tells_it() {
    let mut world = up_with(11, |side, connection| {
        if side == B {
            connection.reauth_time = Some(seconds(3600));
        }
    });
    // AUTH_LIFETIME 3600: a tenth before.
    assert_eq!(world.only(A).reauth_in, Some(seconds(3240)));
    assert_eq!(world.only(B).reauth_in, Some(seconds(3960)));
    pass(&mut world, seconds(3 * 3300));
    world.assert_up(1);
    assert_eq!(count(&world, A, EventKind::Reauthenticated), 3);
    assert_quiet(&world);
    // After a takeover too: it is in the record.
    set_clock(&mut world);
    let before = world.only(A).reauth_in.expect("a time");
    world.take_over(A);
    let after = world.only(A).reauth_in.expect("a time");
    assert!(before.abs_diff(after) <= seconds(1), "{before:?} {after:?}");
}

#[test]
fn a_peer_that_does_not_authenticate_anew_is_believed_a_tenth_longer() {
    for taken in [false, true] {
        let mut world = up_with(12, |side, connection| {
            if side == B {
                connection.reauth_time = Some(seconds(1000));
            }
        });
        // A is told, and does not do it.
        world.sides[A].around.may_initiate = false;
        pass(&mut world, seconds(600));
        if taken {
            set_clock(&mut world);
            world.take_over(B);
        }
        pass(&mut world, seconds(495));
        world.assert_up(1);
        pass(&mut world, seconds(10));
        world.assert_all_gone();
        let text = world.event(B, EventKind::AuthLapsed).to_string();
        assert!(
            text.contains("has not authenticated anew") && text.contains("RFC 4478"),
            "{text}"
        );
        assert!(world.has_event(A, EventKind::PeerClosed));
    }
}

#[test]
fn a_peer_that_was_never_told_is_left_alone_by_a_new_configuration() {
    let mut world = up_with(13, |_, _| {});
    let mut told = connection(B);
    told.reauth_time = Some(seconds(100));
    world.sides[B].engine.set_config(config(vec![told]));
    let spi = world.only(B).spi;
    world.command(B, Command::RestartTimers { spi });
    pass(&mut world, seconds(1000));
    world.assert_up(1);
    assert_eq!(world.only(B).spi, spi);
}

#[test]
fn an_initiator_goes_by_a_new_configuration_at_once() {
    let mut world = up_with(14, |_, _| {});
    pass(&mut world, seconds(50));
    let mut connection = connection(A);
    connection.reauth_time = Some(seconds(100));
    world.sides[A].engine.set_config(config(vec![connection]));
    let spi = world.only(A).spi;
    world.command(A, Command::RestartTimers { spi });
    assert_eq!(
        world.only(A).reauth_in,
        Some(seconds(50)),
        "since it was authenticated"
    );
    // The others were told.
    set_clock(&mut world);
    world.take_over(A);
    assert_eq!(world.only(A).reauth_in, Some(seconds(50)));
}

#[test]
fn lifetimes_that_are_absurd_keep_nobody_busy_and_overflow_nothing() {
    for (told, times) in [
        (0, 5..=10),
        (1, 5..=10),
        (u64::from(u32::MAX), 0..=0),
        (u64::MAX / 4, 0..=0),
    ] {
        let mut world = up_with(15, |side, connection| {
            if side == B {
                connection.reauth_time = Some(seconds(told));
            }
        });
        pass(&mut world, seconds(100));
        let found = count(&world, A, EventKind::Reauthenticated);
        assert!(times.contains(&found), "{told}: {found}\n{}", world.story());
        pass(&mut world, seconds(3));
        set_clock(&mut world);
        world.take_over(A);
        world.take_over(B);
        pass(&mut world, seconds(5));
        assert!((1..=2).contains(&world.status(A).len()));
        assert_quiet(&world);
    }
}

#[test]
fn a_peer_that_comes_back_without_a_word_has_its_packets_within_a_second() {
    let mut world = up_with(16, |_, _| {});
    // A's whole cluster begins anew, and its INITIAL_CONTACT is lost on the way of things: another name does not say it either.
    let old = world.spi_in(B);
    world.sides[B].changes.clear();
    let spi = world.only(A).spi;
    world.command(A, Command::Reauthenticate { spi });
    world.settle();
    assert_eq!(
        world.sides[B].outbound["c"], old,
        "the old one still carries our packets"
    );
    // Its Delete never comes.
    world.sides[A].around.pool_share = None;
    pass(&mut world, seconds(2));
    assert_ne!(world.sides[B].outbound["c"], old);
    assert_eq!(world.status(B).len(), 2);
}

#[test]
fn a_resumed_session_is_no_new_authentication() {
    let ticket_secret = SecretBytes::new(vec![7; 32]);
    let mut world = World::with_config(17, |side| {
        let mut connection = connection(side);
        connection.dpd_delay = Some(seconds(30));
        if side == B {
            connection.reauth_time = Some(seconds(3600));
        }
        let mut config = config(vec![connection]);
        config.endpoint.ticket_secret = Some(ticket_secret.clone());
        config
    });
    set_clock(&mut world);
    world.initiate(A);
    world.settle();
    pass(&mut world, seconds(1000));
    set_clock(&mut world);
    // B falls silent: A keeps the ticket, and B loses nothing.
    let spi = world.only(A).spi;
    world.command(A, Command::Liveness { spi });
    for _ in 0..20 {
        world.net.clear();
        let Some(next) = world.sides[A]
            .engine
            .next_timeout()
            .filter(|_| !world.status(A).is_empty())
        else {
            break;
        };
        world.now = world.now.max(next);
        let now = world.now;
        let side = &mut world.sides[A];
        side.engine.handle(ike::Input::Timeout { now }, &mut side.around);
        world.drain(A, true);
    }
    assert!(world.status(A).is_empty(), "{}", world.story());
    world.net.clear();
    set_clock(&mut world);
    world.initiate(A);
    world.settle();
    assert!(world.has_event(B, EventKind::Resumed), "{}", world.story());
    world.assert_up(1);
    for side in [A, B] {
        let age = world.only(side).authenticated.expect("an age");
        assert!(age >= seconds(1000), "{age:?}");
    }
    let left = world.only(A).reauth_in.expect("a time");
    assert!(left < seconds(2300), "{left:?}");
}

/// ```text
///   A: an operator wants it now; it is not due for long
///   a takeover after each step, of either side; what was under way is lost or not
/// ```
#[test]
fn a_takeover_in_one_that_is_not_due_leaves_one_ike_sa_the_old_one_or_the_new_one() {
    for taken in [A, B] {
        for lost in [false, true] {
            for at in 0..20 {
                let mut world = up_with(18, |_, connection| {
                    connection.retransmit.initial = Duration::from_millis(500);
                });
                let spi = world.only(A).spi;
                world.command(A, Command::Reauthenticate { spi });
                for _ in 0..at {
                    if count(&world, A, EventKind::Reauthenticated) == 0 {
                        step(&mut world);
                    }
                }
                if lost {
                    world.net.clear();
                }
                world.take_over(taken);
                pass(&mut world, seconds(200));
                world
                    .trace
                    .push(format!("({taken} taken over after {at} steps, lost: {lost})"));
                world.assert_up(1);
                assert_quiet(&world);
            }
        }
    }
}
