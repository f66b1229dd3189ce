//! Interfaces that are no plain card, as far as every kernel has them: they carry an SA, or are refused by name. Bonds and VLANs are tried
//! by `cargo xtask test --kernels`, on kernels that have them.
//!
//! Needs root and the built product: `cargo xtask test` sees to all of that.

use anyhow::{Result, ensure};
use lab::devices::{Devices, EVERYWHERE};
use std::path::Path;

#[test]
fn interfaces_of_every_kind_carry_or_are_refused_by_name() -> Result<()> {
    let devices = Devices::new(Path::new(env!("CARGO_TARGET_TMPDIR")), EVERYWHERE)?;
    let mut failed = Vec::new();
    for (at, trial) in devices.trials().iter().enumerate() {
        match devices.make(at) {
            Ok(()) => println!("held: {}", trial.name),
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n\n"));
    Ok(())
}
