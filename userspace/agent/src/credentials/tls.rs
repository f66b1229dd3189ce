//! TLS for peers that authenticate by EAP-TLS (RFC 5216, RFC 9190). Sessions live in one thread of one member and in no record.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ike::auth::certificate::KeyKind;
use ike::auth::trust::Trust;
use ike::{LocalCertificate, SignRequest, TlsOutcome, TlsRequest};
use model::{IkeSpi, SecretBytes};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, ServerConnection};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, ProtocolVersion,
    ServerConfig, SignatureAlgorithm, SignatureScheme,
};
use zeroize::Zeroizing;

use super::key::PrivateKey;

/// Handshakes at a time; the oldest gives way.
const SESSIONS_MAX: usize = 1024;
/// A handshake that is not complete after this is forgotten.
const SESSION_LIFE: Duration = Duration::from_secs(60);
/// EAP type of EAP-TLS, context of the exporter (RFC 9190 2.3).
const TYPE: [u8; 1] = [13];

/// What TLS uses, by connection.
pub type Settings = HashMap<String, Arc<ServerConfig>>;

/// What a connection proves itself by in TLS, and whom it believes there.
///
/// # Errors
/// The provider lacks something.
pub fn settings(own: &LocalCertificate, key: Arc<PrivateKey>, trust: Arc<Trust>) -> Result<ServerConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Believes {
        trust,
        algorithms: provider.signature_verification_algorithms,
    };
    let chain = own.chain.iter().map(|der| CertificateDer::from(der.clone()));
    let certified = CertifiedKey::new(
        chain.collect(),
        Arc::new(Key {
            key,
            rsa_pss: own.rsa_pss,
        }),
    );
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .context("TLS for EAP-TLS")?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(Always(Arc::new(certified))));
    // A session that is resumed would prove nothing anew, and its tickets would be of one member.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Handshakes that are under way.
#[derive(Default)]
pub struct Sessions {
    settings: Settings,
    open: HashMap<IkeSpi, (Instant, ServerConnection)>,
}

impl Sessions {
    /// For these connections.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            open: HashMap::new(),
        }
    }

    /// Other settings for handshakes that begin from now on.
    pub fn replace(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Gives a peer's message to its session.
    pub fn run(&mut self, request: &TlsRequest) -> TlsOutcome {
        let failed = |why: &str| TlsOutcome::Failed {
            alert: Vec::new(),
            why: why.to_owned(),
        };
        let mut session = if request.first {
            let Some(config) = self.settings.get(&request.connection) else {
                return failed("the connection has no EAP-TLS any more");
            };
            match ServerConnection::new(config.clone()) {
                Ok(session) => session,
                Err(error) => return failed(&error.to_string()),
            }
        } else {
            match self.open.remove(&request.ike_spi) {
                Some((_, session)) => session,
                None => {
                    return failed(
                        "its TLS handshake was begun by a member that is gone, or too long ago; the peer has to connect anew",
                    );
                }
            }
        };
        let outcome = advance(&mut session, &request.octets);
        if matches!(outcome, TlsOutcome::Continue(_)) {
            self.make_room();
            self.open.insert(request.ike_spi, (Instant::now(), session));
        }
        outcome
    }

    fn make_room(&mut self) {
        self.open.retain(|_, (since, _)| since.elapsed() < SESSION_LIFE);
        if self.open.len() >= SESSIONS_MAX {
            let oldest = self.open.iter().min_by_key(|(_, (since, _))| *since);
            if let Some(spi) = oldest.map(|(spi, _)| *spi) {
                self.open.remove(&spi);
            }
        }
    }
}

fn advance(session: &mut ServerConnection, octets: &[u8]) -> TlsOutcome {
    let read = read(session, octets);
    let done = match &read {
        Ok(()) if !session.is_handshaking() => Some(complete(session)),
        _ => None,
    };
    let mut out = Vec::new();
    while session.wants_write() {
        if session.write_tls(&mut out).is_err() {
            break;
        }
    }
    match (read, done) {
        (Err(why), _) | (Ok(()), Some(Err(why))) => TlsOutcome::Failed { alert: out, why },
        (Ok(()), Some(Ok((msk, certificates)))) => TlsOutcome::Done {
            octets: out,
            msk,
            certificates,
        },
        (Ok(()), None) => TlsOutcome::Continue(out),
    }
}

fn read(session: &mut ServerConnection, mut octets: &[u8]) -> Result<(), String> {
    while !octets.is_empty() {
        match session.read_tls(&mut octets) {
            Ok(0) => return Err("the peer says more than the TLS handshake has".to_owned()),
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
        session.process_new_packets().map_err(|error| explain(&error))?;
    }
    // Nobody has anything to say inside.
    let mut inside = [0; 1];
    match session.reader().read(&mut inside) {
        Ok(0) => Err("the peer closed TLS".to_owned()),
        Ok(_) => Err("the peer sends data inside EAP-TLS".to_owned()),
        Err(_) => Ok(()),
    }
}

/// The key, and who proved to have which certificate.
fn complete(session: &mut ServerConnection) -> Result<(SecretBytes, Vec<Vec<u8>>), String> {
    let is_13 = session.protocol_version() == Some(ProtocolVersion::TLSv1_3);
    let (label, context): (&[u8], _) = match is_13 {
        true => (b"EXPORTER_EAP_TLS_Key_Material", Some(&TYPE[..])),
        // RFC 5216 2.3: the PRF of TLS 1.2 over both randoms, which is what its exporter is (RFC 5705 4).
        false => (b"client EAP encryption", None),
    };
    let mut material = Zeroizing::new([0; 128]);
    session
        .export_keying_material(material.as_mut_slice(), label, context)
        .map_err(|error| error.to_string())?;
    if is_13 {
        //= rfc9190#2.1.1
        // the EAP-TLS server ... sends the protected success indication: one octet of application data, 0x00
        session
            .writer()
            .write_all(&[0])
            .map_err(|error| error.to_string())?;
    }
    let certificates = session.peer_certificates().unwrap_or_default();
    let certificates = certificates.iter().map(|der| der.to_vec()).collect();
    Ok((SecretBytes::new(material[..64].to_vec()), certificates))
}

fn explain(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(why))) => why.to_string(),
        Error::NoCertificatesPresented => {
            "it sent no certificate in TLS: give it one that is issued by an authority in ca_files".to_owned()
        }
        Error::AlertReceived(alert) => format!(
            "it does not go on with TLS ({alert:?}): does it believe the authority of our certificate, and is our identity in it?"
        ),
        other => format!("TLS: {other}"),
    }
}

/// A reason in words.
#[derive(Debug)]
struct Why(String);

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for Why {}

struct Believes {
    trust: Arc<Trust>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for Believes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Believes")
    }
}

impl ClientCertVerifier for Believes {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let all: Vec<&[u8]> = std::iter::once(end_entity.as_ref())
            .chain(intermediates.iter().map(AsRef::as_ref))
            .collect();
        match self.trust.verify(&all, &[], now.as_secs()) {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(why) => Err(CertificateError::Other(OtherError(Arc::new(Why(why)))).into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Our certificate, whatever name the peer asks for.
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesServerCert for Always {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

/// A connection's private key, which may be in a token.
struct Key {
    key: Arc<PrivateKey>,
    rsa_pss: bool,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

struct Signs {
    key: Arc<PrivateKey>,
    scheme: crypto::SignatureScheme,
    named: SignatureScheme,
}

impl fmt::Debug for Signs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signs")
    }
}

impl SigningKey for Key {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        use SignatureScheme as S;
        use crypto::SignatureScheme as Ours;
        let pss = [
            (S::RSA_PSS_SHA256, Ours::RsaPssSha256),
            (S::RSA_PSS_SHA384, Ours::RsaPssSha384),
            (S::RSA_PSS_SHA512, Ours::RsaPssSha512),
        ];
        let pkcs1 = [
            (S::RSA_PKCS1_SHA256, Ours::RsaPkcs1Sha256),
            (S::RSA_PKCS1_SHA384, Ours::RsaPkcs1Sha384),
            (S::RSA_PKCS1_SHA512, Ours::RsaPkcs1Sha512),
        ];
        let own: &[_] = match self.key.kind() {
            // A token may know PKCS #1 only, which rsa_padding says.
            KeyKind::Rsa if self.rsa_pss => &pss,
            KeyKind::Rsa => &pkcs1,
            KeyKind::EcdsaP256 => &[(S::ECDSA_NISTP256_SHA256, Ours::EcdsaSha256)],
            KeyKind::EcdsaP384 => &[(S::ECDSA_NISTP384_SHA384, Ours::EcdsaSha384)],
            KeyKind::EcdsaP521 => &[(S::ECDSA_NISTP521_SHA512, Ours::EcdsaSha512)],
            KeyKind::Ed25519 => &[(S::ED25519, Ours::Ed25519)],
        };
        let (named, scheme) = *own.iter().find(|(named, _)| offered.contains(named))?;
        Some(Box::new(Signs {
            key: self.key.clone(),
            scheme,
            named,
        }))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        match self.key.kind() {
            KeyKind::Rsa => SignatureAlgorithm::RSA,
            KeyKind::Ed25519 => SignatureAlgorithm::ED25519,
            KeyKind::EcdsaP256 | KeyKind::EcdsaP384 | KeyKind::EcdsaP521 => SignatureAlgorithm::ECDSA,
        }
    }
}

impl Signer for Signs {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let request = SignRequest {
            ike_spi: IkeSpi(0),
            token: 0,
            key: String::new(),
            scheme: self.scheme,
            octets: message.to_vec(),
        };
        self.key.sign(&request).map_err(Error::General)
    }

    fn scheme(&self) -> SignatureScheme {
        self.named
    }
}
