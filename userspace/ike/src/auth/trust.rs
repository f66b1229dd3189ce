//! Whose certificates are believed: authorities, revocation lists, and the way from a certificate to an authority
//! (RFC 5280 6, RFC 4945 5), which rustls-webpki finds.

use super::certificate::{CertificateError, Facts};
use super::ocsp::{self, Issuer, Response, Status};
use crypto::signature::authority_digest;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use std::time::Duration;
use webpki::{
    CertRevocationList, EndEntityCert, Error, ExpirationPolicy, ExtendedKeyUsageValidator, KeyPurposeIdIter,
    OwnedCertRevocationList, RevocationCheckDepth, RevocationOptions, RevocationOptionsBuilder,
    UnknownStatusPolicy, VerifiedPath,
};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

/// Certificates of a peer that are looked at; a chain is never that long.
const CERTIFICATES_MAX: usize = 12;
/// OCSP responses of a peer that are looked at.
const RESPONSES_MAX: usize = 12;

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
    /// An OCSP response.
    #[error("OCSP response {0}: {1}")]
    Ocsp(usize, String),
    /// There is nobody to believe.
    #[error("there is no certificate of an authority")]
    Empty,
}

struct Authority {
    anchor: TrustAnchor<'static>,
    der: Vec<u8>,
    facts: Facts,
}

/// What a revocation list says of itself.
struct List {
    /// DER.
    issuer: Vec<u8>,
    /// Seconds since 1970.
    until: u64,
    /// It is about some certificates of its issuer only.
    partial: bool,
}

/// Whose certificates are believed.
pub struct Trust {
    authorities: Vec<Authority>,
    digests: Vec<[u8; 20]>,
    crls: Vec<CertRevocationList<'static>>,
    lists: Vec<List>,
    responses: Vec<Response>,
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
    /// issuer, or a valid OCSP response, says that it is not revoked, and its issuers likewise; else where there is none, it counts
    /// as not revoked.
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
            lists: Vec::new(),
            responses: Vec::new(),
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
                der: der.clone(),
                facts,
            });
        }
        for (at, der) in crls.iter().enumerate() {
            let crl = OwnedCertRevocationList::from_der(der)
                .map_err(|error| TrustError::Crl(at + 1, error.to_string()))?;
            let crl: CertRevocationList<'static> = crl.into();
            let (_, parsed) = CertificateRevocationList::from_der(der)
                .map_err(|error| TrustError::Crl(at + 1, error.to_string()))?;
            let until = parsed.next_update().map(|time| time.timestamp());
            trust.lists.push(List {
                issuer: parsed.issuer().as_raw().to_vec(),
                until: until.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0),
                partial: crl.issuing_distribution_point().is_some(),
            });
            trust.crls.push(crl);
        }
        Ok(trust)
    }

    /// Adds OCSP responses (DER), beside those that peers send.
    ///
    /// # Errors
    /// [`TrustError::Ocsp`].
    pub fn with_ocsp(mut self, responses: &[Vec<u8>]) -> Result<Self, TrustError> {
        for (at, der) in responses.iter().enumerate() {
            let response = Response::read(der).map_err(|why| TrustError::Ocsp(at + 1, why))?;
            self.responses.push(response);
        }
        Ok(self)
    }

    /// Whether every certificate has to be known not to be revoked.
    pub fn is_strict(&self) -> bool {
        self.strict
    }

    /// SHA-1 of the authorities' public keys, for CERTREQ.
    pub fn digests(&self) -> &[[u8; 20]] {
        &self.digests
    }

    /// Finds the way from the first certificate to an authority. The others may be in any order and need not be of any use.
    /// `responses`: OCSP responses that came with them.
    ///
    /// # Errors
    /// Which certificate is not believed, why, and what to do.
    pub fn verify(&self, certificates: &[&[u8]], responses: &[&[u8]], now: u64) -> Result<Facts, String> {
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
        let valid = |a: &&Authority| (a.facts.not_before..=a.facts.not_after).contains(&now);
        let anchors: Vec<_> = self
            .authorities
            .iter()
            .filter(valid)
            .map(|a| a.anchor.clone())
            .collect();
        let crls: Vec<_> = self.crls.iter().collect();
        let time = UnixTime::since_unix_epoch(Duration::from_secs(now));
        let find = |revocation: Option<RevocationOptions<'_>>| {
            let algorithms = webpki::ALL_VERIFICATION_ALGS;
            certificate.verify_for_usage(algorithms, &anchors, &others, time, Usages, revocation, None)
        };
        let relaxed = options(&crls, false);
        let mut found = match (self.strict, options(&crls, true)) {
            (false, _) => find(relaxed),
            (true, None) => Err(Error::UnknownRevocationStatus),
            (true, strict) => find(strict),
        };
        let responses = self.read_responses(responses);
        // What no list speaks of, OCSP responses may.
        let mut unlisted = None;
        if let Err(error @ (Error::UnknownRevocationStatus | Error::CrlExpired { .. })) = &found
            && !(self.responses.is_empty() && responses.is_empty())
        {
            unlisted = Some(error.clone());
            found = find(relaxed);
        }
        let path = found.map_err(|error| self.explain(&facts, &error, now))?;
        self.ask(&path, &facts, &responses, relaxed, unlisted.as_ref(), now)?;
        Ok(facts)
    }

    /// A peer's OCSP responses; who signed them is not known yet.
    fn read_responses(&self, octets: &[&[u8]]) -> Vec<Result<Response, String>> {
        octets
            .iter()
            .take(RESPONSES_MAX)
            .map(|der| Response::read(der).map_err(|why| format!("the OCSP response that it sent: {why}")))
            .collect()
    }

    /// Looks for what OCSP responses say of the certificates of a path. `unlisted`: not every one of them is on a valid revocation
    /// list, so what lists do not know has to be known from a response.
    fn ask(
        &self,
        path: &VerifiedPath<'_>,
        leaf: &Facts,
        theirs: &[Result<Response, String>],
        revocation: Option<RevocationOptions<'_>>,
        unlisted: Option<&Error>,
        now: u64,
    ) -> Result<(), String> {
        if self.responses.is_empty() && theirs.is_empty() {
            return Ok(());
        }
        let unreadable = |error: CertificateError| format!("an issuer's certificate: {error}");
        let middle: Vec<_> = path
            .intermediate_certificates()
            .map(|certificate| {
                let der = certificate.der().to_vec();
                Facts::of(&der).map(|facts| (der, facts))
            })
            .collect::<Result<_, _>>()
            .map_err(unreadable)?;
        let anchor = path.anchor();
        let authority = self
            .authorities
            .iter()
            .find(|a| {
                a.anchor.subject == anchor.subject
                    && a.anchor.subject_public_key_info == anchor.subject_public_key_info
            })
            .ok_or("its authority is not there any more")?;
        let subjects = std::iter::once(leaf).chain(middle.iter().map(|(_, facts)| facts));
        let issuers = middle
            .iter()
            .map(|(der, facts)| Issuer { der, facts })
            .chain(std::iter::once(Issuer {
                der: &authority.der,
                facts: &authority.facts,
            }));
        for (subject, issuer) in subjects.zip(issuers) {
            let whole = |text: String| {
                format!(
                    "the certificate of {} (serial {}): {text}",
                    subject.subject_text, subject.serial
                )
            };
            let all = self.responses.iter().chain(theirs.iter().flatten());
            let (word, mut why) = ocsp::newest(all, &subject.serial, &issuer, now, revocation);
            match word {
                Some(word) => match (word.status, word.stale) {
                    // Old news of this kind count as well, as with lists.
                    (Status::Revoked(since), _) => {
                        return Err(whole(format!(
                            "it is revoked since {}, by an OCSP response; issue another one",
                            show_date(since)
                        )));
                    }
                    (Status::Good, None) => continue,
                    (_, Some(stale)) => why = Some(stale),
                    (Status::Unknown, None) => {
                        why = Some("the OCSP responder does not know the certificate".to_owned());
                    }
                },
                None => why = why.or_else(|| theirs.iter().find_map(|r| r.as_ref().err().cloned())),
            }
            if let Some(error) = unlisted
                && !self.is_listed(&issuer.facts.subject, now)
            {
                return Err(match why {
                    Some(why) => whole(format!("{why} (revocation = \"strict\")")),
                    None => self.explain(subject, error, now),
                });
            }
        }
        Ok(())
    }

    /// Whether revocation lists of this issuer tell of all its certificates. Which one of several rustls-webpki has taken is not
    /// known, so all of them must be valid and complete.
    fn is_listed(&self, issuer: &[u8], now: u64) -> bool {
        let mut lists = self.lists.iter().filter(|list| list.issuer == issuer).peekable();
        lists.peek().is_some() && lists.all(|list| !list.partial && now < list.until)
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
                "no revocation list and no OCSP response says whether it is revoked; add its issuer's to crl_files or ocsp_files, \
                 have the peer send one (RFC 4806), or set revocation = \"relaxed\"",
            ),
            Error::UnknownIssuer => {
                let expired: Vec<_> = self
                    .authorities
                    .iter()
                    .map(|a| &a.facts)
                    .filter(|a| a.not_after < now)
                    .map(|a| {
                        format!(
                            "authority {} expired on {}",
                            a.subject_text,
                            show_date(a.not_after)
                        )
                    })
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

/// How rustls-webpki is to use revocation lists; `None`: there are none.
fn options<'a>(crls: &'a [&'a CertRevocationList<'a>], strict: bool) -> Option<RevocationOptions<'a>> {
    let (unknown, expiration) = match strict {
        true => (UnknownStatusPolicy::Deny, ExpirationPolicy::Enforce),
        false => (UnknownStatusPolicy::Allow, ExpirationPolicy::Ignore),
    };
    let builder = RevocationOptionsBuilder::new(crls).ok()?;
    let builder = builder
        .with_depth(RevocationCheckDepth::Chain)
        .with_status_policy(unknown)
        .with_expiration_policy(expiration);
    Some(builder.build())
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
