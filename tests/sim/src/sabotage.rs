//! Rules that can be broken on purpose, so that every checker is seen to catch what it is there for. The breaks are in the
//! simulation's own glue and maps; the product has no such switch.

use clap::ValueEnum;

/// A rule that this build breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Sabotage {
    /// The data plane sends past the lease.
    LeaseIgnored,
    /// The data plane accepts past the ceiling.
    CeilingIgnored,
    /// The data plane serves although the owner word has expired.
    ValidityIgnored,
    /// Wished raises are used before anybody has acknowledged them.
    RaiseUnconfirmed,
    /// IKE messages are sent when they are proposed, not when they are committed.
    SendBeforeCommit,
    /// A flip writes the words of the first epoch again.
    EpochNotRaised,
    /// A joining member gets the first snapshot that was ever taken.
    StaleSnapshot,
    /// A standby acknowledges entries without taking them over.
    ArmedUnapplied,
    /// A standby keeps the first record of every IKE SA.
    StaleRecord,
    /// IVs of IKE messages name neither member nor epoch.
    IvWithoutSender,
    /// All members allocate SPIs as member 1.
    SpiOfMemberOne,
    /// A link that goes down clears the standby's SAs.
    LinkLossKills,
    /// Every scan reports every window, moved or not.
    ReportsEverything,
    /// A record that cannot be read makes the agent drain the member.
    GarbageDrains,
    /// SPIs that unfinished exchanges had reserved stay reserved when another member takes over.
    ReservationsKept,
    /// IKE messages come from the member's own address.
    OwnAddress,
    /// A connection of which some frames wait for a raise is closed.
    SlowRaiseKills,
    /// An SA that a lost standby knew may be used by whoever takes over next.
    NothingTainted,
    /// Who has lost a fork does not say what it touched.
    ForkForgotten,
    /// A life that ends before it could tell of a fork leaves no word to the next one.
    ForkNotKept,
    /// Who has lost a fork does not say with whom it began IKE SAs of its own.
    ForkUnnamed,
    /// A standby that suspects the owner does nothing about it: the flip never reaches the maps.
    FlipLost,
    /// Members do not heed what other groups' owners say of a peer that began anew.
    ContactUnheard,
    /// A sponsor takes every host's answer for given: its messages leave before anybody has the guest.
    GuestUnconfirmed,
    /// A guest is in use when it is installed, before the record of its IKE SA names it.
    GuestUsedAtOnce,
    /// A host applies what sponsors say to its own maps alone.
    GuestUnjournalled,
    /// Nobody says rosters.
    RosterUnsaid,
    /// The owner leaves the taker of a planned takeover a part of each tainted lease, and goes on with all of it.
    RestsKept,
    /// The taker of a planned takeover is left a part that begins below where the owner ends.
    RestsBelow,
    /// A peer is authenticated anew before its old IKE SA is gone, again and again.
    AlwaysTwo,
    /// A taker's sponsor does not know the guests of the IKE SAs that its engine has adopted.
    GuestsForgotten,
}
