//! What a certificate says of itself.

use anyhow::{Context, Result, anyhow};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

/// Facts of a certificate that people ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateFacts {
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Common name of the subject.
    pub subject: String,
    /// Common name of the issuer.
    pub issuer: String,
    /// Not valid before, seconds since 1970.
    pub not_before: u64,
    /// Not valid after, seconds since 1970.
    pub not_after: u64,
}

fn common_name(name: &x509_parser::x509::X509Name<'_>) -> String {
    name.iter_common_name()
        .find_map(|name| name.as_str().ok())
        .unwrap_or_default()
        .to_owned()
}

pub(super) fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

impl CertificateFacts {
    /// Reads a certificate.
    ///
    /// # Errors
    /// It is no X.509 certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
            .map_err(|error| anyhow!("it is no X.509 certificate: {error}"))?;
        let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
        let validity = parsed.validity();
        Ok(Self {
            serial: hex(parsed.raw_serial()),
            subject: common_name(parsed.subject()),
            issuer: common_name(parsed.issuer()),
            not_before: seconds(validity.not_before),
            not_after: seconds(validity.not_after),
        })
    }

    /// Reads every certificate of a PEM file.
    ///
    /// # Errors
    /// The file cannot be read, or has something else in it.
    pub(super) fn of_file(path: &std::path::Path) -> Result<Vec<Self>> {
        use rustls_pki_types::pem::PemObject;
        CertificateDer::pem_file_iter(path)
            .with_context(|| format!("cannot read {}", path.display()))?
            .map(|certificate| {
                Self::of(&certificate.with_context(|| format!("{} is damaged", path.display()))?)
            })
            .collect()
    }

    /// Whole days until the certificate expires; negative once it has. `now` in seconds since 1970.
    pub fn days_left(&self, now: u64) -> i64 {
        (self.not_after as i64 - now as i64).div_euclid(86_400)
    }
}
