//! Guests: Child SAs on segments of another group than their IKE SA's, so that another member serves them (RFC 9611, ADR 11).
//!
//! Sans-IO, beside [`crate::Node`]: one [`Guests`] for each member, which is host for the groups that it owns and sponsor for its
//! IKE SAs. Who is who follows from ownership; where one member is both, it talks to itself.
//!
//! ```text
//!  host                                   sponsor                               peer
//!   | -- Offer (SPIs of mine) ------------> |                                    |
//!   |                                       | <===== CREATE_CHILD_SA =====> with such an SPI
//!   | <-- Change (Install, Bind) ---------- |     engine's commit waits
//!   | journals, commits                     |
//!   | -- Answer (done) -------------------> |     record of the IKE SA: proposed, committed
//!   | <-- Change (UseOutbound, Remove ...)- |
//!   | journals, commits                     |
//!   | -- Answer (done) -------------------> |     messages of the commit leave ---> |
//!   | <-- Roster (all that I have there) -- |     after a takeover, and now and then
//!   | -- RosterSeen (what is not here) ---> |
//!   | -- Wish (rekey this) ---------------> |
//! ```
//!
//! Nothing of this is repeated but offers and rosters: they say what is, and mend whatever was lost or came twice.

pub mod host;
pub mod sponsor;

use crate::layout::Layout;
use crate::message::SetMember;
use crate::rules::EpochId;
use crate::rules_guest::Voice;
use host::Host;
use model::{ChildSaChange, EspSpi, GroupId, IkeSpi, Instant, MemberId};
use serde::{Deserialize, Serialize};
use sponsor::Sponsor;
use std::collections::VecDeque;
use std::net::SocketAddr;

/// What host and sponsor say to each other; always about a group of the host's, in its present epoch. No `Debug`: keys.
#[derive(Clone, Serialize, Deserialize)]
pub enum GuestBody {
    /// Host to a sponsor: these SPIs of the group are kept for you; all that are, not only new ones.
    Offer {
        /// Rises with every offer of the host's life.
        number: u64,
        /// SPI, and the CPU of the host's that serves it.
        spis: Vec<(EspSpi, u16)>,
    },
    /// Sponsor to host: these changes of one guest, in this order.
    Change {
        /// Who speaks, and when.
        voice: Voice,
        /// Our inbound SPI.
        spi_in: EspSpi,
        /// What.
        changes: Vec<ChildSaChange>,
    },
    /// Host to sponsor: the changes are committed, or refused.
    Answer {
        /// Our inbound SPI.
        spi_in: EspSpi,
        /// Of the change.
        number: u64,
        /// Whether they are committed.
        done: bool,
    },
    /// Sponsor to host: of all IKE SAs of the voice's group from `first` to `last`, these are the guests in your group.
    Roster {
        /// Who speaks, and when.
        voice: Voice,
        /// First IKE SPI that it is about.
        first: IkeSpi,
        /// Last one.
        last: IkeSpi,
        /// The guests.
        guests: Vec<Listed>,
    },
    /// Host to sponsor: seen; and these, which it counts on, are not here.
    RosterSeen {
        /// Of the roster.
        number: u64,
        /// Our inbound SPIs.
        lacking: Vec<EspSpi>,
    },
    /// Host to sponsor: do this with the peer.
    Wish {
        /// Our inbound SPI.
        spi_in: EspSpi,
        /// What.
        wish: Wish,
    },
}

/// A guest in a roster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Our inbound SPI.
    pub spi_in: EspSpi,
    /// What the sponsor's record says of it; `None`: it is promised to the peer, and may be here or not.
    pub known: Option<Known>,
}

/// What a sponsor's record says of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Our SPI of its IKE SA.
    pub ike_spi: IkeSpi,
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// It is to carry outbound traffic.
    pub in_use: bool,
}

/// What a host cannot do itself, since the IKE SA is the sponsor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wish {
    /// A new SA in its place.
    Rekey,
    /// It has reached the end of its life.
    Delete,
    /// The peer's numbers are stuck this far below what counts as seen after a takeover.
    Repair {
        /// By how much, at least.
        delta: u64,
    },
}

/// A guest as the host's SA database has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Our inbound SPI.
    pub spi_in: EspSpi,
    /// The peer's SPI.
    pub spi_out: EspSpi,
    /// Our SPI of its IKE SA.
    pub ike_spi: IkeSpi,
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// It carries outbound traffic.
    pub in_use: bool,
}

/// Who owns what, as far as this member knows.
pub trait Owners {
    /// Owner and epoch of a group.
    fn epoch(&self, group: GroupId) -> EpochId;
    /// Whether this member is the owner of the group, and serves.
    fn serves(&self, group: GroupId) -> bool;
    /// Whether it does, and has adopted all its IKE SAs.
    fn has_all(&self, group: GroupId) -> bool;
}

/// What the machine looks at.
pub trait View: Owners {
    /// The SA with this inbound SPI, as the SA database has it.
    fn sa(&self, spi_in: EspSpi) -> Option<Found>;
    /// Guests in a group of the host's whose IKE SAs are in this range and of group `of`.
    fn guests(&self, group: GroupId, of: GroupId, first: IkeSpi, last: IkeSpi) -> Vec<Found>;
    /// What the IKE SA's record says of a guest; `None`: it is not among its Child SAs.
    fn known(&self, ike_spi: IkeSpi, spi_in: EspSpi) -> Option<Known>;
}

/// What is to be done.
pub enum Act {
    /// Say this to the owner of a group, in the present epoch; to this member itself, hand it to [`Guests::heard`].
    Say {
        /// To whom.
        to: MemberId,
        /// Which group's.
        group: GroupId,
        /// What.
        body: GuestBody,
    },
    /// Host: journal this in the group; [`Host::committed`] answers.
    Propose {
        /// Which group.
        group: GroupId,
        /// For the answer.
        job: u64,
        /// The changes.
        changes: Vec<ChildSaChange>,
    },
    /// Host: the SPI was offered, and will not be installed.
    Release(EspSpi),
    /// Sponsor: the commit's own part may be proposed; [`Sponsor::own_committed`] answers.
    Ready(u64),
    /// Sponsor: the commit's messages may leave. The guests named here could not be installed, or are not certain to be: they
    /// are to be deleted with the peer.
    Done(u64, Vec<EspSpi>),
    /// Sponsor: the host does not have this guest: it is to be deleted with the peer.
    Lost(EspSpi),
    /// Sponsor: the host wants this done with the peer.
    Wished(EspSpi, Wish),
}

/// One member's part.
pub struct Guests {
    /// What it does for others.
    pub host: Host,
    /// What it has with others.
    pub sponsor: Sponsor,
    acts: VecDeque<Act>,
}

impl Guests {
    /// A member that has just started.
    pub fn new(me: MemberId, layout: Layout) -> Self {
        Self {
            host: Host::new(me, layout),
            sponsor: Sponsor::new(me, layout),
            acts: VecDeque::new(),
        }
    }

    /// What is to be done next.
    pub fn poll(&mut self) -> Option<Act> {
        let host = &mut self.host.acts;
        let next = host.pop_front().or_else(|| self.sponsor.acts.pop_front());
        next.or_else(|| self.acts.pop_front())
    }

    /// Something was said about a group, in its present epoch.
    pub fn heard(&mut self, now: Instant, view: &dyn View, from: SetMember, group: GroupId, body: GuestBody) {
        let owner = view.epoch(group).owner == from.member;
        match body {
            GuestBody::Offer { number, spis } if owner => {
                self.sponsor.offered(view, from.member, group, number, spis);
            }
            GuestBody::Answer { spi_in, number, done } if owner => {
                self.sponsor.answered(now, view, spi_in, number, done)
            }
            GuestBody::RosterSeen { number, lacking } if owner => {
                self.sponsor.roster_seen(view, group, number, &lacking);
            }
            GuestBody::Change {
                voice,
                spi_in,
                changes,
            } if self.speaks(view, voice, from, group) => {
                self.host.change(view, from.member, group, voice, spi_in, changes);
            }
            GuestBody::Roster {
                voice,
                first,
                last,
                guests,
            } if self.speaks(view, voice, from, group) => {
                self.host
                    .roster(view, from.member, group, voice, (first, last), &guests);
            }
            // Said by the host of the SPI, about a group of IKE SAs that this member serves.
            GuestBody::Wish { spi_in, wish } if view.serves(group) => {
                self.acts.push_back(Act::Wished(spi_in, wish));
            }
            _ => {}
        }
    }

    fn speaks(&mut self, view: &dyn View, voice: Voice, from: SetMember, group: GroupId) -> bool {
        view.serves(group) && self.host.listens(view, voice, from.member)
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant, view: &dyn View) {
        self.sponsor.tick(now, view);
    }

    /// This member does not own the group any more.
    pub fn suspend(&mut self, group: GroupId) {
        self.host.suspend(group);
        self.sponsor.suspend(group);
    }
}
