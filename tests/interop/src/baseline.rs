//! strongSwan's user-space data path in the cluster's place, with the same peer: what espalier is measured against.

use crate::strongswan::{Charon, Connection, Daemon, swanctl_conf};
use crate::topology::{Lab, addr};
use anyhow::Result;

/// The two connections of peer site one, as the peer sees them.
pub fn peer_connections() -> [Connection; 2] {
    [
        Connection {
            name: "one",
            local: addr::PEER.to_string(),
            remote: addr::CLUSTER_OUTSIDE.to_string(),
            local_id: "peer-one.example".into(),
            remote_id: "gw-one.example".into(),
            proposal: "chacha20poly1305-prfsha256-x25519",
            esp_proposal: "chacha20poly1305",
            local_ts: "10.10.1.0/24",
            remote_ts: "10.20.1.0/24",
            child_rekey: "0",
            restart: false,
        },
        Connection {
            name: "two",
            local: addr::PEER.to_string(),
            remote: addr::CLUSTER_OUTSIDE.to_string(),
            local_id: "peer-two.example".into(),
            remote_id: "gw-two.example".into(),
            proposal: "aes256gcm16-prfsha256-x25519",
            esp_proposal: "aes256gcm16",
            local_ts: "10.10.2.0/24",
            remote_ts: "10.20.2.0/24",
            child_rekey: "0",
            restart: false,
        },
    ]
}

/// The other side of a connection.
pub fn mirrored(c: &Connection) -> Connection {
    Connection {
        name: c.name,
        local: c.remote.clone(),
        remote: c.local.clone(),
        local_id: c.remote_id.clone(),
        remote_id: c.local_id.clone(),
        proposal: c.proposal,
        esp_proposal: c.esp_proposal,
        local_ts: c.remote_ts,
        remote_ts: c.local_ts,
        child_rekey: c.child_rekey,
        restart: c.restart,
    }
}

/// Starts charon in the cluster's place; give the address back with [`stop`].
pub fn start(lab: &Lab, psk: &str) -> Result<Charon> {
    let connections = peer_connections().map(|c| mirrored(&c));
    start_with(lab, &swanctl_conf(&connections, psk), Daemon::default())
}

/// The same with other connections and another daemon.
pub fn start_with(lab: &Lab, swanctl_conf: &str, daemon: Daemon<'_>) -> Result<Charon> {
    lab.baseline.ip(&format!(
        "addr add {}/24 dev outside\naddr add {}/24 dev inside\naddr add 10.20.2.1/32 dev lo\nroute add default via {}\nroute add 10.20.2.0/24 via {}",
        addr::CLUSTER_OUTSIDE,
        addr::CLUSTER_INSIDE,
        addr::ROUTER_OUTSIDE,
        addr::SERVER_ONE
    ))?;
    lab.forget_neighbours()?;
    let folder = lab.folder.join("baseline");
    Charon::start_daemon(
        &lab.baseline,
        &folder,
        lab.sockets(),
        &lab.resources,
        swanctl_conf,
        daemon,
    )
}

/// Stops it and frees the cluster's addresses.
pub fn stop(lab: &Lab, charon: Charon) -> Result<()> {
    drop(charon);
    lab.baseline.ip("link set outside down\nlink set inside down")?;
    lab.forget_neighbours()
}
