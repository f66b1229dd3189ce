//! A member's configuration file, as the demo writes it.

use crate::topology::addr;
use std::net::Ipv4Addr;
use std::path::Path;

/// Port of /metrics on every member's loopback address.
pub const METRICS_PORT: u16 = 9469;

/// A member as its configuration names it.
#[derive(Clone, Copy, Debug)]
pub struct Seat {
    /// 1 for A, 2 for B and so on.
    pub id: u8,
    /// `a`, `b` and so on.
    pub letter: &'static str,
    /// Its own address on the outside network.
    pub outside: Ipv4Addr,
    /// Its address on the synch network.
    pub synch: Ipv4Addr,
}

/// What differs from one host to another.
#[derive(Clone, Copy, Debug)]
pub struct Paths<'a> {
    /// Folder with the certificates.
    pub pki: &'a Path,
    /// File with the pre-shared key.
    pub psk: &'a Path,
    /// The BPF object.
    pub object: &'a Path,
    /// The member's bpffs folder.
    pub pins: &'a Path,
    /// The member's control socket.
    pub socket: &'a Path,
}

/// What differs from one lab to another.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `solo`.
    pub solo: &'static str,
    /// `suspicion_floor`.
    pub suspicion_floor: &'static str,
    /// `dead_man`.
    pub dead_man: &'static str,
    /// `mode` of the data plane.
    pub mode: &'static str,
    /// `slots`, a power of two.
    pub slots: u32,
    /// The line that names the preferred member of a hot-standby cluster; nothing in load sharing.
    pub preferred: &'static str,
    /// Further keys of `[cluster]`, one a line.
    pub cluster_keys: String,
    /// Further tables below `[cluster]`.
    pub cluster_tables: String,
    /// Further keys of `[interfaces]`, one a line.
    pub interface_keys: String,
    /// The connections.
    pub connections: Vec<Connection>,
}

impl Settings {
    /// The demo's, and the examples'.
    pub fn demo() -> Self {
        Self {
            solo: "continue",
            suspicion_floor: "100ms",
            dead_man: "80ms",
            mode: "native",
            slots: 4096,
            preferred: "preferred = 1\n",
            cluster_keys: String::new(),
            cluster_tables: String::new(),
            interface_keys: String::new(),
            connections: connections().to_vec(),
        }
    }
}

/// The file of one member of the demo.
pub fn configuration(seat: &Seat, all: &[Seat], paths: &Paths) -> String {
    configuration_with(seat, all, paths, &Settings::demo())
}

/// The file of one member.
pub fn configuration_with(seat: &Seat, all: &[Seat], paths: &Paths, settings: &Settings) -> String {
    let mut members = String::new();
    for other in all {
        members.push_str(&format!(
            "\n[[cluster.members]]\nid = {}\nname = \"{}\"\nsynch = \"{}:4700\"\noutside = \"{}:4701\"\n",
            other.id, other.letter, other.synch, other.outside
        ));
    }
    let connections: String = settings.connections.iter().map(|c| c.text(paths.psk)).collect();
    format!(
        "# Member {letter} of the demo's cluster. All members have the same file but for `member`, `pin_dir` and `socket`.

[cluster]
name = \"demo\"
member = {id}
solo = \"{solo}\"
heartbeat = \"20ms\"
suspicion_floor = \"{suspicion_floor}\"
dead_man = \"{dead_man}\"
{preferred}pki = \"{pki}\"
{cluster_keys}{members}{cluster_tables}
[interfaces]
outside = \"outside\"
inside = \"inside\"
tun = \"esp0\"
{interface_keys}
[addresses]
outside = [\"{outside}\"]
inside = [\"{inside}\"]

[data_plane]
object = \"{object}\"
pin_dir = \"{pins}\"
slots = {slots}
mode = \"{mode}\"

[control]
socket = \"{socket}\"
metrics = \"127.0.0.1:{METRICS_PORT}\"
{connections}",
        letter = seat.letter,
        id = seat.id,
        preferred = settings.preferred,
        solo = settings.solo,
        suspicion_floor = settings.suspicion_floor,
        dead_man = settings.dead_man,
        pki = paths.pki.display(),
        cluster_keys = settings.cluster_keys,
        cluster_tables = settings.cluster_tables,
        interface_keys = settings.interface_keys,
        outside = addr::CLUSTER_OUTSIDE,
        inside = addr::CLUSTER_INSIDE,
        object = paths.object.display(),
        pins = paths.pins.display(),
        mode = settings.mode,
        slots = settings.slots,
        socket = paths.socket.display()
    )
}

/// A connection with one child of the same name.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Its name; the identities are `gw-NAME.example` and `peer-NAME.example`.
    pub name: &'static str,
    /// The peer.
    pub remote: Ipv4Addr,
    /// Proposal of the IKE SA.
    pub ike: &'static str,
    /// `initiate` or `passive`.
    pub start: &'static str,
    /// Our selector.
    pub local_ts: &'static str,
    /// The peer's.
    pub remote_ts: &'static str,
    /// Proposal of the Child SA.
    pub esp: &'static str,
}

impl Connection {
    fn text(&self, psk: &Path) -> String {
        format!(
            "
[[connections]]
name = \"{name}\"
local = \"{local}\"
remote = \"{remote}\"
local_id = \"gw-{name}.example\"
remote_id = \"peer-{name}.example\"
psk_file = \"{psk}\"
ike = [\"{ike}\"]
start = \"{start}\"

[[connections.children]]
name = \"{name}\"
local_ts = [\"{local_ts}\"]
remote_ts = [\"{remote_ts}\"]
esp = [\"{esp}\"]
",
            name = self.name,
            local = addr::CLUSTER_OUTSIDE,
            remote = self.remote,
            psk = psk.display(),
            ike = self.ike,
            start = self.start,
            local_ts = self.local_ts,
            remote_ts = self.remote_ts,
            esp = self.esp
        )
    }
}

fn connections() -> [Connection; 3] {
    [
        Connection {
            name: "one",
            remote: addr::PEER,
            ike: "chacha20poly1305-prfsha256-x25519",
            start: "passive",
            local_ts: "10.20.1.0/24",
            remote_ts: "10.10.1.0/24",
            esp: "chacha20poly1305",
        },
        Connection {
            name: "two",
            remote: addr::PEER,
            ike: "aes256gcm16-prfsha256-x25519",
            start: "initiate",
            local_ts: "10.20.2.0/24",
            remote_ts: "10.10.2.0/24",
            esp: "aes256gcm16",
        },
        Connection {
            name: "three",
            remote: addr::PEER_TWO,
            ike: "aes128gcm16-prfsha256-x25519",
            start: "passive",
            local_ts: "10.20.1.0/24",
            remote_ts: "10.30.1.0/24",
            esp: "aes128gcm16-esn",
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::seats;

    const BASE: &str = "/etc/espalier";

    fn example(letter: &str) -> (String, String) {
        let file =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../docs/examples/demo-{letter}.toml"));
        let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let seats = seats(2);
        let seat = seats.iter().find(|s| s.letter == letter).expect("a member");
        let written = configuration(
            seat,
            &seats,
            &Paths {
                pki: Path::new("/etc/espalier/pki"),
                psk: Path::new("/etc/espalier/demo.psk"),
                object: Path::new("/usr/lib/espalier/espalier.bpf.o"),
                pins: Path::new("/sys/fs/bpf/espalier"),
                socket: Path::new("/run/espalier/demo.sock"),
            },
        );
        (text, written)
    }

    #[test]
    fn the_examples_are_what_the_demo_writes_with_other_paths() {
        for letter in ["a", "b"] {
            let (example, written) = example(letter);
            let (header, rest) = example
                .split_once("\n\n")
                .expect("a header of its own, then an empty line");
            assert!(
                header.lines().all(|l| l.starts_with('#')),
                "the header is a comment"
            );
            assert_eq!(rest, written, "docs/examples/demo-{letter}.toml");
        }
    }

    #[test]
    fn the_examples_and_what_the_demo_writes_pass_espalier_check() {
        for letter in ["a", "b"] {
            let (example, written) = example(letter);
            for text in [example, written] {
                agent::config::Config::read_without_files(&text, Path::new(BASE))
                    .unwrap_or_else(|problems| panic!("member {letter}: {problems:?}"));
            }
        }
    }
}
