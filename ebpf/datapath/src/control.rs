//! The final window of a planned handover: what `sa_ctl` does. It runs on the SA's CPU, like everything that changes a
//! window.

use maps_schema::sad::{
    FinalWindow, SA_CTL_MERGED, SA_CTL_NO_FLOOR, SA_CTL_NO_SA, SA_CTL_NOT_OWNER, SA_CTL_WRONG_CPU,
    slot_place, spi_segment, spi_slot,
};

use crate::env::Env;
use crate::limits::{self, volatile};
use crate::replay;
use crate::steer::{ROLE_OLD_OWNER, Serve, decide, millis};

/// Merges `input` into the SA's window. Returns `SA_CTL_*`.
#[inline(always)]
pub fn merge_final_window(env: &impl Env, input: &FinalWindow) -> u32 {
    let Some(local) = env.local() else {
        return SA_CTL_NO_SA;
    };
    if input.slot >= local.slots || spi_slot(input.spi) != input.slot {
        return SA_CTL_NO_SA;
    }
    let (cpu, index) = slot_place(input.slot, local.cpus);
    if local.cpus > 1 && env.cpu() != cpu {
        return SA_CTL_WRONG_CPU;
    }
    let Some((owner, side)) = env.segment(spi_segment(input.spi)) else {
        return SA_CTL_NOT_OWNER;
    };
    let (epoch, alone) = match decide(owner, side, local.member as u8, millis(env.now_ns())) {
        Serve::Here {
            epoch, alone, role, ..
        } if role != ROLE_OLD_OWNER => (epoch, alone),
        _ => return SA_CTL_NOT_OWNER,
    };
    let Some(sa) = env.inbound(cpu, index) else {
        return SA_CTL_NO_SA;
    };
    if volatile(&sa.spi) != input.spi || input.spi == 0 {
        return SA_CTL_NO_SA;
    }
    let flags = volatile(&sa.flags);
    let Ok((limits, _)) = limits::read(&sa.limits) else {
        return SA_CTL_NOT_OWNER;
    };
    let Ok(range) = limits::inbound_range(&limits, flags, alone, epoch) else {
        return SA_CTL_NOT_OWNER;
    };
    let merged = env.window(cpu, index, |window| {
        // Lenient or not: what the old owner has seen is exact.
        replay::prepare(window, input.spi, epoch, range.floor);
        replay::merge(window, input, limits::is_tainted(&limits))
    });
    match merged {
        Some(true) => SA_CTL_MERGED,
        Some(false) => SA_CTL_NO_FLOOR,
        None => SA_CTL_NO_SA,
    }
}
