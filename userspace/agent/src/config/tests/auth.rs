//! How the two sides prove who they are.

use super::*;

#[test]
fn certificates_need_their_files_and_pre_shared_keys_theirs() {
    let cert = "auth = \"cert\"\ncert_file = \"gw.crt\"\nkey_file = \"gw.key\"\nca_files = [\"ca.crt\"]\n";
    let psk = "psk_file = \"site-a.psk\"     # mode 0600\n";
    let config = Config::read_without_files(&with(psk, cert), Path::new("/etc/espalier"))
        .unwrap_or_else(|found| panic!("{found:?}"));
    let c = &config.connections[0];
    assert_eq!(
        (c.local_auth, c.remote_auth),
        (AuthKind::Certificate, AuthKind::Certificate)
    );
    assert!(c.psk_file.is_none());
    let files = c.certificate.as_ref().unwrap();
    assert_eq!(
        (files.cert.as_path(), files.rsa_pkcs1),
        (Path::new("/etc/espalier/gw.crt"), false)
    );
    assert!(!c.authorities.as_ref().unwrap().strict);
    let more =
        format!("{cert}ocsp_files = \"peer.ocsp\"\ncert_ocsp_file = \"gw.ocsp\"\nrevocation = \"strict\"\n");
    let config = Config::read_without_files(&with(psk, &more), Path::new("/etc/espalier"))
        .unwrap_or_else(|found| panic!("{found:?}"));
    let c = &config.connections[0];
    let stapled = c.certificate.as_ref().unwrap().ocsp.as_deref();
    assert_eq!(stapled, Some(Path::new("/etc/espalier/gw.ocsp")));
    let authorities = c.authorities.as_ref().unwrap();
    assert_eq!(authorities.ocsp, [Path::new("/etc/espalier/peer.ocsp")]);
    assert!(authorities.strict);
    let token = cert.replace(
        "key_file = \"gw.key\"",
        "key = \"pkcs11:token=gateways;object=gw\"\npkcs11_module = \"/usr/lib/module.so\"\npin_file = \"gw.pin\"",
    );
    let config = Config::read_without_files(&with(psk, &token), Path::new("/etc/espalier"))
        .unwrap_or_else(|found| panic!("{found:?}"));
    let KeySource::Token(key) = &config.connections[0].certificate.as_ref().unwrap().key else {
        panic!("a key in a token");
    };
    assert_eq!(key.pin_file, Path::new("/etc/espalier/gw.pin"));
    assert_eq!(key.uri.object.as_deref(), Some("gw"));
    let tls = cert.replace(
        "auth = \"cert\"",
        "local_auth = \"cert\"\nremote_auth = \"eap-tls\"",
    );
    let config = Config::read_without_files(&with(psk, &tls), Path::new("/etc/espalier"))
        .unwrap_or_else(|found| panic!("{found:?}"));
    let c = &config.connections[0];
    assert_eq!(c.remote_auth, AuthKind::EapTls);
    assert!(c.authorities.is_some() && c.psk_file.is_none());
    let mixed = format!("local_auth = \"cert\"\ncert_file = \"gw.crt\"\nkey_file = \"gw.key\"\n{psk}");
    assert_eq!(problems(&with(psk, &mixed)), [""; 0]);
    for (text, word) in [
        (format!("{cert}{psk}"), "'psk_file' is given"),
        (cert.replace("key_file", "#"), "has no 'key_file'"),
        (format!("{token}key_file = \"a\"\n"), "'key_file' is given"),
        (token.replace("pin_file", "#"), "has no 'pin_file'"),
        (token.replace("pkcs11_module", "#"), "has no 'pkcs11_module'"),
        (token.replace("object=gw", ""), "is no name=value"),
        (format!("{cert}pin_file = \"a\"\n"), "'pin_file' is given"),
        (cert.replace("ca_files", "#"), "has no 'ca_files'"),
        (format!("{psk}crl_files = \"a.crl\"\n"), "'crl_files' is given"),
        (format!("{psk}ocsp_files = \"a.ocsp\"\n"), "'ocsp_files' is given"),
        (
            format!("{psk}cert_ocsp_file = \"a.ocsp\"\n"),
            "'cert_ocsp_file' is given",
        ),
        (format!("{cert}rsa_padding = \"oaep\"\n"), "'rsa_padding'"),
        ("auth = \"cert\"\n".to_owned(), "has no 'cert_file'"),
        (
            format!("remote_auth = \"eap-mschapv2\"\neap_users_file = \"users\"\n{psk}"),
            "behind a certificate of ours",
        ),
        (
            cert.replace(
                "auth = \"cert\"",
                "local_auth = \"cert\"\nremote_auth = \"eap-tls\"",
            )
            .replace("ca_files", "#"),
            "has no 'ca_files'",
        ),
        (
            format!("remote_auth = \"eap-tls\"\nca_files = \"ca.crt\"\n{psk}"),
            "EAP-TLS needs a certificate of ours",
        ),
        (
            "local_auth = \"cert\"\ncert_file = \"a\"\nkey_file = \"b\"\nremote_auth = \"eap-mschapv2\"\n"
                .to_owned(),
            "has no 'eap_users_file'",
        ),
    ] {
        let found = problems(&with(psk, &text));
        assert!(found.iter().any(|p| p.contains(word)), "{word}: {found:?}");
    }
    let found = problems(&with("remote_id = \"site-a.example\"", "remote_id = \"XX=a\""));
    assert!(found[0].contains("no distinguished name"), "{found:?}");
}

#[test]
fn a_post_quantum_key_has_a_name_and_a_file() {
    let psk = "psk_file = \"site-a.psk\"     # mode 0600\n";
    let keys = "ppk_id = \"quantum\"\nppk_file = \"quantum.ppk\"\n";
    let read = |keys: &str| {
        Config::read_without_files(&with(psk, &format!("{psk}{keys}")), Path::new("/etc/espalier"))
            .unwrap_or_else(|found| panic!("{found:?}"))
            .connections
            .swap_remove(0)
            .ppk
    };
    assert_eq!(read(""), None);
    let expected = |required| {
        Some(PpkConfig {
            id: "quantum".to_owned(),
            file: "/etc/espalier/quantum.ppk".into(),
            required,
        })
    };
    assert_eq!(read(keys), expected(false));
    assert_eq!(read(&format!("{keys}ppk_required = true\n")), expected(true));
    for (text, word) in [
        ("ppk_id = \"quantum\"\n".to_owned(), "belong together"),
        ("ppk_file = \"quantum.ppk\"\n".to_owned(), "belong together"),
        ("ppk_required = true\n".to_owned(), "ppk_required without"),
        (format!("{keys}ppk_required = \"yes\"\n"), "ppk_required"),
        (keys.replace("\"quantum\"", "7"), "ppk_id"),
    ] {
        let found = problems(&with(psk, &format!("{psk}{text}")));
        assert!(found.len() == 1 && found[0].contains(word), "{word}: {found:?}");
    }
}

#[test]
fn the_file_of_a_post_quantum_key_is_private_and_another_content_is_noticed() {
    use std::os::unix::fs::PermissionsExt;
    let dir = std::env::temp_dir().join(format!("esp-ppk-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let psk = "psk_file = \"site-a.psk\"     # mode 0600\n";
    let keys = "ppk_id = \"quantum\"\nppk_file = \"quantum.ppk\"\n";
    let source = with(psk, &format!("{psk}{keys}"));
    let found = || match Config::read(&source, &dir) {
        Ok(_) => Vec::new(),
        Err(problems) => problems
            .iter()
            .map(ToString::to_string)
            .filter(|problem| problem.contains("ppk_file"))
            .collect(),
    };
    assert!(found()[0].contains("cannot be read"), "{:?}", found());
    let file = dir.join("quantum.ppk");
    std::fs::write(&file, "a key").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(found()[0].contains("mode 0640"), "{:?}", found());
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(found(), [""; 0]);
    let config = Config::read_without_files(&source, &dir).ok().unwrap();
    let before = diff::files(&config);
    std::fs::write(&file, "another key").unwrap();
    let after = diff::files(&config);
    let changed: Vec<_> = after
        .iter()
        .filter(|(place, digest)| before.get(*place) != Some(*digest))
        .map(|(place, _)| place.join("."))
        .collect();
    assert_eq!(changed, ["connections.site-a.ppk_file"]);
    std::fs::remove_dir_all(&dir).unwrap();
}
