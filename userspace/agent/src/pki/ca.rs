//! A certificate authority of the cluster: its certificate, its key, its revocation list.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, PublicKeyData, RevocationReason, RevokedCertParams, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::ledger::{Ledger, Standing};
use super::{CA_FILE, ledger};
use crate::clock;

/// Days for which a CA certificate is valid.
const CA_DAYS: u32 = 7300;
/// Certificates are valid from a day ago on: the members' clocks may differ.
pub(super) const CLOCK_DIFFERENCE: u64 = 86_400;
/// Seconds of a day.
pub(super) const DAY: u64 = 86_400;

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    clock::wall_ns() / 1_000_000_000
}

pub(super) fn moment(seconds: u64) -> Result<OffsetDateTime> {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .context("a moment that no certificate can name")
}

/// 16 random octets that are a positive number.
pub(super) fn random_serial() -> Result<[u8; 16]> {
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).context("the system has no randomness")?;
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}

fn from_hex(text: &str) -> Result<Vec<u8>> {
    let octet = |at: usize| {
        text.get(at..at + 2)
            .and_then(|two| u8::from_str_radix(two, 16).ok())
    };
    (0..text.len())
        .step_by(2)
        .map(octet)
        .collect::<Option<_>>()
        .with_context(|| format!("'{text}' in {} is no serial number", ledger::FILE))
}

/// The name in a CA's certificate.
pub(super) fn ca_name(cluster: &str, generation: u32) -> String {
    format!("espalier cluster {cluster} CA {generation}")
}

/// A CA: its certificate, and its key if it is to sign.
pub(super) struct Ca {
    pub pem: String,
    pub issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    /// Each generation has a name of its own, so that its revocation list is not taken for another one's.
    pub fn generate(cluster: &str, generation: u32) -> Result<(Self, Zeroizing<String>)> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).context("cannot make a CA key")?;
        let now = now();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(SerialNumber::from_slice(&random_serial()?));
        params.not_before = moment(now.saturating_sub(CLOCK_DIFFERENCE))?;
        params.not_after = moment(now + u64::from(CA_DAYS) * DAY)?;
        params
            .distinguished_name
            .push(DnType::CommonName, ca_name(cluster, generation));
        let certificate = params
            .self_signed(&key)
            .context("cannot sign the CA certificate")?;
        let secret = Zeroizing::new(key.serialize_pem());
        let ca = Self {
            pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        };
        Ok((ca, secret))
    }

    /// The CA whose certificate is number `at` in `ca.crt`, with the key of that file.
    pub fn load(dir: &Path, at: usize, name: &str) -> Result<Self> {
        let path = dir.join(name);
        let pem = Zeroizing::new(
            std::fs::read_to_string(&path)
                .with_context(|| format!("cannot read the CA's key {}", path.display()))?,
        );
        let key = KeyPair::from_pem(&pem).with_context(|| format!("{} is no usable key", path.display()))?;
        let path = dir.join(CA_FILE);
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let pem = certificates(&text)
            .into_iter()
            .nth(at)
            .with_context(|| format!("{} has no certificate number {}", path.display(), at + 1))?;
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
            .with_context(|| format!("{} is damaged", path.display()))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)
            .map_err(|error| anyhow!("{} is damaged: {error}", path.display()))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            bail!(
                "{name} is not the key of certificate number {} in {}: an earlier command was interrupted; run it again, or restore the folder",
                at + 1,
                path.display()
            );
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .with_context(|| format!("{} is no usable CA certificate", path.display()))?;
        Ok(Self { pem, issuer })
    }

    /// The list of what this CA has revoked.
    pub fn revocations(&self, generation: u32, ledger: &Ledger) -> Result<String> {
        let now = now();
        let revoked = ledger
            .issued
            .iter()
            .filter(|issued| issued.ca == generation && issued.standing == Standing::Revoked)
            .map(|issued| {
                Ok(RevokedCertParams {
                    serial_number: SerialNumber::from(from_hex(&issued.serial)?),
                    revocation_time: moment(issued.revoked_at.unwrap_or(now))?,
                    reason_code: Some(RevocationReason::CessationOfOperation),
                    invalidity_date: None,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let list = CertificateRevocationListParams {
            this_update: moment(now.saturating_sub(CLOCK_DIFFERENCE))?,
            // Members do not ask for newer lists, so the end of this one must not stop the cluster.
            next_update: moment(now + u64::from(CA_DAYS) * DAY)?,
            crl_number: SerialNumber::from(ledger.crl_number),
            issuing_distribution_point: None,
            revoked_certs: revoked,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer)
            .and_then(|list| list.pem())
            .context("cannot sign the revocation list")
    }
}

/// The certificates of a PEM text, each with its frame.
fn certificates(text: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    text.split_inclusive(END)
        .filter(|part| part.contains(END))
        .map(|part| format!("{}\n", part.trim()))
        .collect()
}
