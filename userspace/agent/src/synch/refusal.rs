//! What the channel refuses, by name: counted always, logged at most every ten seconds each.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};

use quinn::ConnectionError;

use crate::clock;

/// Time between two lines about the same kind of refusal, milliseconds.
const QUIET_MS: u64 = 10_000;

macro_rules! refusals {
    ($($variant:ident $name:literal $text:literal;)*) => {
        /// Why a connection was refused or closed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Refusal {
            $(#[doc = $text] $variant,)*
        }

        impl Refusal {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// For labels.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// For people.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

refusals! {
    UnknownAddress "unknown_address" "it comes from an address that is no other member's on this link";
    NotADialer "not_a_dialer" "this member is the one that dials there";
    Flood "flood" "packets of no connection, more than an address may send";
    Rate "rate" "this address opens connections too often";
    HalfOpen "half_open" "too many handshakes of this address are under way";
    HandshakeSlow "handshake_slow" "the handshake took too long";
    NoCertificate "no_certificate" "it shows no certificate";
    UnknownAuthority "unknown_authority" "its certificate is not of the cluster's authority";
    Expired "expired" "its certificate has expired, or the clocks differ";
    Revoked "revoked" "its certificate is revoked, or its authority has no list in cluster.crl";
    WrongMember "wrong_member" "its certificate names another member than the one configured at its address";
    Protocol "protocol" "it speaks no version of this channel that is known here";
    Handshake "handshake" "the handshake failed";
    RefusedByPeer "refused_by_peer" "the member refuses this member's certificate or version";
    TooSoon "too_soon" "the member's present connection is too young to be replaced";
    GreetingMissing "greeting_missing" "it did not greet";
    GreetingMalformed "greeting_malformed" "its greeting cannot be read";
    FrameTooLong "frame_too_long" "it announced a frame that is longer than allowed";
    FrameTruncated "frame_truncated" "its stream ended inside a frame";
    FrameStalled "frame_stalled" "it began a frame and did not end it in time";
    FrameUnknown "frame_unknown" "it sent a frame that only a later version can read";
    Backlogged "backlogged" "it does not keep up with what is sent to it";
    NoLongerTrusted "no_longer_trusted" "its certificate is no longer accepted since the files were read again";
}

/// TLS alerts (RFC 8446 section 6.2, RFC 7301) as QUIC error codes (RFC 9001 section 4.8).
mod alert {
    pub const BASE: u64 = 0x100;
    pub const BAD_CERTIFICATE: u64 = BASE + 42;
    pub const CERTIFICATE_REVOKED: u64 = BASE + 44;
    pub const CERTIFICATE_EXPIRED: u64 = BASE + 45;
    pub const UNKNOWN_CA: u64 = BASE + 48;
    pub const DECRYPT_ERROR: u64 = BASE + 51;
    pub const CERTIFICATE_REQUIRED: u64 = BASE + 116;
    pub const NO_APPLICATION_PROTOCOL: u64 = BASE + 120;
}

impl Refusal {
    /// Why a handshake failed; `None` where nobody refused anything (no answer, the agent stops).
    pub fn of(error: &ConnectionError) -> Option<Self> {
        match error {
            ConnectionError::TransportError(error) => Some(match u64::from(error.code) {
                alert::CERTIFICATE_REQUIRED => Self::NoCertificate,
                // rustls has one alert for both, and names the list only in its text.
                alert::UNKNOWN_CA if error.reason.contains("RevocationStatus") => Self::Revoked,
                alert::UNKNOWN_CA => Self::UnknownAuthority,
                // An authority of the same name with another key.
                alert::DECRYPT_ERROR if error.reason.contains("BadSignature") => Self::UnknownAuthority,
                alert::CERTIFICATE_EXPIRED => Self::Expired,
                alert::CERTIFICATE_REVOKED => Self::Revoked,
                alert::BAD_CERTIFICATE if error.reason.contains("not valid for name") => Self::WrongMember,
                alert::BAD_CERTIFICATE => Self::UnknownAuthority,
                alert::NO_APPLICATION_PROTOCOL => Self::Protocol,
                _ => Self::Handshake,
            }),
            ConnectionError::VersionMismatch => Some(Self::Protocol),
            ConnectionError::ConnectionClosed(_) | ConnectionError::ApplicationClosed(_) => {
                Some(Self::RefusedByPeer)
            }
            ConnectionError::TimedOut
            | ConnectionError::Reset
            | ConnectionError::LocallyClosed
            | ConnectionError::CidsExhausted => None,
        }
    }
}

/// One kind's count, and when it was last logged.
#[derive(Default)]
struct Tally {
    count: AtomicU64,
    /// Milliseconds of the monotonic clock; 0 before the first line.
    logged_ms: AtomicU64,
    logged_count: AtomicU64,
}

/// Counts of all kinds.
pub struct Refusals(Vec<Tally>);

impl Default for Refusals {
    fn default() -> Self {
        Self(Refusal::ALL.iter().map(|_| Tally::default()).collect())
    }
}

impl Refusals {
    /// Counts a refusal, and logs it if the last line of its kind is old enough.
    pub(super) fn note(&self, why: Refusal, who: &dyn Display, link: &str, detail: &str) {
        let Some(tally) = self.0.get(why as usize) else {
            return;
        };
        let count = tally.count.fetch_add(1, Ordering::Relaxed) + 1;
        let now = clock::now().millis().max(1);
        let last = tally.logged_ms.load(Ordering::Relaxed);
        if last != 0 && now.saturating_sub(last) < QUIET_MS {
            return;
        }
        let claimed = tally
            .logged_ms
            .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed);
        if claimed.is_ok() {
            let since = count - tally.logged_count.swap(count, Ordering::Relaxed);
            tracing::warn!(
                from = %who, link, reason = why.name(), times = since, detail,
                "refused on the synch channel: {}", why.text()
            );
        }
    }

    /// How often one kind has happened.
    pub fn count(&self, why: Refusal) -> u64 {
        self.0
            .get(why as usize)
            .map_or(0, |tally| tally.count.load(Ordering::Relaxed))
    }

    /// All kinds together.
    pub fn total(&self) -> u64 {
        Refusal::ALL.iter().map(|why| self.count(*why)).sum()
    }

    /// Counts by name; what has not happened is 0.
    pub fn by_name(&self) -> BTreeMap<String, u64> {
        let all = Refusal::ALL.iter();
        all.map(|why| (why.name().to_owned(), self.count(*why))).collect()
    }
}
