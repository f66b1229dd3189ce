use super::*;

#[test]
fn familiar_notation_is_understood_and_shown_again() {
    for text in [
        "aes256gcm16-prfsha384-x25519",
        "chacha20poly1305-prfsha256-x25519",
    ] {
        assert_eq!(Proposal::parse_ike(text).unwrap().to_string(), text);
    }
    for text in [
        "aes128gcm16",
        "aes256gcm16-esn",
        "aes256gcm16-esn-noesn",
        "chacha20poly1305-x25519",
        "aes256-sha256",
        "aes128-aes256-sha256-ecp256-esn-noesn",
    ] {
        assert_eq!(Proposal::parse_esp(text).unwrap().to_string(), text);
    }
    let cbc = Proposal::parse_ike("aes128-sha256-ecp256").unwrap();
    assert_eq!(cbc.first(TransformKind::Prf).unwrap().id, PRF_SHA256);
}

#[test]
fn unusable_proposals_say_what_to_change() {
    let rows: &[(&str, &str)] = &[
        ("aes256gcm16-x25519", "no PRF"),
        ("aes256gcm16-prfsha256", "no key exchange group"),
        ("prfsha256-x25519", "no cipher"),
        ("aes256gcm16-sha256-x25519", "own integrity check"),
        ("aes256-aes256gcm16-prfsha256-sha256-x25519", "cannot share"),
        ("aes256gcm16-prfsha256-x25519-esn", "ESP proposal"),
        ("3des-sha1-modp1024", "\"3des\" is not known"),
        ("", "\"\" is not known"),
    ];
    for (text, part) in rows {
        let error = Proposal::parse_ike(text).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
    assert!(
        Proposal::parse_esp("aes128gcm16iiv")
            .unwrap_err()
            .to_string()
            .contains("implicit-IV")
    );
    let rows = [
        ("aes128", "needs an integrity algorithm"),
        ("aes128-sha512", "sha256 only"),
        ("aes128-sha256-sha384", "sha256 only"),
        ("aes128-aes128gcm16-sha256", "cannot share"),
        ("aes128gcm16-sha256", "own integrity check"),
        ("sha256", "no cipher"),
        ("aes128-sha256-prfsha256", "IKE proposal"),
    ];
    for (text, part) in rows {
        let error = Proposal::parse_esp(text).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn our_order_decides_among_what_both_have() {
    let ours = [Proposal::parse_ike("aes256gcm16-aes128gcm16-prfsha384-prfsha256-x25519-ecp256").unwrap()];
    let theirs = [
        Proposal::parse_ike("chacha20poly1305-prfsha256-x25519").unwrap(),
        Proposal::parse_ike("aes128gcm16-aes256gcm16-prfsha256-ecp256-x25519").unwrap(),
    ];
    let (index, chosen) = choose(&ours, &theirs).unwrap();
    assert_eq!(
        (index, chosen.to_string().as_str()),
        (1, "aes256gcm16-prfsha256-x25519")
    );
    assert!(choose(&ours, &theirs[..1]).is_none());
}

#[test]
fn esn_is_used_only_when_both_want_it() {
    let esn = [Proposal::parse_esp("aes128gcm16-esn").unwrap()];
    let no = [Proposal::parse_esp("aes128gcm16").unwrap()];
    let either = [Proposal::parse_esp("aes128gcm16-esn-noesn").unwrap()];
    assert!(choose(&esn, &no).is_none());
    assert_eq!(
        choose(&either, &no)
            .unwrap()
            .1
            .first(TransformKind::Esn)
            .unwrap()
            .id,
        ESN_NO
    );
    assert_eq!(
        choose(&either, &either)
            .unwrap()
            .1
            .first(TransformKind::Esn)
            .unwrap()
            .id,
        ESN_YES
    );
}

#[test]
fn additional_key_exchanges_are_written_as_in_other_daemons() {
    for text in [
        "aes256gcm16-prfsha384-x25519-ke1_mlkem768",
        "aes256gcm16-prfsha384-x25519-ke1_mlkem768-ke1_none-ke2_ecp384",
    ] {
        assert_eq!(Proposal::parse_ike(text).unwrap().to_string(), text);
    }
    let esp = Proposal::parse_esp("aes256gcm16-x25519-KE1_MLKEM1024").unwrap();
    assert_eq!(esp.to_string(), "aes256gcm16-x25519-ke1_mlkem1024");
    for (text, part) in [
        ("aes256gcm16-prfsha256-mlkem768", "beside a classical group"),
        (
            "aes256gcm16-prfsha256-x25519-ke8_mlkem768",
            "\"ke8_mlkem768\" is not known",
        ),
        ("aes256gcm16-prfsha256-x25519-ke1_prfsha256", "is not known"),
        ("aes256gcm16-prfsha256-x25519-ke_mlkem768", "is not known"),
    ] {
        let error = Proposal::parse_ike(text).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
    let error = Proposal::parse_esp("aes256gcm16-ke1_mlkem768").unwrap_err();
    assert!(error.to_string().contains("needs a first one"), "{error}");
}

/// RFC 9370 2.2.1, row by row: ours, theirs, what is chosen.
#[test]
fn additional_key_exchanges_are_chosen_type_by_type() {
    let rows = [
        ("ke1_mlkem768", "ke1_mlkem768", Some("-ke1_mlkem768")),
        ("ke1_mlkem768", "", None),
        ("", "ke1_mlkem768", None),
        ("ke1_mlkem768-ke1_none", "", Some("")),
        ("", "ke1_mlkem768-ke1_none", Some("-ke1_none")),
        (
            "ke1_mlkem1024-ke1_mlkem768",
            "ke1_mlkem768-ke1_mlkem1024",
            Some("-ke1_mlkem1024"),
        ),
        // The same algorithm must not be chosen twice: the first type has to give way.
        (
            "ke1_mlkem768-ke1_ecp384-ke2_mlkem768",
            "ke1_mlkem768-ke1_ecp384-ke2_mlkem768",
            Some("-ke1_ecp384-ke2_mlkem768"),
        ),
        ("ke1_mlkem768-ke2_mlkem768", "ke1_mlkem768-ke2_mlkem768", None),
        (
            "ke1_none-ke2_none",
            "ke1_none-ke2_none",
            Some("-ke1_none-ke2_none"),
        ),
        // Not consecutive: what is left out counts as NONE.
        (
            "ke2_mlkem768-ke5_ecp384-ke5_none",
            "ke2_mlkem768",
            Some("-ke2_mlkem768"),
        ),
    ];
    let proposal = |more: &str| {
        let base = "aes256gcm16-prfsha256-x25519";
        let text = [base, more].join(if more.is_empty() { "" } else { "-" });
        Proposal::parse_ike(&text).unwrap()
    };
    for (ours, theirs, expected) in rows {
        let chosen = choose(&[proposal(ours)], &[proposal(theirs)]);
        let shown = chosen.map(|(_, suite)| suite.to_string());
        let expected = expected.map(|more| format!("aes256gcm16-prfsha256-x25519{more}"));
        assert_eq!(shown, expected, "{ours} and {theirs}");
    }
}

#[test]
fn defaults_parse() {
    assert!(!default_ike().is_empty() && !default_esp().is_empty());
    // RFC 8221: an AEAD is what to use; AES-CBC is for who asks for it.
    assert!(!default_esp().iter().any(Proposal::has_cbc));
}
