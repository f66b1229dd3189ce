//! A Linux kernel as an old peer: AES-CBC with HMAC-SHA2-256-128 and extended sequence numbers, in plain ESP, over rekeys from both sides and
//! a takeover. What the kernel accepts it has authenticated with its own code; strongSwan's user space, the other peer, has no ESN.
//!
//! Needs root, strongSwan, the kernel in User Mode Linux, and the built product: `cargo xtask test` sees to all of that.

use anyhow::{Context, Result, bail, ensure};
use lab::clock::wait_for;
use lab::cluster::Cluster;
use lab::config::{Connection, Settings};
use lab::member::{Member, Product};
use lab::ping;
use lab::stage::random_psk;
use lab::strongswan::swanctl_conf;
use lab::topology::{Lab, addr};
use lab::uml::{self, UmlPeer};
use std::path::{Path, PathBuf};
use std::time::Duration;

const NAME: &str = "three";
const SUITE: &str = "aes256-sha256-esn";
const PINGS: u32 = 20;

fn uml_folder() -> PathBuf {
    std::env::var_os("ESPALIER_UML").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/uml"),
        PathBuf::from,
    )
}

fn settings() -> Settings {
    let ours = |connection: &Connection| connection.name == NAME;
    let mut settings = Settings::demo();
    settings.connections.retain(ours);
    settings.connections[0].esp = SUITE;
    settings
}

/// The Child SA's SPI, once there is exactly one.
fn spi(member: &Member) -> Option<String> {
    let sas = member.sas().ok()?;
    let children: Vec<_> = sas
        .as_array()?
        .iter()
        .flat_map(|ike| ike["children"].as_array().cloned().unwrap_or_default())
        .collect();
    match children.as_slice() {
        [child] => Some(child["spi_in"].to_string()),
        _ => None,
    }
}

/// All pings come back, in both directions, after a while: neighbours may have to be asked for first, and after a takeover some
/// numbers count as seen.
fn settled(what: &str, cluster: &Cluster, at: usize, peer: &mut UmlPeer) -> Result<()> {
    let mut last = None;
    let done = wait_for(Duration::from_secs(20), Duration::from_millis(10), || {
        let theirs = peer.ping(PINGS).ok()?;
        let lab = &cluster.lab;
        let ours = ping::short(
            &lab.server,
            addr::SERVER_ONE,
            addr::HOST_THREE,
            20_000,
            PINGS as usize,
        )
        .ok()?;
        last = Some((theirs, ours.lost()));
        (theirs == (u64::from(PINGS), u64::from(PINGS)) && ours.lost() == 0).then_some(())
    });
    if done.is_some() {
        return Ok(());
    }
    bail!(
        "{what}: of {PINGS} pings each: {last:?}\n{:?}\n{}\n{}\n{}",
        cluster.members[at].verdicts(),
        peer.xfrm_state()?,
        cluster.members[at].sas()?,
        cluster.members[at].log_text()
    )
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
    let mut cluster = Cluster::prepare(lab, &product, &psk, &settings())?;
    cluster.start()?;
    let a = cluster.wait_all_in_sync(Duration::from_secs(30))?;
    let b = 1 - a;
    let mut theirs = uml::connection();
    theirs.esp_proposal = SUITE;
    let mut peer = UmlPeer::boot_with(&cluster.lab, &uml_folder(), &swanctl_conf(&[theirs], &psk))?;
    peer.initiate()?;
    settled("the peer began", &cluster, a, &mut peer)?;
    let state = peer.xfrm_state()?;
    for what in ["hmac(sha256)", "cbc(aes)", "esn"] {
        ensure!(state.contains(what), "the kernel's SA has no {what}:\n{state}");
    }

    let other = |than: &str, what: &str| -> Result<String> {
        let done = wait_for(Duration::from_secs(10), Duration::from_millis(20), || {
            spi(&cluster.members[a]).filter(|spi| spi != than)
        });
        done.with_context(|| format!("{what}:\n{}", cluster.members[a].log_text()))
    };
    let first = spi(&cluster.members[a]).context("a Child SA")?;
    cluster.members[a]
        .espalier(&["rekey", NAME])
        .context("our rekey")?;
    let second = other(&first, "our rekey")?;
    settled("after our rekey", &cluster, a, &mut peer)?;
    peer.run("rekey", &format!("swanctl --rekey --child {NAME}"), 15)?;
    let inherited = other(&second, "the peer's rekey")?;
    settled("after the peer's rekey", &cluster, a, &mut peer)?;

    cluster.members[a].kill_host()?;
    cluster.wait_other_serves(a, Duration::from_secs(10))?;
    settled("after the takeover", &cluster, b, &mut peer)?;
    ensure!(
        spi(&cluster.members[b]) == Some(inherited),
        "another SA after the takeover"
    );
    cluster.members[b]
        .espalier(&["rekey", NAME])
        .context("B's rekey")?;
    settled("after B's rekey", &cluster, b, &mut peer)?;
    ensure!(
        cluster.outside.read(|l| l.duplicates()) == (0, 0),
        "(SPI, sequence number), (SPI, IV) twice"
    );
    ensure!(cluster.outside.lost() == 0, "packets that the recorder missed");
    Ok(())
}
