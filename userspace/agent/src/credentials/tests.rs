use super::*;
use crate::config::{KeySource, TokenKeyConfig};
use ike::SignRequest;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("esp-credentials-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn pair() -> KeyPair {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap()
}

fn certificate(key: &KeyPair) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CountryName, "DE");
    params.distinguished_name.push(DnType::CommonName, "gw");
    params.subject_alt_names = vec![SanType::DnsName("gw.example".try_into().unwrap())];
    params.self_signed(key).unwrap().pem()
}

#[test]
fn a_certificate_and_its_key_are_read_and_others_are_refused() {
    let folder = Folder::new("own");
    let (key, other) = (pair(), pair());
    let files = |key: &KeyPair| CertificateFiles {
        cert: folder.put("gw.crt", &certificate(key)),
        key: folder.0.join("gw.key").into(),
        rsa_pkcs1: false,
        ocsp: None,
    };
    folder.put("gw.key", &key.serialize_pem());
    let own = super::own("site", &files(&key)).unwrap();
    assert_eq!(own.certificate.key, "site");
    assert_eq!(own.certificate.kind, ike::auth::certificate::KeyKind::EcdsaP384);
    let text = |files: &CertificateFiles| format!("{:#}", super::own("site", files).err().unwrap());
    let why = text(&files(&other));
    assert!(why.contains("is not the key of the certificate"), "{why}");
    let mut files = files(&key);
    folder.put("gw.key", "no key");
    let why = text(&files);
    assert!(why.contains("gw.key") && why.contains("PEM"), "{why}");
    files.cert = folder.put("gw.crt", "no certificate");
    let why = text(&files);
    assert!(why.contains("no certificate in it"), "{why}");
}

#[test]
fn what_a_key_signs_is_verified_with_its_certificate() {
    use crypto::SignatureScheme;
    let folder = Folder::new("sign");
    let key = pair();
    let files = CertificateFiles {
        cert: folder.put("gw.crt", &certificate(&key)),
        key: folder.put("gw.key", &key.serialize_pem()).into(),
        rsa_pkcs1: false,
        ocsp: None,
    };
    let own = super::own("site", &files).unwrap();
    let (done, mut signed) = tokio::sync::mpsc::unbounded_channel();
    let signer = signer::Signer::start(
        [("site".to_owned(), Arc::new(own.key))].into(),
        tls::Settings::new(),
        done,
    )
    .unwrap();
    let request = |key: &str, scheme| SignRequest {
        ike_spi: model::IkeSpi(7),
        token: 9,
        key: key.to_owned(),
        scheme,
        octets: b"octets".to_vec(),
    };
    signer.sign(request("site", SignatureScheme::EcdsaSha384));
    let mut signed = || match signed.blocking_recv() {
        Some(signer::Done::Signed(signed)) => signed,
        _ => panic!("a signature"),
    };
    let answer = signed();
    assert_eq!((answer.ike_spi, answer.token), (model::IkeSpi(7), 9));
    let public = aws_lc_rs::signature::UnparsedPublicKey::new(
        &aws_lc_rs::signature::ECDSA_P384_SHA384_ASN1,
        &own.facts.public_key,
    );
    public.verify(b"octets", &answer.signature.unwrap()).unwrap();
    signer.sign(request("site", SignatureScheme::Ed25519));
    let why = signed().signature.unwrap_err();
    assert!(why.contains("ECDSA P-384"), "{why}");
    signer.sign(request("elsewhere", SignatureScheme::EcdsaSha384));
    let why = signed().signature.unwrap_err();
    assert!(why.contains("elsewhere"), "{why}");
    signer.replace(signer::Keys::new(), tls::Settings::new());
    signer.sign(request("site", SignatureScheme::EcdsaSha384));
    assert!(signed().signature.is_err(), "the key is gone");
}

#[test]
fn tls_goes_on_only_where_it_was_begun() {
    use ike::{TlsOutcome, TlsRequest};
    let folder = Folder::new("tls");
    let key = pair();
    let files = CertificateFiles {
        cert: folder.put("gw.crt", &certificate(&key)),
        key: folder.put("gw.key", &key.serialize_pem()).into(),
        rsa_pkcs1: false,
        ocsp: None,
    };
    let own = super::own("site", &files).unwrap();
    let trust = trust(&AuthorityFiles {
        ca: vec![folder.0.join("gw.crt")],
        crl: Vec::new(),
        ocsp: Vec::new(),
        strict: false,
    });
    let key = Arc::new(own.key);
    let settings = tls::settings(&own.certificate, key, Arc::new(trust.unwrap())).unwrap();
    let mut sessions = tls::Sessions::new([("site".to_owned(), Arc::new(settings))].into());
    let mut run = |connection: &str, first, octets: &[u8]| {
        let outcome = sessions.run(&TlsRequest {
            ike_spi: model::IkeSpi(7),
            token: 9,
            connection: connection.to_owned(),
            first,
            octets: octets.to_vec(),
        });
        match outcome {
            TlsOutcome::Failed { alert, why } => (alert, why),
            _ => panic!("a failure"),
        }
    };
    let (alert, why) = run("site", false, b"x");
    assert!(alert.is_empty() && why.contains("a member that is gone"), "{why}");
    let (_, why) = run("elsewhere", true, b"x");
    assert!(why.contains("no EAP-TLS"), "{why}");
    // A handshake record of nonsense.
    let (_, why) = run("site", true, &[22, 3, 1, 0, 4, 9, 9, 9, 9]);
    assert!(why.starts_with("TLS: "), "{why}");
    let (_, why) = run("site", false, b"x");
    assert!(
        why.contains("a member that is gone"),
        "what failed is over: {why}"
    );
}

/// A certificate of this authority, in a file with its key.
fn issued(folder: &Folder, name: &str, issuer: &rcgen::Issuer<'_, KeyPair>) -> (PathBuf, KeyPair) {
    let key = pair();
    let mut params = CertificateParams::new(vec![format!("{name}.example")]).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let pem = params.signed_by(&key, issuer).unwrap().pem();
    folder.put(&format!("{name}.key"), &key.serialize_pem());
    (folder.put(&format!("{name}.crt"), &pem), key)
}

#[test]
fn both_sides_of_eap_tls_come_to_the_same_key_with_either_version_and_with_certificates_only() {
    use ike::{TlsOutcome, TlsRequest};
    use rustls::pki_types::PrivatePkcs8KeyDer;
    use std::io::Read;
    let folder = Folder::new("eap-tls");
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "CA");
    let ca_key = pair();
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(params, ca_key);
    let (cert, _) = issued(&folder, "gw", &issuer);
    let (client_cert, client_key) = issued(&folder, "client", &issuer);
    let files = CertificateFiles {
        cert,
        key: folder.0.join("gw.key").into(),
        rsa_pkcs1: false,
        ocsp: None,
    };
    let own = super::own("site", &files).unwrap();
    let trust = trust(&AuthorityFiles {
        ca: vec![folder.put("ca.crt", &ca.pem())],
        crl: Vec::new(),
        ocsp: Vec::new(),
        strict: false,
    });
    let settings = tls::settings(&own.certificate, Arc::new(own.key), Arc::new(trust.unwrap())).unwrap();
    let mut sessions = tls::Sessions::new([("site".to_owned(), Arc::new(settings))].into());
    let client_chain = certificates(&client_cert).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let versions: [(_, &[u8], Option<&[u8]>); 2] = [
        (
            &rustls::version::TLS13,
            b"EXPORTER_EAP_TLS_Key_Material",
            Some(&[13]),
        ),
        (&rustls::version::TLS12, b"client EAP encryption", None),
    ];
    for ((version, label, context), certified) in versions.into_iter().flat_map(|v| [(v, true), (v, false)]) {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots.clone());
        let config = match certified {
            true => config
                .with_client_auth_cert(
                    vec![CertificateDer::from(client_chain[0].clone())],
                    PrivatePkcs8KeyDer::from(client_key.serialize_der()).into(),
                )
                .unwrap(),
            false => config.with_no_client_auth(),
        };
        let name = "gw.example".try_into().unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut first = true;
        loop {
            let mut octets = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut octets).unwrap();
            }
            let outcome = sessions.run(&TlsRequest {
                ike_spi: model::IkeSpi(7),
                token: 9,
                connection: "site".to_owned(),
                first: std::mem::replace(&mut first, false),
                octets,
            });
            let (said, end) = match outcome {
                TlsOutcome::Continue(said) => (said, None),
                TlsOutcome::Done {
                    octets,
                    msk,
                    certificates,
                } => (octets, Some((msk, certificates))),
                TlsOutcome::Failed { alert, why } => {
                    assert!(!certified && !alert.is_empty(), "{why}");
                    assert!(why.contains("no certificate in TLS"), "{why}");
                    break;
                }
            };
            let mut said = &said[..];
            while !said.is_empty() {
                client.read_tls(&mut said).unwrap();
                client.process_new_packets().unwrap();
            }
            let Some((msk, shown)) = end else { continue };
            assert!(certified);
            assert_eq!(shown, client_chain);
            let theirs = client.export_keying_material([0; 128], label, context).unwrap();
            assert_eq!(msk.expose(), &theirs[..64]);
            let mut inside = [9; 4];
            let read = client.reader().read(&mut inside);
            match context {
                Some(_) => assert_eq!((read.unwrap(), inside[0]), (1, 0), "the indication of success"),
                None => assert!(read.is_err()),
            }
            break;
        }
    }
}

#[test]
fn our_identity_is_one_of_the_certificates() {
    let der = rustls_pki_types::CertificateDer::from_pem_slice(certificate(&pair()).as_bytes()).unwrap();
    let facts = Facts::of(&der).unwrap();
    let id = |text: Option<&str>| own_id(text, Some(&facts)).map(|id| id.to_string());
    assert_eq!(id(None).unwrap(), "C=DE, CN=gw");
    assert_eq!(
        id(Some("c=DE,  cn=GW")).unwrap(),
        "C=DE, CN=gw",
        "as the certificate writes it"
    );
    assert_eq!(id(Some("gw.example")).unwrap(), "gw.example");
    let why = format!("{:#}", id(Some("other.example")).unwrap_err());
    assert!(
        why.contains("gw.example") && why.contains("subjectAltName"),
        "{why}"
    );
    assert!(own_id(Some("CN=a"), None).is_ok() && own_id(Some("CN=*"), None).is_err());
    assert!(check_dates(&facts, facts.not_after).is_ok());
    assert!(check_dates(&facts, facts.not_after + 1).is_err());
    assert!(check_dates(&facts, facts.not_before - 1).is_err());
}

#[test]
fn eap_users_are_one_a_line() {
    let folder = Folder::new("users");
    let read = |text: &str| users(&folder.put("users", text)).map_err(|error| format!("{error:#}"));
    assert_eq!(
        read("# people\nalice:in wonder:land\n\nbob:x\n")
            .ok()
            .unwrap()
            .len(),
        2
    );
    for (text, word) in [
        ("alice\n", "line 1"),
        ("\nalice:\n", "line 2"),
        ("alice:a\nalice:b\n", "twice"),
        ("# nobody\n", "no users"),
    ] {
        let why = read(text).err().unwrap();
        assert!(why.contains(word), "{why}");
    }
}

/// A token of SoftHSM in a folder of its own. Its configuration is by environment and for a whole process, so one test has it.
struct SoftToken {
    folder: Folder,
}

const SOFTHSM: &str = "/usr/lib/softhsm/libsofthsm2.so";

impl SoftToken {
    fn new() -> Self {
        let folder = Folder::new("token");
        let tokens = folder.0.join("tokens");
        std::fs::create_dir_all(&tokens).unwrap();
        let conf = format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display());
        let conf = folder.put("softhsm2.conf", &conf);
        // SAFETY: the test that this belongs to runs in a process of its own (see below): no other thread reads the environment.
        unsafe { std::env::set_var("SOFTHSM2_CONF", conf) };
        let this = Self { folder };
        this.util(&[
            "--init-token",
            "--free",
            "--label",
            "gateways",
            "--so-pin",
            "87654321",
            "--pin",
            "1234",
        ]);
        this
    }

    fn util(&self, arguments: &[&str]) {
        let output = std::process::Command::new("softhsm2-util")
            .args(arguments)
            .output()
            .expect("softhsm2-util (Debian package softhsm2)");
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn import(&self, key: &str, label: &str, id: &str) {
        let path = self.folder.put("import.key", key);
        let path = path.to_str().unwrap();
        self.util(&[
            "--import", path, "--token", "gateways", "--label", label, "--id", id, "--pin", "1234",
        ]);
    }

    fn config(&self, uri: &str) -> TokenKeyConfig {
        TokenKeyConfig {
            module: SOFTHSM.into(),
            uri: uri::KeyUri::parse(uri).unwrap(),
            pin_file: self.folder.put("pin", "1234\n"),
        }
    }
}

/// Runs in a process of its own: the token's environment and login are the whole process's.
#[test]
#[ignore = "run by keys_in_a_token_sign_and_what_is_wrong_with_one_is_said"]
fn with_a_token() {
    use crypto::SignatureScheme;
    use ike::auth::certificate::KeyKind;
    let token = SoftToken::new();
    let pairs = [
        (&rcgen::PKCS_ECDSA_P256_SHA256, "p256", "01"),
        (&rcgen::PKCS_ECDSA_P384_SHA384, "p384", "02"),
        (&rcgen::PKCS_RSA_SHA256, "rsa", "03"),
    ]
    .map(|(algorithm, label, id)| {
        let pair = KeyPair::generate_for(algorithm).unwrap();
        token.import(&pair.serialize_pem(), label, id);
        (pair, label)
    });
    let files = |label: &str, pair: &KeyPair, rsa_pkcs1| CertificateFiles {
        cert: token.folder.put(&format!("{label}.crt"), &certificate(pair)),
        key: KeySource::Token(token.config(&format!("pkcs11:token=gateways;object={label}"))),
        rsa_pkcs1,
        ocsp: None,
    };
    let why = |files: &CertificateFiles| format!("{:#}", super::own("site", files).err().unwrap());
    // Before anything has logged in: the PIN of a process that is let in already is not asked for again.
    let mut wrong = files("p256", &pairs[0].0, false);
    let refuse = |files: &CertificateFiles, words: [&str; 2]| {
        let text = why(files);
        assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
    };
    let change = |files: &mut CertificateFiles, change: &dyn Fn(&mut TokenKeyConfig)| {
        if let KeySource::Token(config) = &mut files.key {
            change(config);
        }
    };
    change(&mut wrong, &|c| c.pin_file = token.folder.put("wrong", "9999\n"));
    refuse(&wrong, ["'gateways'", "locks itself"]);
    change(&mut wrong, &|c| c.pin_file = token.folder.put("none", "\n"));
    refuse(&wrong, ["none", "no PIN"]);

    let mut keys = Vec::new();
    for (pair, label) in &pairs {
        for rsa_pkcs1 in [false, true] {
            let own = super::own("site", &files(label, pair, rsa_pkcs1)).unwrap();
            keys.push((own.key, own.facts));
        }
    }
    let sign = |at: usize, scheme| {
        let (key, facts): &(PrivateKey, Facts) = &keys[at];
        let request = SignRequest {
            ike_spi: model::IkeSpi(7),
            token: 9,
            key: "site".to_owned(),
            scheme,
            octets: vec![5; 3000],
        };
        key.sign(&request).map(|made| (made, facts.public_key.clone()))
    };
    use aws_lc_rs::signature as algorithms;
    let rows: [(usize, _, &dyn algorithms::VerificationAlgorithm); 8] = [
        (
            0,
            SignatureScheme::EcdsaSha256,
            &algorithms::ECDSA_P256_SHA256_ASN1,
        ),
        (
            2,
            SignatureScheme::EcdsaSha384,
            &algorithms::ECDSA_P384_SHA384_ASN1,
        ),
        (
            4,
            SignatureScheme::RsaPssSha256,
            &algorithms::RSA_PSS_2048_8192_SHA256,
        ),
        (
            4,
            SignatureScheme::RsaPssSha384,
            &algorithms::RSA_PSS_2048_8192_SHA384,
        ),
        (
            4,
            SignatureScheme::RsaPssSha512,
            &algorithms::RSA_PSS_2048_8192_SHA512,
        ),
        (
            5,
            SignatureScheme::RsaPkcs1Sha256,
            &algorithms::RSA_PKCS1_2048_8192_SHA256,
        ),
        (
            5,
            SignatureScheme::RsaPkcs1Sha384,
            &algorithms::RSA_PKCS1_2048_8192_SHA384,
        ),
        (
            5,
            SignatureScheme::RsaPkcs1Sha512,
            &algorithms::RSA_PKCS1_2048_8192_SHA512,
        ),
    ];
    for (at, scheme, algorithm) in rows {
        let (made, public) = sign(at, scheme).unwrap();
        let public = aws_lc_rs::signature::UnparsedPublicKey::new(algorithm, public);
        public
            .verify(&[5; 3000], &made)
            .unwrap_or_else(|_| panic!("{}", scheme.name()));
    }
    let text = sign(0, SignatureScheme::RsaPssSha256).unwrap_err();
    assert!(text.contains("ECDSA P-256"), "{text}");
    assert_eq!(keys[2].0.kind(), KeyKind::EcdsaP384);

    let mut other = files("p256", &pairs[0].0, false);
    change(&mut other, &|c| c.uri.object = Some("nobody".to_owned()));
    refuse(&other, ["no private key 'nobody'", "'p384'"]);
    change(&mut other, &|c| c.uri.object = Some("p384".to_owned()));
    refuse(&other, ["'p384'", "is not the key of the certificate"]);
    let stranger = files(
        "p256",
        &KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap(),
        false,
    );
    refuse(
        &stranger,
        [
            "the key 'p256' in the token 'gateways'",
            "is not the key of the certificate",
        ],
    );
    change(&mut other, &|c| c.uri.token = Some("elsewhere".to_owned()));
    refuse(&other, ["no token 'elsewhere'", "'gateways'"]);
    change(&mut other, &|c| c.module = "/nowhere/module.so".into());
    refuse(&other, ["/nowhere/module.so", "pkcs11_module"]);

    // The token is let go of: the next signature logs in again.
    let (key, _) = &keys[0];
    let PrivateKey::Token(key) = key else {
        panic!("a key in a token");
    };
    key.log_out();
    let made = key.sign(SignatureScheme::EcdsaSha256, b"octets");
    assert!(made.is_ok(), "{:?}", made.err());
}

#[test]
fn keys_in_a_token_sign_and_what_is_wrong_with_one_is_said() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "credentials::tests::with_a_token",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].map(|octets| String::from_utf8_lossy(&octets).into_owned());
    assert!(output.status.success(), "{}", text.concat());
    assert!(text[0].contains("1 passed"), "{}", text.concat());
}
