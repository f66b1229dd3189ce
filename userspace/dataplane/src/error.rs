//! Errors that name the cause and what to do.

use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Why the programs could not be loaded or attached.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The object file cannot be read.
    #[error("cannot read the program object {path}: {cause} (build it with `cargo xtask build`)")]
    Object {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The object lacks a map or program.
    #[error(
        "the program object has no {what} named {name}: it is of another version; build it again with `cargo xtask build`"
    )]
    Missing {
        /// "map" or "program".
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// The kernel refuses BPF to this process.
    #[error("not allowed to {action}: run as root or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON ({cause})")]
    Capability {
        /// What was tried.
        action: String,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// aya or the verifier refused.
    #[error("loading {what} failed: {cause}")]
    Aya {
        /// What was loaded.
        what: String,
        /// aya's text, with the verifier's log where there is one.
        cause: String,
    },
    /// A system call failed.
    #[error("cannot {action}: {cause}{hint}")]
    Kernel {
        /// What was tried.
        action: String,
        /// The kernel's answer.
        cause: io::Error,
        /// What to do, empty or in parentheses.
        hint: &'static str,
    },
    /// No native XDP on the interface.
    #[error("{device} cannot run XDP in driver mode ({cause}): {why}")]
    NoDriverMode {
        /// The interface, its driver and MTU.
        device: String,
        /// The kernel's answer.
        cause: io::Error,
        /// What it may be, and what to do.
        why: String,
    },
    /// Another XDP program is there.
    #[error(
        "interface {ifindex} already runs an XDP program that is not ours: remove it (`bpftool net`, `ip link set dev ... xdp off`)"
    )]
    Busy {
        /// The interface.
        ifindex: u32,
    },
    /// Pinned maps of another layout.
    #[error(
        "pinned maps in {pin_dir} have schema {found_schema}, {found_cpus} CPUs and {found_slots} slots, wanted {schema}, {cpus} and {slots}: start without adopting them"
    )]
    Schema {
        /// The folder.
        pin_dir: PathBuf,
        /// Found layout version.
        found_schema: u32,
        /// Found CPUs.
        found_cpus: u32,
        /// Found slots.
        found_slots: u32,
        /// Wanted layout version.
        schema: u32,
        /// Wanted CPUs.
        cpus: u32,
        /// Wanted slots.
        slots: u32,
    },
    /// Options that make no sense.
    #[error("{0}")]
    Options(String),
}

impl LoadError {
    /// A failed system call; EPERM becomes [`LoadError::Capability`].
    pub(crate) fn kernel(action: impl Into<String>, cause: io::Error) -> Self {
        let action = action.into();
        let hint = match cause.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => return Self::Capability { action, cause },
            Some(libc::ENOMEM) => " (memory: lower `slots`, or raise the memory limit of the service)",
            Some(libc::EINVAL) => " (this kernel may be too old: Linux 6.1 or later is needed)",
            Some(libc::ENOENT) => {
                " (is bpffs mounted? `mount -t bpf bpf /sys/fs/bpf`; `ip netns exec` hides it, use `nsenter --net=`)"
            }
            _ => "",
        };
        Self::Kernel { action, cause, hint }
    }
}

/// Why a map could not be read or written at run time.
#[derive(Debug, Error)]
#[error("cannot {action}: {cause}")]
pub struct PlaneError {
    /// What was tried.
    pub action: String,
    /// The kernel's answer.
    pub cause: io::Error,
}

impl PlaneError {
    pub(crate) fn new(action: impl Into<String>, cause: io::Error) -> Self {
        Self {
            action: action.into(),
            cause,
        }
    }
}

/// Why a frame was not run.
#[derive(Debug, Error)]
pub enum RunError {
    /// No worker for this CPU.
    #[error("CPU {0} serves no SAs")]
    NoSuchCpu(u32),
    /// Longer than the slow path takes.
    #[error("a frame of {octets} octets is run nowhere: {max} at most")]
    TooLong {
        /// Its octets.
        octets: usize,
        /// What it may have.
        max: usize,
    },
    /// The worker is gone.
    #[error("the worker thread of CPU {0} has ended")]
    WorkerGone(u32),
    /// The kernel refused.
    #[error(
        "BPF_PROG_TEST_RUN failed: {0} (EINVAL: the interface must exist in this network namespace and run XDP)"
    )]
    Kernel(#[from] io::Error),
    /// The control program refused.
    #[error("the final window was not merged: {0}")]
    Refused(&'static str),
}
