//! A Child SA for each member (RFC 9611, ADR 11): three members with etcd and groups of segments, another espalier gateway as the peer.
//! What each member sends goes out on an SA of its own; the SA stays over rekeys, and over the loss of its member and of the IKE SA's.
//! With two members and `per_resource = "both"`: what each CPU of each member sends does.
//!
//! Needs root and the built product: `cargo xtask test` sees to the rest.

use anyhow::{Context, Result, bail, ensure};
use lab::clock::wait_for;
use lab::cluster::Cluster;
use lab::etcd::{EtcdCluster, EtcdSite};
use lab::gateway;
use lab::member::{Member, Product};
use lab::ping::{self, Ping};
use lab::stage::random_psk;
use lab::topology::{Lab, Plan, addr};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// The CPUs of this host, as those of each member; the gateway that is the peer takes four Child SAs beside the first one with them.
const CPUS: [u64; 2] = [0, 1];
/// 200 packets a second.
const PING_US: u64 = 5_000;
const TICK: Duration = Duration::from_millis(50);

/// A Child SA as `espalier sas` shows it.
#[derive(Clone, Debug, PartialEq)]
struct Sa {
    spi_in: String,
    member: u64,
    cpu: u64,
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
        cpu: child["cpu"].as_u64().unwrap_or(0),
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
    fn build(members: usize, per_resource: &str) -> Result<Self> {
        let product = Product::built()?;
        let plan = Plan {
            members,
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
            member.add_keys(&format!("per_resource = \"{per_resource}\""))?;
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
        (0..self.cluster.members.len()).find(|at| {
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

    /// What the recorder saw: no number and no IV twice.
    fn nothing_came_twice(&self) -> Result<()> {
        let duplicates = self.cluster.outside.read(|ledger| {
            let twice = |flow: &lab::ledger::Flow| flow.dup_seq + flow.dup_iv;
            ledger.flows.values().map(twice).sum::<u64>()
        });
        println!("numbers or IVs used twice: {duplicates}");
        ensure!(duplicates == 0, "{duplicates} numbers or IVs were used twice");
        ensure!(self.cluster.outside.lost() == 0, "the recorder lost packets");
        Ok(())
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

impl Scene {
    /// The SAs that the CPUs of a member have for themselves, as that member lists them: guests where the IKE SA is another's.
    fn of_cpus(&self, at: usize) -> Result<BTreeMap<u64, Sa>> {
        let guest = self.sponsor() != Some(at);
        let (_, all) = sas(&self.cluster.members[at])?;
        let own = all.into_iter();
        let own = own.filter(|sa| sa.bound && sa.guest == guest && sa.member == at as u64 + 1);
        Ok(own.map(|sa| (sa.cpu, sa)).collect())
    }

    /// Pings from the server on both CPUs at once: how many were lost, and what each CPU of the member sent on its own SA meanwhile.
    fn pinged_on_cpus(&self, at: usize, count: u32) -> Result<(u32, BTreeMap<u64, u64>)> {
        let before = self.of_cpus(at)?;
        let server = &self.cluster.lab.server;
        let lost = ping::on_cpus(server, &CPUS, (addr::SERVER_ONE, addr::HOST_ONE), count)?;
        let more = |(cpu, sa): (u64, Sa)| {
            let old = before.get(&cpu).filter(|old| old.spi_in == sa.spi_in);
            (cpu, sa.packets_out - old.map_or(0, |old| old.packets_out))
        };
        Ok((lost, self.of_cpus(at)?.into_iter().map(more).collect()))
    }

    /// What comes to a member goes out on the SAs of its CPUs, each on its own, and nothing is lost, before long.
    fn each_cpu_seals(&self, at: usize) -> Result<()> {
        const COUNT: u32 = 200;
        let mut last = (0, BTreeMap::new());
        // The first SAs of a member's own CPUs come with the first packets on them.
        let done = wait_for(Duration::from_secs(40), TICK, || {
            last = self.pinged_on_cpus(at, COUNT).ok()?;
            // The scheduler may run a softirq of one elsewhere now and then.
            let all = CPUS
                .iter()
                .all(|cpu| last.1.get(cpu).is_some_and(|n| *n >= u64::from(COUNT / 2)));
            (last.0 == 0 && all).then_some(())
        });
        let (lost, sent) = last;
        println!(
            "through member {}: {lost} pings lost, sent by CPU {sent:?}",
            at + 1
        );
        done.with_context(|| {
            self.complain(&format!(
                "member {}: {lost} pings lost, sent by CPU {sent:?}",
                at + 1
            ))
        })
    }
}

/// ```text
///   A has the IKE SA   A: one for all, and one for each CPU on demand       B: a guest for each CPU
///   traffic to B       goes out on the guest of its CPU                     to A: on A's own of its CPU
///   rekey of a guest   the new one is the same CPU's                        nothing is lost
///   B dies             A serves its guests; B comes back: it has two again
///   A dies             B has the IKE SA, and its CPUs' SAs as they were
/// ```
#[test]
fn each_cpu_of_each_member_seals_with_a_child_sa_of_its_own() -> Result<()> {
    ensure!(
        std::thread::available_parallelism()?.get() == CPUS.len(),
        "this test needs a host with {} CPUs",
        CPUS.len()
    );
    let began = Instant::now();
    let at = |what: &str| println!("{:5.1} s: {what}", began.elapsed().as_secs_f64());
    let mut scene = Scene::build(2, "both")?;
    at("two members in sync");
    let of_all_cpus = |scene: &Scene, at: usize| {
        let own = scene.of_cpus(at).ok()?;
        own.keys().eq(&CPUS).then_some(own)
    };
    let found = wait_for(Duration::from_secs(40), TICK, || {
        let other = 1 - scene.sponsor()?;
        Some((other, of_all_cpus(&scene, other)?))
    });
    let (other, guests) = found.with_context(|| scene.complain("the other member has no SA for each CPU"))?;
    let sponsor = 1 - other;
    at(&format!(
        "the IKE SA is member {}'s, the other one has {guests:?}",
        sponsor + 1
    ));

    scene.route_through(other)?;
    scene.each_cpu_seals(other)?;
    scene.route_through(sponsor)?;
    scene.each_cpu_seals(sponsor)?;
    at("each CPU of both seals with its own");

    // A rekey of one guest.
    scene.route_through(other)?;
    let old = guests[&1].spi_in.clone();
    let (sent, lost, said) =
        scene.pinged(|| scene.cluster.members[sponsor].espalier(&["rekey", "--spi", &old]))?;
    println!("{}: {sent} pings, {lost} lost", said.trim());
    ensure!(
        lost == 0,
        scene.complain(&format!("{lost} pings lost in the rekey"))
    );
    let replaced = wait_for(Duration::from_secs(10), TICK, || {
        let now = of_all_cpus(&scene, other)?;
        (now[&1].spi_in != old && now[&0].spi_in == guests[&0].spi_in).then_some(now)
    });
    let replaced = replaced.with_context(|| scene.complain("not one new SA in place of the old one"))?;
    scene.each_cpu_seals(other)?;
    at("rekeyed");

    // The guests' member dies: the sponsor serves them, and they stand beside its own.
    scene.cluster.members[other].kill_host()?;
    scene.cluster.wait_other_serves(other, Duration::from_secs(20))?;
    let (_, all) = sas(&scene.cluster.members[sponsor])?;
    for guest in replaced.values() {
        let here = all.iter().any(|sa| sa.spi_in == guest.spi_in && sa.guest);
        ensure!(here, scene.complain(&format!("guest {} is gone", guest.spi_in)));
    }
    scene.route_through(sponsor)?;
    scene.each_cpu_seals(sponsor)?;
    at(&format!("member {} is lost", other + 1));
    scene.cluster.members[other].revive_links()?;
    scene.cluster.members[other].start(&scene.cluster.lab.resources)?;
    scene.cluster.wait_all_in_sync(Duration::from_secs(60))?;
    scene.cluster.members[sponsor].espalier(&["rebalance"])?;
    scene.cluster.wait_all_in_sync(Duration::from_secs(60))?;
    let back = || {
        let back = wait_for(Duration::from_secs(30), TICK, || of_all_cpus(&scene, other));
        back.with_context(|| scene.complain("the member that is back has no SA for each CPU"))
    };
    back()?;
    scene.route_through(other)?;
    scene.each_cpu_seals(other)?;
    at("it is back");

    // The sponsor dies: the IKE SA is the other's, whose guests are as they were. What its own loss has tainted was rekeyed meanwhile (ADR 13).
    let back = back()?;
    scene.cluster.members[sponsor].kill_host()?;
    scene
        .cluster
        .wait_other_serves(sponsor, Duration::from_secs(20))?;
    let kept = wait_for(Duration::from_secs(20), TICK, || {
        let taker = scene.sponsor().filter(|taker| *taker == other)?;
        let (_, all) = sas(&scene.cluster.members[taker]).ok()?;
        let here = |guest: &&Sa| all.iter().any(|sa| sa.spi_in == guest.spi_in);
        (back.values().filter(here).count() == back.len()).then_some(())
    });
    kept.with_context(|| scene.complain("the SAs went with the member of the IKE SA"))?;
    let through = wait_for(Duration::from_secs(20), TICK, || {
        let (lost, _) = scene.pinged_on_cpus(other, 50).ok()?;
        (lost == 0).then_some(())
    });
    through.with_context(|| scene.complain("no traffic after the loss of the sponsor"))?;
    at("the other one has the IKE SA, too");
    scene.nothing_came_twice()
}

#[test]
fn each_member_seals_with_a_child_sa_of_its_own_and_it_stays_when_members_die() -> Result<()> {
    let began = Instant::now();
    let at = |what: &str| println!("{:5.1} s: {what}", began.elapsed().as_secs_f64());
    const MEMBERS: usize = 3;
    let mut scene = Scene::build(MEMBERS, "member")?;
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

    scene.nothing_came_twice()?;
    at("done");
    Ok(())
}
