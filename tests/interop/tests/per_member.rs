//! A Child SA for each member (RFC 9611, ADR 11): three members with etcd and groups of segments, another espalier gateway as the peer.
//! What each member sends goes out on an SA of its own; the SA stays over rekeys, and over the loss of its member and of the IKE SA's.
//!
//! Needs root and the built product: `cargo xtask test` sees to the rest.

use anyhow::{Context, Result, bail, ensure};
use lab::clock::wait_for;
use lab::cluster::Cluster;
use lab::etcd::{EtcdCluster, EtcdSite};
use lab::gateway;
use lab::member::{Member, Product};
use lab::ping::Ping;
use lab::stage::random_psk;
use lab::topology::{Lab, Plan, addr};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

const MEMBERS: usize = 3;
/// 200 packets a second.
const PING_US: u64 = 5_000;
const TICK: Duration = Duration::from_millis(50);

/// A Child SA as `espalier sas` shows it.
#[derive(Clone, Debug, PartialEq)]
struct Sa {
    spi_in: String,
    member: u64,
    guest: bool,
    bound: bool,
    packets_in: u64,
    packets_out: u64,
}

/// What a member lists: the state of the IKE SA there, and its Child SAs.
fn sas(member: &Member) -> Result<(String, Vec<Sa>)> {
    let all = member.sas()?;
    let all = all.as_array().context("a list")?;
    let state = all
        .first()
        .map(|ike| ike["state"].as_str().unwrap_or_default().to_owned());
    let children = all.iter().filter_map(|ike| ike["children"].as_array()).flatten();
    let of = |child: &Value| Sa {
        spi_in: child["spi_in"].as_str().unwrap_or_default().to_owned(),
        member: child["member"].as_u64().unwrap_or(0),
        guest: child["guest"].as_bool().unwrap_or(false),
        bound: child["bound"].as_bool().unwrap_or(false),
        packets_in: child["packets_in"].as_u64().unwrap_or(0),
        packets_out: child["packets_out"].as_u64().unwrap_or(0),
    };
    Ok((state.unwrap_or_default(), children.map(of).collect()))
}

struct Scene {
    peer: Member,
    cluster: Cluster,
    _etcd: EtcdCluster,
}

impl Scene {
    fn build() -> Result<Self> {
        let product = Product::built()?;
        let plan = Plan {
            members: MEMBERS,
            voters: 1,
            sites: 0,
        };
        let lab = Lab::planned(Path::new(env!("CARGO_TARGET_TMPDIR")), plan)?;
        let site = |v: &lab::topology::Voter| EtcdSite {
            netns: Some(v.netns.clone()),
            address: v.address.into(),
        };
        let sites = lab.voters.iter().map(site).collect();
        let etcd = EtcdCluster::start(&lab.resources, sites, None).context("the etcd servers")?;
        let mut settings = gateway::settings();
        settings.preferred = "";
        settings.cluster_keys = "mode = \"load-sharing\"\ngroups = 6\nengine = \"etcd\"\n".to_owned();
        let endpoints = etcd.endpoints();
        let endpoints: Vec<String> = endpoints.iter().map(|e| format!("\"{e}\"")).collect();
        settings.cluster_tables = format!("\n[cluster.etcd]\nendpoints = [{}]\n", endpoints.join(", "));
        let mut cluster = Cluster::prepare(lab, &product, &random_psk()?, &settings)?;
        let mut peer = gateway::place(&cluster.lab, &product)?;
        for member in &cluster.members {
            member.add_keys("per_resource = \"member\"")?;
        }
        peer.add_keys("per_resource = \"cpu\"")?;
        cluster.start()?;
        cluster.wait_all_in_sync(Duration::from_secs(30))?;
        cluster.members[0].espalier(&["rebalance"])?;
        cluster.wait_all_in_sync(Duration::from_secs(30))?;
        peer.start(&cluster.lab.resources)?;
        Ok(Self {
            peer,
            cluster,
            _etcd: etcd,
        })
    }

    fn complain(&self, what: &str) -> String {
        let mut text = format!("{what}\n{}\n", self.cluster.states());
        for side in self.cluster.members.iter().chain([&self.peer]) {
            if side.alive() {
                let letter = side.place.letter;
                text.push_str(&format!("{letter}: {:#?}\n{}\n", sas(side).ok(), side.log_text()));
            }
        }
        text
    }

    /// The member that has the IKE SA.
    fn sponsor(&self) -> Option<usize> {
        (0..MEMBERS).find(|at| {
            let member = &self.cluster.members[*at];
            member.alive() && sas(member).is_ok_and(|(state, _)| state == "established")
        })
    }

    /// The SA that each of these members has for itself, as the sponsor lists them.
    fn own(&self, of: &[usize]) -> Option<BTreeMap<usize, Sa>> {
        let (_, all) = sas(&self.cluster.members[self.sponsor()?]).ok()?;
        let found = of.iter().filter_map(|at| {
            let own = |sa: &&Sa| sa.guest && sa.bound && sa.member == *at as u64 + 1;
            Some((*at, all.iter().find(own)?.clone()))
        });
        let found: BTreeMap<usize, Sa> = found.collect();
        (found.len() == of.len()).then_some(found)
    }

    /// What the server sends goes to this member, whoever owns what.
    fn route_through(&self, at: usize) -> Result<()> {
        let inside = self.cluster.members[at].place.inside;
        let server = &self.cluster.lab.server;
        server.ip(&format!("route replace 10.10.1.0/24 via {inside} dev eth0"))?;
        server.run(&[
            "ping",
            "-n",
            "-c",
            "2",
            "-i",
            "0.2",
            "-W",
            "2",
            &inside.to_string(),
        ])?;
        Ok(())
    }

    /// Pings from the server to the host behind the peer while something is done: how many went out, how many were lost.
    fn pinged<T>(&self, during: impl FnOnce() -> Result<T>) -> Result<(u64, u64, T)> {
        let server = &self.cluster.lab.server;
        let ping = Ping::start(server, "member", addr::SERVER_ONE, addr::HOST_ONE, PING_US)?;
        let enough = |n: usize| {
            wait_for(Duration::from_secs(10), TICK, || {
                (ping.so_far().0 >= n).then_some(())
            })
            .context("the ping does not run")
        };
        enough(60)?;
        let done = during()?;
        let so_far = ping.so_far().0;
        enough(so_far + 60)?;
        let result = ping.stop()?;
        Ok((result.sent(), result.lost(), done))
    }

    /// Packets that a member has sent with its own SA.
    fn sent_with_own(&self, at: usize) -> Result<u64> {
        let (_, all) = sas(&self.cluster.members[at])?;
        let own = all
            .iter()
            .filter(|sa| sa.guest && sa.bound && sa.member == at as u64 + 1);
        Ok(own.map(|sa| sa.packets_out).sum())
    }
}

#[test]
fn each_member_seals_with_a_child_sa_of_its_own_and_it_stays_when_members_die() -> Result<()> {
    let began = Instant::now();
    let at = |what: &str| println!("{:5.1} s: {what}", began.elapsed().as_secs_f64());
    let mut scene = Scene::build()?;
    at("three members in sync");

    // One for each of the others comes up by itself.
    let found = wait_for(Duration::from_secs(40), TICK, || {
        let sponsor = scene.sponsor()?;
        let others: Vec<usize> = (0..MEMBERS).filter(|at| *at != sponsor).collect();
        Some((sponsor, scene.own(&others)?))
    });
    let Some((sponsor, own)) = found else {
        bail!(scene.complain("not every member has an SA of its own"));
    };
    at(&format!(
        "the IKE SA is member {}'s, and the others have {own:?}",
        sponsor + 1
    ));
    let (_, listed) = sas(&scene.cluster.members[sponsor])?;
    ensure!(
        listed.len() == MEMBERS,
        scene.complain("one that all may use, and one for each other member")
    );

    // What comes to a member goes out on its own SA, there.
    for other in own.keys().copied() {
        scene.route_through(other)?;
        let before = scene.sent_with_own(other)?;
        let (sent, lost, ()) = scene.pinged(|| Ok(()))?;
        let carried = scene.sent_with_own(other)? - before;
        println!(
            "through member {}: {sent} pings, {lost} lost, {carried} on its own SA",
            other + 1
        );
        ensure!(lost == 0, scene.complain(&format!("{lost} pings lost")));
        ensure!(
            carried >= sent,
            scene.complain(&format!(
                "only {carried} of {sent} went out on the member's own SA"
            ))
        );
    }
    at("each seals with its own");

    // A rekey of one: the new one is the same member's, and nothing is lost.
    let other = *own.keys().next_back().context("another member")?;
    let old = own[&other].spi_in.clone();
    let (sent, lost, said) =
        scene.pinged(|| scene.cluster.members[sponsor].espalier(&["rekey", "--spi", &old]))?;
    println!("{}: {sent} pings, {lost} lost", said.trim());
    ensure!(
        lost == 0,
        scene.complain(&format!("{lost} pings lost in the rekey"))
    );
    let replaced = wait_for(Duration::from_secs(10), TICK, || {
        let now = scene.own(&[other])?;
        (now[&other].spi_in != old).then_some(now[&other].clone())
    });
    let replaced = replaced.with_context(|| scene.complain("the old SA stays"))?;
    at("rekeyed");

    // Its member dies: the SA goes on at whoever takes its segment over.
    scene.cluster.members[other].kill_host()?;
    scene.cluster.wait_other_serves(other, Duration::from_secs(20))?;
    let moved = wait_for(Duration::from_secs(10), TICK, || {
        let (_, all) = sas(&scene.cluster.members[sponsor]).ok()?;
        let same = all.into_iter().find(|sa| sa.spi_in == replaced.spi_in)?;
        (same.member != other as u64 + 1).then_some(same)
    });
    let moved = moved.with_context(|| scene.complain("the SA of the lost member is gone"))?;
    at(&format!(
        "member {} is lost, its SA is member {}'s",
        other + 1,
        moved.member
    ));
    let third = (0..MEMBERS)
        .find(|at| *at != other && *at != sponsor)
        .context("the third member")?;
    scene.route_through(third)?;
    let answered = wait_for(Duration::from_secs(20), TICK, || {
        let (_, lost, ()) = scene.pinged(|| Ok(())).ok()?;
        (lost == 0).then_some(())
    });
    answered.with_context(|| scene.complain("no traffic after the loss of a member"))?;

    // It comes back, and its segments with it.
    scene.cluster.members[other].revive_links()?;
    scene.cluster.members[other].start(&scene.cluster.lab.resources)?;
    scene.cluster.wait_all_in_sync(Duration::from_secs(60))?;
    scene.cluster.members[sponsor].espalier(&["rebalance"])?;
    scene.cluster.wait_all_in_sync(Duration::from_secs(60))?;
    let back = wait_for(Duration::from_secs(30), TICK, || scene.own(&[other, third]));
    back.with_context(|| scene.complain("the member that is back has no SA of its own"))?;
    at("it is back");

    // The IKE SA's member dies: the SAs of the others stay, and the taker has the IKE SA.
    let before = scene.own(&[other, third]).context("both have one")?;
    scene.cluster.members[sponsor].kill_host()?;
    scene
        .cluster
        .wait_other_serves(sponsor, Duration::from_secs(20))?;
    let taken = wait_for(Duration::from_secs(20), TICK, || {
        let taker = scene.sponsor().filter(|taker| *taker != sponsor)?;
        let (_, all) = sas(&scene.cluster.members[taker]).ok()?;
        let kept = before
            .values()
            .filter(|sa| all.iter().any(|now| now.spi_in == sa.spi_in));
        (kept.count() == before.len()).then_some(taker)
    });
    let taken = taken.with_context(|| scene.complain("the SAs went with the member of the IKE SA"))?;
    at(&format!("member {} has taken the IKE SA over", taken + 1));
    let last = if taken == other { third } else { other };
    scene.route_through(last)?;
    let carried = wait_for(Duration::from_secs(30), TICK, || {
        let before = scene.sent_with_own(last).ok()?;
        let (sent, lost, ()) = scene.pinged(|| Ok(())).ok()?;
        let carried = scene.sent_with_own(last).ok()? - before;
        (lost == 0 && carried >= sent).then_some(())
    });
    carried.with_context(|| scene.complain("no traffic on the member's own SA after the takeover"))?;

    let duplicates = scene.cluster.outside.read(|ledger| {
        let twice = |flow: &lab::ledger::Flow| flow.dup_seq + flow.dup_iv;
        ledger.flows.values().map(twice).sum::<u64>()
    });
    println!("numbers or IVs used twice: {duplicates}");
    ensure!(duplicates == 0, "{duplicates} numbers or IVs were used twice");
    ensure!(scene.cluster.outside.lost() == 0, "the recorder lost packets");
    at("done");
    Ok(())
}
