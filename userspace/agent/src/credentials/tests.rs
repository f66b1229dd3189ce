use super::*;
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
        key: folder.0.join("gw.key"),
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
        key: folder.put("gw.key", &key.serialize_pem()),
        rsa_pkcs1: false,
        ocsp: None,
    };
    let own = super::own("site", &files).unwrap();
    let (done, mut signed) = tokio::sync::mpsc::unbounded_channel();
    let signer = signer::Signer::start([("site".to_owned(), own.key)].into(), done).unwrap();
    let request = |key: &str, scheme| SignRequest {
        ike_spi: model::IkeSpi(7),
        token: 9,
        key: key.to_owned(),
        scheme,
        octets: b"octets".to_vec(),
    };
    signer.sign(request("site", SignatureScheme::EcdsaSha384));
    let answer = signed.blocking_recv().unwrap();
    assert_eq!((answer.ike_spi, answer.token), (model::IkeSpi(7), 9));
    let public = aws_lc_rs::signature::UnparsedPublicKey::new(
        &aws_lc_rs::signature::ECDSA_P384_SHA384_ASN1,
        &own.facts.public_key,
    );
    public.verify(b"octets", &answer.signature.unwrap()).unwrap();
    signer.sign(request("site", SignatureScheme::Ed25519));
    let why = signed.blocking_recv().unwrap().signature.unwrap_err();
    assert!(why.contains("ECDSA P-384"), "{why}");
    signer.sign(request("elsewhere", SignatureScheme::EcdsaSha384));
    let why = signed.blocking_recv().unwrap().signature.unwrap_err();
    assert!(why.contains("elsewhere"), "{why}");
    signer.replace(signer::Keys::new());
    signer.sign(request("site", SignatureScheme::EcdsaSha384));
    assert!(
        signed.blocking_recv().unwrap().signature.is_err(),
        "the key is gone"
    );
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
