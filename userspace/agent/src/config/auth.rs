//! How the sides of a connection prove who they are, and the files for it.

use std::fmt;
use std::path::PathBuf;

use crate::credentials::uri::KeyUri;

/// How one side of a connection proves who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthKind {
    /// By the pre-shared key.
    Psk,
    /// By a certificate.
    Certificate,
    /// By EAP-MSCHAPv2 (the peer only).
    EapMsChapV2,
    /// By EAP-TLS (the peer only).
    EapTls,
}

/// Our certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// PEM: our certificate, then issuers that the peer may not have.
    pub cert: PathBuf,
    /// Its private key.
    pub key: KeySource,
    /// RSA signatures by PKCS #1 v1.5 instead of PSS.
    pub rsa_pkcs1: bool,
    /// An OCSP response about the certificate (DER), for peers that ask for it.
    pub ocsp: Option<PathBuf>,
}

/// Where a private key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// In a file (PEM).
    File(PathBuf),
    /// In a token.
    Token(TokenKeyConfig),
}

impl From<PathBuf> for KeySource {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Token(config) => {
                let (key, token) = (config.uri.key_text(), config.uri.token_text());
                write!(f, "the key {key} in the token {token}")
            }
        }
    }
}

/// A private key in a token (PKCS #11).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenKeyConfig {
    /// The library that talks to the token.
    pub module: PathBuf,
    /// Which token, which key.
    pub uri: KeyUri,
    /// The token's PIN.
    pub pin_file: PathBuf,
}

/// Whose certificates are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityFiles {
    /// Certificates of authorities.
    pub ca: Vec<PathBuf>,
    /// Revocation lists.
    pub crl: Vec<PathBuf>,
    /// OCSP responses (DER).
    pub ocsp: Vec<PathBuf>,
    /// What neither a list nor a response speaks of counts as revoked.
    pub strict: bool,
}
