//! Transport mode with a Linux kernel: what the gateway itself says and hears is sealed, in both roles, over rekeys and a takeover, and
//! is not taken in clear.
//!
//! ```text
//!   198.51.100.130 (Linux 6.1, charon) -- router -- 203.0.113.10 A and B, on their lo
//! ```
//!
//! Needs root, strongSwan, the kernel in User Mode Linux, and the built product: `cargo xtask test` sees to all of that.

use anyhow::{Context, Result, bail, ensure};
use lab::clock::wait_for;
use lab::cluster::Cluster;
use lab::config::{Connection, Settings};
use lab::member::{Member, Product};
use lab::netns::Netns;
use lab::stage::random_psk;
use lab::strongswan::swanctl_conf;
use lab::topology::{Lab, addr};
use lab::uml::{self, UmlPeer};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

const NAME: &str = "three";
const PINGS: u32 = 20;
const PORT: u16 = 7777;
/// Octets that go there and back over TCP.
const OCTETS: usize = 200_000;

fn uml_folder() -> PathBuf {
    std::env::var_os("ESPALIER_UML").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/uml"),
        PathBuf::from,
    )
}

/// The peer's swanctl.conf: without selectors they are those of the two addresses.
fn peer_conf(psk: &str) -> Result<String> {
    let text = swanctl_conf(&[uml::connection()], psk);
    let selectors = "        local_ts = 10.30.1.0/24\n        remote_ts = 10.20.1.0/24\n";
    ensure!(text.contains(selectors), "the selectors are another text: {text}");
    Ok(text.replace(selectors, "        mode = transport\n"))
}

fn settings() -> Settings {
    Settings {
        connections: vec![Connection {
            name: NAME,
            remote: addr::PEER_TWO,
            ike: "aes128gcm16-prfsha256-x25519",
            start: "trap",
            local_ts: "203.0.113.10",
            remote_ts: "198.51.100.130",
            esp: "aes128gcm16-esn",
        }],
        ..Settings::demo()
    }
}

/// How many of [`PINGS`] came back.
fn received(text: &str) -> Result<u32> {
    let received = text.split(", ").find_map(|part| part.strip_suffix(" received"));
    Ok(received.with_context(|| format!("ping says: {text}"))?.parse()?)
}

fn from_gateway(netns: &Netns) -> Result<u32> {
    from_gateway_with(netns, "56")
}

fn from_gateway_with(netns: &Netns, octets: &str) -> Result<u32> {
    let output = netns
        .command("ping")
        .args([
            "-n",
            "-q",
            "-i",
            "0.02",
            "-W",
            "1",
            "-c",
            &PINGS.to_string(),
            "-s",
            octets,
        ])
        .args([
            "-I",
            &addr::CLUSTER_OUTSIDE.to_string(),
            &addr::PEER_TWO.to_string(),
        ])
        .output()
        .context("ping")?;
    received(&String::from_utf8_lossy(&output.stdout))
}

fn from_peer(peer: &mut UmlPeer) -> Result<u32> {
    let command = format!(
        "ping -n -q -i 0.02 -W 1 -c {PINGS} {} || true",
        addr::CLUSTER_OUTSIDE
    );
    received(&peer.run("ping", &command, 30)?)
}

/// All pings come back, in both directions, after a while: neighbours may have to be asked for first, and after a takeover some
/// numbers count as seen.
fn settled(what: &str, cluster: &Cluster, at: usize, peer: &mut UmlPeer) -> Result<()> {
    let netns = cluster.members[at].place.netns.clone();
    let mut last = None;
    let done = wait_for(Duration::from_secs(20), Duration::from_millis(10), || {
        let both = (from_gateway(&netns).ok()?, from_peer(peer).ok()?);
        last = Some(both);
        (both == (PINGS, PINGS)).then_some(())
    });
    if done.is_some() {
        return Ok(());
    }
    bail!(
        "{what}: of {PINGS} pings each came back {last:?}\n{:?}\n{}\n{}\n{}",
        cluster.members[at].verdicts(),
        peer.xfrm_state()?,
        cluster.members[at].sas()?,
        cluster.members[at].log_text()
    )
}

/// The peer reads octets from a server on the cluster address and sends them back.
fn echo(netns: &Netns, peer: &mut UmlPeer) -> Result<()> {
    let (ready, listening) = std::sync::mpsc::channel();
    let server = netns.thread("server", move || {
        let listener = TcpListener::bind((addr::CLUSTER_OUTSIDE, PORT)).context("the server's socket")?;
        let _ = ready.send(());
        let (mut stream, from) = listener.accept()?;
        ensure!(from.ip() == addr::PEER_TWO, "from {from}");
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let octets = (0..OCTETS).map(|i| (i * 7 + i / 251) as u8).collect::<Vec<_>>();
        stream.write_all(&octets)?;
        stream.shutdown(Shutdown::Write)?;
        let mut back = Vec::new();
        stream.read_to_end(&mut back).context("what comes back")?;
        ensure!(back == octets, "{} octets came back, or others", back.len());
        Ok(())
    })?;
    listening
        .recv_timeout(Duration::from_secs(10))
        .context("the server")?;
    let command = format!(
        "bash -c 'exec 3<>/dev/tcp/{}/{PORT}; cat <&3 > /run/octets; cat /run/octets >&3'",
        addr::CLUSTER_OUTSIDE
    );
    peer.run("tcp", &command, 60)?;
    server
        .join()
        .map_err(|_| anyhow::anyhow!("the server panicked"))?
}

fn verdict(member: &Member, name: &str) -> Result<u64> {
    Ok(member.verdicts()?.get(name).copied().unwrap_or(0))
}

/// Inbound SPI of the only Child SA, which is in transport mode.
fn spi(member: &Member) -> Option<String> {
    let sas = member.sas().ok()?;
    let children = sas
        .as_array()?
        .iter()
        .filter_map(|ike| ike["children"].as_array());
    let children = children.flatten().collect::<Vec<_>>();
    match children[..] {
        [child] if child["transport"] == true => child["spi_in"].as_str().map(str::to_owned),
        _ => None,
    }
}

#[test]
fn a_linux_kernel_in_transport_mode_over_rekeys_and_a_takeover() -> Result<()> {
    let product = Product::built()?;
    let psk = random_psk()?;
    let lab = Lab::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    let mut cluster = Cluster::prepare(lab, &product, &psk, &settings())?;
    for member in &cluster.members {
        let text = std::fs::read_to_string(&member.config)?;
        let selectors = "local_ts = [\"203.0.113.10\"]\nremote_ts = [\"198.51.100.130\"]\n";
        ensure!(text.contains(selectors), "the selectors are another text: {text}");
        std::fs::write(&member.config, text.replace(selectors, "mode = \"transport\"\n"))?;
    }
    cluster.start()?;
    let a = cluster.wait_all_in_sync(Duration::from_secs(30))?;
    let b = 1 - a;
    let mut peer = UmlPeer::boot_with(&cluster.lab, &uml_folder(), &peer_conf(&psk)?)?;
    let netns = cluster.members[a].place.netns.clone();

    // We begin, since the gateway has something to say.
    let up = wait_for(Duration::from_secs(20), Duration::from_millis(50), || {
        from_gateway(&netns).ok()?;
        spi(&cluster.members[a])
    });
    let Some(first) = up else {
        bail!("no Child SA on demand:\n{}", cluster.members[a].log_text());
    };
    settled("we began", &cluster, a, &mut peer)?;
    let state = peer.xfrm_state()?;
    ensure!(state.contains("mode transport"), "{state}");

    // Everything between the addresses is sealed, TCP too; nothing of it is sent in clear.
    echo(&netns, &mut peer)?;
    let (opened, sealed) = (
        verdict(&cluster.members[a], "esp_opened_local")?,
        verdict(&cluster.members[a], "esp_sealed")?,
    );
    ensure!(opened > 100 && sealed > 100, "opened {opened}, sealed {sealed}");

    // What is larger than any link is sealed whole and cut outside, in both directions.
    let large = wait_for(Duration::from_secs(10), Duration::from_millis(10), || {
        (from_gateway_with(&netns, "2500").ok()? == PINGS).then_some(())
    });
    large.with_context(|| format!("large datagrams: {:?}", cluster.members[a].verdicts()))?;
    for name in ["outer_cut", "outer_fragment"] {
        ensure!(verdict(&cluster.members[a], name)? > 0, "no {name}");
    }

    // Rekeys of both sides stay in the mode.
    cluster.members[a]
        .espalier(&["rekey", NAME])
        .context("our rekey")?;
    let other = |than: &str, what: &str| -> Result<String> {
        let done = wait_for(Duration::from_secs(10), Duration::from_millis(20), || {
            spi(&cluster.members[a]).filter(|spi| spi != than)
        });
        done.with_context(|| format!("{what}:\n{}", cluster.members[a].log_text()))
    };
    let second = other(&first, "our rekey")?;
    peer.run("rekey", &format!("swanctl --rekey --child {NAME}"), 15)?;
    other(&second, "the peer's rekey")?;
    settled("after the rekeys", &cluster, a, &mut peer)?;

    // The peer begins.
    peer.run("terminate", &format!("swanctl --terminate --ike {NAME}"), 15)?;
    let gone = wait_for(Duration::from_secs(10), Duration::from_millis(20), || {
        spi(&cluster.members[a]).is_none().then_some(())
    });
    gone.context("the peer's Delete")?;
    peer.run(
        "initiate",
        &format!("swanctl --initiate --child {NAME} --timeout 15"),
        30,
    )?;
    settled("the peer began", &cluster, a, &mut peer)?;

    // Somebody on the way speaks as the peer, in clear.
    let before = verdict(&cluster.members[a], "clear_text")?;
    let router = &cluster.lab.router;
    router.ip(&format!("addr add {}/32 dev lo", addr::PEER_TWO))?;
    let forged = router
        .command("ping")
        .args(["-n", "-q", "-i", "0.01", "-W", "1", "-c", "5"])
        .args([
            "-I",
            &addr::PEER_TWO.to_string(),
            &addr::CLUSTER_OUTSIDE.to_string(),
        ])
        .output()?;
    router.ip(&format!("addr del {}/32 dev lo", addr::PEER_TWO))?;
    let text = String::from_utf8_lossy(&forged.stdout);
    ensure!(received(&text)? == 0, "answered in clear: {text}");
    ensure!(
        verdict(&cluster.members[a], "clear_text")? >= before + 5,
        "{:?}",
        cluster.members[a].verdicts()
    );
    settled("after the forgery", &cluster, a, &mut peer)?;

    // The other member goes on with the SA, on its own stack.
    let inherited = spi(&cluster.members[a]).context("a Child SA")?;
    cluster.members[a].kill_host()?;
    cluster.wait_other_serves(a, Duration::from_secs(10))?;
    settled("after the takeover", &cluster, b, &mut peer)?;
    ensure!(
        spi(&cluster.members[b]) == Some(inherited),
        "another SA after the takeover"
    );
    echo(&cluster.members[b].place.netns.clone(), &mut peer)?;
    cluster.members[b]
        .espalier(&["rekey", NAME])
        .context("B's rekey")?;
    settled("after B's rekey", &cluster, b, &mut peer)?;
    ensure!(
        cluster.outside.read(|l| l.duplicates()) == (0, 0),
        "(SPI, sequence number), (SPI, IV) twice"
    );
    Ok(())
}
