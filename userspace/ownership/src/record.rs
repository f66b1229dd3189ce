//! Keys, and what their values look like. Values are JSON, so that an operator reads them with etcdctl:
//!
//! ```text
//! <prefix>/<cluster>/layout     {"version":1,"groups":16}
//! <prefix>/<cluster>/groups/07  {"version":1,"epoch":12,"owner":2,
//!                                "in_sync":[{"member":2,"incarnation":"00c0ffee00c0ffee"}],"segments":"7 mod 16"}
//! ```
//!
//! Incarnations are hexadecimal text: as JSON numbers, tools that calculate in doubles would round them.

use crate::error::Fault;
use cluster::{EpochId, GroupRecord, SetMember};
use model::{Epoch, GroupId, Incarnation, MemberId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Version of both encodings.
const VERSION: u32 = 1;
/// Longer values are not looked at: sixteen members take about 900 octets.
const LONGEST: usize = 4096;
/// What is quoted of one that cannot be read, octets.
const SHOWN_MAX: usize = 300;
/// Member ids run from 1 to this.
const MEMBERS_MAX: u8 = 16;

/// The keys of one cluster.
#[derive(Clone, Debug)]
pub struct Keys {
    root: String,
    groups: u8,
}

impl Keys {
    /// `<prefix>/<cluster>`, with one slash between them.
    pub fn new(prefix: &str, cluster: &str, groups: u8) -> Self {
        Self {
            root: format!("{}/{cluster}", prefix.trim_end_matches('/')),
            groups,
        }
    }

    /// What all keys of the cluster begin with.
    pub fn root(&self) -> String {
        format!("{}/", self.root)
    }

    /// The key of the layout.
    pub fn layout(&self) -> String {
        format!("{}/layout", self.root)
    }

    /// What the keys of all groups begin with.
    pub fn all_groups(&self) -> String {
        format!("{}/groups/", self.root)
    }

    /// The key of a group.
    pub fn group(&self, group: GroupId) -> String {
        format!("{}/groups/{:02}", self.root, group.0)
    }

    /// How many groups there are.
    pub fn groups(&self) -> u8 {
        self.groups
    }

    /// The group that a key is of; `None` for every other key, also for one of a group that does not exist.
    pub fn group_of(&self, key: &[u8]) -> Option<GroupId> {
        let key = std::str::from_utf8(key).ok()?;
        let number: u8 = key.strip_prefix(&self.all_groups())?.parse().ok()?;
        let group = GroupId(number);
        (number < self.groups && self.group(group) == key).then_some(group)
    }

    /// Encodes a record.
    ///
    /// # Errors
    /// [`Fault::Unwritable`] if the record could not be read back.
    pub fn encode(&self, group: GroupId, record: &GroupRecord) -> Result<String, Fault> {
        let unwritable = |why: String| Fault::Unwritable {
            key: self.group(group),
            why,
        };
        let stored = Stored {
            version: VERSION,
            epoch: record.epoch.number.0,
            owner: record.epoch.owner.0,
            in_sync: record
                .in_sync
                .iter()
                .map(|m| StoredMember {
                    member: m.member.0,
                    incarnation: format!("{:016x}", m.incarnation.0),
                })
                .collect(),
            segments: self.segments(group),
        };
        self.checked(group, stored.clone()).map_err(unwritable)?;
        serde_json::to_string(&stored).map_err(|e| unwritable(e.to_string()))
    }

    /// Decodes the value of a group's key.
    ///
    /// # Errors
    /// [`Fault::Unreadable`] for whatever [`Keys::encode`] would not have written.
    pub fn decode(&self, group: GroupId, value: &[u8]) -> Result<GroupRecord, Fault> {
        parse(value)
            .and_then(|stored| self.checked(group, stored))
            .map_err(|why| Fault::Unreadable {
                key: self.group(group),
                why: shown(&why),
            })
    }

    /// The value of the layout's key.
    pub fn encode_layout(&self) -> String {
        format!("{{\"version\":{VERSION},\"groups\":{}}}", self.groups)
    }

    /// Whether the layout is the one of this member.
    ///
    /// # Errors
    /// [`Fault::LayoutDiffers`], or [`Fault::Unreadable`].
    pub fn check_layout(&self, value: &[u8]) -> Result<(), Fault> {
        let stored: StoredLayout = parse(value).map_err(|why| Fault::Unreadable {
            key: self.layout(),
            why: shown(&why),
        })?;
        if stored.groups == self.groups {
            return Ok(());
        }
        Err(Fault::LayoutDiffers {
            key: self.layout(),
            there: stored.groups,
            here: self.groups,
        })
    }

    fn segments(&self, group: GroupId) -> String {
        format!("{} mod {}", group.0, self.groups)
    }

    fn checked(&self, group: GroupId, stored: Stored) -> Result<GroupRecord, String> {
        let id = |member: u8| {
            if (1..=MEMBERS_MAX).contains(&member) {
                Ok(MemberId(member))
            } else {
                Err(format!("member {member} is none of 1 to {MEMBERS_MAX}"))
            }
        };
        if stored.segments != self.segments(group) {
            return Err(format!(
                "it is for the segments {:?}, not for {:?}",
                stored.segments,
                self.segments(group)
            ));
        }
        let mut in_sync = BTreeSet::new();
        let mut members = BTreeSet::new();
        for m in &stored.in_sync {
            let member = id(m.member)?;
            if !members.insert(member) {
                return Err(format!("member {} is in the in-sync set twice", m.member));
            }
            // Exactly what is written: from_str_radix alone would take a sign and any length.
            let incarnation = u64::from_str_radix(&m.incarnation, 16)
                .ok()
                .filter(|n| format!("{n:016x}") == m.incarnation)
                .ok_or_else(|| format!("incarnation {:?} is not 16 hexadecimal digits", m.incarnation))?;
            in_sync.insert(SetMember {
                member,
                incarnation: Incarnation(incarnation),
            });
        }
        Ok(GroupRecord {
            epoch: EpochId {
                number: Epoch(stored.epoch),
                owner: id(stored.owner)?,
            },
            in_sync,
        })
    }
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    epoch: u64,
    owner: u8,
    in_sync: Vec<StoredMember>,
    segments: String,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredMember {
    member: u8,
    incarnation: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredLayout {
    #[serde(rename = "version")]
    _version: u32,
    groups: u8,
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// The version first, so that a later one is called that and not a field that nobody knows.
fn parse<'a, T: Deserialize<'a>>(value: &'a [u8]) -> Result<T, String> {
    if value.len() > LONGEST {
        return Err(format!(
            "it has {} octets, at most {LONGEST} are read",
            value.len()
        ));
    }
    let Versioned { version } = serde_json::from_slice(value).map_err(|e| e.to_string())?;
    if version != VERSION {
        return Err(format!(
            "it has version {version}, this member knows version {VERSION}"
        ));
    }
    serde_json::from_slice(value).map_err(|e| e.to_string())
}

/// What is wrong with a value, which it may quote: for one line of a log.
fn shown(why: &str) -> String {
    let mut text = String::new();
    for c in why.chars() {
        if text.len() >= SHOWN_MAX {
            text.push_str("...");
            break;
        }
        match c.is_control() {
            true => text.extend(c.escape_default()),
            false => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> GroupRecord {
        GroupRecord {
            epoch: EpochId {
                number: Epoch(7),
                owner: MemberId(2),
            },
            in_sync: [(1, u64::MAX), (2, 0x00c0_ffee)]
                .into_iter()
                .map(|(m, i)| SetMember {
                    member: MemberId(m),
                    incarnation: Incarnation(i),
                })
                .collect(),
        }
    }

    #[test]
    fn a_record_is_written_as_the_documents_show_it_and_read_back() {
        let keys = Keys::new("/espalier/", "lab", 16);
        assert_eq!(keys.group(GroupId(7)), "/espalier/lab/groups/07");
        assert_eq!(keys.layout(), "/espalier/lab/layout");
        let text = keys.encode(GroupId(7), &record()).expect("encode");
        assert_eq!(
            text,
            r#"{"version":1,"epoch":7,"owner":2,"in_sync":[{"member":1,"incarnation":"ffffffffffffffff"},{"member":2,"incarnation":"0000000000c0ffee"}],"segments":"7 mod 16"}"#
        );
        assert_eq!(keys.decode(GroupId(7), text.as_bytes()), Ok(record()));
        // Order and white space are an editor's, not a difference.
        let moved = r#"{ "owner": 2, "epoch": 7, "segments": "7 mod 16", "version": 1,
            "in_sync": [{"incarnation": "0000000000c0ffee", "member": 2}, {"member": 1, "incarnation": "ffffffffffffffff"}] }"#;
        assert_eq!(keys.decode(GroupId(7), moved.as_bytes()), Ok(record()));
    }

    #[test]
    fn what_cannot_be_read_is_named_and_is_not_absent() {
        let keys = Keys::new("/espalier", "lab", 16);
        let whole = keys.encode(GroupId(7), &record()).expect("encode");
        let cases: &[(&str, String, &str)] = &[
            ("empty", String::new(), "EOF"),
            ("not JSON", "owner=2".into(), "expected"),
            ("cut off", whole[..whole.len() - 3].into(), "EOF"),
            (
                "the future",
                whole.replace("\"version\":1", "\"version\":2"),
                "version 2",
            ),
            (
                "a field too many",
                whole.replace("\"epoch\"", "\"lease\":1,\"epoch\""),
                "lease",
            ),
            ("a field too few", whole.replace("\"owner\":2,", ""), "owner"),
            (
                "negative epoch",
                whole.replace("\"epoch\":7", "\"epoch\":-7"),
                "-7",
            ),
            (
                "member 0",
                whole.replace("\"owner\":2", "\"owner\":0"),
                "member 0",
            ),
            (
                "member 17",
                whole.replace("\"member\":1,", "\"member\":17,"),
                "member 17",
            ),
            (
                "a member twice",
                whole.replace("\"member\":1,", "\"member\":2,"),
                "twice",
            ),
            (
                "a short incarnation",
                whole.replace("0000000000c0ffee", "c0ffee"),
                "c0ffee",
            ),
            (
                "a signed incarnation",
                whole.replace("0000000000c0ffee", "+00000000c0ffee1"),
                "+0",
            ),
            ("another cut", whole.replace("7 mod 16", "7 mod 8"), "7 mod 8"),
            ("huge", format!("{whole}{}", " ".repeat(5000)), "octets"),
        ];
        for (name, text, word) in cases {
            let error = keys
                .decode(GroupId(7), text.as_bytes())
                .expect_err(name)
                .to_string();
            assert!(
                error.contains("/espalier/lab/groups/07") && error.contains(word),
                "{name}: {error}"
            );
        }
        assert!(matches!(
            keys.decode(GroupId(7), &[0xff, 0xfe]),
            Err(Fault::Unreadable { .. })
        ));
    }

    #[test]
    fn a_value_is_quoted_on_one_line_and_not_at_length() {
        let keys = Keys::new("/espalier", "lab", 16);
        let whole = keys.encode(GroupId(7), &record()).expect("encode");
        for (name, from, to) in [
            ("a field", "\"epoch\"", "\"a\\nb\":1,\"epoch\"".to_owned()),
            ("a long one", "7 mod 16", "\\u001b".repeat(600)),
            ("a line end", "7 mod 16", "7\\n mod 16".to_owned()),
        ] {
            let value = whole.replace(from, &to);
            let error = keys.decode(GroupId(7), value.as_bytes()).expect_err(name);
            let text = error.to_string();
            assert!(
                !text.contains(char::is_control) && text.len() < 500,
                "{name}: {text:?}"
            );
        }
    }

    #[test]
    fn a_record_that_could_not_be_read_back_is_not_written() {
        let keys = Keys::new("/espalier", "lab", 16);
        let mut wrong = record();
        wrong.epoch.owner = MemberId(0);
        assert!(matches!(
            keys.encode(GroupId(7), &wrong),
            Err(Fault::Unwritable { .. })
        ));
        let mut wrong = record();
        wrong.in_sync.insert(SetMember {
            member: MemberId(2),
            incarnation: Incarnation(5),
        });
        assert!(matches!(
            keys.encode(GroupId(7), &wrong),
            Err(Fault::Unwritable { .. })
        ));
    }

    #[test]
    fn only_keys_of_groups_that_exist_are_groups() {
        let keys = Keys::new("/espalier", "lab", 16);
        assert_eq!(keys.group_of(b"/espalier/lab/groups/15"), Some(GroupId(15)));
        for other in [
            "groups/16",
            "groups/7",
            "groups/+7",
            "groups/007",
            "groups/",
            "layout",
            "groups/07/x",
        ] {
            assert_eq!(
                keys.group_of(format!("/espalier/lab/{other}").as_bytes()),
                None,
                "{other}"
            );
        }
        assert_eq!(keys.group_of(b"/espalier/other/groups/07"), None);
    }

    #[test]
    fn a_layout_of_another_member_is_compared() {
        let keys = Keys::new("/espalier", "lab", 16);
        assert_eq!(keys.check_layout(keys.encode_layout().as_bytes()), Ok(()));
        let other = Keys::new("/espalier", "lab", 8).encode_layout();
        assert_eq!(
            keys.check_layout(other.as_bytes()),
            Err(Fault::LayoutDiffers {
                key: "/espalier/lab/layout".into(),
                there: 8,
                here: 16
            })
        );
        assert!(matches!(keys.check_layout(b"16"), Err(Fault::Unreadable { .. })));
    }
}
