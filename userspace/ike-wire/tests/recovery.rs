//! Notifications of the recovery extensions: layouts as the RFCs draw them, and every wrong length.

use ike_wire::*;

/// The notification after a trip over the wire.
fn over_the_wire(notify: Notify) -> Notify {
    let (first, bytes) = encode_chain(&[Payload::Notify(notify)]).unwrap();
    let list = parse_chain(first, &bytes).unwrap();
    list.notifies().next().unwrap().clone()
}

/// The encoded payload.
fn encoded(notify: Notify) -> Vec<u8> {
    encode_chain(&[Payload::Notify(notify)]).unwrap().1
}

#[test]
fn a_qcd_token_stands_as_rfc_6290_4_1_draws_it() {
    let bytes = encoded(Notify::qcd_token(&[0xa5; 16]));
    let drawn = [&[0, 0, 0, 24][..], &[1, 0, 0x40, 0x23][..], &[0xa5; 16][..]].concat();
    assert_eq!(bytes, drawn);
}

#[test]
fn qcd_tokens_have_16_to_128_octets() {
    for len in 0..200 {
        let token = vec![7; len];
        let notify = over_the_wire(Notify::qcd_token(&token));
        let allowed = (16..=128).contains(&len);
        assert_eq!(notify.as_qcd_token(), allowed.then_some(&token[..]), "{len}");
    }
    assert_eq!(Notify::new(NotifyType::COOKIE, vec![1; 32]).as_qcd_token(), None);
}

#[test]
fn tickets_stand_as_rfc_5723_7_draws_them() {
    let bytes = encoded(Notify::ticket_lt_opaque(0x0001_0203, b"tick"));
    let drawn = [&[0, 0, 0, 16][..], &[0, 0, 0x40, 0x19], &[0, 1, 2, 3], b"tick"].concat();
    assert_eq!(bytes, drawn);
    let bytes = encoded(Notify::ticket_opaque(b"tick"));
    assert_eq!(bytes, [&[0, 0, 0, 12][..], &[0, 0, 0x40, 0x1d], b"tick"].concat());
}

#[test]
fn a_ticket_without_lifetime_or_without_octets_is_none() {
    for len in 0..12 {
        let data: Vec<u8> = (1..=len).collect();
        let given = over_the_wire(Notify::new(NotifyType::TICKET_LT_OPAQUE, data.clone()));
        let expected = (len > 4).then(|| (0x0102_0304, &data[4..]));
        assert_eq!(given.as_ticket_lt_opaque(), expected, "{len}");
        assert_eq!(given.as_ticket_opaque(), None);
        let shown = over_the_wire(Notify::new(NotifyType::TICKET_OPAQUE, data.clone()));
        assert_eq!(shown.as_ticket_opaque(), (len > 0).then_some(&data[..]), "{len}");
        assert_eq!(shown.as_ticket_lt_opaque(), None);
    }
}

#[test]
fn synchronisation_stands_as_rfc_6311_draws_it() {
    let sync = MessageIdSync {
        nonce: 0x0102_0304,
        expected_send: 0x1112_1314,
        expected_recv: 0x2122_2324,
    };
    let drawn = [
        &[0, 0, 0, 20][..],
        &[0, 0, 0x40, 0x26],
        &[1, 2, 3, 4],
        &[0x11, 0x12, 0x13, 0x14],
        &[0x21, 0x22, 0x23, 0x24],
    ];
    assert_eq!(encoded(Notify::message_id_sync(sync)), drawn.concat());
    let short = encoded(Notify::replay_counter_sync(CounterDelta::Short(0x0102_0304)));
    assert_eq!(short, [0, 0, 0, 12, 0, 0, 0x40, 0x27, 1, 2, 3, 4]);
    let long = encoded(Notify::replay_counter_sync(CounterDelta::Extended(
        0x0102_0304_0506_0708,
    )));
    assert_eq!(long, [0, 0, 0, 16, 0, 0, 0x40, 0x27, 1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn synchronisation_of_any_other_length_is_none() {
    for len in 0..24u8 {
        let data: Vec<u8> = (0..len).collect();
        let sync = over_the_wire(Notify::new(NotifyType::IKEV2_MESSAGE_ID_SYNC, data.clone()));
        assert_eq!(sync.as_message_id_sync().is_some(), len == 12, "{len}");
        assert_eq!(sync.as_replay_counter_sync(), None);
        let counter = over_the_wire(Notify::new(NotifyType::IPSEC_REPLAY_COUNTER_SYNC, data));
        let expected = match len {
            4 => Some(CounterDelta::Short(0x0001_0203)),
            8 => Some(CounterDelta::Extended(0x0001_0203_0405_0607)),
            _ => None,
        };
        assert_eq!(counter.as_replay_counter_sync(), expected, "{len}");
        assert_eq!(counter.as_message_id_sync(), None);
    }
}
