//! A Linux kernel as an old peer: AES-CBC with HMAC-SHA2-256-128 and extended sequence numbers, in plain ESP, over rekeys from both sides and
//! a takeover. What the kernel accepts it has authenticated with its own code; strongSwan's user space, the other peer, has no ESN.
//!
//! Needs root, strongSwan, the kernel in User Mode Linux, and the built product: `cargo xtask test` sees to all of that.

use anyhow::{Result, ensure};
use lab::cluster::Cluster;
use lab::config::{Connection, Settings};
use lab::linux::{LinuxLab, NAME, PINGS};
use lab::member::Product;
use lab::ping;
use lab::stage::random_psk;
use lab::strongswan::swanctl_conf;
use lab::topology::{Lab, addr};
use lab::uml;
use std::path::Path;

const SUITE: &str = "aes256-sha256-esn";

fn settings() -> Settings {
    let ours = |connection: &Connection| connection.name == NAME;
    let mut settings = Settings::demo();
    settings.connections.retain(ours);
    settings.connections[0].esp = SUITE;
    settings
}

/// From the server to the peer, and from the peer.
fn pings(lab: &mut LinuxLab) -> Result<(u32, u32)> {
    let (_, theirs) = lab.peer.ping(PINGS)?;
    let server = &lab.cluster.lab.server;
    let ours = ping::short(server, addr::SERVER_ONE, addr::HOST_THREE, 20_000, PINGS as usize)?;
    Ok((PINGS - ours.lost() as u32, theirs as u32))
}

/// ```text
///   Linux ---- IKE_SA_INIT, IKE_AUTH ----> A     ESP: AES-CBC-256, HMAC-SHA2-256-128, ESN
///   Linux <==== ping both ways ==========> A
///   Linux <--- CREATE_CHILD_SA ----------- A
///   Linux ---- CREATE_CHILD_SA ----------> A
///   Linux <==== ping both ways ==========> A     A is killed, its links go down
///   Linux <==== ping both ways ==========> B     the same SA, no number twice
///   Linux <--- CREATE_CHILD_SA ----------- B
/// ```
#[test]
fn a_linux_kernel_with_aes_cbc_and_esn_over_rekeys_and_a_takeover() -> Result<()> {
    let product = Product::built()?;
    let psk = random_psk()?;
    let lab = Lab::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    let cluster = Cluster::prepare(lab, &product, &psk, &settings())?;
    let mut theirs = uml::connection();
    theirs.esp_proposal = SUITE;
    let mut lab = LinuxLab::start(cluster, &swanctl_conf(&[theirs], &psk))?;
    let (a, b) = (lab.first, 1 - lab.first);
    lab.peer.initiate()?;
    lab.settled("the peer began", a, pings)?;
    let state = lab.peer.xfrm_state()?;
    for what in ["hmac(sha256)", "cbc(aes)", "esn"] {
        ensure!(state.contains(what), "the kernel's SA has no {what}:\n{state}");
    }
    lab.rekey_from_both(a, |lab, what| lab.settled(what, a, pings))?;
    lab.take_over(a, |lab, what| lab.settled(what, b, pings))?;
    lab.nothing_twice()
}
