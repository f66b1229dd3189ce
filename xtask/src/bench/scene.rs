//! The stage of the benchmark: a pair, strongSwan with one connection for bulk data, a fleet of initiators for the mass.

use anyhow::{Context, Result};
use lab::clock::wait_for;
use lab::cluster::Cluster;
use lab::config::{Connection, Settings};
use lab::fleet::{Ends, Fleet, NAME};
use lab::member::Product;
use lab::stage::random_psk;
use lab::strongswan::{Charon, swanctl_conf};
use lab::topology::{Lab, Plan, addr};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

/// SA slots: children stay in their IKE SA's segment, so the fullest of 256 segments needs room, not the average one.
const SLOTS: u32 = 1 << 18;

/// Everything that runs. Fields are dropped in this order.
pub struct Scene {
    /// The mass of SAs.
    pub fleet: Fleet,
    /// Its addresses.
    pub ends: Ends,
    /// Highest sequence number that a probe has used.
    pub probed: u64,
    /// strongSwan at site one.
    _peer: Charon,
    /// Members and recorders.
    pub cluster: Cluster,
}

impl Scene {
    /// Starts it all; the fleet has no SA yet.
    pub fn build(product: &Product, parent: &Path) -> Result<Self> {
        let psk = random_psk()?;
        let lab = Lab::planned(
            parent,
            Plan {
                sites: 1,
                ..Plan::PAIR
            },
        )?;
        let site = lab.sites.first().context("a site for the fleet")?.clone();
        let ends = Ends {
            local: site.address,
            remote: addr::CLUSTER_OUTSIDE,
            behind: Ipv4Addr::new(10, 64, 0, 0),
            network: (Ipv4Addr::new(10, 20, 1, 0), Ipv4Addr::new(10, 20, 1, 255)),
        };
        let [one, _] = lab::baseline::peer_connections();
        let conf = swanctl_conf(std::slice::from_ref(&one), &psk);
        let peer = Charon::start(
            &lab.peer,
            &lab.folder.join("peer"),
            lab.sockets(),
            &lab.resources,
            &conf,
        )?;
        let connection = |name, remote, remote_ts, suite, esp| Connection {
            name,
            remote,
            ike: suite,
            start: "passive",
            local_ts: "10.20.1.0/24",
            remote_ts,
            esp,
        };
        let settings = Settings {
            slots: SLOTS,
            connections: vec![
                connection(
                    "one",
                    addr::PEER,
                    "10.10.1.0/24",
                    "chacha20poly1305-prfsha256-x25519",
                    "chacha20poly1305",
                ),
                connection(
                    NAME,
                    site.address,
                    "10.64.0.0/10",
                    "aes128gcm16-prfsha256-x25519",
                    "aes128gcm16",
                ),
            ],
            ..Settings::demo()
        };
        let cluster = Cluster::up(lab, product, &psk, &settings)?;
        cluster
            .wait_all_in_sync(Duration::from_secs(60))
            .context("the cluster did not form")?;
        wait_for(Duration::from_secs(10), Duration::from_millis(200), || {
            peer.initiate("one").ok()
        })
        .context("the peer initiates connection one")?;
        let fleet = Fleet::start(&site.netns, &ends, &psk)?;
        Ok(Self {
            fleet,
            ends,
            probed: 0,
            _peer: peer,
            cluster,
        })
    }
}
