//! Certificates that connections prove themselves by: signatures for the engine, and when they expire.

use std::collections::{BTreeMap, HashMap};

use ike::Input;
use ike::auth::certificate::Facts;
use ike::auth::trust::show_date;

use super::Core;
use crate::api::CertificateStatus;
use crate::clock;
use crate::credentials::signer::Done;
use crate::credentials::{WARN_DAYS, days_left};

/// Our certificates, by connection.
pub struct Certificates {
    facts: BTreeMap<String, Facts>,
    /// The day on which an expiry was last spoken of, by connection.
    said: HashMap<String, u64>,
}

impl Certificates {
    pub fn new(facts: BTreeMap<String, Facts>) -> Self {
        Self {
            facts,
            said: HashMap::new(),
        }
    }

    /// For `espalier status`.
    pub fn status(&self, connection: &str) -> Option<CertificateStatus> {
        let facts = self.facts.get(connection)?;
        Some(CertificateStatus {
            subject: facts.subject_text.clone(),
            serial: facts.serial.clone(),
            not_after: facts.not_after,
            days_left: days_left(facts.not_after, clock::wall_ns() / 1_000_000_000),
        })
    }

    /// Connections whose certificate is to be spoken of today, with what to say.
    fn due(&mut self, now: u64) -> Vec<String> {
        let today = now / 86_400;
        let mut out = Vec::new();
        for (connection, facts) in &self.facts {
            let left = days_left(facts.not_after, now);
            if left > WARN_DAYS || self.said.insert(connection.clone(), today) == Some(today) {
                continue;
            }
            let (name, date) = (&facts.subject_text, show_date(facts.not_after));
            out.push(match left {
                ..0 => format!(
                    "connection {connection}: our certificate of {name} expired on {date}: peers refuse it; install another \
                     one and reload"
                ),
                _ => format!(
                    "connection {connection}: our certificate of {name} expires on {date}, in {left} days; install another \
                     one and reload"
                ),
            });
        }
        out
    }
}

impl Core {
    /// A signature, or a step of TLS, has come.
    pub(super) fn signed(&mut self, done: Done) {
        let now = clock::now();
        self.engine_input(match done {
            Done::Signed(signed) => Input::Signed {
                now,
                ike_spi: signed.ike_spi,
                token: signed.token,
                signature: signed.signature,
            },
            Done::Said(said) => Input::Tls {
                now,
                ike_spi: said.ike_spi,
                token: said.token,
                outcome: said.outcome,
            },
        });
    }

    /// Says once a day which certificates are about to expire.
    pub(super) fn watch_certificates(&mut self) {
        for text in self.certificates.due(clock::wall_ns() / 1_000_000_000) {
            self.log.warn("certificate_expiry", text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ike::auth::certificate::KeyKind;

    #[test]
    fn an_expiry_is_spoken_of_once_a_day_from_two_weeks_before() {
        const DAY: u64 = 86_400;
        let facts = Facts {
            subject: Vec::new(),
            subject_text: "CN=gw".to_owned(),
            issuer_text: String::new(),
            serial: "01".to_owned(),
            alternative: Vec::new(),
            key: KeyKind::Ed25519,
            spki: Vec::new(),
            public_key: Vec::new(),
            not_before: 0,
            not_after: 100 * DAY,
        };
        let mut certificates = Certificates::new([("site".to_owned(), facts)].into());
        assert!(certificates.due(85 * DAY).is_empty());
        let texts = certificates.due(90 * DAY);
        assert!(
            texts[0].contains("site") && texts[0].contains("in 10 days"),
            "{texts:?}"
        );
        assert!(certificates.due(90 * DAY + 80_000).is_empty(), "said today");
        assert_eq!(certificates.due(91 * DAY).len(), 1);
        assert!(certificates.due(101 * DAY + 1)[0].contains("expired on 1970-04-11"));
    }
}
