//! How packets are carried, how long an SA lives, and policies that belong to no connection.

use std::time::Duration;

use maps_schema::sad::{MSS_AUTO, MSS_OFF};
use sad::lifetime::Lifetimes;
use sad::{DontFragment, Handling, PolicyAction};

use super::PolicyConfig;
use super::check;
use super::read::{Context, SECOND};
use super::reader::{At, Problems, Reader};

const YEAR: Duration = Duration::from_secs(86_400 * 365);
/// Largest packets that the program carries are well below.
const MTU_MAX: u64 = 9000;

/// What the children of a connection have in common.
#[derive(Clone, Copy, Default)]
pub(super) struct Path {
    mtu: Option<u16>,
    df: DontFragment,
}

impl Path {
    /// `mtu` and `df` of a connection whose peer is at an address of this family.
    pub fn read(t: &mut Reader<'_>, v6: bool) -> Self {
        // RFC 8200 5, RFC 791: less is carried nowhere.
        let least = u64::from(if v6 {
            sad::path::LEAST_V6
        } else {
            sad::path::LEAST_V4
        });
        let mtu = t.integer("mtu", least..=MTU_MAX).map(|mtu| mtu.value as u16);
        let df = t.word(
            "df",
            &[
                ("copy", DontFragment::Copy),
                ("set", DontFragment::Set),
                ("clear", DontFragment::Clear),
            ],
        );
        Self {
            mtu,
            df: df.unwrap_or_default(),
        }
    }

    /// With `dscp`, `mss_clamp` and `on_miss` of a child.
    pub fn handling(self, t: &mut Reader<'_>) -> Handling {
        let dscp = t.read(
            "dscp",
            "\"copy\", a name as \"ef\", \"af41\" or \"cs6\", or a number to 63",
            dscp,
        );
        let mss = t.read(
            "mss_clamp",
            "\"auto\", \"off\", or octets from 64 to 65000",
            |text| match text {
                "auto" => Some(MSS_AUTO),
                "off" => Some(MSS_OFF),
                number => number.parse().ok().filter(|n| (64..=65_000).contains(n)),
            },
        );
        let hold = t.word("on_miss", &[("drop", false), ("hold", true)]);
        Handling {
            mtu: self.mtu,
            df: self.df,
            dscp: dscp.flatten(),
            mss_clamp: mss.unwrap_or(MSS_AUTO),
            hold: hold.unwrap_or(false),
        }
    }
}

/// DSCP by number or by name (RFC 2474, RFC 2597, RFC 3246, RFC 8622); `Some(None)` is "copy".
fn dscp(text: &str) -> Option<Option<u8>> {
    let value = match text {
        "copy" => return Some(None),
        "ef" => 46,
        "le" => 1,
        _ => match text.as_bytes() {
            [b'c', b's', class @ b'0'..=b'7'] => (class - b'0') << 3,
            [b'a', b'f', class @ b'1'..=b'4', drop @ b'1'..=b'3'] => (class - b'0') << 3 | (drop - b'0') << 1,
            _ => text.parse().ok().filter(|value| *value < 64)?,
        },
    };
    Some(Some(value))
}

/// A count of octets or packets: a number, or one with k, M, G or T (powers of ten), or with KiB, MiB, GiB or TiB.
fn count(text: &str) -> Option<u64> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit.trim() {
        "" => 1,
        "k" | "kB" => 1000,
        "M" | "MB" => 1_000_000,
        "G" | "GB" => 1_000_000_000,
        "T" | "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor).filter(|n| *n > 0)
}

/// Rekey and end of a child's SAs by octets and packets, and their end by age (the rekey by age is the IKE engine's).
pub(super) fn lifetimes(t: &mut Reader<'_>, problems: &Problems, rekey_time: Option<Duration>) -> Lifetimes {
    let life_time = t.duration("life_time", SECOND..YEAR);
    if let (Some(soft), Some(hard)) = (rekey_time, life_time)
        && hard <= soft
    {
        problems.add(
            t.span(),
            format!(
                "life_time {} is not longer than rekey_time {}",
                humantime::format_duration(hard),
                humantime::format_duration(soft)
            ),
            "a rekey needs time before the end: make life_time longer, for example by a tenth",
        );
    }
    let want = "a number, or for example \"50GB\" or \"20GiB\"";
    let mut pair = |soft: &'static str, hard: &'static str| {
        let (soft, hard) = (t.read_at(soft, want, count), t.read_at(hard, want, count));
        match (soft, hard) {
            (Some(soft), Some(hard)) if soft.value >= hard.value => {
                problems.add(
                    soft.span,
                    format!("the rekey is at {}, the end at {}", soft.value, hard.value),
                    "let the rekey come before the end, for example at four fifths",
                );
                (0, 0)
            }
            (Some(At { value, .. }), Some(hard)) => (value, hard.value),
            (Some(soft), None) => (soft.value, 0),
            // Where it is not given: early enough for the exchange at a high rate.
            (None, Some(hard)) => ((hard.value / 5 * 4).max(1), hard.value),
            (None, None) => (0, 0),
        }
    };
    let (soft_bytes, hard_bytes) = pair("rekey_bytes", "life_bytes");
    let (soft_packets, hard_packets) = pair("rekey_packets", "life_packets");
    Lifetimes {
        hard: life_time.unwrap_or_default(),
        soft_bytes,
        hard_bytes,
        soft_packets,
        hard_packets,
        ..Lifetimes::NONE
    }
}

/// Rekey by age of a child that has an end by age only.
pub(super) fn rekey_time(given: Option<Duration>, lifetimes: &Lifetimes) -> Option<Duration> {
    given.or_else(|| (!lifetimes.hard.is_zero()).then(|| lifetimes.hard / 10 * 9))
}

impl Context<'_> {
    /// `[[policies]]`.
    pub(super) fn policies(&self, root: &mut Reader<'_>, all: &mut Vec<check::Policy>) -> Vec<PolicyConfig> {
        let mut names = Vec::new();
        let mut out = Vec::new();
        for mut t in root.tables("policies", "policies") {
            let name = t.name("a name");
            names.extend(name.clone());
            if !t.has("action") {
                t.missing("action", "action = \"bypass\" or \"discard\"");
            }
            let action = t.word(
                "action",
                &[
                    ("bypass", PolicyAction::Bypass),
                    ("discard", PolicyAction::Discard),
                ],
            );
            let source = self.selectors(&mut t, "source");
            let destination = self.selectors(&mut t, "destination");
            let span = t.span();
            t.finish();
            let (Some(name), Some(action)) = (name, action) else {
                continue;
            };
            let fits = |s: &model::TrafficSelector, d: &model::TrafficSelector| {
                s.first.is_ipv4() == d.first.is_ipv4()
                    && (s.protocol == 0 || d.protocol == 0 || s.protocol == d.protocol)
            };
            if !source.is_empty()
                && !destination.is_empty()
                && !source.iter().any(|s| destination.iter().any(|d| fits(s, d)))
            {
                self.problems.add(
                    span,
                    format!(
                        "no source and destination of policy '{}' agree in address family and protocol",
                        name.value
                    ),
                    "give both of one family, and the protocol with both or with one of them",
                );
            }
            all.push(check::Policy {
                name: name.value.clone(),
                span: name.span,
                local: source.clone(),
                remote: destination.clone(),
            });
            out.push(PolicyConfig {
                name: name.value,
                action,
                source,
                destination,
            });
        }
        check::unique(&self.problems, "policy name", &names);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_points_have_numbers_and_names() {
        for (text, value) in [
            ("ef", 46),
            ("le", 1),
            ("cs0", 0),
            ("cs6", 48),
            ("af11", 10),
            ("af43", 38),
            ("0", 0),
            ("63", 63),
        ] {
            assert_eq!(dscp(text), Some(Some(value)), "{text}");
        }
        assert_eq!(dscp("copy"), Some(None));
        for text in ["64", "-1", "cs8", "af14", "af51", "af01", "EF", ""] {
            assert_eq!(dscp(text), None, "{text}");
        }
    }

    #[test]
    fn counts_have_units() {
        for (text, value) in [
            ("1", 1),
            ("4096", 4096),
            ("50GB", 50_000_000_000),
            ("50 GB", 50_000_000_000),
            ("3k", 3000),
            ("2TiB", 2 << 40),
        ] {
            assert_eq!(count(text), Some(value), "{text}");
        }
        for text in ["", "0", "GB", "1.5GB", "1gb", "99999999999TB", "-1"] {
            assert_eq!(count(text), None, "{text}");
        }
    }
}
