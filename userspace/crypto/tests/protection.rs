//! SK and ESP protection against an independent implementation, and against damage.

mod common;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use crypto::{CryptoError, EspKey, IkeCipher, Integrity, Prf, SkKey, child_keymat};
use model::{EspSpi, EspSuite, SecretBytes};
use proptest::prelude::*;

const CIPHERS: [IkeCipher; 9] = [
    IkeCipher::Aes128Gcm16,
    IkeCipher::Aes256Gcm16,
    IkeCipher::ChaCha20Poly1305,
    IkeCipher::Aes128Cbc(Integrity::HmacSha256_128),
    IkeCipher::Aes128Cbc(Integrity::HmacSha384_192),
    IkeCipher::Aes128Cbc(Integrity::HmacSha512_256),
    IkeCipher::Aes256Cbc(Integrity::HmacSha256_128),
    IkeCipher::Aes256Cbc(Integrity::HmacSha384_192),
    IkeCipher::Aes256Cbc(Integrity::HmacSha512_256),
];
const SUITES: [EspSuite; 3] = [
    EspSuite::Aes128Gcm16,
    EspSuite::Aes256Gcm16,
    EspSuite::ChaCha20Poly1305,
];

/// The oracle: RustCrypto's AEADs with key, 12-octet nonce, associated data and plaintext.
fn oracle_seal(key: &[u8], nonce: &[u8], aad: &[u8], msg: &[u8], chacha: bool) -> Vec<u8> {
    let nonce: [u8; 12] = nonce.try_into().unwrap();
    let payload = Payload { msg, aad };
    match (key.len(), chacha) {
        (16, _) => aes_gcm::Aes128Gcm::new_from_slice(key)
            .unwrap()
            .encrypt(&nonce.into(), payload),
        (_, false) => aes_gcm::Aes256Gcm::new_from_slice(key)
            .unwrap()
            .encrypt(&nonce.into(), payload),
        (_, true) => chacha20poly1305::ChaCha20Poly1305::new_from_slice(key)
            .unwrap()
            .encrypt(&nonce.into(), payload),
    }
    .unwrap()
}

proptest! {
    #[test]
    fn aead_sk_payloads_equal_those_of_another_implementation(
        cipher in 0usize..3,
        key in prop::collection::vec(any::<u8>(), 36),
        iv in any::<[u8; 8]>(),
        prefix in prop::collection::vec(any::<u8>(), 0..48),
        inner in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let cipher = CIPHERS[cipher];
        let sk_e = &key[..cipher.encryption_key_len()];
        let (key, salt) = sk_e.split_at(sk_e.len() - 4);
        let chacha = cipher == IkeCipher::ChaCha20Poly1305;
        let sealed = SkKey::new(cipher, sk_e, &[]).unwrap().seal(&prefix, &iv, &inner).unwrap();
        // No padding, Pad Length 0 (RFC 5282 3).
        let expected = oracle_seal(key, &[salt, &iv].concat(), &prefix, &[&inner[..], &[0]].concat(), chacha);
        prop_assert_eq!(&sealed[..8], &iv);
        prop_assert_eq!(&sealed[8..], &expected);
    }

    #[test]
    fn esp_packets_equal_those_of_another_implementation(
        suite in 0usize..3,
        key in prop::collection::vec(any::<u8>(), 36),
        spi in any::<u32>(), sequence in any::<u64>(), esn in any::<bool>(),
        iv in any::<[u8; 8]>(),
        payload in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let suite = SUITES[suite];
        let key = &key[..suite.material_len()];
        let esp = EspKey::new(suite, &SecretBytes::new(key.to_vec())).unwrap();
        let packet = esp.seal(EspSpi(spi), sequence, esn, iv, 4, &payload).unwrap();

        let pad: &[u8] = [&[0, 4][..], &[1, 1, 4], &[1, 2, 2, 4], &[1, 2, 3, 3, 4]]
            .into_iter()
            .find(|trailer| (payload.len() + trailer.len()) % 4 == 0)
            .unwrap();
        let aad = if esn {
            [&spi.to_be_bytes()[..], &sequence.to_be_bytes()].concat()
        } else {
            [&spi.to_be_bytes()[..], &(sequence as u32).to_be_bytes()].concat()
        };
        let (cipher_key, salt) = key.split_at(suite.key_len());
        let chacha = suite == EspSuite::ChaCha20Poly1305;
        let text = oracle_seal(cipher_key, &[salt, &iv].concat(), &aad, &[&payload[..], pad].concat(), chacha);
        prop_assert_eq!(&packet[8..16], &iv);
        prop_assert_eq!(&packet[16..], &text);

        let high = esn.then_some((sequence >> 32) as u32);
        let opened = esp.open(&packet, high).unwrap();
        let expected_sequence = if esn { sequence } else { sequence & 0xffff_ffff };
        prop_assert_eq!((opened.spi.0, opened.sequence, opened.next_header), (spi, expected_sequence, 4));
        prop_assert_eq!(opened.payload, payload);
    }

    /// RFC 3602 and RFC 4868 by the parts: the IV is the nonce under the cipher alone, the ICV an HMAC over all before it and the
    /// upper half of the number (RFC 4303 2.8.1).
    #[test]
    fn esp_packets_with_aes_cbc_are_chained_and_end_with_their_mac(
        long in any::<bool>(),
        material in prop::collection::vec(any::<u8>(), 64),
        spi in any::<u32>(), sequence in any::<u64>(), esn in any::<bool>(),
        nonce in any::<[u8; 8]>(),
        payload in prop::collection::vec(any::<u8>(), 0..200),
        damage in any::<prop::sample::Index>(), bit in 0u8..8,
    ) {
        let suite = if long { EspSuite::Aes256CbcSha256 } else { EspSuite::Aes128CbcSha256 };
        let material = &material[..suite.material_len()];
        let (cipher_key, mac_key) = material.split_at(suite.key_len());
        let esp = EspKey::new(suite, &SecretBytes::new(material.to_vec())).unwrap();
        let packet = esp.seal(EspSpi(spi), sequence, esn, nonce, 4, &payload).unwrap();

        let mut text = payload.clone();
        let pad = (payload.len() + 2).next_multiple_of(16) - payload.len() - 2;
        text.extend(1..=pad as u8);
        text.extend([pad as u8, 4]);
        // An SK payload has the chain and no more: its trailer is one octet, which is left out with the block that it opens.
        let cipher = if long {
            IkeCipher::Aes256Cbc(Integrity::HmacSha256_128)
        } else {
            IkeCipher::Aes128Cbc(Integrity::HmacSha256_128)
        };
        let chain = SkKey::new(cipher, cipher_key, mac_key).unwrap();
        let mut block = [0; 16];
        block[..8].copy_from_slice(&nonce);
        let iv = chain.seal(&[], &[0; 16], &block).unwrap()[16..32].to_vec();
        let sealed = chain.seal(&[], &iv, &text).unwrap()[16..16 + text.len()].to_vec();
        let (covered, icv) = packet.split_at(packet.len() - 16);
        let header = [spi.to_be_bytes(), (sequence as u32).to_be_bytes()].concat();
        prop_assert_eq!(covered, [header, iv, sealed].concat());
        let high = if esn { ((sequence >> 32) as u32).to_be_bytes().to_vec() } else { Vec::new() };
        prop_assert_eq!(icv, &crypto::hmac_sha256(mac_key, &[covered, &high])[..16]);

        let high = esn.then_some((sequence >> 32) as u32);
        let opened = esp.open(&packet, high).unwrap();
        prop_assert_eq!((opened.spi.0, opened.next_header), (spi, 4));
        prop_assert_eq!(opened.payload, payload);
        let other = if esn { None } else { Some(0) };
        prop_assert_eq!(esp.open(&packet, other).err(), Some(CryptoError::Integrity));
        let mut altered = packet;
        let at = damage.index(altered.len());
        altered[at] ^= 1 << bit;
        prop_assert_eq!(esp.open(&altered, high).err(), Some(CryptoError::Integrity));
    }

    #[test]
    fn what_is_sealed_opens_and_any_flipped_bit_is_noticed(
        cipher in 0usize..CIPHERS.len(),
        octet in any::<u8>(),
        prefix in prop::collection::vec(any::<u8>(), 1..48),
        inner in prop::collection::vec(any::<u8>(), 0..100),
        damage in any::<prop::sample::Index>(), bit in 0u8..8,
    ) {
        let cipher = CIPHERS[cipher];
        let key = key(cipher, octet);
        let iv = vec![0x5a; cipher.iv_len()];
        let mut sealed = key.seal(&prefix, &iv, &inner).unwrap();
        prop_assert_eq!(sealed.len(), cipher.sealed_len(inner.len()));
        prop_assert_eq!(key.open(&prefix, &sealed).unwrap(), inner);

        let mut other_prefix = prefix.clone();
        let at = damage.index(other_prefix.len());
        other_prefix[at] ^= 1 << bit;
        prop_assert_eq!(key.open(&other_prefix, &sealed).err(), Some(CryptoError::Integrity));

        let at = damage.index(sealed.len());
        sealed[at] ^= 1 << bit;
        prop_assert_eq!(key.open(&prefix, &sealed).err(), Some(CryptoError::Integrity));
    }

    /// RFC 7296 2.17: from the initiator first, of each direction the encryption key, then the integrity key.
    #[test]
    fn keying_material_is_cut_in_the_order_of_the_rfc(octets in prop::collection::vec(any::<u8>(), 32..64)) {
        let (sk_d, nonces) = (SecretBytes::new(octets.clone()), octets.split_at(16));
        for suite in [EspSuite::Aes128Gcm16, EspSuite::Aes128CbcSha256, EspSuite::Aes256CbcSha256] {
            let keys = child_keymat(Prf::HmacSha256, &sk_d, None, nonces.0, nonces.1, &[], suite).unwrap();
            let len = suite.material_len();
            let all = Prf::HmacSha256.plus(&octets, &[nonces.0, nonces.1], 2 * len).unwrap();
            prop_assert_eq!(keys.initiator.expose(), &all.expose()[..len]);
            prop_assert_eq!(keys.responder.expose(), &all.expose()[len..]);
        }
        prop_assert_eq!(EspSuite::Aes128CbcSha256.material_len(), 16 + 32);
        prop_assert_eq!(EspSuite::Aes256CbcSha256.material_len(), 32 + 32);
    }

    #[test]
    fn garbage_never_opens_and_never_panics(
        cipher in 0usize..CIPHERS.len(),
        garbage in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        prop_assert!(key(CIPHERS[cipher], 1).open(b"prefix", &garbage).is_err());
        let esp = EspKey::new(EspSuite::Aes128Gcm16, &SecretBytes::new(vec![7; 20])).unwrap();
        prop_assert!(esp.open(&garbage, None).is_err());
    }
}

#[test]
fn cbc_pads_to_whole_blocks_and_authenticates_prefix_iv_and_ciphertext() {
    let cipher = IkeCipher::Aes256Cbc(Integrity::HmacSha256_128);
    // The first block of ciphertext shows the cipher alone: NIST SP 800-38A F.2.5, CBC-AES256.Encrypt.
    let sk_e = common::hex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4");
    let iv = common::hex("000102030405060708090a0b0c0d0e0f");
    let inner = common::hex("6bc1bee22e409f96e93d7e117393172a");
    let key = SkKey::new(cipher, &sk_e, &[9; 32]).unwrap();
    let sealed = key.seal(b"prefix", &iv, &inner).unwrap();
    assert_eq!(sealed.len(), 16 + 32 + 16);
    assert_eq!(&sealed[..16], iv);
    assert_eq!(&sealed[16..32], common::hex("f58c4c04d6e5f1ba779eabfb5f7bfbd6"));
    let tag = crypto::hmac_sha256(&[9; 32], &[b"prefix", &sealed[..48]]);
    assert_eq!(&sealed[48..], &tag[..16]);
}

#[test]
fn keys_and_ivs_of_the_wrong_length_are_refused() {
    assert!(
        SkKey::new(IkeCipher::Aes128Gcm16, &[0; 16], &[]).is_err(),
        "salt is missing"
    );
    assert!(
        SkKey::new(IkeCipher::Aes128Gcm16, &[0; 20], &[0; 32]).is_err(),
        "AEAD has no SK_a"
    );
    assert!(SkKey::new(IkeCipher::Aes128Cbc(Integrity::HmacSha256_128), &[0; 16], &[]).is_err());
    assert!(key(IkeCipher::Aes128Gcm16, 0).seal(b"", &[0; 16], b"").is_err());
    assert!(key(CIPHERS[3], 0).seal(b"", &[0; 8], b"").is_err());
    assert!(EspKey::new(EspSuite::Aes256Gcm16, &SecretBytes::new(vec![0; 32])).is_err());
    assert!(EspKey::new(EspSuite::Aes256CbcSha256, &SecretBytes::new(vec![0; 36])).is_err());
}

#[test]
fn transforms_name_exactly_the_ciphers_offered() {
    for cipher in CIPHERS {
        let (id, bits) = cipher.transform();
        let integrity = cipher.integrity().map(Integrity::transform_id);
        assert_eq!(IkeCipher::from_transforms(id, bits, integrity), Some(cipher));
    }
    assert_eq!(
        IkeCipher::from_transforms(20, Some(256), Some(12)),
        None,
        "AEAD with an integrity algorithm"
    );
    assert_eq!(
        IkeCipher::from_transforms(20, None, None),
        None,
        "AES without key length"
    );
    assert_eq!(
        IkeCipher::from_transforms(28, Some(256), None),
        None,
        "ChaCha20 with key length"
    );
    assert_eq!(
        IkeCipher::from_transforms(12, Some(256), None),
        None,
        "CBC without integrity"
    );
}

fn key(cipher: IkeCipher, octet: u8) -> SkKey {
    SkKey::new(
        cipher,
        &vec![octet; cipher.encryption_key_len()],
        &vec![octet; cipher.integrity_key_len()],
    )
    .unwrap()
}
