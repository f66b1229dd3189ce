//! What the kernel says about the programs: tracked numbers, for `cargo xtask verifier-report`.

use crate::error::LoadError;
use crate::load::{chain, load_programs, possible_cpus};
use aya::programs::ProgramInfo;
use aya::{EbpfLoader, VerifierLogLevel};
use maps_schema::names::{MAP_CPUS_IN, MAP_CPUS_OUT};
use std::path::Path;

/// One program after verification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramReport {
    /// Its name.
    pub name: String,
    /// Instructions of the program.
    pub instructions: u32,
    /// Instructions that the verifier walked through (a million is its limit); 0 where the kernel does not say.
    pub verified_instructions: u32,
    /// Octets of machine code.
    pub jited_bytes: u32,
    /// Octets of memory that the kernel holds for it.
    pub memory_bytes: u32,
}

impl ProgramReport {
    pub(crate) fn of(name: &str, info: &ProgramInfo) -> Self {
        Self {
            name: name.to_owned(),
            instructions: info.size_translated().unwrap_or(0) / 8,
            verified_instructions: info.verified_instruction_count().unwrap_or(0),
            jited_bytes: info.size_jitted(),
            memory_bytes: info.memory_locked().unwrap_or(0),
        }
    }
}

/// Loads every program of an object, attaches nothing, and reports.
///
/// # Errors
/// [`LoadError`], with the verifier's log where it refused a program.
pub fn verifier_report(object: &Path) -> Result<Vec<ProgramReport>, LoadError> {
    let bytes = std::fs::read(object).map_err(|cause| LoadError::Object {
        path: object.to_owned(),
        cause,
    })?;
    let cpus = possible_cpus()?;
    let mut ebpf = EbpfLoader::new()
        .map_max_entries(MAP_CPUS_IN, cpus)
        .map_max_entries(MAP_CPUS_OUT, cpus)
        .verifier_log_level(VerifierLogLevel::DISABLE | VerifierLogLevel::STATS)
        .load(&bytes)
        .map_err(|e| LoadError::Aya {
            what: "the program object".into(),
            cause: chain(&e),
        })?;
    Ok(load_programs(&mut ebpf)?.1)
}
