//! Resumption: derivation of the new keys by RFC 5723 5.1 computed apart, and tickets under attack.

mod common;

use common::hex;
use crypto::ticket::{TICKET_KEY_PERIOD, TICKET_MAX, TICKET_OVERHEAD, TicketError, open_ticket, seal_ticket};
use crypto::{
    AuthInput, IkeCipher, IkeKeys, KeyInputs, Prf, hmac_sha256, resumption_auth, verify_resumption_auth,
};
use model::{IkeSpi, SecretBytes};
use proptest::prelude::*;

const DAY: u64 = TICKET_KEY_PERIOD;
/// A time in the middle of a period.
const NOON: u64 = 20_000 * DAY + DAY / 2;

fn secret() -> SecretBytes {
    SecretBytes::new(vec![0x42; 32])
}

fn sealed(now: u64, state: &[u8]) -> Vec<u8> {
    let mut next = 0;
    let mut random = |out: &mut [u8]| {
        out.fill_with(|| {
            next += 1;
            next
        })
    };
    seal_ticket(&secret(), now, &mut random, &SecretBytes::new(state.to_vec())).unwrap()
}

#[test]
fn keys_of_a_resumed_ike_sa_follow_rfc_5723_5_1() {
    let sk_d = SecretBytes::new((0..32).collect());
    let (nonce_i, nonce_r) = (vec![0xaa; 16], vec![0xbb; 24]);
    let inputs = KeyInputs {
        nonce_i: &nonce_i,
        nonce_r: &nonce_r,
        spi_i: IkeSpi(0x0102_0304_0506_0708),
        spi_r: IkeSpi(0x1112_1314_1516_1718),
    };
    let keys = IkeKeys::resume(Prf::HmacSha256, IkeCipher::Aes128Gcm16, inputs, &sk_d).unwrap();
    // SKEYSEED = prf(SK_d_old, "Resumption" | Ni | Nr): 10 characters, no NUL.
    let label = hex("52 65 73 75 6d 70 74 69 6f 6e");
    let skeyseed = hmac_sha256(sk_d.expose(), &[&label, &nonce_i, &nonce_r]);
    // T1 = prf(SKEYSEED, Ni | Nr | SPIi | SPIr | 0x01) is SK_d.
    let spis = hex("0102030405060708 1112131415161718");
    let t1 = hmac_sha256(&skeyseed, &[&nonce_i, &nonce_r, &spis, &[1]]);
    assert_eq!(keys.sk_d.expose(), t1);
    let t2 = hmac_sha256(&skeyseed, &[&t1, &nonce_i, &nonce_r, &spis, &[2]]);
    assert_eq!(keys.sk_ei.expose(), &t2[..20]);
    assert!(keys.sk_ai.is_empty());
}

#[test]
fn auth_of_a_resumed_ike_sa_is_keyed_with_sk_p_itself() {
    let sk_p = SecretBytes::new(vec![5; 32]);
    let input = AuthInput {
        message: b"message",
        nonce: b"other's nonce",
        sk_p: &sk_p,
        id_body: b"\x02\0\0\0a",
        intermediate: &[],
    };
    let maced = hmac_sha256(&[5; 32], &[b"\x02\0\0\0a"]);
    let expected = hmac_sha256(&[5; 32], &[b"message", b"other's nonce", &maced]);
    let auth = resumption_auth(Prf::HmacSha256, input);
    assert_eq!(auth, expected);
    assert!(verify_resumption_auth(Prf::HmacSha256, input, &auth));
    for len in 0..auth.len() {
        assert!(!verify_resumption_auth(Prf::HmacSha256, input, &auth[..len]));
    }
}

#[test]
fn a_ticket_is_read_in_its_period_and_the_next() {
    let ticket = sealed(NOON, b"state");
    assert_eq!(ticket.len(), 5 + TICKET_OVERHEAD);
    let begin = NOON - DAY / 2;
    let rows = [
        (begin - 301, false), // another member's clock is that far behind
        (begin - 300, true),
        (begin, true),
        (NOON, true),
        (begin + 2 * DAY - 1, true),
        (begin + 2 * DAY, false),
        (0, false),
        (u64::MAX, false),
    ];
    for (now, readable) in rows {
        let result = open_ticket(&secret(), now, &ticket);
        match readable {
            true => assert_eq!(result.ok().unwrap().expose(), b"state"),
            false => assert_eq!(result.err(), Some(TicketError::UnknownKey), "{now}"),
        }
    }
}

#[test]
fn every_truncation_and_every_flipped_bit_is_refused() {
    let ticket = sealed(NOON, b"the state of an IKE SA");
    for len in 0..ticket.len() {
        let error = open_ticket(&secret(), NOON, &ticket[..len]).err();
        let expected = if len < TICKET_OVERHEAD {
            TicketError::Format
        } else {
            TicketError::Integrity
        };
        assert_eq!(error, Some(expected), "{len}");
    }
    for bit in 0..ticket.len() * 8 {
        let mut bad = ticket.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(open_ticket(&secret(), NOON, &bad).is_err(), "bit {bit}");
    }
    let other = SecretBytes::new(vec![0x43; 32]);
    assert_eq!(
        open_ticket(&other, NOON, &ticket).err(),
        Some(TicketError::Integrity)
    );
    let long = [&ticket[..], &vec![0; TICKET_MAX]].concat();
    assert_eq!(
        open_ticket(&secret(), NOON, &long).err(),
        Some(TicketError::Format)
    );
}

#[test]
fn equal_states_make_different_tickets_and_show_nothing_of_the_state() {
    let mut octet = 0u8;
    let mut random = |out: &mut [u8]| {
        octet += 1;
        out.fill(octet)
    };
    let state = SecretBytes::new(vec![0x77; 64]);
    let one = seal_ticket(&secret(), NOON, &mut random, &state).unwrap();
    let two = seal_ticket(&secret(), NOON, &mut random, &state).unwrap();
    assert_ne!(one[28..], two[28..]);
    assert!(!one.windows(8).any(|octets| octets == [0x77; 8]));
}

proptest! {
    #[test]
    fn arbitrary_octets_are_no_ticket(octets in proptest::collection::vec(any::<u8>(), 0..300), now in any::<u64>()) {
        prop_assert!(open_ticket(&secret(), now, &octets).is_err());
        let mut close = sealed(NOON, b"");
        close.truncate(12);
        close.extend(octets);
        prop_assert!(open_ticket(&secret(), NOON, &close).is_err());
    }
}
