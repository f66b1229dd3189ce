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
