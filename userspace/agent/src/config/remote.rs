//! Where a peer is: an address, or a name that leads to some (RFC 1123 2.1).

use std::fmt;
use std::net::IpAddr;

/// Octets of a name, dots included (RFC 1035 2.3.4, without the root).
const NAME_MAX: usize = 253;
/// And of a label.
const LABEL_MAX: usize = 63;

/// One of the places in `remote`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Remote {
    /// An address.
    Address(IpAddr),
    /// A name, in small letters, without the dot of the root.
    Name(String),
}

impl Remote {
    /// As it is written; `None`: neither an address nor a name of a host. What looks like an address and is none (`10.1.2.300`) is no name.
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse() {
            return Some(Self::Address(address));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let inner = |octet: u8| octet.is_ascii_alphanumeric() || octet == b'-' || octet == b'_';
        let is_label = |label: &str| {
            (1..=LABEL_MAX).contains(&label.len())
                && label.bytes().all(inner)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let is_name = name.len() <= NAME_MAX && name.split('.').all(is_label);
        //= rfc1123#2.1
        // a valid host name can never have the dotted-decimal form #.#.#.#, since at least the highest-level component label will be
        // alphabetic.
        let last = name.rsplit('.').next().unwrap_or_default();
        let alphabetic = last.bytes().any(|octet| octet.is_ascii_alphabetic());
        (is_name && alphabetic && name != "any").then_some(Self::Name(name))
    }

    /// The address, where it is one.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Address(address) => Some(*address),
            Self::Name(_) => None,
        }
    }

    /// The name, where it is one.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Address(_) => None,
            Self::Name(name) => Some(name),
        }
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// Members compare this: an address is what it was before there were names.
impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => fmt::Debug::fmt(address, f),
            Self::Name(name) => fmt::Debug::fmt(name, f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_address_has_to_be_the_name_of_a_host() {
        let long = format!("{}.example", "a".repeat(64));
        let longer = format!("{}example", "a.".repeat(130));
        for (text, wanted) in [
            ("203.0.113.10", Some("203.0.113.10")),
            ("2001:DB8::1", Some("2001:db8::1")),
            ("VPN.Example.", Some("vpn.example")),
            ("gw", Some("gw")),
            ("a-b.x1_y.example", Some("a-b.x1_y.example")),
            ("10.1.2.300", None),
            ("10.1.2", None),
            ("any", None),
            ("", None),
            (".", None),
            ("a..b", None),
            ("-a.example", None),
            ("a b", None),
            ("gw.example:500", None),
            ("%any", None),
            (long.as_str(), None),
            (longer.as_str(), None),
        ] {
            let read = Remote::parse(text).map(|remote| remote.to_string());
            assert_eq!(read.as_deref(), wanted, "{text}");
        }
    }

    #[test]
    fn an_address_is_compared_as_it_always_was() {
        let address: IpAddr = "203.0.113.10".parse().unwrap();
        assert_eq!(format!("{:?}", Remote::Address(address)), format!("{address:?}"));
        assert_eq!(format!("{:?}", Remote::Name("gw".into())), "\"gw\"");
    }
}
