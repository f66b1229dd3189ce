//! Peers that are up notice no flood of first messages: their liveness checks are answered in time.
//!
//! Needs root, strongSwan, and the built product: `cargo xtask test` sees to all of that.

use anyhow::{Context, Result, ensure};
use ike::{ChildConfig, Command, Connection, EndpointConfig, EngineConfig, Identity, Proposal};
use lab::clock::{now_ns, sleep_until, wait_for};
use lab::cluster::Cluster;
use lab::config::{self, Settings};
use lab::esp::exchange;
use lab::flood::{self, Flood, Sent};
use lab::ike_peer::IkePeer;
use lab::member::Product;
use lab::stage::random_psk;
use lab::strongswan::{Charon, swanctl_conf};
use lab::topology::{Lab, Plan, addr};
use model::{SecretBytes, TrafficSelector};
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
const SUITE: &str = "chacha20poly1305-prfsha256-x25519";
/// A liveness check so often.
const CHECK: Duration = Duration::from_millis(50);
/// And for so long without a flood, and with each.
const IDLE: Duration = Duration::from_secs(5);
const FLOODED: Duration = Duration::from_secs(10);
const RESPONSE: u8 = 1 << 5;

/// Peers that are up: strongSwan, and an engine that looks after the cluster all the time.
struct Scene {
    cluster: Cluster,
    charon: Charon,
    watch: IkePeer,
}

/// How long liveness checks waited for their answers, in milliseconds, rising.
struct Waits {
    waited: Vec<f64>,
    /// Those that had no answer before they were sent again.
    repeated: usize,
}

impl Waits {
    fn at(&self, of_hundred: usize) -> f64 {
        let last = self.waited.len().saturating_sub(1);
        self.waited
            .get(last * of_hundred / 100)
            .copied()
            .unwrap_or(f64::NAN)
    }
}

fn connection(
    name: &'static str,
    remote: std::net::Ipv4Addr,
    ike: &'static str,
    behind: &'static str,
) -> config::Connection {
    config::Connection {
        name,
        remote,
        ike,
        start: "passive",
        local_ts: "10.20.1.0/24",
        remote_ts: behind,
        esp: "chacha20poly1305",
    }
}

fn network(text: &str) -> TrafficSelector {
    let first: std::net::Ipv4Addr = text.parse().unwrap_or(std::net::Ipv4Addr::UNSPECIFIED);
    TrafficSelector {
        first: first.into(),
        last: std::net::Ipv4Addr::from(u32::from(first) | 255).into(),
        protocol: 0,
        first_port: 0,
        last_port: u16::MAX,
    }
}

/// Inbound SPIs of Child SAs, and charon's line about its IKE SA.
type Sas = (Vec<String>, String);

impl Scene {
    fn new() -> Result<Self> {
        let product = Product::built()?;
        let psk = random_psk()?;
        let plan = Plan {
            sites: 2,
            ..Plan::PAIR
        };
        let lab = Lab::planned(Path::new(env!("CARGO_TARGET_TMPDIR")), plan)?;
        let [one, _] = lab::baseline::peer_connections();
        let conf = swanctl_conf(&[one], &psk).replace("dpd_delay = 3s", "dpd_delay = 1s");
        let folder = lab.folder.join("peer");
        let charon = Charon::start(&lab.peer, &folder, lab.sockets(), &lab.resources, &conf)?;
        let site = lab.sites[0].clone();
        let settings = Settings {
            connections: vec![
                connection("one", addr::PEER, SUITE, "10.10.1.0/24"),
                connection("watch", site.address, SUITE, "10.10.3.0/24"),
                connection("flood", lab.sites[1].address, flood::SUITE, "10.10.4.0/24"),
            ],
            ..Settings::demo()
        };
        let flooding = format!("remote = \"{}\"", lab.sites[1].address);
        let mut cluster = Cluster::prepare(lab, &product, &psk, &settings)?;
        for member in &cluster.members {
            member.edit(&flooding, "remote = \"any\"")?;
            member.add_keys("dpd_delay = \"1s\"\nretransmit_initial = \"500ms\"\nretransmit_tries = 3")?;
        }
        cluster.start()?;
        ensure!(
            cluster.wait_all_in_sync(LIMIT)? == 0,
            "member A is the preferred one"
        );
        charon.initiate("one")?;
        let mut of_watch = Connection::new(
            "watch",
            site.address.into(),
            Identity::parse("peer-watch.example"),
            SecretBytes::new(psk.into_bytes()),
        );
        of_watch.remotes = vec![addr::CLUSTER_OUTSIDE.into()];
        of_watch.remote_id = Some(Identity::parse("gw-watch.example"));
        of_watch.ike_proposals = vec![Proposal::parse_ike(SUITE)?];
        let mut child = ChildConfig::new("watch", vec![network("10.10.3.0")], vec![network("10.20.1.0")]);
        child.esp_proposals = vec![Proposal::parse_esp("chacha20poly1305")?];
        of_watch.children = vec![child];
        let watch = IkePeer::start(
            &site.netns,
            site.address,
            EngineConfig {
                connections: vec![of_watch],
                endpoint: EndpointConfig::new(SecretBytes::new(vec![5; 32])),
            },
        )?;
        let connection = "watch".to_owned();
        watch.command(Command::Initiate { connection })?;
        watch.wait("the engine's connection", |seen| {
            (!seen.established("watch").is_empty() && !seen.children.is_empty()).then_some(())
        })?;
        Ok(Self {
            cluster,
            charon,
            watch,
        })
    }

    /// Checks for so long whether the cluster lives, as fast as answers come and no faster than every [`CHECK`].
    fn check(&self, how_long: Duration) -> Result<Waits> {
        let spi = self.watch.seen().established("watch").first().map(|sa| sa.spi);
        let spi = spi.context("the engine has lost its IKE SA")?;
        let since = now_ns();
        let end = since + how_long.as_nanos() as u64;
        while now_ns() < end {
            let next = now_ns() + CHECK.as_nanos() as u64;
            self.watch.command(Command::Liveness { spi })?;
            sleep_until(next);
        }
        let from = self.cluster.lab.sites[0].address;
        self.cluster.outside.read(|ledger| {
            let mut asked: HashMap<u32, (u64, usize)> = HashMap::new();
            let mut waited = Vec::new();
            let checks = ledger
                .ike
                .iter()
                .filter(|m| m.exchange == exchange::INFORMATIONAL);
            for m in checks.filter(|m| (since..end).contains(&m.at_ns)) {
                if m.src == from && m.flags & RESPONSE == 0 {
                    let (_, times) = asked.entry(m.message_id).or_insert((m.at_ns, 0));
                    *times += 1;
                } else if m.dst == from && m.flags & RESPONSE != 0 {
                    // A second answer is to a repetition.
                    if let Some((at, 1)) = asked.get(&m.message_id) {
                        waited.push((m.at_ns - at) as f64 / 1e6);
                    }
                }
            }
            let repeated = asked.values().filter(|(_, times)| *times > 1).count();
            waited.sort_by(f64::total_cmp);
            ensure!(waited.len() >= 20, "only {} checks were answered", waited.len());
            Ok(Waits { waited, repeated })
        })
    }

    /// Child SAs of the peers on member A, and the IKE SA that charon has.
    fn sas(&self) -> Result<Sas> {
        let sas = self.cluster.members[0].sas()?;
        let of = |sa: &serde_json::Value| {
            let children = sa["children"].as_array().cloned().unwrap_or_default();
            children
                .into_iter()
                .map(|child| child["spi_in"].to_string())
                .collect::<Vec<_>>()
        };
        let named = |sa: &&serde_json::Value| sa["connection"] == "one" || sa["connection"] == "watch";
        let mut spis: Vec<String> = sas
            .as_array()
            .context("a list")?
            .iter()
            .filter(named)
            .flat_map(of)
            .collect();
        spis.sort();
        let theirs = self.charon.swanctl(&["--list-sas"])?;
        let first = theirs
            .lines()
            .find(|line| line.starts_with("one: #"))
            .context("charon's IKE SA")?;
        Ok((spis, first.to_owned()))
    }
}

fn tell(what: &str, waits: &Waits, idle: &Waits, sent: Sent) {
    println!(
        "{what}: {} checks, {} repeated, ms {:.2} / {:.2} / {:.2} (median, of 100 the 95th, the longest), {:.1} and {:.1} times as long as idle; \
         {} first messages, {} cookies shown, {} key exchanges",
        waits.waited.len(),
        waits.repeated,
        waits.at(50),
        waits.at(95),
        waits.at(100),
        waits.at(50) / idle.at(50),
        waits.at(95) / idle.at(95),
        sent.first,
        sent.cookies,
        sent.exchanges
    );
}

/// ```text
///   charon ---- liveness, 1/s -----> A      both are up
///   engine ---- liveness, 20/s ----> A
///   site   ==== IKE_SA_INIT, 4096 bits, cookies answered ====> A
///   nobody ==== IKE_SA_INIT, 4096 bits, forged sources =======> A     every one is asked for a cookie
/// ```
#[test]
fn liveness_checks_of_peers_that_are_up_are_answered_during_floods_of_first_messages() -> Result<()> {
    let scene = Scene::new()?;
    let seed = now_ns();
    println!("seed {seed}");
    let a = &scene.cluster.members[0];
    let site = scene.cluster.lab.sites[1].netns.clone();
    let before = scene.sas()?;
    ensure!(before.0.len() == 2, "{before:?}");
    let idle = scene.check(IDLE)?;
    tell("idle", &idle, &idle, Sent::default());

    let floods = [
        (
            "4096 bits, cookies answered",
            Flood::of_exchanges as fn(&_, _, _, _) -> Result<Flood>,
            500,
        ),
        ("forged sources", Flood::spoofed, 3000),
    ];
    for (what, start, per_second) in floods {
        let since = now_ns();
        let flood = start(&site, addr::CLUSTER_OUTSIDE, per_second, seed)?;
        let waits = scene.check(FLOODED)?;
        let sent = flood.stop()?;
        tell(what, &waits, &idle, sent);
        ensure!(sent.first > 100, "that was no flood: {sent:?}");
        if per_second == 500 {
            ensure!(
                sent.cookies > 100 && sent.exchanges > 64,
                "it cost nothing: {sent:?}"
            );
        }
        let repeated = waits.repeated as f64 / (waits.waited.len() + waits.repeated) as f64;
        ensure!(
            repeated < 0.05,
            "{what}: {:.0} % of the checks had to be repeated",
            repeated * 100.0
        );
        let events = a.events()?;
        let given_up = events.iter().find(|(at, kind, text)| {
            *at > since && kind == "peer_silent" && (text.starts_with("one") || text.starts_with("watch"))
        });
        ensure!(given_up.is_none(), "{what}: {given_up:?}");
        ensure!(
            events
                .iter()
                .any(|(_, kind, text)| kind == "cookie_mode" && text.contains("need a cookie now")),
            "{what}: nobody was asked for a cookie"
        );
    }
    ensure!(
        scene.sas()? == before,
        "SAs were set up anew: {before:?}, {:?}",
        scene.sas()?
    );
    let metrics = lab::member::samples(&a.metrics()?);
    let in_loop = metrics
        .iter()
        .find(|(_, labels, _)| labels.contains("exchange_in_loop"));
    ensure!(
        in_loop.is_none_or(|(.., n)| *n == 0.0),
        "key exchanges in the event loop: {in_loop:?}"
    );

    // And it goes on. One after the other: a Child SA that is rekeyed amid the rekey of its IKE SA is refused for the time being (RFC 7296
    // 2.25.2), and charon comes back when it likes.
    let replaced = |what: &str, done: fn(&Sas, &Sas) -> bool| {
        let found = wait_for(LIMIT, Duration::from_millis(50), || {
            scene.sas().ok().filter(|now| done(now, &before))
        });
        found.with_context(|| {
            format!(
                "the peer cannot rekey its {what} after the floods: {:?}",
                scene.sas()
            )
        })
    };
    scene.charon.swanctl(&["--rekey", "--ike", "one"])?;
    replaced("IKE SA", |now, before| {
        now.1.contains("ESTABLISHED") && now.1 != before.1
    })?;
    scene.charon.rekey_child("one")?;
    replaced("Child SA", |now, before| {
        now.0.len() == before.0.len() && now.0 != before.0
    })?;
    Ok(())
}
