//! The product's IKEv2 engine on real sockets against strongSwan, one network apart: IKE alone, without a data plane.

pub mod pki;

use crate::ike_peer::{Answers, IkePeer};
use crate::netns::Netns;
use crate::resources::Resources;
use crate::strongswan::{Charon, Daemon};
use anyhow::{Context, Result, bail};
use ike::{Connection, EndpointConfig, EngineConfig};
use model::{SecretBytes, TrafficSelector};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

/// The engine's address.
pub const GATEWAY: &str = "10.77.0.1";
/// strongSwan's.
pub const PEER: &str = "10.77.0.2";

/// Two namespaces and a cable.
#[derive(Debug)]
pub struct Ring {
    /// Of the engine.
    pub gateway: Netns,
    /// Of strongSwan.
    pub peer: Netns,
    /// Of the run.
    pub folder: PathBuf,
    /// What has to be removed. Last field: dropped last.
    pub resources: Resources,
}

impl Ring {
    /// Builds it. `parent` is where the folder is made.
    pub fn new(parent: &Path) -> Result<Self> {
        let resources = Resources::new()?;
        let folder = parent.join(&resources.id);
        std::fs::create_dir_all(&folder)?;
        let netns = |what: &str| Netns::create(&resources, what, &[]);
        let (gateway, peer) = (netns("gw")?, netns("peer")?);
        gateway.cable("eth0", &peer, "eth0")?;
        gateway.ip(&format!("addr add {GATEWAY}/24 dev eth0\nlink set eth0 up"))?;
        // strongSwan wants an address in its own selectors, and a way to the gateway's.
        peer.ip(&format!(
            "addr add {PEER}/24 dev eth0\nlink set eth0 up\naddr add 10.1.0.1/24 dev lo\nroute add default via {GATEWAY}"
        ))?;
        Ok(Self {
            gateway,
            peer,
            folder,
            resources,
        })
    }

    /// Where the peer's certificates (`x509`), authorities (`x509ca`), keys (`private`) go before it is started.
    pub fn peer_file(&self, kind: &str, name: &str, text: &str) -> Result<()> {
        let folder = self.folder.join("peer/swanctl").join(kind);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(name), text).context("a file of the peer's")
    }

    /// Starts the engine at [`GATEWAY`] and whatever other addresses its connections name.
    pub fn engine(&self, connections: Vec<Connection>, answers: impl Answers + 'static) -> Result<IkePeer> {
        let further = connections.iter().flat_map(|c| c.further_locals.iter().copied());
        let addresses: BTreeSet<IpAddr> = further.chain([GATEWAY.parse()?]).collect();
        let addresses: Vec<IpAddr> = addresses.into_iter().collect();
        let endpoint = EndpointConfig::new(SecretBytes::new(vec![3; 32]));
        let config = EngineConfig {
            connections,
            endpoint,
        };
        IkePeer::answering(&self.gateway, &addresses, config, answers)
    }

    /// Starts strongSwan.
    pub fn charon(&self, swanctl_conf: &str, daemon: Daemon<'_>) -> Result<Charon> {
        Charon::start_daemon(
            &self.peer,
            &self.folder.join("peer"),
            &self.resources.folder,
            &self.resources,
            swanctl_conf,
            daemon,
        )
    }
}

/// An IPv4 network, all protocols and ports.
///
/// # Errors
/// It is none.
pub fn network(text: &str) -> Result<TrafficSelector> {
    let (address, len) = text.split_once('/').context("a prefix length")?;
    let first: Ipv4Addr = address.parse()?;
    let len: u32 = len.parse()?;
    let host = u32::MAX.checked_shr(len).unwrap_or(0);
    Ok(TrafficSelector {
        first: first.into(),
        last: Ipv4Addr::from(u32::from(first) | host).into(),
        protocol: 0,
        first_port: 0,
        last_port: u16::MAX,
    })
}

/// Runs `swanctl --initiate`, which must fail.
pub fn must_fail(peer: &Charon, child: &str) -> Result<()> {
    match peer.initiate(child) {
        Ok(()) => bail!("{child} came up"),
        Err(_) => Ok(()),
    }
}
