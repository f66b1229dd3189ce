//! Vectors printed in RFCs.

mod common;

use common::hex;
use crypto::{CryptoError, DhGroup, EspKey, IkeCipher, Prf, SkKey};
use model::{EspSpi, EspSuite, SecretBytes};

#[test]
fn hmac_sha2_gives_the_tags_of_rfc_4231() {
    // (case, key, data, SHA-256, SHA-384, SHA-512)
    let cases = [
        (
            "4.2",
            [0x0b; 20].to_vec(),
            b"Hi There".as_slice(),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
            "afd03944d84895626b0825f4ab46907f15f9dadbe4101ec682aa034c7cebc59cfaea9ea9076ede7f4af152e8b2fa9cb6",
            "87aa7cdea5ef619d4ff0b4241a1d6cb02379f4e2ce4ec2787ad0b30545e17cde
             daa833b7d6b8a702038b274eaea3f4e4be9d914eeb61f1702e696c203a126854",
        ),
        (
            "4.3",
            b"Jefe".to_vec(),
            b"what do ya want for nothing?".as_slice(),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649",
            "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea250554
             9758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737",
        ),
    ];
    for (case, key, data, sha256, sha384, sha512) in cases {
        for (prf, tag) in [
            (Prf::HmacSha256, sha256),
            (Prf::HmacSha384, sha384),
            (Prf::HmacSha512, sha512),
        ] {
            assert_eq!(prf.compute(&key, &[data]).expose(), hex(tag), "{case} {prf:?}");
            let (head, tail) = data.split_at(3);
            assert_eq!(
                prf.compute(&key, &[head, tail]).expose(),
                hex(tag),
                "{case} {prf:?} in two parts"
            );
        }
    }
}

#[test]
fn prf_plus_chains_blocks_as_rfc_7296_2_13_says() {
    // T1 = prf (K, S | 0x01), T2 = prf (K, T1 | S | 0x02), T3 = prf (K, T2 | S | 0x03), written out by hand.
    let (prf, key, seed) = (Prf::HmacSha256, b"key".as_slice(), b"seed".as_slice());
    let t1 = prf.compute(key, &[seed, &[1]]);
    let t2 = prf.compute(key, &[t1.expose(), seed, &[2]]);
    let t3 = prf.compute(key, &[t2.expose(), seed, &[3]]);
    let all = [t1.expose(), t2.expose(), t3.expose()].concat();
    for len in [0, 1, 31, 32, 33, 64, 65, 96] {
        let out = prf.plus(key, &[b"se", b"ed"], len).unwrap();
        assert_eq!(out.expose(), &all[..len], "{len} octets");
    }
    assert_eq!(prf.plus(key, &[seed], 255 * 32).unwrap().len(), 255 * 32);
    assert_eq!(
        prf.plus(key, &[seed], 255 * 32 + 1).err(),
        Some(CryptoError::PrfPlusLength { asked: 255 * 32 + 1 })
    );
}

#[test]
fn group_31_agrees_as_in_rfc_7748_6_1() {
    let alice = restore(
        DhGroup::Curve25519,
        "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
    );
    let bob = restore(
        DhGroup::Curve25519,
        "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
    );
    assert_eq!(
        alice.public(),
        hex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    );
    assert_eq!(
        bob.public(),
        hex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    );
    let shared = hex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
    assert_eq!(alice.agree(bob.public()).unwrap().expose(), shared);
    assert_eq!(bob.agree(alice.public()).unwrap().expose(), shared);
}

#[test]
fn group_19_agrees_as_in_rfc_5903_8_1() {
    let i = restore(
        DhGroup::Ecp256,
        "C88F01F510D9AC3F70A292DAA2316DE544E9AAB8AFE84049C62A9C57862D1433",
    );
    let r = restore(
        DhGroup::Ecp256,
        "C6EF9C5D78AE012A011164ACB397CE2088685D8F06BF9BE0B283AB46476BEE53",
    );
    assert_eq!(
        i.public(),
        hex("DAD0B65394221CF9B051E1FECA5787D098DFE637FC90B9EF945D0C3772581180
             5271A0461CDB8252D61F1C456FA3E59AB1F45B33ACCF5F58389E0577B8990BB3")
    );
    assert_eq!(
        r.public(),
        hex("D12DFB5289C8D4F81208B70270398C342296970A0BCCB74C736FC7554494BF63
             56FBF3CA366CC23E8157854C13C58D6AAC23F046ADA30F8353E74F33039872AB")
    );
    let shared = hex("D6840F6B42F6EDAFD13116E0E12565202FEF8E9ECE7DCE03812464D04B9442DE");
    assert_eq!(i.agree(r.public()).unwrap().expose(), shared);
    assert_eq!(r.agree(i.public()).unwrap().expose(), shared);
}

#[test]
fn esp_packet_of_rfc_7634_appendix_a_opens() {
    let key = SecretBytes::new(hex(
        "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3",
    ));
    let packet = hex("01020304 00000005 1011121314151617
        24039428b97f417e3c13753a4f05087b67c352e6a7fab1b982d466ef407ae5c614ee8099d52844eb61aa95dfab4c02f7
        2aa71e7c4c4f64c9befe2facc638e8f3cbec163fac469b502773f6fb94e664da9165b82829f641e0
        76aaa8266b7fb0f7b11b369907e1ad43");
    let inner = hex(
        "45000054a6f200004001e778c6336405c000020508005b7a3a080000553bec100007362708090a0b0c0d0e0f10111213
        1415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f3031323334353637",
    );
    let key = EspKey::new(EspSuite::ChaCha20Poly1305, &key).unwrap();

    let opened = key.open(&packet, None).unwrap();
    assert_eq!(
        (opened.spi, opened.sequence, opened.next_header),
        (EspSpi(0x0102_0304), 5, 4)
    );
    assert_eq!(opened.payload, inner);

    let iv = *b"\x10\x11\x12\x13\x14\x15\x16\x17";
    assert_eq!(
        key.seal(EspSpi(0x0102_0304), 5, false, iv, 4, &inner).unwrap(),
        packet
    );
}

#[test]
fn ike_message_of_rfc_7634_appendix_b_opens_and_seals() {
    let key = hex("808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9fa0a1a2a3");
    let prefix = hex("c0c1c2c3c4c5c6c7 d0d1d2d3d4d5d6d7 2e202500 00000009 00000045 29000029");
    let iv = hex("1011121314151617");
    let sealed = hex("1011121314151617 610394701f8d017f7c12924889 6b71bfe25236efd7cdc67066906315b2");
    let inner = hex("0000000c000040010000000a");
    let key = SkKey::new(IkeCipher::ChaCha20Poly1305, &key, &[]).unwrap();
    assert_eq!(key.open(&prefix, &sealed).unwrap(), inner);
    assert_eq!(key.seal(&prefix, &iv, &inner).unwrap(), sealed);
    assert_eq!(IkeCipher::ChaCha20Poly1305.sealed_len(inner.len()), sealed.len());
}

fn restore(group: DhGroup, key: &str) -> crypto::DhPrivate {
    group.restore(&SecretBytes::new(hex(key))).unwrap()
}
