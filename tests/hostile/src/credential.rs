//! Certificates, revocation lists, OCSP responses and names: what peers prove themselves with, and what operators and responders give.

use crate::choices::Choices;
use crate::world::pki::TODAY;
use ike::Identity;
use ike::auth::certificate::Facts;
use ike::auth::dn::{self, DnPattern};
use ike::auth::ocsp::Response;
use ike::auth::pattern::WrittenId;
use ike::auth::trust::Trust;

/// ID type of a distinguished name.
const DN: u8 = 9;

/// Kind of a part: certificate of an authority.
pub const AUTHORITY: u8 = 0;
/// A revocation list.
pub const LIST: u8 = 1;
/// A certificate that the peer sends.
pub const CERTIFICATE: u8 = 2;
/// An OCSP response.
pub const OCSP: u8 = 3;
/// A name as an operator writes it.
pub const TEXT: u8 = 4;
/// A distinguished name, DER.
pub const NAME: u8 = 5;

/// Parts, each with an octet that says what it is, and its length. The peer's own certificate comes first of those.
pub fn credential(octets: &[u8]) {
    let mut choices = Choices::new(octets);
    let Some(shape) = choices.next() else { return };
    let mut parts: [Vec<Vec<u8>>; 6] = Default::default();
    while let Some(kind) = choices.next() {
        parts[usize::from(kind % 6)].push(choices.some().to_vec());
    }
    let [authorities, lists, certificates, responses, texts, names] = parts;
    for der in certificates.iter().chain(&authorities) {
        certificate(der);
    }
    for der in &responses {
        if let Ok(response) = Response::read(der) {
            response.is_about("07");
        }
    }
    let texts: Vec<&str> = texts
        .iter()
        .filter_map(|text| std::str::from_utf8(text).ok())
        .collect();
    for text in &texts {
        name(text);
    }
    for der in &names {
        dn::show(der);
        let id = Identity::Other(DN, der.clone());
        for text in &texts {
            if let Ok(WrittenId::Pattern(pattern)) = WrittenId::parse(text) {
                pattern.matches(&id);
            }
        }
    }
    let Ok(trust) = Trust::new(&authorities, &lists, shape & 1 != 0) else {
        return;
    };
    let slices = |all: &[Vec<u8>]| all.iter().map(Vec::clone).collect::<Vec<_>>();
    let trust = match shape & 2 != 0 {
        true => match trust.with_ocsp(&slices(&responses)) {
            Ok(trust) => trust,
            Err(_) => return,
        },
        false => trust,
    };
    let certificates: Vec<&[u8]> = certificates.iter().map(Vec::as_slice).collect();
    let responses: Vec<&[u8]> = responses.iter().map(Vec::as_slice).collect();
    for now in [TODAY, 0, u64::MAX] {
        if let Ok(facts) = trust.verify(&certificates, &responses, now) {
            assert_eq!(
                Ok(facts),
                Facts::of(certificates[0]),
                "it is about the peer's own certificate"
            );
        }
    }
}

/// Its holder is whom it names, and nobody else.
fn certificate(der: &[u8]) {
    let Ok(facts) = Facts::of(der) else { return };
    for id in facts.identities() {
        assert!(facts.is_of(&id), "{id:?}");
        // Whatever the identity is shown as in logs is one line.
        assert!(!id.to_string().contains('\n'), "{id:?}");
    }
    assert!(!facts.subject_text.contains('\n') && !facts.issuer_text.contains('\n'));
}

/// A name as an operator writes it.
fn name(text: &str) {
    drop(WrittenId::parse(text));
    let id = Identity::parse(text);
    drop(id.to_string());
    let Ok(pattern) = DnPattern::parse(text) else {
        return;
    };
    if let Some(der) = pattern.to_der() {
        let shown = dn::show(&der);
        // Not every text may stand in every kind of string; what can be read is the same name.
        if shown.is_some() && text.is_ascii() {
            assert!(pattern.matches(&der) || !printable(&pattern), "{text:?}");
        }
    }
}

/// No attribute is one that takes fewer characters than its text has.
fn printable(pattern: &DnPattern) -> bool {
    let limited = [
        "C=",
        "SERIALNUMBER=",
        "DNQUALIFIER=",
        "DC=",
        "UID=",
        "E=",
        "EMAIL",
    ];
    !limited.iter().any(|name| pattern.to_string().contains(name))
}
