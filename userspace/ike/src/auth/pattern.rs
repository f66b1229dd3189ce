//! Identities that stand for several peers.

use super::dn::{DnError, DnPattern, ID_DER_ASN1_DN};
use crate::config::Identity;
use std::fmt;

/// What a peer's identity must look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdPattern {
    /// `*.example.org`: a host name that ends so.
    Domain(String),
    /// `*@example.org`: an e-mail address of this domain.
    Mailbox(String),
    /// A distinguished name, values of which may be `*`. Also one without wildcards, since one name has many encodings.
    Dn(DnPattern),
}

/// What an operator writes as an identity: one, a pattern, or anyone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WrittenId {
    /// `any`.
    Any,
    /// This one.
    One(Identity),
    /// One of many.
    Pattern(IdPattern),
}

impl WrittenId {
    /// As written in configurations: as [`Identity::parse`], or `any`, `*.domain`, `*@domain`, or a distinguished name.
    ///
    /// # Errors
    /// It looks like a distinguished name but is none.
    pub fn parse(text: &str) -> Result<Self, DnError> {
        if matches!(text, "any" | "%any") {
            return Ok(Self::Any);
        }
        if DnPattern::looks_like(text) {
            return Ok(Self::Pattern(IdPattern::Dn(DnPattern::parse(text)?)));
        }
        if let Some(domain) = text.strip_prefix("*@") {
            return Ok(Self::Pattern(IdPattern::Mailbox(domain.to_owned())));
        }
        if let Some(domain) = text.strip_prefix("*.") {
            return Ok(Self::Pattern(IdPattern::Domain(domain.to_owned())));
        }
        Ok(Self::One(Identity::parse(text)))
    }
}

impl IdPattern {
    /// Whether an identity is one of those.
    pub fn matches(&self, id: &Identity) -> bool {
        let ends = |name: &str, separator: char, domain: &str| {
            name.len() > domain.len() + 1
                && name
                    .split_at_checked(name.len() - domain.len())
                    .is_some_and(|(front, end)| {
                        front.ends_with(separator) && end.eq_ignore_ascii_case(domain)
                    })
        };
        match (self, id) {
            (Self::Domain(domain), Identity::Fqdn(name)) => ends(name, '.', domain),
            (Self::Mailbox(domain), Identity::Email(name)) => ends(name, '@', domain),
            (Self::Dn(dn), Identity::Other(ID_DER_ASN1_DN, der)) => dn.matches(der),
            _ => false,
        }
    }
}

impl fmt::Display for IdPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Domain(domain) => write!(f, "*.{domain}"),
            Self::Mailbox(domain) => write!(f, "*@{domain}"),
            Self::Dn(dn) => dn.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_their_own_kind_only() {
        let der = DnPattern::parse("O=Example, CN=a").unwrap().to_der().unwrap();
        let dn = Identity::Other(ID_DER_ASN1_DN, der);
        for (pattern, id, fits) in [
            ("*.example.org", Identity::parse("gw.example.org"), true),
            ("*.example.org", Identity::parse("a.b.EXAMPLE.org"), true),
            ("*.example.org", Identity::parse("example.org"), false),
            ("*.example.org", Identity::parse(".example.org"), false),
            ("*.example.org", Identity::parse("badexample.org"), false),
            ("*.example.org", Identity::parse("x@gw.example.org"), false),
            ("*@example.org", Identity::parse("alice@example.org"), true),
            ("*@example.org", Identity::parse("alice@sub.example.org"), false),
            ("*@example.org", Identity::parse("@example.org"), false),
            ("O=Example, CN=*", dn.clone(), true),
            ("O=Other, CN=*", dn.clone(), false),
            ("*.example.org", dn, false),
        ] {
            let WrittenId::Pattern(parsed) = WrittenId::parse(pattern).unwrap() else {
                panic!("{pattern} is a pattern");
            };
            assert_eq!(parsed.matches(&id), fits, "{pattern} and {id}");
            assert_eq!(parsed.to_string(), pattern);
        }
        assert_eq!(WrittenId::parse("any"), Ok(WrittenId::Any));
        let one = Identity::parse("gw.example.org");
        assert_eq!(WrittenId::parse("gw.example.org"), Ok(WrittenId::One(one)));
    }
}
