//! What a fork has touched outlives its agent: a life that ends before it could tell (it was stopped, or killed) leaves word to the
//! next one on this host, which tells it.
//!
//! ```text
//! head: "espfork" version (1) | member (1) | digest of the cluster's name (16)
//! then, each 18 octets: kind (1: IKE SA, 2: peer; 0x80 is added once the fork is discarded) | group | SPI (8, then zeros) or mark (16)
//! ```
//!
//! It is written before what it is about leaves the host, by one system call for each IKE SA and no more; the page cache outlives a
//! process. A host that dies with its agent may lose it. There is no secret in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use cluster::message::PeerMark;
use model::{GroupId, IkeSpi, MemberId};

use super::{MOST, Named, parted};
use crate::clock;
use crate::config::Config;
use crate::core::Core;
use crate::core::groups::Groups;
use crate::events::EventLog;

const MAGIC: &[u8; 8] = b"espfork\x01";
const HEAD: usize = MAGIC.len() + 1 + 16;
const RECORD: usize = 18;
const IKE_SA: u8 = 1;
const PEER: u8 = 2;
/// The fork is discarded: what is left is to tell it.
const OWED: u8 = 0x80;
/// Octets of the longest file that is read.
const LONGEST: usize = HEAD + RECORD * 4 * MOST;

/// What a life before this one has left.
#[derive(Default)]
pub struct Left {
    /// Recorded in an epoch that may go on.
    pub touched: Vec<(GroupId, Named)>,
    /// To be told.
    pub owed: Vec<(GroupId, Named)>,
}

/// The file.
pub struct KeptForks {
    path: PathBuf,
    head: [u8; HEAD],
    file: Option<File>,
    /// What is told and not settled.
    owed: Vec<(GroupId, Named)>,
    failed: bool,
}

fn head(cluster: &str, member: MemberId) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..MAGIC.len()].copy_from_slice(MAGIC);
    head[MAGIC.len()] = member.0;
    head[MAGIC.len() + 1..].copy_from_slice(&crypto::sha256(&[cluster.as_bytes()])[..16]);
    head
}

fn record(group: GroupId, named: Named, owed: bool) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[0] = if owed { OWED } else { 0 };
    record[1] = group.0;
    match named {
        Named::IkeSa(spi) => {
            record[0] |= IKE_SA;
            record[2..10].copy_from_slice(&spi.0.to_be_bytes());
        }
        Named::Peer(mark) => {
            record[0] |= PEER;
            record[2..].copy_from_slice(&mark.0);
        }
    }
    record
}

fn read_record(record: &[u8]) -> Option<(GroupId, Named, bool)> {
    let (kind, group) = (*record.first()?, GroupId(*record.get(1)?));
    let named = match kind & !OWED {
        IKE_SA => Named::IkeSa(IkeSpi(u64::from_be_bytes(record.get(2..10)?.try_into().ok()?))),
        PEER => Named::Peer(PeerMark(record.get(2..RECORD)?.try_into().ok()?)),
        _ => return None,
    };
    Some((group, named, kind & OWED != 0))
}

fn read(path: &Path, head: &[u8; HEAD]) -> std::io::Result<Left> {
    let octets = match std::fs::metadata(path) {
        Ok(file) if file.len() > LONGEST as u64 => return Err(Error::other("it is too long")),
        Ok(_) => std::fs::read(path)?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Left::default()),
        Err(error) => return Err(error),
    };
    let records = octets
        .strip_prefix(head)
        .ok_or_else(|| Error::other("it is not this member's, or of another release"))?;
    let mut left = Left::default();
    // A record that was cut off at the end was about nothing that has left the host.
    for (group, named, owed) in records.chunks_exact(RECORD).filter_map(read_record) {
        let to = if owed { &mut left.owed } else { &mut left.touched };
        to.push((group, named));
    }
    Ok(left)
}

impl KeptForks {
    /// Beside the control socket; and what is in there from the life before.
    pub fn open(config: &Config, log: &mut EventLog) -> (Self, Left) {
        let path = config.control.socket.with_extension("forks");
        Self::at(path, &config.cluster.name, config.cluster.member, log)
    }

    fn at(path: PathBuf, cluster: &str, member: MemberId, log: &mut EventLog) -> (Self, Left) {
        let head = head(cluster, member);
        let left = read(&path, &head).unwrap_or_else(|error| {
            let text = format!(
                "{}: what the life before touched alone is not known: {error}",
                path.display()
            );
            log.warn("forks_kept", text);
            Left::default()
        });
        let kept = Self {
            path,
            head,
            file: None,
            owed: left.owed.clone(),
            failed: false,
        };
        (kept, left)
    }

    /// Adds what a fork touched just now.
    pub fn add(&mut self, group: GroupId, news: &[Named], log: &mut EventLog) {
        if news.is_empty() {
            return;
        }
        let octets = news
            .iter()
            .flat_map(|named| record(group, *named, false))
            .collect::<Vec<_>>();
        let done = self.file().and_then(|mut file| file.write_all(&octets));
        self.done(done, log);
    }

    /// Open for appending; with its head.
    fn file(&mut self) -> std::io::Result<&File> {
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                let mut options = OpenOptions::new();
                let mut file = options.append(true).create(true).mode(0o600).open(&self.path)?;
                if file.metadata()?.len() == 0 {
                    file.write_all(&self.head)?;
                }
                file
            }
        };
        Ok(self.file.insert(file))
    }

    /// This is to be told from now on.
    pub fn owe(&mut self, group: GroupId, all: &[Named]) {
        let room = (2 * MOST).saturating_sub(self.owed.len());
        self.owed
            .extend(all.iter().take(room).map(|named| (group, *named)));
    }

    /// Groups of which something is to be told.
    fn owed_groups(&self) -> BTreeSet<GroupId> {
        self.owed.iter().map(|(group, _)| *group).collect()
    }

    /// Writes the file anew: what is owed, and what is recorded now.
    fn write(&mut self, touched: impl Iterator<Item = (GroupId, Named)>, log: &mut EventLog) {
        let owed = self
            .owed
            .iter()
            .map(|(group, named)| record(*group, *named, true));
        let touched = touched.map(|(group, named)| record(group, named, false));
        let octets = owed.chain(touched).flatten().collect::<Vec<_>>();
        self.file = None;
        let done = match octets.is_empty() {
            true => match std::fs::remove_file(&self.path) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
            false => self.replace(&octets),
        };
        self.done(done, log);
    }

    fn replace(&self, octets: &[u8]) -> std::io::Result<()> {
        let fresh = self.path.with_extension("forks-new");
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(&self.head)?;
        file.write_all(octets)?;
        std::fs::rename(&fresh, &self.path)
    }

    fn done(&mut self, done: std::io::Result<()>, log: &mut EventLog) {
        if let Err(error) = &done
            && !self.failed
        {
            let text = format!(
                "{}: what this member does alone is not kept for its next life: {error}",
                self.path.display()
            );
            log.warn("forks_kept", text);
        }
        self.failed = done.is_err();
    }
}

impl Core {
    /// What the life before has left: it is told like a fork of this life's, or recorded on where this life goes on in the same epoch.
    pub(in crate::core) fn take_up_forks(&mut self, left: Left, goes_on: bool) {
        let layout = self.groups.layout;
        let group_of = |group: GroupId, named: &Named| match named {
            Named::IkeSa(spi) => layout.group_of(spi.segment()),
            Named::Peer(_) => GroupId(group.0 % layout.count()),
        };
        let (mut told, mut recorded) = (left.owed, left.touched);
        if !goes_on {
            told.append(&mut recorded);
        }
        for (group, named) in recorded {
            let group = group_of(group, &named);
            self.groups.get_mut(group).touched.go_on(named);
        }
        self.kept_forks.owed.clear();
        let mut parts = BTreeMap::<GroupId, Vec<Named>>::new();
        for (group, named) in told {
            parts.entry(group_of(group, &named)).or_default().push(named);
        }
        for (group, all) in parts {
            self.kept_forks.owe(group, &all);
            let text = format!(
                "the life before touched {} IKE SAs and peers alone, and could not say so: whoever owns the group is told",
                all.len()
            );
            self.log.note_of(group, "fork_left", text);
            let (touched, peers) = parted(all);
            self.node.handle(cluster::Input::ForkTouched {
                now: clock::now(),
                group,
                touched,
                peers,
            });
        }
        self.keep_forks();
    }

    /// What is kept for the next life has changed.
    pub(in crate::core) fn keep_forks(&mut self) {
        let touched = of_all(&self.groups);
        self.kept_forks.write(touched, &mut self.log);
    }

    /// Once a second: what has been dealt with is not kept.
    pub(in crate::core) fn forget_settled_forks(&mut self) {
        let groups = self.kept_forks.owed_groups();
        let settled = groups.into_iter().filter(|id| !self.node.owes_a_fork(*id));
        let settled = settled.collect::<Vec<_>>();
        if !settled.is_empty() {
            self.kept_forks.owed.retain(|(id, _)| !settled.contains(id));
            self.keep_forks();
        }
    }
}

fn of_all(groups: &Groups) -> impl Iterator<Item = (GroupId, Named)> {
    groups
        .iter()
        .flat_map(|group| group.touched.all().map(|named| (group.id, named)))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("esp-forks-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }

        fn open(&self, member: u8) -> (KeptForks, Left) {
            let mut log = EventLog::default();
            KeptForks::at(self.0.join("a.forks"), "lab", MemberId(member), &mut log)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    const SA: (GroupId, Named) = (GroupId(3), Named::IkeSa(IkeSpi(0x0301_0000_0000_0007)));

    fn peer() -> (GroupId, Named) {
        (GroupId(0), Named::Peer(PeerMark::of("roam", Some("@a"))))
    }

    #[test]
    fn a_life_that_ends_without_a_word_leaves_what_it_touched_to_the_next_one() {
        let folder = Folder::new("left");
        let mut log = EventLog::default();
        let (mut kept, left) = folder.open(1);
        assert!(left.touched.is_empty() && left.owed.is_empty());
        kept.add(SA.0, &[], &mut log);
        assert!(!kept.path.exists(), "nothing happened");
        kept.add(SA.0, &[SA.1], &mut log);
        kept.add(peer().0, &[peer().1], &mut log);
        // Killed; and once more.
        for _ in 0..2 {
            let (_, left) = folder.open(1);
            assert_eq!(left.touched, [SA, peer()]);
        }
        // The fork is discarded, and another one begins before it is told.
        let (mut kept, _) = folder.open(1);
        kept.owe(SA.0, &[SA.1]);
        kept.write(std::iter::empty(), &mut log);
        kept.add(peer().0, &[peer().1], &mut log);
        let (mut kept, left) = folder.open(1);
        assert_eq!((&left.owed[..], &left.touched[..]), (&[SA][..], &[peer()][..]));
        assert_eq!(kept.owed_groups(), BTreeSet::from([SA.0]));
        kept.owed.clear();
        kept.write(std::iter::empty(), &mut log);
        assert!(!kept.path.exists(), "all is dealt with");
    }

    #[test]
    fn what_is_another_members_or_damaged_says_nothing() {
        let folder = Folder::new("damaged");
        let mut log = EventLog::default();
        let (mut kept, _) = folder.open(1);
        kept.add(SA.0, &[SA.1, peer().1], &mut log);
        let (_, left) = folder.open(2);
        assert!(left.touched.is_empty(), "another member's");
        let octets = std::fs::read(&kept.path).unwrap();
        std::fs::write(&kept.path, &octets[..octets.len() - 1]).unwrap();
        let (_, left) = folder.open(1);
        assert_eq!(left.touched, [SA], "the last one was cut off");
        for length in 0..HEAD {
            std::fs::write(&kept.path, &octets[..length]).unwrap();
            assert!(folder.open(1).1.touched.is_empty());
        }
        let mut other = octets;
        other[HEAD] = 7;
        std::fs::write(&kept.path, &other).unwrap();
        assert_eq!(folder.open(1).1.touched.len(), 1, "a kind that is not known");
    }
}
