//! Who somebody is, and how that is proved: identities, certificates, signatures.
//!
//! The engine never signs: a [`crate::SignRequest`] goes out, a finished signature comes in.

pub mod certificate;
pub mod dn;
pub mod eap;
pub mod ocsp;
pub mod pattern;
pub(crate) mod signing;
pub mod trust;

use crate::config::{Connection, Identity};
use certificate::KeyKind;
use eap::Users;
use ike_wire::{AuthMethod, Certificate, CertificateRequest, Payload, PayloadList};
use std::sync::Arc;
use trust::Trust;

/// How we prove who we are.
#[derive(Clone)]
pub enum LocalAuth {
    /// By the connection's pre-shared key.
    Psk,
    /// By a certificate.
    Certificate(Arc<LocalCertificate>),
}

/// Our certificate. The private key is elsewhere; `key` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalCertificate {
    /// Names the private key in a [`crate::SignRequest`].
    pub key: String,
    /// What the key is.
    pub kind: KeyKind,
    /// RSA signatures are padded by PSS; else by PKCS #1 v1.5.
    pub rsa_pss: bool,
    /// DER: our certificate, then its issuers as far as they are to be sent.
    pub chain: Vec<Vec<u8>>,
    /// DER: an OCSP response about our certificate, for peers that ask for it (RFC 4806).
    pub ocsp: Option<Vec<u8>>,
}

/// How the peer has to prove who it is.
#[derive(Clone)]
pub enum RemoteAuth {
    /// By the connection's pre-shared key.
    Psk,
    /// By a certificate of one of these authorities.
    Certificate(Arc<Trust>),
    /// By EAP-MSCHAPv2, as one of these users; only it initiates. `remote_id` is about the user's name then.
    EapMsChapV2(Arc<Users>),
    /// By EAP-TLS, with a certificate of one of these authorities, which whoever does TLS for us checks; only it initiates.
    EapTls(Arc<Trust>),
}

impl RemoteAuth {
    /// As an operator writes it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Psk => "psk",
            Self::Certificate(_) => "cert",
            Self::EapMsChapV2(_) => "eap-mschapv2",
            Self::EapTls(_) => "eap-tls",
        }
    }

    /// Whether an AUTH payload of this method can be the proof.
    pub(crate) fn takes(&self, method: AuthMethod) -> bool {
        match self {
            Self::Psk => method == AuthMethod::SHARED_KEY_MIC,
            Self::Certificate(_) => is_signature(method),
            Self::EapMsChapV2(_) | Self::EapTls(_) => false,
        }
    }
}

pub(crate) fn is_signature(method: AuthMethod) -> bool {
    matches!(
        method,
        AuthMethod::RSA_SIGNATURE
            | AuthMethod::DSS_SIGNATURE
            | AuthMethod::ECDSA_256
            | AuthMethod::ECDSA_384
            | AuthMethod::ECDSA_521
            | AuthMethod::DIGITAL_SIGNATURE
    )
}

impl Connection {
    /// Whether either side signs.
    pub(crate) fn uses_certificates(&self) -> bool {
        matches!(self.local_auth, LocalAuth::Certificate(_))
            || matches!(self.remote_auth, RemoteAuth::Certificate(_))
    }

    /// Whether the peer may say that it is this one.
    pub(crate) fn expects(&self, id: &Identity) -> bool {
        match (&self.remote_id, &self.remote_pattern) {
            (Some(expected), _) => expected == id,
            (None, Some(pattern)) => pattern.matches(id),
            (None, None) => true,
        }
    }

    /// The peer's identity as configured, for logs.
    pub(crate) fn expected_id(&self) -> String {
        match (&self.remote_id, &self.remote_pattern) {
            (Some(id), _) => id.to_string(),
            (None, Some(pattern)) => pattern.to_string(),
            (None, None) => "anyone".to_owned(),
        }
    }

    /// CERT payloads for our proof to a peer that has sent these payloads.
    pub(crate) fn own_certificates(&self, theirs: &PayloadList) -> Vec<Payload> {
        match &self.local_auth {
            LocalAuth::Psk => Vec::new(),
            LocalAuth::Certificate(own) => {
                let cert = |der: &Vec<u8>| Payload::Certificate(Certificate::x509(der.clone()));
                let asked = theirs.certificate_requests().any(CertificateRequest::is_ocsp);
                let response = own.ocsp.iter().filter(|_| asked);
                let response = response.map(|der| Payload::Certificate(Certificate::ocsp(der.clone())));
                own.chain.iter().map(cert).chain(response).collect()
            }
        }
    }
}

/// CERTREQ payloads that ask for certificates of all these connections' authorities, if any of them takes certificates, and for OCSP
/// responses, if any of them wants to know of every certificate.
pub(crate) fn certificate_requests<'c>(
    connections: impl IntoIterator<Item = &'c Connection>,
) -> impl Iterator<Item = Payload> {
    let mut digests: Vec<[u8; 20]> = Vec::new();
    let (mut wanted, mut ocsp) = (false, false);
    for connection in connections {
        if let RemoteAuth::Certificate(trust) = &connection.remote_auth {
            wanted = true;
            ocsp |= trust.is_strict();
            digests.extend_from_slice(trust.digests());
        }
    }
    digests.sort_unstable();
    digests.dedup();
    let certificates = wanted.then(|| CertificateRequest::x509(&digests));
    let responses = ocsp.then(CertificateRequest::ocsp);
    certificates
        .into_iter()
        .chain(responses)
        .map(Payload::CertificateRequest)
}
