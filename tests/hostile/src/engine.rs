//! What is in etcd under the keys of a cluster, where other programs may write as well: group records, the layout, keys that are neither.

use crate::choices::Choices;
use model::GroupId;
use ownership::Fault;
use ownership::record::Keys;

/// Longest text of a fault: it is in logs and in `espalier status`.
const FAULT_MAX: usize = 1000;

/// The first octet says how many groups the cluster has, the second which one it is about. Then a key, and a value.
pub fn engine(octets: &[u8]) {
    let mut choices = Choices::new(octets);
    let groups = choices.next().unwrap_or(0) % 64 + 1;
    let group = GroupId(choices.next().unwrap_or(0) % groups);
    let (key, value) = (choices.some(), choices.rest());
    let keys = Keys::new("/espalier/", "lab", groups);
    if let Some(group) = keys.group_of(key) {
        assert!(group.0 < groups);
        assert_eq!(keys.group(group).as_bytes(), key);
    }
    match keys.decode(group, value) {
        Ok(record) => {
            let written = keys.encode(group, &record).expect("what was read can be written");
            assert_eq!(keys.decode(group, written.as_bytes()), Ok(record));
        }
        Err(fault) => told(&fault, &keys.group(group)),
    }
    match keys.check_layout(value) {
        Ok(()) => assert_eq!(keys.check_layout(keys.encode_layout().as_bytes()), Ok(())),
        Err(fault) => told(&fault, &keys.layout()),
    }
}

/// A fault names the key, on one line of a log.
fn told(fault: &Fault, key: &str) {
    let text = fault.to_string();
    assert!(text.contains(key), "{text}");
    assert!(!text.contains(char::is_control), "{text:?}");
    assert!(text.len() <= FAULT_MAX, "{} octets", text.len());
}
