//! Packets of a Child SA that come after its Delete (ADR 26), or before the answer to the request for it is used (ADR 29). The peer is our own
//! engine, so that the packets can be sealed and sent at will.
//!
//! Needs root and the built product: `cargo xtask test` sees to all of that.

use anyhow::{Context, Result, bail, ensure};
use ike::{ChildConfig, Command, Connection, EndpointConfig, EngineConfig, Identity, Proposal, Retransmit};
use lab::clock::wait_for;
use lab::cluster::Cluster;
use lab::config::Settings;
use lab::duel::network;
use lab::ike_peer::IkePeer;
use lab::member::{Member, Product, samples};
use lab::probe::Shots;
use lab::stage::random_psk;
use lab::topology::{Lab, addr};
use model::{ChildSaRecord, SecretBytes};
use std::path::Path;
use std::time::{Duration, Instant};

const NAME: &str = "one";
/// What follows a Delete within this time comes before the way in is closed, on a busy machine too.
const SOON: Duration = Duration::from_millis(400);
const TRIES: usize = 5;
/// A packet that waits for a raise is there by then.
const ARRIVES: Duration = Duration::from_secs(2);

fn peer(lab: &Lab, psk: &str) -> Result<IkePeer> {
    let mut connection = Connection::new(
        NAME,
        addr::PEER.into(),
        Identity::parse("peer-one.example"),
        SecretBytes::new(psk.as_bytes().to_vec()),
    );
    connection.remotes = vec![addr::CLUSTER_OUTSIDE.into()];
    connection.remote_id = Some(Identity::parse("gw-one.example"));
    connection.ike_proposals = vec![Proposal::parse_ike("chacha20poly1305-prfsha256-x25519")?];
    connection.retransmit = Retransmit::default();
    (connection.dpd_delay, connection.ike_rekey_time) = (None, None);
    connection.child_rekey_time = None;
    let (ours, theirs) = (network("10.10.1.0/24")?, network("10.20.1.0/24")?);
    let mut child = ChildConfig::new(NAME, vec![ours], vec![theirs]);
    child.esp_proposals = vec![Proposal::parse_esp("chacha20poly1305")?];
    connection.children = vec![child];
    let config = EngineConfig {
        connections: vec![connection],
        endpoint: EndpointConfig::new(SecretBytes::new(vec![3; 32])),
    };
    IkePeer::start(&lab.peer, addr::PEER, config)
}

fn verdict(member: &Member, name: &str) -> Result<u64> {
    Ok(member.verdicts()?.get(name).copied().unwrap_or(0))
}

fn lingering(member: &Member) -> Result<f64> {
    let text = member.metrics()?;
    let all = samples(&text);
    let found = all
        .iter()
        .find(|(name, _, _)| name == "espalier_child_sas_lingering");
    found.map(|(_, _, value)| *value).context("the gauge")
}

struct Scene {
    peer: IkePeer,
    shots: Shots,
    cluster: Cluster,
    number: u64,
}

impl Scene {
    fn new() -> Result<Self> {
        let product = Product::built()?;
        let psk = random_psk()?;
        let lab = Lab::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
        let mut settings = Settings::demo();
        settings.connections.truncate(1);
        let cluster = Cluster::up(lab, &product, &psk, &settings)?;
        cluster.wait_all_in_sync(Duration::from_secs(20))?;
        let lab = &cluster.lab;
        let ends = (addr::PEER, addr::CLUSTER_OUTSIDE);
        let shots = Shots::new(&lab.peer, ends, (&lab.server, addr::SERVER_ONE))?;
        let peer = peer(lab, &psk)?;
        peer.command(Command::Initiate {
            connection: NAME.to_owned(),
        })?;
        peer.child(NAME, true)?;
        Ok(Self {
            peer,
            shots,
            cluster,
            number: 0,
        })
    }

    fn sa(&self) -> Result<ChildSaRecord> {
        match &self.peer.children()[..] {
            [one] => Ok(one.clone()),
            all => bail!("{} Child SAs:\n{}", all.len(), self.peer.story()),
        }
    }

    /// Sends a packet, and says what it is called.
    fn send(&mut self, record: &ChildSaRecord, sequence: u64) -> Result<u64> {
        self.number += 1;
        self.shots.send(record, addr::HOST_ONE, sequence, self.number)?;
        Ok(self.number)
    }

    /// The peer rekeys its Child SA and has had the answer to its Delete of the old one, which is returned.
    fn rekey(&self) -> Result<ChildSaRecord> {
        let old = self.sa()?;
        self.peer.command(Command::RekeyChild { spi_in: old.spi_in })?;
        self.peer.wait("the rekey", |seen| {
            let gone = !seen.children.contains_key(&old.spi_in);
            (gone && seen.children.len() == 1).then_some(())
        })?;
        Ok(old)
    }
}

/// ```text
///   peer ---- CREATE_CHILD_SA, Delete(old) ----> A, whose standby is B
///   peer ==== ESP(old), below and above the ceiling ====> A    delivered
///   peer ==== the same once more ====> A                       replay_duplicate
///   a second later: ESP(old) ====> A                           unknown_spi
/// ```
#[test]
fn a_packet_that_its_delete_has_overtaken_is_delivered_once_and_for_a_moment_only() -> Result<()> {
    let mut scene = Scene::new()?;
    let (mut old, mut above) = (scene.sa()?, 0);
    let mut soon = false;
    for _ in 0..TRIES {
        old = scene.sa()?;
        let before = scene.send(&old, 1)?;
        assert_eq!(scene.shots.wait_arrived(1, ARRIVES), [before]);
        // Far above the ceiling, and the window still holds the one before.
        above = 1_000;
        scene.rekey()?;
        let deleted = Instant::now();
        let late = [scene.send(&old, 2)?, scene.send(&old, above)?];
        let mut arrived = scene.shots.wait_arrived(2, ARRIVES);
        arrived.sort_unstable();
        soon = deleted.elapsed() < SOON;
        if soon {
            assert_eq!(arrived, late, "{}", scene.cluster.members[0].log_text());
            break;
        }
    }
    ensure!(
        soon,
        "this machine is too slow to send anything soon after a Delete"
    );

    let [a, b] = &scene.cluster.members[..] else {
        bail!("two members");
    };
    let verdicts = [verdict(a, "replay_duplicate")?, verdict(a, "unknown_spi")?];
    let spi_in = old.spi_out.to_string();
    let shown = a.sas()?.to_string();
    ensure!(!shown.contains(&spi_in), "a ghost of {spi_in}: {shown}");
    assert_eq!(lingering(b)?, 0.0, "a standby has nothing under way");
    // Both once more. Should the second be over by now, then under another verdict.
    for sequence in [2, above] {
        scene.send(&old, sequence)?;
    }
    assert_eq!(scene.shots.arrived(), [0; 0], "replays");
    let a = &scene.cluster.members[0];
    let unknown = verdict(a, "unknown_spi")? - verdicts[1];
    let replays = verdict(a, "replay_duplicate")? - verdicts[0];
    assert_eq!(replays + unknown, 2, "{replays} replays, {unknown} unknown");

    wait_for(Duration::from_secs(5), Duration::from_millis(20), || {
        lingering(a).is_ok_and(|count| count == 0.0).then_some(())
    })
    .context("something lingers on")?;
    let unknown = verdict(a, "unknown_spi")?;
    scene.send(&old, 3)?;
    assert_eq!(scene.shots.arrived(), [0; 0], "after its moment");
    assert_eq!(verdict(&scene.cluster.members[0], "unknown_spi")?, unknown + 1);
    // The new SA is as it should be.
    let new = scene.sa()?;
    let number = scene.send(&new, 1)?;
    assert_eq!(scene.shots.wait_arrived(1, ARRIVES), [number]);
    Ok(())
}

/// ```text
///   peer ---- CREATE_CHILD_SA, Delete(old) ----> A
///   peer ==== ESP(old) ====> A        delivered
///   A ---- planned ----> B            within the second
///   peer ==== the same once more, and a new one ====> B    neither is delivered, there or at A
/// ```
#[test]
fn another_owner_accepts_nothing_of_what_lingered() -> Result<()> {
    let mut scene = Scene::new()?;
    let old = scene.rekey()?;
    let late = scene.send(&old, 1)?;
    let arrived = scene.shots.wait_arrived(1, ARRIVES);
    ensure!(arrived.is_empty() || arrived == [late], "{arrived:?}");
    scene.cluster.members[0].espalier(&["takeover", "--to", "2"])?;
    wait_for(Duration::from_secs(10), Duration::from_millis(10), || {
        scene.cluster.serves(1).then_some(())
    })
    .context("B serves")?;
    for sequence in [1, 2, 100_000] {
        scene.send(&old, sequence)?;
    }
    assert_eq!(scene.shots.arrived(), [0; 0], "of an SA that B never served");
    let new = scene.sa()?;
    let number = scene.send(&new, 1)?;
    assert_eq!(scene.shots.wait_arrived(1, ARRIVES), [number]);
    Ok(())
}

impl Scene {
    /// A has asked for a new Child SA in place of the one that is there; the peer has it, and its answer is kept back. What it sends on it
    /// waits at A. Gives the SA, and what waits.
    fn early(&mut self) -> Result<(ChildSaRecord, Vec<u64>)> {
        let old = self.sa()?;
        let new = self.peer.wait("the new Child SA", |seen| {
            let mut others = seen.children.values().filter(|sa| sa.spi_in != old.spi_in);
            others.next().cloned()
        })?;
        let before = self.held()?;
        let sent = (1..=3).map(|sequence| self.send(&new, sequence));
        let sent = sent.collect::<Result<Vec<_>>>()?;
        self.waits(before + 3)?;
        assert_eq!(self.shots.arrived(), [0; 0], "before there is an SA");
        Ok((new, sent))
    }

    /// Packets that met an SA which was asked for, on both members.
    fn held(&self) -> Result<u64> {
        let of = |member| verdict(member, "held_for_answer");
        self.cluster.members.iter().map(of).sum()
    }

    fn waits(&self, count: u64) -> Result<()> {
        wait_for(ARRIVES, Duration::from_millis(5), || {
            self.held().is_ok_and(|held| held >= count).then_some(())
        })
        .with_context(|| format!("{count} packets do not wait: {:?}", self.held()))
    }

    fn arrive(&self, expected: &[u64]) {
        let mut arrived = self.shots.wait_arrived(expected.len(), ARRIVES);
        arrived.sort_unstable();
        assert_eq!(arrived, expected);
    }
}

/// ```text
///   A ---- CREATE_CHILD_SA (rekey) ----> peer, whose answer is on its way
///   peer ==== ESP(new) 1, 2, 3, and 1 again ====> A      held_for_answer
///   peer ---- its answer ----> A                         1, 2, 3 are delivered, 1 again is a replay
/// ```
#[test]
fn a_packet_that_overtakes_the_answer_waits_for_it_and_is_delivered_once() -> Result<()> {
    let mut scene = Scene::new()?;
    let unknown = verdict(&scene.cluster.members[0], "unknown_spi")?;
    scene.peer.mute(true);
    let mut rekey = scene.cluster.members[0].launch(&["rekey", NAME])?;
    let (new, sent) = scene.early()?;
    let before = scene.held()?;
    scene.send(&new, 1)?;
    scene.waits(before + 1)?;
    let a = &scene.cluster.members[0];
    let replays = verdict(a, "replay_duplicate")?;
    scene.peer.mute(false);
    scene.arrive(&sent);
    ensure!(rekey.wait()?, "the rekey failed");
    assert_eq!(verdict(a, "replay_duplicate")? - replays, 1);
    assert_eq!(verdict(a, "unknown_spi")?, unknown);
    // What comes now is opened where it comes.
    let held = scene.held()?;
    let number = scene.send(&new, 4)?;
    scene.arrive(&[number]);
    assert_eq!(scene.held()?, held);
    Ok(())
}

/// ```text
///   A ---- CREATE_CHILD_SA (rekey) ----> peer, whose answer is on its way
///   peer ==== ESP(new) 1, 2, 3 ====> A     held_for_answer
///   A ---- planned ----> B                 what waits goes with it
///   peer ---- its answer ----> B           1, 2, 3 are delivered
/// ```
#[test]
fn what_waits_for_an_answer_goes_to_the_next_owner() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.peer.mute(true);
    let mut rekey = scene.cluster.members[0].launch(&["rekey", NAME])?;
    let (_, sent) = scene.early()?;
    let before = scene.held()?;
    scene.cluster.members[0].espalier(&["takeover", "--to", "2"])?;
    // Once more each, at B, when it has had time to adopt the exchange.
    scene.waits(before + 3)?;
    scene.peer.mute(false);
    scene.arrive(&sent);
    // The member that was told to does not serve the connection any more, and says so, or that it came about.
    rekey.wait().map(drop)
}
