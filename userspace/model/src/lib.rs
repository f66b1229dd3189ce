//! Shared nouns of user space: newtypes and change records, no behaviour.

pub mod address;
pub mod child_sa;
pub mod cluster;
pub mod octets;
pub mod secret;
pub mod spi;
pub mod suite;
pub mod time;
pub mod traffic_selector;

pub use child_sa::{ChildSaChange, ChildSaRecord, InitialLimits, OutboundUse, SaForm, SaMode};
pub use cluster::{Epoch, GroupId, Incarnation, MemberId, SegmentId};
pub use secret::SecretBytes;
pub use spi::{EspSpi, IkeSpi};
pub use suite::EspSuite;
pub use time::Instant;
pub use traffic_selector::TrafficSelector;
