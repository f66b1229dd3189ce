//! Certificates between the product's IKEv2 engine and strongSwan: every kind of key in both roles, an intermediate authority, OCSP
//! responses, and whatever is wrong with a certificate. Needs root, strongSwan and openssl.

mod keys;

use agent::config::{AuthorityFiles, CertificateFiles};
use agent::credentials;
use anyhow::{Context, Result, bail, ensure};
use ike::{ChildConfig, Command, Connection, EventKind, Identity, LocalAuth, Proposal, RemoteAuth};
use keys::Keys;
use lab::duel::pki::Pki;
use lab::duel::{GATEWAY, PEER, Ring, must_fail, network};
use lab::strongswan::Daemon;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// Connections that come up: name, kind of key, `auth` of strongSwan's side, PKCS #1 on ours.
const GOOD: [(&str, &str, &str, bool); 7] = [
    ("ecdsa256", "ecdsa256", "pubkey", false),
    ("ecdsa384", "ecdsa384", "pubkey", false),
    ("ed25519", "ed25519", "pubkey", false),
    ("rsapkcs1", "rsa", "rsa-sha256", true),
    ("rsapss", "rsa", "rsa/pss-sha256", false),
    ("chain", "ecdsa256", "pubkey", false),
    // Nothing but an OCSP response of openssl tells of the peer's certificate, and one is asked for in vain.
    ("ocsp", "ecdsa256", "pubkey", false),
];

/// Connections that must not: name, and words of what the gateway says.
const BAD: [(&str, &[&str]); 6] = [
    ("stranger", &["issuer is O=Example, CN=other", "ca_files"]),
    ("expired", &["expired on 20", "renew"]),
    ("revoked", &["is revoked"]),
    (
        "wrongid",
        &["its certificate is of somebody.example", "subjectAltName"],
    ),
    ("ocsprevoked", &["revoked since 20", "OCSP"]),
    ("ocspother", &["no OCSP response says"]),
];

fn pki(folder: &Path) -> Result<Pki> {
    let mut what = String::from(
        "root root; root other; authority middle; key middle ecdsa384\n\
         openssl req -new -key middle.key -subj /O=Example/CN=middle -out middle.csr\n\
         openssl ca -config root.cnf -batch -notext -in middle.csr -extfile ca.ext -out middle.crt\n",
    );
    for (name, kind, ..) in GOOD {
        let issuer = if name == "chain" { "middle" } else { "root" };
        for side in ["gw", "peer"] {
            what.push_str(&format!(
                "leaf {side}-{name} {kind} {issuer} DNS:{side}-{name}.example\n"
            ));
        }
    }
    what.push_str(
        "leaf gw-bad ecdsa256 root DNS:gw-bad.example\n\
         leaf peer-stranger ecdsa256 other DNS:peer-stranger.example\n\
         leaf peer-expired ecdsa256 root DNS:peer-expired.example -startdate 20200101000000Z -enddate 20210101000000Z\n\
         leaf peer-revoked ecdsa256 root DNS:peer-revoked.example\n\
         leaf peer-wrongid ecdsa256 root DNS:somebody.example\n\
         leaf peer-ocsprevoked ecdsa256 root DNS:peer-ocsprevoked.example\n\
         leaf peer-ocspother ecdsa256 root DNS:peer-ocspother.example\n\
         leaf responder rsa root $'DNS:ocsp.example\\nextendedKeyUsage = OCSPSigning'\n\
         openssl ca -config root.cnf -revoke peer-revoked.crt\n\
         openssl ca -config root.cnf -revoke peer-ocsprevoked.crt\n\
         for peer in ocsp ocsprevoked; do\n\
         openssl ocsp -issuer root.crt -cert peer-$peer.crt -reqout $peer.request\n\
         openssl ocsp -index root.db/index -CA root.crt -rsigner responder.crt -rkey responder.key -ndays 7 \
         -reqin $peer.request -respout peer-$peer.response\n\
         done\n\
         cp peer-ocsp.response peer-ocspother.response\n\
         openssl ca -config root.cnf -gencrl -out root.crl\n\
         cat middle.crt >> gw-chain.crt\n",
    );
    Pki::new(folder, &what)
}

fn certified(pki: &Pki, name: &str, own: &str, pkcs1: bool) -> Result<(Connection, credentials::Own)> {
    let files = CertificateFiles {
        cert: pki.path(&format!("{own}.crt")),
        key: pki.path(&format!("{own}.key")).into(),
        rsa_pkcs1: pkcs1,
        ocsp: None,
    };
    let own = credentials::own(name, &files)?;
    let id = own.facts.alternative.first().context("an identity")?.clone();
    let mut connection = Connection::new(name, GATEWAY.parse()?, id, Default::default());
    connection.remotes = vec![PEER.parse()?];
    connection.remote_id = Some(Identity::parse(&format!("peer-{name}.example")));
    connection.local_auth = LocalAuth::Certificate(own.certificate.clone());
    let by_response = name.starts_with("ocsp");
    let response = pki.path(&format!("peer-{name}.response"));
    connection.remote_auth = RemoteAuth::Certificate(Arc::new(credentials::trust(&AuthorityFiles {
        ca: vec![pki.path("root.crt")],
        crl: (!by_response).then(|| pki.path("root.crl")).into_iter().collect(),
        ocsp: by_response.then_some(response).into_iter().collect(),
        strict: by_response,
    })?));
    connection.ike_proposals = vec![Proposal::parse_ike("aes128gcm16-prfsha256-x25519")?];
    let mut child = ChildConfig::new(name, vec![network("10.2.0.0/24")?], vec![network("10.1.0.0/24")?]);
    child.esp_proposals = vec![Proposal::parse_esp("aes128gcm16")?];
    connection.children = vec![child];
    Ok((connection, own))
}

fn swanctl(name: &str, gateway: &str, auth: &str) -> String {
    format!(
        "  {name} {{
    version = 2
    local_addrs = {PEER}
    remote_addrs = {GATEWAY}
    proposals = aes128gcm16-prfsha256-x25519
    mobike = no
    local {{
      auth = {auth}
      certs = peer-{name}.crt
      id = peer-{name}.example
    }}
    remote {{
      auth = pubkey
      id = gw-{gateway}.example
    }}
    children {{
      {name} {{
        local_ts = 10.1.0.0/24
        remote_ts = 10.2.0.0/24
        esp_proposals = aes128gcm16
      }}
    }}
  }}
"
    )
}

#[test]
fn certificates_of_every_kind_in_both_roles_and_bad_ones_refused_by_name() -> Result<()> {
    let ring = Ring::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    let pki = pki(&ring.folder.join("pki"))?;
    let mut connections = Vec::new();
    let mut keys = HashMap::new();
    let mut conf = String::new();
    for (name, _, auth, pkcs1) in GOOD {
        let (connection, own) = certified(&pki, name, &format!("gw-{name}"), pkcs1)?;
        connections.push(connection);
        keys.insert(name.to_owned(), own.key);
        conf.push_str(&swanctl(name, name, auth));
        ring.peer_file(
            "x509",
            &format!("peer-{name}.crt"),
            &pki.text(&format!("peer-{name}.crt"))?,
        )?;
        ring.peer_file(
            "private",
            &format!("peer-{name}.key"),
            &pki.text(&format!("peer-{name}.key"))?,
        )?;
    }
    for (name, _) in BAD {
        let (connection, own) = certified(&pki, name, "gw-bad", false)?;
        connections.push(connection);
        keys.insert(name.to_owned(), own.key);
        conf.push_str(&swanctl(name, "bad", "pubkey"));
        ring.peer_file(
            "x509",
            &format!("peer-{name}.crt"),
            &pki.text(&format!("peer-{name}.crt"))?,
        )?;
        ring.peer_file(
            "private",
            &format!("peer-{name}.key"),
            &pki.text(&format!("peer-{name}.key"))?,
        )?;
    }
    for ca in ["root", "middle"] {
        ring.peer_file("x509ca", &format!("{ca}.crt"), &pki.text(&format!("{ca}.crt"))?)?;
    }
    let gateway = ring.engine(connections, Keys::new(keys, Default::default()))?;
    let peer = ring.charon(&format!("connections {{\n{conf}}}\n"), Daemon::default())?;
    for (name, ..) in GOOD {
        // The gateway responds.
        if let Err(error) = peer.initiate(name) {
            bail!("{name}: {error:#}\n{}\n{}", gateway.story(), peer.log());
        }
        gateway.child(name, true)?;
        let established = gateway.event(EventKind::Established)?;
        ensure!(
            established.contains(&format!("peer-{name}.example")),
            "{established}"
        );
        peer.swanctl(&["--terminate", "--ike", name])?;
        gateway.child(name, false)?;
        // The gateway initiates.
        gateway.forget_events();
        gateway.command(Command::Initiate {
            connection: name.to_owned(),
        })?;
        if let Err(error) = gateway.child(name, true) {
            bail!("{name} initiated by us: {error:#}\n{}", peer.log());
        }
        gateway.command(Command::Terminate {
            connection: name.to_owned(),
        })?;
        gateway.child(name, false)?;
        gateway.forget_events();
    }
    for (name, words) in BAD {
        must_fail(&peer, name)?;
        let text = gateway.event(EventKind::AuthFailed)?;
        for word in words {
            ensure!(
                text.contains(word),
                "{name}: {word:?} is not in {text}\n{}",
                peer.log()
            );
        }
        ensure!(
            text.contains(&format!("peer-{name}.example")) && text.contains(name),
            "{text}"
        );
        let log = peer.log();
        ensure!(
            log.contains("AUTHENTICATION_FAILED") || log.contains("AUTH_FAILED"),
            "{name}\n{log}"
        );
        gateway.forget_events();
    }
    Ok(())
}
