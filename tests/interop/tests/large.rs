//! Packets that are larger than what the outside network carries, where that is more work than usual: pieces of ESP and IKE whose SA is
//! another member's than the cluster address.
//!
//! The peer is an espalier alone that seals whole packets and cuts them outside (`df = "clear"`).
//!
//! Needs root and the built product: `cargo xtask test` sees to that.

use anyhow::{Context, Result, ensure};
use lab::clock::{patience, wait_for};
use lab::cluster::Cluster;
use lab::config::Settings;
use lab::gateway;
use lab::member::{Member, Product, label, samples};
use lab::ping;
use lab::stage::random_psk;
use lab::topology::{Lab, addr};
use std::path::Path;
use std::time::Duration;

/// An inner packet of 1488 octets: 1548 with ESP, 1500 is what every link outside carries.
const OCTETS: &str = "1460";
/// One of 8,028, on inside networks that carry 9,000.
const JUMBO: &str = "8000";
const JUMBO_MTU: u32 = 9000;
const PINGS: u32 = 20;
/// A public value of ML-KEM-1024 has 1568 octets, and nobody cuts IKE messages.
const IKE: &str = "aes256gcm16-prfsha384-x25519-ke1_mlkem1024";
const IN_ONE_PIECE: &str = "fragmentation = false";

fn lab() -> Result<Lab> {
    Lab::new(Path::new(env!("CARGO_TARGET_TMPDIR")))
}

fn settings() -> Settings {
    let mut settings = gateway::settings();
    settings.connections[0].ike = IKE;
    settings
}

struct Pair {
    peer: Member,
    cluster: Cluster,
}

fn up(lab: Lab, settings: &Settings) -> Result<Pair> {
    let product = Product::built()?;
    let mut cluster = Cluster::prepare(lab, &product, &random_psk()?, settings)?;
    let mut peer = gateway::place(&cluster.lab, &product)?;
    peer.edit("start = \"initiate\"", "start = \"passive\"\ndf = \"clear\"")?;
    peer.edit("chacha20poly1305-prfsha256-x25519", IKE)?;
    for member in cluster.members.iter().chain([&peer]) {
        member.add_keys(IN_ONE_PIECE)?;
    }
    cluster.start()?;
    peer.start(&cluster.lab.resources)?;
    Ok(Pair { peer, cluster })
}

fn verdict(member: &Member, name: &str) -> Result<u64> {
    Ok(member.verdicts()?.get(name).copied().unwrap_or(0))
}

/// Datagrams that a member has put together and cut again for another one.
fn sent_onward(member: &Member) -> Result<f64> {
    let all = samples(&member.metrics()?);
    let ours = |(name, labels, _): &&(String, String, f64)| {
        name == "espalier_slow_frames_total" && label(labels, "reason") == Some("sent_onward")
    };
    let found = all.iter().find(ours).context("no such counter")?;
    Ok(found.2)
}

/// Pings of so many octets from the host behind the peer, which may be cut; how many came back.
fn large(cluster: &Cluster, octets: &str) -> Result<u32> {
    let count = PINGS.to_string();
    let output = cluster
        .lab
        .host
        .command("ping")
        .args([
            "-n", "-q", "-i", "0.05", "-W", "1", "-M", "dont", "-c", &count, "-s", octets,
        ])
        .args(["-I", &addr::HOST_ONE.to_string(), &addr::SERVER_ONE.to_string()])
        .output()
        .context("ping")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let received = text.split(", ").find_map(|part| part.strip_suffix(" received"));
    received
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("ping says: {text}"))
}

/// IKE_INTERMEDIATE comes in pieces as well, to whichever member the IKE SA is at.
///
/// ```text
///   host ---> P: sealed, cut ---> A (address): put together ---> B (SA): opened ---> server
/// ```
#[test]
fn pieces_are_put_together_where_the_address_is_and_opened_where_the_sa_is() -> Result<()> {
    let mut settings = settings();
    settings.preferred = "";
    settings.cluster_keys = "mode = \"load-sharing\"\ngroups = 2\n".into();
    let Pair { peer, cluster } = up(lab()?, &settings)?;
    let address = cluster.spread(Duration::from_secs(30))?;
    let other = 1 - address;
    // The peer's SPI is random, and with it the member.
    let mut found = false;
    for _ in 0..20 {
        peer.espalier(&["connection", "start", gateway::NAME])?;
        let through = || ping::short(&cluster.lab.host, addr::HOST_ONE, addr::SERVER_ONE, 10_000, 5);
        let settled = wait_for(
            patience(Duration::from_secs(10)),
            Duration::from_millis(20),
            || (through().ok()?.lost() == 0).then_some(()),
        );
        settled.with_context(|| format!("pings are lost:\n{}", peer.log_text()))?;
        let opened = verdict(&cluster.members[other], "esp_opened")?;
        through()?;
        if verdict(&cluster.members[other], "esp_opened")? >= opened + 5 {
            found = true;
            break;
        }
        peer.espalier(&["connection", "stop", gateway::NAME])?;
    }
    ensure!(found, "twenty SAs went to the member that has the address");
    let of_ike = sent_onward(&cluster.members[address])?;
    ensure!(of_ike >= 1.0, "IKE came in one piece");
    let back = large(&cluster, OCTETS)?;
    ensure!(
        back == PINGS,
        "{back} of {PINGS} came back\naddress: {:?}\nSA: {:?}\npeer: {:?}\n{}\n{}",
        cluster.members[address].verdicts(),
        cluster.members[other].verdicts(),
        peer.verdicts(),
        cluster.members[address].log_text(),
        cluster.members[other].log_text()
    );
    ensure!(
        verdict(&cluster.members[address], "outer_fragment")? >= 2 * u64::from(PINGS),
        "no pieces came: {:?}",
        cluster.members[address].verdicts()
    );
    let of_esp = sent_onward(&cluster.members[address])? - of_ike;
    ensure!(of_esp >= f64::from(PINGS), "{of_esp} were sent on");
    ensure!(
        sent_onward(&cluster.members[other])? == 0.0,
        "something was sent back"
    );
    Ok(())
}

/// Nobody inside is told that the path carries less: no packet says that it must not be cut.
///
/// ```text
///   host ---> P: sealed whole, cut outside ---> A: put together, opened ---> server
///   host <--- P: opened, piece by piece <--- A: cut, sealed <--------------- server
/// ```
#[test]
fn jumbo_frames_inside_cross_a_path_that_carries_1500_octets() -> Result<()> {
    let lab = lab()?;
    let wide = |device: &str| format!("link set {device} mtu {JUMBO_MTU}");
    lab.host.ip(&wide("lan"))?;
    lab.peer.ip(&wide("lan"))?;
    lab.server.ip(&wide("eth0"))?;
    for place in &lab.members {
        place.netns.ip(&wide("inside"))?;
        lab.bridges.ip(&wide(&format!("in-{}", place.letter)))?;
    }
    lab.bridges.ip(&wide("in-server"))?;
    lab.bridges.ip(&wide("br-in"))?;
    let Pair { peer, cluster } = up(lab, &settings())?;
    let owner = cluster.wait_all_in_sync(patience(Duration::from_secs(20)))?;
    peer.espalier(&["connection", "start", gateway::NAME])?;
    let through = wait_for(
        patience(Duration::from_secs(10)),
        Duration::from_millis(20),
        || {
            let pings = ping::short(&cluster.lab.host, addr::HOST_ONE, addr::SERVER_ONE, 10_000, 5).ok()?;
            (pings.lost() == 0).then_some(())
        },
    );
    through.context("small pings are lost")?;
    let back = large(&cluster, JUMBO)?;
    let member = &cluster.members[owner];
    ensure!(
        back == PINGS,
        "{back} of {PINGS} came back\nA: {:?}\npeer: {:?}\n{}\n{}",
        member.verdicts(),
        peer.verdicts(),
        member.log_text(),
        peer.log_text()
    );
    for (who, name) in [
        (&peer, "outer_cut"),
        (member, "outer_fragment"),
        (member, "out_fragment"),
    ] {
        ensure!(
            verdict(who, name)? >= u64::from(PINGS),
            "no {name}: {:?}",
            who.verdicts()
        );
    }
    ensure!(
        cluster.outside.read(|l| l.duplicates()) == (0, 0),
        "(SPI, sequence number), (SPI, IV) twice"
    );
    Ok(())
}
