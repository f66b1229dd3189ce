//! What members say to each other: postcard, one version octet in front. The channel authenticates; these types only
//! say what was said. Anything of another version, epoch or incarnation is refused by name.

use crate::guest::GuestBody;
use crate::rules::EpochId;
use model::{Epoch, EspSpi, GroupId, IkeSpi, Incarnation, MemberId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use thiserror::Error;

/// Newest format of the records on the synch channel that this release speaks.
///
/// 2 and 3 differ in the heartbeat ([`HeartbeatOf2`]); 4 is 3, and may say what only members of 4 and later understand, and so is 5: who
/// writes such a record asks first which format the receiver speaks.
pub const VERSION: u8 = 5;
/// Oldest format that it speaks. Two members use the newest one that both know, so that a cluster can be upgraded one
/// member after the other; a Hello is always in the oldest format, and names the newest.
pub const OLDEST: u8 = 2;
/// First format that knows [`GroupBody::Guest`].
pub const GUESTS_SINCE: u8 = 4;
/// Since this format a journal entry may be written against what the entries before it have left.
pub const BRIEF_SINCE: u8 = 4;
/// Members that speak this format can read records of Child SAs with AES-CBC. Entries and snapshots look the same in all formats, so such
/// an SA is not made while a member speaks an earlier one ([`crate::Node::all_speak`]).
pub const CBC_SINCE: u8 = 5;
/// In [`GroupBeat::joining`]: the sender's format does not say it.
pub const NOT_SAID: u8 = u8::MAX;
/// Octets of a snapshot in one record.
pub const CHUNK: usize = 32 * 1024;
/// Longest record that is accepted.
pub const RECORD_MAX: usize = 1 << 20;
/// Raises in one datagram: about 1,000 octets.
pub const RAISES_PER_DATAGRAM: usize = 24;
/// IKE SAs and peers of a discarded fork in one record: about 16 KiB at most.
pub const FORK_SPIS: usize = 1024;
/// First format that speaks of discarded forks.
pub const FORKS_SINCE: u8 = 4;
/// First format that names peers of a discarded fork too ([`GroupBody::ForkNamed`]), and whose members let the longer journal win where
/// two claims have the same number.
pub const MARKS_SINCE: u8 = 5;
/// First format that speaks of the rest of leases ([`GroupBody::HandoverRests`]).
pub const RESTS_SINCE: u8 = 5;
/// Rests of leases in one record: about 64 KiB.
pub const RESTS_PER_RECORD: usize = 4096;
/// Edges in one report.
pub const EDGES_PER_DATAGRAM: usize = 60;

/// A member in one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SetMember {
    /// Who.
    pub member: MemberId,
    /// Which start of its agent.
    pub incarnation: Incarnation,
}

/// Names the peer of an IKE SA to a member that does not know the IKE SA: a digest of the connection and of the peer's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PeerMark(pub [u8; 16]);

impl PeerMark {
    /// Of a connection's name and the peer's identity as text. Without an identity: whoever this side initiates the connection with.
    pub fn of(connection: &str, remote_id: Option<&str>) -> Self {
        let length = (connection.len() as u64).to_be_bytes();
        let (kind, id) = remote_id.map_or((0, ""), |id| (1, id));
        let digest = crypto::sha256(&[&length, connection.as_bytes(), &[kind], id.as_bytes()]);
        Self(std::array::from_fn(|at| digest[at]))
    }
}

/// A way to the other member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Link {
    /// The synch network: journal, raises, heartbeats.
    Synch,
    /// The outside network: heartbeats and notices.
    Outside,
}

/// Direction of an SA, seen from the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Direction {
    /// Ceiling C and headroom H.
    Inbound,
    /// Lease L of size S.
    Outbound,
}

/// New limits for one direction of one SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaiseItem {
    /// Slot.
    pub slot: u32,
    /// SPI of that direction (ours inbound, the peer's outbound).
    pub spi: u32,
    /// Which.
    pub direction: Direction,
    /// L or C.
    pub limit: u64,
    /// S or H.
    pub step: u64,
}

impl RaiseItem {
    /// What it is for.
    pub fn key(&self) -> RaiseKey {
        RaiseKey {
            slot: self.slot,
            spi: self.spi,
            direction: self.direction,
        }
    }
}

/// The rest of a lease: outbound numbers of an SA that a lost standby knew, which the owner leaves to the taker of a planned handover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRest {
    /// Our inbound SPI.
    pub spi_in: EspSpi,
    /// The taker begins above this number.
    pub above: u64,
    /// The last number that it may use.
    pub last: u64,
}

/// Names one direction of one SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RaiseKey {
    /// Slot.
    pub slot: u32,
    /// SPI.
    pub spi: u32,
    /// Direction.
    pub direction: Direction,
}

/// Digest of each part of the policy that all members must share, by the name of the part.
pub type Policy = BTreeMap<String, [u8; 16]>;

/// A record, in the newest format.
pub type Message = MessageOf<Heartbeat>;
/// What a record is about, in the newest format.
pub type Body = BodyOf<Heartbeat>;

/// A record of a format whose heartbeats are `H`: that is all in which the formats differ.
#[derive(Clone, Serialize, Deserialize)]
pub struct MessageOf<H> {
    /// Who says it, in which life.
    pub from: SetMember,
    /// What.
    pub body: BodyOf<H>,
}

/// What a record is about. No `Debug`: journal entries and snapshots hold keys.
#[derive(Clone, Serialize, Deserialize)]
pub enum BodyOf<H> {
    /// I am alive.
    Heartbeat(H),
    /// First record on a stream, always in the oldest format.
    Hello {
        /// Newest format that the sender speaks.
        newest: u8,
        /// Digests of the policy that all members must share.
        policy: Policy,
        /// MAC addresses and the like; the agent's business.
        facts: Vec<u8>,
    },
    /// An operator wants every group at the member that it is meant for.
    Rebalance,
    /// About one group.
    Group {
        /// Which.
        group: GroupId,
        /// The sender's epoch of the group.
        epoch: EpochId,
        /// What.
        body: GroupBody,
    },
}

/// What a record says of a group.
#[derive(Clone, Serialize, Deserialize)]
pub enum GroupBody {
    /// A change.
    Journal {
        /// Its position; they are consecutive.
        position: u64,
        /// The agent's encoding of the change.
        #[serde(with = "model::octets")]
        entry: Vec<u8>,
    },
    /// Everything up to `position` is in my mirror and my maps are armed.
    JournalAck {
        /// The position.
        position: u64,
    },
    /// New limits, each with its version.
    Raise {
        /// Versions up to this one are armed by every in-sync member.
        settled: u64,
        /// Version and limits.
        items: Vec<(u64, RaiseItem)>,
    },
    /// These versions are armed.
    RaiseAck {
        /// Armed.
        armed: Vec<(u64, RaiseKey)>,
        /// Versions for SAs that the sender does not know.
        unknown: Vec<(u64, RaiseKey)>,
    },
    /// Taker to the other in-sync members: I own the group in the epoch of this record.
    NewEpoch {
        /// The epoch that it follows.
        old: EpochId,
        /// Last journal position in the taker's mirror.
        position: u64,
        /// The new in-sync set.
        in_sync: BTreeSet<SetMember>,
    },
    /// I follow you: my mirror ends where yours does.
    EpochAck {
        /// The position.
        position: u64,
        /// SA directions whose last raise I armed without hearing that everybody has: say what holds.
        doubtful: Vec<RaiseKey>,
    },
    /// Right edges of inbound windows, for the evidence rule; may be stale.
    Report(Vec<(u32, EspSpi, u64)>),
    /// Let me join: what I hold is no part of your history (or nothing). It is void for you; I keep it until your snapshot
    /// replaces it, since I may be in the set still.
    JoinRequest {
        /// Rises with every join of the sender's life.
        join: u64,
    },
    /// A snapshot follows.
    SnapshotBegin {
        /// The join that it belongs to.
        join: u64,
        /// Journal position that it stands for.
        position: u64,
        /// Its octets.
        length: u64,
        /// Number that a claim of this epoch's successor must pass.
        claim_above: Epoch,
        /// Raises up to this version are part of the snapshot: a late copy of one must not undo what came after it.
        raises_through: u64,
    },
    /// A piece, in order.
    SnapshotChunk(#[serde(with = "model::octets")] Vec<u8>),
    /// I hold the snapshot of this position, and my maps are armed.
    SnapshotAck {
        /// The join that it belongs to.
        join: u64,
        /// The position.
        position: u64,
    },
    /// You are in the in-sync set.
    Joined {
        /// The join that is complete.
        join: u64,
        /// The set.
        in_sync: BTreeSet<SetMember>,
        /// The owner's last heartbeat before: an older one does not speak of this set.
        heartbeat: u64,
    },
    /// Your join is refused.
    JoinRefused {
        /// Why.
        reason: String,
    },
    /// You were excluded: I go on without you.
    SoloNotice {
        /// The receiver's join that is void by that; 0 for a place that it got by following or by a planned takeover. A
        /// late notice must not undo a later join.
        join: u64,
    },
    /// To the owner: please hand the group over to this member (an operator asked here).
    HandoverRequest {
        /// The taker.
        to: MemberId,
    },
    /// Owner to taker: take over; everything up to `position` is acknowledged.
    HandoverOffer {
        /// Journal position.
        position: u64,
        /// The epoch that the taker is to make.
        epoch: EpochId,
    },
    /// Taker to owner: my shadow is armed.
    HandoverArmed,
    /// Owner to taker: my owner words name you.
    HandoverFlipped,
    /// Owner to taker: hold what is up to the ceilings, I am about to close.
    HandoverClosing,
    /// Taker to owner: I hold.
    HandoverHolding,
    /// Owner to taker: the windows as they are in the end.
    HandoverWindows(#[serde(with = "model::octets")] Vec<u8>),
    /// Taker to owner: merged, all done.
    HandoverDone,
    /// Either: it is off.
    HandoverAborted {
        /// Why.
        reason: String,
    },
    /// To the owner, from version 4 on: my fork of the group is discarded, and it touched these IKE SAs. Said again until it is settled.
    ForkTouched {
        /// Names this part of what the sender's life has to say; it rises.
        number: u64,
        /// Our SPIs.
        touched: Vec<IkeSpi>,
    },
    /// Owner, from version 4 on: none of the IKE SAs of that part is in use here any more.
    ForkSettled {
        /// Which part.
        number: u64,
    },
    /// About guests in the group (RFC 9611, ADR 11); from format 4 on.
    Guest(GuestBody),
    /// As [`GroupBody::ForkTouched`], from version 5 on: the fork has also established IKE SAs that the receiver does not know, with these
    /// peers, which have dropped what they had before (INITIAL_CONTACT).
    ForkNamed {
        /// As in [`GroupBody::ForkTouched`], and of the same numbers.
        number: u64,
        /// Our SPIs.
        touched: Vec<IkeSpi>,
        /// The peers.
        peers: Vec<PeerMark>,
    },
    /// Owner to taker, from format 5 on, before the offer of `epoch`: what I leave you of leases that nobody may raise. Several records add up.
    HandoverRests {
        /// The epoch that the taker is to make: they are good for that one only.
        epoch: EpochId,
        /// The rests.
        rests: Vec<LeaseRest>,
    },
}

/// A sign of life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Rises by one for each heartbeat of the sender on any link.
    pub seq: u64,
    /// The receiver's last heartbeat that the sender has seen, and the life that it came from: the confirmation.
    pub echo: Option<(Incarnation, u64)>,
    /// A reply, to which nobody replies.
    pub reply: bool,
    /// The sender's data plane works.
    pub healthy: bool,
    /// The sender is being drained: it wants no groups.
    pub draining: bool,
    /// The lives that the masks below speak of, by their places here. A member that was started again is listed twice while
    /// one group counts on its old life still and another one on its new life already.
    pub lives: Vec<SetMember>,
    /// One for each group, in the order of the groups.
    pub groups: Vec<GroupBeat>,
}

/// What a heartbeat says of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupBeat {
    /// The sender's epoch.
    pub epoch: EpochId,
    /// The sender owns the group.
    pub owner: bool,
    /// The in-sync set as the owner knows it, a bit for each place in [`Heartbeat::lives`]; 0 from anybody else.
    pub in_sync: u64,
    /// Owner: the member that is joining, 0 for none, [`NOT_SAID`].
    pub joining: u8,
    /// Last journal position written (owner) or armed (standby).
    pub position: u64,
    /// Owner: raises up to this version are armed by every in-sync member.
    pub settled: u64,
}

impl Heartbeat {
    /// The set that a mask stands for; places that the heartbeat does not name are left out.
    pub fn set_of(&self, mask: u64) -> BTreeSet<SetMember> {
        self.lives
            .iter()
            .take(u64::BITS as usize)
            .enumerate()
            .filter(|(place, _)| mask & 1 << place != 0)
            .map(|(_, life)| *life)
            .collect()
    }

    /// The mask of a set, over these lives.
    pub fn mask_of(lives: &BTreeSet<SetMember>, set: &BTreeSet<SetMember>) -> u64 {
        lives
            .iter()
            .take(u64::BITS as usize)
            .enumerate()
            .filter(|(_, life)| set.contains(life))
            .fold(0, |mask, (place, _)| mask | 1 << place)
    }
}

/// Why a record was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadRecord {
    /// Nothing or far too much.
    #[error("record of {0} octets")]
    Length(usize),
    /// From a version of espalier that speaks another format.
    #[error(
        "record of version {0}, this member speaks versions {OLDEST} to {VERSION}: upgrade one release at a time, and all members"
    )]
    Version(u8),
    /// Not a record.
    #[error("record cannot be decoded")]
    Garbage,
}

impl Message {
    /// Octets for the channel, in a format that the receiver speaks; one that is not known here counts as the nearest.
    pub fn encode(&self, version: u8) -> Vec<u8> {
        // Plain data without maps of unknown length always encodes.
        let octets = match version.clamp(OLDEST, VERSION) {
            OLDEST => {
                let older = self.clone().with_heartbeat(HeartbeatOf2::from);
                postcard::to_extend(&older, vec![OLDEST])
            }
            version => postcard::to_extend(self, vec![version]),
        };
        octets.unwrap_or_default()
    }

    /// From the channel.
    ///
    /// # Errors
    /// [`BadRecord`].
    pub fn decode(octets: &[u8]) -> Result<Self, BadRecord> {
        if octets.len() < 2 || octets.len() > RECORD_MAX {
            return Err(BadRecord::Length(octets.len()));
        }
        match octets[0] {
            OLDEST => {
                whole::<MessageOf<HeartbeatOf2>>(&octets[1..]).map(|m| m.with_heartbeat(Heartbeat::from))
            }
            3..=VERSION => whole(&octets[1..]),
            other => Err(BadRecord::Version(other)),
        }
    }
}

fn whole<'a, T: Deserialize<'a>>(octets: &'a [u8]) -> Result<T, BadRecord> {
    match postcard::take_from_bytes(octets) {
        Ok((value, [])) => Ok(value),
        _ => Err(BadRecord::Garbage),
    }
}

impl<H> MessageOf<H> {
    fn with_heartbeat<G>(self, f: impl FnOnce(H) -> G) -> MessageOf<G> {
        let body = match self.body {
            BodyOf::Heartbeat(heartbeat) => BodyOf::Heartbeat(f(heartbeat)),
            BodyOf::Hello {
                newest,
                policy,
                facts,
            } => BodyOf::Hello {
                newest,
                policy,
                facts,
            },
            BodyOf::Rebalance => BodyOf::Rebalance,
            BodyOf::Group { group, epoch, body } => BodyOf::Group { group, epoch, body },
        };
        MessageOf {
            from: self.from,
            body,
        }
    }
}

/// A heartbeat of format 2: it does not say who is joining, nor that the sender is being drained, and its masks name members,
/// bit `member - 1`, not lives.
#[derive(Clone, Serialize, Deserialize)]
pub struct HeartbeatOf2 {
    seq: u64,
    echo: Option<(Incarnation, u64)>,
    reply: bool,
    healthy: bool,
    lives: Vec<SetMember>,
    groups: Vec<(EpochId, bool, u16, u64, u64)>,
}

impl From<Heartbeat> for HeartbeatOf2 {
    fn from(h: Heartbeat) -> Self {
        let members = |mask| {
            h.set_of(mask)
                .iter()
                .filter(|m| (1..=16).contains(&m.member.0))
                .fold(0, |mask, m| mask | 1 << (m.member.0 - 1))
        };
        let groups = h
            .groups
            .iter()
            .map(|g| (g.epoch, g.owner, members(g.in_sync), g.position, g.settled))
            .collect();
        Self {
            seq: h.seq,
            echo: h.echo,
            reply: h.reply,
            healthy: h.healthy,
            lives: h.lives,
            groups,
        }
    }
}

impl From<HeartbeatOf2> for Heartbeat {
    fn from(h: HeartbeatOf2) -> Self {
        let places = |mask: u16| {
            h.lives
                .iter()
                .take(u64::BITS as usize)
                .enumerate()
                .filter(|(_, m)| (1..=16).contains(&m.member.0) && mask & 1 << (m.member.0 - 1) != 0)
                .fold(0, |places, (place, _)| places | 1 << place)
        };
        let beat = |(epoch, owner, in_sync, position, settled)| GroupBeat {
            epoch,
            owner,
            in_sync: places(in_sync),
            joining: NOT_SAID,
            position,
            settled,
        };
        let groups = h.groups.iter().copied().map(beat).collect();
        Self {
            seq: h.seq,
            echo: h.echo,
            reply: h.reply,
            healthy: h.healthy,
            draining: false,
            lives: h.lives,
            groups,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Incarnation;

    fn life(member: u8, incarnation: u64) -> SetMember {
        SetMember {
            member: MemberId(member),
            incarnation: Incarnation(incarnation),
        }
    }

    fn heartbeat(sets: &[BTreeSet<SetMember>]) -> Heartbeat {
        let lives: BTreeSet<SetMember> = sets.iter().flatten().copied().collect();
        let beat = |set| GroupBeat {
            epoch: EpochId {
                number: Epoch(1),
                owner: MemberId(1),
            },
            owner: true,
            in_sync: Heartbeat::mask_of(&lives, set),
            joining: 0,
            position: 7,
            settled: 3,
        };
        Heartbeat {
            seq: 1,
            echo: None,
            reply: false,
            healthy: true,
            draining: false,
            groups: sets.iter().map(beat).collect(),
            lives: lives.into_iter().collect(),
        }
    }

    fn sent(heartbeat: &Heartbeat, version: u8) -> Heartbeat {
        let message = Message {
            from: life(1, 1),
            body: Body::Heartbeat(heartbeat.clone()),
        };
        match Message::decode(&message.encode(version)).map(|m| m.body) {
            Ok(Body::Heartbeat(heartbeat)) => heartbeat,
            _ => panic!("a heartbeat was sent"),
        }
    }

    #[test]
    fn a_mark_tells_connections_and_identities_apart() {
        let marks = [
            PeerMark::of("roam", None),
            PeerMark::of("roam", Some("")),
            PeerMark::of("roam", Some("@a")),
            PeerMark::of("roam@a", Some("")),
            PeerMark::of("roam", Some("@b")),
        ];
        assert_eq!(BTreeSet::from(marks).len(), marks.len());
        assert_eq!(PeerMark::of("roam", Some("@a")), marks[2]);
    }

    fn named(heartbeat: &Heartbeat) -> Vec<BTreeSet<SetMember>> {
        let groups = heartbeat.groups.iter();
        groups.map(|g| heartbeat.set_of(g.in_sync)).collect()
    }

    /// Member 2 was started again: one group has its new life in the set, another one its old life still.
    #[test]
    fn two_lives_of_a_member_are_told_apart_group_by_group() {
        let sets = [
            BTreeSet::from([life(1, 1), life(2, 9), life(3, 1)]),
            BTreeSet::from([life(1, 1), life(2, 5), life(3, 1)]),
        ];
        let heartbeat = heartbeat(&sets);
        assert_eq!(named(&heartbeat), sets);
        assert_eq!(named(&sent(&heartbeat, VERSION)), sets);
    }

    #[test]
    fn a_heartbeat_says_the_same_in_every_format_since_the_third_and_later_ones_are_refused() {
        let beat = heartbeat(&[BTreeSet::from([life(1, 1), life(2, 9)])]);
        let message = Message {
            from: life(1, 1),
            body: Body::Heartbeat(beat.clone()),
        };
        for version in 3..=VERSION {
            assert_eq!(message.encode(version)[0], version);
            assert_eq!(sent(&beat, version), beat, "format {version}");
        }
        assert_eq!(message.encode(VERSION + 1)[0], VERSION);
        let mut later = message.encode(VERSION);
        for version in [OLDEST - 1, VERSION + 1] {
            later[0] = version;
            assert_eq!(Message::decode(&later).err(), Some(BadRecord::Version(version)));
        }
    }

    #[test]
    fn the_older_format_names_the_same_sets_while_every_member_has_one_life() {
        let sets = [
            BTreeSet::from([life(1, 1), life(16, 9)]),
            BTreeSet::from([life(1, 1)]),
        ];
        let older = sent(&heartbeat(&sets), OLDEST);
        assert_eq!(named(&older), sets);
        assert_eq!(older.groups[0].joining, NOT_SAID);
    }

    /// Sixteen members in two lives each fill half of the mask; more lives than bits are left out, not mixed up.
    #[test]
    fn a_mask_of_as_many_lives_as_can_be_names_each() {
        let all: BTreeSet<SetMember> = (1..=16).flat_map(|m| [life(m, 1), life(m, 2)]).collect();
        let heartbeat = heartbeat(std::slice::from_ref(&all));
        assert_eq!(named(&heartbeat), [all]);
        let crowd: BTreeSet<SetMember> = (0..80).map(|n| life(1, n)).collect();
        let mask = Heartbeat::mask_of(&crowd, &crowd);
        assert_eq!(mask, u64::MAX);
    }

    /// Entries and snapshots hold these octets in all formats: what a suite was once, it stays, and one that is not known is refused.
    #[test]
    fn a_suite_of_a_later_release_is_refused_and_not_taken_for_another() {
        use model::EspSuite::*;
        let known = [
            Aes128Gcm16,
            Aes256Gcm16,
            ChaCha20Poly1305,
            Aes128CbcSha256,
            Aes256CbcSha256,
        ];
        for (place, suite) in known.into_iter().enumerate() {
            assert_eq!(postcard::to_allocvec(&suite).unwrap(), [place as u8]);
            assert_eq!(postcard::from_bytes(&[place as u8]), Ok(suite));
        }
        let later = postcard::from_bytes::<model::EspSuite>(&[known.len() as u8]);
        assert!(later.is_err(), "{later:?}");
    }
}
