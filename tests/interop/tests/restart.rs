//! A member that is alone is restarted as planned: its tunnels carry on without it, and it goes on with them.
//!
//! Needs root, strongSwan, and the built product: `cargo xtask test` sees to all of that.

use anyhow::{Context, Result, ensure};
use lab::clock::{now_ns, wait_for};
use lab::cluster::Cluster;
use lab::config::Settings;
use lab::esp::exchange;
use lab::flow::Flow;
use lab::member::Product;
use lab::ping;
use lab::stage::{Stage, random_psk, start_peer};
use lab::topology::{Lab, addr};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Microseconds between two packets of a flow: 500 a second.
const INTERVAL_US: u64 = 2000;

/// Member A alone, with both connections of the peer up.
fn lone_member() -> Result<Stage> {
    let product = Product::built()?;
    let psk = random_psk()?;
    let lab = Lab::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    let peer = start_peer(&lab, &psk)?;
    let Cluster {
        members,
        outside,
        inside,
        lab,
    } = Cluster::prepare(lab, &product, &psk, &Settings::demo())?;
    let mut stage = Stage {
        members,
        peer,
        outside,
        inside,
        lab,
    };
    stage.members[0].start(&stage.lab.resources)?;
    stage.wait_active(0, Duration::from_secs(10))?;
    stage.connect()?;
    Ok(stage)
}

fn both_ways(stage: &Stage) -> Result<u64> {
    let one = ping::short(&stage.lab.host, addr::HOST_ONE, addr::SERVER_ONE, 10_000, 50)?;
    let two = ping::short(&stage.lab.server, addr::SERVER_TWO, addr::HOST_TWO, 10_000, 50)?;
    Ok(one.lost() + two.lost())
}

fn arrived(flow: &Flow, more: u64) -> Result<()> {
    let (_, so_far) = flow.so_far();
    wait_for(Duration::from_secs(20), Duration::from_millis(10), || {
        (flow.so_far().1 >= so_far + more).then_some(())
    })
    .context("the flow does not arrive")
}

/// ```text
///   peer ==== UDP both ways, 500/s ====> A      espalier stop --keep: the process ends
///   peer ==== UDP both ways, 500/s ====> (A)    the programs carry on
///   peer ==== UDP both ways, 500/s ====> A      its next life: no packet lost, no IKE_SA_INIT, no CREATE_CHILD_SA
///   peer <--- INFORMATIONAL ------------ A
///   peer ---- CREATE_CHILD_SA ---------> A
///   peer <--- CREATE_CHILD_SA ---------- A      no number twice
///   A is killed, a copy of the old state is laid out: not taken up
/// ```
#[test]
fn a_lone_member_is_restarted_under_traffic_without_a_packet_lost() -> Result<()> {
    let mut stage = lone_member()?;
    assert_eq!(both_ways(&stage)?, 0, "pings lost before the restart");
    let overflows = stage.peer_overflows()?;
    let state = stage.members[0].socket.with_extension("state");
    let lab = &stage.lab;
    let one = (&lab.host, addr::HOST_ONE);
    let inbound = Flow::start(one, (&lab.server, addr::SERVER_ONE), 7001, INTERVAL_US, 200)?;
    let two = (&lab.server, addr::SERVER_TWO);
    let outbound = Flow::start(two, (&lab.host, addr::HOST_TWO), 7002, INTERVAL_US, 200)?;
    arrived(&inbound, 500)?;
    arrived(&outbound, 500)?;

    let stopped = now_ns();
    let said = stage.members[0].espalier(&["stop", "--keep"])?;
    ensure!(said.contains("are kept"), "{said}");
    stage.members[0].wait_ended(Duration::from_secs(5))?;
    let copy = fs::read(&state).context("the state is kept in a file")?;
    // Nobody is there, and the tunnels go on.
    arrived(&inbound, 300)?;
    arrived(&outbound, 300)?;
    stage.members[0].start(&stage.lab.resources)?;
    stage.wait_active(0, Duration::from_secs(5))?;
    let events = stage.members[0].espalier(&["events"])?;
    ensure!(events.contains("taken_up"), "{events}");
    ensure!(!state.exists(), "the state is read once");
    // Longer than the programs may serve without an agent.
    arrived(&inbound, 6000)?;
    arrived(&outbound, 500)?;
    let (inbound, outbound) = (inbound.stop()?, outbound.stop()?);
    let overflows = stage.peer_overflows()? - overflows;
    assert_eq!(inbound.lost(), 0, "packets lost on their way in");
    let lost = outbound.lost();
    assert!(
        lost <= overflows,
        "{lost} packets lost on their way out, the peer dropped {overflows}"
    );
    assert_eq!((inbound.repeated(), outbound.repeated()), (0, 0), "packets twice");
    let count = |kind| stage.outside.read(|l| l.requests(kind, stopped, now_ns()));
    let begun = (count(exchange::IKE_SA_INIT), count(exchange::CREATE_CHILD_SA));
    assert_eq!(begun, (0, 0), "new IKE SAs, rekeys");

    stage.members[0]
        .espalier(&["liveness", "one"])
        .context("liveness")?;
    stage.members[0]
        .espalier(&["liveness", "two"])
        .context("liveness")?;
    stage.peer.rekey_child("one").context("the peer rekeys")?;
    stage.members[0].espalier(&["rekey", "two"]).context("A rekeys")?;
    assert_eq!(both_ways(&stage)?, 0, "pings lost after the rekeys");
    let faults = stage.outside.read(|l| l.message_id_faults());
    assert_eq!(faults, Vec::<String>::new());
    let twice = stage.outside.read(|l| l.duplicates());
    assert_eq!(twice, (0, 0), "(SPI, sequence number), (SPI, IV) twice");
    assert_eq!(stage.outside.lost(), 0, "packets that the recorder missed");

    stage.members[0].kill_agent()?;
    fs::write(&state, copy)?;
    stage.members[0].start(&stage.lab.resources)?;
    let events = stage.members[0].espalier(&["events"])?;
    ensure!(events.contains("not_taken_up"), "{events}");
    ensure!(events.contains("belong to another life"), "{events}");
    ensure!(!state.exists(), "what is refused is gone, too");
    Ok(())
}
