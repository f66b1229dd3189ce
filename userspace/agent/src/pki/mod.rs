//! The cluster's own certificates and secret: kept by `espalier cluster ...`, read by the synch channel.
//!
//! A member certificate is signed by the cluster's CA and names exactly one member of one cluster. The CA's key is
//! needed only to issue and revoke; it can be kept off the members. [`Authority`] is the folder with the CA's key,
//! [`Identity`] what a member reads: `ca.crt` (one CA, or two while the CA changes), `cluster.crl` (one revocation list
//! for each), its own certificate and key, and the cluster secret.

mod authority;
mod ca;
mod certificate;
mod files;
mod ledger;
mod secrets;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use model::MemberId;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};

pub use authority::{Authority, Change, DAYS_DEFAULT, DAYS_MAX, Overview, Validity};
pub use certificate::CertificateFacts;
pub use secrets::{ClusterSecret, SecretId, Secrets};

/// Octets of the cluster secret.
const SECRET_LEN: usize = 32;
/// The CA certificates that members trust.
const CA_FILE: &str = "ca.crt";
/// One revocation list for each of them.
const CRL_FILE: &str = "cluster.crl";
/// The cluster secret.
const SECRET_FILE: &str = "cluster.secret";
/// The one that takes its place soon.
const NEXT_SECRET_FILE: &str = "cluster-next.secret";
/// The one before.
const OLD_SECRET_FILE: &str = "cluster-old.secret";

/// The name in a member's certificate.
pub fn member_name(cluster: &str, member: MemberId) -> String {
    format!(
        "member-{member}.{}.espalier",
        cluster.replace('_', "-").to_lowercase()
    )
}

fn certificate_file(member: MemberId) -> String {
    format!("member-{member}.crt")
}

fn key_file(member: MemberId) -> String {
    format!("member-{member}.key")
}

/// Makes a CA, a certificate and key for each member, and the cluster secret, for the usual time. Returns the files made.
///
/// # Errors
/// The folder cannot be made, or any of the files is there already (then nothing is written).
pub fn init(dir: &Path, cluster: &str, members: u8) -> Result<Vec<PathBuf>> {
    Ok(Authority::init(dir, cluster, members, Validity::days(DAYS_DEFAULT)?)?.written)
}

/// What one member needs for the synch channel.
pub struct Identity {
    /// The member's certificate.
    pub certificate: CertificateDer<'static>,
    /// What it says.
    pub facts: CertificateFacts,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// The cluster's CA; two while the CA changes. No other is trusted.
    pub roots: Arc<RootCertStore>,
    /// Revocation lists. Where there is any, each CA needs one: a certificate whose state is unknown is refused.
    pub revoked: Vec<CertificateRevocationListDer<'static>>,
    /// Shared by all members: steering key, the secrets of cookies, tokens and tickets, and policy digests are derived from it.
    pub secrets: Secrets,
}

impl Identity {
    /// Reads the files of `member` in `dir`.
    ///
    /// # Errors
    /// A file is missing or is not what it should be.
    pub fn load(dir: &Path, member: MemberId) -> Result<Self> {
        let ca = dir.join(CA_FILE);
        let trusted = CertificateDer::pem_file_iter(&ca)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .with_context(|| {
                format!(
                    "cannot read the cluster CA {}; run: espalier cluster init",
                    ca.display()
                )
            })?;
        if trusted.is_empty() {
            bail!(
                "{} has no certificate; copy it from the folder of 'cluster init'",
                ca.display()
            );
        }
        let mut roots = RootCertStore::empty();
        for certificate in trusted {
            roots
                .add(certificate)
                .with_context(|| format!("{} has no usable CA certificate", ca.display()))?;
        }
        let crl = dir.join(CRL_FILE);
        let revoked = if crl.exists() {
            CertificateRevocationListDer::pem_file_iter(&crl)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .with_context(|| format!("cannot read the revocation list {}", crl.display()))?
        } else {
            Vec::new()
        };
        let crt = dir.join(certificate_file(member));
        let certificate = CertificateDer::from_pem_file(&crt)
            .with_context(|| format!("cannot read the member certificate {}", crt.display()))?;
        let facts = CertificateFacts::of(&certificate)
            .with_context(|| format!("{} is no usable certificate", crt.display()))?;
        let key = dir.join(key_file(member));
        let key = PrivateKeyDer::from_pem_file(&key)
            .with_context(|| format!("cannot read the member key {}", key.display()))?;
        let secrets = Secrets::load(dir)?;
        Ok(Self {
            certificate,
            facts,
            key,
            roots: Arc::new(roots),
            revoked,
            secrets,
        })
    }

    /// A key for one purpose that nobody but this member can derive: from its own private key.
    pub fn own_key(&self, purpose: &str) -> [u8; 32] {
        hmac(self.key.secret_der(), purpose.as_bytes())
    }
}

fn hmac(key: &[u8], data: &[u8]) -> [u8; 32] {
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, key);
    let mut out = [0; 32];
    out.copy_from_slice(aws_lc_rs::hmac::sign(&key, data).as_ref());
    out
}

/// The member that a certificate (verified against the CA before) names, if it is one of `members`.
pub fn member_of(certificate: &CertificateDer<'_>, cluster: &str, members: &[MemberId]) -> Option<MemberId> {
    let parsed = rustls::server::ParsedCertificate::try_from(certificate).ok()?;
    members.iter().copied().find(|member| {
        ServerName::try_from(member_name(cluster, *member))
            .is_ok_and(|name| rustls::client::verify_server_name(&parsed, &name).is_ok())
    })
}

#[cfg(test)]
mod tests;
