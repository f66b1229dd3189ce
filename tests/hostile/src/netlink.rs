//! What the kernel says on netlink. Routes, links and addresses are taken apart by a library; what is made of them, and the answers that
//! are read by hand, are ours.

use crate::choices::Choices;
use agent::net::picture::{Facts, Picture, Watch};
use dataplane::netlink;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};

/// The first octet says what the others are: an answer, messages about links, or what the kernel says unasked.
pub fn netlink(octets: &[u8]) {
    let Some((kind, octets)) = octets.split_first() else {
        return;
    };
    match kind % 3 {
        0 => answer(octets),
        1 => links(octets),
        _ => watched(octets),
    }
}

fn answer(octets: &[u8]) {
    let whole = netlink::xdp_features(octets).is_ok();
    // They look for other attributes, and one of them behind a longer header.
    assert!(whole || netlink::family(octets).is_err());
    assert!(whole || netlink::xdp_mode(octets).is_err());
}

fn links(octets: &[u8]) {
    let mut parts = Vec::new();
    let bond = 9;
    if netlink::bond_parts(octets, bond, &mut parts).is_ok() {
        // Each part takes a header and two attributes.
        assert!(parts.len() <= octets.len() / 48);
    }
}

fn watch() -> Watch {
    Watch {
        interfaces: vec!["eth0".into(), "eth1".into()],
        addresses: vec![[192, 0, 2, 1].into()],
        destinations: vec![
            [203, 0, 113, 10].into(),
            "2001:db8::7".parse().expect("an address"),
        ],
    }
}

/// Messages, each behind its length: what is told is what has changed, and then nothing is left to tell.
fn watched(octets: &[u8]) {
    let mut choices = Choices::new(octets);
    let watch = watch();
    let things = watch.interfaces.len() + watch.addresses.len() + watch.destinations.len();
    let (mut picture, mut told) = (Picture::default(), Facts::as_it_ought_to_be(&watch));
    while !choices.rest().is_empty() {
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(choices.some()) else {
            continue;
        };
        if let NetlinkPayload::InnerMessage(message) = message.payload {
            picture.message(&message);
        }
        let facts = picture.facts(&watch);
        let events = facts.since(&told);
        assert!(events.len() <= things, "{events:?}");
        events.iter().for_each(|event| told.note(event));
        assert_eq!(told, facts);
    }
}
