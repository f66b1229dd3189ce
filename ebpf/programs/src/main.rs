//! The XDP programs: entry points. Rules are in `datapath`, maps in `maps`, the way to the kernel in `xdp_env`.
//!
//! All of them are marked for frames in several buffers, which devices with large MTUs make: octets are reached by helpers that
//! know of buffers, and the kernel wants all programs that meet over a cpumap to be of one kind.
#![no_std]
#![no_main]

mod maps;
mod report;
mod stages;
mod xdp_env;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use datapath::control;
use maps_schema::sad::{FinalWindow, SA_CTL_BAD_INPUT};
use zerocopy::FromZeros;

use stages::Place;
use xdp_env::Xdp;

/// Outside interface: to the member, to the CPU, and open.
#[xdp(frags)]
pub fn steer(ctx: XdpContext) -> u32 {
    stages::outside(Xdp::new(&ctx), Place::Interface)
}

/// Open, on the SA's CPU.
#[xdp(frags, map = "cpumap")]
pub fn esp_in(ctx: XdpContext) -> u32 {
    stages::outside(Xdp::new(&ctx), Place::Cpu)
}

/// Inside interface: policy, to the CPU, and seal.
#[xdp(frags)]
pub fn inside(ctx: XdpContext) -> u32 {
    stages::inside(Xdp::new(&ctx), Place::Interface)
}

/// Seal, on the SA's CPU.
#[xdp(frags, map = "cpumap")]
pub fn esp_out(ctx: XdpContext) -> u32 {
    stages::inside(Xdp::new(&ctx), Place::Cpu)
}

/// Merges a final window; run by `BPF_PROG_TEST_RUN` on the SA's CPU. Returns `SA_CTL_*`.
#[xdp(frags)]
pub fn sa_ctl(ctx: XdpContext) -> u32 {
    let env = Xdp::new(&ctx);
    let mut input = FinalWindow::new_zeroed();
    if !env.load_raw(0, (&raw mut input).cast(), size_of::<FinalWindow>() as u32) {
        return SA_CTL_BAD_INPUT;
    }
    control::merge_final_window(&env, &input)
}

/// Passes every frame: for the far ends of veth pairs in a lab.
#[xdp(frags)]
pub fn pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// A reachable panic is an endless loop, which the verifier refuses: it fails at load, not at run time.
#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
