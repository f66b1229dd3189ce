//! Redirection (RFC 5685): before there is an IKE SA, while there is one, in circles, and over takeovers.

mod world;

use ike::{Command, Connection, EventKind};
use ike_wire::{Message, Notify, NotifyType};
use std::net::IpAddr;
use std::time::Duration;
use world::*;

/// Side B is at both addresses; to A they are two gateways.
const ELSEWHERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 9));

fn adjust(side: usize, connection: &mut Connection) {
    connection.retransmit.initial = Duration::from_millis(500);
    if side == B {
        connection.local = [0, 0, 0, 0].into();
    }
}

fn at(world: &World) -> IpAddr {
    world.only(A).remote.ip()
}

#[test]
fn a_new_client_goes_where_the_gateway_sends_it() {
    let mut world = World::with(1, |side, connection| {
        adjust(side, connection);
        connection.redirect = (side == B).then_some(ELSEWHERE);
    });
    world.initiate(A);
    world.settle();
    world.assert_up(1);
    assert_eq!(at(&world), ELSEWHERE);
    let requests: Vec<_> = world.sides[A]
        .sent
        .iter()
        .map(|bytes| Message::parse(bytes).unwrap())
        .collect();
    let said = |at: usize, kind| {
        requests[at]
            .payloads
            .notify(kind)
            .map(|notify| notify.data.clone())
    };
    assert!(said(0, NotifyType::REDIRECT_SUPPORTED).is_some());
    // IPv4, four octets, the gateway that sent it here.
    assert_eq!(
        said(1, NotifyType::REDIRECTED_FROM),
        Some(vec![1, 4, 198, 51, 100, 1])
    );
    assert_eq!(requests[0].header.spi_i, requests[1].header.spi_i);
    assert!(requests[0].payloads.nonce() != requests[1].payloads.nonce());
    for side in [A, B] {
        assert!(world.has_event(side, EventKind::Redirected), "{}", world.story());
    }
}

#[test]
fn a_client_that_cannot_be_redirected_is_served() {
    let mut world = World::with(2, |side, connection| {
        adjust(side, connection);
        connection.redirect = (side == B).then_some(ELSEWHERE);
        connection.follow_redirects = side == B;
    });
    world.initiate(A);
    world.settle();
    world.assert_up(1);
    assert_eq!(at(&world), address(B));
    let spi = world.only(B).spi;
    world.command(B, Command::Redirect { spi, to: ELSEWHERE });
    assert!(world.has_event(B, EventKind::CommandFailed) && world.net.is_empty());
}

#[test]
fn a_redirection_with_another_nonce_changes_nothing() {
    let mut world = World::with(3, adjust);
    world.initiate(A);
    let request = world.net.pop_front().unwrap();
    let header = Message::parse(&request.bytes).unwrap().header;
    let mut answer = header;
    answer.flags.response = true;
    answer.flags.initiator = false;
    let forged = [Notify::redirect(ELSEWHERE, &[9; 32])].map(ike_wire::Payload::Notify);
    world.deliver(Packet {
        to: A,
        local: (address(A), 500).into(),
        remote: (address(B), 500).into(),
        bytes: ike_wire::encode_message(&answer, &forged).unwrap(),
    });
    assert!(world.net.is_empty());
    world.deliver(request);
    world.settle();
    world.assert_up(1);
    assert_eq!(at(&world), address(B));
}

fn redirect(world: &mut World, to: IpAddr) {
    let established = |sa: &&ike::IkeSaStatus| sa.phase == "established";
    let spi = world.status(B).iter().find(established).unwrap().spi;
    world.command(B, Command::Redirect { spi, to });
}

#[test]
fn a_client_with_an_ike_sa_makes_the_new_one_first() {
    let mut world = World::with(4, adjust);
    world.initiate(A);
    world.settle();
    let old = world.only(A).spi;
    redirect(&mut world, ELSEWHERE);
    // The old one's Delete is answered when it is repeated: our packets change over first.
    world.pass(Duration::from_secs(10));
    world.assert_up(1);
    assert_ne!(world.only(A).spi, old);
    assert_eq!(at(&world), ELSEWHERE);
    let order: Vec<_> = world.sides[A]
        .changes
        .iter()
        .map(|change| change.split(' ').next().unwrap())
        .collect();
    assert_eq!(order, ["install", "install", "remove"], "traffic never stops");
}

#[test]
fn takeovers_at_every_message_of_a_redirection_end_at_the_new_gateway() {
    for dying in [A, B] {
        for after in 0..10 {
            let mut world = World::with(20 + after, adjust);
            world.initiate(A);
            world.settle();
            redirect(&mut world, ELSEWHERE);
            for _ in 0..after {
                world.step();
            }
            world.take_over(dying);
            world.pass(Duration::from_secs(60));
            if world.status(A).is_empty() {
                // The new IKE SA was known to nobody else yet, and the old gateway has lost its patience.
                world.initiate(A);
                world.pass(Duration::from_secs(10));
            }
            world.assert_up(1);
        }
    }
}

#[test]
fn gateways_that_send_a_client_round_are_followed_five_times() {
    let mut world = World::with(5, adjust);
    world.initiate(A);
    world.settle();
    for turn in 0..7 {
        let to = if turn % 2 == 0 { ELSEWHERE } else { address(B) };
        redirect(&mut world, to);
        world.pass(Duration::from_secs(10));
        let expected = if turn < 5 { to } else { ELSEWHERE };
        let here: Vec<_> = world.status(A).iter().map(|sa| sa.remote.ip()).collect();
        assert!(
            here.contains(&expected),
            "turn {turn}: {here:?}\n{}",
            world.story()
        );
    }
    assert!(world.story().contains("send us round"), "{}", world.story());
}

/// Answers A's first message: go to the gateway of this name.
fn sent_to_a_name(seed: u64, name: &str, leads_to: &[IpAddr]) -> World {
    let mut world = World::with(seed, |side, connection| {
        adjust(side, connection);
        connection.names = vec![("gw2.example".to_owned(), leads_to.to_vec())];
    });
    world.initiate(A);
    let request = world.net.pop_front().unwrap();
    let message = Message::parse(&request.bytes).unwrap();
    let mut answer = message.header;
    answer.flags.response = true;
    answer.flags.initiator = false;
    // Type 3: a name (RFC 5685 8.2).
    let nonce = message.payloads.nonce().unwrap();
    let data = [&[3, name.len() as u8], name.as_bytes(), nonce].concat();
    let redirect = [ike_wire::Payload::Notify(Notify::new(NotifyType::REDIRECT, data))];
    world.deliver(Packet {
        to: A,
        local: (address(A), 500).into(),
        remote: (address(B), 500).into(),
        bytes: ike_wire::encode_message(&answer, &redirect).unwrap(),
    });
    world.settle();
    world
}

#[test]
fn a_gateway_may_send_us_to_a_name_of_the_configuration() {
    for name in ["gw2.example", "GW2.example."] {
        let world = sent_to_a_name(6, name, &["2001:db8::9".parse().unwrap(), address(B), ELSEWHERE]);
        world.assert_up(1);
        assert_eq!(at(&world), ELSEWHERE);
    }
}

#[test]
fn any_other_name_is_refused_and_the_text_says_what_to_do() {
    let world = sent_to_a_name(7, "evil.example\n", &[ELSEWHERE]);
    let text = world.event(A, EventKind::Trouble).to_string();
    assert!(
        text.contains(r#""evil.example\n", which is no `remote` of the connection"#)
            && text.contains("add it there"),
        "{text}"
    );
    assert!(world.status(A).is_empty(), "an attempt that has failed");
    // One that leads nowhere else.
    let world = sent_to_a_name(8, "gw2.example", &[address(B)]);
    let text = world.event(A, EventKind::Trouble).to_string();
    assert!(text.contains("leads to no other address"), "{text}");
    assert!(world.status(A).is_empty());
}
