//! The cluster's own certificates and secret: made by `espalier cluster init`, read by the synch channel.
//!
//! A member certificate is signed by the cluster's CA and names exactly one member of one cluster. The CA's key is
//! needed only to add members; it can be kept off the members.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use model::{MemberId, SecretBytes};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

/// Octets of the cluster secret.
const SECRET_LEN: usize = 32;

/// The name in a member's certificate.
pub fn member_name(cluster: &str, member: MemberId) -> String {
    format!(
        "member-{member}.{}.espalier",
        cluster.replace('_', "-").to_lowercase()
    )
}

fn write_new(path: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .with_context(|| {
            format!(
                "cannot create {}; existing files are never overwritten",
                path.display()
            )
        })?;
    file.write_all(bytes)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Makes a CA, a certificate and key for each member, and the cluster secret. Returns the files made.
///
/// # Errors
/// The folder cannot be made, or any of the files is there already (then nothing is written).
pub fn init(dir: &Path, cluster: &str, members: u8) -> Result<Vec<PathBuf>> {
    if !(1..=16).contains(&members) {
        bail!("a cluster has 1 to 16 members, not {members}");
    }
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    let mut wanted = vec![dir.join("ca.crt"), dir.join("ca.key"), dir.join("cluster.secret")];
    for id in 1..=members {
        wanted.push(dir.join(format!("member-{id}.crt")));
        wanted.push(dir.join(format!("member-{id}.key")));
    }
    if let Some(there) = wanted.iter().find(|path| path.exists()) {
        bail!(
            "{} exists; name another folder, or remove the old cluster's files first",
            there.display()
        );
    }

    let ca_key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).context("cannot make a CA key")?;
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    ca.distinguished_name
        .push(DnType::CommonName, format!("espalier cluster {cluster}"));
    let ca_cert = ca
        .self_signed(&ca_key)
        .context("cannot sign the CA certificate")?;
    write_new(&dir.join("ca.crt"), 0o644, ca_cert.pem().as_bytes())?;
    write_new(&dir.join("ca.key"), 0o600, ca_key.serialize_pem().as_bytes())?;
    let issuer = Issuer::new(ca, ca_key);

    for id in 1..=members {
        let name = member_name(cluster, MemberId(id));
        let key =
            KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).context("cannot make a member key")?;
        let mut params =
            CertificateParams::new(vec![name.clone()]).context("the cluster's name fits no certificate")?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let cert = params
            .signed_by(&key, &issuer)
            .context("cannot sign a member certificate")?;
        write_new(
            &dir.join(format!("member-{id}.crt")),
            0o644,
            cert.pem().as_bytes(),
        )?;
        write_new(
            &dir.join(format!("member-{id}.key")),
            0o600,
            key.serialize_pem().as_bytes(),
        )?;
    }

    let mut secret = zeroize::Zeroizing::new([0_u8; SECRET_LEN]);
    getrandom::fill(&mut secret[..]).context("the system has no randomness")?;
    write_new(&dir.join("cluster.secret"), 0o600, &secret[..])?;
    Ok(wanted)
}

/// What one member needs for the synch channel.
pub struct Identity {
    /// The member's certificate.
    pub certificate: CertificateDer<'static>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// The cluster's CA, the only one trusted.
    pub roots: Arc<RootCertStore>,
    /// Shared by all members: steering key, cookie secret, reset keys are derived from it.
    pub secret: SecretBytes,
}

impl Identity {
    /// Reads the files of `member` in `dir`.
    ///
    /// # Errors
    /// A file is missing or is not what it should be.
    pub fn load(dir: &Path, member: MemberId) -> Result<Self> {
        let file = |name: String| dir.join(name);
        let ca = file("ca.crt".to_owned());
        let ca = CertificateDer::from_pem_file(&ca).with_context(|| {
            format!(
                "cannot read the cluster CA {}; run: espalier cluster init",
                ca.display()
            )
        })?;
        let crt = file(format!("member-{member}.crt"));
        let certificate = CertificateDer::from_pem_file(&crt)
            .with_context(|| format!("cannot read the member certificate {}", crt.display()))?;
        let key = file(format!("member-{member}.key"));
        let key = PrivateKeyDer::from_pem_file(&key)
            .with_context(|| format!("cannot read the member key {}", key.display()))?;
        let path = file("cluster.secret".to_owned());
        let secret = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if secret.len() != SECRET_LEN {
            bail!(
                "{} has {} octets instead of {SECRET_LEN}; copy it from the folder of 'cluster init'",
                path.display(),
                secret.len()
            );
        }
        let mut roots = RootCertStore::empty();
        roots.add(ca).context("the cluster CA is no usable certificate")?;
        Ok(Self {
            certificate,
            key,
            roots: Arc::new(roots),
            secret: SecretBytes::new(secret),
        })
    }

    /// A key for one purpose, derived from the cluster secret.
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        hmac(self.secret.expose(), purpose.as_bytes())
    }

    /// A digest of something secret, for comparison between members: without the cluster secret not even a guess can be
    /// checked against it.
    pub fn fingerprint(&self, purpose: &str, secret: &SecretBytes) -> [u8; 32] {
        let key = zeroize::Zeroizing::new(self.derive(purpose));
        hmac(&key[..], secret.expose())
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
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("esp-pki-{name}-{}", std::process::id()))
    }

    #[test]
    fn a_member_certificate_names_one_member_of_one_cluster() {
        let dir = scratch("names");
        init(&dir, "lab", 2).unwrap();
        let two = Identity::load(&dir, MemberId(2)).unwrap();
        let all = [MemberId(1), MemberId(2)];
        assert_eq!(member_of(&two.certificate, "lab", &all), Some(MemberId(2)));
        assert_eq!(member_of(&two.certificate, "lab", &all[..1]), None);
        assert_eq!(member_of(&two.certificate, "other", &all), None);
        assert_eq!(
            two.derive("a"),
            Identity::load(&dir, MemberId(1)).unwrap().derive("a")
        );
        assert_ne!(two.derive("a"), two.derive("b"));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn secrets_are_private_and_nothing_is_overwritten() {
        let dir = scratch("modes");
        init(&dir, "lab", 1).unwrap();
        for secret in ["ca.key", "member-1.key", "cluster.secret"] {
            assert_eq!(
                std::fs::metadata(dir.join(secret)).unwrap().permissions().mode() & 0o777,
                0o600,
                "{secret}"
            );
        }
        let before = std::fs::read(dir.join("ca.crt")).unwrap();
        let error = init(&dir, "lab", 1).unwrap_err().to_string();
        assert!(error.contains("exists"), "{error}");
        assert_eq!(std::fs::read(dir.join("ca.crt")).unwrap(), before);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
