//! The engine and strongSwan agree with every family of algorithms, whoever begins, and rekey both SAs; long messages go in
//! fragments. Without a data plane: one charon and one engine, two namespaces, a cable.
//!
//! Needs root and strongSwan.

use anyhow::{Context, Result, ensure};
use ike::{
    ChildConfig, Childless, Command, Connection, EndpointConfig, EngineConfig, Identity, Ppk, Proposal,
};
use lab::clock::wait_for;
use lab::ike_peer::{IkePeer, Seen};
use lab::netns::Netns;
use lab::resources::Resources;
use lab::strongswan::{self, Charon, swanctl_conf};
use lab::tshark::{self, Capture, Message};
use model::{SecretBytes, TrafficSelector};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

const OURS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Another gateway of ours.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
const THEIRS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const PSK: &str = "a key that both have";

/// (connection, IKE, ESP with perfect forward secrecy in rekeys).
const ROWS: [(&str, &str, &str); 11] = [
    ("s0", "aes128gcm16-prfsha256-x25519", "aes128gcm16-x25519"),
    ("s1", "aes256gcm16-prfsha384-ecp384", "aes256gcm16-ecp384"),
    (
        "s2",
        "chacha20poly1305-prfsha512-x25519",
        "chacha20poly1305-x25519",
    ),
    ("s3", "aes128-sha256-modp2048", "aes128gcm16-modp2048"),
    ("s4", "aes256-sha384-modp3072", "aes256gcm16-modp3072"),
    ("s5", "aes256-sha512-modp4096", "aes256gcm16-modp4096"),
    ("s6", "aes256-sha512-ecp521", "aes256gcm16-ecp521"),
    ("s7", "aes128-sha256-ecp256", "aes128gcm16-ecp256"),
    (
        "s8",
        "aes256gcm16-prfsha256-modp3072",
        "chacha20poly1305-modp2048",
    ),
    ("s9", "aes256-sha256-modp2048", "aes256-sha256-modp2048"),
    ("s10", "aes128gcm16-prfsha256-x25519", "aes128-sha256-x25519"),
];

struct Stage {
    engine: IkePeer,
    charon: Charon,
    ours: Netns,
    // Last: dropped last.
    resources: Resources,
}

fn network(third: u8) -> TrafficSelector {
    TrafficSelector {
        first: Ipv4Addr::new(10, 66, third, 0).into(),
        last: Ipv4Addr::new(10, 66, third, 255).into(),
        protocol: 0,
        first_port: 0,
        last_port: u16::MAX,
    }
}

fn connection(name: &str, ike: &str, esp: &str) -> Result<Connection> {
    let psk = SecretBytes::new(PSK.as_bytes().to_vec());
    let id = Identity::parse(&format!("gw-{name}.example"));
    let mut connection = Connection::new(name, OURS.into(), id, psk);
    connection.remotes = vec![THEIRS.into()];
    connection.remote_id = Some(Identity::parse(&format!("peer-{name}.example")));
    connection.ike_proposals = vec![Proposal::parse_ike(ike)?];
    connection.dpd_delay = None;
    let mut child = ChildConfig::new(name, vec![network(1)], vec![network(2)]);
    child.esp_proposals = vec![Proposal::parse_esp(esp)?];
    connection.children = vec![child];
    Ok(connection)
}

fn stage(
    adjust: impl Fn(&mut Connection),
    charon_settings: &[&str],
    further: impl Fn(String) -> String,
) -> Result<Stage> {
    let resources = Resources::new()?;
    let netns = |what: &str| Netns::create(&resources, what, &[]);
    let (ours, theirs) = (netns("ike")?, netns("peer")?);
    ours.cable("wire", &theirs, "wire")?;
    ours.ip(&format!("addr add {OURS}/24 dev wire\nlink set wire up"))?;
    theirs.ip(&format!(
        "addr add {THEIRS}/24 dev wire\nlink set wire up\naddr add 10.66.2.1/32 dev lo"
    ))?;
    let peer = |(name, ike, esp): (&'static str, &'static str, &'static str)| strongswan::Connection {
        name,
        local: THEIRS.to_string(),
        remote: OURS.to_string(),
        local_id: format!("peer-{name}.example"),
        remote_id: format!("gw-{name}.example"),
        proposal: ike,
        esp_proposal: esp,
        local_ts: "10.66.2.0/24",
        remote_ts: "10.66.1.0/24",
        child_rekey: "0",
        restart: false,
    };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&resources.id);
    let conf = further(swanctl_conf(&ROWS.map(peer), PSK));
    let charon = Charon::start_with(
        &theirs,
        &folder,
        &resources.folder,
        &resources,
        &conf,
        charon_settings,
    )?;
    let mut connections = Vec::new();
    for (name, ike, esp) in ROWS {
        let mut connection = connection(name, ike, esp)?;
        adjust(&mut connection);
        connections.push(connection);
    }
    let engine = EngineConfig {
        connections,
        endpoint: EndpointConfig::new(SecretBytes::new(vec![7; 32])),
    };
    Ok(Stage {
        engine: IkePeer::start(&ours, OURS, engine)?,
        charon,
        ours,
        resources,
    })
}

impl Stage {
    /// One IKE SA and one Child SA on our side; gives their SPIs.
    fn up(&self, name: &str, what: &str) -> Result<(model::IkeSpi, model::EspSpi)> {
        self.engine.wait(what, |seen| only(seen, name))
    }

    /// Something else than before.
    fn other(
        &self,
        name: &str,
        what: &str,
        changed: impl Fn((model::IkeSpi, model::EspSpi)) -> bool,
    ) -> Result<(model::IkeSpi, model::EspSpi)> {
        self.engine
            .wait(what, |seen| only(seen, name).filter(|now| changed(*now)))
    }

    /// The peer has both SAs, too (after a rekey it may still be deleting the old ones).
    fn peer_has(&self, name: &str) -> Result<()> {
        let up = wait_for(Duration::from_secs(5), Duration::from_millis(20), || {
            let list = self.charon.swanctl(&["--list-sas"]).ok()?;
            let up = list.contains(&format!("{name}: #")) && list.contains("ESTABLISHED");
            (up && list.contains("INSTALLED")).then_some(())
        });
        up.with_context(|| format!("the peer's list: {:?}", self.charon.swanctl(&["--list-sas"])))
    }

    fn down(&self, name: &str) -> Result<()> {
        let connection = name.to_owned();
        self.engine.command(Command::Terminate { connection })?;
        self.engine.wait("the end", |seen| {
            (seen.ike_sas.is_empty() && seen.children.is_empty()).then_some(())
        })?;
        let gone = wait_for(Duration::from_secs(5), Duration::from_millis(20), || {
            let list = self.charon.swanctl(&["--list-sas"]).ok()?;
            list.trim().is_empty().then_some(())
        });
        gone.context("the peer still has an IKE SA")
    }
}

fn only(seen: &Seen, name: &str) -> Option<(model::IkeSpi, model::EspSpi)> {
    let established = seen.established(name);
    let [sa] = established.as_slice() else {
        return None;
    };
    // A replaced IKE SA may still be there, but has no children.
    let children: Vec<_> = sa
        .children
        .iter()
        .filter(|child| child.phase == "installed")
        .collect();
    match children.as_slice() {
        [child] if seen.children.len() == 1 => Some((sa.spi, child.spi_in)),
        _ => None,
    }
}

#[test]
fn every_family_of_algorithms_works_in_both_roles_and_is_rekeyed() -> Result<()> {
    let stage = stage(|_| {}, &[], |conf| conf)?;
    for (name, ike, esp) in ROWS {
        let context = |role: &str| format!("{name}: {ike}, {esp}, {role}");
        let connection = name.to_owned();
        stage.engine.command(Command::Initiate { connection })?;
        let (spi, spi_in) = stage
            .up(name, "our handshake")
            .with_context(|| context("we begin"))?;
        stage.peer_has(name)?;
        stage.engine.command(Command::RekeyChild { spi_in })?;
        stage
            .other(name, "our rekey of the Child SA", |now| now.1 != spi_in)
            .with_context(|| context("we begin"))?;
        stage.engine.command(Command::RekeyIke { spi })?;
        stage
            .other(name, "our rekey of the IKE SA", |now| now.0 != spi)
            .with_context(|| context("we begin"))?;
        stage.down(name).with_context(|| context("we begin"))?;

        stage
            .charon
            .initiate(name)
            .with_context(|| context("the peer begins"))?;
        let (spi, spi_in) = stage
            .up(name, "the peer's handshake")
            .with_context(|| context("the peer begins"))?;
        stage.charon.rekey_child(name)?;
        stage
            .other(name, "the peer's rekey of the Child SA", |now| now.1 != spi_in)
            .with_context(|| context("the peer begins"))?;
        stage.charon.swanctl(&["--rekey", "--ike", name])?;
        stage
            .other(name, "the peer's rekey of the IKE SA", |now| now.0 != spi)
            .with_context(|| context("the peer begins"))?;
        stage.peer_has(name)?;
        stage.down(name).with_context(|| context("the peer begins"))?;
    }
    let seen = stage.engine.seen();
    ensure!(seen.warnings.is_empty(), "{:#?}", seen.warnings);
    ensure!(
        seen.fragments == (0, 0),
        "nothing was too long: {:?}",
        seen.fragments
    );
    Ok(())
}

/// tshark reads every message of ours and of charon's, with the keys that charon has derived, and has nothing to complain of.
#[test]
fn captures_taken_apart_by_tshark_agree() -> Result<()> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("tshark-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let stage = stage(|_| {}, &[&tshark::keys_log(&folder)], |conf| conf)?;
    let capture = Capture::start(&stage.ours, "wire", &folder, &stage.resources)?;
    let rows = [ROWS[0], ROWS[1], ROWS[3], ROWS[4]];
    let mut begun = Vec::new();
    for (name, ..) in rows {
        let connection = name.to_owned();
        stage.engine.command(Command::Initiate { connection })?;
        let (spi, spi_in) = stage.up(name, "our handshake")?;
        stage.engine.command(Command::RekeyChild { spi_in })?;
        let (_, spi_in) = stage.other(name, "our rekey of the Child SA", |now| now.1 != spi_in)?;
        stage.charon.rekey_child(name)?;
        stage.other(name, "the peer's rekey of the Child SA", |now| now.1 != spi_in)?;
        stage.engine.command(Command::RekeyIke { spi })?;
        let (second, _) = stage.other(name, "our rekey of the IKE SA", |now| now.0 != spi)?;
        stage.peer_has(name)?;
        stage.down(name)?;
        begun.extend([spi, second].map(|spi| format!("{:016x}", spi.0)));
    }
    // The last one is the answer to the last IKE SA's Delete.
    let last = begun.last().context("IKE SAs")?.clone();
    let ended = |all: &[Message]| all.last().is_some_and(|m| m.response && m.spis.0 == last);
    let messages = capture.messages(&folder, ended)?;
    let requests = |of: &dyn Fn(&Message) -> bool| {
        let of_these = messages.iter().filter(|m| !m.response && of(m));
        // A repeated one is the same.
        let all: BTreeSet<_> = of_these
            .map(|m| (&m.spis, m.id, m.exchange, &m.payloads))
            .collect();
        all.len()
    };
    const REKEY_SA: u16 = 16393;
    let (sa, ke, id_i, id_r, auth, nonce, delete, ts_i, ts_r, sk) = (33, 34, 35, 36, 39, 40, 42, 44, 45, 46);
    for m in &messages {
        ensure!(m.complaints.is_empty(), "tshark complains: {m:?}");
        ensure!(begun.contains(&m.spis.0), "not one of our IKE SAs: {m:?}");
        let expected: &[u8] = match (m.exchange, m.response) {
            (34, _) => &[sa, ke, nonce],
            (35, false) => &[sk, id_i, auth, sa, ts_i, ts_r],
            (35, true) => &[sk, id_r, auth, sa, ts_i, ts_r],
            // Of a Child SA or of an IKE SA.
            (36, _) => &[sk, sa, nonce, ke],
            _ => &[sk],
        };
        ensure!(
            expected.iter().all(|payload| m.payloads.contains(payload)),
            "payloads {expected:?} are not in {m:?}"
        );
    }
    let rekeys = requests(&|m| m.notifies.contains(&REKEY_SA) && m.payloads.contains(&ts_i));
    let ike_rekeys = requests(&|m| m.exchange == 36 && !m.payloads.contains(&ts_i));
    // Of the old Child SA after each rekey of it, of the old IKE SA, and of the last one.
    let deletes = requests(&|m| m.payloads.contains(&delete));
    println!(
        "{} messages; {rekeys} rekeys of Child SAs, {ike_rekeys} of IKE SAs, {deletes} Deletes",
        messages.len()
    );
    ensure!(
        (rekeys, ike_rekeys, deletes) == (2 * rows.len(), rows.len(), 4 * rows.len()),
        "{messages:#?}"
    );
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

#[test]
fn both_sides_cut_long_messages_and_put_them_together() -> Result<()> {
    let small = |connection: &mut Connection| connection.fragment_size = 576;
    let stage = stage(small, &["fragment_size = 600"], |conf| conf)?;
    // A public value of 512 octets makes CREATE_CHILD_SA too long.
    let (name, ..) = ROWS[5];
    for ours in [true, false] {
        let connection = name.to_owned();
        stage.engine.command(Command::Initiate { connection })?;
        let (spi, spi_in) = stage.up(name, "the handshake")?;
        let before = stage.engine.seen().fragments;
        if ours {
            stage.engine.command(Command::RekeyChild { spi_in })?;
        } else {
            stage.charon.rekey_child(name)?;
        }
        stage.other(name, "the rekey of the Child SA", |now| now.1 != spi_in)?;
        if ours {
            stage.engine.command(Command::RekeyIke { spi })?;
        } else {
            stage.charon.swanctl(&["--rekey", "--ike", name])?;
        }
        stage.other(name, "the rekey of the IKE SA", |now| now.0 != spi)?;
        let after = stage.engine.seen().fragments;
        ensure!(after.0 >= before.0 + 4, "fragments sent: {before:?}, {after:?}");
        ensure!(
            after.1 >= before.1 + 4,
            "fragments received: {before:?}, {after:?}"
        );
        stage.down(name)?;
    }
    let seen = stage.engine.seen();
    ensure!(seen.warnings.is_empty(), "{:#?}", seen.warnings);
    Ok(())
}

/// RFC 8784, in both roles: required by both, and known to the peer alone.
#[test]
fn post_quantum_preshared_keys_go_into_the_keys_of_both_sides() -> Result<()> {
    let known = |connection: &mut Connection| {
        connection.ppk = Some(Ppk {
            id: "quantum".to_owned(),
            secret: SecretBytes::new(b"a key that no quantum computer finds".to_vec()),
            required: connection.name != ROWS[1].0,
        });
        if connection.name == ROWS[2].0 {
            connection.ppk = None;
        }
    };
    let stage = stage(known, &[], |conf| {
        let conf = conf.replace(
            "    mobike = no\n",
            "    mobike = no\n    ppk_id = quantum\n    ppk_required = no\n",
        );
        let secret =
            "  ppk-quantum {\n    id = quantum\n    secret = \"a key that no quantum computer finds\"\n  }\n";
        conf.replacen("secrets {\n", &format!("secrets {{\n{secret}"), 1)
    })?;
    for (name, ..) in &ROWS[..3] {
        for ours in [true, false] {
            if ours {
                let connection = (*name).to_owned();
                stage.engine.command(Command::Initiate { connection })?;
            } else {
                stage.charon.initiate(name)?;
            }
            let (spi, spi_in) = stage
                .up(name, "the handshake")
                .with_context(|| format!("{name}, ours {ours}"))?;
            // Only equal keys on both sides bring a rekey about.
            stage.engine.command(Command::RekeyChild { spi_in })?;
            stage.other(name, "the rekey of the Child SA", |now| now.1 != spi_in)?;
            stage.charon.swanctl(&["--rekey", "--ike", name])?;
            stage.other(name, "the rekey of the IKE SA", |now| now.0 != spi)?;
            stage.down(name)?;
        }
    }
    let log = stage.charon.log();
    ensure!(
        log.contains("using PPK for PPK_ID 'quantum'"),
        "the peer did not use it"
    );
    ensure!(
        stage.engine.seen().warnings.is_empty(),
        "{:#?}",
        stage.engine.seen().warnings
    );
    Ok(())
}

/// RFC 6023, in both roles: neither side brings a Child SA along in IKE_AUTH, and each has keys of its own.
#[test]
fn ike_sas_come_up_without_a_child_where_both_sides_insist() -> Result<()> {
    let stage = stage(
        |connection| connection.childless = Childless::Force,
        &[],
        |conf| conf.replace("    mobike = no\n", "    mobike = no\n    childless = force\n"),
    )?;
    for (name, ..) in &ROWS[..2] {
        for ours in [true, false] {
            if ours {
                let connection = (*name).to_owned();
                stage.engine.command(Command::Initiate { connection })?;
            } else {
                stage.charon.initiate(name)?;
            }
            let (_, spi_in) = stage
                .up(name, "the handshake")
                .with_context(|| format!("{name}, ours {ours}"))?;
            stage.engine.command(Command::RekeyChild { spi_in })?;
            stage.other(name, "the rekey of the Child SA", |now| now.1 != spi_in)?;
            stage.down(name)?;
        }
    }
    let log = stage.charon.log();
    let of_auth: Vec<_> = log.lines().filter(|line| line.contains("IKE_AUTH re")).collect();
    ensure!(of_auth.len() >= 8, "the peer does not log its messages");
    ensure!(
        of_auth.iter().all(|line| !line.contains("TSi")),
        "a Child SA came along: {of_auth:#?}"
    );
    ensure!(log.contains("CHDLESS_SUP"), "we did not say that we can");
    let seen = stage.engine.seen();
    ensure!(seen.warnings.is_empty(), "{:#?}", seen.warnings);
    Ok(())
}

/// RFC 5685 with strongSwan as the client: sent elsewhere by the answer to its first message, and while it has an IKE SA.
#[test]
fn a_client_goes_to_the_gateway_that_it_is_sent_to() -> Result<()> {
    let (new, old) = (ROWS[0].0, ROWS[1].0);
    let sends = |connection: &mut Connection| {
        connection.redirect = (connection.name == new).then_some(ELSEWHERE.into());
    };
    let stage = stage(sends, &[], |conf| conf)?;
    stage.ours.ip(&format!("addr add {ELSEWHERE}/24 dev wire"))?;
    let mut connections = Vec::new();
    for (name, ike, esp) in &ROWS[..2] {
        let mut connection = connection(name, ike, esp)?;
        connection.local = ELSEWHERE.into();
        connections.push(connection);
    }
    let config = EngineConfig {
        connections,
        endpoint: EndpointConfig::new(SecretBytes::new(vec![8; 32])),
    };
    let elsewhere = IkePeer::start(&stage.ours, ELSEWHERE, config)?;
    let arrived = |name: &str| {
        elsewhere.wait(&format!("{name} at the other gateway"), |seen| {
            let established = seen.established(name);
            let [sa] = established.as_slice() else {
                return None;
            };
            sa.children
                .iter()
                .any(|child| child.phase == "installed")
                .then_some(())
        })
    };
    stage.charon.initiate(new)?;
    arrived(new)?;
    ensure!(
        stage.engine.seen().ike_sas.is_empty(),
        "the first gateway has an IKE SA"
    );
    stage.charon.initiate(old)?;
    let (spi, _) = stage.up(old, "the handshake")?;
    stage.engine.command(Command::Redirect {
        spi,
        to: ELSEWHERE.into(),
    })?;
    arrived(old)?;
    stage.engine.wait("the end of the old IKE SA", |seen| {
        let gone = seen.established(old).is_empty() && seen.children.is_empty();
        gone.then_some(())
    })?;
    ensure!(
        elsewhere.seen().warnings.is_empty(),
        "{:#?}",
        elsewhere.seen().warnings
    );
    Ok(())
}
