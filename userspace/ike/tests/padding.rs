//! Traffic flow confidentiality (RFC 4303 2.7, RFC 7296 1.3.1): what the engine tells a peer about padding in each message that makes a
//! Child SA.

mod world;

use ike::{ChildConfig, Command};
use ike_wire::{Delete, ExchangeType, Notify, NotifyType, Payload, PayloadList};
use model::{EspSpi, SaMode, TrafficSelector};
use world::scripted::*;
use world::{B, address, config, connection, net};

fn refuses(payloads: &PayloadList) -> bool {
    payloads
        .notify(NotifyType::ESP_TFC_PADDING_NOT_SUPPORTED)
        .is_some()
}

fn one_address(address: std::net::IpAddr) -> TrafficSelector {
    TrafficSelector {
        first: address,
        last: address,
        ..net([0, 0, 0])
    }
}

/// What the engine says in IKE_AUTH, as it rekeys a Child SA, as a Child SA is rekeyed, and as it makes a further one.
fn said(tfc_padding: bool, mode: SaMode) -> [bool; 4] {
    let mut ours = connection(B);
    let (mut asks, mut notifies) = (selectors(), vec![]);
    if mode == SaMode::Transport {
        let (their, our) = (one_address(local().ip()), one_address(address(B)));
        let mut child = ChildConfig::new("c", vec![our.clone()], vec![their.clone()]);
        child.mode = mode;
        ours.children = vec![child];
        asks = [
            Payload::TsInitiator(vec![their].into()),
            Payload::TsResponder(vec![our].into()),
        ];
        notifies.push(Payload::Notify(Notify::status(NotifyType::USE_TRANSPORT_MODE)));
    }
    ours.children[0].tfc_padding = tfc_padding;
    let mut peer = Peer::with(config(vec![ours]), vec![]);
    let wanted = |spi: u32| {
        let mut payloads = vec![esp(spi, 20, Some(256))];
        payloads.extend(asks.clone());
        payloads.extend(notifies.clone());
        payloads
    };

    let mut payloads = peer.auth(b"a secret that both know");
    payloads.extend(wanted(0x1000));
    let first = peer.request(ExchangeType::IKE_AUTH, &payloads).unwrap();
    assert!(first.sa().is_some() && first.error().is_none(), "{first:?}");
    let spi_in = peer.world.spi_in(B);

    // Ours, which the peer puts off.
    peer.world.command(B, Command::RekeyChild { spi_in });
    let (header, rekey) = peer.expect_request();
    assert!(rekey.notify(NotifyType::REKEY_SA).is_some());
    peer.respond(
        header,
        &[Payload::Notify(Notify::status(NotifyType::TEMPORARY_FAILURE))],
    );

    let mut payloads = vec![
        Payload::Notify(Notify::about_esp(NotifyType::REKEY_SA, EspSpi(0x1000))),
        Payload::Nonce(vec![7; 32]),
    ];
    payloads.extend(wanted(0x2000));
    let rekeyed = peer.request(ExchangeType::CREATE_CHILD_SA, &payloads).unwrap();
    assert!(rekeyed.sa().is_some() && rekeyed.error().is_none(), "{rekeyed:?}");

    // The peer deletes both, and the engine is told to make one.
    for spi in [0x1000, 0x2000] {
        let delete = [Payload::Delete(Delete::Esp(vec![EspSpi(spi)]))];
        peer.request(ExchangeType::INFORMATIONAL, &delete).unwrap();
    }
    let (connection, child) = ("t".into(), "c".into());
    peer.world.command(B, Command::CreateChild { connection, child });
    let (_, further) = peer.expect_request();
    assert!(further.sa().is_some() && further.notify(NotifyType::REKEY_SA).is_none());

    [first, rekey, rekeyed, further].map(|payloads| refuses(&payloads))
}

#[test]
fn padding_is_refused_where_the_configuration_says_so_in_each_message_that_makes_a_child_sa() {
    assert_eq!(said(true, SaMode::Tunnel), [false; 4]);
    assert_eq!(said(false, SaMode::Tunnel), [true; 4]);
}

#[test]
fn padding_is_always_refused_in_transport_mode() {
    assert_eq!(said(true, SaMode::Transport), [true; 4]);
}
