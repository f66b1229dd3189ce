//! The SA store against a data plane in memory: order of a plan, rekey, removal, snapshots, raises.

mod advance;
mod awaited;
mod final_window;
mod groups;
mod handover;
mod lenient;
mod linger;
mod look;
mod reload;
mod sas;
mod siblings;
mod taint;
mod usage;
mod world;
