//! Sans-IO IKEv2 engine (RFC 7296).
//!
//! Bytes, time and commands go in; commits (changes and the messages that depend on them), retransmissions and events
//! come out. The engine knows no sockets, no clock, no cluster: a commit is an output that the agent confirms to
//! whom it likes before it releases the messages.
#![forbid(unsafe_code)]

pub mod auth;
mod command;
pub mod config;
mod endpoint;
mod engine;
pub mod event;
mod exchange;
mod forget;
mod ike_sa;
pub mod io;
mod lineage;
mod negotiate;
mod outbox;
pub mod pool;
pub mod proposal;
pub mod status;
mod table;
mod tasks;
mod tickets;
mod timers;

pub use auth::{LocalAuth, LocalCertificate, RemoteAuth};
pub use config::{
    ChildConfig, Childless, Connection, EndpointConfig, EngineConfig, Identity, MidSync, OtherSecrets, Ppk,
    Resource, Retransmit,
};
pub use engine::Engine;
pub use event::{Event, EventKind};
pub use exchange::{ComputeRequest, Computed};
pub use forget::Forgotten;
pub use ike_sa::record::{AdoptError, RECORD_VERSIONS};
pub use io::{
    Change, Command, Commit, IkeSaChange, Input, Output, SignRequest, Surroundings, TlsOutcome, TlsRequest,
    Transmit,
};
pub use pool::{Pool, PoolShare};
pub use proposal::{Proposal, ProposalError};
pub use status::{Agreed, ChildSaStatus, ConnectionPhase, IkeSaPeer, IkeSaStatus, MessageIdWindows};
