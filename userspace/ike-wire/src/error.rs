//! What can be wrong with a message.

use crate::payload::Notify;
use crate::registry::{NotifyType, PayloadType};

/// Errors of parsing. Each names the part of the message; none holds the peer's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The input ends inside a part.
    #[error("{what} is truncated: needs {needed} octets, has {got}")]
    Truncated {
        /// The part.
        what: &'static str,
        /// Octets that it needs.
        needed: usize,
        /// Octets that are there.
        got: usize,
    },
    /// A length field disagrees with what encloses it.
    #[error("{what} says it has {stated} octets, but there are {got}")]
    LengthMismatch {
        /// The part.
        what: &'static str,
        /// Value of the length field.
        stated: usize,
        /// Octets that are there.
        got: usize,
    },
    /// Octets are left behind the last part.
    #[error("{count} octets are left over behind {what}")]
    Trailing {
        /// The part that ended early.
        what: &'static str,
        /// Octets left over.
        count: usize,
    },
    /// The major version is not 2.
    #[error("major version {0} is not 2")]
    MajorVersion(u8),
    /// A payload that we do not know has its critical bit set.
    #[error("payload type {0} is critical and not supported")]
    UnsupportedCritical(PayloadType),
    /// More payloads than any sane message has.
    #[error("more than {max} payloads in one message")]
    TooManyPayloads {
        /// The limit.
        max: usize,
    },
    /// An encrypted payload inside an encrypted payload.
    #[error("payload {0} may not stand inside an encrypted payload")]
    NestedEncryption(PayloadType),
    /// A field has a value that RFC 7296 forbids.
    #[error("{what} has the forbidden value {value}")]
    Value {
        /// The field.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// The number of transforms or selectors is not the one that was announced.
    #[error("{what}: {stated} announced, {got} found")]
    Count {
        /// What was counted.
        what: &'static str,
        /// Announced.
        stated: usize,
        /// Found.
        got: usize,
    },
    /// A range that ends before it begins.
    #[error("range of {0} ends before it begins")]
    Backwards(&'static str),
    /// Text that is not text.
    #[error("{0} is not valid UTF-8")]
    Text(&'static str),
}

impl WireError {
    /// The Notify payload that RFC 7296 2.21 and 2.5 let a responder answer with.
    pub fn notify(&self) -> Notify {
        match self {
            Self::MajorVersion(_) => Notify::new(NotifyType::INVALID_MAJOR_VERSION, vec![]),
            Self::UnsupportedCritical(kind) => {
                Notify::new(NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD, vec![kind.0])
            }
            _ => Notify::new(NotifyType::INVALID_SYNTAX, vec![]),
        }
    }
}
