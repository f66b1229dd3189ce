//! A laboratory of network namespaces on one host: a peer site with strongSwan, a router, an outside network, the
//! members of an espalier cluster, an inside network with a server; recorders, probes and replays to judge it all.
//!
//! `cargo xtask demo` and the interop tests are both written with it. Whatever it creates carries a random suffix,
//! is written down before it is made, and is removed when the [`Lab`](topology::Lab) is dropped, on a signal, or, after
//! a crash, at the next start.

pub mod baseline;
pub mod clock;
pub mod cluster;
pub mod cmd;
pub mod config;
pub mod deliveries;
pub mod devices;
pub mod duel;
pub mod esp;
pub mod etcd;
pub mod faults;
pub mod fleet;
pub mod flood;
pub mod flow;
pub mod gateway;
pub mod handshakes;
pub mod ike_peer;
pub mod iperf;
pub mod ledger;
pub mod linux;
pub mod member;
pub mod nat;
pub mod netns;
pub mod pass;
pub mod ping;
pub mod probe;
pub mod queues;
pub mod recorder;
pub mod replay;
pub mod resources;
pub mod seen;
pub mod sightings;
pub mod stage;
pub mod strongswan;
pub mod tcp;
pub mod topology;
pub mod trace;
pub mod tshark;
pub mod uml;
