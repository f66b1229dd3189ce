//! Virtual addresses, name servers and narrowed selectors for peers that ask for them in IKE_AUTH (RFC 7296 2.19, 3.15).

mod world;

use ike::{Connection, EventKind, Identity, Pool, PoolShare};
use ike_wire::{
    ConfigAttribute, ConfigAttributeType, ConfigType, Configuration, ExchangeType, Notify, NotifyType,
    Payload, PayloadList,
};
use model::{IkeSpi, TrafficSelector};
use std::collections::BTreeSet;
use std::net::IpAddr;
use world::scripted::{Peer, esp};
use world::*;

const PSK: &[u8] = b"a secret that both know";

fn pool(network: &str, len: u8) -> Pool {
    Pool::of_network(network, network.parse().unwrap(), len).unwrap()
}

/// Lets anyone in, with pools.
fn gateway(pools: Vec<Pool>) -> Connection {
    let mut connection = connection(B);
    connection.remote_id = None;
    connection.remotes.clear();
    connection.children[0].remote_ts = vec![
        everything("10.9.0.0", "10.9.255.255"),
        everything("fd00::", "fd00::ffff"),
    ];
    connection.pools = pools;
    connection.dns = vec![[10, 2, 0, 53].into(), "fd02::53".parse().unwrap()];
    connection.dns_domains = vec!["corp.example".to_owned()];
    connection
}

fn everything(first: &str, last: &str) -> TrafficSelector {
    TrafficSelector {
        first: first.parse().unwrap(),
        last: last.parse().unwrap(),
        protocol: 0,
        first_port: 0,
        last_port: 65535,
    }
}

fn ask(kinds: &[ConfigAttributeType]) -> Payload {
    let any = |kind: &ConfigAttributeType| ConfigAttribute::new(*kind, Vec::new());
    let attributes = kinds.iter().map(any).collect();
    Payload::Configuration(Configuration::new(ConfigType::CFG_REQUEST, attributes))
}

const V4: ConfigAttributeType = ConfigAttributeType::INTERNAL_IP4_ADDRESS;
const V6: ConfigAttributeType = ConfigAttributeType::INTERNAL_IP6_ADDRESS;

/// IKE_AUTH of a road warrior.
fn enter(peer: &mut Peer, name: &str, more: Vec<Payload>, spi: u32) -> PayloadList {
    let mut payloads = peer.auth_as(name, PSK);
    payloads.extend(more);
    payloads.push(esp(spi, 20, Some(256)));
    payloads.push(Payload::TsInitiator(
        vec![
            everything("0.0.0.0", "255.255.255.255"),
            everything("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ]
        .into(),
    ));
    payloads.push(Payload::TsResponder(vec![net([10, 2, 0])].into()));
    peer.request(ExchangeType::IKE_AUTH, &payloads)
        .expect("an answer")
}

fn addresses(answer: &PayloadList) -> Vec<IpAddr> {
    let cp = answer.configuration().expect("CP");
    assert_eq!(cp.kind, ConfigType::CFG_REPLY);
    [V4, V6]
        .iter()
        .flat_map(|kind| cp.of(*kind))
        .map(|attribute| attribute.as_address().expect("an address"))
        .collect()
}

/// A further initiator at the same engine.
fn next(peer: Peer, spi: u64) -> Peer {
    Peer::begin(peer.world, IkeSpi(spi), vec![])
}

#[test]
fn a_peer_gets_addresses_of_both_families_and_selectors_narrowed_to_them() {
    let gateway = gateway(vec![pool("10.9.0.0", 16), pool("fd00::", 112)]);
    let mut peer = Peer::with(config(vec![gateway]), vec![]);
    let domain = ConfigAttributeType::INTERNAL_DNS_DOMAIN;
    // HDR, SK {IDi, AUTH, CP(CFG_REQUEST), SAi2, TSi(any), TSr}
    let answer = enter(&mut peer, "alice", vec![ask(&[V4, V6, domain])], 0x1000);
    // HDR, SK {IDr, AUTH, CP(CFG_REPLY), SAr2, TSi(addresses), TSr}
    let given = addresses(&answer);
    assert_eq!(given.len(), 2, "{answer:?}");
    assert!(given[0].is_ipv4() && given[1].is_ipv6());
    let cp = answer.configuration().unwrap();
    let dns: Vec<_> = [
        ConfigAttributeType::INTERNAL_IP4_DNS,
        ConfigAttributeType::INTERNAL_IP6_DNS,
    ]
    .iter()
    .flat_map(|kind| cp.of(*kind))
    .filter_map(ConfigAttribute::as_address)
    .collect();
    assert_eq!(
        dns,
        [
            "10.2.0.53".parse::<IpAddr>().unwrap(),
            "fd02::53".parse().unwrap()
        ]
    );
    let domains: Vec<_> = cp.of(domain).map(|a| a.value.as_slice()).collect();
    assert_eq!(domains, [b"corp.example"]);
    let ts: BTreeSet<_> = answer
        .ts_i()
        .unwrap()
        .selectors
        .iter()
        .map(|ts| (ts.first, ts.last))
        .collect();
    assert_eq!(ts, given.iter().map(|address| (*address, *address)).collect());
    let sa = peer.world.only(B);
    assert_eq!(sa.virtual_addresses, given);
    assert_eq!(sa.children[0].ts_remote.len(), 2);
    let text = peer.world.event(B, EventKind::AddressGiven).to_string();
    assert!(
        text.contains("alice") && text.contains(&given[0].to_string()),
        "{text}"
    );
}

#[test]
fn an_identity_keeps_its_address_over_reconnections_rekeys_and_takeovers() {
    let mut peer = Peer::with(config(vec![gateway(vec![pool("10.9.0.0", 24)])]), vec![]);
    let first = addresses(&enter(&mut peer, "alice", vec![ask(&[V4])], 0x1000));
    // It comes again, with INITIAL_CONTACT.
    let again = vec![
        ask(&[V4]),
        Payload::Notify(Notify::status(NotifyType::INITIAL_CONTACT)),
    ];
    let mut peer = next(peer, 2);
    assert_eq!(
        addresses(&enter(&mut peer, "alice", again.clone(), 0x1001)),
        first
    );
    assert_eq!(peer.world.status(B).len(), 1);
    // A second device of hers, which does not say so, gets another one while the first is there.
    let mut peer = next(peer, 3);
    peer.address = "192.0.2.77:4500".parse().unwrap();
    let second = addresses(&enter(&mut peer, "alice", vec![ask(&[V4])], 0x1002));
    assert_ne!(second, first);
    // A taker knows who has what.
    peer.world.take_over(B);
    let mut peer = next(peer, 4);
    let other = addresses(&enter(&mut peer, "bob", vec![ask(&[V4])], 0x1003));
    assert!(other != first && other != second);
    let mut leases: Vec<_> = peer.world.sides[B].engine.leases().collect();
    leases.sort_unstable();
    let mut held = [first.clone(), second, other].concat();
    held.sort_unstable();
    assert_eq!(leases, held);
    // After everything was lost she gets it once more.
    peer.world.lose_everything(B);
    let mut peer = next(peer, 5);
    assert_eq!(addresses(&enter(&mut peer, "alice", again, 0x1004)), first);
}

/// ```text
///   alice --->  SK {IDi, AUTH, CP(REQUEST), ...}    <---  SK {..., CP(10.9.x.y)}      the first IKE SA
///   alice --->  the same, beside it                 <---  SK {..., CP(10.9.x.y)}      once with the address that she has, once without
///   alice --->  SK {D} on the first                 the address is still hers
/// ```
#[test]
fn a_peer_that_authenticates_anew_has_the_same_address_and_the_old_ike_sas_end_does_not_free_it() {
    for asks_for_it in [true, false] {
        let mut peer = Peer::with(config(vec![gateway(vec![pool("10.9.0.0", 29)])]), vec![]);
        let first = addresses(&enter(&mut peer, "alice", vec![ask(&[V4])], 0x1000));
        let (spi, keys, spi_r, iv) = (peer.spi, peer.keys.clone(), peer.spi_r, peer.iv);
        let wish = match asks_for_it {
            false => ask(&[V4]),
            true => Payload::Configuration(Configuration::new(
                ConfigType::CFG_REQUEST,
                vec![ConfigAttribute::address(first[0])],
            )),
        };
        let mut peer = next(peer, 2);
        if asks_for_it {
            // She may have moved meanwhile.
            peer.address = "192.0.2.77:4500".parse().unwrap();
        }
        assert_eq!(addresses(&enter(&mut peer, "alice", vec![wish], 0x1001)), first);
        assert_eq!(peer.world.status(B).len(), 2);
        let new = (peer.spi, peer.keys.clone(), peer.spi_r, peer.next, peer.iv);
        // The old one again: its next Message ID is 2.
        (peer.spi, peer.keys, peer.spi_r, peer.next, peer.iv) = (spi, keys, spi_r, 2, iv);
        let delete = [Payload::Delete(ike_wire::Delete::Ike)];
        // Our packets change over first; the repetition is answered.
        assert!(peer.request(ExchangeType::INFORMATIONAL, &delete).is_none());
        assert!(peer.request(ExchangeType::INFORMATIONAL, &delete).is_some());
        assert!(peer.world.has_event(B, EventKind::Reauthenticated));
        assert!(
            !peer.world.has_event(B, EventKind::PeerClosed) && !peer.world.has_event(B, EventKind::IkeSaDown)
        );
        (peer.spi, peer.keys, peer.spi_r, peer.next, peer.iv) = new;
        let leases: Vec<_> = peer.world.sides[B].engine.leases().collect();
        assert_eq!(leases, first, "still hers");
        // Nobody else gets it, whatever he asks for.
        let wish = ConfigAttribute::address(first[0]);
        let wish = Payload::Configuration(Configuration::new(ConfigType::CFG_REQUEST, vec![wish]));
        let mut peer = next(peer, 3);
        assert_ne!(addresses(&enter(&mut peer, "bob", vec![wish], 0x1002)), first);
    }
}

#[test]
fn an_exhausted_pool_is_named_and_the_ike_sa_stays_without_a_child() {
    let mut peer = Peer::with(config(vec![gateway(vec![pool("10.9.0.4", 30)])]), vec![]);
    for (number, name) in ["alice", "bob"].iter().enumerate() {
        enter(&mut peer, name, vec![ask(&[V4])], 0x1000 + number as u32);
        peer = next(peer, 10 + number as u64);
    }
    let answer = enter(&mut peer, "carol", vec![ask(&[V4])], 0x1010);
    assert!(answer.auth().is_some(), "the IKE SA is up (RFC 7296 3.15.4)");
    assert!(answer.notify(NotifyType::INTERNAL_ADDRESS_FAILURE).is_some() && answer.sa().is_none());
    let text = peer.world.event(B, EventKind::AddressFailure).to_string();
    assert!(text.contains("10.9.0.4") && text.contains("enlarge"), "{text}");
    // One that goes makes room.
    let mut gone = next(peer, 20);
    let delete = [Payload::Delete(ike_wire::Delete::Ike)];
    let again = vec![
        ask(&[V4]),
        Payload::Notify(Notify::status(NotifyType::INITIAL_CONTACT)),
    ];
    enter(&mut gone, "bob", again, 0x1020);
    assert!(gone.request(ExchangeType::INFORMATIONAL, &delete).is_some());
    let mut peer = next(gone, 21);
    assert_eq!(
        addresses(&enter(&mut peer, "dave", vec![ask(&[V4])], 0x1021)).len(),
        1
    );
}

#[test]
fn a_family_without_a_pool_is_left_out_and_a_peer_without_a_request_is_told() {
    let mut peer = Peer::with(config(vec![gateway(vec![pool("10.9.0.0", 24)])]), vec![]);
    assert_eq!(
        addresses(&enter(&mut peer, "alice", vec![ask(&[V4, V6])], 0x1000)).len(),
        1
    );
    let mut peer = next(peer, 2);
    let answer = enter(&mut peer, "bob", vec![], 0x1001);
    assert!(answer.notify(NotifyType::FAILED_CP_REQUIRED).is_some() && answer.sa().is_none());
    let text = peer.world.event(B, EventKind::ChildFailed).to_string();
    assert!(text.contains("vips"), "{text}");
    let mut peer = next(peer, 3);
    let answer = enter(&mut peer, "carol", vec![ask(&[V6])], 0x1002);
    assert!(answer.notify(NotifyType::INTERNAL_ADDRESS_FAILURE).is_some());
}

#[test]
fn members_give_addresses_of_their_own_groups_only_and_wait_while_they_adopt() {
    let mut seen = BTreeSet::new();
    for group in 0..4 {
        let mut peer = Peer::with(config(vec![gateway(vec![pool("10.9.0.0", 28)])]), vec![]);
        peer.world.sides[B].around.pool_share = Some(PoolShare { group, of: 4 });
        for spi in 0..3 {
            let answer = enter(&mut peer, &format!("user{spi}"), vec![ask(&[V4])], 0x1000 + spi);
            for address in addresses(&answer) {
                assert!(seen.insert(address), "{address} was given away by two members");
            }
            peer = next(peer, 100 + u64::from(spi));
        }
    }
    assert_eq!(seen.len(), 12);
    // Not all IKE SAs are here yet: silence, and the repetition is answered.
    let mut peer = Peer::with(config(vec![gateway(vec![pool("10.9.0.0", 28)])]), vec![]);
    peer.world.sides[B].around.pool_share = None;
    let mut payloads = peer.auth_as("alice", PSK);
    payloads.push(ask(&[V4]));
    assert!(peer.request(ExchangeType::IKE_AUTH, &payloads).is_none());
    peer.world.sides[B].around.pool_share = Some(PoolShare::WHOLE);
    assert_eq!(
        addresses(&enter(&mut peer, "alice", vec![ask(&[V4])], 0x1000)).len(),
        1
    );
}

#[test]
fn what_the_peer_wants_in_a_child_beyond_its_address_is_cut_off() {
    let mut peer = Peer::with(config(vec![gateway(vec![pool("10.9.0.0", 24)])]), vec![]);
    let own = addresses(&enter(&mut peer, "alice", vec![ask(&[V4])], 0x1000));
    // A further Child SA for somebody else's address.
    let payloads = |ts: TrafficSelector| {
        [
            esp(0x1001, 20, Some(256)),
            Payload::Nonce(vec![7; 32]),
            Payload::TsInitiator(vec![ts].into()),
            Payload::TsResponder(vec![net([10, 2, 0])].into()),
        ]
    };
    let foreign = if own == ["10.9.0.1".parse::<IpAddr>().unwrap()] {
        "10.9.0.2"
    } else {
        "10.9.0.1"
    };
    let answer = peer
        .request(
            ExchangeType::CREATE_CHILD_SA,
            &payloads(everything(foreign, foreign)),
        )
        .unwrap();
    assert!(answer.notify(NotifyType::TS_UNACCEPTABLE).is_some(), "{answer:?}");
    let answer = peer
        .request(
            ExchangeType::CREATE_CHILD_SA,
            &payloads(everything("10.9.0.0", "10.9.0.255")),
        )
        .unwrap();
    let ts = &answer.ts_i().expect("TSi").selectors;
    assert_eq!((ts[0].first, ts[0].last, ts.len()), (own[0], own[0], 1));
    assert_eq!(
        Identity::parse("alice").to_string(),
        peer.world.only(B).remote_id.unwrap()
    );
}
