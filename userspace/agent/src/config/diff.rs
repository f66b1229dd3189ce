//! What differs between the configuration in use and another text of it, as an operator wrote it, and what that takes.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::{Config, ConnectionConfig, KeySource};

/// Parts that can change while the agent runs: lists of tables, each with a name.
const LISTS: [&str; 3] = ["connections", "policies", "pools"];

/// What a change takes. In the order of weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// In force at once; no message, no packet lost.
    AtOnce,
    /// The SAs that are up keep it as it was until they are rekeyed.
    NextRekey,
    /// The IKE SAs that are up keep it as it was; the next one is set up with it.
    NextIkeSa,
    /// Child SAs are deleted and made again.
    NewChildSas,
    /// IKE SAs are deleted and set up again.
    NewIkeSas,
    /// Only when the agent is started again; until then as it was.
    Restart,
}

impl Effect {
    /// For an operator.
    pub fn text(self) -> &'static str {
        match self {
            Self::AtOnce => "at once",
            Self::NextRekey => "with the next rekey",
            Self::NextIkeSa => "with the next IKE SA",
            Self::NewChildSas => "its Child SAs are made again",
            Self::NewIkeSas => "its IKE SAs are set up again",
            Self::Restart => "needs a restart",
        }
    }
}

/// Where something stands: `connections`, `site-a`, `children`, `lan`, `esp`. Names may have dots in them.
pub type Place = Vec<String>;

/// A place for an operator.
pub fn show(place: &[String]) -> String {
    place.join(".")
}

/// One value that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where it stands.
    pub place: Place,
    /// As it was; `None`: not given.
    pub old: Option<String>,
    /// As it is to be.
    pub new: Option<String>,
    /// What it takes.
    pub effect: Effect,
}

impl Change {
    /// The connection that it is about.
    pub fn connection(&self) -> Option<&str> {
        connection_of(&self.place)
    }

    /// The child that it is about.
    pub fn child(&self) -> Option<(&str, &str)> {
        child_of(&self.place)
    }
}

fn connection_of(place: &[String]) -> Option<&str> {
    match place {
        [list, name, ..] if list == "connections" => Some(name),
        _ => None,
    }
}

fn child_of(place: &[String]) -> Option<(&str, &str)> {
    match place {
        [list, name, children, child, ..] if list == "connections" && children == "children" => {
            Some((name, child))
        }
        _ => None,
    }
}

/// What differs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Connections, children, policies and pools that are new.
    pub added: Vec<Place>,
    /// Those that are gone.
    pub removed: Vec<Place>,
    /// Values that differ.
    pub changed: Vec<Change>,
}

impl Difference {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }

    /// Connections that are gone.
    pub fn connections_removed(&self) -> impl Iterator<Item = &str> {
        let whole = self.removed.iter().filter(|place| place.len() == 2);
        whole.filter_map(|place| connection_of(place))
    }

    /// Children that are gone while their connection stays: connection and child.
    pub fn children_removed(&self) -> impl Iterator<Item = (&str, &str)> {
        self.removed.iter().filter_map(|place| child_of(place))
    }
}

/// What a key of a connection takes, where that is not [`Effect::NextIkeSa`].
fn of_connection(key: &str) -> Effect {
    match key {
        "start" | "dpd_delay" | "dpd_action" | "close_action" | "retry_first" | "retry_most"
        | "rekey_time" | "reauth_time" | "rekey_jitter" | "retransmit_initial" | "retransmit_tries"
        | "mid_sync" => Effect::AtOnce,
        "ike" | "mtu" | "df" => Effect::NextRekey,
        "local" | "remote" | "local_id" | "remote_id" | "auth" | "local_auth" | "remote_auth" => {
            Effect::NewIkeSas
        }
        _ => Effect::NextIkeSa,
    }
}

/// What a key of a child takes.
fn of_child(key: &str) -> Effect {
    match key {
        "rekey_time" | "on_miss" => Effect::AtOnce,
        "local_ts" | "remote_ts" | "mode" => Effect::NewChildSas,
        _ => Effect::NextRekey,
    }
}

fn effect(place: &[String]) -> Effect {
    let parts: Vec<&str> = place.iter().map(String::as_str).collect();
    match parts.as_slice() {
        ["connections", _, "children", _, key] => of_child(key),
        ["connections", _, key] => of_connection(key),
        ["policies", ..] => Effect::AtOnce,
        ["pools", ..] => Effect::NextIkeSa,
        _ => Effect::Restart,
    }
}

/// Name of a table in a list of them.
fn name_of(table: &Table, at: usize) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let named = table.get("name").or_else(|| table.get("id"));
    named.map_or_else(|| at.to_string(), text)
}

/// The values of a file by their places, and the tables of lists, in their order.
#[derive(Default)]
struct Flat {
    values: BTreeMap<Place, String>,
    tables: Vec<Place>,
}

impl Flat {
    fn of(table: &Table) -> Self {
        let mut flat = Self::default();
        flat.table(&[], table, &[]);
        flat
    }

    /// `named`: keys that are the table's name.
    fn table(&mut self, place: &[String], table: &Table, named: &[&str]) {
        for (key, value) in table.iter().filter(|(key, _)| !named.contains(&key.as_str())) {
            let below = |name: &str| [place, &[name.to_owned()]].concat();
            match value {
                Value::Table(table) => self.table(&below(key), table, &[]),
                Value::Array(list) if !list.is_empty() && list.iter().all(Value::is_table) => {
                    for (at, table) in list.iter().filter_map(Value::as_table).enumerate() {
                        let here = [below(key), vec![name_of(table, at)]].concat();
                        self.tables.push(here.clone());
                        let named: &[&str] = if table.contains_key("id") {
                            &["id"]
                        } else {
                            &["name"]
                        };
                        self.table(&here, table, named);
                    }
                }
                plain => drop(self.values.insert(below(key), plain.to_string())),
            }
        }
    }
}

fn is_reloadable(place: &[String]) -> bool {
    place.first().is_some_and(|first| LISTS.contains(&first.as_str()))
}

fn within(place: &[String], tables: &[Place]) -> bool {
    let around = |table: &Place| place.len() > table.len() && place.starts_with(table);
    tables.iter().any(around)
}

/// From the table in use to another one.
pub fn between(old: &Table, new: &Table) -> Difference {
    let (before, after) = (Flat::of(old), Flat::of(new));
    let only = |these: &[Place], those: &[Place]| {
        let there: HashSet<&Place> = those.iter().collect();
        let missing = these
            .iter()
            .filter(|place| is_reloadable(place) && !there.contains(place));
        missing.cloned().collect::<Vec<_>>()
    };
    let mut difference = Difference {
        added: only(&after.tables, &before.tables),
        removed: only(&before.tables, &after.tables),
        changed: Vec::new(),
    };
    let values = (&before.values, &after.values);
    let new = values.1.keys().filter(|place| !values.0.contains_key(*place));
    for place in values.0.keys().chain(new) {
        let (old, new) = (values.0.get(place), values.1.get(place));
        if old != new && !within(place, &difference.added) && !within(place, &difference.removed) {
            difference.changed.push(Change {
                place: place.clone(),
                old: old.cloned(),
                new: new.cloned(),
                effect: effect(place),
            });
        }
    }
    // A child that comes or goes with its connection is not told by itself.
    for list in [&mut difference.added, &mut difference.removed] {
        let whole = list.clone();
        list.retain(|place| !within(place, &whole));
    }
    order(&before.tables, &after.tables, &mut difference);
    difference
}

/// Of equals the first one decides, so the order of what stays is a value too.
fn order(were: &[Place], are: &[Place], difference: &mut Difference) {
    for list in ["connections", "policies"] {
        let of = |tables: &[Place], there: &[Place]| {
            let there: HashSet<&Place> = there.iter().collect();
            let here = tables.iter().filter(|place| place.len() == 2 && place[0] == list);
            let names = here
                .filter(|place| there.contains(place))
                .map(|place| place[1].as_str());
            names.collect::<Vec<_>>().join(", ")
        };
        let (old, new) = (of(were, are), of(are, were));
        if old != new {
            difference.changed.push(Change {
                place: vec![list.to_owned()],
                old: Some(format!("in the order {old}")),
                new: Some(format!("in the order {new}")),
                effect: Effect::AtOnce,
            });
        }
    }
}

/// Puts what can change while the agent runs in the place of what is there.
pub fn take_over(running: &mut Table, new: &Table) {
    for list in LISTS {
        match new.get(list) {
            Some(value) => drop(running.insert(list.to_owned(), value.clone())),
            None => drop(running.remove(list)),
        }
    }
}

/// Digests of the files that connections name, by the place of the key that names them.
pub type Files = BTreeMap<Place, [u8; 32]>;

fn private_key_file(key: &KeySource) -> (&'static str, &PathBuf) {
    match key {
        KeySource::File(path) => ("key_file", path),
        KeySource::Token(token) => ("pin_file", &token.pin_file),
    }
}

fn named_files(c: &ConnectionConfig) -> Vec<(&'static str, &PathBuf)> {
    let mut files = Vec::new();
    files.extend(c.psk_file.iter().map(|path| ("psk_file", path)));
    files.extend(
        c.certificate
            .iter()
            .flat_map(|f| [("cert_file", &f.cert), private_key_file(&f.key)]),
    );
    let stapled = c.certificate.iter().filter_map(|f| f.ocsp.as_ref());
    files.extend(stapled.map(|path| ("cert_ocsp_file", path)));
    let authorities = c.authorities.iter();
    files.extend(authorities.flat_map(|f| {
        let ca = f.ca.iter().map(|path| ("ca_files", path));
        ca.chain(f.crl.iter().map(|path| ("crl_files", path)))
            .chain(f.ocsp.iter().map(|path| ("ocsp_files", path)))
    }));
    files.extend(c.eap_users.iter().map(|path| ("eap_users_file", path)));
    files.extend(c.ppk.iter().map(|ppk| ("ppk_file", &ppk.file)));
    files
}

/// Reads every file that a connection names. One that cannot be read counts as empty: whoever uses it says why.
pub fn files(config: &Config) -> Files {
    let mut out = Files::new();
    for connection in &config.connections {
        for (key, path) in named_files(connection) {
            let octets = zeroize::Zeroizing::new(std::fs::read(path).unwrap_or_default());
            let place = ["connections", &connection.name, key].map(str::to_owned).to_vec();
            let digest = out.entry(place).or_default();
            *digest = crypto::sha256(&[digest.as_slice(), &octets]);
        }
    }
    out
}

/// Adds files whose content has changed while their names stayed.
pub fn add_files(difference: &mut Difference, old: &Files, new: &Files) {
    for (place, digest) in new {
        let listed = difference.changed.iter().any(|change| change.place == *place);
        if old.get(place).is_some_and(|before| before != digest) && !listed {
            difference.changed.push(Change {
                place: place.clone(),
                old: Some("content as read before".to_owned()),
                new: Some("other content".to_owned()),
                effect: effect(place),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../../../docs/examples/espalier.toml");

    fn table(text: &str) -> Table {
        text.parse().unwrap()
    }

    fn from_example(from: &str, to: &str) -> Difference {
        assert!(EXAMPLE.contains(from), "the example has no {from:?}");
        between(&table(EXAMPLE), &table(&EXAMPLE.replacen(from, to, 1)))
    }

    #[test]
    fn a_value_is_told_with_its_path_old_and_new_and_what_it_takes() {
        for (from, to, path, effect) in [
            (
                "dpd_delay = \"30s\"",
                "dpd_delay = \"10s\"",
                "connections.site-a.dpd_delay",
                Effect::AtOnce,
            ),
            (
                "remote_id = \"site-a",
                "remote_id = \"site-b",
                "connections.site-a.remote_id",
                Effect::NewIkeSas,
            ),
            (
                "chacha20poly1305",
                "aes128gcm16",
                "connections.site-a.children.lan.esp",
                Effect::NextRekey,
            ),
            (
                "10.1.0.0/16",
                "10.8.0.0/16",
                "connections.site-a.children.lan.remote_ts",
                Effect::NewChildSas,
            ),
            (
                "site-a.psk",
                "other.psk",
                "connections.site-a.psk_file",
                Effect::NextIkeSa,
            ),
            (
                "\"100ms\"",
                "\"200ms\"",
                "cluster.suspicion_floor",
                Effect::Restart,
            ),
        ] {
            let difference = from_example(from, to);
            let [change] = difference.changed.as_slice() else {
                panic!("{from}: {difference:?}");
            };
            assert_eq!((show(&change.place), change.effect), (path.to_owned(), effect));
            assert_ne!(change.old, change.new);
        }
        assert!(from_example("lan", "lan").is_empty());
    }

    #[test]
    fn a_child_and_a_connection_that_come_and_go_are_told_once() {
        let more = format!(
            "{EXAMPLE}\n[[connections.children]]\nname = \"dmz\"\nlocal_ts = [\"10.3.0.0/16\"]\nremote_ts = [\"10.4.0.0/16\"]\n"
        );
        let difference = between(&table(EXAMPLE), &table(&more));
        assert_eq!(show(&difference.added[0]), "connections.site-a.children.dmz");
        assert!(difference.changed.is_empty() && difference.removed.is_empty());
        let back = between(&table(&more), &table(EXAMPLE));
        assert_eq!(back.children_removed().collect::<Vec<_>>(), [("site-a", "dmz")]);
        let without = &EXAMPLE[..EXAMPLE.find("[[connections]]").unwrap()];
        let gone = between(&table(EXAMPLE), &table(without));
        assert_eq!(gone.connections_removed().collect::<Vec<_>>(), ["site-a"]);
        assert_eq!(gone.removed.len(), 1, "its child goes with it");
        assert!(gone.changed.is_empty(), "{gone:?}");
    }

    #[test]
    fn the_order_of_connections_is_a_value() {
        let connection = |name: &str| format!("[[connections]]\nname = \"{name}\"\nremote = \"any\"\n");
        let text = |names: &[&str]| names.iter().map(|n| connection(n)).collect::<String>();
        let difference = between(&table(&text(&["a", "b", "c"])), &table(&text(&["c", "a", "d"])));
        let [change] = difference.changed.as_slice() else {
            panic!("{difference:?}");
        };
        assert_eq!(
            (show(&change.place), change.effect),
            ("connections".to_owned(), Effect::AtOnce)
        );
        assert_eq!(change.new.as_deref(), Some("in the order c, a"));
        let mut running = table(&text(&["a", "b", "c"]));
        take_over(&mut running, &table(&text(&["c", "a", "d"])));
        assert!(between(&running, &table(&text(&["c", "a", "d"]))).is_empty());
    }

    #[test]
    fn a_file_with_other_content_is_a_change() {
        let files = |octet| {
            Files::from([(
                ["connections", "a.b", "psk_file"].map(str::to_owned).to_vec(),
                [octet; 32],
            )])
        };
        let mut difference = Difference::default();
        add_files(&mut difference, &files(1), &files(1));
        assert!(difference.is_empty());
        add_files(&mut difference, &files(1), &files(2));
        assert_eq!(difference.changed[0].connection(), Some("a.b"));
        assert_eq!(difference.changed[0].effect, Effect::NextIkeSa);
    }
}
