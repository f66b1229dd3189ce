//! The members of a cluster and the recorders that judge them, without peers.

use crate::clock::wait_for;
use crate::config::Settings;
use crate::ledger::Roles;
use crate::member::{Member, Product, macs, shared_secrets};
use crate::recorder::Recorder;
use crate::stage::{in_sync_members, is_active};
use crate::topology::{Lab, Place, addr};
use anyhow::{Context, Result};
use std::time::Duration;

/// Members and recorders. Fields are dropped in this order: processes first, namespaces last.
#[derive(Debug)]
pub struct Cluster {
    /// Members A, B and so on.
    pub members: Vec<Member>,
    /// What was seen on the outside network.
    pub outside: Recorder,
    /// What was seen on the inside network.
    pub inside: Recorder,
    /// The namespaces.
    pub lab: Lab,
}

impl Cluster {
    /// Writes configurations, starts recorders and all agents. Nobody waits for the cluster to form.
    pub fn up(lab: Lab, product: &Product, psk: &str, settings: &Settings) -> Result<Self> {
        let mut cluster = Self::prepare(lab, product, psk, settings)?;
        cluster.start()?;
        Ok(cluster)
    }

    /// Starts all agents.
    pub fn start(&mut self) -> Result<()> {
        for member in &mut self.members {
            member.start(&self.lab.resources)?;
        }
        Ok(())
    }

    /// Writes configurations and starts recorders.
    pub fn prepare(lab: Lab, product: &Product, psk: &str, settings: &Settings) -> Result<Self> {
        shared_secrets(&lab, product, psk)?;
        let member = |place| Member::with(&lab, place, product, settings);
        let members = lab.members.iter().map(member).collect::<Result<Vec<_>>>()?;
        let addresses = |p: &Place| [p.outside, p.inside];
        let member_addresses: Vec<_> = lab.members.iter().flat_map(addresses).collect();
        let roles = |interface: &str| -> Result<Roles> {
            Ok(Roles {
                member_macs: macs(&lab, interface)?,
                member_addresses: member_addresses.clone(),
                judge_deliveries: false,
                cluster: Some(addr::CLUSTER_OUTSIDE),
            })
        };
        let outside = Recorder::start(&lab.bridges, "br-out", roles("outside")?)?;
        let inside = Recorder::start(&lab.bridges, "br-in", roles("inside")?)?;
        Ok(Self {
            members,
            outside,
            inside,
            lab,
        })
    }

    /// The member that serves, if exactly one says so.
    pub fn owner(&self) -> Option<usize> {
        let mut serving = (0..self.members.len()).filter(|m| self.serves(*m));
        serving.next().filter(|_| serving.next().is_none())
    }

    /// Whether a member says that it serves.
    pub fn serves(&self, member: usize) -> bool {
        self.members[member].status().is_ok_and(|s| is_active(&s))
    }

    /// Waits until exactly one member serves and all members are in its in-sync set; returns it.
    pub fn wait_all_in_sync(&self, limit: Duration) -> Result<usize> {
        let all = self.members.len();
        let done = wait_for(limit, Duration::from_millis(20), || {
            let owner = self.owner()?;
            let status = self.members[owner].status().ok()?;
            (in_sync_members(&status) == all).then_some(owner)
        });
        done.with_context(|| format!("not all members are in sync after {limit:?}:\n{}", self.states()))
    }

    /// Waits until a member other than `before` serves; returns it.
    pub fn wait_other_serves(&self, before: usize, limit: Duration) -> Result<usize> {
        let others = || (0..self.members.len()).filter(|m| *m != before);
        wait_for(limit, Duration::from_millis(5), || {
            others().find(|m| self.serves(*m))
        })
        .with_context(|| format!("nobody took over within {limit:?}:\n{}", self.states()))
    }

    /// One line a member about what it says of itself.
    pub fn states(&self) -> String {
        let line = |m: &Member| match m.status() {
            Ok(s) => format!(
                "  {}: {} owner {} epoch {} in sync {} valid for {} ms",
                m.place.letter, s["role"], s["owner"], s["epoch"], s["in_sync"], s["valid_for_ms"]
            ),
            Err(e) => format!("  {}: no status: {e:#}", m.place.letter),
        };
        self.members.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    /// Time of the first packet that a member carried in either direction after `since`.
    pub fn first_through(&self, member: usize, since: u64) -> Result<Option<u64>> {
        let mac = |interface| Lab::mac(&self.lab.members[member].netns, interface);
        let first = |list: &[(u64, [u8; 6])], mac: [u8; 6]| {
            let own = list.iter().filter(|(t, m)| *t > since && *m == mac);
            own.map(|(t, _)| *t).min()
        };
        let (outside, inside) = (mac("outside")?, mac("inside")?);
        let sealed = self.outside.read(|l| first(&l.esp_out, outside));
        let opened = self.inside.read(|l| first(&l.clear, inside));
        Ok(sealed.into_iter().chain(opened).min())
    }
}
