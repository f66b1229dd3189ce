//! What the agent reads from its operator, from etcd and from the kernel.

use crate::write;
use agent::api::{
    ConnectionRequest, LivenessRequest, RedirectRequest, RekeyRequest, ReloadRequest, StartOverRequest,
    StopRequest, TakeoverRequest,
};
use cluster::{EpochId, GroupRecord, SetMember};
use hostile::config::{CHANGED, WHOLE};
use model::{Epoch, GroupId, Incarnation, MemberId};
use ownership::record::Keys;
use serde::Serialize;
use std::path::Path;

pub fn requests() {
    for (name, line) in [
        ("status", "GET /v1/status"),
        ("metrics", "HEAD /metrics"),
        ("drain", "POST /v1/drain"),
        ("unknown", "POST /v1/everything"),
        ("method", "DELETE /v1/sas?all"),
    ] {
        write("control", name, line.as_bytes());
    }
    posts("takeover", &TakeoverRequest::default());
    posts("stop", &StopRequest { keep: true });
    let group = Some(3);
    posts("start-over", &StartOverRequest { group, yes: true });
    let connection = "site-a".to_owned();
    let rekey = RekeyRequest {
        connection: Some(connection.clone()),
        spi: Some("c0ffee01".to_owned()),
        ..RekeyRequest::default()
    };
    posts("rekey", &rekey);
    let liveness = LivenessRequest {
        connection: connection.clone(),
    };
    posts("liveness", &liveness);
    let start = ConnectionRequest {
        connection: connection.clone(),
        start: true,
    };
    posts("connection", &start);
    posts("reload", &ReloadRequest { dry_run: true });
    let to = "192.0.2.9".to_owned();
    posts("redirect", &RedirectRequest { connection, to });
}

fn posts(name: &str, wish: &impl Serialize) {
    let body = serde_json::to_vec(wish).expect("a wish");
    let line = format!("POST /v1/{name}\n");
    write("control", name, &[line.as_bytes(), &body].concat());
}

pub fn ownership() {
    let keys = Keys::new("/espalier", "lab", 16);
    let record = GroupRecord {
        epoch: EpochId {
            number: Epoch(7),
            owner: MemberId(2),
        },
        in_sync: [1, 2]
            .map(|member| SetMember {
                member: MemberId(member),
                incarnation: Incarnation(0xc0ffee),
            })
            .into(),
    };
    let written = keys.encode(GroupId(7), &record).expect("a sound record");
    let layout = keys.encode_layout();
    for (name, key, value) in [
        ("record", keys.group(GroupId(7)), written.as_bytes()),
        ("layout", keys.layout(), layout.as_bytes()),
        ("version", keys.group(GroupId(15)), br#"{"version":2,"epoch":1}"#),
        ("empty", keys.all_groups(), b""),
    ] {
        let octets = [&[15, 7, key.len() as u8], key.as_bytes(), value].concat();
        write("engine", name, &octets);
    }
}

pub fn configurations() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples");
    for name in ["demo-a", "three-members"] {
        let text = std::fs::read(folder.join(format!("{name}.toml"))).expect("an example");
        write("config", name, &[vec![WHOLE], text].concat());
    }
    let example = std::fs::read_to_string(folder.join("espalier.toml")).expect("an example");
    // What is commented out in the example is a change as good as any.
    let commented = example.lines().enumerate().filter_map(|(at, line)| {
        let key = line.strip_prefix("# ")?;
        let is_key = key.starts_with(|c: char| c.is_ascii_lowercase()) && key.contains(" = ");
        is_key.then_some((at, key))
    });
    for (at, line) in commented {
        let name = line.split(' ').next().unwrap_or_default();
        write("config", name, &change(&[(at, line)]));
    }
    let at = |text: &str| {
        let found = example.lines().position(|line| line.starts_with(text));
        found.unwrap_or_else(|| panic!("the example has no {text}"))
    };
    let policies = "[[policies]]\nname = \"dns\"\naction = \"bypass\"\nsource = [\"10.2.0.0/16\"]\ndestination = [\"10.1.0.53[udp/53]\"]";
    let pools = "[[pools]]\nname = \"staff\"\nnetwork = \"10.9.0.0/24\"";
    let certificates = "auth = \"cert\"\ncert_file = \"gw.crt\"\nkey = \"pkcs11:token=gw;object=gw\"\npkcs11_module = \"m.so\"\npin_file = \"pin\"\nca_files = [\"ca.crt\"]";
    for (name, changes) in [
        (
            "policies",
            vec![(at("[[connections]]"), &*format!("{policies}\n[[connections]]"))],
        ),
        (
            "clients",
            vec![
                (at("[[connections]]"), &*format!("{pools}\n[[connections]]")),
                (
                    at("remote = "),
                    "remote = \"any\"\npools = [\"staff\"]\ndns = [\"10.2.0.53\"]",
                ),
                (at("remote_ts"), ""),
            ],
        ),
        (
            "certificates",
            vec![
                (at("psk_file"), certificates),
                (at("remote_id"), "remote_id = \"C=DE, O=*, CN=a.example\""),
            ],
        ),
        (
            "transport",
            vec![
                (at("local_ts"), "mode = \"transport\""),
                (at("remote_ts"), "remote_ts = [\"203.0.113.10[gre]\"]"),
            ],
        ),
        (
            "lines",
            vec![(at("name = \"lab\""), "name = \"\"\"\nlab\n\"\"\"")],
        ),
        (
            "broken",
            vec![(at("[control]"), "[control"), (at("[addresses]"), "]")],
        ),
    ] {
        write("config", name, &change(&changes));
    }
}

fn change(changes: &[(usize, &str)]) -> Vec<u8> {
    let mut octets = vec![CHANGED];
    for (at, line) in changes {
        octets.extend((*at as u16).to_be_bytes());
        octets.push(u8::MAX);
        octets.extend((line.len() as u16).to_be_bytes());
        octets.extend(line.as_bytes());
    }
    octets
}

/// A netlink attribute.
fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut octets = (4 + payload.len() as u16).to_ne_bytes().to_vec();
    octets.extend(kind.to_ne_bytes());
    octets.extend(payload);
    octets.resize(octets.len().next_multiple_of(4), 0);
    octets
}

/// A message with its header; `body` has what comes before the attributes.
fn message(kind: u16, body: &[u8], attributes: &[Vec<u8>]) -> Vec<u8> {
    let behind = [body, &attributes.concat()].concat();
    let mut octets = (16 + behind.len() as u32).to_ne_bytes().to_vec();
    octets.extend(kind.to_ne_bytes());
    octets.extend([0; 10]);
    octets.extend(behind);
    octets
}

const NEW_LINK: u16 = 16;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const GENERIC: u16 = 0x10;
const REFUSED: u16 = 2;

fn link(index: u32, flags: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
    let mut body = vec![0; 16];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&flags.to_ne_bytes());
    message(NEW_LINK, &body, attributes)
}

pub fn kernel() {
    let answer = |octets: &[u8]| [&[0], octets].concat();
    let xdp = attribute(43, &attribute(2, &[2]));
    write("netlink", "mode", &answer(&link(3, 1, &[xdp])));
    let family = attribute(1, &0x1c_u16.to_ne_bytes());
    write(
        "netlink",
        "family",
        &answer(&message(GENERIC, &[1, 2, 0, 0], &[family])),
    );
    let features = [attribute(1, &[3, 0, 0, 0]), attribute(3, &69_u64.to_ne_bytes())];
    write(
        "netlink",
        "features",
        &answer(&message(0x1c, &[1, 1, 0, 0], &features)),
    );
    let refused = message(REFUSED, &(-19_i32).to_ne_bytes(), &[]);
    write("netlink", "refused", &answer(&refused));
    let part = |index| {
        let info = attribute(18, &attribute(4, b"bond\0"));
        link(index, 1, &[attribute(10, &9_u32.to_ne_bytes()), info])
    };
    let done = message(3, &[0; 4], &[]);
    write("netlink", "bond", &[vec![1], part(3), part(4), done].concat());

    // Up, with carrier; and loopback.
    let (up, loopback) = (0x1_0041, 0x1_0049);
    let route = |family: u8, length: u8, attributes: &[Vec<u8>]| {
        let body = [family, length, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0];
        message(NEW_ROUTE, &body, attributes)
    };
    let out = attribute(4, &2_u32.to_ne_bytes());
    let six = [&[0x20, 1, 0x0d, 0xb8][..], &[0; 12]].concat();
    let messages = [
        link(1, loopback, &[attribute(3, b"lo\0")]),
        link(2, up, &[attribute(3, b"eth0\0")]),
        link(3, up, &[attribute(3, b"eth1\0")]),
        message(
            NEW_ADDRESS,
            &[2, 32, 0, 0, 1, 0, 0, 0],
            &[attribute(2, &[192, 0, 2, 1])],
        ),
        route(2, 24, &[attribute(1, &[203, 0, 113, 0]), out.clone()]),
        route(10, 32, &[attribute(1, &six), out]),
        link(2, 0x1003, &[attribute(3, b"eth0\0")]),
    ];
    let behind_lengths = messages
        .iter()
        .flat_map(|octets| [&[octets.len() as u8], &octets[..]].concat());
    write(
        "netlink",
        "network",
        &[2].into_iter().chain(behind_lengths).collect::<Vec<_>>(),
    );
}
