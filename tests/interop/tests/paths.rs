//! What happens to packets that have no SA yet, that do not fit, whose hops are used up, and to SAs that have carried enough: in one
//! lab, with strongSwan, and over a takeover.
//!
//! Needs root, strongSwan, and the built product: `cargo xtask test` sees to all of that.

use anyhow::{Context, Result, bail, ensure};
use lab::clock::wait_for;
use lab::config::Settings;
use lab::member::{Member, Product};
use lab::netns::Netns;
use lab::stage::{Stage, random_psk, start_peer};
use lab::topology::{Lab, addr};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

/// What the router's link to the peer carries from the second part on.
const NARROW: u64 = 1300;
/// Packets of connection one's SA, in each direction.
const REKEY_PACKETS: u32 = 1600;

/// One round of pings: how many came back, and everything that was said.
fn ping(from: &Netns, source: Ipv4Addr, to: Ipv4Addr, more: &str) -> Result<(u32, String)> {
    let output = from
        .command("ping")
        .args(["-n", "-W", "1"])
        .args(more.split(' '))
        .args(["-I", &source.to_string(), &to.to_string()])
        .output()
        .context("ping")?;
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let received = text.split(", ").find_map(|part| part.strip_suffix(" received"));
    let received = received.with_context(|| format!("ping says: {text}"))?.parse()?;
    Ok((received, text))
}

fn verdict(member: &Member, name: &str) -> Result<u64> {
    Ok(member.verdicts()?.get(name).copied().unwrap_or(0))
}

/// Inbound SPI and path MTU of the Child SA of a connection.
fn child(member: &Member, name: &str) -> Option<(String, u64)> {
    let sas = member.sas().ok()?;
    let children = sas
        .as_array()?
        .iter()
        .filter_map(|ike| ike["children"].as_array());
    let all = children
        .flatten()
        .filter(|c| c["name"] == name)
        .collect::<Vec<_>>();
    match all[..] {
        [one] => Some((one["spi_in"].as_str()?.to_owned(), one["path_mtu"].as_u64()?)),
        _ => None,
    }
}

/// Keys for one connection and for its child.
fn add_keys(member: &Member, connection: &str, keys: &str, child_keys: &str) -> Result<()> {
    let text = std::fs::read_to_string(&member.config)?;
    let (head, rest) = text
        .split_once(&format!("[[connections]]\nname = \"{connection}\"\n"))
        .context("the connection")?;
    let marker = format!("[[connections.children]]\nname = \"{connection}\"\n");
    let (middle, tail) = rest.split_once(&marker).context("its child")?;
    let text =
        format!("{head}[[connections]]\nname = \"{connection}\"\n{keys}{middle}{marker}{child_keys}{tail}");
    Ok(std::fs::write(&member.config, text)?)
}

fn stage() -> Result<Stage> {
    let product = Product::built()?;
    let psk = random_psk()?;
    let lab = Lab::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    let peer = start_peer(&lab, &psk)?;
    let mut settings = Settings::demo();
    settings.connections.truncate(2);
    // The kill is the only fault here, on a busy machine too.
    settings.suspicion_floor = "1s";
    for connection in &mut settings.connections {
        connection.start = "trap";
    }
    let lab::cluster::Cluster {
        mut members,
        outside,
        inside,
        lab,
    } = lab::cluster::Cluster::prepare(lab, &product, &psk, &settings)?;
    for member in &mut members {
        let lifetimes = format!("rekey_packets = {REKEY_PACKETS}\nlife_packets = 4000\n");
        add_keys(member, "one", "", &format!("on_miss = \"hold\"\n{lifetimes}"))?;
        add_keys(member, "two", "df = \"clear\"\nmtu = 1280\n", "")?;
        member.start(&lab.resources)?;
    }
    let stage = Stage {
        members,
        peer,
        outside,
        inside,
        lab,
    };
    stage
        .wait_in_sync(0, Duration::from_secs(20))
        .context("the cluster did not form")?;
    Ok(stage)
}

#[test]
fn packets_wait_for_an_sa_keep_to_the_path_and_count_over_a_takeover() -> Result<()> {
    let mut stage = stage()?;
    let server = stage.lab.server.clone();
    let one = |more: &str| ping(&server, addr::SERVER_ONE, addr::HOST_ONE, more);
    let two = |more: &str| ping(&server, addr::SERVER_TWO, addr::HOST_TWO, more);

    // `on_miss = "hold"`: the very first packet arrives, late.
    // An agent that did not get to run for a while serves nothing meanwhile: then once more, without an SA.
    let first = (0..3).any(|_| {
        let arrived = one("-c 1 -W 5").is_ok_and(|(back, _)| back == 1);
        if !arrived {
            let _ = stage.peer.swanctl(&["--terminate", "--ike", "one"]);
        }
        arrived
    });
    ensure!(
        first,
        "the first packet is lost:\n{}",
        stage.members[0].log_text()
    );
    ensure!(
        verdict(&stage.members[0], "held_for_sa")? >= 1,
        "nothing was held"
    );
    let (back, text) = one("-c 20 -i 0.01")?;
    ensure!(back == 20, "{text}");

    // A hop limit that ends at the gateway: told to the server, and to the host through the tunnel.
    let (_, text) = one("-c 3 -i 0.05 -t 1")?;
    ensure!(
        text.contains(&format!("From {}", addr::CLUSTER_INSIDE)) && text.contains("Time to live exceeded"),
        "{text}"
    );
    ensure!(
        verdict(&stage.members[0], "time_exceeded")? >= 3,
        "{:?}",
        stage.members[0].verdicts()
    );
    // Of the host's packets the peer's gateway takes one hop, ours the second.
    let (_, text) = ping(
        &stage.lab.host,
        addr::HOST_ONE,
        addr::SERVER_ONE,
        "-c 3 -i 0.05 -t 2",
    )?;
    ensure!(
        text.contains(&format!("From {}", addr::CLUSTER_INSIDE)) && text.contains("Time to live exceeded"),
        "{text}\n{:?}",
        stage.members[0].verdicts()
    );
    ensure!(
        verdict(&stage.members[0], "time_exceeded_far")? >= 3,
        "{:?}",
        stage.members[0].verdicts()
    );

    // Somebody outside speaks as the host behind the peer, to the server: the answer would go to whoever has the host's address.
    let router = &stage.lab.router;
    router.ip(&format!(
        "addr add {}/32 dev lo\nroute add {}/32 via {}",
        addr::HOST_ONE,
        addr::SERVER_ONE,
        addr::CLUSTER_OUTSIDE
    ))?;
    let (back, text) = ping(router, addr::HOST_ONE, addr::SERVER_ONE, "-c 5 -i 0.01")?;
    router.ip(&format!(
        "addr del {}/32 dev lo\nroute del {}/32",
        addr::HOST_ONE,
        addr::SERVER_ONE
    ))?;
    ensure!(back == 0, "{text}");
    ensure!(
        verdict(&stage.members[0], "clear_text")? >= 5,
        "{:?}",
        stage.members[0].verdicts()
    );

    // A router on the way carries less: it says so to the cluster address, and the cluster to the server.
    router.ip(&format!("link set peer1 mtu {NARROW}"))?;
    stage.lab.peer.ip(&format!("link set wan mtu {NARROW}"))?;
    let known = wait_for(Duration::from_secs(10), Duration::from_millis(20), || {
        one("-c 1 -M do -s 1340").ok()?;
        (child(&stage.members[0], "one")?.1 == NARROW).then_some(())
    });
    ensure!(
        known.is_some(),
        "the path is not learnt: {:?}\n{:?}\n{}",
        child(&stage.members[0], "one"),
        stage.members[0].verdicts(),
        stage.members[0].log_text()
    );
    let events = stage.members[0].events()?;
    ensure!(
        events
            .iter()
            .any(|(_, kind, text)| kind == "path_mtu" && text.contains("1300")),
        "no event"
    );
    let (_, text) = one("-c 1 -M do -s 1340")?;
    let told = text.contains("Frag needed") || text.contains("message too long");
    ensure!(told, "the server is not told: {text}");
    // What fits goes, and what may be cut as well: the server does so, now that it knows the path.
    for size in ["-M do -s 1180", "-M dont -s 1340"] {
        let (back, text) = one(&format!("-c 5 -i 0.01 {size}"))?;
        ensure!(back == 5, "{size}: {text}");
    }

    // `df = "clear"`: sealed whole and cut outside; what comes back is cut by the peer.
    stage.peer.initiate("two")?;
    let whole = wait_for(Duration::from_secs(10), Duration::from_millis(20), || {
        let (back, _) = two("-c 5 -i 0.01 -M do -s 1340").ok()?;
        (back == 5).then_some(())
    });
    ensure!(
        whole.is_some(),
        "pieces are lost: {:?}",
        stage.members[0].verdicts()
    );
    for name in ["outer_cut", "outer_fragment"] {
        ensure!(
            verdict(&stage.members[0], name)? >= 5,
            "no {name}: {:?}",
            stage.members[0].verdicts()
        );
    }

    // Lifetimes in packets: what A has carried counts for B.
    let (before, _) = child(&stage.members[0], "one").context("connection one")?;
    let (back, text) = one("-q -c 1000 -i 0.002")?;
    ensure!(back == 1000, "{text}");
    let (still, _) = child(&stage.members[0], "one").context("connection one")?;
    ensure!(still == before, "rekeyed too early");
    stage.members[0].kill_host()?;
    stage.wait_active(1, Duration::from_secs(10))?;
    let rekeyed = wait_for(Duration::from_secs(20), Duration::from_millis(1), || {
        // Below the number of packets that would be due if B began to count anew.
        one("-q -c 100 -i 0.002").ok()?;
        let (spi, _) = child(&stage.members[1], "one")?;
        (spi != before).then_some(())
    });
    if rekeyed.is_none() {
        bail!("no rekey:\n{}", stage.members[1].log_text());
    }
    let packets = stage.members[1].metrics()?;
    ensure!(packets.contains("esp_sealed"), "{packets}");
    let sealed = verdict(&stage.members[1], "esp_sealed")?;
    ensure!(
        sealed < u64::from(REKEY_PACKETS),
        "B sealed {sealed} packets before the rekey: it did not know what A carried"
    );
    let settled = wait_for(Duration::from_secs(10), Duration::from_millis(1), || {
        let (back, _) = one("-q -c 20 -i 0.01").ok()?;
        (back == 20).then_some(())
    });
    settled.context("pings are lost after the rekey")?;
    ensure!(
        stage.outside.read(|l| l.duplicates()) == (0, 0),
        "(SPI, sequence number), (SPI, IV) twice"
    );
    Ok(())
}

/// Which member has the IKE SA, if one of them alone says that it is established.
fn ike_owner(members: &[Member]) -> Option<usize> {
    let established = |member: &Member| {
        let sas = member.sas().ok()?;
        Some(sas.as_array()?.iter().any(|ike| ike["state"] == "established"))
    };
    let owners = (0..members.len()).filter(|at| established(&members[*at]) == Some(true));
    match owners.collect::<Vec<_>>()[..] {
        [one] => Some(one),
        _ => None,
    }
}

/// Load sharing: routers speak to the cluster address, which may be at another member than the SA.
///
/// ```text
///   server --- A (address) === B (SA) === router: "fragmentation needed" ---> A ---> B
/// ```
#[test]
fn a_routers_error_reaches_the_member_that_has_the_sa() -> Result<()> {
    let product = Product::built()?;
    let psk = random_psk()?;
    let lab = Lab::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    let peer = start_peer(&lab, &psk)?;
    let mut settings = Settings::demo();
    settings.connections.truncate(1);
    settings.preferred = "";
    settings.cluster_keys = "mode = \"load-sharing\"\ngroups = 2\n".into();
    let cluster = lab::cluster::Cluster::up(lab, &product, &psk, &settings)?;
    let address = cluster.spread(Duration::from_secs(30))?;
    // The peer's first SPI is random, and with it the member: a few tries.
    let mut owner = None;
    for _ in 0..20 {
        peer.initiate("one")?;
        let found = wait_for(Duration::from_secs(5), Duration::from_millis(20), || {
            ike_owner(&cluster.members)
        });
        if found == Some(1 - address) {
            owner = found;
            break;
        }
        peer.swanctl(&["--terminate", "--ike", "one"])?;
    }
    let owner = owner.context("twenty IKE SAs went to the same member")?;
    let server = &cluster.lab.server;
    let one = |more: &str| ping(server, addr::SERVER_ONE, addr::HOST_ONE, more);
    let settled = wait_for(Duration::from_secs(10), Duration::from_millis(10), || {
        (one("-q -c 10 -i 0.01").ok()?.0 == 10).then_some(())
    });
    settled.context("pings are lost")?;
    cluster.lab.router.ip(&format!("link set peer1 mtu {NARROW}"))?;
    let known = wait_for(Duration::from_secs(10), Duration::from_millis(20), || {
        one("-c 1 -M do -s 1340").ok()?;
        (child(&cluster.members[owner], "one")?.1 == NARROW).then_some(())
    });
    ensure!(
        known.is_some(),
        "the path is not learnt:\n{:?}\n{:?}\n{}",
        cluster.members[address].verdicts(),
        cluster.members[owner].verdicts(),
        cluster.members[owner].log_text()
    );
    ensure!(
        verdict(&cluster.members[address], "path_error")? >= 1,
        "the error came another way"
    );
    ensure!(
        verdict(&cluster.members[owner], "path_error")? == 0,
        "it went round"
    );
    Ok(())
}
