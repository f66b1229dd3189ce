//! Where the tunnels are measured.
//!
//! ```text
//!   client --- (inside) west (outside) === (outside) east (inside) --- server
//! ```
//!
//! Four namespaces on veth pairs without offloads: a wire has none, and checksums left to an offload are completed by nobody
//! behind an XDP redirect. Client and server have an MTU of 1400, which is what strongSwan's TUN device has, so that every system
//! carries packets of the same size.

use anyhow::Result;
use lab::netns::{FORWARDS, Netns};
use lab::pass::PassProgram;
use lab::resources::Resources;
use std::fs;
use std::path::{Path, PathBuf};

/// A gateway and the network behind it.
#[derive(Clone, Debug)]
pub struct Site {
    /// `west` or `east`.
    pub name: &'static str,
    /// The gateway.
    pub gateway: Netns,
    /// The host behind it.
    pub host: Netns,
    /// Number of the site in its addresses.
    pub number: u8,
}

impl Site {
    /// The address that the other gateway talks to.
    pub fn tunnel_address(&self) -> String {
        format!("192.0.2.{}", self.number)
    }

    /// The gateway's own address on the wire, where that is another.
    pub fn own_address(&self) -> String {
        format!("192.0.2.{}", 10 + self.number)
    }

    /// Its network.
    pub fn network(&self) -> String {
        format!("10.{}.0.0/24", self.number)
    }

    /// The host's next hop.
    pub fn next_hop(&self) -> String {
        format!("10.{}.0.1", self.number)
    }

    /// The gateway's own address inside, where that is another.
    pub fn own_inside(&self) -> String {
        format!("10.{}.0.2", self.number)
    }

    /// The host.
    pub fn host_address(&self) -> String {
        format!("10.{}.0.9", self.number)
    }
}

/// The lab of one system; gone when dropped.
pub struct Chain {
    /// With the client.
    pub west: Site,
    /// With the server.
    pub east: Site,
    /// Configurations and logs.
    pub folder: PathBuf,
    /// What has to be removed. Last field: dropped last.
    pub resources: Resources,
}

impl Chain {
    /// Builds it. `parent` is where the folder is made.
    pub fn build(parent: &Path) -> Result<Self> {
        let resources = Resources::new()?;
        let folder = parent.join(&resources.id);
        fs::create_dir_all(&folder)?;
        let netns = |what: &str| Netns::create(&resources, what, &FORWARDS);
        let site = |name: &'static str, host: &str, number: u8| -> Result<Site> {
            Ok(Site {
                name,
                gateway: netns(name)?,
                host: netns(host)?,
                number,
            })
        };
        let chain = Self {
            west: site("west", "client", 1)?,
            east: site("east", "server", 2)?,
            folder,
            resources,
        };
        let pass = PassProgram::load(&chain.resources)?;
        for site in [&chain.west, &chain.east] {
            site.host.wire("lan", &site.gateway, "inside")?;
            site.host.ip(&format!(
                "link set lan mtu 1400\naddr add {}/24 dev lan\nroute add default via {}",
                site.host_address(),
                site.next_hop()
            ))?;
            site.gateway.sysctl(&["net.ipv4.ip_forward=1"])?;
            // A redirect to a veth arrives only where the far end has a program; all systems get the same hosts.
            pass.attach(&site.host, "lan")?;
        }
        let west = &chain.west.gateway;
        west.wire("outside", &chain.east.gateway, "outside")?;
        Ok(chain)
    }

    /// Both sites, each with the other one.
    pub fn both(&self) -> [(&Site, &Site); 2] {
        [(&self.west, &self.east), (&self.east, &self.west)]
    }
}
