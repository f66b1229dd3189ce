//! The lab with everything that runs in it: the peer, two members, recorders.

use crate::baseline::peer_connections;
use crate::clock::wait_for;
use crate::cluster::Cluster;
use crate::config::Settings;
use crate::member::{Member, Product};
use crate::recorder::Recorder;
use crate::strongswan::{Charon, swanctl_conf};
use crate::topology::Lab;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::time::Duration;

/// The lab, its daemons and its recorders. Fields are dropped in this order: processes first, namespaces last.
#[derive(Debug)]
pub struct Stage {
    /// Members A, B and so on.
    pub members: Vec<Member>,
    /// The peer at site one.
    pub peer: Charon,
    /// What was seen on the outside network.
    pub outside: Recorder,
    /// What was seen on the inside network.
    pub inside: Recorder,
    /// The namespaces.
    pub lab: Lab,
}

/// A pre-shared key for one run.
pub fn random_psk() -> Result<String> {
    let mut octets = [0u8; 16];
    let mut file = std::fs::File::open("/dev/urandom").context("/dev/urandom")?;
    std::io::Read::read_exact(&mut file, &mut octets).context("/dev/urandom")?;
    Ok(octets.iter().map(|o| format!("{o:02x}")).collect())
}

/// Starts the peer's charon.
pub fn start_peer(lab: &Lab, psk: &str) -> Result<Charon> {
    let conf = swanctl_conf(&peer_connections(), psk);
    Charon::start(
        &lab.peer,
        &lab.folder.join("peer"),
        lab.sockets(),
        &lab.resources,
        &conf,
    )
}

impl Stage {
    /// Writes configurations, starts recorders and both agents, and waits until the cluster is formed with A active.
    pub fn up(lab: Lab, peer: Charon, product: &Product, psk: &str) -> Result<Self> {
        Self::with(lab, peer, product, psk, &Settings::demo())
    }

    /// The same with other settings than the demo's.
    pub fn with(lab: Lab, peer: Charon, product: &Product, psk: &str, settings: &Settings) -> Result<Self> {
        let Cluster {
            members,
            outside,
            inside,
            lab,
        } = Cluster::up(lab, product, psk, settings)?;
        let stage = Self {
            members,
            peer,
            outside,
            inside,
            lab,
        };
        stage
            .wait_in_sync(0, Duration::from_secs(20))
            .context("the cluster did not form")?;
        Ok(stage)
    }

    /// Waits until a member is active with the other one in sync.
    pub fn wait_in_sync(&self, active: usize, limit: Duration) -> Result<()> {
        let done = wait_for(limit, Duration::from_millis(20), || {
            let status = self.members[active].status().ok()?;
            (is_active(&status) && in_sync_members(&status) >= 2).then_some(())
        });
        done.with_context(|| {
            let status = self.members[active]
                .status()
                .map_or_else(|e| e.to_string(), |s| s.to_string());
            format!(
                "member {} is not active with a standby in sync: {status}",
                self.members[active].place.letter
            )
        })
    }

    /// Waits until a member is active, with or without a standby.
    pub fn wait_active(&self, active: usize, limit: Duration) -> Result<()> {
        let done = wait_for(limit, Duration::from_millis(10), || {
            is_active(&self.members[active].status().ok()?).then_some(())
        });
        done.with_context(|| {
            format!(
                "member {} did not become active",
                self.members[active].place.letter
            )
        })
    }

    /// Brings both connections of site one up: the peer initiates `one`, the cluster has initiated `two`.
    pub fn connect(&self) -> Result<()> {
        self.peer
            .initiate("one")
            .context("the peer initiates connection one")?;
        let up = wait_for(Duration::from_secs(15), Duration::from_millis(50), || {
            let sas = self.peer.swanctl(&["--list-sas"]).ok()?;
            (sas.contains("one: #") && sas.contains("two: #") && sas.matches("INSTALLED").count() >= 2)
                .then_some(())
        });
        if up.is_none() {
            bail!(
                "connection two did not come up from the cluster's side:\n{}",
                self.peer.swanctl(&["--list-sas"])?
            );
        }
        Ok(())
    }

    /// Packets that the peer's kernel could not put into a receive buffer: its data path is a user-space daemon, which a busy
    /// machine keeps from reading. They came through the gateway.
    pub fn peer_overflows(&self) -> Result<u64> {
        let text = self
            .lab
            .peer
            .inside(|| std::fs::read_to_string("/proc/thread-self/net/snmp").context("/proc/net/snmp"))?;
        let mut udp = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
        let (names, values) = (udp.next().unwrap_or_default(), udp.next().unwrap_or_default());
        let mut fields = names.split(' ').zip(values.split(' '));
        let (_, value) = fields
            .find(|(name, _)| *name == "RcvbufErrors")
            .context("RcvbufErrors in /proc/net/snmp")?;
        value.parse().context("RcvbufErrors")
    }

    /// Where the run's files are.
    pub fn folder(&self) -> &Path {
        &self.lab.folder
    }
}

/// Whether a status says that the member serves, with or without a standby.
pub fn is_active(status: &serde_json::Value) -> bool {
    matches!(status["role"].as_str(), Some("active" | "alone"))
}

/// How many members a status names as in sync, itself included.
pub fn in_sync_members(status: &serde_json::Value) -> usize {
    status["in_sync"].as_array().map_or(0, Vec::len)
}
