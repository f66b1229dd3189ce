//! strongSwan as road warrior: virtual addresses out of a pool, name servers, narrowed selectors; by certificate, by
//! EAP-MSCHAPv2 and by EAP-TLS. Needs root, strongSwan with eap-mschapv2 and eap-tls, and openssl.

mod keys;

use agent::config::{AuthorityFiles, CertificateFiles};
use agent::credentials;
use anyhow::{Context, Result, bail, ensure};
use ike::auth::eap::Users;
use ike::auth::pattern::WrittenId;
use ike::{ChildConfig, Connection, EventKind, Identity, LocalAuth, Pool, Proposal, RemoteAuth};
use keys::Keys;
use lab::duel::pki::Pki;
use lab::duel::{GATEWAY, PEER, Ring, must_fail, network};
use lab::ike_peer::IkePeer;
use lab::strongswan::{Charon, Daemon};
use model::SecretBytes;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

fn gateway(
    pki: &Pki,
    name: &str,
    remote_auth: RemoteAuth,
    pool: &str,
) -> Result<(Connection, credentials::Own)> {
    let files = CertificateFiles {
        cert: pki.path("gw.crt"),
        key: pki.path("gw.key").into(),
        rsa_pkcs1: false,
        ocsp: None,
    };
    let own = credentials::own(name, &files)?;
    let mut connection = Connection::new(
        name,
        GATEWAY.parse()?,
        Identity::parse("gw.example"),
        Default::default(),
    );
    connection.local_auth = LocalAuth::Certificate(own.certificate.clone());
    connection.remote_auth = remote_auth;
    connection.ike_proposals = vec![Proposal::parse_ike("aes128gcm16-prfsha256-x25519")?];
    connection.pools = vec![Pool::of_network(name, pool.parse()?, 24).expect("a pool")];
    connection.dns = vec!["10.2.0.53".parse()?];
    let mut child = ChildConfig::new(
        name,
        vec![network("10.2.0.0/24")?],
        vec![network(&format!("{pool}/24"))?],
    );
    child.esp_proposals = vec![Proposal::parse_esp("aes128gcm16")?];
    connection.children = vec![child];
    Ok((connection, own))
}

fn warrior(name: &str, local: &str) -> String {
    format!(
        "  {name} {{
    version = 2
    local_addrs = {PEER}
    remote_addrs = {GATEWAY}
    proposals = aes128gcm16-prfsha256-x25519
    mobike = no
    vips = 0.0.0.0
    local {{
{local}
    }}
    remote {{
      auth = pubkey
      id = gw.example
    }}
    children {{
      {name} {{
        remote_ts = 10.2.0.0/24
        esp_proposals = aes128gcm16
      }}
    }}
  }}
"
    )
}

/// Brings a warrior up; its virtual address.
fn enter(gateway: &IkePeer, peer: &Charon, name: &str) -> Result<IpAddr> {
    gateway.forget_events();
    if let Err(error) = peer.initiate(name) {
        bail!("{name}: {error:#}\n{}\n{}", gateway.story(), peer.log());
    }
    let given = gateway.event(EventKind::AddressGiven);
    let text = given.with_context(|| format!("{name}\n{}", peer.log()))?;
    let sas = peer.swanctl(&["--list-sas", "--ike", name])?;
    let given = gateway.wait("an IKE SA", |seen| {
        let found = seen
            .ike_sas
            .iter()
            .find(|sa| sa.remote_id.as_deref().is_some_and(|id| id.contains(name)))?;
        found.virtual_addresses.first().copied()
    })?;
    ensure!(text.contains(&given.to_string()), "{text}");
    ensure!(
        sas.contains(&format!("{given}/32")),
        "{given} is not what strongSwan uses:\n{sas}"
    );
    let narrowed = gateway
        .children()
        .into_iter()
        .find(|child| child.ts_remote[0].first == given);
    let narrowed = narrowed.map(|child| (child.ts_remote.len(), child.ts_remote[0].last));
    ensure!(
        narrowed == Some((1, given)),
        "selectors are not narrowed to {given}"
    );
    Ok(given)
}

#[test]
fn road_warriors_get_addresses_by_certificate_and_by_eap_and_keep_them() -> Result<()> {
    let ring = Ring::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    let pki = Pki::new(
        &ring.folder.join("pki"),
        "root root\nleaf gw ecdsa256 root DNS:gw.example\nleaf carol ecdsa256 root email:carol@example.org\n\
         leaf dave ecdsa256 root email:dave@example.org\n",
    )?;
    let trust = credentials::trust(&AuthorityFiles {
        ca: vec![pki.path("root.crt")],
        crl: Vec::new(),
        ocsp: Vec::new(),
        strict: false,
    })?;
    let password = |text: &str| SecretBytes::new(text.as_bytes().to_vec());
    let users = Users::new(
        [
            ("alice".to_owned(), password("in wonderland")),
            ("bob".to_owned(), password("the builder")),
            ("mallory".to_owned(), password("right")),
        ]
        .into(),
    );
    let (mut by_cert, key) = gateway(&pki, "cert", RemoteAuth::Certificate(Arc::new(trust)), "10.9.1.0")?;
    let WrittenId::Pattern(pattern) = WrittenId::parse("*@example.org")? else {
        bail!("a pattern")
    };
    by_cert.remote_pattern = Some(pattern);
    let (by_eap, eap_key) = gateway(&pki, "eap", RemoteAuth::EapMsChapV2(Arc::new(users)), "10.9.2.0")?;
    let keys = [("cert".to_owned(), key.key), ("eap".to_owned(), eap_key.key)];
    let gateway = ring.engine(vec![by_cert, by_eap], Keys::new(keys.into(), Default::default()))?;
    let mut conf = String::new();
    for name in ["carol", "dave"] {
        ring.peer_file("x509", &format!("{name}.crt"), &pki.text(&format!("{name}.crt"))?)?;
        ring.peer_file(
            "private",
            &format!("{name}.key"),
            &pki.text(&format!("{name}.key"))?,
        )?;
        let local = format!("      auth = pubkey\n      certs = {name}.crt\n      id = {name}@example.org");
        conf.push_str(&warrior(name, &local));
    }
    for name in ["alice", "bob", "mallory", "nobody"] {
        let local = format!("      auth = eap-mschapv2\n      eap_id = {name}\n      id = {name}");
        conf.push_str(&warrior(name, &local));
    }
    ring.peer_file("x509ca", "root.crt", &pki.text("root.crt")?)?;
    let mut secrets = String::new();
    for (name, secret) in [
        ("alice", "in wonderland"),
        ("bob", "the builder"),
        ("mallory", "wrong"),
        ("nobody", "whatever"),
    ] {
        secrets.push_str(&format!(
            "  eap-{name} {{\n    id = {name}\n    secret = \"{secret}\"\n  }}\n"
        ));
    }
    let daemon = Daemon {
        plugins: "eap-identity eap-mschapv2 resolve",
        virtual_ip: true,
        ..Daemon::default()
    };
    let peer = ring.charon(
        &format!("connections {{\n{conf}}}\nsecrets {{\n{secrets}}}\n"),
        daemon,
    )?;
    let mut given = BTreeSet::new();
    for name in ["carol", "dave", "alice", "bob"] {
        let address = enter(&gateway, &peer, name)?;
        ensure!(given.insert(address), "{address} twice");
        let IpAddr::V4(v4) = address else {
            bail!("{address}")
        };
        let pool = if ["carol", "dave"].contains(&name) { 1 } else { 2 };
        ensure!(v4.octets()[2] == pool, "{address} is of the wrong pool");
    }
    // They come again, and have the same addresses.
    for name in ["alice", "carol"] {
        let before = peer.swanctl(&["--list-sas", "--ike", name])?;
        peer.swanctl(&["--terminate", "--ike", name])?;
        gateway.wait("the end of an IKE SA", |seen| {
            (!seen
                .ike_sas
                .iter()
                .any(|sa| sa.remote_id.as_deref().is_some_and(|id| id.contains(name))))
            .then_some(())
        })?;
        let again = enter(&gateway, &peer, name)?;
        ensure!(
            before.contains(&format!("{again}/32")),
            "{name} got {again}, before:\n{before}"
        );
    }
    for (name, word) in [("mallory", "another password"), ("nobody", "no user nobody")] {
        gateway.forget_events();
        must_fail(&peer, name)?;
        let text = gateway.event(EventKind::AuthFailed)?;
        ensure!(text.contains(word) && text.contains("connection eap"), "{text}");
    }
    let log = peer.log();
    ensure!(
        log.contains("installing DNS server 10.2.0.53"),
        "no name server was given:\n{log}"
    );
    Ok(())
}

#[test]
fn warriors_authenticate_by_eap_tls_and_strangers_do_not() -> Result<()> {
    let ring = Ring::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    // With an intermediate authority and RSA our first flight takes several EAP packets.
    let pki = Pki::new(
        &ring.folder.join("pki"),
        "root root; root other; authority middle; key middle ecdsa384\n\
         openssl req -new -key middle.key -subj /O=Example/CN=middle -out middle.csr\n\
         openssl ca -config root.cnf -batch -notext -in middle.csr -extfile ca.ext -out middle.crt\n\
         leaf gw rsa middle DNS:gw.example; cat middle.crt >> gw.crt\n\
         leaf erin ecdsa256 root email:erin@example.org\n\
         leaf frank ecdsa256 other email:frank@example.org\n\
         leaf grace ecdsa256 root email:grace@example.org\n\
         leaf heidi ecdsa256 root email:somebody@example.org\n\
         openssl ca -config root.cnf -revoke grace.crt\n\
         openssl ca -config root.cnf -gencrl -out root.crl\n",
    )?;
    let trust = Arc::new(credentials::trust(&AuthorityFiles {
        ca: vec![pki.path("root.crt")],
        crl: vec![pki.path("root.crl")],
        ocsp: Vec::new(),
        strict: false,
    })?);
    let (mut connection, own) = gateway(&pki, "tls", RemoteAuth::EapTls(trust.clone()), "10.9.3.0")?;
    let WrittenId::Pattern(pattern) = WrittenId::parse("*@example.org")? else {
        bail!("a pattern")
    };
    connection.remote_pattern = Some(pattern);
    let (_, again) = gateway(&pki, "tls", RemoteAuth::EapTls(trust.clone()), "10.9.3.0")?;
    let tls = credentials::tls::settings(&own.certificate, Arc::new(again.key), trust)?;
    let keys = Keys::new(
        [("tls".to_owned(), own.key)].into(),
        [("tls".to_owned(), Arc::new(tls))].into(),
    );
    let gateway = ring.engine(vec![connection], keys)?;
    let mut conf = String::new();
    for name in ["erin", "frank", "grace", "heidi"] {
        ring.peer_file("x509", &format!("{name}.crt"), &pki.text(&format!("{name}.crt"))?)?;
        ring.peer_file(
            "private",
            &format!("{name}.key"),
            &pki.text(&format!("{name}.key"))?,
        )?;
        // strongSwan refuses an identity that is not in its certificate; by EAP it may say another one.
        let id = if name == "heidi" { "somebody" } else { name };
        let local = format!(
            "      auth = eap-tls\n      certs = {name}.crt\n      id = {id}@example.org\n      eap_id = {name}@example.org"
        );
        conf.push_str(&warrior(name, &local));
    }
    ring.peer_file("x509ca", "root.crt", &pki.text("root.crt")?)?;
    let daemon = Daemon {
        plugins: "eap-identity eap-tls resolve",
        virtual_ip: true,
        // The peer's messages take several packets as well. It has TLS 1.2: with 1.3, which is off unless asked for, strongSwan 5.9.8
        // crashes at the indication of success that RFC 9190 2.1.1 wants (one octet of application data).
        settings: &["plugins {\n    eap-tls {\n      fragment_size = 300\n    }\n  }"],
        ..Daemon::default()
    };
    let peer = ring.charon(&format!("connections {{\n{conf}}}\n"), daemon)?;
    enter(&gateway, &peer, "erin")?;
    let log = peer.log();
    ensure!(log.contains("negotiated TLS 1.2"), "another version:\n{log}");
    for (name, words) in [
        ("frank", ["issuer is O=Example, CN=other", "frank@example.org"]),
        ("grace", ["is revoked", "grace@example.org"]),
        // strongSwan has no certificate of that name to show.
        ("heidi", ["it sent no certificate in TLS", "heidi@example.org"]),
    ] {
        gateway.forget_events();
        must_fail(&peer, name)?;
        let text = gateway.event(EventKind::AuthFailed)?;
        for word in words.into_iter().chain(["connection tls"]) {
            ensure!(
                text.contains(word),
                "{name}: {word:?} is not in {text}\n{}",
                peer.log()
            );
        }
    }
    Ok(())
}
