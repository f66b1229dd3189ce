//! strongSwan changes its address and goes on (RFC 4555). Needs root and strongSwan.

mod duel;

use anyhow::{Result, bail, ensure};
use duel::*;
use ike::{ChildConfig, Connection, Identity, Proposal};
use lab::strongswan::Daemon;
use model::SecretBytes;
use std::net::IpAddr;
use std::path::Path;

const NEW: &str = "10.77.0.3";

#[test]
fn the_peer_moves_to_another_address_and_its_child_sa_with_it() -> Result<()> {
    let ring = Ring::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    let psk = SecretBytes::new(b"a shared secret".to_vec());
    let mut connection = Connection::new("mobile", GATEWAY.parse()?, Identity::parse("gw.example"), psk);
    connection.remote_id = Some(Identity::parse("peer.example"));
    connection.ike_proposals = vec![Proposal::parse_ike("aes128gcm16-prfsha256-x25519")?];
    let mut child = ChildConfig::new(
        "mobile",
        vec![network("10.2.0.0/24")],
        vec![network("10.1.0.0/24")],
    );
    child.esp_proposals = vec![Proposal::parse_esp("aes128gcm16")?];
    connection.children = vec![child];
    let gateway = Gateway::start(&ring.gateway, vec![connection], Default::default())?;
    let conf = format!(
        "connections {{
  mobile {{
    version = 2
    remote_addrs = {GATEWAY}
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
    );
    ring.peer.sysctl(&["net.ipv4.conf.all.promote_secondaries=1"])?;
    let peer = ring.charon(&conf, Daemon::default())?;
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
    let moved = gateway.wait("the move of the Child SA", || {
        let children = gateway.children();
        let all = children.iter().all(|child| child.remote.ip() == new);
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
    gateway.wait("a rekey from the new address", || {
        let sa = gateway.status().into_iter().next()?;
        (Some(sa.next_receive) > before && sa.remote.ip() == new && sa.phase == "established").then_some(())
    })?;
    ensure!(
        gateway.status().first().is_some_and(|sa| !sa.outstanding),
        "the check of the new address is unanswered: {}",
        gateway.story()
    );
    Ok(())
}
