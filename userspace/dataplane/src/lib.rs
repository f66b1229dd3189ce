//! The only crate that names aya: loads the programs, owns pins and links, carries out map plans, reads counters.
//!
//! [`Plane::load`] creates (or adopts) the maps and loads the programs; the agent fills the maps; [`Plane::attach`]
//! puts it all into service in place of a former run. Records, limits, owner words and counters are read and written
//! in shared memory, without system calls.

mod attach;
mod batch;
mod btf;
mod device;
mod error;
mod execute;
mod kept;
mod load;
mod mapped;
mod maps;
pub mod netlink;
mod parts;
mod policies;
mod report;
mod rings;
mod runner;
mod segments;
mod sys;
mod tables;
mod watch;
mod xdp_features;
mod xdp_mode;

pub use attach::{AttachReport, remove_pins};
pub use batch::KeyWriter;
pub use error::{LoadError, PlaneError, RunError};
pub use execute::{Activity, CounterReader};
pub use kept::{TOKEN, take_kept};
pub use load::{Mode, ObjectSource, Options, Plane};
pub use parts::bond_parts;
pub use report::{ProgramReport, verifier_report};
pub use rings::{EventReader, LogReader, SlowReader};
pub use runner::{Entry, Ran, Runner, WORKER_PRIORITY, real_time};
pub use segments::Segments;
pub use tables::VerdictCount;
pub use watch::{Seen, Watch};
pub use xdp_features::{Ability, XdpFeatures, xdp_features};
pub use xdp_mode::XdpModeUsed;

/// `CLOCK_MONOTONIC` in milliseconds: what owner words and the programs' timestamps are in.
pub fn monotonic_ms() -> u64 {
    monotonic_ns() / 1_000_000
}

/// `CLOCK_MONOTONIC` in nanoseconds.
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is live and writable; CLOCK_MONOTONIC exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The agent moves these between threads.
const _: () = {
    const fn sends<T: Send>() {}
    const fn shared<T: Send + Sync + Clone>() {}
    sends::<Plane>();
    sends::<EventReader>();
    sends::<SlowReader>();
    sends::<LogReader>();
    shared::<Runner>();
    shared::<Segments>();
    shared::<CounterReader>();
};
