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
