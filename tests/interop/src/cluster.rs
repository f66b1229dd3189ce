//! The members of a cluster and the recorders that judge them, without peers.

use crate::clock::wait_for;
use crate::config::Settings;
use crate::ledger::Roles;
use crate::member::{Member, Product, macs, shared_secrets};
use crate::recorder::Recorder;
use crate::stage::is_active;
use crate::topology::{Lab, Place, addr};
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeSet;
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

    /// The member that serves, if exactly one says so. With several groups: the one that owns most of them (of equal ones the
    /// first), if every group has exactly one owner.
    pub fn owner(&self) -> Option<usize> {
        lead(&self.owned(), None)
    }

    /// Groups that each member says it owns: number, members in sync, whether something is under way.
    fn owned(&self) -> Vec<Vec<Owned>> {
        let of = |m: &Member| m.status().map(|s| owned(&s)).unwrap_or_default();
        self.members.iter().map(of).collect()
    }

    /// Whether a member says that it serves.
    pub fn serves(&self, member: usize) -> bool {
        self.members[member].status().is_ok_and(|s| is_active(&s))
    }

    /// How many groups a member says it owns.
    pub fn groups_of(&self, member: usize) -> usize {
        self.members[member].status().map_or(0, |s| owned(&s).len())
    }

    /// Waits until exactly one member serves every group, all members are in its in-sync set, and nothing is under way; returns
    /// who owns most.
    pub fn wait_all_in_sync(&self, limit: Duration) -> Result<usize> {
        let all = self.members.len();
        let done = wait_for(limit, Duration::from_millis(20), || {
            let owned = self.owned();
            let settled = |g: &Owned| g.in_sync == all && !g.moving;
            let settled = owned.iter().flatten().all(settled);
            lead(&owned, None).filter(|_| settled)
        });
        done.with_context(|| format!("not all members are in sync after {limit:?}:\n{}", self.states()))
    }

    /// Two members with two groups: waits until each has one, and gives the one that has the cluster addresses, which are in the first.
    pub fn spread(&self, limit: Duration) -> Result<usize> {
        self.wait_all_in_sync(limit)?;
        // Whoever was there first may have all groups.
        for member in (0..2).filter(|at| self.groups_of(*at) == 2) {
            self.members[member].espalier(&["rebalance"])?;
        }
        let spread = wait_for(limit, Duration::from_millis(50), || {
            (self.groups_of(0) == 1 && self.groups_of(1) == 1 && self.away().ok()? == 0).then_some(())
        });
        spread.with_context(|| format!("the groups are not spread:\n{}", self.states()))?;
        let first = |at: &usize| self.owned()[*at].iter().any(|of| of.group == 0);
        (0..2).find(first).context("nobody has the first group")
    }

    /// Waits until members other than `before` serve everything; returns who owns most.
    pub fn wait_other_serves(&self, before: usize, limit: Duration) -> Result<usize> {
        wait_for(limit, Duration::from_millis(5), || {
            lead(&self.owned(), Some(before))
        })
        .with_context(|| format!("nobody took over within {limit:?}:\n{}", self.states()))
    }

    /// How many groups there are, as a member says.
    pub fn groups_known(&self, member: usize) -> Result<usize> {
        let status = self.members[member].status()?;
        let groups = status["groups"].as_array().context("no groups in the status")?;
        Ok(groups.len())
    }

    /// Groups that are not at the member that they are meant for.
    pub fn away(&self) -> Result<usize> {
        let status = self.members[0].status()?;
        let groups = status["groups"].as_array().context("no groups in the status")?;
        Ok(groups.iter().filter(|g| g["owner"] != g["home"]).count())
    }

    /// Whether a member has suspected another one since a time.
    pub fn suspected_since(&self, at_ns: u64) -> Result<bool> {
        for member in &self.members {
            let text = member.espalier(&["events", "--json"])?;
            let events: Vec<Value> = serde_json::from_str(&text).context("espalier events --json")?;
            let late = |e: &Value| e["monotonic_ns"].as_u64().is_some_and(|t| t >= at_ns);
            if events.iter().any(|e| e["kind"] == "suspected" && late(e)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// One line a member about what it says of itself.
    pub fn states(&self) -> String {
        let line = |m: &Member| match m.status() {
            Ok(s) => format!(
                "  {}: {} owner {} epoch {} in sync {} valid for {} ms, segments {}, trouble {}",
                m.place.letter,
                s["role"],
                s["owner"],
                s["epoch"],
                s["in_sync"],
                s["valid_for_ms"],
                s["segments"],
                s["trouble"]
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

/// A group, as its owner sees it.
#[derive(Clone, Copy, Debug)]
struct Owned {
    group: u64,
    groups: usize,
    in_sync: usize,
    moving: bool,
}

/// The groups of a status that this member owns.
fn owned(status: &Value) -> Vec<Owned> {
    let groups = status["groups"].as_array().map_or(&[][..], Vec::as_slice);
    let own = |g: &&Value| matches!(g["role"].as_str(), Some("active" | "alone"));
    let of = |g: &Value| Owned {
        group: g["group"].as_u64().unwrap_or(u64::MAX),
        groups: groups.len(),
        in_sync: g["in_sync"].as_array().map_or(0, Vec::len),
        moving: g["handover"] == true || g["engine_waits"] == true,
    };
    groups.iter().filter(own).map(of).collect()
}

/// Who owns most groups (of equal ones the first), if each has exactly one owner, `without` one member not counted.
fn lead(owned: &[Vec<Owned>], without: Option<usize>) -> Option<usize> {
    let of = |member: usize| owned[member].iter().filter(move |_| Some(member) != without);
    let all: Vec<&Owned> = (0..owned.len()).flat_map(of).collect();
    let distinct: BTreeSet<u64> = all.iter().map(|g| g.group).collect();
    let wanted = all.first()?.groups;
    let complete = all.len() == wanted && distinct.len() == wanted;
    let most = (0..owned.len()).max_by_key(|m| (of(*m).count(), std::cmp::Reverse(*m)));
    most.filter(|_| complete)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(owned: &[u64], of: u64) -> Value {
        let role = |g| if owned.contains(&g) { "active" } else { "standby" };
        let group =
            |g| serde_json::json!({"group": g, "role": role(g), "in_sync": [1, 2], "handover": false});
        serde_json::json!({"groups": (0..of).map(group).collect::<Vec<_>>()})
    }

    #[test]
    fn the_lead_owns_most_and_every_group_has_one_owner() {
        let of = |all: &[&[u64]]| -> Vec<Vec<Owned>> { all.iter().map(|o| owned(&status(o, 4))).collect() };
        assert_eq!(lead(&of(&[&[0], &[1, 2, 3]]), None), Some(1));
        assert_eq!(lead(&of(&[&[0, 1], &[2, 3]]), None), Some(0));
        assert_eq!(lead(&of(&[&[0, 1], &[3]]), None), None, "nobody owns group 2");
        assert_eq!(lead(&of(&[&[0, 1], &[1, 2, 3]]), None), None, "two own group 1");
        assert_eq!(lead(&of(&[&[0, 1], &[0, 1, 2, 3], &[]]), Some(0)), Some(1));
        assert_eq!(
            lead(&[owned(&status(&[], 1)), owned(&status(&[0], 1))], None),
            Some(1)
        );
    }
}
