//! Keys of `[[connections]]` about who begins, where, and what happens after a loss.

use std::net::IpAddr;
use std::time::Duration;

use super::read::{Context, MS, SECOND, is_unicast};
use super::reader::{At, Reader};
use super::{AddressConfig, AfterLoss, Dial, Remote, Retry, Start};

const DAY: Duration = Duration::from_secs(86_400);
/// Addresses and names of one peer.
const REMOTES_MAX: usize = 8;

/// After a loss the connection is again what `start` makes of it.
fn by_start(start: Start) -> AfterLoss {
    match start {
        Start::Initiate => AfterLoss::Restart,
        Start::Trap => AfterLoss::Trap,
        Start::Passive => AfterLoss::Clear,
    }
}

impl Context<'_> {
    /// Our addresses: the one that is used first, then those that it may change to.
    pub(super) fn locals(&self, t: &mut Reader<'_>, addresses: Option<&AddressConfig>) -> Vec<At<IpAddr>> {
        let Some(list) = t.string_or_strings("local") else {
            return Vec::new();
        };
        let mut locals: Vec<At<IpAddr>> = Vec::new();
        for text in list.value {
            let Ok(value) = text.value.parse::<IpAddr>() else {
                self.problems.add(
                    text.span,
                    format!("local '{}' is no IP address", text.value),
                    "give one of the outside cluster addresses, or several between which it may change",
                );
                continue;
            };
            let span = text.span;
            if addresses.is_some_and(|known| !known.outside.contains(&value)) {
                self.problems.add(
                    span.clone(),
                    format!("{value} is no outside cluster address"),
                    "use one of [addresses] outside, or add it there",
                );
            }
            if let Some(first) = locals.first()
                && (first.value.is_ipv4() != value.is_ipv4() || locals.iter().any(|l| l.value == value))
            {
                self.problems.add(
                    span.clone(),
                    format!(
                        "local {value} is there twice, or not of the family of {}",
                        first.value
                    ),
                    "give each address once, all IPv4 or all IPv6",
                );
            }
            locals.push(At { value, span });
        }
        locals
    }

    /// Where the peer is, in the order in which it is tried; `Some` of an empty list: anywhere.
    pub(super) fn remotes(&self, t: &mut Reader<'_>) -> Option<Vec<Remote>> {
        const HINT: &str = "the peer's address or name, a list of them, or remote = \"any\"";
        if !t.has("remote") {
            t.missing("remote", HINT);
            return None;
        }
        let list = t.string_or_strings("remote")?;
        if let [At { value, .. }] = list.value.as_slice()
            && value == "any"
        {
            return Some(Vec::new());
        }
        let mut remotes = Vec::new();
        for text in &list.value {
            let usable = |remote: &Remote| remote.address().is_none_or(is_unicast);
            match Remote::parse(&text.value).filter(usable) {
                Some(remote) if remotes.contains(&remote) => self.problems.add(
                    text.span.clone(),
                    format!("remote {remote} is there twice"),
                    "name each address once, the one to try first in front",
                ),
                Some(remote) => remotes.push(remote),
                None => self.problems.add(
                    text.span.clone(),
                    format!("remote '{}' is no address and no name of a host", text.value),
                    "give an address or a name, several in the order in which they are to be tried, or \"any\"",
                ),
            }
        }
        let families = |v4: bool| {
            let mut addresses = remotes.iter().filter_map(Remote::address);
            addresses.any(|address| address.is_ipv4() == v4)
        };
        if families(true) && families(false) {
            self.problems.add(
                list.span.clone(),
                "the addresses in remote are not of one family",
                "give IPv4 or IPv6 addresses only: there is one local address for all of them",
            );
        }
        if remotes.len() > REMOTES_MAX || list.value.is_empty() {
            self.problems.add(
                list.span,
                format!("remote names {} addresses", list.value.len()),
                format!("name 1 to {REMOTES_MAX}"),
            );
        }
        (!remotes.is_empty()).then_some(remotes)
    }

    /// Who begins and how often, what is done after a loss. `remotes`: where the peer is, where that could be read.
    pub(super) fn dial(&self, t: &mut Reader<'_>, remotes: Option<&[Remote]>) -> Dial {
        let nowhere = remotes.is_some_and(<[_]>::is_empty);
        let words = [
            ("initiate", Start::Initiate),
            ("start", Start::Initiate),
            ("trap", Start::Trap),
            ("passive", Start::Passive),
        ];
        let start = t.word("start", &words).unwrap_or(match nowhere {
            true => Start::Passive,
            false => Start::Trap,
        });
        if nowhere && start != Start::Passive {
            let word = if start == Start::Trap { "trap" } else { "initiate" };
            self.problems.add(
                t.span_of("start"),
                format!("start = \"{word}\" needs an address to initiate to, and remote is \"any\""),
                "give the peer's address, or start = \"passive\"",
            );
        }
        let dpd_delay = t.duration("dpd_delay", MS(100)..DAY);
        let words = [
            ("clear", AfterLoss::Clear),
            ("trap", AfterLoss::Trap),
            ("restart", AfterLoss::Restart),
        ];
        let mut after = |key: &'static str| {
            let given = t.word(key, &words);
            if nowhere && given.is_some_and(|given| given != AfterLoss::Clear) {
                self.problems.add(
                    t.span_of(key),
                    format!("{key} needs an address to initiate to, and remote is \"any\""),
                    format!("give the peer's address, or {key} = \"clear\""),
                );
            }
            given.unwrap_or(by_start(start))
        };
        let (dpd_action, close_action) = (after("dpd_action"), after("close_action"));
        let usual = Retry::default();
        let retry = Retry {
            first: t
                .duration("retry_first", MS(100)..SECOND * 3600)
                .unwrap_or(usual.first),
            most: t.duration("retry_most", MS(100)..DAY).unwrap_or(usual.most),
        };
        if retry.most < retry.first {
            self.problems.add(
                t.span_of("retry_most"),
                format!(
                    "retry_most {} is shorter than retry_first {}",
                    humantime::format_duration(retry.most),
                    humantime::format_duration(retry.first)
                ),
                "make it at least as long: pauses between attempts grow from the one to the other",
            );
        }
        Dial {
            start,
            dpd_delay,
            dpd_action,
            close_action,
            retry,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, ConnectionConfig};
    use std::path::Path;

    const EXAMPLE: &str = include_str!("../../../../docs/examples/espalier.toml");
    const REMOTE: &str = "remote = \"203.0.113.10\"";
    const START: &str = "start = \"passive\"";

    fn read(from: &str, to: &str) -> Result<ConnectionConfig, String> {
        assert!(EXAMPLE.contains(from));
        let source = EXAMPLE.replacen(from, to, 1);
        let read = Config::read_without_files(&source, Path::new("/etc/espalier"));
        read.map(|config| config.connections[0].clone())
            .map_err(|problems| {
                problems
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join("\n")
            })
    }

    #[test]
    fn a_peer_may_have_several_addresses_in_the_order_in_which_they_are_tried() {
        let several = read(REMOTE, "remote = [\"203.0.113.10\", \"203.0.113.11\"]").unwrap();
        assert_eq!(several.remotes.len(), 2);
        assert_eq!(read(REMOTE, "remote = \"any\"").unwrap().remotes.len(), 0);
        let named = read(REMOTE, "remote = [\"Gw.example\", \"203.0.113.11\"]").unwrap();
        assert_eq!(
            named.remotes,
            [
                Remote::Name("gw.example".to_owned()),
                Remote::Address([203, 0, 113, 11].into())
            ]
        );
        assert_eq!(named.dial.start, Start::Passive, "as the example says");
        for (text, want) in [
            (
                "remote = [\"203.0.113.10\", \"2001:db8::1\"]",
                "not of one family",
            ),
            ("remote = [\"203.0.113.10\", \"203.0.113.10\"]", "is there twice"),
            (
                "remote = [\"203.0.113.10\", \"any\"]",
                "remote 'any' is no address",
            ),
            (
                "remote = \"10.1.2.300\"",
                "remote '10.1.2.300' is no address and no name",
            ),
            (
                "remote = [\"gw.example\", \"GW.example.\"]",
                "remote gw.example is there twice",
            ),
            ("remote = []", "names 0 addresses"),
            ("", "has no 'remote'"),
        ] {
            let problems = read(REMOTE, text).unwrap_err();
            assert!(problems.contains(want), "{text}: {problems}");
        }
    }

    #[test]
    fn who_begins_says_what_happens_after_a_loss_where_nothing_else_does() {
        let dial = |text: &str| read(START, text).map(|c| c.dial);
        for (text, start, after) in [
            ("start = \"initiate\"", Start::Initiate, AfterLoss::Restart),
            ("start = \"start\"", Start::Initiate, AfterLoss::Restart),
            ("start = \"trap\"", Start::Trap, AfterLoss::Trap),
            ("", Start::Trap, AfterLoss::Trap),
            ("start = \"passive\"", Start::Passive, AfterLoss::Clear),
        ] {
            let dial = dial(text).unwrap();
            assert_eq!(
                (dial.start, dial.dpd_action, dial.close_action),
                (start, after, after),
                "{text}"
            );
        }
        let keys = "start = \"passive\"\ndpd_action = \"restart\"\nclose_action = \"trap\"\nretry_first = \"500ms\"\nretry_most = \"9s\"";
        let dial = dial(keys).unwrap();
        assert_eq!(
            (dial.dpd_action, dial.close_action),
            (AfterLoss::Restart, AfterLoss::Trap)
        );
        assert_eq!(
            (dial.retry.first, dial.retry.most),
            (Duration::from_millis(500), Duration::from_secs(9))
        );
    }

    #[test]
    fn nobody_initiates_to_an_unknown_address() {
        let any = |key: &str| read(REMOTE, &format!("{key}\nremote = \"any\""));
        for key in ["dpd_action = \"restart\"", "close_action = \"trap\""] {
            let problems = any(key).unwrap_err();
            assert!(problems.contains("needs an address to initiate to"), "{problems}");
        }
        assert_eq!(any("").unwrap().dial.dpd_action, AfterLoss::Clear);
        let source = EXAMPLE
            .replace(REMOTE, "remote = \"any\"")
            .replace(START, "start = \"trap\"");
        let problems = Config::read_without_files(&source, Path::new("/")).unwrap_err();
        assert!(
            problems[0]
                .to_string()
                .contains("start = \"trap\" needs an address"),
            "{problems:?}"
        );
        let problems = read(START, "retry_first = \"10s\"\nretry_most = \"1s\"").unwrap_err();
        assert!(
            problems.contains("retry_most 1s is shorter than retry_first 10s"),
            "{problems}"
        );
    }
}
