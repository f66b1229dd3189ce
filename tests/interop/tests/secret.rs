//! The cluster secret is replaced while members run and traffic flows; what peers were given under the old one is honoured.
//!
//! Needs root and the built product: `cargo xtask test` sees to all of that.

use anyhow::{Context, Result, ensure};
use lab::clock::{now_ns, wait_for};
use lab::cluster::Cluster;
use lab::cmd;
use lab::gateway;
use lab::ledger::IkeMessage;
use lab::member::{Member, Product};
use lab::ping::Ping;
use lab::stage::random_psk;
use lab::topology::{Lab, Plan, addr};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const IKE_SA_INIT: u8 = 34;
const IKE_SESSION_RESUME: u8 = 38;
/// How soon the gateway looks after its peer.
const PATIENCE: &str = "dpd_delay = \"1s\"\nretransmit_initial = \"500ms\"\nretransmit_tries = 4";

/// Members whose files are their own, not the authority's.
struct Scene {
    cluster: Cluster,
    peer: Member,
    product: Product,
}

impl Scene {
    fn new() -> Result<Self> {
        let product = Product::built()?;
        let lab = Lab::planned(Path::new(env!("CARGO_TARGET_TMPDIR")), Plan::PAIR)?;
        let mut cluster = Cluster::prepare(lab, &product, &random_psk()?, &gateway::settings())?;
        let mut peer = gateway::place(&cluster.lab, &product)?;
        peer.add_keys(PATIENCE)?;
        for member in &cluster.members {
            member.edit("pki = \"../pki\"", "pki = \"pki\"")?;
            let own = own(member);
            fs::create_dir_all(&own)?;
            for entry in fs::read_dir(cluster.lab.folder.join("pki"))? {
                let entry = entry?;
                fs::copy(entry.path(), own.join(entry.file_name()))?;
            }
        }
        cluster.start()?;
        cluster.wait_all_in_sync(Duration::from_secs(30))?;
        peer.start(&cluster.lab.resources)?;
        let scene = Self {
            cluster,
            peer,
            product,
        };
        scene.wait_up()?;
        Ok(scene)
    }

    fn wait_up(&self) -> Result<()> {
        let up = |member: &Member| {
            let status = member.status().ok()?;
            let agreed = status["connections"][0]["agreed"].to_string();
            let has = ["crash_detection", "resumption"].map(|name| agreed.contains(name));
            (status["connections"][0]["state"] == "up" && has == [true, true]).then_some(())
        };
        let both = || {
            let owner = self.cluster.owner()?;
            up(&self.peer).and(up(&self.cluster.members[owner]))
        };
        wait_for(Duration::from_secs(30), Duration::from_millis(50), both)
            .with_context(|| format!("no connection:\n{}", self.peer.log_text()))
    }

    /// `espalier cluster rotate secret STEP` in the authority's folder.
    fn rotate(&self, step: &str) -> Result<String> {
        let mut command = std::process::Command::new(&self.product.binary);
        command.args(["cluster", "rotate", "secret"]);
        command.args(step.split(' ')).arg("--dir");
        command.arg(self.cluster.lab.folder.join("pki"));
        cmd::output(command, "").with_context(|| step.to_owned())
    }

    /// All members die at once and begin anew. Returns the time before.
    fn lose_everything(&mut self) -> Result<u64> {
        let killed = now_ns();
        for member in &mut self.cluster.members {
            member.kill_agent()?;
        }
        for member in &self.cluster.members {
            member.remove_pins()?;
        }
        for member in &mut self.cluster.members {
            member.start(&self.cluster.lab.resources)?;
        }
        Ok(killed)
    }

    /// Waits until the peer, which was shown a token after this time, has a Child SA again.
    fn wait_recovered(&self, killed: u64) -> Result<()> {
        wait_for(Duration::from_secs(40), Duration::from_millis(20), || {
            let events = self.peer.events().ok()?;
            let since = |kind: &str| events.iter().any(|(at, of, _)| *at > killed && of == kind);
            (since("peer_crashed") && since("child_up")).then_some(())
        })
        .with_context(|| format!("the peer does not come back:\n{}", self.peer.log_text()))
    }

    /// Requests of one kind since a time.
    fn requests(&self, exchange: u8, since: u64) -> usize {
        self.cluster
            .outside
            .read(|ledger| ledger.requests(exchange, since, now_ns()))
    }

    /// Gives a member the authority's secrets, and takes away those that the authority has no more.
    fn copy_to(&self, member: usize) -> Result<()> {
        let own = own(&self.cluster.members[member]);
        for name in ["cluster.secret", "cluster-next.secret", "cluster-old.secret"] {
            let from = self.cluster.lab.folder.join("pki").join(name);
            if from.exists() {
                fs::copy(from, own.join(name))?;
            } else if own.join(name).exists() {
                fs::remove_file(own.join(name))?;
            }
        }
        Ok(())
    }

    fn secret(&self, member: usize) -> Result<Value> {
        Ok(self.cluster.members[member].status()?["secret"].clone())
    }

    /// Waits until a member says this of its secrets.
    fn wait_secret(&self, member: usize, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
        let found = wait_for(Duration::from_secs(10), Duration::from_millis(10), || {
            self.secret(member).ok().filter(|secret| is(secret))
        });
        found.with_context(|| {
            let log = self.cluster.members[member].log_text();
            format!(
                "member {member} never had {what}: {:?}\n{log}",
                self.secret(member)
            )
        })
    }

    fn facts(&self) -> Result<Vec<Value>> {
        let of = |member: &Member| {
            let status = member.status()?;
            Ok(serde_json::json!([
                status["role"],
                status["epoch"],
                status["in_sync"]
            ]))
        };
        self.cluster.members.iter().map(of).collect()
    }
}

fn own(member: &Member) -> PathBuf {
    member.config.with_file_name("pki")
}

/// ```text
///   A: knows the next      B: does not          A may not go over
///   A: knows the next      B: knows the next    A goes over by its files, B follows by A's word, then gets its files
///   all is killed: the peer comes back by token and ticket of the secret before
/// ```
#[test]
fn a_secret_is_replaced_under_traffic_and_a_peer_comes_back_by_what_the_old_one_made() -> Result<()> {
    let mut scene = Scene::new()?;
    let first = scene.secret(0)?["active"].clone();
    ensure!(scene.secret(1)?["active"] == first, "one secret");
    let before = scene.facts()?;
    let lab = &scene.cluster.lab;
    let ping = Ping::start(&lab.host, "rotation", addr::HOST_ONE, addr::SERVER_ONE, 10_000)?;
    let began = now_ns();

    scene.rotate("make")?;
    scene.copy_to(0)?;
    let said = scene.cluster.members[0].espalier(&["reload-pki"])?;
    ensure!(said.contains("the next one"), "{said}");
    scene.rotate("use")?;
    scene.copy_to(0)?;
    let early = scene.cluster.members[0].espalier(&["reload-pki"]);
    let why = format!("{:#}", early.err().context("B would be left behind")?);
    ensure!(why.contains("member 2 does not know the new secret"), "{why}");
    ensure!(scene.secret(0)?["active"] == first, "nothing has changed");

    // B gets what it should have had before: its own secret, and the next one.
    let (next, here) = (
        scene.cluster.lab.folder.join("pki/cluster.secret"),
        own(&scene.cluster.members[1]),
    );
    fs::copy(next, here.join("cluster-next.secret"))?;
    scene.cluster.members[1].signal(Signal::SIGHUP)?;
    scene.wait_secret(1, "the next one", |secret| !secret["next"].is_null())?;
    scene.cluster.members[0].espalier(&["reload-pki"])?;
    let second = scene.secret(0)?["active"].clone();
    ensure!(second != first, "A uses the new one");
    let followed = scene.wait_secret(1, "followed", |secret| secret["active"] == second)?;
    ensure!(followed["before"] == first, "{followed}");
    scene.copy_to(1)?;
    scene.cluster.members[1].espalier(&["reload-pki"])?;
    for member in [0, 1] {
        let secret = scene.secret(member)?;
        let wanted = serde_json::json!({"active": second, "next": null, "before": first});
        ensure!(secret == wanted, "member {member}: {secret}");
        let other = scene.cluster.members[member].status()?["members"][0].clone();
        ensure!(
            other["secret"] == second && other["differs"] == serde_json::json!([]),
            "{other}"
        );
    }
    let pings = ping.stop()?;
    println!("rotation: {} pings, {} lost", pings.sent(), pings.lost());
    assert_eq!(pings.lost(), 0, "pings lost while the secret changed");
    assert_eq!(scene.facts()?, before);

    // The peer's token and ticket are of the secret before: no exchange has renewed them.
    let killed = scene.lose_everything()?;
    scene.wait_recovered(killed)?;
    let messages: Vec<IkeMessage> = scene.cluster.outside.read(|ledger| {
        let later = ledger.ike.iter().filter(|m| m.at_ns > began);
        later.cloned().collect()
    });
    let count = |exchange: u8| messages.iter().filter(|m| m.exchange == exchange).count();
    ensure!(count(IKE_SA_INIT) == 0, "a full handshake: {messages:?}");
    ensure!(count(IKE_SESSION_RESUME) >= 2, "no resumption: {messages:?}");
    scene.wait_up()?;

    // In the end the old one is forgotten, first on one member, then on the other.
    scene.rotate("forget").err().context("two days have not passed")?;
    scene.rotate("forget --now")?;
    scene.cluster.wait_all_in_sync(Duration::from_secs(30))?;
    for member in [1, 0] {
        scene.copy_to(member)?;
        scene.cluster.members[member].espalier(&["reload-pki"])?;
        let secret = scene.secret(member)?;
        ensure!(
            secret["before"].is_null() && secret["active"] == second,
            "{secret}"
        );
        scene.cluster.wait_all_in_sync(Duration::from_secs(5))?;
    }
    let (seq, iv) = scene.cluster.outside.read(|ledger| ledger.duplicates());
    ensure!((seq, iv) == (0, 0), "numbers used twice: {seq} and {iv}");
    Ok(())
}

/// ```text
///   A: knows the next     B: does not            both read their configurations again
///   A goes over while it reads its configuration again, at one moment or another
///   B follows, and both read their configurations again
///   the peer begins anew: its token and ticket are of the new secret
///   the old one is forgotten, all is killed: the peer comes back by token and ticket
/// ```
#[test]
fn a_configuration_that_is_read_in_the_middle_of_it_takes_no_secret_back() -> Result<()> {
    let mut scene = Scene::new()?;
    let mut change = 0;
    // Another configuration each time: one that is the same is not taken.
    let mut edit = |scene: &Scene, member: usize| -> Result<()> {
        change += 1;
        let member = &scene.cluster.members[member];
        let text = fs::read_to_string(&member.config)?;
        let without = text.lines().filter(|line| !line.starts_with("rekey_jitter"));
        let without = without.collect::<Vec<_>>().join("\n");
        let with = without.replace("\nstart = ", &format!("\nrekey_jitter = \"{change}s\"\nstart = "));
        ensure!(with != without, "no connection in {}", member.config.display());
        Ok(fs::write(&member.config, with)?)
    };
    let reload = |scene: &Scene, member: usize| -> Result<()> {
        let said = scene.cluster.members[member].espalier(&["reload"])?;
        ensure!(said.contains("1 changed"), "{said}");
        Ok(())
    };
    let agree = |scene: &Scene, active: &Value| -> Result<()> {
        for member in [0, 1] {
            scene.wait_secret(member, "the one in use", |secret| secret["active"] == *active)?;
            let agrees = wait_for(Duration::from_secs(10), Duration::from_millis(20), || {
                let status = scene.cluster.members[member].status().ok()?;
                (status["members"][0]["differs"] == serde_json::json!([])).then_some(())
            });
            agrees.with_context(|| format!("member {member} still says that the other one differs"))?;
        }
        scene.cluster.wait_all_in_sync(Duration::from_secs(10)).map(drop)
    };
    let before = scene.facts()?;
    let lab = &scene.cluster.lab;
    let ping = Ping::start(&lab.host, "rotation", addr::HOST_ONE, addr::SERVER_ONE, 10_000)?;
    for delay_ms in [0, 4, 12, 30] {
        let first = scene.secret(0)?["active"].clone();
        scene.rotate("make")?;
        scene.copy_to(0)?;
        scene.cluster.members[0].espalier(&["reload-pki"])?;
        for member in [0, 1] {
            edit(&scene, member)?;
            reload(&scene, member)?;
        }
        agree(&scene, &first)?;
        scene.copy_to(1)?;
        scene.cluster.members[1].espalier(&["reload-pki"])?;

        scene.rotate("use")?;
        scene.copy_to(0)?;
        edit(&scene, 0)?;
        std::thread::scope(|scope| -> Result<()> {
            let read = scope.spawn(|| reload(&scene, 0));
            let at = now_ns() + delay_ms * 1_000_000;
            lab::clock::sleep_until(at);
            scene.cluster.members[0].espalier(&["reload-pki"])?;
            read.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?
        })?;
        let second = scene.secret(0)?["active"].clone();
        ensure!(second != first, "A uses the new one");
        edit(&scene, 1)?;
        reload(&scene, 1)?;
        scene.copy_to(1)?;
        scene.cluster.members[1].espalier(&["reload-pki"])?;
        agree(&scene, &second)?;
        ensure!(
            scene.secret(0)?["before"] == first,
            "what the old one made is honoured"
        );
        if delay_ms != 30 {
            scene.rotate("forget --now")?;
            for member in [0, 1] {
                scene.copy_to(member)?;
                scene.cluster.members[member].espalier(&["reload-pki"])?;
            }
            agree(&scene, &second)?;
        }
    }
    let pings = ping.stop()?;
    assert_eq!(pings.lost(), 0, "pings lost while the secret changed");
    assert_eq!(scene.facts()?, before);

    for wish in ["stop", "start"] {
        scene.peer.espalier(&["connection", wish, "one"])?;
    }
    scene.wait_up()?;
    scene.rotate("forget --now")?;
    for member in [0, 1] {
        scene.copy_to(member)?;
        scene.cluster.members[member].espalier(&["reload-pki"])?;
    }
    let killed = scene.lose_everything()?;
    scene.wait_recovered(killed)?;
    ensure!(scene.requests(IKE_SA_INIT, killed) == 0, "a full handshake");
    ensure!(scene.requests(IKE_SESSION_RESUME, killed) >= 1, "no resumption");
    Ok(())
}
