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
fn groups_20_and_21_agree_as_in_rfc_5903_8_2_and_8_3() {
    let cases = [
        (
            DhGroup::Ecp384,
            "099F3C70 34D4A2C6 99884D73 A375A67F 7624EF7C 6B3C0F16 0647B674 14DCE655 E35B5380 41E649EE 3FAEF896 783AB194",
            "667842D7 D180AC2C DE6F74F3 7551F557 55C7645C 20EF73E3 1634FE72 B4C55EE6 DE3AC808 ACB4BDB4 C88732AE E95F41AA
             9482ED1F C0EEB9CA FC498462 5CCFC23F 65032149 E0E144AD A0241815 35A0F38E EB9FCFF3 C2C947DA E69B4C63 4573A81C",
            "41CB0779 B4BDB85D 47846725 FBEC3C94 30FAB46C C8DC5060 855CC9BD A0AA2942 E0308312 916B8ED2 960E4BD5 5A7448FC",
            "E558DBEF 53EECDE3 D3FCCFC1 AEA08A89 A987475D 12FD950D 83CFA417 32BC509D 0D1AC43A 0336DEF9 6FDA41D0 774A3571
             DCFBEC7A ACF31964 72169E83 8430367F 66EEBE3C 6E70C416 DD5F0C68 759DD1FF F83FA401 42209DFF 5EAAD96D B9E6386C",
            "11187331 C279962D 93D60424 3FD592CB 9D0A926F 422E4718 7521287E 7156C5C4 D6031355 69B9E9D0 9CF5D4A2 70F59746",
        ),
        (
            DhGroup::Ecp521,
            "0037ADE9 319A89F4 DABDB3EF 411AACCC A5123C61 ACAB57B5 393DCE47 608172A0 95AA85A3 0FE1C295 2C6771D9 37BA9777
             F5957B26 39BAB072 462F68C2 7A57382D 4A52",
            "0015417E 84DBF28C 0AD3C278 713349DC 7DF153C8 97A1891B D98BAB43 57C9ECBE E1E3BF42 E00B8E38 0AEAE57C 2D107564
             94188594 2AF5A7F4 601723C4 195D176C ED3E
             017CAE20 B6641D2E EB695786 D8C94614 6239D099 E18E1D5A 514C739D 7CB4A10A D8A78801 5AC405D7 799DC75E 7B7D5B6C
             F2261A6A 7F150743 8BF01BEB 6CA3926F 9582",
            "0145BA99 A847AF43 793FDD0E 872E7CDF A16BE30F DC780F97 BCCC3F07 8380201E 9C677D60 0B343757 A3BDBF2A 3163E4C2
             F869CCA7 458AA4A4 EFFC311F 5CB15168 5EB9",
            "00D0B397 5AC4B799 F5BEA16D 5E13E9AF 971D5E9B 984C9F39 728B5E57 39735A21 9B97C356 436ADC6E 95BB0352 F6BE64A6
             C2912D4E F2D0433C ED2B6171 640012D9 460F
             015C6822 6383956E 3BD066E7 97B623C2 7CE0EAC2 F551A10C 2C724D98 52077B87 220B6536 C5C408A1 D2AEBB8E 86D678AE
             49CB5709 1F473229 6579AB44 FCD17F0F C56A",
            "01144C7D 79AE6956 BC8EDB8E 7C787C45 21CB086F A64407F9 7894E5E6 B2D79B04 D1427E73 CA4BAA24 0A347868 59810C06
             B3C715A3 A8CC3151 F2BEE417 996D19F3 DDEA",
        ),
    ];
    for (group, i, public_i, r, public_r, shared) in cases {
        let (i, r) = (restore(group, i), restore(group, r));
        assert_eq!(i.public(), hex(public_i), "{group:?}");
        assert_eq!(r.public(), hex(public_r), "{group:?}");
        assert_eq!(i.agree(r.public()).unwrap().expose(), hex(shared), "{group:?}");
        assert_eq!(r.agree(i.public()).unwrap().expose(), hex(shared), "{group:?}");
    }
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
