//! Whose certificates are believed: authorities, revocation lists, and the way from a certificate to an authority
//! (RFC 5280 6, RFC 4945 5), which rustls-webpki finds.

use super::certificate::{CertificateError, Facts};
use crypto::signature::authority_digest;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use std::time::Duration;
use webpki::{
    CertRevocationList, EndEntityCert, Error, ExpirationPolicy, ExtendedKeyUsageValidator, KeyPurposeIdIter,
    OwnedCertRevocationList, RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
};

/// Certificates of a peer that are looked at; a chain is never that long.
const CERTIFICATES_MAX: usize = 12;

/// Extended key usages of which one must be there, where there are any: RFC 4945 5.1.3.12 names ipsecIKE and any; the others are what
/// authorities for TLS put into certificates of VPN gateways and their clients.
const USAGES: [&[usize]; 5] = [
    &[1, 3, 6, 1, 5, 5, 7, 3, 17],
    &[2, 5, 29, 37, 0],
    &[1, 3, 6, 1, 5, 5, 7, 3, 1],
    &[1, 3, 6, 1, 5, 5, 7, 3, 2],
    &[1, 3, 6, 1, 5, 5, 8, 2, 2],
];

/// Why files are no authorities or revocation lists.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// A certificate of an authority.
    #[error("authority {0}: {1}")]
    Authority(usize, String),
    /// A revocation list.
    #[error("revocation list {0}: {1}")]
    Crl(usize, String),
    /// There is nobody to believe.
    #[error("there is no certificate of an authority")]
    Empty,
}

struct Authority {
    anchor: TrustAnchor<'static>,
    subject: String,
    not_before: u64,
    not_after: u64,
}

/// Whose certificates are believed.
pub struct Trust {
    authorities: Vec<Authority>,
    digests: Vec<[u8; 20]>,
    crls: Vec<CertRevocationList<'static>>,
    strict: bool,
}

struct Usages;

impl ExtendedKeyUsageValidator for Usages {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), Error> {
        let mut none = true;
        for purpose in purposes {
            none = false;
            if USAGES.contains(&purpose?.to_decoded_oid().as_slice()) {
                return Ok(());
            }
        }
        if none {
            Ok(())
        } else {
            Err(Error::EmptyEkuExtension)
        }
    }
}

impl Trust {
    /// Authorities and revocation lists, all DER. `strict`: a certificate is believed only while a valid revocation list of its
    /// issuer is there, and those of its issuers' issuers likewise; else where there is none, it counts as not revoked.
    ///
    /// # Errors
    /// [`TrustError`].
    pub fn new(authorities: &[Vec<u8>], crls: &[Vec<u8>], strict: bool) -> Result<Self, TrustError> {
        if authorities.is_empty() {
            return Err(TrustError::Empty);
        }
        let mut trust = Self {
            authorities: Vec::new(),
            digests: Vec::new(),
            crls: Vec::new(),
            strict,
        };
        for (at, der) in authorities.iter().enumerate() {
            let wrong = |text: String| TrustError::Authority(at + 1, text);
            let facts = Facts::of(der).map_err(|error| wrong(error.to_string()))?;
            let certificate = CertificateDer::from_slice(der);
            let anchor = webpki::anchor_from_trusted_cert(&certificate)
                .map_err(|error| wrong(error.to_string()))?
                .to_owned();
            trust.digests.push(authority_digest(&facts.spki));
            trust.authorities.push(Authority {
                anchor,
                subject: facts.subject_text,
                not_before: facts.not_before,
                not_after: facts.not_after,
            });
        }
        for (at, der) in crls.iter().enumerate() {
            let crl = OwnedCertRevocationList::from_der(der)
                .map_err(|error| TrustError::Crl(at + 1, error.to_string()))?;
            trust.crls.push(crl.into());
        }
        Ok(trust)
    }

    /// SHA-1 of the authorities' public keys, for CERTREQ.
    pub fn digests(&self) -> &[[u8; 20]] {
        &self.digests
    }

    /// Finds the way from the first certificate to an authority. The others may be in any order and need not be of any use.
    ///
    /// # Errors
    /// Which certificate is not believed, why, and what to do.
    pub fn verify(&self, certificates: &[&[u8]], now: u64) -> Result<Facts, String> {
        let (leaf, others) = certificates
            .split_first()
            .ok_or("it sent no certificate: have it send one (strongSwan: send_cert = always)")?;
        let facts = Facts::of(leaf).map_err(|error: CertificateError| format!("its certificate: {error}"))?;
        let leaf = CertificateDer::from_slice(leaf);
        let certificate =
            EndEntityCert::try_from(&leaf).map_err(|error| self.explain(&facts, &error, now))?;
        let others: Vec<_> = others
            .iter()
            .take(CERTIFICATES_MAX)
            .map(|der| CertificateDer::from_slice(der))
            .collect();
        let valid = |a: &&Authority| (a.not_before..=a.not_after).contains(&now);
        let anchors: Vec<_> = self
            .authorities
            .iter()
            .filter(valid)
            .map(|a| a.anchor.clone())
            .collect();
        let crls: Vec<_> = self.crls.iter().collect();
        let revocation = match RevocationOptionsBuilder::new(&crls) {
            Ok(builder) => {
                let (unknown, expiration) = match self.strict {
                    true => (UnknownStatusPolicy::Deny, ExpirationPolicy::Enforce),
                    false => (UnknownStatusPolicy::Allow, ExpirationPolicy::Ignore),
                };
                let builder = builder
                    .with_depth(RevocationCheckDepth::Chain)
                    .with_status_policy(unknown)
                    .with_expiration_policy(expiration);
                Some(builder.build())
            }
            Err(_) if self.strict => return Err(self.explain(&facts, &Error::UnknownRevocationStatus, now)),
            Err(_) => None,
        };
        let time = UnixTime::since_unix_epoch(Duration::from_secs(now));
        let path = certificate.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &others,
            time,
            Usages,
            revocation,
            None,
        );
        path.map(drop)
            .map_err(|error| self.explain(&facts, &error, now))?;
        Ok(facts)
    }

    /// Cause and remedy.
    fn explain(&self, facts: &Facts, error: &Error, now: u64) -> String {
        let name = &facts.subject_text;
        let whole = |text: &str| format!("the certificate of {name} (serial {}): {text}", facts.serial);
        let date = |time: &UnixTime| show_date(time.as_secs());
        match error {
            // Of the certificate itself, or of one of its issuers.
            Error::CertExpired { not_after, .. } => whole(&match not_after.as_secs() == facts.not_after {
                true => format!("it expired on {}; renew it", date(not_after)),
                false => format!(
                    "an issuer's certificate expired on {}; have the peer send the new one",
                    date(not_after)
                ),
            }),
            Error::CertNotValidYet { not_before, .. } => whole(&format!(
                "it is not valid before {}; compare the clocks",
                date(not_before)
            )),
            Error::CertRevoked => whole("it, or one of its issuers, is revoked; issue another one"),
            Error::CrlExpired { next_update, .. } => whole(&format!(
                "the revocation list of its issuer expired on {}; fetch the new one into crl_files and reload",
                date(next_update)
            )),
            Error::UnknownRevocationStatus => whole(
                "no revocation list says whether it is revoked; add its issuer's to crl_files, or set revocation = \
                 \"relaxed\"",
            ),
            Error::UnknownIssuer => {
                let expired: Vec<_> = self
                    .authorities
                    .iter()
                    .filter(|a| a.not_after < now)
                    .map(|a| format!("authority {} expired on {}", a.subject, show_date(a.not_after)))
                    .collect();
                let more = if expired.is_empty() {
                    String::new()
                } else {
                    format!(" ({})", expired.join(", "))
                };
                whole(&format!(
                    "no authority in ca_files issued it; its issuer is {}: add that one's authority to ca_files, or have \
                     the peer send its intermediate certificates{more}",
                    facts.issuer_text
                ))
            }
            Error::EmptyEkuExtension => whole(
                "its extended key usage allows none of ipsecIKE, serverAuth and clientAuth; issue another one",
            ),
            Error::CaUsedAsEndEntity => whole("it is an authority's; issue one for the peer"),
            other => whole(&format!("{other}; issue another one")),
        }
    }
}

/// A day as people write it, UTC.
pub fn show_date(seconds: u64) -> String {
    // Civil from days (H. Hinnant), for years from 1970.
    let days = seconds / 86_400 + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_735_689_599, "2024-12-31"),
            (4_102_444_800, "2100-01-01"),
        ] {
            assert_eq!(show_date(seconds), text);
        }
    }

    #[test]
    fn without_an_authority_there_is_no_trust() {
        assert_eq!(Trust::new(&[], &[], false).err(), Some(TrustError::Empty));
        assert!(matches!(
            Trust::new(&[vec![1, 2, 3]], &[], false),
            Err(TrustError::Authority(1, _))
        ));
    }
}
