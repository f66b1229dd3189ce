//! Either side changes its address and goes on (RFC 4555). Needs root and strongSwan.

use anyhow::{Context, Result, bail, ensure};
use ike::{ChildConfig, Command, Connection, EventKind, Identity, Proposal, Retransmit};
use lab::duel::{GATEWAY, PEER, Ring, network};
use lab::ike_peer::NoKeys;
use lab::strongswan::Daemon;
use model::SecretBytes;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

const NEW: &str = "10.77.0.3";
/// The gateway's second address.
const SECOND: &str = "10.77.0.4";

fn swanctl() -> String {
    format!(
        "connections {{
  mobile {{
    version = 2
    remote_addrs = {GATEWAY},{SECOND}
    proposals = aes128gcm16-prfsha256-x25519
    mobike = yes
    local {{
      auth = psk
      id = peer.example
    }}
    remote {{
      auth = psk
      id = gw.example
    }}
    children {{
      mobile {{
        local_ts = 10.1.0.0/24
        remote_ts = 10.2.0.0/24
        esp_proposals = aes128gcm16
      }}
    }}
  }}
}}
secrets {{
  ike-mobile {{
    id-1 = peer.example
    id-2 = gw.example
    secret = \"a shared secret\"
  }}
}}
"
    )
}

fn connection() -> Result<Connection> {
    let psk = SecretBytes::new(b"a shared secret".to_vec());
    let mut connection = Connection::new("mobile", GATEWAY.parse()?, Identity::parse("gw.example"), psk);
    connection.remote_id = Some(Identity::parse("peer.example"));
    connection.ike_proposals = vec![Proposal::parse_ike("aes128gcm16-prfsha256-x25519")?];
    let (ours, theirs) = (vec![network("10.2.0.0/24")?], vec![network("10.1.0.0/24")?]);
    let mut child = ChildConfig::new("mobile", ours, theirs);
    child.esp_proposals = vec![Proposal::parse_esp("aes128gcm16")?];
    connection.children = vec![child];
    Ok(connection)
}

#[test]
fn the_peer_moves_to_another_address_and_its_child_sa_with_it() -> Result<()> {
    let ring = Ring::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    let gateway = ring.engine(vec![connection()?], NoKeys)?;
    ring.peer.sysctl(&["net.ipv4.conf.all.promote_secondaries=1"])?;
    let peer = ring.charon(&swanctl(), Daemon::default())?;
    if let Err(error) = peer.initiate("mobile") {
        bail!("{error:#}\n{}\n{}", gateway.story(), peer.log());
    }
    gateway.child("mobile", true)?;
    ensure!(peer.log().contains("MOBIKE"), "not agreed on:\n{}", peer.log());
    ring.peer.ip(&format!(
        "addr add {NEW}/24 dev eth0\naddr del {PEER}/24 dev eth0\nroute replace default via {GATEWAY}"
    ))?;
    let new: IpAddr = NEW.parse()?;
    // Any message of the peer's from the new address moves it already, as behind a NAT; then it says so itself.
    let moved = gateway.wait("the move of the Child SA", |seen| {
        let all = seen.children.values().all(|child| child.remote.ip() == new);
        (all && gateway.story().contains("(MOBIKE)")).then_some(())
    });
    if let Err(error) = moved {
        bail!("{error:#}\n{}", peer.log());
    }
    let text = gateway.story();
    ensure!(text.contains(NEW), "{text}");
    // Both sides go on with the same IKE SA; our check of the new address was answered.
    let before = gateway.status().first().map(|sa| sa.next_receive);
    peer.rekey_child("mobile")?;
    gateway.wait("a rekey from the new address", |seen| {
        let sa = seen.ike_sas.first()?;
        (Some(sa.next_receive) > before && sa.remote.ip() == new && sa.phase == "established").then_some(())
    })?;
    ensure!(
        gateway.status().first().is_some_and(|sa| !sa.outstanding),
        "the check of the new address is unanswered: {}",
        gateway.story()
    );
    Ok(())
}

/// ```text
///   gateway .1 ---- IKE_SA_INIT, IKE_AUTH {N(MOBIKE_SUPPORTED), N(ADDITIONAL_IP4_ADDRESS .4)} ----> strongSwan
///   the first address goes; a liveness check finds no answer, and is repeated from the second one
///   gateway .4 ---- INFORMATIONAL {N(UPDATE_SA_ADDRESSES), N(NAT_DETECTION_*)} ----> strongSwan
///   gateway .4 ---- CREATE_CHILD_SA {N(REKEY_SA)} ----> strongSwan     ESP from the new address
///   the first address is back, and the agent says that it is to be used
/// ```
#[test]
fn the_gateway_moves_to_its_second_address_and_back() -> Result<()> {
    let ring = Ring::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    ring.gateway
        .sysctl(&["net.ipv4.conf.all.promote_secondaries=1"])?;
    ring.gateway.ip(&format!("addr add {SECOND}/24 dev eth0"))?;
    let (first, second): (IpAddr, IpAddr) = (GATEWAY.parse()?, SECOND.parse()?);
    let mut connection = connection()?;
    connection.remotes = vec![PEER.parse()?];
    connection.further_locals = vec![second];
    connection.dpd_delay = Some(Duration::from_millis(500));
    connection.retransmit = Retransmit {
        initial: Duration::from_millis(200),
        factor_percent: 150,
        tries: 9,
    };
    let peer = ring.charon(&swanctl(), Daemon::default())?;
    let gateway = ring.engine(vec![connection], NoKeys)?;
    gateway.command(Command::Initiate {
        connection: "mobile".into(),
    })?;
    if let Err(error) = gateway.child("mobile", true) {
        bail!("{error:#}\n{}", peer.log());
    }
    ensure!(peer.log().contains("MOBIKE"), "not agreed on:\n{}", peer.log());
    let spi = gateway.status().first().map(|sa| sa.spi);
    let at = |address: IpAddr| {
        gateway.wait(&format!("a Child SA from {address}"), |seen| {
            let sa = seen.ike_sas.first()?;
            let mut children = seen.children.values();
            let all = children.len() == 1 && children.all(|child| child.local.ip() == address);
            (all && sa.local.ip() == address && !sa.outstanding).then_some(())
        })
    };
    at(first)?;
    ring.gateway.ip(&format!("addr del {GATEWAY}/24 dev eth0"))?;
    if let Err(error) = at(second) {
        bail!("{error:#}\n{}", peer.log());
    }
    let moved = gateway.event(EventKind::PathMoved)?;
    ensure!(moved.contains(GATEWAY) && moved.contains(SECOND), "{moved}");
    let sas = peer.swanctl(&["--list-sas"])?;
    ensure!(
        sas.contains(SECOND) && sas.matches("INSTALLED").count() == 1,
        "{sas}"
    );

    ring.gateway.ip(&format!("addr add {GATEWAY}/24 dev eth0"))?;
    let spi = spi.context("an IKE SA")?;
    gateway.command(Command::MoveLocal { spi, local: first })?;
    if let Err(error) = at(first) {
        bail!("{error:#}\n{}", peer.log());
    }
    let still = gateway.status().first().map(|sa| sa.spi);
    ensure!(still == Some(spi), "it is another IKE SA: {}", gateway.story());
    Ok(())
}
