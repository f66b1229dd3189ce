//! Encrypted, with certificates on both sides.

mod common;

use cluster::OwnershipAnswer::{Is, Written};
use cluster::OwnershipOp;
use common::{G0, Member, config, record, unknown, write};
use lab::etcd::{EtcdCluster, EtcdServerTls};
use lab::resources::Resources;
use ownership::{Engine, EtcdConfig, EtcdTls};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, SanType,
};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// An authority that lies in `<folder>/<name>.pem`.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: PathBuf,
}

impl Authority {
    fn new(folder: &Path, name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = folder.join(format!("{name}.pem"));
        fs::write(
            &certificate,
            params.self_signed(&key).expect("a certificate").pem(),
        )
        .expect("write");
        Self {
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    fn issue(&self, folder: &Path, name: &str, addresses: &[IpAddr]) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        // With roles, this is the name of etcd's user.
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params
            .subject_alt_names
            .extend(addresses.iter().map(|a| SanType::IpAddress(*a)));
        // etcd's own gateway uses the server's certificate as a client.
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let paths = (
            folder.join(format!("{name}.pem")),
            folder.join(format!("{name}.key")),
        );
        fs::write(&paths.0, certificate.pem()).expect("write");
        fs::write(&paths.1, key.serialize_pem()).expect("write");
        paths
    }
}

fn client(ca: &Authority, (cert, key): &(PathBuf, PathBuf)) -> Option<EtcdTls> {
    Some(EtcdTls {
        ca: ca.certificate.clone(),
        cert: cert.clone(),
        key: key.clone(),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_right_certificates_are_let_in_and_trusted() {
    let resources = Resources::new().expect("a lab");
    let folder = &resources.folder;
    let sites = EtcdCluster::loopback(&resources, 3).expect("sites");
    let addresses: Vec<IpAddr> = sites.iter().map(|s| s.address).collect();
    let ours = Authority::new(folder, "ours");
    let theirs = Authority::new(folder, "theirs");
    let server = ours.issue(folder, "server", &addresses);
    let right = ours.issue(folder, "member", &[]);
    let wrong = theirs.issue(folder, "intruder", &[]);
    let tls = EtcdServerTls {
        ca: ours.certificate.clone(),
        cert: server.0,
        key: server.1,
        client: right.clone(),
    };
    let etcd = EtcdCluster::start(&resources, sites, Some(tls)).expect("etcd");
    let with = |tls: Option<EtcdTls>| EtcdConfig {
        tls,
        request_timeout: Duration::from_secs(2),
        ..config(etcd.endpoints())
    };
    let member = Member::start(with(client(&ours, &right)), 4);
    let a = record(1, 1, 1);
    assert_eq!(member.read_until_known(G0).await, None);
    assert_eq!(member.ask(G0, write(None, &a)).await, Written);
    member.sees(G0, Some(&a)).await;

    // A client certificate of another authority: the server refuses it.
    let intruder = Member::start(with(client(&ours, &wrong)), 4);
    let why = unknown(intruder.ask(G0, write(Some(&a), &record(2, 2, 2))).await);
    println!("wrong client certificate: {why}");
    assert!(
        // The alert itself, or (TLS 1.3 lets the connection be closed before it is read) the hint.
        why.contains("did not answer") && why.to_lowercase().contains("certificate"),
        "{why}"
    );
    // A server certificate of another authority: the client refuses it.
    let careful = Member::start(with(client(&theirs, &right)), 4);
    let why = unknown(careful.read(G0).await);
    println!("wrong server certificate: {why}");
    assert!(why.contains("UnknownIssuer"), "{why}");
    assert_eq!(intruder.seen(G0), []);
    assert_eq!(careful.seen(G0), []);
    assert_eq!(member.read(G0).await, Is(Some(a.clone())));

    // New files are taken without a start: first only one of the two, which fits nothing.
    fs::copy(&right.0, &wrong.0).expect("copy");
    unknown(intruder.read(G0).await);
    fs::copy(&right.1, &wrong.1).expect("copy");
    assert_eq!(intruder.read_until_known(G0).await, Some(a.clone()));
    intruder.sees(G0, Some(&a)).await;
}

/// The commands are those of docs/examples/etcd.md.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_for_the_keys_of_one_cluster_is_enough_and_reaches_no_other() {
    let resources = Resources::new().expect("a lab");
    let folder = &resources.folder;
    let sites = EtcdCluster::loopback(&resources, 1).expect("sites");
    let ours = Authority::new(folder, "ours");
    let server = ours.issue(folder, "server", &[sites[0].address]);
    let member = client(&ours, &ours.issue(folder, "gw1", &[]));
    let tls = EtcdServerTls {
        ca: ours.certificate.clone(),
        cert: server.0,
        key: server.1,
        client: ours.issue(folder, "root", &[]),
    };
    let etcd = EtcdCluster::start(&resources, sites, Some(tls)).expect("etcd");
    for command in [
        "role add espalier-lab",
        "role grant-permission espalier-lab --prefix=true readwrite /espalier/lab/",
        "user add --no-password gw1",
        "user grant-role gw1 espalier-lab",
        "role add root",
        "user add --no-password root",
        "user grant-role root root",
        "auth enable",
    ] {
        let words: Vec<&str> = command.split(' ').collect();
        etcd.etcdctl(0, &words).expect(command);
    }
    let allowed = EtcdConfig {
        tls: member,
        request_timeout: Duration::from_secs(2),
        ..config(etcd.endpoints())
    };
    let forbidden = EtcdConfig {
        cluster: "lab2".into(),
        ..allowed.clone()
    };
    let allowed = Member::start(allowed, 4);
    let a = record(1, 1, 1);
    assert_eq!(allowed.read_until_known(G0).await, None);
    assert_eq!(allowed.ask(G0, write(None, &a)).await, Written);
    allowed.sees(G0, Some(&a)).await;
    let forbidden = Member::start(forbidden, 4);
    for op in [OwnershipOp::Read, write(None, &a)] {
        let why = unknown(forbidden.ask(G0, op).await);
        assert!(why.contains("permission denied"), "{why}");
    }
}

#[tokio::test]
async fn a_configuration_that_cannot_work_is_refused_at_the_start() {
    let resources = Resources::new().expect("a lab");
    let folder = &resources.folder;
    let ours = Authority::new(folder, "ours");
    let pair = ours.issue(folder, "member", &[]);
    let good = || client(&ours, &pair);
    let broken = folder.join("broken.pem");
    fs::write(&broken, "-----BEGIN CERTIFICATE-----\nno\n").expect("write");
    let missing = folder.join("missing.pem");
    let https = || vec!["https://127.0.0.1:2379".to_owned()];
    let cases: Vec<(&str, EtcdConfig)> = vec![
        ("1 to 16 endpoints", config(vec![])),
        ("must begin with http", config(vec!["127.0.0.1:2379".into()])),
        ("must begin with http", config(vec!["unix:///etcd".into()])),
        ("etcd endpoint http://", config(vec!["http://a b".into()])),
        ("needs certificates", config(https())),
        (
            "write https",
            EtcdConfig {
                tls: good(),
                ..config(vec!["http://127.0.0.1:2379".into()])
            },
        ),
        (
            "missing.pem",
            EtcdConfig {
                tls: good().map(|t| EtcdTls { key: missing, ..t }),
                ..config(https())
            },
        ),
        (
            "etcd endpoint https://127.0.0.1:2379",
            EtcdConfig {
                tls: good().map(|t| EtcdTls { cert: broken, ..t }),
                ..config(https())
            },
        ),
        (
            "must not be 0",
            EtcdConfig {
                request_timeout: Duration::ZERO,
                ..config(vec!["http://127.0.0.1:2379".into()])
            },
        ),
        (
            "name of the cluster",
            EtcdConfig {
                cluster: "a/b".into(),
                ..config(vec!["http://127.0.0.1:2379".into()])
            },
        ),
    ];
    for (word, config) in cases {
        let (to_core, _told) = tokio::sync::mpsc::channel(1);
        let error = format!("{:#}", Engine::start(config, 4, to_core).expect_err(word));
        assert!(error.contains(word), "{word}: {error}");
    }
    for groups in [0, 65] {
        let (to_core, _told) = tokio::sync::mpsc::channel(1);
        let config = config(vec!["http://127.0.0.1:2379".into()]);
        let error = Engine::start(config, groups, to_core)
            .expect_err("groups")
            .to_string();
        assert!(error.contains("1 to 64 groups"), "{error}");
    }
    // One that is refused nowhere, so that the cases above are refused for what they say.
    let (to_core, _told) = tokio::sync::mpsc::channel(8);
    let tls = good();
    let config = EtcdConfig {
        tls,
        ..config(https())
    };
    let engine = Engine::start(config, 4, to_core).expect("a good configuration");
    engine.ask(1, G0, OwnershipOp::Read);
}
