//! `issued.json`: every certificate that the CA has issued. Without it, a lost certificate could not be revoked.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use model::MemberId;
use serde::{Deserialize, Serialize};

use super::files;

/// Name of the file.
pub(super) const FILE: &str = "issued.json";

/// Where a certificate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// The member's certificate.
    Current,
    /// A newer one has been issued; still accepted, since the member may not have the newer one yet.
    Replaced,
    /// Refused by every member that has the revocation list.
    Revoked,
}

/// A certificate that was issued.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Issued {
    /// Member that it names.
    pub member: u8,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Generation of the CA that signed it.
    pub ca: u32,
    /// Not valid after, seconds since 1970.
    pub not_after: u64,
    /// Where it stands.
    pub standing: Standing,
    /// When it was revoked, seconds since 1970.
    pub revoked_at: Option<u64>,
}

/// The list.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ledger {
    /// Name of the cluster.
    pub cluster: String,
    /// Generation of the newest CA: the one that signs.
    pub ca: u32,
    /// The CA that is still trusted beside it, during a change.
    pub previous_ca: Option<u32>,
    /// Number of the newest revocation lists.
    pub crl_number: u64,
    /// Every certificate.
    pub issued: Vec<Issued>,
    /// When the cluster secret was replaced, seconds since 1970; `None`: the one before is forgotten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_replaced_at: Option<u64>,
}

impl Ledger {
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!(
                "cannot read {}: name the folder that 'espalier cluster init' made, where the CA's key is",
                path.display()
            )
        })?;
        serde_json::from_str(&text).with_context(|| format!("{} is damaged; restore it", path.display()))
    }

    pub fn save(&self, dir: &Path) -> Result<PathBuf> {
        let path = dir.join(FILE);
        files::replace(&path, files::PUBLIC, &serde_json::to_vec_pretty(self)?)?;
        Ok(path)
    }

    /// The member's certificate.
    pub fn current(&self, member: MemberId) -> Option<&Issued> {
        self.issued
            .iter()
            .find(|issued| issued.member == member.0 && issued.standing == Standing::Current)
    }

    /// Members that have a certificate.
    pub fn members(&self) -> Vec<MemberId> {
        let current = self.issued.iter().filter(|i| i.standing == Standing::Current);
        let mut members = current.map(|i| MemberId(i.member)).collect::<Vec<_>>();
        members.sort();
        members
    }

    /// Revokes what `which` picks. Returns how many.
    pub fn revoke(&mut self, now: u64, which: impl Fn(&Issued) -> bool) -> usize {
        let mut count = 0;
        for issued in &mut self.issued {
            if issued.standing != Standing::Revoked && which(issued) {
                issued.standing = Standing::Revoked;
                issued.revoked_at = Some(now);
                count += 1;
            }
        }
        count
    }

    /// The id must be one of a cluster's.
    pub fn check_member(member: MemberId) -> Result<()> {
        if !(1..=16).contains(&member.0) {
            bail!("a member's id is 1 to 16, not {member}");
        }
        Ok(())
    }
}
