//! Values whose range the compiler must not know.
//!
//! The compiler drops a bound check that it can prove from what went before, in ways that the verifier does not follow; and
//! it turns mask arithmetic back into branches, which the verifier then walks in every combination.

/// `value`, of which the compiler knows nothing any more.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub fn opaque(value: u64) -> u64 {
    let mut value = value;
    // SAFETY: a register is copied to itself. (An empty text would leave line information without an instruction, which
    // the kernel refuses.)
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// `value`; on the host nobody needs to be kept in the dark.
#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
pub const fn opaque(value: u64) -> u64 {
    value
}
