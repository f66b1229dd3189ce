//! Certificates and keys that connections prove themselves by: from files to what the IKE engine and the signer want.
//! (The cluster's own certificates, of the synch channel, are in `pki`.)

pub mod key;
pub mod signer;
pub mod tls;
pub mod token;
pub mod uri;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use ike::auth::certificate::Facts;
use ike::auth::dn::DnPattern;
use ike::auth::eap::Users;
use ike::auth::ocsp::Response;
use ike::auth::pattern::{IdPattern, WrittenId};
use ike::auth::trust::{Trust, show_date};
use ike::{Identity, LocalCertificate};
use model::SecretBytes;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use zeroize::Zeroizing;

use crate::config::{AuthorityFiles, CertificateFiles, ConnectionConfig, KeySource};
use key::PrivateKey;
use token::TokenKey;

/// Warnings begin so many days before a certificate expires.
pub const WARN_DAYS: i64 = 14;

/// A certificate with its key, as a connection uses it.
pub struct Own {
    /// What the engine sends.
    pub certificate: Arc<LocalCertificate>,
    /// What the certificate says.
    pub facts: Facts,
    /// What signs.
    pub key: PrivateKey,
}

/// Certificates in a PEM file, or the one in a DER file.
fn certificates(path: &Path) -> Result<Vec<Vec<u8>>> {
    let octets = std::fs::read(path)
        .with_context(|| format!("cannot read the certificate file {}", path.display()))?;
    if octets.first() == Some(&0x30) {
        return Ok(vec![octets]);
    }
    let found = CertificateDer::pem_slice_iter(&octets)
        .map(|certificate| certificate.map(|c| c.to_vec()))
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("{} is damaged", path.display()))?;
    ensure!(
        !found.is_empty(),
        "{} has no certificate in it (PEM or DER)",
        path.display()
    );
    Ok(found)
}

fn revocation_lists(path: &Path) -> Result<Vec<Vec<u8>>> {
    let octets =
        std::fs::read(path).with_context(|| format!("cannot read the revocation list {}", path.display()))?;
    if octets.first() == Some(&0x30) {
        return Ok(vec![octets]);
    }
    let found = CertificateRevocationListDer::pem_slice_iter(&octets)
        .map(|list| list.map(|l| l.to_vec()))
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("{} is damaged", path.display()))?;
    ensure!(
        !found.is_empty(),
        "{} has no revocation list in it (PEM or DER)",
        path.display()
    );
    Ok(found)
}

fn ocsp_response(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read the OCSP response {}", path.display()))
}

/// The OCSP response about our certificate.
fn stapled(path: &Path, facts: &Facts) -> Result<Vec<u8>> {
    let octets = ocsp_response(path)?;
    let response = Response::read(&octets).map_err(|why| anyhow!("{}: {why}", path.display()))?;
    ensure!(
        response.is_about(&facts.serial),
        "the OCSP response {} is not about the certificate of {} (serial {})",
        path.display(),
        facts.subject_text,
        facts.serial
    );
    Ok(octets)
}

/// Reads a certificate and its key. `name` is the connection's.
///
/// # Errors
/// A file cannot be used, or the two do not belong together.
pub fn own(name: &str, files: &CertificateFiles) -> Result<Own> {
    let chain = certificates(&files.cert)?;
    let leaf = chain.first().map(Vec::as_slice).unwrap_or_default();
    let facts = Facts::of(leaf).with_context(|| format!("{}", files.cert.display()))?;
    let key = match &files.key {
        KeySource::File(path) => PrivateKey::read(path)?,
        KeySource::Token(config) => PrivateKey::Token(TokenKey::open(config, facts.key)?),
    };
    let fits = key
        .is_of(&facts, files.rsa_pkcs1)
        .map_err(|why| anyhow!("{}: {why}", files.key))?;
    ensure!(
        fits,
        "{} is not the key of the certificate in {} (of {}, {})",
        files.key,
        files.cert.display(),
        facts.subject_text,
        facts.key.name()
    );
    let certificate = LocalCertificate {
        key: name.to_owned(),
        kind: facts.key,
        rsa_pss: !files.rsa_pkcs1,
        chain,
        ocsp: files
            .ocsp
            .as_deref()
            .map(|path| stapled(path, &facts))
            .transpose()?,
    };
    Ok(Own {
        certificate: Arc::new(certificate),
        facts,
        key,
    })
}

/// Reads authorities, revocation lists and OCSP responses.
///
/// # Errors
/// A file cannot be used.
pub fn trust(files: &AuthorityFiles) -> Result<Trust> {
    let read = |paths: &[PathBuf], read: fn(&Path) -> Result<Vec<Vec<u8>>>| {
        let found = paths.iter().map(|path| read(path)).collect::<Result<Vec<_>>>()?;
        anyhow::Ok(found.concat())
    };
    let (authorities, crls) = (
        read(&files.ca, certificates)?,
        read(&files.crl, revocation_lists)?,
    );
    let responses = files.ocsp.iter().map(|path| ocsp_response(path));
    let responses = responses.collect::<Result<Vec<_>>>()?;
    Trust::new(&authorities, &crls, files.strict)
        .and_then(|trust| trust.with_ocsp(&responses))
        .context("ca_files, crl_files and ocsp_files")
}

/// Names and passwords of EAP users: one `name:password` a line; empty lines and those that begin with `#` do not count.
///
/// # Errors
/// The file cannot be read, or a line is none.
pub fn users(path: &Path) -> Result<Users> {
    let text = Zeroizing::new(
        std::fs::read_to_string(path)
            .with_context(|| format!("cannot read EAP users from {}", path.display()))?,
    );
    let mut users = BTreeMap::new();
    for (at, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let whole = line
            .split_once(':')
            .filter(|(name, password)| !name.is_empty() && !password.is_empty());
        let Some((name, password)) = whole else {
            bail!("{}: line {} is no \"name:password\"", path.display(), at + 1);
        };
        let password = SecretBytes::new(password.as_bytes().to_vec());
        if users.insert(name.to_owned(), password).is_some() {
            bail!("{}: user {name} is there twice", path.display());
        }
    }
    ensure!(!users.is_empty(), "{} has no users in it", path.display());
    Ok(Users::new(users))
}

/// Our identity: as configured, else the certificate's subject. A distinguished name is sent in the certificate's own encoding.
///
/// # Errors
/// The certificate is of another identity.
pub fn own_id(written: Option<&str>, facts: Option<&Facts>) -> Result<Identity> {
    let subject = |facts: &Facts| Identity::Other(9, facts.subject.clone());
    let id = match (written, facts) {
        (None, Some(facts)) => subject(facts),
        (None, None) => bail!("local_id is missing"),
        (Some(text), facts) if DnPattern::looks_like(text) => {
            let dn = DnPattern::parse(text)?;
            match facts {
                Some(facts) if dn.matches(&facts.subject) => subject(facts),
                _ => Identity::Other(9, dn.to_der().context("local_id has a wildcard")?),
            }
        }
        (Some(text), _) => Identity::parse(text),
    };
    if let Some(facts) = facts
        && !facts.is_of(&id)
    {
        let own = facts
            .identities()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>();
        bail!(
            "the certificate is not of local_id {id}, but of {}: use one of these, or have {id} put into subjectAltName",
            own.join(" or ")
        );
    }
    Ok(id)
}

/// The peer's identity, or what it has to look like.
///
/// # Errors
/// The text is neither.
pub fn remote_id(config: &ConnectionConfig) -> Result<(Option<Identity>, Option<IdPattern>)> {
    Ok(match WrittenId::parse(&config.remote_id)? {
        WrittenId::Any => (None, None),
        WrittenId::One(id) => (Some(id), None),
        WrittenId::Pattern(pattern) => (None, Some(pattern)),
    })
}

/// Whether a certificate can be used today; `now` in seconds since 1970.
///
/// # Errors
/// It has expired, or is not valid yet.
pub fn check_dates(facts: &Facts, now: u64) -> Result<()> {
    ensure!(
        now <= facts.not_after,
        "the certificate of {} expired on {}",
        facts.subject_text,
        show_date(facts.not_after)
    );
    ensure!(
        now >= facts.not_before,
        "the certificate of {} is not valid before {}",
        facts.subject_text,
        show_date(facts.not_before)
    );
    Ok(())
}

/// Whole days until it expires; negative once it has.
pub fn days_left(not_after: u64, now: u64) -> i64 {
    (not_after as i64 - now as i64).div_euclid(86_400)
}

#[cfg(test)]
mod tests;
