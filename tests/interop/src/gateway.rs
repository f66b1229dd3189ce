//! An espalier member alone in the place of the peer's gateway, so that two clusters are each other's peers.
//!
//! ```text
//!   host --- lan P wan --- router === outside === A (and B) === inside === server
//!            198.51.100.10                   203.0.113.10
//! ```

use crate::cmd;
use crate::config::{Connection, METRICS_PORT, Paths, Settings};
use crate::member::{Member, Product};
use crate::pass::PassProgram;
use crate::topology::{Lab, Place, addr};
use anyhow::{Context, Result};
use std::net::Ipv4Addr;

/// The gateway's cluster address outside.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// Its next hop inside, which the host's routes name.
pub const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 10, 1, 1);
/// Its own address inside.
const OWN_INSIDE: Ipv4Addr = Ipv4Addr::new(10, 10, 1, 3);
/// Name of the connection on both sides.
pub const NAME: &str = "one";

/// What the members of the cluster are told: one connection with the gateway, which initiates it.
pub fn settings() -> Settings {
    Settings {
        connections: vec![Connection {
            name: NAME,
            remote: OUTSIDE,
            ike: "chacha20poly1305-prfsha256-x25519",
            start: "passive",
            local_ts: "10.20.1.0/24",
            remote_ts: "10.10.1.0/24",
            esp: "chacha20poly1305",
        }],
        ..Settings::demo()
    }
}

/// Puts the gateway into the lab, which has its secrets already ([`crate::member::shared_secrets`]).
pub fn place(lab: &Lab, product: &Product) -> Result<Member> {
    lab.peer.ip(&format!(
        "addr del {INSIDE}/24 dev lan\naddr add {OWN_INSIDE}/24 dev lan\naddr del 10.10.2.1/24 dev lan"
    ))?;
    // Redirects and answers on a veth reach a peer that has a program.
    let pass = PassProgram::of(&lab.resources);
    pass.attach(&lab.router, "peer1")?;
    pass.attach(&lab.host, "lan")?;
    let mut command = std::process::Command::new(&product.binary);
    command
        .args(["cluster", "init", "--name", "peer", "--members", "2", "--dir"])
        .arg(lab.folder.join("peer-pki"));
    cmd::output(command, "").context("espalier cluster init")?;
    let place = Place {
        id: 1,
        letter: "peer",
        netns: lab.peer.clone(),
        outside: addr::PEER,
        inside: OWN_INSIDE,
        synch: Ipv4Addr::LOCALHOST,
    };
    Member::configured(lab, &place, product, configuration)
}

fn configuration(paths: &Paths<'_>) -> String {
    format!(
        "[cluster]
name = \"peer\"
member = 1
pki = \"../peer-pki\"

[[cluster.members]]
id = 1
name = \"p\"
synch = \"127.0.0.1:4700\"

[interfaces]
outside = \"wan\"
inside = \"lan\"

[addresses]
outside = [\"{OUTSIDE}\"]
inside = [\"{INSIDE}\"]

[data_plane]
object = \"{object}\"
pin_dir = \"{pins}\"
slots = 4096
mode = \"native\"

[control]
socket = \"{socket}\"
metrics = \"127.0.0.1:{METRICS_PORT}\"

[[connections]]
name = \"{NAME}\"
local = \"{OUTSIDE}\"
remote = \"{cluster}\"
local_id = \"peer-{NAME}.example\"
remote_id = \"gw-{NAME}.example\"
psk_file = \"{psk}\"
ike = [\"chacha20poly1305-prfsha256-x25519\"]
start = \"initiate\"

[[connections.children]]
name = \"{NAME}\"
local_ts = [\"10.10.1.0/24\"]
remote_ts = [\"10.20.1.0/24\"]
esp = [\"chacha20poly1305\"]
",
        object = paths.object.display(),
        pins = paths.pins.display(),
        socket = paths.socket.display(),
        cluster = addr::CLUSTER_OUTSIDE,
        psk = paths.psk.display(),
    )
}
