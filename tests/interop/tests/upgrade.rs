//! Members are upgraded one after the other, from an older format of the records among them to the newest one, and back again.
//!
//! Needs root, strongSwan, and the built product: `cargo xtask test` sees to all of that.

use anyhow::{Context, Result, ensure};
use lab::clock::{now_ns, wait_for};
use lab::config::Settings;
use lab::esp::exchange;
use lab::flow::Flow;
use lab::member::{Member, Product, samples};
use lab::ping::{self, Ping};
use lab::queues::Losses;
use lab::sightings::Numbered;
use lab::stage::{Stage, random_psk, start_peer};
use lab::topology::{Lab, addr};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Microseconds between two packets inbound: 500 a second.
const INBOUND_US: u64 = 2000;
/// Outbound 50 a second: so no lease comes to its half while a standby is away. A pair's owner that is alone then rekeys, as it does
/// whenever its standby is lost; that is not what is looked at here.
const OUTBOUND_US: u64 = 20_000;
/// Pings 5 a second, whose answers are outbound too.
const PING_US: u64 = 200_000;
/// The owner of a pair that has lost its standby under `solo = "continue"` is not fenced: when the next life of the standby is in
/// sync, each Child SA that the life before knew is rekeyed once. Two Child SAs, two members that are replaced.
const REKEYS: usize = 4;
const OLDER: &str = "record_format = 3\n";

fn older_members() -> Result<Stage> {
    let product = Product::built()?;
    let psk = random_psk()?;
    let lab = Lab::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    let peer = start_peer(&lab, &psk)?;
    let settings = Settings {
        cluster_keys: OLDER.to_owned(),
        ..Settings::demo()
    };
    let stage = Stage::with(lab, peer, &product, &psk, &settings)?;
    stage.connect()?;
    Ok(stage)
}

/// What the two members speak with each other, as a member says.
fn spoken(stage: &Stage, member: usize) -> Result<u64> {
    let status = stage.members[member].status()?;
    status["members"][0]["record_format"]
        .as_u64()
        .with_context(|| status["members"].to_string())
}

/// What the run says of itself where packets are lost.
struct Evidence {
    began: u64,
    queues: Losses,
    lines: Vec<String>,
}

impl Evidence {
    fn begin(stage: &Stage) -> Result<Self> {
        Ok(Self {
            began: now_ns(),
            queues: Losses::read(&stage.lab.places())?,
            lines: Vec::new(),
        })
    }

    fn ms(&self, at_ns: u64) -> f64 {
        (at_ns as f64 - self.began as f64) / 1e6
    }

    fn note(&mut self, what: &str) {
        self.lines.push(format!("{:.0} ms: {what}", self.ms(now_ns())));
    }

    /// A member's life is over or the run is: what it has counted and said.
    fn life(&mut self, member: &Member) -> Result<()> {
        let letter = member.place.letter;
        let verdicts: BTreeMap<String, u64> = member.verdicts()?;
        let slow = samples(&member.metrics()?).into_iter();
        let slow = slow.filter(|(name, _, value)| name == "espalier_slow_frames_total" && *value > 0.0);
        let slow: Vec<String> = slow
            .map(|(_, labels, value)| format!("{labels} {value}"))
            .collect();
        self.note(&format!("member {letter}: {verdicts:?}; slow path: {slow:?}"));
        for (at, kind, text) in member.events()? {
            if at >= self.began {
                self.lines
                    .push(format!("{:.1} ms: member {letter}: {kind}: {text}", self.ms(at)));
            }
        }
        Ok(())
    }

    /// Packets of a flow that never arrived, and where they were seen inside.
    fn lost(&mut self, stage: &Stage, flow: &Flow) {
        let (sent, _) = flow.so_far();
        for lost in flow.lost(0..sent) {
            let packet = [Numbered::Flow(flow.port, lost.number)];
            let seen = stage.inside.read(|l| l.sightings.of(&packet));
            let seen: Vec<f64> = seen.iter().map(|s| self.ms(s.at_ns)).collect();
            let (port, number, at) = (flow.port, lost.number, self.ms(lost.at_ns));
            let refused = lost.refused.unwrap_or_default();
            self.lines.push(format!(
                "lost: port {port} number {number}, sent at {at:.1} ms {refused}; seen inside at {seen:?}"
            ));
        }
    }

    fn show(&self, stage: &Stage) {
        for line in &self.lines {
            println!("{line}");
        }
        if let Ok(now) = Losses::read(&stage.lab.places()) {
            println!("queues of the kernel: {:?}", now.since(&self.queues));
        }
    }
}

/// Drains a member, has it stop, and starts it with another format.
fn replace(stage: &mut Stage, member: usize, change: (&str, &str), evidence: &mut Evidence) -> Result<()> {
    let other = 1 - member;
    evidence.note("drain");
    stage.members[member].espalier(&["drain"])?;
    stage.wait_in_sync(other, Duration::from_secs(10))?;
    evidence.life(&stage.members[member])?;
    stage.members[member].stop();
    stage.members[member].edit(change.0, change.1)?;
    stage.members[member].start(&stage.lab.resources)?;
    stage.wait_in_sync(other, Duration::from_secs(20))
}

/// ```text
///   peer ==== ping, UDP both ways ====> A, B speak 3
///   each in turn: drain, stop, start             ... speak 3 as long as one of them knows no more, then 4
///   peer <--- INFORMATIONAL, CREATE_CHILD_SA ---> entries are brief, and the other member can go on with what it made of them
///   each in turn: drain, stop, start             ... speak 3
///   no packet lost, no IKE_SA_INIT, no number twice; one rekey of each Child SA at most for each new life of a standby
/// ```
#[test]
fn members_go_to_the_next_format_and_back_one_by_one_without_a_packet_lost() -> Result<()> {
    let mut stage = older_members()?;
    let newest = stage.members[0].status()?["record_format_newest"]
        .as_u64()
        .context("the newest format")?;
    ensure!(newest > 3 && spoken(&stage, 0)? == 3, "newest {newest}");
    let overflows = stage.peer_overflows()?;
    let mut evidence = Evidence::begin(&stage)?;
    let began = now_ns();
    let host = (&stage.lab.host, addr::HOST_ONE);
    let inbound = Flow::start(host, (&stage.lab.server, addr::SERVER_ONE), 7001, INBOUND_US, 200)?;
    let server = (&stage.lab.server, addr::SERVER_TWO);
    let outbound = Flow::start(server, (&stage.lab.host, addr::HOST_TWO), 7002, OUTBOUND_US, 200)?;
    let ping = Ping::start(
        &stage.lab.host,
        "upgrade",
        addr::HOST_ONE,
        addr::SERVER_ONE,
        PING_US,
    )?;

    let up = (OLDER, "# the newest format\n");
    replace(&mut stage, 1, up, &mut evidence)?;
    ensure!(spoken(&stage, 0)? == 3, "A knows no more");
    replace(&mut stage, 0, up, &mut evidence)?;
    for member in [0, 1] {
        ensure!(spoken(&stage, member)? == newest, "member {member}");
    }
    let above = now_ns();
    let begun = |stage: &Stage, from, to| {
        let count = |kind| stage.outside.read(|l| l.requests(kind, from, to));
        (count(exchange::IKE_SA_INIT), count(exchange::CREATE_CHILD_SA))
    };
    let (inits, rekeys) = begun(&stage, began, above);
    assert_eq!(inits, 0, "new IKE SAs on the way up");
    assert!(rekeys <= REKEYS, "{rekeys} rekeys on the way up");

    // Exchanges under the newest format, by whichever member serves; then the other one goes on with what it holds of them.
    let owner = usize::from(stage.members[1].status()?["role"] == "active");
    for _ in 0..3 {
        stage.members[owner].espalier(&["liveness", "one"])?;
    }
    stage.members[owner].espalier(&["rekey", "two"])?;
    stage.peer.rekey_child("one").context("the peer rekeys")?;
    let to = (2 - owner).to_string();
    stage.members[owner].espalier(&["takeover", "--to", &to])?;
    stage.wait_in_sync(1 - owner, Duration::from_secs(10))?;
    for connection in ["one", "two"] {
        stage.members[1 - owner].espalier(&["liveness", connection])?;
    }

    let back = now_ns();
    let down = (up.1, OLDER);
    replace(&mut stage, 0, down, &mut evidence)?;
    replace(&mut stage, 1, down, &mut evidence)?;
    for member in [0, 1] {
        ensure!(spoken(&stage, member)? == 3, "member {member}");
    }
    let events: Vec<_> = stage
        .members
        .iter()
        .map(|m| m.espalier(&["events"]))
        .collect::<Result<_>>()?;
    ensure!(
        !events.iter().any(|e| e.contains("joins anew")),
        "a mirror was not the owner's: {events:?}"
    );
    let (inits, _) = begun(&stage, above, now_ns());
    assert_eq!(inits, 0, "new IKE SAs on the way down");
    let (_, rekeys) = begun(&stage, back, now_ns());
    assert!(rekeys <= REKEYS, "{rekeys} rekeys on the way down");

    let pings = ping.stop()?;
    // What was sent last arrives before it is missed.
    wait_for(Duration::from_millis(500), Duration::from_millis(20), || {
        (inbound.missing(0..inbound.so_far().0) == 0).then_some(())
    });
    for flow in [&inbound, &outbound] {
        evidence.lost(&stage, flow);
    }
    let (inbound, outbound) = (inbound.stop()?, outbound.stop()?);
    let overflows = stage.peer_overflows()? - overflows;
    for member in &stage.members {
        evidence.life(member)?;
    }
    if inbound.lost() > 0 || outbound.lost() + pings.lost() > overflows {
        evidence.show(&stage);
    }
    println!(
        "{} pings ({} lost), {} packets in ({} lost), {} out ({} lost), {overflows} dropped by the peer's kernel",
        pings.sent(),
        pings.lost(),
        inbound.sent,
        inbound.lost(),
        outbound.sent,
        outbound.lost()
    );
    assert_eq!(inbound.lost(), 0, "packets lost on their way in");
    let lost = outbound.lost() + pings.lost();
    assert!(lost <= overflows, "{lost} lost, the peer dropped {overflows}");
    assert_eq!((inbound.repeated(), outbound.repeated()), (0, 0), "packets twice");
    let after = ping::short(&stage.lab.host, addr::HOST_TWO, addr::SERVER_TWO, 10_000, 20)?;
    assert_eq!(after.lost(), 0, "pings lost in the end");
    let faults = stage.outside.read(|l| l.message_id_faults());
    assert_eq!(faults, Vec::<String>::new());
    let twice = stage.outside.read(|l| l.duplicates());
    assert_eq!(twice, (0, 0), "(SPI, sequence number), (SPI, IV) twice");
    wait_for(Duration::from_secs(2), Duration::from_millis(20), || {
        (stage.outside.lost() == 0).then_some(())
    })
    .context("packets that the recorder missed")
}
