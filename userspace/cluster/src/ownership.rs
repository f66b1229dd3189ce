//! What an ownership engine (etcd, say) is asked, and what it answers.
//!
//! One key for each group holds its [`GroupRecord`]. The node never writes blindly: a write names the whole record that it
//! expects, so of two claims one fails. A write whose outcome is not known is followed by a read, never by a guess.

use crate::message::SetMember;
use crate::rules::EpochId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Who owns a group, in which epoch, and who may take it over.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GroupRecord {
    /// Epoch and owner; the number only rises.
    pub epoch: EpochId,
    /// The in-sync set, owner included. Only a member listed here, in the life listed here, may claim.
    pub in_sync: BTreeSet<SetMember>,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnershipOp {
    /// What does the key hold? Linearizable.
    Read,
    /// Write `new`, if and only if the key holds exactly `expected`.
    Write {
        /// `None`: there is no such key.
        expected: Option<GroupRecord>,
        /// The new value.
        new: GroupRecord,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnershipAnswer {
    /// To [`OwnershipOp::Read`].
    Is(Option<GroupRecord>),
    /// The write is done, and durable.
    Written,
    /// The key held something else; nothing was written.
    Differs(Option<GroupRecord>),
    /// No answer in time, or an error: the write may be done or not.
    Unknown(String),
}
