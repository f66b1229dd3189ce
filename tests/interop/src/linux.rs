//! A cluster of two whose only peer is a Linux kernel ([`crate::uml`]): what its tests have in common.

use crate::clock::wait_for;
use crate::cluster::Cluster;
use crate::member::Member;
use crate::uml::{self, UmlPeer};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::time::Duration;

/// The connection.
pub const NAME: &str = "three";
/// Pings of a trial.
pub const PINGS: u32 = 20;

/// Both, up.
pub struct LinuxLab {
    /// The cluster, in sync.
    pub cluster: Cluster,
    /// The peer.
    pub peer: UmlPeer,
    /// The member that serves first.
    pub first: usize,
}

/// The Child SA of a member, if it has exactly one.
pub fn only_child(member: &Member) -> Option<Value> {
    let sas = member.sas().ok()?;
    let of = |ike: &Value| ike["children"].as_array().cloned().unwrap_or_default();
    let children = sas.as_array()?.iter().flat_map(of).collect::<Vec<_>>();
    <[Value; 1]>::try_from(children).ok().map(|[child]| child)
}

/// A verdict's count.
pub fn verdict(member: &Member, name: &str) -> Result<u64> {
    Ok(member.verdicts()?.get(name).copied().unwrap_or(0))
}

impl LinuxLab {
    /// Starts a cluster that is prepared, and boots the peer with this swanctl.conf.
    pub fn start(mut cluster: Cluster, conf: &str) -> Result<Self> {
        cluster.start()?;
        let first = cluster.wait_all_in_sync(Duration::from_secs(30))?;
        let peer = UmlPeer::boot_with(&cluster.lab, &uml::package(), conf)?;
        Ok(Self { cluster, peer, first })
    }

    /// A member.
    pub fn member(&self, at: usize) -> &Member {
        &self.cluster.members[at]
    }

    /// Inbound SPI of a member's only Child SA.
    pub fn spi(&self, at: usize) -> Option<String> {
        only_child(self.member(at)).and_then(|child| child["spi_in"].as_str().map(str::to_owned))
    }

    /// The SPI, once it is another one than this.
    pub fn other_spi(&self, at: usize, than: &str, what: &str) -> Result<String> {
        let done = wait_for(Duration::from_secs(10), Duration::from_millis(20), || {
            self.spi(at).filter(|spi| spi != than)
        });
        done.with_context(|| format!("{what}:\n{}", self.member(at).log_text()))
    }

    /// A rekey that we begin, and one that the peer begins. Returns the SPI afterwards; `settled` is asked after each.
    pub fn rekey_from_both(
        &mut self,
        at: usize,
        settled: impl Fn(&mut Self, &str) -> Result<()>,
    ) -> Result<String> {
        let first = self.spi(at).context("a Child SA")?;
        self.member(at).espalier(&["rekey", NAME]).context("our rekey")?;
        let second = self.other_spi(at, &first, "our rekey")?;
        settled(self, "after our rekey")?;
        self.peer
            .run("rekey", &format!("swanctl --rekey --child {NAME}"), 15)?;
        let third = self.other_spi(at, &second, "the peer's rekey")?;
        settled(self, "after the peer's rekey")?;
        Ok(third)
    }

    /// Kills the host of the member that serves; the other one goes on with the same Child SA, and rekeys it.
    pub fn take_over(&mut self, from: usize, settled: impl Fn(&mut Self, &str) -> Result<()>) -> Result<()> {
        let to = 1 - from;
        let inherited = self.spi(from).context("a Child SA")?;
        self.cluster.members[from].kill_host()?;
        self.cluster.wait_other_serves(from, Duration::from_secs(10))?;
        settled(self, "after the takeover")?;
        ensure!(
            self.spi(to).as_ref() == Some(&inherited),
            "another SA after the takeover"
        );
        self.member(to)
            .espalier(&["rekey", NAME])
            .context("the taker's rekey")?;
        self.other_spi(to, &inherited, "the taker's rekey")?;
        settled(self, "after the taker's rekey")
    }

    /// All pings come back, both those that we begin with and the peer's, after a while: neighbours may have to be asked for first, and
    /// after a takeover some numbers count as seen. `pings` makes [`PINGS`] of each, and says how many came back.
    pub fn settled(
        &mut self,
        what: &str,
        at: usize,
        pings: impl Fn(&mut Self) -> Result<(u32, u32)>,
    ) -> Result<()> {
        let mut last = None;
        let done = wait_for(Duration::from_secs(20), Duration::from_millis(10), || {
            let both = pings(self).ok()?;
            last = Some(both);
            (both == (PINGS, PINGS)).then_some(())
        });
        if done.is_some() {
            return Ok(());
        }
        let state = self.peer.xfrm_state()?;
        let member = self.member(at);
        bail!(
            "{what}: of {PINGS} pings each came back {last:?}\n{:?}\n{state}\n{}\n{}",
            member.verdicts(),
            member.sas()?,
            member.log_text()
        )
    }

    /// What the recorder on the outside network saw is free of repetitions.
    pub fn nothing_twice(&self) -> Result<()> {
        ensure!(
            self.cluster.outside.read(|l| l.duplicates()) == (0, 0),
            "(SPI, sequence number), (SPI, IV) twice"
        );
        ensure!(
            self.cluster.outside.lost() == 0,
            "packets that the recorder missed"
        );
        Ok(())
    }
}
