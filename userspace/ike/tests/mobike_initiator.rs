//! We are the one who moves (RFC 4555): a path goes dead, or the agent says that an address is of no use any more.

mod world;

use ike::{Command, EventKind};
use std::net::IpAddr;
use std::time::Duration;
use world::{A, B, World, address};

const SECOND: &str = "192.0.2.77";

fn second() -> IpAddr {
    SECOND.parse().unwrap()
}

fn up() -> World {
    let mut world = World::with(21, |side, connection| {
        connection.dpd_delay = None;
        connection.ike_rekey_time = None;
        connection.child_rekey_time = None;
        match side {
            A => connection.further_locals = vec![second()],
            _ => connection.remotes.clear(),
        }
    });
    world.initiate(A);
    world.settle();
    world.assert_up(1);
    world
}

/// Delivers what does not come from or go to an address; true: something was delivered.
fn step_without(world: &mut World, dead: IpAddr) -> bool {
    while let Some(packet) = world.net.pop_front() {
        if packet.remote.ip() != dead && packet.local.ip() != dead {
            world.deliver(packet);
            return true;
        }
    }
    false
}

/// Time passes until A has nothing outstanding and everything is delivered. `at_step`: before which delivery a standby of A takes over.
fn pass_without(world: &mut World, dead: IpAddr, mut at_step: Option<usize>) -> usize {
    let mut steps = 0;
    for _ in 0..200 {
        if at_step == Some(steps) && !world.net.is_empty() {
            at_step = None;
            world.net.clear();
            world.take_over(A);
        }
        if step_without(world, dead) {
            steps += 1;
            continue;
        }
        let sa = world.only(A);
        if !sa.outstanding && sa.local.ip() != dead && world.sides[A].children.len() == 1 {
            return steps;
        }
        let next = world.sides[A]
            .engine
            .next_timeout()
            .expect("A waits for something");
        world.now = world.now.max(next);
        world.timeout();
    }
    panic!("it never ends\n{}", world.story());
}

fn is_at(world: &World, local: IpAddr) {
    let (a, b) = (world.only(A), world.only(B));
    assert_eq!((a.local.ip(), b.remote.ip()), (local, local), "{}", world.story());
    let (ours, theirs) = (&world.sides[A].children, &world.sides[B].children);
    assert!(
        ours.values().all(|child| child.local.ip() == local),
        "{}",
        world.story()
    );
    assert!(
        theirs.values().all(|child| child.remote.ip() == local),
        "{}",
        world.story()
    );
    world.assert_up(1);
}

#[test]
fn both_sides_use_port_4500_and_the_peer_knows_the_other_address() {
    let world = up();
    let (a, b) = (world.only(A), world.only(B));
    assert_eq!(
        (a.local.port(), a.remote.port(), b.remote.port()),
        (4500, 4500, 4500)
    );
    assert!(!a.nat_local && !b.nat_remote);
    is_at(&world, address(A));
}

#[test]
fn an_unanswered_request_finds_the_path_that_works_and_the_ike_sa_moves_there() {
    let mut world = up();
    let spi = world.only(A).spi;
    world.command(A, Command::Liveness { spi });
    pass_without(&mut world, address(A), None);
    is_at(&world, second());
    assert_eq!(world.only(A).spi, spi, "it is the same IKE SA");
    let text = world.event(A, EventKind::PathMoved).to_string();
    assert!(text.contains(SECOND), "{text}");
    assert!(!world.has_event(A, EventKind::PeerSilent));
}

#[test]
fn a_taker_goes_on_with_the_move_wherever_it_stood() {
    let mut world = up();
    let spi = world.only(A).spi;
    world.command(A, Command::Liveness { spi });
    let steps = pass_without(&mut world, address(A), None);
    assert!(steps >= 4, "{steps} messages");
    for at in 0..steps {
        let mut world = up();
        let spi = world.only(A).spi;
        world.command(A, Command::Liveness { spi });
        pass_without(&mut world, address(A), Some(at));
        // What the peer asked meanwhile, and was lost, it asks again.
        world.pass(Duration::from_secs(10));
        is_at(&world, second());
    }
}

#[test]
fn the_agent_names_the_address_and_what_is_outstanding_goes_the_new_way() {
    let mut world = up();
    let spi = world.only(A).spi;
    world.command(A, Command::Liveness { spi });
    world.net.clear();
    world.command(A, Command::MoveLocal { spi, local: second() });
    pass_without(&mut world, address(A), None);
    is_at(&world, second());
    // And back.
    world.command(
        A,
        Command::MoveLocal {
            spi,
            local: address(A),
        },
    );
    world.settle();
    is_at(&world, address(A));
    // Neither the responder nor an address of nobody's.
    let theirs = world.only(B).spi;
    world.command(
        B,
        Command::MoveLocal {
            spi: theirs,
            local: address(B),
        },
    );
    assert!(world.has_event(B, EventKind::CommandFailed));
    let nobodys = "192.0.2.99".parse().unwrap();
    world.command(A, Command::MoveLocal { spi, local: nobodys });
    assert!(world.has_event(A, EventKind::CommandFailed));
    is_at(&world, address(A));
}

#[test]
fn a_slow_answer_on_the_old_path_moves_nothing() {
    let mut world = up();
    let spi = world.only(A).spi;
    world.command(A, Command::Liveness { spi });
    let request = world.net.pop_front().expect("a liveness check");
    // Two repetitions are lost, the third is sent from the second address: then the first answer comes.
    for _ in 0..3 {
        let next = world.sides[A].engine.next_timeout().expect("a retransmission");
        world.now = world.now.max(next);
        world.timeout();
    }
    world.net.clear();
    world.deliver(request);
    world.settle();
    is_at(&world, address(A));
    assert!(!world.has_event(A, EventKind::PathMoved));
    world.pass(Duration::from_secs(60));
    is_at(&world, address(A));
}
