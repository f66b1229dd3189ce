//! Distinguished names: text, DER, and comparison with wildcards.

use std::fmt;
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Name;

/// ID type of a distinguished name (RFC 7296 3.5).
pub(crate) const ID_DER_ASN1_DN: u8 = 9;

/// Names of attributes, the octets of their object identifiers, and the tag of their text.
const ATTRIBUTES: [(&str, &[u8], u8); 17] = [
    ("CN", b"\x55\x04\x03", UTF8),
    ("C", b"\x55\x04\x06", PRINTABLE),
    ("L", b"\x55\x04\x07", UTF8),
    ("ST", b"\x55\x04\x08", UTF8),
    ("STREET", b"\x55\x04\x09", UTF8),
    ("O", b"\x55\x04\x0a", UTF8),
    ("OU", b"\x55\x04\x0b", UTF8),
    ("T", b"\x55\x04\x0c", UTF8),
    ("SERIALNUMBER", b"\x55\x04\x05", PRINTABLE),
    ("SN", b"\x55\x04\x04", UTF8),
    ("GN", b"\x55\x04\x2a", UTF8),
    ("DNQUALIFIER", b"\x55\x04\x2e", PRINTABLE),
    ("DC", b"\x09\x92\x26\x89\x93\xf2\x2c\x64\x01\x19", IA5),
    ("UID", b"\x09\x92\x26\x89\x93\xf2\x2c\x64\x01\x01", UTF8),
    ("E", b"\x2a\x86\x48\x86\xf7\x0d\x01\x09\x01", IA5),
    ("EMAIL", b"\x2a\x86\x48\x86\xf7\x0d\x01\x09\x01", IA5),
    ("EMAILADDRESS", b"\x2a\x86\x48\x86\xf7\x0d\x01\x09\x01", IA5),
];

const UTF8: u8 = 0x0c;
const PRINTABLE: u8 = 0x13;
const IA5: u8 = 0x16;

/// A distinguished name as an operator writes it: `C=DE, O=Example, CN=gw.example`. A value of `*` stands for any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnPattern(Vec<(&'static str, String)>);

/// Why text is no distinguished name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DnError {
    /// A part without an equals sign.
    #[error("'{0}' has no '='")]
    NoValue(String),
    /// An attribute that is not known here.
    #[error("attribute '{0}' is not known")]
    Attribute(String),
    /// A value that cannot be.
    #[error("attribute '{0}' has no value")]
    Empty(String),
}

impl DnPattern {
    /// Whether text is meant to be a distinguished name.
    pub fn looks_like(text: &str) -> bool {
        text.contains('=') && !text.starts_with("keyid:")
    }

    /// Reads text; a comma or an equals sign that belongs to a value stands behind a backslash.
    ///
    /// # Errors
    /// [`DnError`].
    pub fn parse(text: &str) -> Result<Self, DnError> {
        let mut parts = vec![String::new()];
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match (c, parts.last_mut()) {
                ('\\', Some(part)) => {
                    part.push(c);
                    part.extend(chars.next());
                }
                (',', _) => parts.push(String::new()),
                (_, Some(part)) => part.push(c),
                (_, None) => {}
            }
        }
        let read = |part: &String| {
            let part = part.trim();
            let (name, value) = part
                .split_once('=')
                .ok_or_else(|| DnError::NoValue(part.to_owned()))?;
            let name = name.trim();
            let known = ATTRIBUTES
                .iter()
                .find(|(known, ..)| known.eq_ignore_ascii_case(name))
                .ok_or_else(|| DnError::Attribute(name.to_owned()))?;
            let mut plain = String::new();
            let mut chars = value.trim().chars();
            while let Some(c) = chars.next() {
                plain.extend(if c == '\\' { chars.next() } else { Some(c) });
            }
            if plain.is_empty() {
                return Err(DnError::Empty(name.to_owned()));
            }
            Ok((known.0, plain))
        };
        parts.iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// Whether any value is open.
    pub fn has_wildcard(&self) -> bool {
        self.0.iter().any(|(_, value)| value == "*")
    }

    /// Whether a name (DER) has these attributes in this order. Letter case and repeated spaces do not count (RFC 5280 7.1).
    pub fn matches(&self, der: &[u8]) -> bool {
        let Some(attributes) = attributes(der) else {
            return false;
        };
        attributes.len() == self.0.len()
            && attributes
                .iter()
                .zip(&self.0)
                .all(|((oid, found), (name, wanted))| {
                    let same_kind = ATTRIBUTES
                        .iter()
                        .any(|(known, known_oid, _)| known == name && *known_oid == oid.as_slice());
                    same_kind && (wanted == "*" || folded(found) == folded(wanted))
                })
    }

    /// DER. A name with wildcards has none.
    pub fn to_der(&self) -> Option<Vec<u8>> {
        if self.has_wildcard() {
            return None;
        }
        let mut body = Vec::new();
        for (name, value) in &self.0 {
            let (_, oid, tag) = ATTRIBUTES.iter().find(|(known, ..)| known == name)?;
            let pair = [tlv(0x06, oid), tlv(*tag, value.as_bytes())].concat();
            body.extend(tlv(0x31, &tlv(0x30, &pair)));
        }
        Some(tlv(0x30, &body))
    }
}

impl fmt::Display for DnPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = self.0.iter().map(|(name, value)| format!("{name}={value}"));
        f.write_str(&parts.collect::<Vec<_>>().join(", "))
    }
}

/// A name (DER) for logs; `None`: it is none.
pub fn show(der: &[u8]) -> Option<String> {
    let (rest, name) = X509Name::from_der(der).ok()?;
    rest.is_empty()
        .then(|| name.to_string().escape_debug().to_string())
}

/// Object identifiers (octets) and texts of a name's attributes, in their order.
fn attributes(der: &[u8]) -> Option<Vec<(Vec<u8>, String)>> {
    let (rest, name) = X509Name::from_der(der).ok()?;
    if !rest.is_empty() {
        return None;
    }
    name.iter_attributes()
        .map(|attribute| {
            let text = attribute.as_str().ok()?.to_owned();
            Some((attribute.attr_type().as_bytes().to_vec(), text))
        })
        .collect()
}

/// The same name in another encoding of its texts (RFC 5280 7.1). Attributes are compared one by one, not names as they are shown: there an
/// attribute with a comma in it looks like two.
pub(crate) fn same_name(a: &[u8], b: &[u8]) -> bool {
    let comparable = |der| {
        let attributes = attributes(der)?.into_iter();
        Some(
            attributes
                .map(|(kind, text)| (kind, folded(&text)))
                .collect::<Vec<_>>(),
        )
    };
    comparable(a).is_some_and(|a| comparable(b) == Some(a))
}

fn folded(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .to_lowercase()
}

fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match content.len() {
        short @ 0..=0x7f => out.push(short as u8),
        len => {
            let octets = len.to_be_bytes();
            let from = octets.iter().position(|octet| *octet != 0).unwrap_or(0);
            out.push(0x80 | (octets.len() - from) as u8);
            out.extend_from_slice(&octets[from..]);
        }
    }
    out.extend_from_slice(content);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_written_read_and_compared() {
        let exact = DnPattern::parse("C=DE, O=Example\\, Inc., CN=gw.example").unwrap();
        let der = exact.to_der().unwrap();
        assert!(exact.matches(&der));
        assert_eq!(show(&der).unwrap(), "C=DE, O=Example, Inc., CN=gw.example");
        for (pattern, fits) in [
            ("c=de, o=example\\,  INC., cn=GW.example", true),
            ("C=DE, O=Example\\, Inc., CN=*", true),
            ("C=*, O=*, CN=*", true),
            ("C=DE, CN=*", false),
            ("C=DE, CN=gw.example, O=Example\\, Inc.", false),
            ("C=DE, O=Example\\, Inc., OU=*", false),
            ("C=DE, O=Example\\, Inc., CN=gw2.example", false),
        ] {
            assert_eq!(
                DnPattern::parse(pattern).unwrap().matches(&der),
                fits,
                "{pattern}"
            );
        }
        assert!(!exact.matches(&der[..der.len() - 1]) && !exact.matches(b""));
        let long = DnPattern::parse(&format!("CN={}", "x".repeat(300))).unwrap();
        assert!(long.matches(&long.to_der().unwrap()));
    }

    #[test]
    fn an_attribute_with_a_comma_is_not_taken_for_two() {
        let der = |text: &str| DnPattern::parse(text).unwrap().to_der().unwrap();
        let (one, two) = (der("O=Example\\, CN=gw.example"), der("O=Example, CN=gw.example"));
        assert_eq!(show(&one), show(&two), "they look the same");
        assert!(!same_name(&one, &two) && !same_name(&two, &one));
        assert!(same_name(&two, &der("O=EXAMPLE, CN=gw.example")));
        let comma = der("O=Example\\, Inc., CN=gw.example");
        assert!(same_name(&comma, &comma), "a comma alone does no harm");
        assert!(!same_name(b"", b"") && !same_name(&two, &two[..9]));
    }

    #[test]
    fn what_is_no_name_is_told() {
        assert_eq!(DnPattern::parse("CN=a, b"), Err(DnError::NoValue("b".to_owned())));
        assert_eq!(DnPattern::parse("XX=a"), Err(DnError::Attribute("XX".to_owned())));
        assert_eq!(DnPattern::parse("CN="), Err(DnError::Empty("CN".to_owned())));
        assert_eq!(DnPattern::parse("CN=*").unwrap().to_der(), None);
    }
}
