//! A planned restart of a lone member (ADR 9): the programs stay in service with their maps, and what the agent knows waits in a
//! sealed file for its next life, for a bounded time and to be read once.
//!
//! Sequence numbers and windows are not in the file: they are in the maps, and nowhere else.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use cluster::Tenure;
use dataplane::{Plane, Segments, TOKEN};
use model::{ChildSaChange, Epoch, EspSpi, GroupId, Instant};
use sad::{Sad, Usage};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::entry::Snapshot;
use super::groups::Groups;
use super::{Core, around};
use crate::clock;
use crate::config::Config;
use crate::pki::Identity;

/// Version of the file; another one is refused.
const VERSION: u8 = 1;
/// Octets of the nonce in front of what is sealed.
const NONCE: usize = 12;
/// The programs serve without an agent for so long at most: the dead-man's switch is held once, by this.
pub const GRACE: Duration = Duration::from_secs(10);

/// What a life leaves to the next one. No `Debug`: it holds keys.
#[derive(Serialize, Deserialize)]
pub struct Kept {
    cluster: String,
    member: u8,
    /// The kernel's name for the time since it was started.
    boot: String,
    /// As beside the pinned maps.
    token: [u8; TOKEN],
    /// Not taken up later than this, `CLOCK_MONOTONIC`.
    until: Instant,
    pub tenures: Vec<Tenure>,
    /// SAs that a lost standby may have used.
    pub suspects: Vec<(GroupId, Vec<EspSpi>)>,
    /// All SAs with their limits.
    pub snapshot: Snapshot,
    /// What SAs are to each other.
    parts: Vec<ChildSaChange>,
    /// What SAs with lifetimes in octets or packets have carried in all.
    used: Vec<(EspSpi, Usage)>,
}

/// Why there is a fresh start though something was left.
#[derive(Debug, thiserror::Error)]
pub enum NotTakenUp {
    #[error("the state of the life before cannot be read ({0})")]
    Unreadable(std::io::Error),
    #[error("the state of the life before is damaged, or not this member's")]
    Sealed,
    #[error("the state of the life before is of version {0}, this release reads {VERSION}")]
    Version(u8),
    #[error("the state of the life before is of another {0}")]
    Another(&'static str),
    #[error("there is state of a life before, but its maps are gone or belong to another life")]
    NoToken,
    #[error("the next life came more than {} s after the one before", GRACE.as_secs())]
    Late,
    #[error("segment {0} is not served any more in the epoch that was kept")]
    Words(u8),
    #[error("{0}")]
    Maps(String),
}

/// Beside the control socket, which has a folder that does not outlive the host.
pub fn path(config: &Config) -> PathBuf {
    config.control.socket.with_extension("state")
}

fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// Only this member's private key opens it.
fn key(identity: &Identity) -> Option<LessSafeKey> {
    let octets = Zeroizing::new(identity.own_key("state kept over a planned restart"));
    Some(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &octets[..]).ok()?))
}

fn seal(key: &LessSafeKey, kept: &Kept) -> Option<Vec<u8>> {
    let size = postcard::experimental::serialized_size(kept).ok()?;
    // Large enough from the start, so that no copy stays behind.
    let mut text = Zeroizing::new(vec![0; size]);
    postcard::to_slice(kept, &mut text).ok()?;
    let mut nonce = [0; NONCE];
    around::random(&mut nonce);
    let tag = key
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from([VERSION]),
            &mut text,
        )
        .ok()?;
    let mut octets = Vec::with_capacity(1 + NONCE + size + tag.as_ref().len());
    octets.push(VERSION);
    octets.extend_from_slice(&nonce);
    octets.extend_from_slice(&text);
    octets.extend_from_slice(tag.as_ref());
    Some(octets)
}

fn open(key: &LessSafeKey, octets: Vec<u8>) -> Result<Kept, NotTakenUp> {
    let mut octets = Zeroizing::new(octets);
    let version = octets.first().copied().ok_or(NotTakenUp::Sealed)?;
    if version != VERSION {
        return Err(NotTakenUp::Version(version));
    }
    let (head, sealed) = octets.split_at_mut_checked(1 + NONCE).ok_or(NotTakenUp::Sealed)?;
    let nonce = Nonce::try_assume_unique_for_key(&head[1..]).map_err(|_| NotTakenUp::Sealed)?;
    let text = key
        .open_in_place(nonce, Aad::from([VERSION]), sealed)
        .map_err(|_| NotTakenUp::Sealed)?;
    postcard::from_bytes(text).map_err(|_| NotTakenUp::Sealed)
}

/// What the life before left for this one. File and token are gone after this, whatever comes of it: nothing is ever
/// taken up twice. `Ok(None)`: nothing was left.
pub fn take(config: &Config, identity: &Identity) -> Result<Option<Kept>, NotTakenUp> {
    let path = path(config);
    let token = dataplane::take_kept(&config.data_plane.pin_dir).map_err(NotTakenUp::Unreadable);
    let octets = match std::fs::read(&path) {
        Ok(octets) => octets,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(NotTakenUp::Unreadable(error)),
    };
    std::fs::remove_file(&path).map_err(NotTakenUp::Unreadable)?;
    let kept = open(&key(identity).ok_or(NotTakenUp::Sealed)?, octets)?;
    kept.judge(config, token?, &boot(), clock::now())?;
    Ok(Some(kept))
}

impl Kept {
    /// Whether it is this member's, the maps' and in time.
    fn judge(
        &self,
        config: &Config,
        token: Option<[u8; TOKEN]>,
        boot: &str,
        now: Instant,
    ) -> Result<(), NotTakenUp> {
        if self.cluster != config.cluster.name || self.member != config.cluster.member.0 {
            return Err(NotTakenUp::Another("member"));
        }
        if self.boot != boot {
            return Err(NotTakenUp::Another("boot of this host"));
        }
        if token != Some(self.token) {
            return Err(NotTakenUp::NoToken);
        }
        if self.tenures.len() != usize::from(config.cluster.groups) {
            return Err(NotTakenUp::Another("number of groups"));
        }
        if now > self.until {
            return Err(NotTakenUp::Late);
        }
        Ok(())
    }

    /// Whether the programs serve still, in the epochs that were kept.
    pub fn is_served(&self, groups: &Groups, segments: &Segments) -> Result<(), NotTakenUp> {
        let now = clock::now().millis();
        for tenure in &self.tenures {
            for segment in groups.layout.segments(tenure.group) {
                let (word, _) = segments.get(segment.0);
                let same = word.owner == tenure.epoch.owner.0 && word.epoch == tenure.epoch.number.low16();
                if !same || word.valid_until_ms < now {
                    return Err(NotTakenUp::Words(segment.0));
                }
            }
        }
        Ok(())
    }

    /// The SA database as it was, and the maps brought to what it says, under traffic.
    pub fn restore(&mut self, sad: &mut Sad, plane: &mut Plane) -> Result<(), NotTakenUp> {
        let children = std::mem::take(&mut self.snapshot.children);
        let maps = |error: &dyn std::fmt::Display| NotTakenUp::Maps(error.to_string());
        sad.restore(children, clock::now()).map_err(|e| maps(&e))?;
        let context = sad::Context {
            now: clock::now(),
            epoch: Epoch::default(),
            alone: true,
        };
        for part in &self.parts {
            sad.apply(part, context).map_err(|e| maps(&e))?;
        }
        let counters = plane.reader();
        for (spi_in, usage) in &self.used {
            // Part of the plan below.
            sad.note_usage(*spi_in, *usage, |slot| counters.counters(slot));
        }
        let plan = sad.full_plan().map_err(|e| maps(&e))?;
        plane.reconcile(&plan).map_err(|e| maps(&e))
    }
}

fn write(path: &Path, octets: &[u8]) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(octets)
}

impl Core {
    /// The end of this life in a planned restart: everything is left for the next one. Nothing may be handled any more once
    /// this has succeeded.
    ///
    /// # Errors
    /// Why not; this life goes on.
    pub(super) fn keep(&mut self) -> Result<String, String> {
        // As the next life will find it: the key may have been renewed since this one began.
        let identity = Identity::load(&self.config.cluster.pki, self.me);
        let identity = identity.map_err(|error| format!("{error:#}"))?;
        self.settle();
        if self.is_adopting() || self.snapshots.is_busy() {
            return Err("IKE SAs are being taken over: try again in a moment".to_owned());
        }
        let tenures = self.node.tenures()?;
        // Nobody would end it for as long as there is no agent.
        for tenure in &tenures {
            self.end_lingering(tenure.group);
        }
        let until = clock::now() + GRACE;
        // From here on the programs need no agent, while what follows takes as long as it takes.
        for tenure in &tenures {
            self.extend_validity(tenure.group, tenure.epoch, until);
        }
        let mut token = [0; TOKEN];
        around::random(&mut token);
        let suspects = self.groups.iter().map(|g| (g.id, g.suspects.spis()));
        let kept = Kept {
            cluster: self.config.cluster.name.clone(),
            member: self.me.0,
            boot: boot(),
            token,
            until,
            tenures,
            suspects: suspects.filter(|(_, spis)| !spis.is_empty()).collect(),
            snapshot: Snapshot {
                ike: self.mirror.clone(),
                children: self.sad.snapshot(clock::now()),
            },
            parts: self.sad.parts_where(|_| true),
            used: self.sad.usage_of(|_| true, |slot| self.counters.counters(slot)),
        };
        let octets = key(&identity).and_then(|key| seal(&key, &kept));
        let octets = octets.ok_or("the state cannot be sealed")?;
        let path = path(&self.config);
        write(&path, &octets).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        if let Err(error) = self.plane.keep(token) {
            // Without its token the file is worth nothing.
            let _ = std::fs::remove_file(&path);
            return Err(error.to_string());
        }
        let (ike, children) = (kept.snapshot.ike.len(), kept.snapshot.children.len());
        Ok(format!(
            "{ike} IKE and {children} Child SAs are kept: start the agent again within {} s",
            GRACE.as_secs()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::{EpochId, Standing};
    use model::MemberId;

    const EXAMPLE: &str = include_str!("../../../../docs/examples/espalier.toml");

    fn config() -> Config {
        let read = Config::read_without_files(EXAMPLE, Path::new("/etc/espalier"));
        read.unwrap_or_else(|problems| panic!("{} problems in the example", problems.len()))
    }

    fn some_key(octet: u8) -> LessSafeKey {
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[octet; 32]).expect("32 octets"))
    }

    fn kept(config: &Config) -> Kept {
        let tenure = |group| Tenure {
            group: GroupId(group),
            epoch: EpochId {
                number: Epoch(3),
                owner: MemberId(1),
            },
            standing: Standing::AloneTaker,
            position: 7,
            claim_above: Epoch(0),
        };
        Kept {
            cluster: config.cluster.name.clone(),
            member: config.cluster.member.0,
            boot: "boot".to_owned(),
            token: [5; TOKEN],
            until: Instant::from_millis(10_000),
            tenures: (0..config.cluster.groups).map(tenure).collect(),
            suspects: vec![(GroupId(0), vec![EspSpi(9)])],
            snapshot: Snapshot::default(),
            parts: Vec::new(),
            used: Vec::new(),
        }
    }

    #[test]
    fn only_the_same_key_opens_what_was_sealed_and_no_octet_may_differ() {
        let kept = kept(&config());
        let sealed = seal(&some_key(1), &kept).expect("sealed");
        let again = open(&some_key(1), sealed.clone()).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!((again.token, again.tenures), (kept.token, kept.tenures));
        assert_eq!(again.suspects, [(GroupId(0), vec![EspSpi(9)])]);
        assert!(matches!(
            open(&some_key(2), sealed.clone()),
            Err(NotTakenUp::Sealed)
        ));
        for at in 1..sealed.len() {
            let mut other = sealed.clone();
            other[at] ^= 1;
            assert!(
                matches!(open(&some_key(1), other), Err(NotTakenUp::Sealed)),
                "{at}"
            );
        }
        let mut other = sealed.clone();
        other[0] = 2;
        assert!(matches!(open(&some_key(1), other), Err(NotTakenUp::Version(2))));
        for length in 0..30 {
            assert!(open(&some_key(1), sealed[..length].to_vec()).is_err(), "{length}");
        }
    }

    #[test]
    fn state_of_another_member_boot_token_or_time_is_refused_by_name() {
        let config = config();
        let now = Instant::from_millis(9_000);
        let token = Some([5; TOKEN]);
        let judge = |change: &dyn Fn(&mut Kept)| {
            let mut kept = kept(&config);
            change(&mut kept);
            kept.judge(&config, token, "boot", now)
        };
        assert!(judge(&|_| {}).is_ok());
        let another = |result| matches!(result, Err(NotTakenUp::Another(_)));
        assert!(another(judge(&|kept| kept.cluster.push('x'))));
        assert!(another(judge(&|kept| kept.member += 1)));
        assert!(another(judge(&|kept| kept.boot.clear())));
        assert!(another(judge(&|kept| kept.tenures.truncate(0))));
        let stale = judge(&|kept| kept.token[0] ^= 1);
        assert!(matches!(stale, Err(NotTakenUp::NoToken)));
        let late = judge(&|kept| kept.until = Instant::from_millis(8_999));
        assert!(matches!(late, Err(NotTakenUp::Late)));
        let none = kept(&config).judge(&config, None, "boot", now);
        assert!(matches!(none, Err(NotTakenUp::NoToken)), "taken up already");
    }
}
