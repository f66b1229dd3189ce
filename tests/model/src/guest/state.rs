//! What the world consists of, and what may happen in it.

use cluster::rules_guest::HostStep;
use std::collections::BTreeSet;

/// Epochs of each group.
pub const EPOCHS: usize = 2;
/// SPIs: one for each pair of a host's and a sponsor's epoch.
pub const SPIS: usize = EPOCHS * EPOCHS;

/// What the journal of the IKE SA's group says of an SPI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Recorded {
    /// Nothing.
    #[default]
    No,
    /// It is in a request of ours.
    Promised,
    /// A Child SA.
    Child,
    /// It was one.
    Deleted,
}

/// What the journal of the host's group says of an SPI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lodged {
    /// Nothing.
    #[default]
    No,
    /// Installed; the IKE SA that it belongs to, and whether it carries outbound traffic.
    Here(u8, bool),
    /// It was.
    Gone,
}

/// How far a sponsor is with an SPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Step {
    /// The peer asked for it: it has the SA once our answer leaves.
    pub answers: bool,
    /// The host.
    pub host: HostKnown,
    /// Number of the installation that was said, 0 before.
    pub said: u8,
    /// Its own part is committed.
    pub recorded: bool,
    /// It is to be used, and that was said.
    pub used: bool,
    /// The messages have left.
    pub left: bool,
}

/// [`HostStep`] in an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostKnown {
    /// Not asked, or no answer.
    Open,
    /// It has it.
    Done,
    /// It refused, or the sponsor waits no longer.
    Failed,
}

impl HostKnown {
    /// As the rules take it.
    pub fn step(self) -> HostStep {
        match self {
            Self::Open => HostStep::Asked,
            Self::Done => HostStep::Committed,
            Self::Failed => HostStep::Failed,
        }
    }
}

/// A sponsor in its epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sponsor {
    /// The host's epoch as it knows it.
    pub host: u8,
    /// Number of what it said last.
    pub number: u8,
    /// SPIs that it took.
    pub steps: [Option<Step>; SPIS],
}

/// A host in its epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host {
    /// The sponsor's epoch as it knows it.
    pub sponsor: u8,
    /// Offers that were used up.
    pub used_up: u8,
    /// (epoch, number) of what was said last of each guest.
    pub said: [Option<(u8, u8)>; SPIS],
    /// It has followed a roster of this epoch.
    pub roster: Option<u8>,
    /// Proposed, and not committed yet.
    pub journal: Vec<Entry>,
}

impl Host {
    /// Whether its installation is proposed.
    pub fn is_coming(&self, spi: usize) -> bool {
        let installs = |entry: &Entry| matches!(entry, Entry::Install(at, ..) if usize::from(*at) == spi);
        self.journal.iter().any(installs)
    }
}

/// An entry of the host's journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Entry {
    /// SPI, the IKE SA that it belongs to, and what it answers.
    Install(u8, u8, Record),
    /// It is there already, or will be: an answer only.
    Confirm(u8, Record),
    /// As it was said.
    Change(Said),
}

/// What is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Said {
    /// Install.
    Install(u8),
    /// Use outbound.
    Use(u8),
    /// It belongs to another IKE SA.
    Move(u8, u8),
    /// Remove.
    Remove(u8),
    /// These SPIs are there, by bits.
    Roster(u8),
    /// Host: done or refused.
    Answer(u8, bool),
}

/// A record on the network. It stays: late, twice or never is the same to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Record {
    /// The host's epoch that it is for.
    pub host: u8,
    /// The sponsor's epoch.
    pub sponsor: u8,
    /// Number of what was said, or is answered.
    pub number: u8,
    /// What.
    pub said: Said,
}

/// What must never happen, once it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Broken {
    /// Installed a second time: its numbers begin anew under the same keys.
    Again,
    /// A message left that completes an exchange which the host's journal does not know, and that nobody takes back.
    TooSoon,
    /// In use outbound before the record that names it was committed.
    UsedEarly,
    /// A guest that the record names was removed.
    Evicted,
    /// It was given back to an IKE SA that is gone.
    Backwards,
    /// Installed for a sponsor whose successor the host has obeyed.
    Orphan,
}

/// Everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    /// Present epochs: the sponsor's, the host's.
    pub epochs: [u8; 2],
    /// Journal of the IKE SA's group.
    pub recorded: [Recorded; SPIS],
    /// The IKE SA that Child SAs belong to, by its rekeys.
    pub ike: u8,
    /// Journal of the host's group.
    pub lodged: [Lodged; SPIS],
    /// SPIs of SAs that the peer has.
    pub peer: u8,
    /// By epoch.
    pub sponsors: [Sponsor; EPOCHS],
    /// By epoch.
    pub hosts: [Host; EPOCHS],
    /// Every record that was ever sent.
    pub network: BTreeSet<Record>,
    /// What is left of the bounds.
    pub left: Bounds,
    /// What went wrong.
    pub broken: BTreeSet<Broken>,
}

/// How much may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// Child SAs that are begun.
    pub children: u8,
    /// Deletions.
    pub deletions: u8,
    /// Rosters.
    pub rosters: u8,
    /// Rekeys of the IKE SA.
    pub rekeys: u8,
    /// Takeovers of the sponsor's group.
    pub sponsors: u8,
    /// Takeovers of the host's group.
    pub hosts: u8,
    /// A sponsor waits no longer.
    pub patience: u8,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A sponsor takes an SPI: for a request of its own, or for the peer's.
    Take(u8, bool),
    /// It has the host install it.
    Ask(u8, u8),
    /// It waits no longer.
    GiveUp(u8, u8),
    /// It has its own part committed.
    Commit(u8, u8),
    /// It says what follows.
    Follow(u8, u8),
    /// Its messages leave.
    Leave(u8, u8),
    /// It deletes a Child SA.
    Delete(u8, u8),
    /// It rekeys the IKE SA.
    Rekey(u8),
    /// It says what there is.
    CallRoster(u8),
    /// It hears of the host's epoch.
    SponsorLearns(u8),
    /// A host hears of the sponsor's epoch.
    HostLearns(u8),
    /// The first entry of a host's is committed.
    HostCommits(u8),
    /// Another member owns the IKE SA's group.
    SponsorLost,
    /// Another member owns the host's group.
    HostLost,
    /// A record arrives.
    Hear(Record),
}
