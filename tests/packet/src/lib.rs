//! One table of packet cases: packet in, state in, verdict, packet out, state out. `tests/host.rs` runs it through `datapath` in
//! memory, `tests/kernel.rs` through the loaded XDP programs by BPF_PROG_TEST_RUN. A case says the same in both.

pub mod arbitrary;
pub mod case;
pub mod cases;
pub mod cbc;
pub mod ciphers;
pub mod frames;
pub mod host;
pub mod in_memory;
#[cfg(feature = "kernel")]
pub mod kernel;
pub mod world;
