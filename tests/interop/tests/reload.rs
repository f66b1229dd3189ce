//! A changed configuration is taken while packets flow: what did not change is not touched, and a mistake changes nothing.
//!
//! Needs root, strongSwan, and the built product: `cargo xtask test` sees to all of that.

use anyhow::{Context, Result, ensure};
use lab::clock::{now_ns, wait_for};
use lab::esp::exchange;
use lab::flow::Flow;
use lab::member::{Member, Product};
use lab::ping;
use lab::stage::{Stage, random_psk, start_peer};
use lab::topology::{Lab, addr};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Microseconds between two packets of the flow: 500 a second.
const INTERVAL_US: u64 = 2000;
const LIMIT: Duration = Duration::from_secs(20);

/// The text of a member's file without one connection.
fn without(text: &str, connection: &str) -> String {
    let parts: Vec<&str> = text.split("\n[[connections]]\n").collect();
    let name = format!("name = \"{connection}\"");
    let kept = parts.into_iter().filter(|part| !part.starts_with(&name));
    kept.collect::<Vec<_>>().join("\n[[connections]]\n")
}

fn reload(member: &Member, arguments: &[&str]) -> Result<Value> {
    let text = member.espalier(&[&["reload", "--json"], arguments].concat())?;
    serde_json::from_str(&text).context("espalier reload --json")
}

/// Inbound SPIs of a connection's Child SAs on a member.
fn spis(member: &Member, connection: &str) -> Result<Vec<String>> {
    let sas = member.sas()?;
    let all = sas.as_array().context("a list")?.iter();
    let of_it = all.filter(|sa| sa["connection"] == connection);
    let children = of_it.flat_map(|sa| sa["children"].as_array().cloned().unwrap_or_default());
    let text = |child: Value| child["spi_in"].as_str().unwrap_or_default().to_owned();
    Ok(children.map(text).collect())
}

fn until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_for(LIMIT, Duration::from_millis(20), || {
        is_so().unwrap_or(false).then_some(())
    })
    .with_context(|| format!("not within {LIMIT:?}: {what}"))
}

/// ```text
///   peer ==== UDP, 500/s, connection one ====> A (B in sync)
///   a file with a mistake: refused, nothing changes
///   a look: what would change, nothing does
///   two goes (B reloads, then A): its IKE SA is deleted on both members and at the peer
///   two comes back: A initiates it
///   one: no packet lost, the same SAs, no IKE_SA_INIT, no CREATE_CHILD_SA
/// ```
#[test]
fn a_reload_member_by_member_touches_nothing_but_what_changed() -> Result<()> {
    let product = Product::built()?;
    let psk = random_psk()?;
    let lab = Lab::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    let peer = start_peer(&lab, &psk)?;
    let stage = Stage::up(lab, peer, &product, &psk)?;
    stage.connect()?;
    let (a, b) = (&stage.members[0], &stage.members[1]);
    let lab = &stage.lab;
    let (host, server) = ((&lab.host, addr::HOST_ONE), (&lab.server, addr::SERVER_ONE));
    let flow = Flow::start(host, server, 7001, INTERVAL_US, 200)?;
    let before = spis(a, "one")?;
    ensure!(before.len() == 1, "{before:?}");
    let texts = [a, b].map(|m| fs::read_to_string(&m.config).unwrap_or_default());
    let since = now_ns();

    fs::write(
        &a.config,
        texts[0].replace(
            "remote_ts = [\"10.10.1.0/24\"]",
            "remote_ts = [\"10.10.1.0/240\"]",
        ),
    )?;
    let refused = format!("{:#}", reload(a, &[]).err().context("a mistake was taken")?);
    ensure!(
        refused.contains("10.10.1.0/240") && refused.contains("espalier.toml:"),
        "{refused}"
    );
    ensure!(a.log_text().contains("the configuration stays as it was"));

    for (member, text) in [a, b].into_iter().zip(&texts) {
        let less =
            without(text, "two").replace("start = \"passive\"", "dpd_delay = \"7s\"\nstart = \"passive\"");
        ensure!(less != without(text, "two") && less != *text);
        fs::write(&member.config, less)?;
    }
    let look = reload(a, &["--dry-run"])?;
    ensure!(
        look["removed"] == serde_json::json!(["connections.two"]),
        "{look}"
    );
    let changed = look["changed"].as_array().context("a list")?;
    let dpd = changed.iter().find(|c| c["path"] == "connections.one.dpd_delay");
    ensure!(
        dpd.is_some_and(|c| c["effect"] == "at_once" && c["new"] == "\"7s\""),
        "{look}"
    );
    ensure!(spis(a, "two")?.len() == 1, "a look changes nothing");

    // The standby first: until the owner follows, the two say what differs, and stay in sync.
    reload(b, &[])?;
    until("A hears that B has another configuration", || {
        let status = a.status()?;
        Ok(status["members"][0]["differs"]
            .as_array()
            .is_some_and(|d| !d.is_empty()))
    })?;
    ensure!(
        spis(b, "two")?.len() == 1,
        "the standby mirrors what the owner still has"
    );
    stage.wait_in_sync(0, Duration::from_secs(1))?;
    let done = reload(a, &[])?;
    ensure!(
        done["text"].as_str().is_some_and(|t| t.contains("1 removed")),
        "{done}"
    );
    until("connection two is gone everywhere", || {
        let peer = stage.peer.swanctl(&["--list-sas"])?;
        Ok(spis(a, "two")?.is_empty() && spis(b, "two")?.is_empty() && !peer.contains("two: #"))
    })?;
    until("the members agree again", || {
        let differs = |m: &Member| -> Result<usize> {
            Ok(m.status()?["members"][0]["differs"]
                .as_array()
                .map_or(9, Vec::len))
        };
        Ok(differs(a)? + differs(b)? == 0)
    })?;
    ensure!(reload(a, &[])?["text"] == "nothing has changed");

    for (member, text) in [b, a].into_iter().zip([&texts[1], &texts[0]]) {
        fs::write(&member.config, text)?;
        reload(member, &[])?;
    }
    until("connection two is back", || {
        Ok(spis(a, "two")?.len() == 1 && spis(b, "two")?.len() == 1)
    })?;
    let pings = ping::short(&lab.server, addr::SERVER_TWO, addr::HOST_TWO, 20_000, 20)?;
    ensure!(pings.lost() == 0, "{} pings lost on connection two", pings.lost());

    stage.wait_in_sync(0, Duration::from_secs(1))?;
    ensure!(spis(a, "one")? == before, "connection one has other SAs");
    ensure!(stage.members[0].status()?["epoch"] == 1, "there was a takeover");
    let result = flow.stop()?;
    ensure!(
        result.lost() == 0,
        "{} packets lost on connection one",
        result.lost()
    );
    let count = |kind| stage.outside.read(|l| l.requests(kind, since, now_ns()));
    // One handshake: that of connection two when it came back.
    ensure!(
        count(exchange::IKE_SA_INIT) == 1,
        "{} IKE_SA_INIT",
        count(exchange::IKE_SA_INIT)
    );
    ensure!(count(exchange::CREATE_CHILD_SA) == 0, "a rekey");
    let twice = stage.outside.read(|l| l.duplicates());
    ensure!(twice == (0, 0), "{twice:?}");
    Ok(())
}
